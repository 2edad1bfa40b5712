"""What a checkpoint says of labelled pictures, and how good that is."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emopipe.emonet.checkpoint import Checkpoint
from emopipe.emonet.data.fer2013 import FaceSet, network_input
from emopipe.emonet.data.landmarks68 import LandmarkSet
from emopipe.emonet.errors import EvaluationError
from emopipe.emonet.metrics import ExpressionScores, landmark_errors, score_expressions
from emopipe.emonet.model import EmoNet
from emopipe.emonet.predictor import FACES_PER_BATCH, Predictor
from emopipe.emonet.training.augmentation import DRAWS
from emopipe.emonet.training.config import NONE

_PICTURES_AT_A_TIME = 128  # bounds memory: 100 MB of 256 px crops, as float32


@dataclass(frozen=True)
class Said:
    """What a network says of n pictures.

    Attributes:
        probabilities: (n, classes) float32, each row sums to 1.
        valence: (n,) float32 in [-1, 1].
        arousal: (n,) float32 in [-1, 1].
    """

    probabilities: NDArray[np.float32]
    valence: NDArray[np.float32]
    arousal: NDArray[np.float32]


@dataclass(frozen=True)
class Judged:
    """One way of judging a network by FER2013 pictures.

    Attributes:
        test: name of the pictures.
        without_copies: whether pictures that also stand in Training were left out.
        mirror: whether probabilities were averaged over each picture and its mirror image.
        classes: names, in the scores' order.
        scores: how good the network is.
    """

    test: str
    without_copies: bool
    mirror: bool
    classes: tuple[str, ...]
    scores: ExpressionScores


def judge(
    predictor: Predictor,
    faces: FaceSet,
    tests: dict[str, NDArray[np.int64]],
    known: dict[str, NDArray[np.bool_]],
) -> list[Judged]:
    """Judge a network by each test with its copies and, if it has any, without; plain, mirrored.

    Args:
        predictor: the network; its classes are matched with the pictures' by name.
        faces: the pictures.
        tests: name to the rows it consists of.
        known: name to which of those also stand in Training, as `Split` has them.
    """
    judged = []
    for test, rows in tests.items():
        images, truth = faces.images[rows], faces.labels[rows]
        answers = {
            mirror: matched(
                of_fer2013(predictor, images, mirror=mirror).probabilities,
                predictor.checkpoint.classes,
                faces.classes,
            )[0]
            for mirror in (False, True)
        }
        every = np.ones(len(rows), np.bool_)
        ways = {False: every, True: ~known[test]} if known[test].any() else {False: every}
        for without_copies, kept in ways.items():
            for mirror, told in answers.items():
                if kept.any():
                    scores = score_expressions(told[kept], truth[kept])
                    judged.append(Judged(test, without_copies, mirror, faces.classes, scores))
    return judged


def of_crops(predictor: Predictor, crops: NDArray[np.uint8], *, mirror: bool) -> Said:
    """Predict from crops; with `mirror` the mean over each and its mirror image.

    Args:
        predictor: the network.
        crops: (n, size, size, 3) uint8 RGB.
        mirror: whether to average.
    """
    views = [crops, np.ascontiguousarray(crops[:, :, ::-1])] if mirror else [crops]
    told = [predictor(view) for view in views]
    return Said(
        probabilities=np.mean([one.probabilities for one in told], axis=0),
        valence=np.mean([one.valence for one in told], axis=0),
        arousal=np.mean([one.arousal for one in told], axis=0),
    )


def of_fer2013(predictor: Predictor, images: NDArray[np.uint8], *, mirror: bool) -> Said:
    """Predict from FER2013 pictures: each is its own crop.

    Args:
        predictor: the network.
        images: (n, 48, 48) uint8 grey; n is 1 or more.
        mirror: whether to average over each picture and its mirror image.
    """
    parts = []
    for first in range(0, len(images), _PICTURES_AT_A_TIME):
        some = network_input(
            images[first : first + _PICTURES_AT_A_TIME], predictor.checkpoint.input_size
        )
        parts.append(of_crops(predictor, _as_bytes(some), mirror=mirror))
    return Said(
        probabilities=np.concatenate([part.probabilities for part in parts]),
        valence=np.concatenate([part.valence for part in parts]),
        arousal=np.concatenate([part.arousal for part in parts]),
    )


def landmark_errors_of(
    predictor: Predictor, faces: LandmarkSet, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Tell how far off a network's landmarks are, see `emonet.metrics.landmark_errors`.

    Args:
        predictor: the network.
        faces: pictures with landmarks.
        rows: (m,) which of them; 1 or more.

    Returns:
        (m,) float64.
    """
    described = predictor.checkpoint
    errors = []
    for first in range(0, len(rows), _PICTURES_AT_A_TIME):
        some = rows[first : first + _PICTURES_AT_A_TIME]
        unmoved = torch.zeros(len(some), DRAWS)
        crops, points = faces.seen(some, described.crop, described.input_size, unmoved, NONE)
        errors.append(landmark_errors(predictor(_as_bytes(crops)).landmarks, points.numpy()))
    return np.concatenate(errors)


@torch.inference_mode()
def extremes(network: EmoNet, images: NDArray[np.uint8], size: int) -> tuple[float, float]:
    """Find the lowest and highest valence or arousal before clamping, in float32.

    Args:
        network: in evaluation mode, in float32.
        images: (n, 48, 48) uint8 grey; n is 1 or more. Their mirror images are looked at too.
        size: the network's input, pixels.
    """
    raw = []
    device = next(network.parameters()).device
    step = FACES_PER_BATCH[device.type]
    for first in range(0, len(images), step):
        crops = network_input(images[first : first + step], size).to(device)
        for view in (crops, crops.flip(-1)):
            out = network(view.contiguous(memory_format=torch.channels_last))
            raw += [out.valence, out.arousal]
    every = torch.cat(raw)
    return every.min().item(), every.max().item()


def remembered(described: Checkpoint, faces: FaceSet, tests: Iterable[str]) -> tuple[str, ...]:
    """Say which tests a checkpoint learnt from or was selected by, where its metadata tell.

    Args:
        described: the checkpoint.
        faces: the pictures of the tests.
        tests: their names.
    """
    if described.made.get("data", {}).get("sha256") != faces.sha256:
        return ()
    parts = {described.made.get("validation"): "was selected by", "Training": "learnt from"}
    return tuple(
        f"{described.name} {parts[test]} {test}: its scores there say little"
        for test in tests
        if test in parts
    )


def matched(
    said: NDArray[np.floating], classes: tuple[str, ...], wanted: tuple[str, ...]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Bring a network's classes into the data's order by their names.

    Classes that the data lack are left out and the others' probabilities rescaled to sum to 1;
    classes that the network lacks are never said.

    Args:
        said: (n, len(classes)) probabilities.
        classes: the network's.
        wanted: the data's.

    Returns:
        (n, len(wanted)) probabilities, and sentences that name what one side lacks.

    Raises:
        EvaluationError: they have none in common.
    """
    if not set(classes) & set(wanted):
        raise EvaluationError(
            f"the model tells {', '.join(classes)}, the data {', '.join(wanted)}: no class is the "
            "same, so there is nothing to score"
        )
    brought = np.zeros((len(said), len(wanted)))
    for column, name in enumerate(wanted):
        if name in classes:
            brought[:, column] = said[:, classes.index(name)]
    total = brought.sum(axis=1, keepdims=True)
    brought = np.divide(brought, total, out=np.zeros_like(brought), where=total > 0)
    notes = []
    if lacking := [name for name in wanted if name not in classes]:
        notes.append(f"the model does not know {', '.join(lacking)}: all such samples count wrong")
    if unused := [name for name in classes if name not in wanted]:
        notes.append(
            f"the data have no {', '.join(unused)}: that answer is barred, the others rescaled"
        )
    return brought, tuple(notes)


def _as_bytes(pictures: Tensor) -> NDArray[np.uint8]:
    """(n, 3, size, size) in [0, 1] to what a predictor takes: (n, size, size, 3) uint8."""
    images: NDArray[np.uint8] = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(images)

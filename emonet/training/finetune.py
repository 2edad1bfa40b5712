"""Transfer learning: a start model's network learns the expressions of another data set.

The expressions' rows of the last layer are new (a class of the start model's begins as its row).
Valence, arousal and landmarks survive: what leads to them is either frozen or held to what the
start model says of the same pictures.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from emopipe.emonet.checkpoint import Checkpoint
from emopipe.emonet.data.fer2013 import FaceSet, Split
from emopipe.emonet.evaluation import of_fer2013
from emopipe.emonet.metrics import score_expressions
from emopipe.emonet.model import EmoNet
from emopipe.emonet.predictor import Predictor
from emopipe.emonet.training import augmentation
from emopipe.emonet.training.augmentation import augment
from emopipe.emonet.training.config import FineTuning
from emopipe.emonet.training.trainer import balancing, steps_of

KEEP_EVERY = 4
"""The start model is asked about every so many-th sample of a batch: enough to hold on to it, and
the cost is a fraction of a step."""

_EMOTION_BRANCH = ("conv1x1_input_emo_2", "emo_net_2", "emo_fc_2")
_LAST_LAYER = "emo_fc_2.3"
_TOLERATED = 0.1  # error of valence or arousal up to which the penalty is quadratic
_HEATMAP_WEIGHT = 0.2  # a Gaussian of one cell has the squared sum π; valence's scale is 1


class Batch(NamedTuple):
    """Pictures (n, 3, size, size) float32 in [0, 1] and targets (n, classes) float32."""

    pictures: Tensor
    targets: Tensor


def begin(
    start: EmoNet, known: tuple[str, ...], classes: tuple[str, ...], trained: str, seed: int
) -> EmoNet:
    """Make the network to be trained, its trained parameters requiring gradients.

    Args:
        start: the start model.
        known: its classes.
        classes: those to be learnt.
        trained: one of `PARTS`.
        seed: of rows that no class of the start model's gives.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = EmoNet(len(classes), start.width)
    state = start.state_dict()
    fresh = network.state_dict()
    sources = [*(known.index(n) if n in known else None for n in classes), -2, -1]
    for name in (f"{_LAST_LAYER}.weight", f"{_LAST_LAYER}.bias"):
        rows = [fresh[name][i] if s is None else state[name][s] for i, s in enumerate(sources)]
        state[name] = torch.stack(rows)
    network.load_state_dict(state)
    for name, parameter in network.named_parameters():
        parameter.requires_grad = (
            trained == "all"
            or (trained == "emotion" and name.startswith(_EMOTION_BRANCH))
            or name.startswith(_LAST_LAYER)
        )
    if trained == "head":
        last = network.get_submodule(_LAST_LAYER)
        for parameter in last.parameters():
            parameter.register_hook(_without_last_two)  # type: ignore[no-untyped-call]
    return network


class FineTuningTask:
    """Learning a `FaceSet`'s classes; a `emonet.training.trainer.Task`.

    Args:
        faces: the pictures.
        split: which of them are for what.
        settings: how.
        start: the start model, in evaluation mode; it is moved to the device. None where there is
            nothing to hold on to.
        checkpoint: describes the network that is trained.
        batch_size: samples a step and worker.
        seed: of order and augmentation.
        device: where the network is.
        precision: in which the network is judged.

    Attributes:
        class_weights: (classes,) float32, what a sample of each class weighs in the loss.

    """

    def __init__(
        self,
        faces: FaceSet,
        split: Split,
        settings: FineTuning,
        start: EmoNet | None,
        checkpoint: Checkpoint,
        batch_size: int,
        seed: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self._faces = faces
        self._split = split
        self._settings = settings
        self._start = start.to(device).eval() if start and settings.keep else None
        self._checkpoint = checkpoint
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._precision = precision
        power = 1.0 if settings.balance == "loss" else 0.0
        weights = balancing(faces.targets[split.train], power)
        self.class_weights = torch.from_numpy(weights).to(device)
        self._sampling = _inverse_frequency(faces.labels[split.train])

    def steps(self, workers: int) -> int:
        """How many batches an epoch has for each worker; an incomplete last one is left out."""
        return steps_of(len(self._split.train), self._batch_size, workers)

    def batches(
        self, epoch: int, worker: int, workers: int, *, settling: bool = False
    ) -> Iterator[Batch]:
        """One worker's share of each step's pictures."""
        how = self._settings.augmentation
        if settling:
            how = how.halved()
        order = self.rows(epoch)
        draws = augmentation.draws(self._seed, epoch, len(order))
        for step in range(self.steps(workers)):
            first = (step * workers + worker) * self._batch_size
            places = slice(first, first + self._batch_size)
            rows = order[places]
            pictures = augment(
                torch.from_numpy(self._faces.images[rows])[:, None].to(self._device),
                torch.from_numpy(draws[places]).to(self._device),
                self._checkpoint.input_size,
                how,
            )
            targets = torch.from_numpy(self._faces.targets[rows]).to(self._device)
            yield Batch(pictures.contiguous(memory_format=torch.channels_last), targets)

    def loss(self, network: Callable[[Tensor], Any], batch: Batch) -> Tensor:
        """Cross-entropy to the targets, and the penalty for leaving the start model."""
        out = network(batch.pictures)
        smoothing = self._settings.smoothing
        targets = batch.targets * (1 - smoothing) + smoothing / batch.targets.shape[1]
        each = F.cross_entropy(out.logits.float(), targets, reduction="none")
        loss = (each * (batch.targets @ self.class_weights)).mean()
        if self._start is None or self._settings.trained == "head":
            return loss
        with torch.no_grad():
            held = self._start(batch.pictures[::KEEP_EVERY])
        return loss + self._settings.keep * _departure(
            out, held, heatmaps=self._settings.trained == "all"
        )

    def score(self, network: EmoNet) -> tuple[float, dict[str, float]]:
        """Weighted F1 and more on the validation pictures."""
        rows = self._split.validation
        predictor = Predictor(network, self._checkpoint, str(self._device), self._precision)
        said = of_fer2013(predictor, self._faces.images[rows], mirror=False).probabilities
        scores = score_expressions(said, self._faces.labels[rows])
        return scores.weighted_f1, {
            "accuracy": scores.accuracy,
            "macro_f1": scores.macro_f1,
            "weighted_f1": scores.weighted_f1,
            "calibration_error": scores.calibration_error,
        }

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """An epoch's rows of the face set in the order they are shown."""
        rng = np.random.default_rng((self._seed, epoch, 1))
        train = self._split.train
        if self._settings.balance == "sampling":
            return rng.choice(train, len(train), p=self._sampling)
        return rng.permutation(train)


def _departure(out: Any, held: Any, *, heatmaps: bool) -> Tensor:
    """How far every KEEP_EVERY-th sample has left what the start model says of it."""
    far = torch.zeros((), device=held.valence.device)
    for name in ("valence", "arousal"):
        # Raw outputs may lie far outside of what is reported: the target is what is, and one
        # picture's error of 30 must not drown a batch.
        target = getattr(held, name).float().clamp(-1, 1)
        said = getattr(out, name)[::KEEP_EVERY].float()
        far = far + F.smooth_l1_loss(said, target, beta=_TOLERATED)
    if heatmaps:
        for name in ("heatmaps", "first_heatmaps"):
            said, target = getattr(out, name)[::KEEP_EVERY].float(), getattr(held, name).float()
            # Heatmaps burst on a few pictures, to hundredfold errors when squared.
            errors = F.smooth_l1_loss(said, target, reduction="none")
            far = far + _HEATMAP_WEIGHT * errors.sum(dim=(2, 3)).mean()
    return far


def _without_last_two(gradient: Tensor) -> Tensor:
    """A gradient of the last layer without the rows of valence and arousal."""
    held = gradient.clone()
    held[-2:] = 0
    return held


def _inverse_frequency(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probability of drawing each sample so that all classes are drawn equally often."""
    weights = 1 / np.bincount(labels)[labels]
    return np.asarray(weights / weights.sum(), np.float64)

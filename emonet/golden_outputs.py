"""Does a model still compute what it should? The authors' answer, and that of its first load."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.files import appearing_whole
from emopipe.emonet.predictor import Predictor
from emopipe.emonet.registry import WeightsError, cache_folder

EXAMPLE_PICTURE = "images/example.png of github.com/face-analysis/emonet"
EXAMPLE_EMOTION, EXAMPLE_VALENCE, EXAMPLE_AROUSAL = "happy", 0.064, 0.143
EXAMPLE_TOLERANCE = 0.02  # of valence and arousal: the authors do not say how they resized

RECORD_TOLERANCE = 1e-3  # of every output; float32 differs by some 1e-5 between processors


class PictureError(EmopipeError):
    """The example picture cannot be read."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check of a model's outputs: whether it passed, and what was seen."""

    passed: bool
    seen: str


@dataclass(frozen=True)
class _Answer:
    """A model's outputs for the built-in picture."""

    probabilities: list[float]
    valence: float
    arousal: float
    landmark_score: float

    def vector(self) -> NDArray[np.float64]:
        scalars = (self.valence, self.arousal, self.landmark_score)
        return np.array([*self.probabilities, *scalars], np.float64)


def check_example(predictor: Predictor, picture: Path) -> Check:
    """Compare a model's outputs for the authors' example picture with those they publish.

    Args:
        predictor: Of the published 8-class model, in float32.
        picture: `EXAMPLE_PICTURE`; resized to the network's square, not cropped.

    Raises:
        PictureError: The picture cannot be read.
    """
    out = predictor(stretched(picture, predictor.checkpoint.input_size))
    emotion = predictor.checkpoint.classes[int(out.probabilities[0].argmax())]
    valence, arousal = float(out.valence[0]), float(out.arousal[0])
    passed = (
        emotion == EXAMPLE_EMOTION
        and abs(valence - EXAMPLE_VALENCE) <= EXAMPLE_TOLERANCE
        and abs(arousal - EXAMPLE_AROUSAL) <= EXAMPLE_TOLERANCE
    )
    return Check(
        passed,
        f"example picture: {emotion}, valence {valence:.3f}, arousal {arousal:.3f}; the authors "
        f"give {EXAMPLE_EMOTION}, {EXAMPLE_VALENCE}, {EXAMPLE_AROUSAL} (± {EXAMPLE_TOLERANCE})",
    )


def check_record(predictor: Predictor) -> Check:
    """Compare a model's outputs for a built-in picture with those of its first load.

    The first call for a checkpoint records them in the cache folder, under its SHA-256.

    Args:
        predictor: Of a checkpoint whose file has been verified, in float32 on the CPU.

    Raises:
        WeightsError: The record cannot be read or written.
        PredictionError: An output is not finite; it is not recorded.
    """
    out = predictor(builtin_picture(predictor.checkpoint.input_size))
    answer = _Answer(
        probabilities=out.probabilities[0].tolist(),
        valence=float(out.valence[0]),
        arousal=float(out.arousal[0]),
        landmark_score=float(out.landmark_score[0]),
    )
    path = cache_folder() / "known-answers" / f"{predictor.checkpoint.sha256}.json"
    if not path.exists():
        _write(answer, path)
        return Check(True, f"built-in picture: outputs recorded in {path}")
    recorded = _read(path).vector()
    difference = (
        float(np.abs(answer.vector() - recorded).max())
        if recorded.shape == answer.vector().shape
        else float("inf")
    )
    return Check(
        difference <= RECORD_TOLERANCE,
        f"built-in picture: outputs differ by at most {difference:.1g} from those recorded in "
        f"{path} (± {RECORD_TOLERANCE})",
    )


def builtin_picture(size: int) -> NDArray[np.uint8]:
    """A picture every machine can make: a light oval with dark eyes and mouth.

    Args:
        size: Its side in pixels.

    Returns:
        (1, size, size, 3) uint8 RGB.
    """
    y, x = np.mgrid[0:size, 0:size] / (size - 1) - 0.5
    light = np.full((size, size), 0.25)
    # Centre x and y, standard deviation in x and y, brightness added; as parts of the side.
    for cx, cy, sx, sy, change in (
        (0.0, 0.0, 0.28, 0.36, 0.60),
        (-0.15, -0.10, 0.05, 0.03, -0.50),
        (0.15, -0.10, 0.05, 0.03, -0.50),
        (0.0, 0.06, 0.03, 0.08, 0.15),
        (0.0, 0.24, 0.12, 0.03, -0.40),
    ):
        light += change * np.exp(-(((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2) / 2)
    colours = np.clip(light[None, ..., None] * np.array([1.0, 0.8, 0.7]), 0, 1)
    picture: NDArray[np.uint8] = np.rint(255 * colours).astype(np.uint8)
    return picture


def stretched(picture: Path, size: int) -> NDArray[np.uint8]:
    """Read a picture and stretch the whole of it, uncropped, to a network's input.

    Args:
        picture: An image file.
        size: Side of the input in pixels.

    Returns:
        (1, size, size, 3) uint8 RGB.

    Raises:
        PictureError: It cannot be read.
    """
    try:
        with Image.open(picture) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise PictureError(f"--picture {picture} cannot be read as a picture: {error}") from error
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(batch, (size, size), mode="bilinear")
    crop: NDArray[np.uint8] = resized.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return crop


def _write(answer: _Answer, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing_whole(path) as growing:
            growing.write_text(json.dumps(asdict(answer)), encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror})") from error


def _read(path: Path) -> _Answer:
    try:
        return _Answer(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{path} cannot be read ({error}): delete it to record the outputs anew"
        ) from error

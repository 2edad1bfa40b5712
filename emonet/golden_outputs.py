"""Checks of a model's outputs against its authors' example and against those of its first load."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.files import atomic_write
from emopipe.emonet.predictor import Predictor
from emopipe.emonet.registry import WeightsError, cache_folder

EXAMPLE_IMAGE = "images/example.png of github.com/face-analysis/emonet"
EXAMPLE_EMOTION, EXAMPLE_VALENCE, EXAMPLE_AROUSAL = "happy", 0.064, 0.143
EXAMPLE_TOLERANCE = 0.02  # of valence and arousal: the authors do not say how they resized

RECORD_TOLERANCE = 1e-3  # of every output; float32 differs by about 1e-5 between processors

_FOLDER = "known-answers"  # in the cache folder; the name that earlier versions use too


class ImageError(EmopipeError):
    """The example image cannot be read."""


@dataclass(frozen=True)
class Check:
    """Result of a check of a model's outputs: whether it passed, and what was found."""

    passed: bool
    finding: str


@dataclass(frozen=True)
class _Outputs:
    """A model's outputs for the built-in image."""

    probabilities: list[float]
    valence: float
    arousal: float
    landmark_score: float

    def vector(self) -> NDArray[np.float64]:
        scalars = (self.valence, self.arousal, self.landmark_score)
        return np.array([*self.probabilities, *scalars], np.float64)


def check_example(predictor: Predictor, image: Path) -> Check:
    """Compare a model's outputs for the authors' example image with the published ones.

    Args:
        predictor: of the published 8-class model, in float32.
        image: the file `EXAMPLE_IMAGE`; stretched to the network's square input, not cropped.

    Raises:
        ImageError: the image cannot be read.
    """
    out = predictor(stretched(image, predictor.checkpoint.input_size))
    emotion = predictor.checkpoint.classes[int(out.probabilities[0].argmax())]
    valence, arousal = float(out.valence[0]), float(out.arousal[0])
    passed = (
        emotion == EXAMPLE_EMOTION
        and abs(valence - EXAMPLE_VALENCE) <= EXAMPLE_TOLERANCE
        and abs(arousal - EXAMPLE_AROUSAL) <= EXAMPLE_TOLERANCE
    )
    return Check(
        passed,
        f"example image: {emotion}, valence {valence:.3f}, arousal {arousal:.3f}; the authors "
        f"give {EXAMPLE_EMOTION}, {EXAMPLE_VALENCE}, {EXAMPLE_AROUSAL} (± {EXAMPLE_TOLERANCE})",
    )


def check_record(predictor: Predictor) -> Check:
    """Compare a model's outputs for a built-in image with those of its first load.

    The first call for a checkpoint records them in the cache folder, under its SHA-256.

    Args:
        predictor: of a checkpoint whose file has been verified, in float32 on the CPU.

    Raises:
        WeightsError: the record cannot be read or written.
        PredictionError: an output is not finite; it is not recorded.
    """
    out = predictor(builtin_image(predictor.checkpoint.input_size))
    outputs = _Outputs(
        probabilities=out.probabilities[0].tolist(),
        valence=float(out.valence[0]),
        arousal=float(out.arousal[0]),
        landmark_score=float(out.landmark_score[0]),
    )
    path = cache_folder() / _FOLDER / f"{predictor.checkpoint.sha256}.json"
    if not path.exists():
        _write(outputs, path)
        return Check(True, f"built-in image: outputs recorded in {path}")
    recorded = _read(path).vector()
    difference = (
        float(np.abs(outputs.vector() - recorded).max())
        if recorded.shape == outputs.vector().shape
        else float("inf")
    )
    return Check(
        difference <= RECORD_TOLERANCE,
        f"built-in image: outputs differ by at most {difference:.1g} from those recorded in "
        f"{path} (± {RECORD_TOLERANCE})",
    )


def builtin_image(size: int) -> NDArray[np.uint8]:
    """A computed image that is the same on every machine: a light oval with dark eyes and mouth.

    Args:
        size: side of the image, pixels.

    Returns:
        (1, size, size, 3) uint8 RGB.
    """
    y, x = np.mgrid[0:size, 0:size] / (size - 1) - 0.5
    light = np.full((size, size), 0.25)
    # Centre (x, y) and standard deviation (x, y) in units of the side, and added brightness.
    for cx, cy, sx, sy, change in (
        (0.0, 0.0, 0.28, 0.36, 0.60),
        (-0.15, -0.10, 0.05, 0.03, -0.50),
        (0.15, -0.10, 0.05, 0.03, -0.50),
        (0.0, 0.06, 0.03, 0.08, 0.15),
        (0.0, 0.24, 0.12, 0.03, -0.40),
    ):
        light += change * np.exp(-(((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2) / 2)
    colours = np.clip(light[None, ..., None] * np.array([1.0, 0.8, 0.7]), 0, 1)
    image: NDArray[np.uint8] = np.rint(255 * colours).astype(np.uint8)
    return image


def stretched(image: Path, size: int) -> NDArray[np.uint8]:
    """Read an image and stretch it, uncropped, to a network's input.

    Args:
        image: the file.
        size: side of the input, pixels.

    Returns:
        (1, size, size, 3) uint8 RGB.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with Image.open(image) as opened:
            pixels = np.array(opened.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ImageError(f"`image` {image} cannot be read as an image: {error}") from error
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(batch, (size, size), mode="bilinear")
    crop: NDArray[np.uint8] = resized.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return crop


def _write(outputs: _Outputs, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(outputs)), encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror})") from error


def _read(path: Path) -> _Outputs:
    try:
        return _Outputs(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{path} cannot be read ({error}): delete it to record the outputs again"
        ) from error

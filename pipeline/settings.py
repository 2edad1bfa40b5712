"""All that a user can choose of an analysis, checked where it is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.files import sha256_of
from emopipe.pipeline.faces.align import CropMode
from emopipe.pipeline.faces.detectors import DETECTORS, LONG_SIDE, Selection, weights_files
from emopipe.pipeline.media.video import BACKENDS, DEFAULT_BACKEND, Video, sample
from emopipe.pipeline.table.results import LANDMARK_TYPES

if TYPE_CHECKING:  # the command line shows its help without PyTorch, which takes seconds to load
    from emopipe.emonet.checkpoint import Checkpoint

DEFAULT_MODEL = "emonet-lite"
DEFAULT_DETECTOR = "centerface"
MAX_FPS = 1000
"""Frames/s to ask for. Instants to look at are counted out one by one, so there is an end."""

CROPS: tuple[CropMode, ...] = get_args(CropMode)
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


class SettingsError(EmopipeError):
    """A setting that cannot be."""


@dataclass(frozen=True)
class Settings:
    """How to analyze.

    Attributes:
        model: a name of the registry or a checkpoint's path.
        classes: names for the model's classes, in its order; None for its own.
        detector: one of `DETECTORS`.
        detector_weights: its weights' file or folder; None for where `models fetch` puts them.
        detect_size: px, frames whose longer side is larger are shrunk to it for detection.
        selection: which of the found faces count.
        backend: "pyav", or "decord" for videos that decord reads as PyAV does.
        crop: "square" (the published evaluation's, around the landmarks) or "box" (the published
            demo's: the detector's box, stretched).
        stride: look at every stride-th frame.
        fps: look at so many frames per second instead; None for all.
        start: s, from where on to look; None for the beginning.
        end: s, up to where to look; None for the end.
        landmarks: "float32", "float16" or "none".
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: "auto", "float32", "bfloat16" or "float16".
        faces_per_batch: crops a forward pass; None for the device's own.
        threads: CPU threads of detection and network; None for all cores.

    Raises:
        SettingsError: a value that cannot be; the text names the option.
    """

    model: str = DEFAULT_MODEL
    classes: tuple[str, ...] | None = None
    detector: str = DEFAULT_DETECTOR
    detector_weights: Path | None = None
    detect_size: int = LONG_SIDE
    selection: Selection = field(default_factory=Selection)
    backend: str = DEFAULT_BACKEND
    crop: CropMode = CROPS[0]
    stride: int = 1
    fps: float | None = None
    start: float | None = None
    end: float | None = None
    landmarks: str = LANDMARK_TYPES[0]
    device: str = "auto"
    precision: str = "auto"
    faces_per_batch: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        names = self.classes or ("one",)
        _require(len(set(names)) == len(names) and all(names), "--classes are distinct names a,b,c")
        _require(self.detector in DETECTORS, f"--detector is one of {', '.join(DETECTORS)}")
        _require(self.backend in BACKENDS, f"--backend is one of {', '.join(BACKENDS)}")
        _require(self.crop in CROPS, f"--crop is one of {', '.join(CROPS)}")
        _require(self.precision in PRECISIONS, f"--precision is one of {', '.join(PRECISIONS)}")
        _require(self.landmarks in LANDMARK_TYPES, f"--landmarks is one of {LANDMARK_TYPES}")
        _require(self.stride >= 1, "--stride is 1 or more")
        _require(
            self.fps is None or 0 < self.fps <= MAX_FPS,
            f"--fps is more than 0 and at most {MAX_FPS}; leave it out for every frame",
        )
        _require(self.fps is None or self.stride == 1, "--fps and --stride exclude each other")
        _require(self.start is None or self.start >= 0, "--start is 0 s or later")
        _require(
            self.end is None or self.end > (self.start or 0),
            "--end is later than --start (and 0 s)",
        )
        _require(
            self.faces_per_batch is None or self.faces_per_batch >= 1,
            "--faces-per-batch is 1 or more",
        )
        _require(self.threads is None or self.threads >= 1, "--threads is 1 or more")


def resolved(settings: Settings) -> Settings:
    """Put what "auto" means on this machine in its place, for the network's stage.

    Raises:
        DeviceError: the machine has no such device, or the device no such precision.
    """
    from emopipe.emonet.predictor import FACES_PER_BATCH, resolve_device, resolve_precision

    device = resolve_device(settings.device)
    return replace(
        settings,
        device=str(device),
        precision=resolve_precision(settings.precision, device),
        faces_per_batch=settings.faces_per_batch or FACES_PER_BATCH[device.type],
    )


def sampler(settings: Settings) -> Callable[[Video], NDArray[np.int64]]:
    """Return what gives a video's frame numbers that the settings ask for, ascending."""
    return partial(
        sample,
        stride=settings.stride,
        fps=settings.fps,
        start=settings.start,
        end=settings.end,
    )


def describe(settings: Settings, checkpoint: Checkpoint) -> dict[str, Any]:
    """Say how the results are made, for their metadata.

    Everything under "settings" changes results; two runs on one output must agree in it. The
    fingerprint is the SHA-256 of that part.

    Args:
        settings: as `resolved` gave them.
        checkpoint: of the network.

    Raises:
        EmopipeError: the detector's weights are not there.
    """
    detector_files = weights_files(settings.detector, settings.detector_weights)
    decisive = {
        "checkpoint": checkpoint.sha256,
        "classes": list(checkpoint.classes),
        "detector": settings.detector,
        "detector_weights": {name: sha256_of(path) for name, path in detector_files.items()},
        "detect_size": settings.detect_size,
        **vars(settings.selection),
        "backend": settings.backend,
        "crop": settings.crop,
        "stride": settings.stride,
        "fps": settings.fps,
        "start": settings.start,
        "end": settings.end,
        "landmarks": settings.landmarks,
        "precision": settings.precision,
    }
    canonical = json.dumps(decisive, sort_keys=True)
    return {
        "emopipe": version("emopipe"),
        "checkpoint": {
            "name": checkpoint.name,
            "sha256": checkpoint.sha256,
            "licence": checkpoint.licence,
            "source": checkpoint.source,
            "valence_arousal": checkpoint.valence_arousal,
        },
        "device": settings.device,
        "faces_per_batch": settings.faces_per_batch,
        "settings": json.loads(canonical),
        "fingerprint": sha256(canonical.encode()).hexdigest(),
    }


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise SettingsError(sentence)

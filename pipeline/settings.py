"""The settings of an analysis: declared once, for Python and for the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.fields import check_settings, documented, setting
from emopipe.emonet.files import sha256_of
from emopipe.emonet.runtime import RUNTIMES, Compute, Runtime, cpu_compute, resolve_runtime
from emopipe.pipeline.faces.align import CropMode
from emopipe.pipeline.faces.detectors import DETECTORS, LONG_SIDE, SMALLEST_LONG_SIDE, weights_files
from emopipe.pipeline.faces.quality import thresholds
from emopipe.pipeline.faces.selection import Selection
from emopipe.pipeline.media.readers import BACKENDS, DEFAULT_BACKEND
from emopipe.pipeline.media.sampling import sample
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.table.schema import LANDMARK_TYPES

if TYPE_CHECKING:  # the command line shows its help without PyTorch, which takes seconds to load
    from emopipe.emonet.checkpoint import Checkpoint

DEFAULT_MODEL = "emonet-lite"
DEFAULT_DETECTOR = "centerface"
MAX_FPS = 1000
"""Frames/s to sample at most: sampling steps through the instants one by one."""

DEFAULT_MAX_GAP_S = 30.0

MAX_SMOOTH_S = 60
"""Seconds to smooth over at most: rows are held back, and averaged one window each."""

CROPS: tuple[CropMode, ...] = get_args(CropMode)
Precision = Literal["auto", "float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class SettingsError(EmopipeError):
    """A setting of the wrong type, out of range or in conflict with another."""


@documented
@dataclass(frozen=True)
class Settings:
    """How to analyze. `selection` says which of the detected faces are analyzed.

    Raises:
        SettingsError: a setting is invalid; the text names it.
    """

    fps: float | None = setting(
        None,
        "Sample this many frames per second, instead of `stride`.",
        group="input",
        above=0,
        most=MAX_FPS,
        unset="every frame",
    )
    stride: int = setting(1, "Sample every n-th frame.", group="input", least=1)
    start: float | None = setting(
        None,
        "Time of the first frame to sample, in seconds since the video's start.",
        group="input",
        least=0,
        unset="the video's start",
    )
    end: float | None = setting(
        None,
        "Time at which to stop, in seconds since the video's start.",
        group="input",
        above=0,
        unset="the video's end",
    )
    backend: str = setting(
        DEFAULT_BACKEND, "Library that decodes videos.", group="input", choices=BACKENDS
    )
    deinterlace: bool = setting(
        True, "Deinterlace frames that are marked as interlaced.", group="input"
    )
    detector: str = setting(DEFAULT_DETECTOR, "Face detector.", group="faces", choices=DETECTORS)
    detector_weights: Path | None = setting(
        None,
        "File or folder of the detector's weights.",
        group="faces",
        unset="the installed or fetched ones",
    )
    detect_every: int = setting(
        1,
        "Detect faces on every n-th sampled frame, and once in 24 at least. Where 9 frames/s or "
        "more are sampled, faces are followed by their landmarks to the frames between. 5 is about "
        "twice as fast; boxes move by 0.5 % of the face, new faces may be missed for n - 1 frames.",
        group="faces",
        least=1,
    )
    detect_size: int = setting(
        LONG_SIDE,
        "Larger frames are shrunk to this long side for detection, in pixels.",
        group="faces",
        least=SMALLEST_LONG_SIDE,
    )
    selection: Selection = field(default_factory=Selection)
    max_gap: float = setting(
        DEFAULT_MAX_GAP_S,
        "Seconds after which a person who comes back gets a new track.",
        group="faces",
        least=0,
    )
    model: str = setting(
        DEFAULT_MODEL,
        "Name of a model (see `emopipe models list`) or path of a checkpoint.",
        group="model",
    )
    classes: tuple[str, ...] | None = setting(
        None, "Names for the model's classes, in its order.", group="model", unset="the model's own"
    )
    crop: CropMode = setting(
        CROPS[0],
        "The network's view of a face: a square around the landmarks, as in the published "
        "evaluation, or the detector's box stretched to a square, as in the published demo.",
        group="model",
        choices=CROPS,
    )
    mirror: bool | None = setting(
        None,
        "Average predictions with those for the mirror image: the network takes twice as long.",
        group="model",
        unset="as the model is meant to be used",
    )
    landmarks: str = setting(
        LANDMARK_TYPES[0],
        "Type of the column of landmarks; none leaves it out.",
        group="output",
        choices=LANDMARK_TYPES,
    )
    smooth: Literal["emonet"] | float | None = setting(
        None,
        "Add smoothed columns (*_smooth), track by track: emonet weighs a face's last five frames "
        "as the published model does, a number averages over that many seconds around each frame.",
        group="output",
        above=0,
        most=MAX_SMOOTH_S,
        unset="no such columns",
    )
    device: str = setting(
        "auto",
        "Where the network and the detector centerface run: auto, cpu, cuda, cuda:N or mps. The "
        "other detectors stay on the CPU.",
        group="speed",
    )
    precision: str = setting(
        "auto",
        "The network's arithmetic; auto is the fastest that the device supports natively.",
        group="speed",
        choices=PRECISIONS,
    )
    runtime: Runtime = setting(
        RUNTIMES[0],
        "What computes the networks on a CPU; auto is OpenVINO where it is installed. torch means "
        "OpenCV for the detectors that are no PyTorch networks.",
        group="speed",
        choices=RUNTIMES,
    )
    faces_per_batch: int | None = setting(
        None, "Faces in a forward pass of the network.", group="speed", least=1, unset="by device"
    )
    threads: int | None = setting(
        None,
        "CPU threads of the detector and the network.",
        group="speed",
        least=1,
        unset="all cores",
    )

    def __post_init__(self) -> None:
        check_settings(self, SettingsError)
        _require(
            isinstance(self.selection, Selection),
            f"`selection` is a Selection, not {self.selection!r}",
        )
        names = self.classes or ("one",)
        _require(
            len(set(names)) == len(names) and all(names),
            f"`classes` are distinct names, not {', '.join(map(repr, names))}",
        )
        _require(self.fps is None or self.stride == 1, "`fps` and `stride` exclude each other")
        _require(self.end is None or self.end > (self.start or 0), "`end` is later than `start`")


def resolved(settings: Settings, checkpoint: Checkpoint) -> Settings:
    """Replace "auto" and unset values of the network's settings by this machine's and its own.

    Args:
        settings: of the analysis.
        checkpoint: the network's.

    Raises:
        DeviceError: the machine has no such device, or the device no such precision.
        RuntimeChoiceError: it has no such runtime.
    """
    from emopipe.emonet.predictor import FACES_PER_BATCH, resolve_device, resolve_precision

    device = resolve_device(settings.device)
    return replace(
        settings,
        device="cpu" if device.type == "cpu" else str(device),  # there is one CPU: not cpu:0
        precision=resolve_precision(settings.precision, device),
        runtime=resolve_runtime(settings.runtime),
        faces_per_batch=settings.faces_per_batch or FACES_PER_BATCH[device.type],
        mirror=checkpoint.mirror if settings.mirror is None else settings.mirror,
    )


def compute_of(settings: Settings) -> Compute:
    """How the detector computes, and where if it can: on the network's device.

    Args:
        settings: from `resolved`.
    """
    if settings.device != "cpu":
        return Compute("torch", settings.precision, settings.threads, settings.device)
    return cpu_compute(settings.runtime, settings.precision, settings.threads)


def sampler(settings: Settings) -> Callable[[Video], NDArray[np.int64]]:
    """Return a function that gives the indices of a video's frames to analyze, ascending."""
    return partial(
        sample,
        stride=settings.stride,
        fps=settings.fps,
        start=settings.start,
        end=settings.end,
    )


def describe(settings: Settings, checkpoint: Checkpoint) -> dict[str, Any]:
    """Describe how results are made, for their metadata.

    The part "settings" holds everything that changes results: a run resumes an output only where
    this part is equal. The fingerprint is its SHA-256.

    Args:
        settings: from `resolved`.
        checkpoint: the network's.

    Raises:
        EmopipeError: the detector's weights are missing.
    """
    detector_files = weights_files(settings.detector, settings.detector_weights)
    decisive: dict[str, Any] = {
        "checkpoint": checkpoint.sha256,
        "classes": list(checkpoint.classes),
        "detector": settings.detector,
        "detector_weights": {name: sha256_of(path) for name, path in detector_files.items()},
        "detect_size": settings.detect_size,
        "detect_every": settings.detect_every,
        **vars(settings.selection),
        "backend": settings.backend,
        "deinterlace": settings.deinterlace,
        "max_gap": settings.max_gap,
        "crop": settings.crop,
        "mirror": settings.mirror,
        "stride": settings.stride,
        "fps": settings.fps,
        "start": settings.start,
        "end": settings.end,
        "landmarks": settings.landmarks,
        "smooth": settings.smooth,
        "precision": settings.precision,
        "runtime": settings.runtime,
    }
    canonical = json.dumps(decisive, sort_keys=True)
    return {
        "emopipe": version("emopipe"),
        "checkpoint": {
            "name": checkpoint.name,
            "sha256": checkpoint.sha256,
            "license": checkpoint.license,
            "source": checkpoint.source,
            "valence_arousal": checkpoint.valence_arousal,
        },
        "usable": thresholds(settings.detector),
        "device": settings.device,
        "faces_per_batch": settings.faces_per_batch,
        "settings": json.loads(canonical),
        "fingerprint": sha256(canonical.encode()).hexdigest(),
    }


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise SettingsError(sentence)

"""The face detectors by name: their weights, thresholds and calibrations.

A detector resizes each frame to a bounded size, runs its network on it and returns faces in pixels
of the frame.
"""

import math
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.arguments import did_you_mean, one_of, public
from emopipe.emonet.registry import locate, lookup
from emopipe.emonet.runtime import Compute, cpu_compute
from emopipe.pipeline.faces import networks
from emopipe.pipeline.faces.base import BoxToLandmarks, Detector, DetectorError, Faces
from emopipe.pipeline.faces.centerface import centerface
from emopipe.pipeline.faces.networks import BLAZEFACE_SIDE, Network
from emopipe.pipeline.media.images import load_image
from emopipe.pipeline.storage import user_path

LONG_SIDE = 640
"""Default limit, in pixels, of a frame's longer side: larger frames are shrunk to it."""

SMALLEST_LONG_SIDE = 160
"""Smaller images are enlarged to it. On FER2013's 48 px images, which a face fills, CenterFace
finds 75 % of the faces at the original size, 95 % at 96 to 160 px and 79 % at 320 px."""

BATCH_PIXELS = 2**22
"""Most pixels of frames that a network gets at once: 18 of 640×360. It bounds its memory."""

_UNREADABLE = (
    *(cv2.error, pickle.UnpicklingError, AssertionError, AttributeError),
    *(EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
)
"""What OpenCV, PyTorch and face-alignment raise for a file that does not hold their weights."""

_UNREADABLE_FOR_GPU = (OSError, ValueError)
"""The same where a GPU may fail as well, which PyTorch tells with a RuntimeError."""


@dataclass(frozen=True)
class _Kind:
    """What defines a detector.

    Attributes:
        build: makes its network from the paths of `weights`, the least score and how to compute.
        weights: names of its files in `emonet.registry`.
        calibration: where the landmarks lie relative to its boxes.
        min_score: default least score of a face.
        library: the library that runs it on a CPU, whose thread setting counts.
        side: its fixed input size, pixels; None where the caller chooses.
        on_gpus: whether it runs on a GPU where there is one; else it stays on the CPU.
    """

    build: Callable[[list[Path], float, Compute], Network]
    weights: tuple[str, ...]
    calibration: BoxToLandmarks
    min_score: float
    library: Literal["opencv", "torch"]
    side: int | None = None
    on_gpus: bool = False


@dataclass(frozen=True)
class _ResizingDetector:
    """A `Detector` that resizes frames so that their longer side is within limits."""

    name: str
    calibration: BoxToLandmarks
    network: Network
    min_side: int  # px of the longer side
    max_side: int

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Faces]:
        resized = (_resized(image, self.min_side, self.max_side) for image in images)
        faces: list[Faces] = []
        for shape, of_one_shape in groupby(resized, key=lambda pair: pair[0].shape):
            most = max(1, BATCH_PIXELS // math.prod(shape[:2]))
            while batch := list(islice(of_one_shape, most)):
                found = self.network([image for image, _ in batch])
                faces += [
                    _valid(
                        boxes * np.tile(scale, 2),
                        scores,
                        None if points is None else points * scale,
                    )
                    for (boxes, scores, points), (_, scale) in zip(found, batch, strict=True)
                ]
        return faces


def load_detector(
    name: str,
    *,
    weights: Path | None = None,
    long_side: int = LONG_SIDE,
    min_score: float | None = None,
    compute: Compute | None = None,
) -> Detector:
    """Load a detector. Nothing is downloaded.

    Args:
        name: one of `DETECTORS`.
        weights: its weights' file, or the folder that holds its files under their published names;
            None for where `emonet.registry` keeps them.
        long_side: frames whose longer side has more pixels are shrunk to it. BlazeFace always runs
            at 128.
        min_score: least score of a face, in [0, 1]; None for the detector's own default.
        compute: how, and where if the detector runs there, see `device_of`; None for the fastest
            way of this machine's CPU. Its threads are set for the whole process in the library that
            runs the detector on a CPU (OpenCV or PyTorch); None leaves that library's setting.

    Raises:
        DetectorError: the name is unknown, a file does not hold its weights, or a value is out of
            range.
        MissingWeightsError: its weights are not on this machine.
    """
    if name not in _KINDS:
        guess = did_you_mean(name, DETECTORS)
        raise DetectorError(f"`detector` is {one_of(DETECTORS)}, not {name!r}{guess}")
    kind = _KINDS[name]
    if long_side < SMALLEST_LONG_SIDE:
        raise DetectorError(
            f"`detect_size` is {SMALLEST_LONG_SIDE} or more, not {long_side}: at a smaller long "
            f"side few faces are found"
        )
    min_score = kind.min_score if min_score is None else min_score
    if not 0 <= min_score <= 1:
        raise DetectorError(f"`min_score` is from 0 to 1, not {min_score:g}")
    compute = compute or cpu_compute()
    compute = replace(compute, device=device_of(name, compute.device))
    if compute.threads is not None:
        _set_threads(kind.library, compute.threads)
    return _ResizingDetector(
        name,
        kind.calibration,
        _network(name, weights, kind.side or long_side, min_score, compute),
        kind.side or SMALLEST_LONG_SIDE,
        kind.side or long_side,
    )


def device_of(name: str, device: str) -> str:
    """Return where a detector runs: centerface on the network's device, the others on the CPU.

    Args:
        name: one of `DETECTORS`.
        device: the network's, as PyTorch names it.
    """
    return device if _KINDS[name].on_gpus else "cpu"


def weights_files(name: str, weights: Path | None = None) -> dict[str, Path]:
    """Return the paths of a detector's weights, by their published file names.

    Args:
        name: one of `DETECTORS`.
        weights: as for `load_detector`.

    Raises:
        DetectorError: a file does not exist where `weights` says.
        MissingWeightsError: they are not on this machine.
    """
    files = {lookup(part).file: _weights_path(part, weights) for part in _KINDS[name].weights}
    for path in files.values():
        if not path.is_file():
            raise DetectorError(f"{path} does not exist: {name} needs it as `detector_weights`")
    return files


def _set_threads(library: Literal["opencv", "torch"], threads: int) -> None:
    if library == "opencv":
        cv2.setNumThreads(threads)
    else:
        import torch

        torch.set_num_threads(threads)


def _network(
    name: str, weights: Path | None, long_side: int, min_score: float, compute: Compute
) -> Network:
    kind = _KINDS[name]
    paths = list(weights_files(name, weights).values())
    unreadable = _UNREADABLE if compute.device == "cpu" else _UNREADABLE_FOR_GPU
    try:
        network = kind.build(paths, min_score, compute)
        # Another detector's weights may load and fail only on the first images. The first of a
        # shape take long: these have that of most videos.
        network([np.zeros((long_side * 9 // 16, long_side, 3), np.uint8)] * 2)
    except unreadable as error:
        published = " and ".join(lookup(part).file for part in kind.weights)
        raise DetectorError(
            f"{' and '.join(map(str, paths))} cannot be used as the weights of {name}: it needs "
            f"the published {published}"
        ) from error
    return network


def _weights_path(name: str, weights: Path | None) -> Path:
    """Return the path of one weights file; a detector's further files lie beside the given one."""
    if weights is None:
        return locate(name)
    file, weights = lookup(name), user_path(weights)
    if weights.is_dir():
        return weights / file.file
    return weights.with_name(file.file) if file.part_of else weights


def resized_sides(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """Return the height and width, in pixels, of an image whose longer side is put within limits.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        least: pixels of the longer side.
        most: likewise.
    """
    long_side = max(height, width)
    ratio = min(max(long_side, least), most) / long_side
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def _resized(
    image: NDArray[np.uint8], least: int, most: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Resize so that the longer side is within limits, in pixels.

    Returns:
        The resized image, and the factors (x, y) from its pixels to those of the original.
    """
    height, width = image.shape[:2]
    new_height, new_width = resized_sides(height, width, least, most)
    if (new_height, new_width) == (height, width):
        return image, np.ones(2)
    is_smaller = max(new_height, new_width) < max(height, width)
    interpolation = cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR
    resized = cv2.resize(image, (new_width, new_height), interpolation=interpolation)
    return resized, np.array([width / new_width, height / new_height])


def _valid(
    boxes: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    points: NDArray[np.floating[Any]] | None,
) -> Faces:
    """Drop boxes that are not finite or thinner than a pixel, and sort by score."""
    good = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    good &= (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
    order = np.flatnonzero(good)[np.argsort(-scores[good], kind="stable")]
    return Faces(
        boxes[order].astype(np.float32),
        np.clip(scores[order], 0, 1).astype(np.float32),
        None if points is None else points[order].astype(np.float32),
    )


# Calibrations: medians over 1,000 images (500 faces of landmarks68.parquet and their mirror
# images), as `make calibrate` prints them with --rows 500. Shift x is set to 0 by symmetry; the
# measured values are within 0.005 of it. The remaining error of the landmarks' centre is 4 to 5 %
# of their extent (median; 95th percentile 9 to 11 %), that of the extent 3 to 4 % (9 to 14 %). On
# the clips, crops by YuNet are 0.92 to 1.05 times as large as those by CenterFace, and their
# centres differ by at most 4 % of the side.
# Least scores: chosen so that in the clips with one face exactly that face is found in every frame.
_KINDS = {
    # Faces score 0.79 or more, false detections 0.14 or less, on OpenVINO in bfloat16 as on OpenCV.
    # 0.5 leaves room for turned and occluded faces.
    # Scale 0.919 to 0.936, shift y 0.151 to 0.157 over borders of 0, 0.5 and 1 image sides;
    # quartiles of scale 0.900 and 0.973, of shift x ±0.02, of shift y 0.131 and 0.178.
    "centerface": _Kind(
        centerface,
        ("centerface",),
        BoxToLandmarks(shift=(0.0, 0.155), scale=0.935),
        min_score=0.5,
        library="opencv",
        on_gpus=True,
    ),
    # Faces score 0.89 or more, false detections 0.28 or less.
    # Scale 0.896 to 0.899, shift y 0.147 to 0.155 over the same borders; quartiles of scale 0.870
    # and 0.926, of shift x ±0.02, of shift y 0.126 and 0.170.
    "yunet": _Kind(
        networks.yunet,
        ("yunet",),
        BoxToLandmarks(shift=(0.0, 0.147), scale=0.898),
        min_score=0.6,
        library="opencv",
    ),
    # At 0.7 it finds every face of the clips, and a false one in a quarter of their 192 frames
    # without a face.
    # Scale 0.921 (small faces) to 0.964 over the same borders; quartiles 0.924 and 1.004, of
    # shift x ±0.02, of shift y 0.025 and 0.086.
    "blazeface": _Kind(
        networks.blazeface,
        ("blazeface", "blazeface-anchors"),
        BoxToLandmarks(shift=(0.0, 0.058), scale=0.960),
        min_score=0.7,
        library="torch",
        side=BLAZEFACE_SIDE,
    ),
    # Not measured, as its weights were not available: the mean of the two others trained on the
    # boxes of WIDER FACE. Derived instead from face-alignment's reference scales (195 for sfd and
    # blazeface, 165 for yunet), the scale would be 0.96 from blazeface's and 0.76 from yunet's.
    "sfd": _Kind(
        networks.sfd,
        ("sfd",),
        BoxToLandmarks(shift=(0.0, 0.15), scale=0.915),
        min_score=0.5,
        library="torch",
    ),
}

DETECTORS = tuple(_KINDS)
"""The names that `load_detector` accepts; the first needs no download."""


@public
def detect(
    image: str | os.PathLike[str] | NDArray[np.uint8],
    *,
    detector: str = DETECTORS[0],
    detector_weights: str | os.PathLike[str] | None = None,
    detect_size: int = LONG_SIDE,
    min_score: float | None = None,
) -> Faces:
    """Find the faces of one image.

    Example:
        >>> import emopipe
        >>> import numpy as np
        >>> faces = emopipe.detect(np.zeros((360, 640, 3), np.uint8))
        >>> len(faces), faces.boxes.shape, faces.points.shape
        (0, (0, 4), (0, 5, 2))

    Args:
        image: an image file, or (height, width, 3) uint8 RGB.
        detector: one of centerface, yunet, blazeface, sfd.
        detector_weights: file or folder of the detector's weights; None for the installed or
            fetched ones.
        detect_size: pixels of the longer side to which larger images are shrunk for detection.
        min_score: lowest score of a face, in [0, 1]; None for the detector's own.

    Returns:
        The faces by descending score, in pixels of the image as displayed.

    Raises:
        EmopipeError: the image cannot be read, the detector's weights are missing, or an argument
            is invalid.
    """
    if isinstance(image, str | os.PathLike):
        image = load_image(Path(image))
    if image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
        raise DetectorError(
            f"`image` is an image file or a (height, width, 3) uint8 RGB array, not {image.dtype} "
            f"{image.shape}"
        )
    weights = None if detector_weights is None else Path(detector_weights)
    (faces,) = _loaded(detector, weights, detect_size, min_score).detect([image])
    return faces


@lru_cache(maxsize=1)
def _loaded(name: str, weights: Path | None, long_side: int, min_score: float | None) -> Detector:
    """Load a detector, or return it again if the call before asked for the same one."""
    return load_detector(name, weights=weights, long_side=long_side, min_score=min_score)

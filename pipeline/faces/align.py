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

_FACE_PIXELS = 49
"""Mean side of a face in `grey_crops`."""

_MIDDLE_PIXELS = 32  # of them are looked at for sharpness: forehead to mouth
_BLUR_REACH = 9  # pixels that filters read around them
_CONTRAST_FLOOR = 0.5  # grey levels: without contrast nothing is sharp


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


def sharpness(
    crops: NDArray[np.uint8],
    crop_boxes: NDArray[np.floating[Any]],
    boxes: NDArray[np.floating[Any]],
) -> NDArray[np.float32]:
    """Measure how sharp each face is: how much of its contrast is in its finest detail.

    The middle of the face is seen at one size, whatever the model's crops and the face's size in
    the frame. The contrast finer than a Gaussian of 1 pixel is divided by that finer than one of 4
    pixels, the face being 49 pixels large (standard deviations both). The ratio does not depend on
    light and little on the person. A face blurred by a Gaussian of 4 % of its size has about 0.14,
    whether it has 30 or 600 pixels; one of 20 sharp pixels 0.2, sharp ones of 70 or more 0.25 to
    0.45.

    Args:
        crops: (n, size, size, 3) uint8 RGB.
        crop_boxes: (n, 4) where they lie, x1 y1 x2 y2 in pixels of the frame.
        boxes: (n, 4) the faces' boxes, likewise.

    Returns:
        (n,) float32, 0 or more; 0 for a crop of one colour.
    """
    greys = grey_crops(crops, crop_boxes, boxes)
    return np.array([_fine_share(_middle(grey)) for grey in greys], np.float32)


def grey_crops(
    crops: NDArray[np.uint8],
    crop_boxes: NDArray[np.floating[Any]],
    boxes: NDArray[np.floating[Any]],
) -> list[NDArray[np.float32]]:
    """Turn crops grey and shrink them to where each face has about 49 pixels.

    Crops of 64 pixels, as the bundled model takes, keep their size; none is enlarged.

    Args:
        crops: (n, size, size, 3) uint8 RGB.
        crop_boxes: (n, 4) where they lie, x1 y1 x2 y2 in pixels of the frame.
        boxes: (n, 4) the faces' boxes, likewise.

    Returns:
        n square images, float32, grey levels from 0 to 255.
    """
    sides, faces = (np.mean(b[:, 2:] - b[:, :2], axis=1) for b in (crop_boxes, boxes))
    ratios = np.clip(sides / np.maximum(faces, 1e-3), 0.5, 4)
    return [
        _shrunk(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), round(_FACE_PIXELS * ratio))
        for crop, ratio in zip(crops, ratios.tolist(), strict=True)
    ]


def _shrunk(grey: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Shrink a square image to a side, unless it is about that or smaller."""
    if side < 0.95 * len(grey):
        grey = np.asarray(cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    return grey.astype(np.float32)


def _middle(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """The middle of a face from `grey_crops`, with what blurring it needs around it."""
    margin = max(0, (len(grey) - _MIDDLE_PIXELS) // 2 - _BLUR_REACH)
    return np.ascontiguousarray(grey[margin : len(grey) - margin, margin : len(grey) - margin])


def _fine_share(grey: NDArray[np.float32]) -> float:
    """The share of the contrast, see `sharpness`."""
    reach = min(_BLUR_REACH, (len(grey) - 1) // 2)
    inner = (slice(reach, len(grey) - reach),) * 2
    # The broad Gaussian as two box filters of equal variance in sum: a quarter of the time.
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 1)
    broad = grey - cv2.blur(cv2.blur(grey, (9, 9)), (11, 11))
    finest, contrast = (float(cv2.meanStdDev(band[inner])[1].item()) for band in (fine, broad))
    return finest / (contrast + _CONTRAST_FLOOR)


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

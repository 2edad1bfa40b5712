"""Cuts, found by how much of a thumbnail changes from one frame to the next."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

CUT_LEVELS = 25.0
"""Two thumbnails that differ by more grey levels (of 0 to 255), on average, may be of two shots."""

CUT_SHARE = 0.5
"""A frame follows a cut if more than this share of its thumbnail shows something else."""

THUMBNAIL = (16, 16, 3)
"""Height, width, channels (RGB)."""

_OTHER = 0.5  # of the contrast: a pixel of the thumbnail that differs by more shows something else
_BLANK = 2.0  # grey levels of contrast (standard deviation): a fade to black or white
_COARSE = 160  # pixels of the long side from which the thumbnail is made: enough, and cheap


class ChangeFinder:
    """Says how much of the picture changes from frame to frame, given in order.

    Flashes and fades change little: frames are compared as if they had one brightness and contrast,
    and after blank frames with the last one that shows something.
    """

    def __init__(self) -> None:
        self._last: NDArray[np.float32] | None = None

    def changed(self, small: NDArray[np.uint8]) -> float:
        """The share of the next frame that shows something else; 1 for the first frame.

        Args:
            small: the frame's thumbnail.
        """
        contrast = float(small.std(dtype=np.float32))
        if contrast < _BLANK and self._last is not None:
            return 0.0
        now = (small - small.mean(dtype=np.float32)) / np.float32(max(contrast, _BLANK))
        last, self._last = self._last, now
        if last is None:
            return 1.0
        return float((np.abs(now - last).mean(axis=2) > _OTHER).mean())


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrink a frame for comparison.

    Args:
        image: (height, width, 3) uint8 RGB.

    Returns:
        (16, 16, 3) uint8 RGB.
    """
    step = max(1, max(image.shape) // _COARSE)
    height, width, _ = THUMBNAIL
    small = cv2.resize(image[::step, ::step], (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def difference(some: NDArray[Any], other: NDArray[Any]) -> float:
    """Mean absolute difference of two thumbnails, in grey levels (of 0 to 255)."""
    return float(np.abs(some.astype(np.float32) - other.astype(np.float32)).mean())

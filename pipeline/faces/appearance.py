"""What a face and its surroundings look like: numbers by which the same person is known again.

The colours of head and shoulders, coarse enough that expression and small turns change little. They
hold within one scene: other clothes or other light make another appearance.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from emopipe.emonet.checkpoint import CropSpec
from emopipe.pipeline.faces.align import crop_boxes
from emopipe.pipeline.faces.base import BoxToLandmarks, Faces

DIMENSIONS = 16

CELLS = 12
"""The region is seen as 12×12 cells."""

FILE = "appearance.safetensors"
"""Made by `pipeline.faces.learn_appearance`."""

LOOK_RADIUS = 8.0
"""Distance within which appearances are one look."""

MAX_LOOKS = 8

_LOOK_MEMORY = 50  # appearances: a look follows slow changes
_LASTING = 3  # appearances that make a look more than a moment's
_LANDMARKS_SQUARE = CropSpec(scale=1.0)
_REGION = np.array([-0.75, -0.8, 0.75, 0.95])
"""x1 y1 x2 y2 of head and shoulders from the face's centre, in units of the landmarks' extent."""


def appearances(
    image: NDArray[np.uint8], faces: Faces, calibration: BoxToLandmarks
) -> NDArray[np.float32]:
    """Describe what faces look like.

    The colours of the cells (CIE L*a*b*), projected by linear discriminant analysis (Fisher 1936)
    to where images of one person in one scene differ by 1 in each dimension, on average.

    Args:
        image: (height, width, 3) uint8 RGB, the frame.
        faces: its faces.
        calibration: that of the detector that found them.

    Returns:
        (n, 16) float32; Euclidean distances compare them.
    """
    if not len(faces):
        return np.zeros((0, DIMENSIONS), np.float32)
    squares = crop_boxes(faces, calibration, _LANDMARKS_SQUARE)
    return projected(np.stack([colours(image, square) for square in squares]))


def colours(image: NDArray[np.uint8], square: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The colours of a head and its shoulders.

    Args:
        image: (height, width, 3) uint8 RGB, the frame.
        square: (4,) x1 y1 x2 y2 of a square around the landmarks, in pixels of the frame. Beyond
            the frame its edge goes on.

    Returns:
        (12 · 12 · 3,) float32, L* a* b* of each cell row by row, in 100 units of OpenCV's 8 bit.
    """
    height, width = image.shape[:2]
    centre = (square[:2] + square[2:]) / 2
    x1, y1, x2, y2 = np.round(np.tile(centre, 2) + (square[2] - square[0]) * _REGION).astype(int)
    # Every k-th pixel is enough for means over cells, whatever the size of the face.
    step = max(1, (x2 - x1) // (4 * CELLS))
    columns = np.arange(x1, max(x2, x1 + 1), step).clip(0, width - 1)
    lines = np.arange(y1, max(y2, y1 + 1), step).clip(0, height - 1)
    region = np.ascontiguousarray(image[lines[:, None], columns])
    cells = cv2.resize(region, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(cells, cv2.COLOR_RGB2LAB)
    return np.asarray(lab.reshape(-1) / np.float32(100), np.float32)


def projected(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Project colours (n, 432), see `colours`, to appearances (n, 16)."""
    mean, projection = _learnt()
    # Not one product for all: its last digits would depend on how many faces there are.
    return np.stack([(one - mean) @ projection for one in cells])


@cache
def _learnt() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean (432,) and the projection (432, 16)."""
    tensors = load((files("emopipe.pretrained") / FILE).read_bytes())
    return tensors["mean"], tensors["projection"]


class Looks:
    """What one face has looked like: the means of appearances that lie close together."""

    def __init__(self) -> None:
        self.means = np.zeros((0, DIMENSIONS), np.float32)
        self.counts = np.zeros(0, np.int64)

    def add(self, appearance: NDArray[np.float32], count: int = 1) -> None:
        """Take in an appearance (16,), or the mean of `count` of them."""
        if len(self.means):
            distances = np.linalg.norm(self.means - appearance, axis=1)
            nearest = int(distances.argmin())
            if distances[nearest] < LOOK_RADIUS or len(self.means) == MAX_LOOKS:
                share = count / (min(self.counts[nearest], _LOOK_MEMORY) + count)
                self.means[nearest] += np.float32(share) * (appearance - self.means[nearest])
                self.counts[nearest] += count
                return
        self.means = np.concatenate([self.means, appearance[None]])
        self.counts = np.append(self.counts, count)

    def absorb(self, other: Looks) -> None:
        """Take in all that a face looked like."""
        for mean, count in zip(other.means, other.counts.tolist(), strict=True):
            self.add(mean, count)

    def distances(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Distance (n,) of each appearance (n, 16) from the nearest mean; infinite without any."""
        if not len(self.means):
            return np.full(len(points), np.inf, np.float32)
        apart: NDArray[np.float32] = np.linalg.norm(points[:, None] - self.means, axis=2)
        return np.asarray(apart.min(axis=1))

    def apart(self, other: Looks) -> float:
        """Distance between the nearest means of two faces; moments count if there is no more."""
        return float(self.distances(other._lasting()).min(initial=np.inf))

    def _lasting(self) -> NDArray[np.float32]:
        lasting = self.means[self.counts >= _LASTING]
        return lasting if len(lasting) else self.means

"""What every face detector returns and how it is called.

Coordinates are continuous pixels of the frame as displayed: pixel i covers [i, i + 1). A box may
reach beyond the frame where a face does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.errors import EmopipeError

POINTS = 5
"""Right eye, left eye, nose, right and left mouth corner: the person's own right and left."""


class DetectorError(EmopipeError):
    """A detector that does not exist, or cannot be loaded as asked for."""


@dataclass(frozen=True)
class Faces:
    """The faces of one frame, by descending score.

    Attributes:
        boxes: (n, 4) float32, x1 y1 x2 y2 in pixels of the frame as displayed, finite, x1 < x2 and
            y1 < y2. They may reach beyond the frame.
        scores: (n,) float32 in [0, 1], descending. Comparable within one detector only.
        points: (n, 5, 2) float32 x y in pixels of the frame: right eye, left eye, nose, right mouth
            corner, left mouth corner (the person's own sides); None from detectors without them.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    points: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes.shape != (n, 4) or self.scores.shape != (n,):
            raise ValueError(f"boxes {self.boxes.shape} and scores {self.scores.shape} disagree")
        if self.points is not None and self.points.shape != (n, POINTS, 2):
            raise ValueError(f"points {self.points.shape} instead of {(n, POINTS, 2)}")
        if not np.isfinite(self.boxes).all() or (self.boxes[:, :2] >= self.boxes[:, 2:]).any():
            raise ValueError("a box is not finite or has no extent")
        if (np.diff(self.scores) > 0).any():
            raise ValueError("the scores do not descend")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: NDArray[np.intp] | NDArray[np.bool_] | slice) -> "Faces":
        """Return a subset of the faces, in the given order."""
        points = None if self.points is None else self.points[which]
        return Faces(self.boxes[which], self.scores[which], points)

    @property
    def sides(self) -> NDArray[np.float32]:
        """(n,) float32: the mean of each box's width and height, in pixels of the frame."""
        sides: NDArray[np.float32] = (self.boxes[:, 2:] - self.boxes[:, :2]).mean(axis=1)
        return sides


@dataclass(frozen=True)
class BoxToLandmarks:
    """Where the 68 landmarks lie relative to a detector's box, on average.

    Attributes:
        shift: (x, y) from the box's centre to the centre of the landmarks' bounding box, in units
            of the box's mean side; y points down.
        scale: the landmarks' mean extent, (width + height) / 2, in the same units.
    """

    shift: tuple[float, float]
    scale: float


class Detector(Protocol):
    """Finds the faces of frames."""

    @property
    def name(self) -> str:
        """Its name in `emopipe.pipeline.faces.detectors.DETECTORS`."""

    @property
    def calibration(self) -> BoxToLandmarks:
        """Where the landmarks lie relative to its boxes."""

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Faces]:
        """Find the faces of a batch of frames.

        The result for a frame does not depend on the others in the batch.

        Args:
            images: (height, width, 3) uint8 RGB frames; sizes may differ.

        Returns:
            One `Faces` for each frame, in its own pixels.
        """


def overlaps(
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
    shares: NDArray[np.floating[Any]] = shared / (areas[:, None] + other_areas - shared)
    return shares

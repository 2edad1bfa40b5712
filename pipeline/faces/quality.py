"""Which faces can be used: one flag, made of thresholds that a researcher reads in one table.

They were chosen on faces of 102 people of `landmarks68.parquet`, pasted into frames whole and
damaged, and on real clips. The README says what they did to 35 other people's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emopipe.pipeline.faces.align import grey_crops
from emopipe.pipeline.faces.visibility import hidden_shares

if TYPE_CHECKING:
    from emopipe.pipeline.faces.pose import HeadPoses

LEAST_SCORES: Mapping[str, float] = MappingProxyType({"centerface": 0.6, "yunet": 0.7})
"""Least score of a usable face, by detector; the others' scores tell whole faces from half hidden
ones no better than their own least score does."""


@dataclass(frozen=True)
class Thresholds:
    """What makes a face usable; each of them must hold.

    Attributes:
        least_size: pixels of the frame: the mean of width and height, both of the detector's box
            and of the landmarks' box.
        least_sharpness: see `align.sharpness`.
        least_landmark_score: mean of the 68 heatmaps' maxima.
        most_hidden: share of the face, see `visibility.hidden_shares`.
        most_residual: how far the landmarks lie from the mean face's at the fitted pose, in shares
            of the face's size, see `pose.head_poses`.
        most_yaw: degrees to either side. The landmarks understate large turns: heads turned by 60°
            and more are measured at 40° to 50°.
        most_pitch: degrees up or down.
        most_roll: degrees to either side.
        most_cut_off: share of the landmarks' box that lies beyond the frame.
    """

    least_size: float = 20.0
    least_sharpness: float = 0.175
    least_landmark_score: float = 0.6
    most_hidden: float = 0.22
    most_residual: float = 0.045
    most_yaw: float = 40.0
    most_pitch: float = 35.0
    most_roll: float = 40.0
    most_cut_off: float = 0.1


THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class SeenFaces:
    """What is known of n faces of one video.

    Attributes:
        boxes: (n, 4) the detector's, x1 y1 x2 y2 in pixels of the frame.
        scores: (n,) the detector's.
        crops: (n, size, size, 3) uint8 RGB.
        crop_boxes: (n, 4) where they lie, x1 y1 x2 y2 in pixels of the frame.
        sharpness: (n,) from `align.sharpness`.
        landmarks: (n, 68, 2) x y in pixels of the frame, 300-W order.
        landmark_score: (n,) the network's.
        poses: of the n faces.
        frame_size: width and height of the frames, pixels.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    crops: NDArray[np.uint8]
    crop_boxes: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    landmark_score: NDArray[np.float32]
    poses: HeadPoses
    frame_size: tuple[int, int]


def usable(faces: SeenFaces, detector: str) -> NDArray[np.bool_]:
    """Tell which faces meet all criteria.

    Args:
        faces: n faces.
        detector: that found them, one of `detectors.DETECTORS`.

    Returns:
        (n,) bool.
    """
    met: NDArray[np.bool_] = np.all(list(criteria(faces, detector).values()), axis=0)
    return met


def criteria(faces: SeenFaces, detector: str) -> dict[str, NDArray[np.bool_]]:
    """Tell which criteria each face meets.

    Args:
        faces: n faces.
        detector: that found them, one of `detectors.DETECTORS`.

    Returns:
        (n,) bool for each of the names in `thresholds`.
    """
    low, high = faces.landmarks.min(axis=1), faces.landmarks.max(axis=1)
    box_sides = (faces.boxes[:, 2:] - faces.boxes[:, :2]).mean(axis=1)
    greys = grey_crops(faces.crops, faces.crop_boxes, faces.boxes)
    yaw, pitch, roll = np.abs(faces.poses.angles).T
    measured = {
        "least_size": np.minimum(box_sides, (high - low).mean(axis=1)),
        "least_sharpness": faces.sharpness,
        "least_landmark_score": faces.landmark_score,
        "most_hidden": hidden_shares(greys, faces.crop_boxes, faces.landmarks),
        "most_residual": faces.poses.residual,
        "most_yaw": yaw,
        "most_pitch": pitch,
        "most_roll": roll,
        "most_cut_off": _cut_off(low, high, faces.frame_size),
        "least_score": faces.scores,
    }
    limits = thresholds(detector)
    return {
        name: values >= limits[name] if name.startswith("least") else values <= limits[name]
        for name, values in measured.items()
    }


def thresholds(detector: str) -> dict[str, float]:
    """What `usable` was made with, for the results' metadata.

    Args:
        detector: one of `detectors.DETECTORS`.
    """
    return asdict(THRESHOLDS) | {"least_score": LEAST_SCORES.get(detector, 0.0)}


def _cut_off(
    low: NDArray[np.float32], high: NDArray[np.float32], frame_size: tuple[int, int]
) -> NDArray[np.float32]:
    """Share of boxes that lies beyond the frame.

    Args:
        low: (n, 2) their upper left corners, x y in pixels of the frame.
        high: (n, 2) their lower right corners.
        frame_size: width and height of the frame, pixels.

    Returns:
        (n,) from 0 to 1.
    """
    within = np.minimum(high, frame_size) - np.maximum(low, 0)
    areas = np.maximum((high - low).prod(axis=1), 1e-6)
    shares: NDArray[np.float32] = 1 - np.maximum(within, 0).prod(axis=1) / areas
    return shares

"""Head pose from the 68 landmarks: a mean face turned until its points lie on them.

Angles are those of 300W-LP and AFLW2000 (Zhu et al., CVPR 2016): with x to the right, y up and z
out of the image, points = scale · R · face + shift, R = Rx(pitch) · Ry(yaw) · Rz(roll), where
Rx = [[1, 0, 0], [0, c, s], [0, −s, c]], Ry = [[c, 0, −s], [0, 1, 0], [s, 0, c]] and
Rz = [[c, s, 0], [−s, c, 0], [0, 0, 1]]. Positive yaw turns the nose to the image's left, positive
pitch lifts it, positive roll tilts the head clockwise.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from emopipe.emonet.labels import N_LANDMARKS

FILE = "mean_face.safetensors"
"""Made by `pipeline.faces.learn_mean_face`."""

OUTLINE_WEIGHT = 0.1
"""Of the 17 points of the outline, which follow the visible edge of the face as it turns."""

_OUTLIER = 0.1  # of the face's root mean square size: a point this far off counts half
_STEPS = 4  # of reweighting


@dataclass(frozen=True)
class HeadPoses:
    """How n heads are turned.

    Attributes:
        angles: (n, 3) float32 yaw, pitch and roll in degrees; yaw from -90 to 90, the others from
            -180 to 180. NaN for landmarks that are not finite or all one point.
        residual: (n,) float32, the root mean square distance of the landmarks from the turned mean
            face, in units of the mean face's extent.
    """

    angles: NDArray[np.float32]
    residual: NDArray[np.float32]


def head_poses(landmarks: NDArray[np.floating[Any]]) -> HeadPoses:
    """Fit the mean face to faces: scaled orthographic projection, points far off counting less.

    Args:
        landmarks: (n, 68, 2) x y in pixels of the frame, y down, 300-W order.
    """
    points = landmarks.astype(np.float64) * [1, -1]
    bad = ~np.isfinite(points).all(axis=(1, 2)) | (np.ptp(points, axis=1).max(axis=1) <= 0)
    points = np.where(bad[:, None, None], mean_face()[:, :2], points)
    weights = np.tile(base_weights(), (len(points), 1))
    for _ in range(_STEPS):
        turned = fit(mean_face(), points, weights)
        weights = base_weights() / (1 + (turned.errors / _OUTLIER) ** 2)
    angles = _angles(turned.rows)
    squares = (base_weights() * turned.errors**2).sum(axis=1) / base_weights().sum()
    extent = np.ptp(mean_face()[:, :2], axis=0).mean()
    angles[bad] = np.nan
    return HeadPoses(
        angles.astype(np.float32), np.where(bad, np.nan, np.sqrt(squares) / extent).astype("f4")
    )


@dataclass(frozen=True)
class Fit:
    """A shape turned to lie on n faces.

    Attributes:
        rows: (n, 2, 3), the first two rows of the rotations.
        scales: (n,) pixels for a unit of the shape.
        errors: (n, 68) distances of the points, in units of the shape.
        shape_centres, point_centres: (n, 3) and (n, 2), what was taken for the centres.
    """

    rows: NDArray[np.float64]
    scales: NDArray[np.float64]
    errors: NDArray[np.float64]
    shape_centres: NDArray[np.float64]
    point_centres: NDArray[np.float64]


def fit(
    shape: NDArray[np.float64], points: NDArray[np.float64], weights: NDArray[np.float64]
) -> Fit:
    """Least squares: the affine map from shape to points, made a rotation.

    Args:
        shape: (68, 3).
        points: (n, 68, 2), y up.
        weights: (n, 68).
    """
    shares = weights / weights.sum(axis=1, keepdims=True)
    shape_centres = shares @ shape
    point_centres = np.einsum("nk,nkd->nd", shares, points)
    centred = shape - shape_centres[:, None]
    wanted = points - point_centres[:, None]
    weighted = shares[..., None] * centred
    normal = np.einsum("nki,nkj->nij", weighted, centred)
    maps = np.linalg.solve(normal, np.einsum("nki,nkj->nij", weighted, wanted)).swapaxes(1, 2)
    left, sizes, right = np.linalg.svd(maps, full_matrices=False)
    rows, scales = left @ right, sizes.mean(axis=1)
    placed = scales[:, None, None] * np.einsum("nij,nkj->nki", rows, centred)
    errors = np.linalg.norm(wanted - placed, axis=2) / scales[:, None]
    return Fit(rows, scales, errors, shape_centres, point_centres)


def base_weights() -> NDArray[np.float64]:
    """Weights (68,) of the points before any has proved to be far off."""
    weights = np.ones(N_LANDMARKS)
    weights[:17] = OUTLINE_WEIGHT
    return weights


@cache
def mean_face() -> NDArray[np.float64]:
    """The mean face, (68, 3): x to the image's right, y up, z out of the image; of size 1."""
    content = (files("emopipe.pretrained") / FILE).read_bytes()
    return np.asarray(load(content)["points"], np.float64)


def _angles(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Yaw, pitch, roll (n, 3) in degrees of rotations given by their first two rows."""
    third = np.cross(rows[:, 0], rows[:, 1])
    yaw = np.arcsin(np.clip(-rows[:, 0, 2], -1, 1))
    pitch = np.arctan2(rows[:, 1, 2], third[:, 2])
    roll = np.arctan2(rows[:, 0, 1], rows[:, 0, 0])
    return np.asarray(np.degrees(np.stack([yaw, pitch, roll], axis=1)))

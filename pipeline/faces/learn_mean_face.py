"""Learn the mean face from landmarks of many faces: makes `pretrained/mean_face.safetensors`.

    python -m emopipe.pipeline.faces.learn_mean_face landmarks68.parquet pretrained

Structure from motion with a rigid, mirror-symmetric shape: in turn the faces' poses are fitted to
the shape, and the shape to the faces. The file is a table as `emonet.data.landmarks68` reads it.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from emopipe.emonet.data.landmarks68 import read_samples
from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.labels import MIRRORED_LANDMARKS
from emopipe.pipeline.faces.pose import FILE, base_weights, fit

ROUNDS = 60

ZERO_PITCH = 4.1
"""Degrees by which the learnt shape's mean pitch differs from the zero of AFLW2000: the mean over
five of its pictures with a yaw of up to 45 degrees (a shape from motion has no zero of its own)."""

_OUTLIER = 0.1  # of the shape's size: a point this far off counts half
_DEPTH, _NOSE = 1.2, 0.25  # of the head from which learning starts, in units of its size


def learn(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean face (68, 3) of landmarks (n, 68, 2), y up; of root mean square size 1."""
    mirrored = (points * [-1, 1])[:, list(MIRRORED_LANDMARKS)]
    points = np.concatenate([points, mirrored])
    shape = _start(points)
    for _ in range(ROUNDS):
        shape = _refined(shape, points)
    angle = np.radians(ZERO_PITCH)
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(shape @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]]).T)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m emopipe.pipeline.faces.learn_mean_face",
        description="Learn the mean face from landmarks of many faces.",
    )
    parser.add_argument("samples", type=Path, help="Parquet file: name, jpg, landmarks")
    parser.add_argument("folder", type=Path, help=f"gets {FILE}")
    options = parser.parse_args(arguments)
    try:
        points = np.stack([sample.landmarks for sample in read_samples(options.samples)])
    except EmopipeError as error:
        raise SystemExit(f"learn_mean_face: {error}") from error
    shape = learn(points * [1, -1]).astype(np.float32)
    save_file({"points": shape}, options.folder / FILE, {"source": options.samples.name})
    print(f"the mean face of {len(points)} faces")


def _start(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean landmarks, bulged like a head."""
    centred = points - points.mean(axis=1, keepdims=True)
    sizes = np.sqrt((centred**2).sum(axis=(1, 2), keepdims=True) / points.shape[1])
    flat = (centred / sizes).mean(axis=0)
    depth = _DEPTH * np.sqrt(np.clip(1.9 - flat[:, 0] ** 2 - 0.3 * flat[:, 1] ** 2, 0, None))
    depth[27:36] += _NOSE
    return _normalized(np.column_stack([flat, depth]))


def _refined(shape: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.tile(base_weights(), (len(points), 1))
    for _ in range(2):
        turned = fit(shape, points, weights)
        trust = 1 / (1 + (turned.errors / _OUTLIER) ** 2)
        weights = base_weights() * trust
    seen = (points - turned.point_centres[:, None]) / turned.scales[:, None, None]
    seen = seen + np.einsum("nij,nj->ni", turned.rows, turned.shape_centres)[:, None]
    normal = np.einsum("nk,nij,nil->kjl", trust, turned.rows, turned.rows)
    wanted = np.einsum("nk,nij,nki->kj", trust, turned.rows, seen)
    learnt = np.linalg.solve(normal, wanted[..., None])[..., 0]
    return _normalized((learnt + (learnt * [-1, 1, 1])[list(MIRRORED_LANDMARKS)]) / 2)


def _normalized(shape: NDArray[np.float64]) -> NDArray[np.float64]:
    shape = shape - shape.mean(axis=0)
    return np.asarray(shape / np.sqrt((shape**2).sum() / len(shape)))


if __name__ == "__main__":
    main()

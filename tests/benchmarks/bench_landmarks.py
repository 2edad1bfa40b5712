"""`make bench-landmarks`: a model's points: how far off by decoder, how still on a still face.

python tests/bench_landmarks.py SHARED [MODEL]
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.data import landmarks68
from emopipe.emonet.labels import OUTER_EYE_CORNERS
from emopipe.emonet.landmarks import peaks
from emopipe.emonet.metrics import landmark_errors
from emopipe.emonet.model import STRIDE
from emopipe.emonet.training.augmentation import DRAWS
from emopipe.emonet.training.config import NONE
from emopipe.emonet.training.pretrain import PICTURE_SIDE
from emopipe.jobs.training.pretrain import SPLIT_SEED
from emopipe.pipeline.local import analyze
from emopipe.pipeline.settings import DEFAULT_MODEL

STILL = 24  # frames, about a second
CLIP = "WolfgangLanger_Pexels.mp4"


def main() -> None:
    """Print both tables."""
    shared = Path(sys.argv[1])
    model = sys.argv[2] if len(sys.argv) > 2 else DEFAULT_MODEL
    heatmaps, points = held_out(shared / "data" / "landmarks68" / "landmarks68.parquet", model)
    print(f"{model}, {len(points)} pictures of held-out people, {heatmaps.shape[-1]} cells a side")
    for name, decode in DECODERS.items():
        errors = landmark_errors(decode(heatmaps).numpy(), points.numpy())
        print(f"  {name:28}{errors.mean():7.2%}  95th percentile {np.percentile(errors, 95):.2%}")
    steadiness(shared / "data" / "videos" / CLIP, model)


@torch.inference_mode()
def held_out(path: Path, model: str) -> tuple[Tensor, Tensor]:
    """Heatmaps of held-out people's crops, and their points in crop pixels."""
    network, described = open_model(model)
    faces = landmarks68.read(path, round(PICTURE_SIDE * described.input_size))
    # Those that the model was not trained on, if it is one of `emopipe pretrain`.
    _, rows = landmarks68.split(faces, SPLIT_SEED)
    unmoved = torch.zeros(len(rows), DRAWS)
    crops, points = faces.seen(rows, described.crop, described.input_size, unmoved, NONE)
    return torch.cat([network.eval()(some).heatmaps for some in crops.split(64)]), points


def quarter_cell(heatmaps: Tensor) -> Tensor:
    """The arg-max, moved a quarter of a cell towards the higher neighbour on each axis."""
    return _beside(heatmaps, lambda low, _, high: 0.25 * (high - low).sign())


def fitted_gaussian(heatmaps: Tensor) -> Tensor:
    """The top of the Gaussian through the arg-max and its neighbours on each axis."""

    def top(low: Tensor, middle: Tensor, high: Tensor) -> Tensor:
        low, middle, high = (value.clamp(min=1e-6).log() for value in (low, middle, high))
        bend = (low + high - 2 * middle).clamp(max=-1e-6)
        return ((low - high) / (2 * bend)).clamp(-0.5, 0.5)

    return _beside(heatmaps, top)


def centroid(radius: int) -> Callable[[Tensor], Tensor]:
    """The centroid of the cells up to `radius` around the arg-max."""

    def decode(heatmaps: Tensor) -> Tensor:
        rows, columns = heatmaps.shape[2:]
        index = heatmaps.flatten(2).argmax(dim=2)
        row, column = index // columns, index % columns
        y, x = torch.arange(rows)[:, None], torch.arange(columns)[None]
        near = ((y - row[..., None, None]).abs() <= radius) & (
            (x - column[..., None, None]).abs() <= radius
        )
        mass = heatmaps.clamp(min=0) * near
        total = mass.sum(dim=(2, 3)).clamp(min=1e-9)
        found = [(mass * (axis + 0.5)).sum(dim=(2, 3)) / total for axis in (x, y)]
        return torch.stack(found, dim=2) * STRIDE

    return decode


def _beside(heatmaps: Tensor, offset: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """The arg-max moved on each axis by what its two neighbours there say; none at the border."""
    n, k, rows, columns = heatmaps.shape
    index = heatmaps.flatten(2).argmax(dim=2)
    row, column = index // columns, index % columns
    every, each = torch.arange(n)[:, None], torch.arange(k)[None]
    height = heatmaps[every, each, row, column]
    found = []
    for at, last, step in ((column, columns - 1, (0, 1)), (row, rows - 1, (1, 0))):
        low, high = (
            heatmaps[
                every,
                each,
                (row + sign * step[0]).clamp(0, rows - 1),
                (column + sign * step[1]).clamp(0, columns - 1),
            ]
            for sign in (-1, 1)
        )
        inner = (at > 0) & (at < last)
        found.append(at + 0.5 + torch.where(inner, offset(low, height, high), 0.0))
    return torch.stack(found, dim=2) * STRIDE


DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "in use: centroid, radius 2": lambda heatmaps: peaks(heatmaps)[0],
    "quarter-cell shift": quarter_cell,
    "centroid, radius 1": centroid(1),
    "centroid, radius 3": centroid(3),
    "fitted Gaussian": fitted_gaussian,
}


def steadiness(clip: Path, model: str) -> None:
    """Print how far points move, and which emotions are said, where the face moves least."""
    results = analyze(clip, model=model)
    if results.landmarks is None:
        raise ValueError("the results hold no landmarks")
    steps = moved(results.landmarks.astype(np.float64))
    # Still is where the detector's box keeps its place: it does not ask the network.
    boxes = results.rows[["x1", "y1", "x2", "y2"]].to_numpy(np.float64)
    unrest = np.abs(np.diff(boxes, axis=0)).sum(axis=1)
    starts = range(len(steps) - STILL + 2)
    first = min(starts, key=lambda i: unrest[i : i + STILL - 1].max())
    still = steps[first : first + STILL - 1]
    said = results.rows["emotion"].to_list()
    changes = sum(a != b for a, b in itertools.pairwise(said))
    print(
        f"{clip.name}: mean point step between neighbouring frames over the distance of the outer "
        f"eye corners: median of all {len(said)} frames {np.median(steps):.2%}; frames {first} to "
        f"{first + STILL - 1}, where the box is stillest: mean {still.mean():.2%}, largest "
        f"{still.max():.2%}\nthe emotion changes {changes} times in {len(said)} frames: "
        f"{', '.join(f'{name} {said.count(name)}' for name in dict.fromkeys(said))}"
    )


def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean distance that points (n, 68, 2) go from one frame to the next: (n - 1,)."""
    right, left = OUTER_EYE_CORNERS
    eyes = np.linalg.norm(points[:, right] - points[:, left], axis=1).mean()
    distances: NDArray[np.float64] = np.linalg.norm(np.diff(points, axis=0), axis=2).mean(axis=1)
    return distances / eyes


if __name__ == "__main__":
    main()

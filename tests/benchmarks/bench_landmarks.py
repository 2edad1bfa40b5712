"""`make bench-landmarks`: a model's landmark errors by decoder, and their jitter on a still face.

python tests/benchmarks/bench_landmarks.py SHARED [MODEL]
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
from emopipe.emonet.data.augmentation import N_RANDOM_PARAMS
from emopipe.emonet.data.config import NONE
from emopipe.emonet.labels import OUTER_EYE_CORNERS
from emopipe.emonet.landmarks import decode_heatmaps
from emopipe.emonet.metrics import landmark_errors
from emopipe.emonet.model import STRIDE
from emopipe.emonet.training.pretrain import IMAGE_SCALE
from emopipe.jobs.api import analyze
from emopipe.jobs.training.pretrain import SPLIT_SEED
from emopipe.pipeline.settings import DEFAULT_MODEL

STILL = 24  # frames, about a second
CLIP = "WolfgangLanger_Pexels.mp4"


def main() -> None:
    """Print both tables."""
    shared = Path(sys.argv[1])
    model = sys.argv[2] if len(sys.argv) > 2 else DEFAULT_MODEL
    heatmaps, points = held_out(shared / "data" / "landmarks68" / "landmarks68.parquet", model)
    print(f"{model}, {len(points)} images of held-out people, {heatmaps.shape[-1]} cells a side")
    for name, decode in DECODERS.items():
        errors = landmark_errors(decode(heatmaps).numpy(), points.numpy())
        print(f"  {name:28}{errors.mean():7.2%}  95th percentile {np.percentile(errors, 95):.2%}")
    jitter(shared / "data" / "videos" / CLIP, model)


@torch.inference_mode()
def held_out(path: Path, model: str) -> tuple[Tensor, Tensor]:
    """Heatmaps of held-out people's crops, and their points in crop pixels."""
    network, described = open_model(model)
    faces = landmarks68.read(path, round(IMAGE_SCALE * described.input_size))
    # Images that the model was not trained on, if `emopipe pretrain` made it.
    _, rows = landmarks68.split(faces, SPLIT_SEED)
    params = torch.zeros(len(rows), N_RANDOM_PARAMS)
    crops, points = faces.augmented(rows, described.crop, described.input_size, params, NONE)
    return torch.cat([network.eval()(some).heatmaps for some in crops.split(64)]), points


def quarter_cell(heatmaps: Tensor) -> Tensor:
    """The arg-max, shifted a quarter of a cell towards the higher neighbour on each axis."""
    return _beside(heatmaps, lambda low, _, high: 0.25 * (high - low).sign())


def fitted_gaussian(heatmaps: Tensor) -> Tensor:
    """The centre of the Gaussian through the arg-max and its neighbours on each axis."""

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
    """The arg-max, shifted on each axis according to its two neighbours; not at the border."""
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
    "in use: centroid, radius 2": lambda heatmaps: decode_heatmaps(heatmaps)[0],
    "quarter-cell shift": quarter_cell,
    "centroid, radius 1": centroid(1),
    "centroid, radius 3": centroid(3),
    "fitted Gaussian": fitted_gaussian,
}


def jitter(clip: Path, model: str) -> None:
    """Print how far points move where the face moves least, and how often the emotion changes."""
    results = analyze(clip, model=model, engine="local")
    if results.landmarks is None:
        raise ValueError("the results hold no landmarks")
    steps = moved(results.landmarks.astype(np.float64))
    # Stillness is measured on the detector's boxes, which do not depend on the network.
    boxes = results.rows[["x1", "y1", "x2", "y2"]].to_numpy(np.float64)
    unrest = np.abs(np.diff(boxes, axis=0)).sum(axis=1)
    starts = range(len(steps) - STILL + 2)
    first = min(starts, key=lambda i: unrest[i : i + STILL - 1].max())
    still = steps[first : first + STILL - 1]
    emotions = results.rows["emotion"].to_list()
    changes = sum(a != b for a, b in itertools.pairwise(emotions))
    print(
        f"{clip.name}: mean point step between neighbouring frames over the distance of the outer "
        f"eye corners: median of all {len(emotions)} frames {np.median(steps):.2%}; "
        f"frames {first} to {first + STILL - 1}, where the box is stillest: mean "
        f"{still.mean():.2%}, largest "
        f"{still.max():.2%}\nthe emotion changes {changes} times in {len(emotions)} frames: "
        f"{', '.join(f'{name} {emotions.count(name)}' for name in dict.fromkeys(emotions))}"
    )


def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean distance that points (n, 68, 2) move from frame to frame: (n - 1,)."""
    right, left = OUTER_EYE_CORNERS
    eyes = np.linalg.norm(points[:, right] - points[:, left], axis=1).mean()
    distances: NDArray[np.float64] = np.linalg.norm(np.diff(points, axis=0), axis=2).mean(axis=1)
    return distances / eyes


if __name__ == "__main__":
    main()

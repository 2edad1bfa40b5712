"""Images with 68 bright dots where their landmarks are."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from emopipe.emonet.data.landmarks68 import LandmarkSet

SIDE = 160
DOT = 1.5  # standard deviation, pixels


def dotted(points: NDArray[np.floating], side: int = SIDE) -> NDArray[np.uint8]:
    """A dark image (side, side, 3) with a bright dot at each point (k, 2), in pixels."""
    centres = np.arange(side) + 0.5
    columns, rows = np.exp(-((centres - points[..., None]) ** 2) / (2 * DOT**2)).transpose(1, 0, 2)
    light = np.einsum("ky,kx->yx", rows, columns).clip(0, 1)
    return np.repeat((40 + 200 * light).astype(np.uint8)[..., None], 3, axis=2)


def shapes(count: int, seed: int = 0) -> NDArray[np.float64]:
    """Points (count, 68, 2) in pixels: a spiral, each time somewhere else and a little larger."""
    rng = np.random.default_rng(seed)
    turn = np.arange(68) * 2.4
    spiral = np.sqrt(np.arange(68) / 67)[:, None] * np.stack((np.cos(turn), np.sin(turn)), axis=1)
    sizes = rng.uniform(38, 42, (count, 1, 1))
    return SIDE / 2 + rng.uniform(-6, 6, (count, 1, 2)) + sizes * spiral


def landmark_set(count: int) -> LandmarkSet:
    """Such images as they are read, each of another person."""
    points = shapes(count)
    return LandmarkSet(
        images=np.stack([dotted(shape) for shape in points]),
        points=(points / SIDE * 2 - 1).astype(np.float32),
        people=np.array([f"p{i}" for i in range(count)]),
        source="made.parquet",
        sha256="0" * 64,
    )


def write_landmarks(path: Path, people: int, images: int) -> Path:
    """The Parquet table of `images` of each of `people`."""
    points = shapes(people * images)
    rows = []
    for i, shape in enumerate(points):
        jpg = BytesIO()
        Image.fromarray(dotted(shape)).save(jpg, "JPEG")
        name = f"Some_One_{i // images}_{i % images:02d}.jpg"
        rows.append({"name": name, "jpg": jpg.getvalue(), "landmarks": shape.ravel()})
    pd.DataFrame(rows).to_parquet(path)
    return path

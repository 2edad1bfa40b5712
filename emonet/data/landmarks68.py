"""Face pictures with 68 landmarks: reading them, and dividing them by person."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from emopipe.emonet.checkpoint import CropSpec
from emopipe.emonet.data.fer2013 import HELD_OUT, DataError
from emopipe.emonet.files import sha256_of
from emopipe.emonet.labels import MIRRORED_LANDMARKS, N_LANDMARKS, OUTER_EYE_CORNERS
from emopipe.emonet.training.augmentation import augment, carried, mirrored, placements
from emopipe.emonet.training.config import Augmentation

_COLUMNS = ["name", "jpg", "landmarks"]


@dataclass(frozen=True)
class Sample:
    """A picture of one face.

    Attributes:
        person: whose face it is.
        image: (height, width, 3) uint8 RGB.
        landmarks: (68, 2) float64 x y in its pixels.
    """

    person: str
    image: NDArray[np.uint8]
    landmarks: NDArray[np.float64]


@dataclass(frozen=True)
class LandmarkSet:
    """Pictures of one face each, all of one size.

    Attributes:
        images: (n, side, side, 3) uint8 RGB.
        points: (n, 68, 2) float32, x and y, the picture reaching from -1 to 1.
        people: (n,) whose face each is.
        source: name of the file.
        sha256: of its content.
    """

    images: NDArray[np.uint8]
    points: NDArray[np.float32]
    people: NDArray[np.str_]
    source: str
    sha256: str

    def __post_init__(self) -> None:
        n, side = self.images.shape[:2]
        if self.images.shape != (n, side, side, 3) or self.images.dtype != np.uint8:
            raise ValueError(f"pictures are uint8 (n, side, side, 3), not {self.images.shape}")
        if self.points.shape != (n, N_LANDMARKS, 2) or self.people.shape != (n,):
            raise ValueError(
                f"{n} pictures have points {self.points.shape} and people {self.people.shape}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def seen(
        self,
        rows: NDArray[np.int64],
        crop: CropSpec,
        size: int,
        draws: Tensor,
        how: Augmentation,
    ) -> tuple[Tensor, Tensor]:
        """Cut out and change pictures as the network is to see them in training.

        Args:
            rows: (m,) which.
            crop: where the network wants its crop, relative to the landmarks.
            size: side of the crops, pixels.
            draws: (m, DRAWS) float in [0, 1), see `emonet.training.augmentation`.
            how: how strongly they are changed.

        Returns:
            (m, 3, size, size) float32 in [0, 1] and (m, 68, 2) float32 points in crop pixels, on
            the draws' device.
        """
        images = torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2).to(draws.device)
        squares = torch.from_numpy(_squares(self.points[rows], crop)).to(draws.device)
        places = placements(draws, how, squares)
        points = carried(torch.from_numpy(self.points[rows]).to(draws.device), places)
        points = (points + 1) / 2 * size
        order = torch.tensor(MIRRORED_LANDMARKS, device=draws.device)
        turned = mirrored(draws, how)[:, None, None]
        return (
            augment(images, draws, size, how, squares),
            torch.where(turned, points[:, order], points),
        )


def read(path: Path, side: int) -> LandmarkSet:
    """Read all pictures of a file.

    Args:
        path: see `read_samples`; the pictures are square.
        side: what they are resampled to, pixels.

    Raises:
        DataError: the file cannot be read as that.
    """
    images, points, people = [], [], []
    for sample in read_samples(path):
        height, width = sample.image.shape[:2]
        if height != width:
            raise DataError(f"{path}: a picture of {sample.person} is {width}×{height}, not square")
        how = cv2.INTER_AREA if width > side else cv2.INTER_LINEAR
        images.append(cv2.resize(sample.image, (side, side), interpolation=how))
        points.append(2 * sample.landmarks / width - 1)
        people.append(sample.person)
    if not images:
        raise DataError(f"{path} holds no picture")
    return LandmarkSet(
        images=np.array(images, np.uint8),
        points=np.array(points, np.float32),
        people=np.array(people),
        source=path.name,
        sha256=sha256_of(path),
    )


def read_samples(path: Path, rows: int | None = None) -> Iterator[Sample]:
    """Read pictures with landmarks, one by one.

    Args:
        path: a Parquet file with the columns `name` (the person, an underscore, a number), `jpg`
            (the picture's bytes) and `landmarks` (x and y of 68 points in its pixels: 136 numbers
            in one list).
        rows: how many, drawn at random but always the same; None for all.

    Raises:
        DataError: the file cannot be read as that.
    """
    try:
        table = pd.read_parquet(path, columns=_COLUMNS)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as a Parquet table with columns {', '.join(_COLUMNS)}: {error}"
        ) from error
    if rows is not None and rows < len(table):
        table = table.sample(rows, random_state=0)
    for number, row in enumerate(zip(*(table[column] for column in _COLUMNS), strict=True)):
        try:
            yield _sample(*row)
        except ValueError as problem:
            raise DataError(f"{path}: row {number} ({row[0]}): {problem}") from problem


def _sample(name: Any, jpg: Any, landmarks: Any) -> Sample:
    """Make a sample of a row.

    Raises:
        ValueError: a value of the row is wrong; the text says which.
    """
    if not isinstance(name, str) or "_" not in name:
        raise ValueError("the name is not a person, an underscore, a number")
    bgr = cv2.imdecode(np.frombuffer(jpg, np.uint8), cv2.IMREAD_COLOR) if jpg else None
    if bgr is None:
        raise ValueError("jpg holds no picture")
    points = np.asarray(landmarks, np.float64)
    if points.shape != (2 * N_LANDMARKS,) or not np.isfinite(points).all():
        raise ValueError(f"landmarks are not {2 * N_LANDMARKS} numbers")
    points = points.reshape(N_LANDMARKS, 2)
    right, left = OUTER_EYE_CORNERS
    if not np.any(points[right] != points[left]):
        raise ValueError("the landmarks of both outer eye corners are one point")
    image = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
    return Sample(name.rpartition("_")[0], image, points)


def split(faces: LandmarkSet, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide pictures into those to learn from and those of other people to select by.

    Args:
        faces: the pictures.
        seed: of which people are held out.

    Raises:
        DataError: there are too few people.
    """
    people = np.random.default_rng(seed).permutation(np.unique(faces.people))
    held_out = people[: round(HELD_OUT * len(people))]
    if not len(held_out):
        raise DataError(f"{faces.source} shows {len(people)} people, too few to hold some out")
    chosen = np.isin(faces.people, held_out)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _squares(points: NDArray[np.float32], crop: CropSpec) -> NDArray[np.float32]:
    """Where the network's crop lies in each picture: (n, 3), see `augmentation.placements`."""
    low, high = points.min(axis=1), points.max(axis=1)
    extents = (high - low).mean(axis=1, keepdims=True)
    centres = (low + high) / 2 + np.array(crop.shift, np.float32) * extents
    return np.concatenate((centres, crop.scale * extents / 2), axis=1).astype(np.float32)

"""Face images with 68 landmarks: reading, division by person, augmented crops."""

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
from emopipe.emonet.data.augmentation import (
    affine_matrices,
    augment,
    mirrored,
    transform_points,
)
from emopipe.emonet.data.config import Augmentation
from emopipe.emonet.data.fer2013 import DataError
from emopipe.emonet.data.splits import HELD_OUT
from emopipe.emonet.files import sha256_of
from emopipe.emonet.labels import MIRRORED_LANDMARKS, N_LANDMARKS, OUTER_EYE_CORNERS

_COLUMNS = ["name", "jpg", "landmarks"]


@dataclass(frozen=True)
class Sample:
    """An image of one face.

    Attributes:
        person: name of the person.
        image: (height, width, 3) uint8 RGB.
        landmarks: (68, 2) float64, x and y in image pixels, 300-W order.
    """

    person: str
    image: NDArray[np.uint8]
    landmarks: NDArray[np.float64]


@dataclass(frozen=True)
class LandmarkSet:
    """Square images of one face each, all of the same size.

    Attributes:
        images: (n, side, side, 3) uint8 RGB.
        points: (n, 68, 2) float32, x and y, the image spanning [-1, 1].
        people: (n,) name of the person in each.
        source: name of the file.
        sha256: of the file's content.
    """

    images: NDArray[np.uint8]
    points: NDArray[np.float32]
    people: NDArray[np.str_]
    source: str
    sha256: str

    def __post_init__(self) -> None:
        n, side = self.images.shape[:2]
        if self.images.shape != (n, side, side, 3) or self.images.dtype != np.uint8:
            raise ValueError(f"images are uint8 (n, side, side, 3), not {self.images.shape}")
        if self.points.shape != (n, N_LANDMARKS, 2) or self.people.shape != (n,):
            raise ValueError(
                f"{n} images have points {self.points.shape} and people {self.people.shape}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def augmented(
        self,
        rows: NDArray[np.int64],
        crop: CropSpec,
        size: int,
        params: Tensor,
        strength: Augmentation,
    ) -> tuple[Tensor, Tensor]:
        """Cut out and augment crops, with their landmarks.

        Args:
            rows: (m,) indices of the images.
            crop: where the network's crop lies, relative to the landmarks.
            size: side of the crops, pixels.
            params: (m, N_RANDOM_PARAMS) float in [0, 1), see `emonet.data.augmentation`.
            strength: how strongly images are changed.

        Returns:
            (m, 3, size, size) float32 RGB in [0, 1] and (m, 68, 2) float32 points in crop pixels,
            on the device of `params`.
        """
        device = params.device
        images = torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2).to(device)
        squares = torch.from_numpy(_squares(self.points[rows], crop)).to(device)
        matrices = affine_matrices(params, strength, squares)
        points = transform_points(torch.from_numpy(self.points[rows]).to(device), matrices)
        points = (points + 1) / 2 * size
        order = torch.tensor(MIRRORED_LANDMARKS, device=device)
        is_mirrored = mirrored(params, strength)[:, None, None]
        return (
            augment(images, params, size, strength, squares),
            torch.where(is_mirrored, points[:, order], points),
        )


def read(path: Path, side: int) -> LandmarkSet:
    """Read all images of a file.

    Args:
        path: see `read_samples`; the images must be square.
        side: side to which the images are resampled, pixels.

    Raises:
        DataError: the file cannot be read, or an image is not square.
    """
    images, points, people = [], [], []
    for sample in read_samples(path):
        height, width = sample.image.shape[:2]
        if height != width:
            raise DataError(f"{path}: an image of {sample.person} is {width}×{height}, not square")
        method = cv2.INTER_AREA if width > side else cv2.INTER_LINEAR
        images.append(cv2.resize(sample.image, (side, side), interpolation=method))
        points.append(2 * sample.landmarks / width - 1)
        people.append(sample.person)
    if not images:
        raise DataError(f"{path} holds no image")
    return LandmarkSet(
        images=np.array(images, np.uint8),
        points=np.array(points, np.float32),
        people=np.array(people),
        source=path.name,
        sha256=sha256_of(path),
    )


def read_samples(path: Path, rows: int | None = None) -> Iterator[Sample]:
    """Read images with landmarks, one by one.

    Args:
        path: a Parquet file with the columns `name` (person, underscore, number), `jpg` (the
            encoded image) and `landmarks` (a list of 136 numbers: x and y of 68 points in image
            pixels).
        rows: size of a random sample, always the same one; None for all.

    Raises:
        DataError: the file cannot be read, or a row is invalid; the text names it.
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
    """Decode a row.

    Raises:
        ValueError: a value is invalid; the text says which.
    """
    if not isinstance(name, str) or "_" not in name:
        raise ValueError("the name is not a person, an underscore, a number")
    bgr = cv2.imdecode(np.frombuffer(jpg, np.uint8), cv2.IMREAD_COLOR) if jpg else None
    if bgr is None:
        raise ValueError("jpg holds no image")
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
    """Divide images into those to train on and those of other people, to select by.

    Args:
        faces: the images.
        seed: of the random choice of people that are held out.

    Returns:
        Indices of both, int64.

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
    """The square crop of each image: (n, 3) float32, see `augmentation.affine_matrices`."""
    low, high = points.min(axis=1), points.max(axis=1)
    extents = (high - low).mean(axis=1, keepdims=True)
    centres = (low + high) / 2 + np.array(crop.shift, np.float32) * extents
    return np.concatenate((centres, crop.scale * extents / 2), axis=1).astype(np.float32)

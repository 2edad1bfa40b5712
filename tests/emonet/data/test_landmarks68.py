"""Images with landmarks: read as written, divided by person, augmented with their points."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_landmarks import SIDE, landmark_set, shapes, write_landmarks
from PIL import Image

from emopipe.emonet.checkpoint import CropSpec
from emopipe.emonet.data import augmentation, landmarks68
from emopipe.emonet.data.config import NONE
from emopipe.emonet.data.fer2013 import DataError
from emopipe.emonet.data.landmarks68 import read_samples
from emopipe.emonet.labels import MIRRORED_LANDMARKS

CROP = CropSpec(scale=1.39, shift=(0.0, -0.13))


def test_a_sample_is_read_as_it_was_written(tmp_path: Path) -> None:
    red = BytesIO()
    Image.new("RGB", (20, 10), (255, 0, 0)).save(red, "PNG")
    row = {"name": "An_A_03.jpg", "jpg": red.getvalue(), "landmarks": np.arange(136.0)}
    path = tmp_path / "faces.parquet"
    pd.DataFrame([row]).to_parquet(path)
    (sample,) = read_samples(path)
    assert sample.person == "An_A"
    assert sample.image.shape == (10, 20, 3)
    assert sample.image[0, 0].tolist() == [255, 0, 0]
    np.testing.assert_array_equal(sample.landmarks.ravel(), np.arange(136.0))
    with pytest.raises(DataError, match="an image of An_A is 20×10, not square"):
        landmarks68.read(path, 64)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("name", "Somebody", "the name is not a person, an underscore, a number"),
        ("jpg", b"none", "jpg holds no image"),
        ("jpg", None, "jpg holds no image"),
        ("landmarks", np.arange(10.0), "landmarks are not 136 numbers"),
        ("landmarks", np.full(136, np.nan), "landmarks are not 136 numbers"),
        ("landmarks", np.ones(136), "outer eye corners are one point"),
    ],
)
def test_a_bad_row_is_named(tmp_path, column, value, reason):
    path = write_landmarks(tmp_path / "made.parquet", 1, 3)
    table = pd.read_parquet(path)
    table[column] = [*table[column][:2], value]
    table.to_parquet(path)
    with pytest.raises(DataError, match=rf"made\.parquet: row 2 .*{reason}"):
        landmarks68.read(path, 64)


def test_a_smaller_image_keeps_its_points(tmp_path: Path) -> None:
    faces = landmarks68.read(write_landmarks(tmp_path / "made.parquet", 2, 3), 80)
    assert faces.images.shape == (6, 80, 80, 3)
    np.testing.assert_allclose(faces.points, shapes(6) / SIDE * 2 - 1, atol=1e-6)


def test_nobody_is_on_both_sides(tmp_path: Path) -> None:
    faces = landmarks68.read(write_landmarks(tmp_path / "made.parquet", 20, 2), 32)
    learning, selecting = landmarks68.split(faces, 0)
    assert len(learning) == 36
    assert len(selecting) == 4
    assert not set(faces.people[learning]) & set(faces.people[selecting])
    assert (landmarks68.split(faces, 1)[1] != selecting).any()
    few = landmarks68.read(write_landmarks(tmp_path / "few.parquet", 3, 1), 32)
    with pytest.raises(DataError, match="shows 3 people, too few"):
        landmarks68.split(few, 0)


def test_a_mirror_image_has_the_points_of_the_other_side():
    order = np.array(MIRRORED_LANDMARKS)
    assert (order[order] == np.arange(68)).all()
    middle = [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    assert np.flatnonzero(order == np.arange(68)).tolist() == middle
    right_eye, left_eye = range(36, 42), range(42, 48)
    assert set(order[right_eye]) == set(left_eye)


def test_mirrored_landmarks_lie_as_those_of_a_face(shared):
    path = shared / "data" / "landmarks68" / "landmarks68.parquet"
    every = np.stack([s.landmarks for s in read_samples(path, 200)])
    mean = every.mean(axis=0) - every.mean(axis=(0, 1))
    flipped = (mean * [-1, 1])[list(MIRRORED_LANDMARKS)]
    size = np.ptp(mean, axis=0).max()
    assert np.linalg.norm(flipped - mean, axis=1).max() < 0.05 * size


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_points_lie_where_the_augmented_image_shows_them(seed):
    faces, rows = landmark_set(2), np.array([1, 0])
    params = torch.from_numpy(augmentation.random_params(seed, 1, 2))
    strength = replace(NONE, flip=0.5, zoom=0.1, turn=25, shift=0.03)
    roomy = CropSpec(scale=1.8, shift=(0.0, 0.0))
    crops, points = faces.augmented(rows, roomy, 128, params, strength)
    # The mean over all points is free of their order, which mirroring changes.
    light = (crops[:, 0] - 40 / 255).clamp(min=0)
    centres = torch.arange(128) + 0.5
    total = light.sum(dim=(1, 2))
    x, y = (light.sum(dim=1) @ centres) / total, (light.sum(dim=2) @ centres) / total
    assert ((points > 4) & (points < 124)).all()
    assert (torch.stack((x, y), dim=1) - points.mean(dim=1)).abs().max() < 1.0


def test_the_unmoved_crop_is_the_one_that_the_checkpoint_asks_for():
    faces = landmark_set(1)
    _, points = faces.augmented(
        np.array([0]), CROP, 64, torch.zeros(1, augmentation.N_RANDOM_PARAMS), NONE
    )
    low, high = points[0].amin(dim=0), points[0].amax(dim=0)
    extent = (high - low).mean().item()
    assert extent * CROP.scale == pytest.approx(64, rel=1e-4)
    centre = (low + high) / 2 - 32
    assert centre[0].item() == pytest.approx(0, abs=1e-3)
    assert centre[1].item() == pytest.approx(0.13 * extent, rel=1e-3)


def test_in_a_mirror_image_left_and_right_points_change_places():
    faces, rows, params = (
        landmark_set(2),
        np.arange(2),
        torch.zeros(2, augmentation.N_RANDOM_PARAMS),
    )
    _, plain = faces.augmented(rows, CROP, 64, params, NONE)
    _, turned = faces.augmented(rows, CROP, 64, params, replace(NONE, flip=1.0))
    expected = plain[:, list(MIRRORED_LANDMARKS)]
    expected[..., 0] = 64 - expected[..., 0]
    torch.testing.assert_close(turned, expected, atol=1e-3, rtol=0)

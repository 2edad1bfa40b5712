"""Crops show what their boxes say, and points go to the frame and back."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from real_frames import clip_frames

from emopipe.emonet.checkpoint import PUBLISHED_CROP, CropSpec
from emopipe.pipeline.faces.align import crop_boxes, cut, sharpness, to_crop, to_frame
from emopipe.pipeline.faces.base import BoxToLandmarks, Faces
from emopipe.pipeline.faces.detectors import load_detector

NO_SHIFT = BoxToLandmarks((0.0, 0.0), 1.0)


def box_at(x: float, y: float, width: float, height: float) -> NDArray[np.float32]:
    """(1, 4): a box by its centre and extents."""
    return np.array([[x - width / 2, y - height / 2, x + width / 2, y + height / 2]], np.float32)


def faces_at(*boxes: NDArray[np.float32]) -> Faces:
    joined = np.concatenate([np.zeros((0, 4), np.float32), *boxes])
    return Faces(joined, np.ones(len(joined), np.float32))


def boxes_of_crops() -> st.SearchStrategy[NDArray[np.float32]]:
    place, extent = st.floats(-500, 4000, width=32), st.floats(8, 2000, width=32)
    return st.builds(box_at, place, place, extent, extent)


@given(
    box=boxes_of_crops(),
    points=arrays(np.float32, (1, 68, 2), elements=st.floats(-64, 320, width=32)),
    size=st.sampled_from([64, 256]),
)
def test_points_go_to_the_frame_and_back(
    box: NDArray[np.float32], points: NDArray[np.float32], size: int
) -> None:
    there = to_frame(points, box, size)
    assert there.dtype == np.float32
    # float32 coordinates of up to 6,000 pixels are exact to 2.4e-4 pixels of the frame.
    per_pixel = size / (box[:, 2:] - box[:, :2]).min()
    np.testing.assert_allclose(to_crop(there, box, size), points, atol=5e-4 * max(1, per_pixel))


@given(box=boxes_of_crops(), size=st.sampled_from([64, 256]))
def test_the_crops_corners_are_the_boxs(box: NDArray[np.float32], size: int) -> None:
    corners = np.array([[[0, 0], [size, size]]], np.float32)
    np.testing.assert_allclose(to_frame(corners, box, size).reshape(1, 4), box, rtol=1e-6)


@given(
    x=st.floats(90, 210),
    y=st.floats(90, 210),
    off_x=st.floats(-0.3, 0.3),
    off_y=st.floats(-0.3, 0.3),
    width=st.floats(60, 400),
    height=st.floats(60, 400),
    size=st.sampled_from([64, 256]),
)
def test_a_crop_shows_a_thing_where_to_crop_says(
    x: float, y: float, off_x: float, off_y: float, width: float, height: float, size: int
) -> None:
    columns, rows = np.arange(300) + 0.5, np.arange(300)[:, None] + 0.5
    blob = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 6.0**2))
    image = np.repeat(blob.astype(np.uint8)[..., None], 3, axis=2)
    box = box_at(x + off_x * width / 2, y + off_y * height / 2, width, height)
    (crop,) = cut(image, box, size)
    # The blob's faint rim may be cut off by the box; its bright middle is not.
    weight = np.clip(crop[..., 0].astype(float) - 125, 0, None)
    pixel = np.arange(size) + 0.5
    seen = np.array([(weight.sum(axis=i) * pixel).sum() / weight.sum() for i in (0, 1)])
    (expected,) = to_crop(np.array([[[x, y]]]), box, size)[0]
    np.testing.assert_allclose(seen, expected, atol=0.15 * max(1.0, size / min(width, height)))


def test_a_box_of_whole_pixels_is_copied() -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    crops = cut(image, np.array([[10, 20, 74, 84], [96, 56, 160, 120]]), 64)
    np.testing.assert_array_equal(crops[0], image[20:84, 10:74])
    np.testing.assert_array_equal(crops[1], image[56:120, 96:160])


def test_beyond_the_frame_it_is_black() -> None:
    image = np.full((100, 100, 3), 200, np.uint8)
    half, outside, around = cut(
        image, np.array([[-50, 0, 50, 100], [300, -400, 364, -336], [-100, -100, 200, 200]]), 60
    )
    # Antialiasing blends the two along the frame's edge.
    assert np.all(half[:, :29] == 0)
    assert np.all(half[1:-1, 31:-1] == 200)
    assert np.all(outside == 0)
    assert np.all(around[22:38, 22:38] == 200)
    assert np.all(around[:18] == 0)
    assert np.all(around[42:] == 0)


def test_shrinking_leaves_no_false_patterns() -> None:
    checks = (np.indices((800, 800)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = np.repeat(checks[..., None], 3, axis=2)
    for side in (130.0, 333.3, 700.1):
        crops = cut(image, box_at(400.3, 399.8, side, side), 64)
        assert np.abs(crops.astype(int) - 127).max() <= 20
        assert crops.std() < 5


@pytest.mark.parametrize("factor", [1.7, 3.3, 7.9])
def test_a_crop_keeps_still_with_a_face_that_moves_by_parts_of_a_pixel(
    clips: Path, factor: float
) -> None:
    frame = clip_frames(clips / "single_face.mp4")[0]
    frame = cv2.resize(frame, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    (still,) = cut(frame, box_at(600, 360, 64 * factor, 64 * factor), 64)
    for shift in (0.25, 0.5, 1.3):
        motion = np.array([[1, 0, shift], [0, 1, shift]])
        moved = cv2.warpAffine(frame, motion, frame.shape[1::-1], flags=cv2.INTER_LANCZOS4)
        (crop,) = cut(moved, box_at(600 + shift, 360 + shift, 64 * factor, 64 * factor), 64)
        assert np.abs(crop.astype(int) - still).mean() < 0.5


def test_no_faces_give_no_crops() -> None:
    boxes = crop_boxes(faces_at(), NO_SHIFT, PUBLISHED_CROP)
    crops = cut(np.zeros((4, 4, 3), np.uint8), boxes, 64)
    assert boxes.shape == (0, 4)
    assert crops.shape == (0, 64, 64, 3)
    assert sharpness(crops, boxes, boxes).shape == (0,)
    assert to_frame(np.zeros((0, 68, 2), np.float32), boxes, 64).shape == (0, 68, 2)


@given(
    x=st.floats(0, 2000),
    y=st.floats(0, 2000),
    width=st.floats(20, 500),
    height=st.floats(20, 500),
    calibration=st.builds(
        BoxToLandmarks,
        st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)),
        st.floats(0.5, 1.5),
    ),
    crop=st.builds(
        CropSpec, st.floats(1, 3), st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
    ),
)
def test_a_square_crop_lies_around_the_landmarks_as_specified(
    x: float,
    y: float,
    width: float,
    height: float,
    calibration: BoxToLandmarks,
    crop: CropSpec,
) -> None:
    ((x1, y1, x2, y2),) = crop_boxes(faces_at(box_at(x, y, width, height)), calibration, crop)
    side = (width + height) / 2
    extent = calibration.scale * side
    centre = (
        np.array([x, y]) + np.multiply(calibration.shift, side) + np.multiply(crop.shift, extent)
    )
    np.testing.assert_allclose([x2 - x1, y2 - y1], crop.scale * extent, atol=2e-3)
    np.testing.assert_allclose([(x1 + x2) / 2, (y1 + y2) / 2], centre, atol=2e-3)


def test_a_box_crop_is_the_detectors_box() -> None:
    faces = faces_at(box_at(50, 60, 20, 40), box_at(10, 10, 5, 5))
    boxes = crop_boxes(faces, BoxToLandmarks((0.1, 0.1), 0.9), PUBLISHED_CROP, "box")
    np.testing.assert_array_equal(boxes, faces.boxes)


@pytest.mark.parametrize(
    ("clip", "step"), [("WolfgangLanger_Pexels.mp4", 12), ("single_face.mp4", 9)]
)
def test_crops_hardly_depend_on_the_detector(
    shared: Path, clips: Path, clip: str, step: int
) -> None:
    frames = clip_frames(clips / clip, step)
    one, other = load_detector("centerface"), load_detector("yunet", weights=shared / "weights")
    for a, b in zip(one.detect(frames), other.detect(frames), strict=True):
        first = crop_boxes(a, one.calibration, PUBLISHED_CROP)
        second = crop_boxes(b, other.calibration, PUBLISHED_CROP)
        side = np.diff(first[:, ::2])
        np.testing.assert_allclose(np.diff(second[:, ::2]) / side, 1, atol=0.1)
        centres = (boxes[:, :2] + boxes[:, 2:] for boxes in (first, second))
        np.testing.assert_allclose(np.subtract(*centres) / 2 / side, 0, atol=0.05)


@pytest.fixture
def sharp_face(clips: Path) -> tuple[NDArray[np.uint8], Faces]:
    """A frame and its face of 187 pixels."""
    frame = clip_frames(clips / "single_face.mp4")[0]
    (faces,) = load_detector("centerface").detect([frame])
    return frame, faces


def sharpness_of(
    frame: NDArray[np.uint8], faces: Faces, size: int = 64, crop: CropSpec = PUBLISHED_CROP
) -> float:
    boxes = crop_boxes(faces, load_detector("centerface").calibration, crop)
    return float(sharpness(cut(frame, boxes, size), boxes, faces.boxes).item())


def test_blur_lowers_sharpness_and_flat_has_none(
    sharp_face: tuple[NDArray[np.uint8], Faces],
) -> None:
    frame, faces = sharp_face
    blurred = (cv2.GaussianBlur(frame, (0, 0), sigma) for sigma in (2, 6, 12))
    values = [sharpness_of(image, faces) for image in [frame, *blurred, np.full_like(frame, 90)]]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 5
    assert values[-1] == 0


def test_sharpness_depends_neither_on_light_nor_on_the_models_crop(
    sharp_face: tuple[NDArray[np.uint8], Faces],
) -> None:
    frame, faces = sharp_face
    sharp = sharpness_of(frame, faces)
    dark = (frame * 0.5).astype(np.uint8)
    assert sharpness_of(dark, faces) == pytest.approx(sharp, rel=0.05)
    bundled = CropSpec(1.39, (0.0, -0.13))
    assert sharpness_of(frame, faces, 64, bundled) == pytest.approx(
        sharpness_of(frame, faces, 256, bundled), rel=0.15
    )
    assert sharpness_of(frame, faces, 256, PUBLISHED_CROP) == pytest.approx(
        sharpness_of(frame, faces, 256, bundled), rel=0.15
    )


@pytest.mark.parametrize("scale", [0.25, 0.5, 2])
def test_a_blurred_face_has_one_sharpness_at_any_size(
    sharp_face: tuple[NDArray[np.uint8], Faces], scale: float
) -> None:
    frame, faces = sharp_face
    blurred = cv2.GaussianBlur(frame, (0, 0), float(faces.sides.item()) * 6 / 160)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(blurred, None, fx=scale, fy=scale, interpolation=method)
    moved = Faces(faces.boxes * np.float32(scale), faces.scores)
    bundled = CropSpec(1.39, (0.0, -0.13))
    expected = sharpness_of(np.asarray(blurred, np.uint8), faces, crop=bundled)
    assert 0.1 < expected < 0.175
    assert sharpness_of(np.asarray(resized, np.uint8), moved, crop=bundled) == pytest.approx(
        expected, rel=0.12
    )

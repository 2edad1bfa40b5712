"""Faces followed by their landmarks: where they are, and when only a detection can tell."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_faces import face_clip
from numpy.typing import NDArray
from real_frames import clip_frames

from emopipe.emonet.predictor import Predictor, load_model
from emopipe.pipeline.faces import following
from emopipe.pipeline.faces.base import Detector, Faces
from emopipe.pipeline.faces.detectors import load_detector
from emopipe.pipeline.faces.following import FollowedFaces, Follower, moved
from emopipe.pipeline.faces.selection import Selection
from emopipe.pipeline.media.decoder import Decoder, Frames
from emopipe.pipeline.media.sampling import spans_of
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.settings import Settings, resolved
from emopipe.pipeline.stages import FaceStage
from emopipe.pipeline.table.schema import DetectedSpan

EVERY = 5
FRAME_S = 0.04

Images = list[NDArray[np.uint8]]


class CountingDetector:
    """A detector that remembers which images it was given."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self.name, self.calibration = detector.name, detector.calibration
        self.images: Images = []

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Faces]:
        self.images += images
        return self._detector.detect(images)

    def detected(self, among: Images) -> list[int]:
        """Which of some images it was given."""
        given = {id(image) for image in self.images}
        return [i for i, image in enumerate(among) if id(image) in given]


@cache
def model() -> Predictor:
    return load_model()


@pytest.fixture
def detector() -> CountingDetector:
    return CountingDetector(load_detector("centerface"))


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """50 frames with one face that drifts slowly."""
    return clip_frames(face_clip(tmp_path_factory.mktemp("face")))


def follow(
    detector: Detector,
    images: Images,
    times: Sequence[float] | None = None,
    every: int = EVERY,
    at_once: int = 24,
    selection: Selection | None = None,
) -> list[FollowedFaces]:
    follower = Follower(detector, model(), selection or Selection(), "square")
    if times is None:
        times = [FRAME_S * i for i in range(len(images))]
    periods = np.arange(len(images)) // every
    found = []
    for first in range(0, len(images), at_once):
        part = slice(first, first + at_once)
        found += follower.find(images[part], times[part], periods[part])
    return found


def test_a_followed_face_is_where_a_detector_sees_it(detector, frames):
    moving = [
        np.roll(frames[0], 3 * i, axis=1) for i in range(12)
    ]  # 3 % of the face's side a frame
    followed = follow(detector, moving)
    assert detector.detected(moving) == [0, 5, 10]
    for one, seen in zip(followed, detector.detect(moving), strict=True):
        assert len(one.faces) == len(seen) == 1
        np.testing.assert_allclose(one.faces.boxes, seen.boxes, atol=0.05 * seen.sides[0])


def test_a_frame_with_a_detection_is_as_without_following(detector, frames):
    followed, all_detected = (follow(detector, frames, every=every) for every in (EVERY, 1))
    for one, other in list(zip(followed, all_detected, strict=True))[::EVERY]:
        np.testing.assert_array_equal(one.faces.boxes, other.faces.boxes)
        np.testing.assert_array_equal(one.crops, other.crops)
        np.testing.assert_array_equal(one.predictions.valence, other.predictions.valence)


@pytest.mark.parametrize("at_once", [1, 7, 50])
def test_what_is_found_does_not_depend_on_how_many_frames_come_at_once(detector, frames, at_once):
    for one, other in zip(
        follow(detector, frames), follow(detector, frames, at_once=at_once), strict=True
    ):
        np.testing.assert_array_equal(one.faces.boxes, other.faces.boxes)
        np.testing.assert_array_equal(one.crops, other.crops)
        np.testing.assert_array_equal(
            one.predictions.probabilities, other.predictions.probabilities
        )


def test_a_frame_after_a_cut_is_detected(detector, frames):
    mirrored = [np.ascontiguousarray(frame[:, ::-1]) for frame in frames[8:13]]
    images = [*frames[:8], *mirrored]
    found = follow(detector, images)
    assert detector.detected(images) == [0, 5, 8, 10]
    assert [len(one.faces) for one in found] == [1] * 13


def covered(detector: Detector, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame with its face painted over."""
    [face] = detector.detect([frame])
    x1, y1, x2, y2 = face.boxes[0].astype(int)
    painted = frame.copy()
    painted[y1:y2, x1:x2] = painted[y1:y2, x1:x2].mean(axis=(0, 1))
    return painted


def test_a_frame_on_which_the_face_is_covered_is_detected(detector, frames):
    images = frames[:7] + [covered(detector, frame) for frame in frames[7:10]]
    detector.images.clear()
    found = follow(detector, images)
    assert detector.detected(images) == [0, 5, 7]
    assert [len(one.faces) for one in found] == [1] * 7 + [0] * 3


def test_a_frame_after_missing_ones_is_detected(detector, frames):
    times = [FRAME_S * (i if i < 7 else i + 3) for i in range(10)]
    follow(detector, frames[:10], times)
    assert detector.detected(frames) == [0, 5, 7]


def test_a_face_is_followed_while_it_is_in_the_region_of_interest(detector, frames):
    moving = [np.roll(frames[0], 4 * i, axis=1) for i in range(12)]
    selections = Selection(roi=(0, 0, 200, 320)), Selection()
    inside, all_faces = (follow(detector, moving, every=12, selection=one) for one in selections)
    centres = [one.faces.boxes[0, ::2].mean() for one in all_faces]
    assert centres[0] < 200 < centres[-1]
    assert [len(one.faces) for one in inside] == [int(x < 200) for x in centres]
    assert [len(one.predictions.valence) for one in inside] == [int(x < 200) for x in centres]


def test_a_face_that_comes_is_found_by_the_next_detection(detector, frames):
    images = [covered(detector, frame) for frame in frames[:7]] + frames[7:12]
    found = follow(detector, images, every=10)
    assert [len(one.faces) for one in found] == [0] * 10 + [1] * 2


def test_a_face_whose_landmarks_are_not_sure_is_detected_on_every_frame(
    detector, frames, monkeypatch
):
    images = frames[:6]
    found = follow(detector, images)
    assert detector.detected(images) == [0, 5]
    scores = [one.predictions.landmark_score[0] for one in found]
    monkeypatch.setattr(following, "LEAST_SCORE", max(scores) + 0.01)
    follow(detector, images)
    assert detector.detected(images) == list(range(6))


@dataclass
class LossyDecoder:
    """Gives frames, but not those that are damaged."""

    images: Images
    damaged: set[int]

    def frames(self, video: object, wanted: NDArray[np.int64]) -> Iterator[Frames]:
        good = np.array([i for i in wanted.tolist() if i not in self.damaged], np.int32)
        yield Frames(good, good * FRAME_S, np.stack([self.images[i] for i in good]))


@pytest.mark.parametrize("damaged", [{24}, {24, 25}, {29}])
def test_a_span_is_the_same_whether_a_run_begins_with_it_or_not(frames, damaged):
    spans = spans_of(np.arange(48))
    settings = resolved(Settings(detect_every=EVERY), model().checkpoint)
    stage = FaceStage(
        settings, model().checkpoint, cast(Decoder, LossyDecoder(frames, damaged)), model()
    )
    video = cast(Video, SimpleNamespace(name="clip", backend="pyav", width=320, height=320))
    _, later = stage.spans(video, spans)
    [alone] = stage.spans(video, {1: spans[1]})
    for field in fields(DetectedSpan):
        if field.name != "predictions":
            np.testing.assert_array_equal(getattr(later, field.name), getattr(alone, field.name))


def test_frames_sampled_slowly_are_all_detected(detector, frames):
    follow(detector, frames[:10], [0.2 * i for i in range(10)])
    assert detector.detected(frames) == list(range(10))


def test_on_a_real_clip_predictions_hardly_differ(detector, clips: Path):
    images = clip_frames(clips / "single_face.mp4")
    followed, all_detected = (follow(detector, images, every=every) for every in (EVERY, 1))
    emotions = [
        [int(one.predictions.probabilities[0].argmax()) for one in found]
        for found in (followed, all_detected)
    ]
    assert emotions[0] == emotions[1]
    for one, other in zip(followed, all_detected, strict=True):
        np.testing.assert_allclose(one.predictions.valence, other.predictions.valence, atol=0.05)


@given(st.floats(0.5, 2), st.floats(-50, 50), st.floats(-50, 50), st.integers(0, 2**32 - 1))
def test_boxes_move_as_their_points_do(scale, x, y, seed):
    random = np.random.default_rng(seed)
    points = random.uniform(100, 200, (2, 51, 2)).astype(np.float32)
    boxes = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
    shift = np.array([x, y])
    expected = (boxes.reshape(2, 2, 2) * scale + shift).reshape(2, 4)
    np.testing.assert_allclose(moved(boxes, points, points * scale + shift), expected, atol=1e-2)

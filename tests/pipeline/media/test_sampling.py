"""Which frames are sampled, and how they are divided into spans."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from emopipe.pipeline.media.sampling import SPAN_FRAMES, sample, spans_of
from emopipe.pipeline.media.video import Video


def video_of(times: NDArray[np.float64]) -> Video:
    return Video(
        path=Path("none.mp4"),
        name="none.mp4",
        backend="pyav",
        width=16,
        height=16,
        rotation=0,
        times=times,
        pts=np.arange(len(times)),
        keyframe_pts=np.zeros(1, np.int64),
        fps=25.0,
        truncated_frames=0,
        size=1,
        sha256="",
    )


def test_sampling_by_stride_and_stretch() -> None:
    video = video_of(10 + np.arange(100) / 25)  # 10 s to 13.96 s
    assert sample(video).tolist() == list(range(100))
    assert sample(video, stride=30).tolist() == [0, 30, 60, 90]
    assert sample(video, start=11, end=11.2).tolist() == [25, 26, 27, 28, 29]
    assert sample(video, start=11, end=12, stride=10).tolist() == [25, 35, 45]
    assert sample(video, start=99).tolist() == []


def test_sampling_at_the_videos_own_rate_takes_every_frame() -> None:
    exact = video_of(np.arange(90) / 30)
    rounded = video_of(np.round(np.arange(90) / 30, 3))  # as Matroska rounds
    assert sample(exact, fps=30).tolist() == list(range(90))
    assert sample(rounded, fps=30).tolist() == list(range(90))


@given(
    gaps=st.lists(st.floats(0.002, 2), min_size=1, max_size=60),
    fps=st.floats(0.2, 60),
)
def test_sampling_takes_the_first_frame_of_each_tick_once(gaps: list[float], fps: float) -> None:
    video = video_of(np.cumsum(gaps))
    taken_indices = sample(video, fps=fps)
    taken = video.times[taken_indices]
    assert (np.diff(taken_indices) > 0).all()
    assert taken_indices[0] == 0
    for tick in np.arange(video.times[0], video.times[-1], 1 / fps):
        earliest = tick - 1e-3  # the tolerance for rounded times
        first_taken = taken[taken > earliest - 1e-9][0]
        between = (video.times > earliest + 1e-9) & (video.times < first_taken)
        assert not between.any()
    assert len(taken_indices) <= np.ptp(video.times) * fps + 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stride": 0}, "`stride` must be at least 1"),
        ({"fps": 0.0}, "`fps` must be positive"),
        ({"start": 2.0, "end": 1.0}, "must be after `start`"),
    ],
)
def test_sampling_rejects_nonsense(options: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sample(video_of(np.arange(10) / 25), **options)  # type: ignore[arg-type]


def test_a_slice_is_sampled_by_the_whole_videos_indices() -> None:
    part = video_of(np.arange(100) / 25).slice(np.array([20, 60]))
    assert sample(part).tolist() == list(range(20, 61))
    assert sample(part, fps=5).tolist() == list(range(20, 61, 5))
    assert sample(part, start=1.0, end=1.2).tolist() == [25, 26, 27, 28, 29]


def test_spans_divide_the_sampled_frames_in_order() -> None:
    sampled = np.arange(0, 2 * (2 * SPAN_FRAMES + 5), 2)
    spans = spans_of(sampled)
    assert [len(one) for one in spans.values()] == [SPAN_FRAMES, SPAN_FRAMES, 5]
    assert list(spans) == [0, 1, 2]
    assert np.concatenate(list(spans.values())).tolist() == sampled.tolist()
    assert spans_of(np.zeros(0, np.int64)) == {}

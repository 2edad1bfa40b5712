"""A slice of a video's index: it decodes to the same frames, and is as small as its frames."""

import pickle
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_clips import ENCODERS, REMUXERS, zero_packets
from numpy.typing import NDArray
from PIL import Image

from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.media.index import probe
from emopipe.pipeline.media.readers import open_reader
from emopipe.pipeline.media.video import Video

Made = Callable[[str], Path]


@cache
def probed(path: Path) -> Video:
    return probe(path, path.name)


@cache
def decoded(path: Path) -> list[NDArray[np.uint8] | None]:
    """Every frame, read in order from the whole video."""
    video = probed(path)
    return read(video, np.arange(video.frames))


def read(video: Video, frame_indices: NDArray[np.int64]) -> list[NDArray[np.uint8] | None]:
    with closing(open_reader(video)) as reader:
        return [reader.frame(index) for index in frame_indices.tolist()]


def assert_same(path: Path, frame_indices: NDArray[np.int64]) -> None:
    whole = probed(path)
    part = whole.slice(frame_indices)
    first, last = int(frame_indices[0]), int(frame_indices[-1])
    assert (part.first, part.frames) == (first, last - first + 1)
    np.testing.assert_array_equal(part.times, whole.times[first : last + 1])
    for index, ours in zip(frame_indices.tolist(), read(part, frame_indices), strict=True):
        expected = decoded(path)[index]
        assert (ours is None) == (expected is None), f"frame {index}"
        if ours is not None:
            np.testing.assert_array_equal(ours, expected, f"frame {index}")


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chosen=st.sets(st.integers(0, 1000), min_size=1, max_size=12))
@example(chosen={0})
@example(chosen={50})
@example(chosen={1000})
@example(chosen=set(range(16, 33)))  # from the middle of a group of pictures
@example(chosen=set(range(40, 60)))
@pytest.mark.parametrize("name", [*ENCODERS, *REMUXERS])
def test_a_slice_decodes_to_the_same_frames(made: Made, name: str, chosen: set[int]) -> None:
    last = probed(made(name)).frames - 1
    assert_same(made(name), np.unique([min(index, last) for index in chosen]))


def test_a_slice_of_a_damaged_video_misses_the_same_frames(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "damaged.mp4"
    path.write_bytes(made("h264.mp4").read_bytes())
    zero_packets(path, slice(46, 48))
    assert any(frame is None for frame in decoded(path))
    for first in range(0, 60, 4):
        assert_same(path, np.arange(first, min(first + 12, 60)))


def test_an_image_is_a_slice_of_itself(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "a.png")
    assert_same(tmp_path / "a.png", np.array([0]))


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4", "raw.264"])
def test_slices_come_through_the_decoding_child(made: Made, name: str) -> None:
    whole = probed(made(name))
    with Decoder() as decoder:
        for wanted in (np.arange(40, 60, 3), np.arange(5, 20), np.array([59])):
            part = pickle.loads(pickle.dumps(whole.slice(wanted)))
            found = []
            for frames in decoder.frames(part, wanted):
                np.testing.assert_array_equal(frames.times, whole.times[frames.frame_indices])
                for index, image in zip(frames.frame_indices, frames.images, strict=True):
                    np.testing.assert_array_equal(image, decoded(made(name))[index])
                    found.append(index)
            assert found == wanted.tolist()
        part = whole.slice(np.array([10, 20]))
        for outside in (9, 21):
            with pytest.raises(ValueError, match="`frame_indices` must be from 10 to 20"):
                decoder.frames(part, np.array([outside]))


def test_a_slice_far_in_is_reached_by_a_seek(made: Made) -> None:
    calls: list[int] = []
    part = probed(made("h264.mp4")).slice(np.array([58, 59]))
    with closing(open_reader(part, alive=lambda: calls.append(1))) as reader:
        assert reader.frame(58) is not None
    assert len(calls) <= 15  # the frames of one group of pictures


def test_a_slice_of_a_slice_is_the_slice(made: Made) -> None:
    whole = probed(made("h264.mp4"))
    direct = whole.slice(np.arange(33, 40))
    nested = whole.slice(np.arange(20, 50)).slice(np.arange(33, 40))
    assert (nested.first, nested.frames) == (direct.first, direct.frames) == (33, 7)
    for field in ("times", "pts", "keyframe_pts"):
        np.testing.assert_array_equal(getattr(nested, field), getattr(direct, field))


def test_a_slice_keeps_the_key_frames_that_decoding_it_takes() -> None:
    video = made_up(frames=1000, group=100)
    kept = {
        (250, 270): [0, 100, 200],
        (350, 530): [100, 200, 300, 400, 500],
        (400, 400): [200, 300, 400],
        (0, 99): [0],
        (50, 150): [0, 100],
    }
    for (first, last), keys in kept.items():
        assert video.slice(np.array(sorted({first, last}))).keyframe_pts.tolist() == keys
    by_count = replace(video, keyframe_pts=np.zeros(0, np.int64)).slice(np.array([250, 270]))
    assert len(by_count.keyframe_pts) == 0
    assert by_count.pts.tolist() == list(range(250, 271))


def test_the_slices_of_ten_hours_take_sixteen_bytes_a_frame() -> None:
    """Tasks of a cluster carry slices: all of a video's must be no larger than its index."""
    video = made_up(frames=900_000, group=250)
    sizes = [
        len(pickle.dumps(video.slice(np.arange(first, min(first + 2048, video.frames)))))
        for first in range(0, video.frames, 2048)
    ]
    assert len(sizes) == 440
    assert sum(sizes) <= 15.5e6
    assert max(sizes) <= 16 * 2048 + 1500
    part = video.slice(np.arange(2048))
    assert all(a.base is None for a in (part.times, part.pts, part.keyframe_pts))  # no views


@pytest.mark.parametrize(
    ("frame_indices", "says"),
    [
        ([], "at least one"),
        ([3, 2], "must ascend"),
        ([2, 2], "must ascend"),
        ([-1], "from 0 to 99"),
        ([0, 100], "from 0 to 99"),
    ],
)
def test_a_slice_is_of_frames_of_the_video(frame_indices: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        made_up(frames=100, group=10).slice(np.array(frame_indices, np.int64))


def test_the_first_frame_of_an_index_is_not_negative() -> None:
    with pytest.raises(ValueError, match="`first` must be at least 0, not -1"):
        replace(made_up(frames=10, group=5), first=-1)


def made_up(frames: int, group: int) -> Video:
    """An index of no file: pts are the frame indices, with a key frame every `group` frames."""
    return Video(
        path=Path("/data/recordings/participant-017/session-2.mp4"),
        name="participant-017/session-2.mp4",
        backend="pyav",
        width=1920,
        height=1080,
        rotation=0,
        times=np.arange(frames) / 25,
        pts=np.arange(frames),
        keyframe_pts=np.arange(0, frames, group),
        fps=25.0,
        truncated_frames=0,
        size=10**10,
        sha256="0" * 64,
    )

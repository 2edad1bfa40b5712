"""Times of clips are those of their containers, counted from the container's start."""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from made_clips import ENCODERS, FPS, FRAMES, REMUXERS, ffmpeg
from numpy.typing import NDArray
from PIL import Image

from emopipe.pipeline.media.index import probe
from emopipe.pipeline.media.sampling import sample
from emopipe.pipeline.media.timeline import NO_STAMP, seconds_since

Made = Callable[[str], Path]

MS = 1e-3
B_FRAMES_S = 0.1  # the muxer may delay presentation by this
WRAP_S = 2**33 / 90_000  # of MPEG-TS's clock; of a file that crosses it libav counts up to 0
TONE = ["-f", "lavfi", "-i", "sine=duration=2.4"]
WITHOUT_STAMPS = {"raw.264"}


def container_times(path: Path) -> NDArray[np.float64]:
    """The decoded frames' times in s on the container's clock, in the decoder's order."""
    with av.open(str(path)) as container:
        stamps = [
            float(frame.pts * frame.time_base)
            for frame in container.decode(video=0)
            if frame.pts is not None and frame.time_base
        ]
    return np.array(stamps)


@pytest.mark.parametrize("name", sorted({*ENCODERS, *REMUXERS} - WITHOUT_STAMPS))
def test_times_and_start_add_up_to_the_containers_clock(made: Made, name: str) -> None:
    video = probe(made(name), name)
    np.testing.assert_allclose(
        video.times + video.start_time, container_times(made(name)), atol=1e-6
    )
    assert not any("clock" in note or "timestamp" in note for note in video.notes)


def test_one_equal_timestamp_moves_one_frame(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "tie.mkv"
    tie = "setts=pts='if(eq(N,20),PTS-512,PTS)'"  # the 21st packet's, to that of the frame before
    ffmpeg("-i", made("h264.mp4"), "-c", "copy", "-bsf:v", tie, path)
    video = probe(path, "tie.mkv")
    expected = container_times(path)
    assert (np.diff(expected) == 0).sum() == 1
    moved = np.flatnonzero(video.times != expected)
    assert moved.tolist() == (np.flatnonzero(np.diff(expected) == 0) + 1).tolist()
    assert np.abs(video.times - expected).max() < MS
    assert video.notes == (
        "frames with the timestamp of the frame before, moved by less than 1 ms: 1",
    )


def test_the_pause_of_a_real_clip_is_kept_in_spite_of_an_equal_timestamp(shared: Path) -> None:
    path = shared / "data" / "field" / "01-pause_one_equal_stamp.mkv"
    np.testing.assert_allclose(probe(path, "01").times, container_times(path), atol=MS, rtol=0)


@pytest.fixture
def transport_stream(made: Made, tmp_path: Path) -> Callable[[float], Path]:
    """Gives a copy of a clip as MPEG-TS that starts at about a time in s."""

    def copied(start: float) -> Path:
        path = tmp_path / f"{start}.ts"
        late = ["-muxdelay", "0", "-output_ts_offset", str(start)]
        ffmpeg("-i", made("h264.mp4"), "-c", "copy", *late, path)
        return path

    return copied


@pytest.mark.parametrize(
    "starts",
    [(0, 0, 0), (46_220, 0), (0, 46_220), (100, 99.5), (100, 98.01)],
    ids=["same", "to_its_begin", "to_another", "half_a_second_back", "two_seconds_back"],
)
def test_joined_clips_go_on_from_the_jump(
    transport_stream: Callable[[float], Path], tmp_path: Path, starts: tuple[float, ...]
) -> None:
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(transport_stream(start).read_bytes() for start in starts))
    video = probe(path, "joined.ts")
    np.testing.assert_allclose(video.times, np.arange(len(starts) * FRAMES) / FPS, atol=1e-6)
    assert video.start_time == pytest.approx(starts[0], abs=B_FRAMES_S)
    assert re.fullmatch(rf"joined or restarted clocks.*: {len(starts) - 1}", video.notes[0])


def test_a_forward_jump_of_ordinary_size_is_a_pause(
    transport_stream: Callable[[float], Path], tmp_path: Path
) -> None:
    path = tmp_path / "paused.ts"
    path.write_bytes(transport_stream(0).read_bytes() + transport_stream(60).read_bytes())
    video = probe(path, "paused.ts")
    assert video.times[FRAMES] == pytest.approx(60, abs=B_FRAMES_S)
    assert video.notes == ()


@pytest.mark.parametrize("start", [0, 1.4, 46_220, 95_442.7], ids=["0", "1.4", "dvb", "wraps"])
def test_time_counts_from_the_start_of_a_transport_stream(
    transport_stream: Callable[[float], Path], start: float
) -> None:
    video = probe(transport_stream(start), "clip.ts")
    np.testing.assert_array_equal(video.times, np.arange(FRAMES) / FPS)
    assert min(abs(video.start_time - start), abs(video.start_time + WRAP_S - start)) < B_FRAMES_S
    assert sample(video, start=0.2, end=0.6).tolist() == list(range(5, 15))


def test_a_recording_of_dvb_is_found_by_its_times(shared: Path) -> None:
    video = probe(shared / "data" / "field" / "11-dvb_start.ts", "11")
    assert sample(video, start=0.2, end=0.6).tolist() == list(range(6, 18))
    assert video.start_time == pytest.approx(46_220.9)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv", "avi"])
@pytest.mark.parametrize("late", ["video", "both"])
def test_time_counts_from_the_first_of_all_streams(
    made: Made, tmp_path: Path, suffix: str, late: str
) -> None:
    path = tmp_path / f"clip.{suffix}"
    offset = ["-itsoffset", "1.5"]
    streams = [*offset, "-i", made("h264.mp4"), *(offset if late == "both" else []), *TONE]
    ffmpeg(*streams, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "libmp3lame", path)
    video = probe(path, path.name)
    np.testing.assert_allclose(video.times + video.start_time, container_times(path), atol=1e-6)
    if late == "video":
        assert video.times[0] == pytest.approx(1.5, abs=B_FRAMES_S)
    elif suffix != "avi":  # which has no clock, only a count of frames
        assert video.times[0] == pytest.approx(0, abs=B_FRAMES_S)


def test_times_that_the_container_lacks_are_said_to_be_made_up(made: Made) -> None:
    video = probe(made("raw.264"), "raw.264")
    assert video.start_time == 0
    assert video.notes == ("its frames have no usable timestamps: times are made up, 25 frames/s",)


def test_seconds_are_exact_and_missing_stamps_stay_missing() -> None:
    stamps = np.array([7 + 18_000, NO_STAMP, 7 + 54_000])
    seconds = seconds_since(Fraction(7, 90_000), stamps, Fraction(1, 90_000))
    np.testing.assert_array_equal(seconds, [0.2, np.nan, 0.6])


def test_other_video_streams_are_named_and_cover_art_is_none(made: Made, tmp_path: Path) -> None:
    small = ["-map", "0:v", "-map", "0:v", "-s:v:1", "80x48"]
    ffmpeg("-i", made("h264.mp4"), *small, tmp_path / "two.mkv")
    assert probe(tmp_path / "two.mkv", "two").notes == (
        "it has 2 video streams: stream 0 (160×96) was taken, which ffmpeg's rules choose; "
        "1 other (80×48) was left out",
    )
    Image.new("RGB", (640, 640)).save(tmp_path / "cover.png")
    cover = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:1", "attached_pic"]
    ffmpeg("-i", made("h264.mp4"), "-i", tmp_path / "cover.png", *cover, tmp_path / "song.mp4")
    assert probe(tmp_path / "song.mp4", "song").notes == ()

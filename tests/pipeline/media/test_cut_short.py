"""What a file that was cut short no longer holds is counted, and whole files are whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_clips import ENCODERS, FRAMES, REMUXERS, ffmpeg

from emopipe.pipeline.media.header import read_header
from emopipe.pipeline.media.index import probe

Made = Callable[[str], Path]

COPY = ["-c:v", "copy"]
SOURCES = {  # by container: clip, how its video and sound are encoded
    "mkv": ("h264.mp4", COPY, "libvorbis"),
    "webm": ("vp9.webm", COPY, "libopus"),
    "flv": ("h264.mp4", ["-c:v", "flv"], "libmp3lame"),
    "avi": ("mpeg4.avi", COPY, "libmp3lame"),
    "wmv": ("h264.mp4", ["-c:v", "wmv2"], "wmav2"),
    "mov": ("h264.mp4", [*COPY, "-movflags", "+faststart"], "aac"),
    "mp4": ("h264.mp4", [*COPY, "-movflags", "+faststart"], "aac"),
    "mxf": ("h264.mp4", ["-c:v", "mpeg2video", "-s", "720x576"], "pcm_s16le"),
    "ts": ("mpeg2.ts", COPY, "mp2"),
    "mpg": ("mpeg2.ts", COPY, "mp2"),
    "ogv": ("h264.mp4", ["-c:v", "libtheora"], "libvorbis"),
}
STATING = ["mkv", "webm", "flv", "avi", "wmv", "mov", "mp4", "mxf"]

Muxed = Callable[[str, float], Path]


@pytest.fixture(scope="session")
def muxed(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Muxed:
    """Gives the clip of 2.4 s in a container, with sound of so many s, or with none for 0."""
    folder = tmp_path_factory.mktemp("muxed")

    def make(suffix: str, sound_s: float) -> Path:
        path = folder / f"{sound_s}.{suffix}"
        name, video, audio = SOURCES[suffix]
        tone = ["-f", "lavfi", "-i", f"sine=duration={sound_s}:sample_rate=48000"]
        sound = [*tone, "-map", "0:v", "-map", "1:a", "-c:a", audio] if sound_s else []
        if not path.exists():
            ffmpeg("-i", made(name), *sound, *video, path)
        return path

    return make


@pytest.mark.parametrize("sound_s", [0, 2.4])
@pytest.mark.parametrize("suffix", STATING)
def test_frames_beyond_a_cut_are_counted(
    muxed: Muxed, tmp_path: Path, suffix: str, sound_s: float
) -> None:
    whole = muxed(suffix, sound_s).read_bytes()
    # Without a stated size, a cut within the tolerance of stated ends is not seen.
    off = 4 if suffix in ("flv", "mxf") else 1

    @settings(max_examples=8, deadline=None, database=None)
    @example(0.5)
    @given(st.floats(0.35, 1))
    def counted(part: float) -> None:
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(whole[: int(part * len(whole))])
        video = probe(path, path.name)
        assert video.frames + video.truncated_frames == pytest.approx(FRAMES, abs=off)
        assert len(read_header(path).times) == pytest.approx(video.frames, abs=1)

    counted()


def test_frames_beyond_the_end_of_sound_that_is_longer_are_not_counted(
    muxed: Muxed, tmp_path: Path
) -> None:
    """Where the file states the video's own end."""
    for suffix in ("mkv", "webm", "avi"):
        whole = muxed(suffix, 6).read_bytes()
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(whole[: int(0.95 * len(whole))])
        assert probe(path, suffix).truncated_frames == 0


@pytest.mark.parametrize("sound_s", [1, 6])
@pytest.mark.parametrize("suffix", SOURCES)
def test_a_video_that_is_shorter_or_longer_than_its_sound_is_whole(
    muxed: Muxed, suffix: str, sound_s: float
) -> None:
    assert probe(muxed(suffix, sound_s), suffix).truncated_frames == 0


@pytest.mark.parametrize("name", [*ENCODERS, *REMUXERS])
def test_made_clips_are_whole(made: Made, name: str) -> None:
    assert probe(made(name), name).truncated_frames == 0


def test_real_clips_are_whole_and_cut_ones_are_not(shared: Path) -> None:
    """The cut ones were made of a clip of 72 frames."""
    lost = {}
    for folder in ("videos", "field"):
        for path in (shared / "data" / folder).iterdir():
            lost[path.name] = probe(path, path.name).truncated_frames
    cut = {name: lost.pop(name) for name in ("05-trunc.avi", "05-trunc.flv", "05-trunc.mkv")}
    assert cut == {"05-trunc.avi": 54, "05-trunc.flv": 56, "05-trunc.mkv": pytest.approx(40, abs=1)}
    assert not any(lost.values())


def test_a_live_stream_that_states_nothing_is_whole(made: Made, tmp_path: Path) -> None:
    ffmpeg("-i", made("h264.mp4"), "-c", "copy", "-live", "1", tmp_path / "live.mkv")
    whole = (tmp_path / "live.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    assert probe(tmp_path / "live.mkv", "live").truncated_frames == 0
    assert probe(tmp_path / "cut.mkv", "cut").truncated_frames == 0


def test_a_segment_of_fragments_is_counted_to_its_last_frame(made: Made, tmp_path: Path) -> None:
    fragmented = ["-c", "copy", "-movflags", "frag_keyframe+empty_moov"]
    ffmpeg("-i", made("h264.mp4"), *fragmented, tmp_path / "frag.mp4")
    assert probe(tmp_path / "frag.mp4", "frag").truncated_frames == 0
    whole = (tmp_path / "frag.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: whole.rindex(b"mdat") + 100])
    video = probe(tmp_path / "cut.mp4", "cut")
    assert video.truncated_frames > 0
    assert video.frames + video.truncated_frames == FRAMES


def test_what_an_edit_list_leaves_out_is_not_missing(made: Made, tmp_path: Path) -> None:
    """Groups of pictures before its start are in the file, but are not read."""
    late = ["-avoid_negative_ts", "disabled", "-output_ts_offset", "-1", "-use_editlist", "1"]
    path = tmp_path / "trimmed.mov"
    ffmpeg("-i", made("h264.mp4"), "-c", "copy", *late, "-movflags", "+faststart", path)
    video = probe(path, "trimmed")
    assert (video.frames, video.truncated_frames) == (35, 0)
    whole = path.read_bytes()
    (tmp_path / "cut.mov").write_bytes(whole[: int(0.8 * len(whole))])
    cut = probe(tmp_path / "cut.mov", "cut")
    assert cut.truncated_frames > 0
    assert cut.frames + cut.truncated_frames == pytest.approx(35, abs=1)


@pytest.mark.parametrize("suffix", ["mkv", "webm", "avi", "wmv", "flv"])
def test_what_never_came_of_a_file_of_full_size_is_counted(
    muxed: Muxed, tmp_path: Path, suffix: str
) -> None:
    """As where a download reserves the space."""
    whole = muxed(suffix, 2.4).read_bytes()
    half = len(whole) // 2
    (tmp_path / f"zeros.{suffix}").write_bytes(whole[:half] + bytes(len(whole) - half))
    video = probe(tmp_path / f"zeros.{suffix}", suffix)
    assert 15 < video.truncated_frames < 45
    assert video.frames + video.truncated_frames == pytest.approx(FRAMES, abs=1)


@pytest.mark.parametrize("suffix", ["ts", "m2ts", "ogv"])
def test_what_stops_in_the_middle_is_cut_short_where_nothing_states_a_length(
    muxed: Muxed, tmp_path: Path, suffix: str
) -> None:
    whole = tmp_path / f"whole.{suffix}"
    source = muxed("ogv" if suffix == "ogv" else "ts", 2.4)
    ffmpeg("-i", source, "-c", "copy", whole)
    assert probe(whole, "whole").truncated_frames == 0
    content = whole.read_bytes()
    for part in (0.3, 0.5, 0.9):
        cut = tmp_path / f"cut.{suffix}"
        length = int(len(content) * part)
        cut.write_bytes(content[: length + (length % 188 == 0 or length % 192 == 0)])
        assert probe(cut, "cut").truncated_frames == 1

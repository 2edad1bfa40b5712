"""Frame indices, times and pixels of real and made clips, against what ffmpeg shows."""

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from made_clips import BT709, UNTAGGED, ffmpeg, make_flat, shown_frames, waves
from numpy.typing import NDArray

from emopipe.pipeline.media import readers
from emopipe.pipeline.media.index import probe
from emopipe.pipeline.media.readers import BACKENDS, open_reader
from emopipe.pipeline.media.video import Video, VideoError

Made = Callable[[str], Path]

GREY_LEVELS = 2.0  # two decoders' frames may differ by this on average

READ_BY_BOTH = [
    "h264.mp4",
    "vp8.webm",
    "vp9.webm",
    "mjpeg.avi",
    "rotated.mp4",
    "upside_down.mp4",
    "vfr.mp4",
    "late.mkv",
]
NOT_BY_DECORD = {
    "av1.mp4": "cannot open",
    "edit_list.mp4": "frames that are not shown",  # its indices change with a seek
    "hevc.mp4": "open groups of pictures",  # likewise
    "ten_bit.mp4": "open groups of pictures",
    "mpeg2.ts": "open groups of pictures",
    "mpeg4.avi": "open groups of pictures",
    "raw.264": "timestamps do not identify",
    "h264.avi": "differs from PyAV",
}


def decoded(video: Video) -> NDArray[np.uint8]:
    with closing(open_reader(video)) as reader:
        found = [reader.frame(index) for index in range(video.frames)]
    assert all(frame is not None for frame in found)
    return np.stack([frame for frame in found if frame is not None])


def greatest_difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Compare two sequences of frames: the worst frame's mean difference in grey levels."""
    assert a.shape == b.shape
    return float(max(np.abs(x.astype(np.int16) - y).mean() for x, y in zip(a, b, strict=True)))


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("WolfgangLanger_Pexels.mp4", 472),
        ("single_face.mp4", 72),
        ("no_face.mp4", 95),
        ("face_noface.mov", 169),
    ],
)
def test_real_clips_have_the_frames_a_player_shows(clips: Path, name: str, frames: int) -> None:
    video = probe(clips / name, name)
    assert video.frames == frames
    assert (np.diff(video.times) > 0).all()


@pytest.mark.parametrize("name", READ_BY_BOTH)
def test_both_backends_give_the_frames_that_ffmpeg_shows(made: Made, name: str) -> None:
    decord = probe(made(name), name, "decord")
    pyav = probe(made(name), name, "pyav")
    assert (decord.backend, pyav.backend) == ("decord", "pyav")
    np.testing.assert_allclose(decord.times, pyav.times, atol=1e-3)
    shown = shown_frames(made(name), pyav.height, pyav.width)
    assert greatest_difference(shown[1:], shown[:-1]) > 10 * GREY_LEVELS  # a shift would show
    assert greatest_difference(decoded(decord), shown) < GREY_LEVELS
    assert greatest_difference(decoded(pyav), shown) < GREY_LEVELS


@pytest.mark.parametrize("name", NOT_BY_DECORD)
def test_what_decord_cannot_read_fails_with_the_way_out(made: Made, name: str) -> None:
    with pytest.raises(VideoError, match=NOT_BY_DECORD[name]) as caught:
        probe(made(name), name, "decord")
    assert str(caught.value).endswith("use `backend` pyav for it.")
    video = probe(made(name), name)
    shown = shown_frames(made(name), video.height, video.width)
    assert greatest_difference(decoded(video), shown) < GREY_LEVELS


def test_a_decord_that_does_not_load_fails_with_the_way_out(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(VideoError, match=r"decord does not load .* use `backend` pyav"):
        probe(made("h264.mp4"), "h264.mp4", "decord")


def test_an_unknown_backend_is_named(made: Made) -> None:
    with pytest.raises(ValueError, match="`backend` must be one of pyav, decord, not 'vlc'"):
        probe(made("h264.mp4"), "h264.mp4", "vlc")


def test_a_backend_that_is_not_installed_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [readers.missing_backend(name) for name in BACKENDS] == [None, None]
    monkeypatch.setattr(readers, "find_spec", lambda name: None)
    said = readers.missing_backend("decord")
    assert said and said.startswith("`backend` decord: the package decord is not installed")
    assert "use `backend` pyav" in said


def test_rotation_is_applied_to_size_and_named(made: Made) -> None:
    upright, turned = (probe(made(name), name) for name in ("h264.mp4", "rotated.mp4"))
    assert (turned.width, turned.height) == (upright.height, upright.width)
    assert (upright.rotation, turned.rotation) == (0, 270)


def test_times_are_the_containers(made: Made) -> None:
    vfr = probe(made("vfr.mp4"), "vfr.mp4").times
    shown = [n for n in range(2 * len(vfr)) if n % 2 or n % 7 == 0][: len(vfr)]
    np.testing.assert_allclose(vfr - vfr[0], np.array(shown) / 25, atol=1e-3)
    late = probe(made("late.mkv"), "late.mkv")
    assert (late.times[0], late.start_time) == (0, 5)


def test_times_are_index_over_rate_where_there_are_none(made: Made) -> None:
    video = probe(made("raw.264"), "raw.264")
    np.testing.assert_allclose(video.times, np.arange(60) / 25)


def test_a_clock_that_starts_anew_does_not_mix_the_frames(made: Made, tmp_path: Path) -> None:
    part = made("mpeg2.ts").read_bytes()
    (tmp_path / "twice.ts").write_bytes(part + part)
    video = probe(tmp_path / "twice.ts", "twice.ts")
    shown = shown_frames(tmp_path / "twice.ts", video.height, video.width)
    np.testing.assert_allclose(np.diff(video.times), 1 / 25)
    assert greatest_difference(decoded(video), shown) < GREY_LEVELS


@pytest.mark.parametrize(
    ("size", "matrix", "extra"),
    [
        ("1280x720", "bt709", BT709),
        ("1280x720", "bt709", ["-bsf:v", UNTAGGED]),  # players assume BT.709 for HD
        ("160x96", "bt601", ["-bsf:v", UNTAGGED]),  # and BT.601 for smaller
        ("160x96", "bt709", BT709),
    ],
)
def test_colours_are_as_players_show_them(
    tmp_path: Path, size: str, matrix: str, extra: list[str]
) -> None:
    path = make_flat(tmp_path / "flat.mp4", size, "0xC05030", matrix, extra)
    untagged_hd = size == "1280x720" and UNTAGGED in extra
    for backend in BACKENDS:
        if backend == "decord" and untagged_hd:
            with pytest.raises(VideoError, match="HD without a colour tag"):
                probe(path, "flat", backend)
            continue
        centre = decoded(probe(path, "flat", backend))[0][40:60, 70:90]
        assert np.abs(centre.mean((0, 1)) - (0xC0, 0x50, 0x30)).max() < 5


def test_a_truncated_mp4_gives_its_good_frames(made: Made, tmp_path: Path) -> None:
    whole = made("h264.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    video = probe(path, "cut.mp4")
    assert video.frames + video.truncated_frames == 60
    shown = shown_frames(made("h264.mp4"), video.height, video.width)
    with closing(open_reader(video, threads=2)) as reader:
        found = {n: reader.frame(n) for n in range(video.frames)}
    good = {n: frame for n, frame in found.items() if frame is not None}
    assert len(good) >= video.frames - 1 > 20
    for index, frame in good.items():
        # Missing frames are not counted, so before the last few some may be skipped.
        at = round(video.times[index] * 25)
        assert greatest_difference(frame[None], shown[at][None]) < GREY_LEVELS


@pytest.fixture
def unreadable(made: Made, tmp_path: Path) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        path = tmp_path / f"{kind}.mp4"
        if kind == "empty":
            path.touch()
        elif kind == "text":
            path.write_text("To be or not to be.\n" * 100)
        elif kind == "audio":
            ffmpeg("-f", "lavfi", "-i", "sine=duration=0.5", "-c:a", "aac", path)
        elif kind == "without_index":
            ffmpeg("-i", made("h264.mp4"), "-c", "copy", path)  # the index comes last
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif kind == "header_only":
            whole = made("h264.mp4").read_bytes()
            path.write_bytes(whole[: whole.index(b"mdat") + 100])
        return path

    return make


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("text", "is not a video"),
        ("audio", "has no video"),
        ("without_index", "without its index"),
        ("header_only", "no frame that can be decoded"),
    ],
)
def test_an_unreadable_file_gets_one_sentence(
    unreadable: Callable[[str], Path], kind: str, says: str
) -> None:
    path = unreadable(kind)
    with pytest.raises(VideoError) as caught:
        probe(path, path.name)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hash_is_of_the_content(made: Made, tmp_path: Path) -> None:
    (tmp_path / "copy.mp4").write_bytes(made("h264.mp4").read_bytes())
    copy, original = probe(tmp_path / "copy.mp4", "a"), probe(made("h264.mp4"), "b")
    assert copy.sha256 == original.sha256
    assert len(copy.sha256) == 64
    assert copy.sha256 != probe(made("vfr.mp4"), "c").sha256


def test_a_small_hd_clip_is_alike_in_both_backends(tmp_path: Path) -> None:
    path = tmp_path / "hd.mp4"
    ffmpeg(*waves(1280, 720, 4), "-c:v", "libx264", "-preset", "ultrafast", *BT709, path)
    decord, pyav = (decoded(probe(path, "hd", backend)) for backend in ("decord", "pyav"))
    assert greatest_difference(decord, pyav) < GREY_LEVELS

"""Frames as players show them, against ffmpeg: pixels' shape, orientation, interlacing, HDR."""

from collections.abc import Callable
from contextlib import closing
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from made_clips import BT709, X264, ffmpeg, shown_frames, waves
from numpy.typing import NDArray

from emopipe.pipeline.media.index import probe
from emopipe.pipeline.media.readers import open_reader
from emopipe.pipeline.media.video import Video, VideoError

Made = Callable[[str], Path]

GREY_LEVELS = 2.0
"""ffmpeg and the pipeline scale and convert colours by other filters: a mean difference."""

INTERLACED = ["-c:v", "mpeg2video", "-q:v", "2", "-g", "12", "-bf", "2", "-flags", "+ilme+ildct"]


def decoded(video: Video) -> NDArray[np.uint8]:
    with closing(open_reader(video)) as reader:
        return np.stack(
            [frame for i in range(video.frames) if (frame := reader.frame(i)) is not None]
        )


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """The mean difference of two sequences of frames, in grey levels."""
    assert a.shape == b.shape
    return float(np.abs(a.astype(np.int16) - b).mean())


def comb(frames: NDArray[np.uint8]) -> float:
    """How much lines differ from the mean of their neighbours: much where two fields are mixed."""
    lines = frames.astype(np.float32)
    return float(np.abs(lines[:, 1:-1] - (lines[:, :-2] + lines[:, 2:]) / 2).mean())


def as_ffmpeg_filters(path: Path, filters: str, height: int, width: int) -> NDArray[np.uint8]:
    output = ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    frames = ffmpeg("-i", path, "-vf", filters, *output)
    return np.frombuffer(frames, np.uint8).reshape(-1, height, width, 3)


@pytest.mark.parametrize(
    ("turn", "horizontal", "vertical"),
    list(product([0, 90, 180, 270], [False, True], [False, True])),
)
def test_every_display_matrix_is_shown_as_ffmpeg_rotates_it(
    made: Made, tmp_path: Path, turn: int, horizontal: bool, vertical: bool
) -> None:
    flips = ["-display_hflip"] * horizontal + ["-display_vflip"] * vertical
    path = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", str(turn), *flips, "-i", made("h264.mp4"), "-c", "copy", path)
    video = probe(path, "turned.mp4")
    shown = shown_frames(path, video.height, video.width)
    assert difference(decoded(video), shown) < GREY_LEVELS
    assert difference(shown, shown[:, ::-1]) > 10 * GREY_LEVELS  # a flip would show
    assert difference(shown, shown[:, :, ::-1]) > 10 * GREY_LEVELS


@pytest.mark.parametrize(
    ("ratio", "turn", "size"),
    [("64/45", 0, (228, 96)), ("2", 0, (320, 96)), ("8/9", 0, (142, 96)), ("16/15", 90, (96, 171))],
)
def test_pixels_that_are_not_square_are_stretched(
    made: Made, tmp_path: Path, ratio: str, turn: int, size: tuple[int, int]
) -> None:
    squeezed, path = tmp_path / "squeezed.mp4", tmp_path / "turned.mp4"
    ffmpeg("-i", made("h264.mp4"), "-vf", f"setsar={ratio}", *X264, squeezed)
    ffmpeg("-display_rotation", str(turn), "-i", squeezed, "-c", "copy", path)
    video = probe(path, "squeezed.mp4")
    assert (video.width, video.height) == size
    assert any(note.startswith("anamorphic") for note in video.notes)
    square = f"scale={size[0]}:{size[1]}"
    assert difference(decoded(video), as_ffmpeg_filters(path, square, *size[::-1])) < GREY_LEVELS


def test_a_senseless_shape_of_pixels_is_ignored(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "senseless.mp4"
    ffmpeg("-i", made("h264.mp4"), "-vf", "setsar=1/60", *X264, path)
    assert probe(path, "senseless.mp4").width == 160


@pytest.fixture(scope="module")
def interlaced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 frames/s of fields that were filmed 50 times a second."""
    path = tmp_path_factory.mktemp("interlaced") / "interlaced.ts"
    filters = "tinterlace=interleave_top,setfield=tff"
    ffmpeg(*waves(160, 96, 60), "-vf", filters, *INTERLACED, "-pix_fmt", "yuv420p", path)
    return path


def test_interlaced_frames_are_deinterlaced_one_for_one(interlaced: Path) -> None:
    video = probe(interlaced, "interlaced.ts")
    assert video.frames == 60
    assert "interlaced: deinterlaced by bwdif" in video.notes
    shown = decoded(video)
    expected = as_ffmpeg_filters(interlaced, "bwdif=send_frame", 96, 160)
    assert difference(shown, expected) < GREY_LEVELS
    assert comb(shown) < 0.3 * comb(shown_frames(interlaced, 96, 160))


def test_deinterlacing_can_be_left_out(interlaced: Path) -> None:
    video = probe(interlaced, "interlaced.ts", deinterlace=False)
    assert "interlaced: analyzed as it is" in video.notes
    assert comb(decoded(video)) > 0.9 * comb(shown_frames(interlaced, 96, 160))


def test_a_deinterlaced_frame_is_the_same_wherever_decoding_starts(interlaced: Path) -> None:
    video = probe(interlaced, "interlaced.ts")
    expected = decoded(video)
    for first in [0, 1, 11, 12, 13, 24, 36, 59]:
        part = video.slice(np.arange(first, min(first + 3, 60)))
        with closing(open_reader(part)) as reader:
            for index in range(first, min(first + 3, 60)):
                np.testing.assert_array_equal(reader.frame(index), expected[index])
    with closing(open_reader(video)) as reader:
        for index in [48, 12, 50, 24, 0, 59, 12]:
            np.testing.assert_array_equal(reader.frame(index), expected[index])


def test_a_stream_that_is_interlaced_without_marks_is_deinterlaced(tmp_path: Path) -> None:
    path = tmp_path / "unmarked.mov"
    filters = "tinterlace=interleave_top,setfield=tff"
    ffmpeg(*waves(160, 96, 40), "-vf", filters, "-c:v", "huffyuv", "-pix_fmt", "yuv422p", path)
    video = probe(path, "unmarked.mov")
    assert video.deinterlace == "tff"
    assert comb(decoded(video)) < 0.3 * comb(shown_frames(path, 96, 160))


@pytest.mark.parametrize("size", ["4x4", "16x12", "12x16", "16x16"])
def test_frames_too_small_to_be_deinterlaced_are_shown(tmp_path: Path, size: str) -> None:
    path = tmp_path / "small.mkv"
    tiny = ["-f", "lavfi", "-i", f"color=red:size={size}:rate=25", "-frames:v", "3"]
    encoder = ["-c:v", "ffv1", "-pix_fmt", "yuv410p", "-field_order", "tt"]
    ffmpeg(*tiny, "-vf", "setfield=tff", *encoder, path)
    assert len(decoded(probe(path, "small.mkv"))) == 3


def test_an_interlaced_frame_is_the_same_with_threads(tmp_path: Path) -> None:
    path = tmp_path / "interlaced.avi"
    filters = "tinterlace=interleave_top,setfield=tff"
    moving = ["-f", "lavfi", "-i", "testsrc2=size=160x96:rate=50", "-frames:v", "40"]
    encoder = ["-c:v", "mpeg4", "-q:v", "2", "-bf", "1", "-flags", "+ilme+ildct"]
    ffmpeg(*moving, "-vf", filters, *encoder, path)
    video = probe(path, "interlaced.avi")
    with closing(open_reader(video, threads=2)) as reader:
        for index, expected in enumerate(decoded(video)):
            np.testing.assert_array_equal(reader.frame(index), expected)


def test_decord_refuses_what_it_does_not_show_as_players_do(
    interlaced: Path, made: Made, tmp_path: Path
) -> None:
    for name, options in {"flipped": ["-display_hflip"], "flopped": ["-display_vflip"]}.items():
        path = tmp_path / f"{name}.mp4"
        ffmpeg(*options, "-i", made("h264.mp4"), "-c", "copy", path)
        with pytest.raises(VideoError, match=r"does not decode .* correctly"):
            probe(path, name, "decord")
    with pytest.raises(VideoError, match=r"it is interlaced|open groups"):
        probe(interlaced, "interlaced.ts", "decord")


def test_a_frame_of_another_shape_keeps_its_shape(tmp_path: Path) -> None:
    parts = []
    for size in ("160x96", "96x160", "320x192"):
        parts.append(tmp_path / f"{size}.ts")
        width, height = map(int, size.split("x"))
        ffmpeg(*waves(width, height, 20), "-c:v", "mpeg2video", "-q:v", "2", parts[-1])
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    video = probe(path, "joined.ts")
    assert (video.width, video.height) == (160, 96)
    # At each change the decoder drops the frame that it holds back.
    assert video.frames == len(as_ffmpeg_filters(path, "scale=160:96", 96, 160)) == 58
    shown = decoded(video)
    narrow = shown[25]
    inner = slice((160 - 58) // 2, (160 - 58) // 2 + 58)  # 96:160 in 96 lines
    black = np.delete(narrow, np.arange(inner.start, inner.stop), axis=1)
    assert black.max() == 0
    alone = as_ffmpeg_filters(parts[1], "scale=58:96", 96, 58)
    assert difference(narrow[None, :, inner], alone[6:7]) < 2 * GREY_LEVELS
    large = as_ffmpeg_filters(parts[2], "scale=160:96", 96, 160)
    assert difference(shown[45:46], large[7:8]) < 2 * GREY_LEVELS


@pytest.mark.parametrize(
    ("transfer", "width"), [("smpte2084", 160), ("arib-std-b67", 160), ("smpte2084", 159)]
)
def test_hdr_is_mapped_to_the_tones_of_sdr(tmp_path: Path, transfer: str, width: int) -> None:
    sdr, hdr = tmp_path / "sdr.mkv", tmp_path / "hdr.mkv"
    ffmpeg(*waves(width, 96, 5), "-c:v", "ffv1", *BT709, sdr)
    mapped = (
        "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv,"
        "format=yuv444p,zscale=transfer=linear:npl=203,format=gbrpf32le,"
        f"zscale=primaries=bt2020:transfer={transfer}:matrix=bt2020nc:range=tv:npl=203,"
        "format=yuv444p10le,format=yuv420p10le"
    )
    ffmpeg("-i", sdr, "-vf", mapped, "-c:v", "ffv1", hdr)
    video = probe(hdr, "hdr.mkv")
    assert any(note.startswith("HDR") for note in video.notes)
    flat = shown_frames(hdr, 96, width)
    expected = shown_frames(sdr, 96, width)
    assert difference(decoded(video), expected) < 0.5 * difference(flat, expected)


def test_the_field_s_clips_are_shown_as_ffmpeg_shows_them(shared: Path) -> None:
    for name in ("02-hflip.mp4", "02-rot90_hflip.mp4"):
        path = shared / "data" / "field" / name
        video = probe(path, name)
        shown = shown_frames(path, video.height, video.width)
        assert difference(decoded(video), shown) < GREY_LEVELS

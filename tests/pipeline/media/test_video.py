"""Frame numbers, times and pictures of real and made clips, against what ffmpeg shows."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_clips import BT709, UNTAGGED, ffmpeg, make_flat, shown_frames, waves
from numpy.typing import NDArray
from PIL import Image

from emopipe.pipeline.media.index import probe
from emopipe.pipeline.media.readers import BACKENDS, open_reader
from emopipe.pipeline.media.sampling import sample
from emopipe.pipeline.media.video import Video, VideoError

Made = Callable[[str], Path]

GREY_LEVELS = 2.0  # by which two decoders' pictures may differ on average

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
READ_BY_PYAV = [
    "av1.mp4",
    "edit_list.mp4",  # decord's numbers change with a seek
    "hevc.mp4",  # open groups of pictures: likewise
    "ten_bit.mp4",
    "mpeg2.ts",
    "mpeg4.avi",
    "raw.264",
    "h264.avi",
]


def pictures(video: Video) -> NDArray[np.uint8]:
    with closing(open_reader(video)) as reader:
        found = [reader.frame(number) for number in range(video.frames)]
    assert all(picture is not None for picture in found)
    return np.stack([picture for picture in found if picture is not None])


def greatest_difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Of two sequences of pictures: the worst picture's mean difference in grey levels."""
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
    assert greatest_difference(pictures(decord), shown) < GREY_LEVELS
    assert greatest_difference(pictures(pyav), shown) < GREY_LEVELS


@pytest.mark.parametrize("name", READ_BY_PYAV)
def test_what_decord_cannot_read_goes_to_pyav(made: Made, name: str) -> None:
    video = probe(made(name), name, "decord")
    assert video.backend == "pyav"
    shown = shown_frames(made(name), video.height, video.width)
    assert greatest_difference(pictures(video), shown) < GREY_LEVELS


def test_rotation_is_applied_to_size_and_named(made: Made) -> None:
    upright, turned = (probe(made(name), name) for name in ("h264.mp4", "rotated.mp4"))
    assert (turned.width, turned.height) == (upright.height, upright.width)
    assert (upright.rotation, turned.rotation) == (0, 270)


def test_times_are_the_containers(made: Made) -> None:
    vfr = probe(made("vfr.mp4"), "vfr.mp4").times
    shown = [n for n in range(2 * len(vfr)) if n % 2 or n % 7 == 0][: len(vfr)]
    np.testing.assert_allclose(vfr - vfr[0], np.array(shown) / 25, atol=1e-3)
    assert probe(made("late.mkv"), "late.mkv").times[0] == pytest.approx(5)


def test_times_are_index_over_rate_where_there_are_none(made: Made) -> None:
    video = probe(made("raw.264"), "raw.264")
    np.testing.assert_allclose(video.times, np.arange(60) / 25)


def test_a_clock_that_starts_anew_does_not_mix_the_frames(made: Made, tmp_path: Path) -> None:
    part = made("mpeg2.ts").read_bytes()
    (tmp_path / "twice.ts").write_bytes(part + part)
    video = probe(tmp_path / "twice.ts", "twice.ts")
    shown = shown_frames(tmp_path / "twice.ts", video.height, video.width)
    np.testing.assert_allclose(np.diff(video.times), 1 / 25)
    assert greatest_difference(pictures(video), shown) < GREY_LEVELS


@pytest.mark.parametrize(
    ("size", "matrix", "extra"),
    [
        ("1280x720", "bt709", BT709),
        ("1280x720", "bt709", ["-bsf:v", UNTAGGED]),  # players take HD for BT.709
        ("160x96", "bt601", ["-bsf:v", UNTAGGED]),  # and smaller for BT.601
        ("160x96", "bt709", BT709),
    ],
)
def test_colours_are_as_players_show_them(
    tmp_path: Path, size: str, matrix: str, extra: list[str]
) -> None:
    path = make_flat(tmp_path / "flat.mp4", size, "0xC05030", matrix, extra)
    for backend in BACKENDS:
        centre = pictures(probe(path, "flat", backend))[0][40:60, 70:90]
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
    good = {n: picture for n, picture in found.items() if picture is not None}
    assert len(good) >= video.frames - 1 > 20
    for number, picture in good.items():
        # Frames are numbered without those that are gone, so the last few may skip some.
        at = round(video.times[number] * 25)
        assert greatest_difference(picture[None], shown[at][None]) < GREY_LEVELS


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
            ffmpeg("-i", made("h264.mp4"), "-c", "copy", path)  # which puts the index last
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


def image(path: Path) -> NDArray[np.uint8]:
    video = probe(path, path.name)
    assert (video.backend, video.frames, video.times.tolist()) == ("image", 1, [0.0])
    picture = pictures(video)[0]
    assert picture.shape == (video.height, video.width, 3)
    return picture


def test_transparent_pictures_lie_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :3] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    picture = image(tmp_path / "a.png")
    assert picture[0, 0].tolist() == [10, 20, 30]
    assert picture[0, 5].tolist() == [255, 255, 255]


def test_exif_turns_pictures(tmp_path: Path) -> None:
    rgb = np.zeros((40, 80, 3), np.uint8)
    rgb[:, :40] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise for display: left becomes top
    Image.fromarray(rgb).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    picture = image(tmp_path / "turned.jpg")
    assert picture.shape == (80, 40, 3)
    assert picture[10].mean() > 250
    assert picture[-10].mean() < 5


def test_cmyk_grey_16_bit_and_animated_pictures_become_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 40))
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(image(tmp_path / "cmyk.jpg")[8, 8] - np.array([200, 30, 40])).max() < 5
    deep = np.full((16, 16), 0x80FF, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert (image(tmp_path / "deep.png") == 0x80).all()
    blue = Image.new("RGB", (16, 16), (0, 0, 255))
    red.save(tmp_path / "two.webp", save_all=True, append_images=[blue], lossless=True)
    assert (image(tmp_path / "two.webp") == (200, 30, 40)).all()


def test_a_broken_picture_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(VideoError, match="not an image that Pillow can read"):
        probe(tmp_path / "text.jpg", "text.jpg")


def test_the_hash_is_of_the_content(made: Made, tmp_path: Path) -> None:
    (tmp_path / "copy.mp4").write_bytes(made("h264.mp4").read_bytes())
    copy, original = probe(tmp_path / "copy.mp4", "a"), probe(made("h264.mp4"), "b")
    assert copy.sha256 == original.sha256
    assert len(copy.sha256) == 64
    assert copy.sha256 != probe(made("vfr.mp4"), "c").sha256


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
    numbers = sample(video, fps=fps)
    taken = video.times[numbers]
    assert (np.diff(numbers) > 0).all()
    assert numbers[0] == 0
    for tick in np.arange(video.times[0], video.times[-1], 1 / fps):
        earliest = tick - 1e-3  # the tolerance for rounded times
        first_taken = taken[taken > earliest - 1e-9][0]
        between = (video.times > earliest + 1e-9) & (video.times < first_taken)
        assert not between.any()
    assert len(numbers) <= np.ptp(video.times) * fps + 2


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


def test_a_small_hd_clip_is_alike_in_both_backends(tmp_path: Path) -> None:
    path = tmp_path / "hd.mp4"
    ffmpeg(*waves(1280, 720, 4), "-c:v", "libx264", "-preset", "ultrafast", *BT709, path)
    decord, pyav = (pictures(probe(path, "hd", backend)) for backend in ("decord", "pyav"))
    assert greatest_difference(decord, pyav) < GREY_LEVELS

"""Image files, against the pictures they were made of: every picture is a frame with its time."""

from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
from made_clips import ffmpeg, waves
from made_heic import make_heic
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.data import astronaut

from emopipe.pipeline.media import images
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.media.header import read_header
from emopipe.pipeline.media.index import probe
from emopipe.pipeline.media.readers import open_reader
from emopipe.pipeline.media.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES, way_out
from emopipe.pipeline.media.video import Video, VideoError

Frame = NDArray[np.uint8]

DURATIONS_MS = [40, 100, 30, 250, 20, 70]
STARTS_S = [0.0, 0.04, 0.14, 0.17, 0.42, 0.44]
WIDTH, HEIGHT = 120, 80

GREY_LEVELS = 3.0  # a lossy or palette image may differ by this on average


def pictures() -> list[Image.Image]:
    """Noise that moves over a ground which stays: a picture shows what those before it left."""
    noise = np.random.default_rng(0).integers(0, 216, (40, 40, 1), np.uint8).repeat(3, axis=2)
    made = []
    for n in range(len(DURATIONS_MS)):
        image = Image.new("RGB", (WIDTH, HEIGHT), (0, 102, 204))
        image.paste(Image.fromarray(noise), (10 * n, 20))
        ImageDraw.Draw(image).rectangle((0, 70, 20 * n, 79), (255, 51, 0))
        made.append(image)
    return made


def save(path: Path, made: list[Image.Image], **options: object) -> Path:
    options.setdefault("duration", DURATIONS_MS)
    made[0].save(path, save_all=True, append_images=made[1:], **options)
    return path


def frames(video: Video) -> list[Frame | None]:
    with closing(open_reader(video)) as reader:
        return [reader.frame(index) for index in range(video.frames)]


def spoilt(whole: bytes, at: int) -> bytes:
    """Change six bytes."""
    return whole[:at] + bytes(byte ^ 0x5A for byte in whole[at : at + 6]) + whole[at + 6 :]


def is_close(frame: Frame | None, image: Image.Image) -> bool:
    assert frame is not None
    return bool(np.abs(frame.astype(np.int16) - np.asarray(image)).mean() < GREY_LEVELS)


def image(path: Path) -> Frame:
    video = probe(path, path.name)
    assert (video.backend, video.frames, video.times.tolist()) == ("image", 1, [0.0])
    header = read_header(path)
    assert (header.times.tolist(), header.seconds) == ([0.0], 0.0)
    (frame,) = frames(video)
    assert frame is not None and frame.shape == (video.height, video.width, 3)
    return frame


def test_transparent_images_lie_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :3] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    shown = image(tmp_path / "a.png")
    assert shown[0, 0].tolist() == [10, 20, 30]
    assert shown[0, 5].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_exif_turns_images(tmp_path: Path, suffix: str) -> None:
    rgb = np.zeros((40, 80, 3), np.uint8)
    rgb[:, :40] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise for display: left becomes top
    Image.fromarray(rgb).save(tmp_path / f"turned{suffix}", exif=exif)
    shown = image(tmp_path / f"turned{suffix}")
    assert shown.shape == (80, 40, 3)
    assert shown[10].mean() > 250
    assert shown[-10].mean() < 5


def test_cmyk_grey_and_16_bit_images_become_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 40))
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(image(tmp_path / "cmyk.jpg")[8, 8] - np.array([200, 30, 40])).max() < 5
    deep = np.full((16, 16), 0x80FF, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert (image(tmp_path / "deep.png") == 0x80).all()
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(VideoError, match="save it with 8 bits"):
        probe(tmp_path / "float.tif", "float.tif")


def test_a_broken_image_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(VideoError, match="not an image that Pillow can read"):
        probe(tmp_path / "text.jpg", "text.jpg")


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".gif", {"disposal": 1}),
        (".gif", {"disposal": 2}),
        (".png", {"disposal": 0}),
        (".png", {"disposal": 1, "blend": 1}),
        (".webp", {"lossless": True}),
        (".avif", {"quality": 95}),
    ],
)
def test_every_picture_of_an_animation_is_a_frame_with_its_time(
    tmp_path: Path, suffix: str, options: dict[str, object]
) -> None:
    made = pictures()
    path = save(tmp_path / f"a{suffix}", made, **options)
    video = probe(path, path.name)
    assert (video.width, video.height, video.truncated_frames) == (WIDTH, HEIGHT, 0)
    np.testing.assert_allclose(video.times, STARTS_S, atol=1e-3)
    assert video.fps == pytest.approx(5 / 0.44, rel=0.01)
    header = read_header(path)
    np.testing.assert_array_equal(header.times, video.times)
    assert header.seconds == pytest.approx(0.51)
    shown = frames(video)
    assert all(map(is_close, shown, made))
    part = video.slice(np.array([2, 4]))
    with closing(open_reader(part)) as reader:  # whatever is asked first
        for index in (4, 2, 3):
            np.testing.assert_array_equal(reader.frame(index), shown[index])


def test_an_apng_does_not_show_its_default_image(tmp_path: Path) -> None:
    made = pictures()
    default = Image.new("RGB", (WIDTH, HEIGHT), "white")
    path = save(tmp_path / "a.apng", [default, *made], format="PNG", default_image=True)
    video = probe(path, path.name)
    np.testing.assert_allclose(video.times, STARTS_S)
    assert all(map(is_close, frames(video), made))


def test_pictures_without_a_usable_duration_last_as_in_browsers(tmp_path: Path) -> None:
    path = save(tmp_path / "a.gif", pictures(), duration=[0, 10, 20, 0, 30, 40])
    video = probe(path, path.name)
    np.testing.assert_allclose(video.times, [0, 0.1, 0.2, 0.22, 0.32, 0.35])
    assert "3 pictures that state at most 10 ms" in video.notes[0]


def test_pages_of_a_tiff_are_a_second_apart_and_of_one_size(tmp_path: Path) -> None:
    made = pictures()
    tall = made[1].resize((HEIGHT, HEIGHT))
    path = save(tmp_path / "a.tif", [made[0], tall, *made[2:]])
    video = probe(path, path.name)
    assert video.times.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert video.notes == ("the 6 pages have no times: they are shown for 1 s each",)
    assert read_header(path).seconds == 6.0
    shown = frames(video)
    assert all(is_close(shown[n], made[n]) for n in (0, 2, 3, 4, 5))
    assert shown[1] is not None and not shown[1][:, : (WIDTH - HEIGHT) // 2].any()
    assert is_close(shown[1][:, (WIDTH - HEIGHT) // 2 : (WIDTH + HEIGHT) // 2], tall)


def test_a_smaller_copy_in_a_tiff_is_no_frame(tmp_path: Path) -> None:
    one, two, *_ = pictures()
    small = one.resize((12, 8))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    path = save(tmp_path / "a.tif", [one, small, two])
    video = probe(path, path.name)
    assert video.frames == 2
    assert all(map(is_close, frames(video), (one, two)))


def test_of_a_stereo_photo_the_first_picture_is_taken(tmp_path: Path) -> None:
    one, two, *_ = pictures()
    path = save(tmp_path / "a.jpg", [one, two], format="MPO", quality=95)
    assert is_close(image(path), one)
    assert "the first of 2 pictures was taken" in probe(path, "a").notes[0]


def test_a_damaged_picture_costs_what_builds_on_it_up_to_one_that_covers_all(
    tmp_path: Path,
) -> None:
    made = pictures()
    made[4] = Image.fromarray(255 - np.asarray(made[4]))
    path = save(tmp_path / "a.png", made)
    parts = path.read_bytes().split(b"fdAT")
    middle = len(parts[2]) // 2
    parts[2] = spoilt(parts[2], middle)
    path.write_bytes(b"fdAT".join(parts))  # the picture after part 2's marker is picture 2
    shown = frames(probe(path, "a.png"))
    assert [frame is None for frame in shown] == [False, False, True, True, False, False]
    assert all(is_close(shown[n], made[n]) for n in (0, 1, 4, 5))


@pytest.mark.parametrize("suffix", [".gif", ".png", ".tif"])
def test_damage_anywhere_costs_some_pictures_and_is_told(tmp_path: Path, suffix: str) -> None:
    made = pictures()
    options = {"compression": "tiff_adobe_deflate"} if suffix == ".tif" else {}
    path = save(tmp_path / f"a{suffix}", made, **options)
    whole = path.read_bytes()
    missed = 0
    for at in range(len(whole) // 4, len(whole) * 3 // 4, len(whole) // 25):
        path.write_bytes(spoilt(whole, at))
        video = probe(path, path.name)
        shown = frames(video)
        good = [n for n, frame in enumerate(shown) if frame is not None]
        # GIF and TIFF have no checksums: damage that can be decoded cannot be told.
        assert suffix != ".png" or all(is_close(shown[n], made[n]) for n in good)
        assert len(good) >= 1
        missed += len(shown) - len(good)
        assert len(shown) == 6 or video.truncated_frames
    assert missed >= 3


@pytest.mark.parametrize("suffix", [".gif", ".png", ".tif"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_what_a_file_that_was_cut_short_lacks_is_told(
    tmp_path: Path, suffix: str, share: float
) -> None:
    made = pictures()
    path = save(tmp_path / f"a{suffix}", made)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    video = probe(path, path.name)
    good = [n for n, frame in enumerate(frames(video)) if frame is not None]
    assert good == list(range(len(good))) and 1 <= len(good) < 6
    assert len(good) < video.frames or video.truncated_frames
    assert all(map(is_close, frames(video)[: len(good)], made))


def test_an_animation_comes_through_the_decoder(tmp_path: Path) -> None:
    made = pictures()
    path = save(tmp_path / "a.webp", made, lossless=True)
    with Decoder() as decoder:
        assert len(decoder.read_header(path).times) == 6
        video = decoder.probe(path, "a.webp")
        found = [
            (time, is_close(frame.copy(), made[index]))
            for some in decoder.frames(video, np.array([1, 3, 5]))
            for index, time, frame in zip(some.frame_indices, some.times, some.images, strict=True)
        ]
    assert found == [(pytest.approx(STARTS_S[n]), True) for n in (1, 3, 5)]


def test_a_photo_beyond_the_limit_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (200, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 20_000)
    assert image(tmp_path / "large.png").shape == (100, 200, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 19_998)
    with pytest.raises(VideoError, match=r"million pixels\. Save it smaller"):
        probe(tmp_path / "large.png", "large.png")


def test_a_photo_of_200_megapixels_is_read_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    Image.new("L", (20_000, 10_000), 90).save(tmp_path / "large.jpg")
    limit = Image.MAX_IMAGE_PIXELS
    video = probe(tmp_path / "large.jpg", "large.jpg")
    assert (video.width, video.height) == (20_000, 10_000)
    assert not recwarn.list and limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(("turns", "rotation"), [(0, 0), (1, 270), (3, 90)])
def test_heic_photos_are_read_and_turned(tmp_path: Path, turns: int, rotation: int) -> None:
    photo = astronaut()[:384]
    path = make_heic(tmp_path / "a.heic", photo, quarter_turns=turns)
    video = probe(path, path.name)
    assert (video.frames, video.rotation) == (1, rotation)
    (frame,) = frames(video)
    assert is_close(frame, Image.fromarray(np.rot90(photo, turns)))


def test_a_heic_photo_in_tiles_is_not_taken_for_one_of_them(tmp_path: Path) -> None:
    path = make_heic(tmp_path / "a.heic", astronaut()[:384], tiles=2)
    with pytest.raises(VideoError, match=r"a.heic .*stored in tiles.*Convert it to JPEG"):
        probe(path, path.name)


@pytest.mark.parametrize("name", ["09-clip.gif", "10-anim.webp"])
def test_real_animations_have_the_pictures_that_pillow_counts(shared: Path, name: str) -> None:
    path = shared / "data" / "field" / name
    video = probe(path, name)
    with Image.open(path) as file:
        assert video.frames == getattr(file, "n_frames", 1)
    assert video.frames == 24
    if name.endswith(".gif"):
        with av.open(path) as container:
            times = [float(frame.time or 0) for frame in container.decode(video=0)]
        np.testing.assert_allclose(video.times, times, atol=1e-3)
    assert all(frame is not None for frame in frames(video))


def test_the_real_photo_with_the_suffix_heic_is_read(shared: Path) -> None:
    video = probe(shared / "data" / "field" / "09-photo.heic", "09-photo.heic")
    assert (video.frames, video.width, video.height) == (1, 640, 360)


PILLOW_KINDS = {
    "JPEG": [".jpg", ".jpeg", ".jpe", ".jfif"],
    "MPO": [".mpo"],
    "PNG": [".png", ".apng"],
    "GIF": [".gif"],
    "WEBP": [".webp"],
    "AVIF": [".avif", ".avifs"],
    "BMP": [".bmp", ".dib"],
    "TIFF": [".tif", ".tiff"],
    "TGA": [".tga"],
    "PPM": [".ppm", ".pgm", ".pbm", ".pnm"],
    "JPEG2000": [".jp2", ".j2k", ".jpf", ".jpx"],
}


def test_every_suffix_of_an_image_is_read(tmp_path: Path) -> None:
    photo = Image.fromarray(astronaut()).resize((64, 48))
    for kind, suffixes in PILLOW_KINDS.items():
        for suffix in suffixes:
            path = tmp_path / f"a{suffix.upper()}"
            photo.convert({".pgm": "L"}.get(suffix, "RGB")).save(path, format=kind)
            assert image(path).shape == (48, 64, 3)
    assert {one for suffixes in PILLOW_KINDS.values() for one in suffixes} == IMAGE_SUFFIXES


FFMPEG_KINDS = {
    "-f mp4 -c:v mpeg4": [".mp4", ".m4v", ".mp4v", ".mpeg4", ".f4v"],
    "-f mov -c:v mjpeg": [".mov", ".qt"],
    "-f mp4 -c:v jpeg2000": [".mj2"],
    "-f 3gp -c:v h263": [".3gp", ".3gpp", ".3g2"],
    "-f matroska -c:v mpeg4": [".mkv", ".mk3d"],
    "-f webm -c:v libvpx": [".webm"],
    "-f ivf -c:v libvpx": [".ivf"],
    "-f obu -c:v libaom-av1 -cpu-used 8": [".obu"],
    "-f ogg -c:v libtheora": [".ogv", ".ogm"],
    "-f nut -c:v mpeg4": [".nut"],
    "-f avi -c:v mpeg4": [".avi", ".divx", ".xvid"],
    "-f dv -s 720x576": [".dv", ".dif"],
    "-f mxf -c:v mpeg2video": [".mxf"],
    "-f gxf -c:v mpeg2video -s 720x576": [".gxf"],
    "-f asf -c:v wmv2": [".wmv", ".wm", ".asf"],
    "-f wtv -c:v mpeg2video": [".wtv"],
    "-f flv -c:v flv": [".flv"],
    "-f rm -c:v rv20": [".rm", ".rmvb"],
    "-f vob -c:v mpeg2video": [
        *(".mpg", ".mpeg", ".mpe", ".m2p", ".vob", ".evo", ".vro", ".mod"),
    ],
    "-f mpeg1video -c:v mpeg1video": [".m1v"],
    "-f mpeg2video -c:v mpeg2video": [".m2v", ".mpv", ".mp2v"],
    "-f mpegts -c:v mpeg2video": [".tod", ".ts", ".mts", ".m2t", ".m2ts", ".tp", ".trp"],
    "-f mjpeg -c:v mjpeg": [".mjpeg", ".mjpg"],
    "-f h264 -c:v libx264": [".h264", ".264", ".avc"],
    "-f hevc -c:v libx265": [".hevc", ".h265", ".265", ".heic", ".heif", ".hif"],
    "-f yuv4mpegpipe": [".y4m"],
}


def test_every_suffix_of_a_video_is_read(tmp_path: Path) -> None:
    made = tmp_path / "waves"
    for options, suffixes in FFMPEG_KINDS.items():
        ffmpeg(*waves(176, 144, 5), "-pix_fmt", "yuv420p", *options.split(), "-y", made)
        for suffix in suffixes:
            path = tmp_path / f"a{suffix.upper()}"
            path.write_bytes(made.read_bytes())
            assert probe(path, path.name).frames == 5, suffix
    assert {one for suffixes in FFMPEG_KINDS.values() for one in suffixes} == VIDEO_SUFFIXES


def test_for_files_of_other_kinds_the_way_out_is_known() -> None:
    assert way_out(".CR2") == "it is a camera's raw photo: export it as JPEG"
    assert way_out(".zip") == "it is an archive: unpack it"
    assert way_out(".docx") is None
    assert not any(way_out(suffix) for suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES)

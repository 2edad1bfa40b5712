"""Images, which Pillow reads: each is a video with a frame for every picture in the file."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from emopipe.pipeline.media.animations import Picture, read_animation
from emopipe.pipeline.media.container import ReadError
from emopipe.pipeline.media.video import HeaderInfo, Video
from emopipe.pipeline.storage import storage_for

IMAGE = "image"
"""What `Video.backend` says of an image, which Pillow reads."""

MAX_PIXELS = 250_000_000
"""The largest picture that is read: phones make 200 million pixels. The decoding child takes 2.5 GB
for it."""

STRIP_ROWS = 512
"""Rows that are taken from Pillow at a time, which briefly takes their memory three times."""

PAGE_S = 1.0
"""Pages of a TIFF have no times: page n is shown at n seconds."""

COMPOSED = ("GIF", "PNG", "WEBP")
"""Formats, by Pillow's names, in which a picture may show what those before it left."""

UPRIGHT, SIDEWAYS = 1, 5
"""Of EXIF's orientations; from the second on, width and height change places."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns pictures of the other orientations upright. (`ImageOps.exif_transpose` also writes the
EXIF anew, which fails where a camera wrote it oddly.)"""

REDUCED, MASK = 1, 4
"""Bits of TIFF 6.0's NewSubfileType: a page is a smaller copy, or a mask, of another."""


@dataclass(frozen=True)
class _Pictures:
    """The pictures in a file that are frames.

    Attributes:
        numbers: Their numbers as Pillow counts, ascending.
        times: When each is shown, in s.
        seconds: Duration of all; 0 for a still image.
        keys: Numbers of those that need no other picture, where some do.
        lost: Number of further pictures, which the file, cut short, no longer holds.
        notes: What is remarkable about them.
    """

    numbers: list[int]
    times: NDArray[np.float64]
    seconds: float
    keys: tuple[int, ...] = ()
    lost: int = 0
    notes: tuple[str, ...] = ()


def read_image_header(path: Path) -> HeaderInfo:
    """Count the pictures of an image file and read their times.

    Raises:
        ReadError: Pillow cannot read it.
    """
    with _errors_told(path), Image.open(path) as file:
        pictures = _pictures(path, file)
    return HeaderInfo(pictures.times, pictures.seconds)


def probe_image(path: Path, name: str, size: int, alive: Callable[[], None]) -> Video:
    """Index an image file: a frame for each picture, of the size of the first.

    Args:
        path: The file.
        name: What the results call it.
        size: Bytes of the file.
        alive: Called for each picture that is decoded.

    Raises:
        ReadError: Pillow cannot read it, or no picture in it.
    """
    with _errors_told(path), Image.open(path) as file:
        pictures = _pictures(path, file)
    width, height = _size(path, pictures.numbers, alive)
    count = len(pictures.numbers)
    return Video(
        path=path,
        name=name,
        backend=IMAGE,
        width=width,
        height=height,
        rotation=0,
        times=pictures.times,
        pts=np.array(pictures.numbers, np.int64),
        keyframe_pts=np.array(pictures.keys, np.int64),
        fps=float((count - 1) / np.ptp(pictures.times)) if count > 1 else 0.0,
        truncated_frames=pictures.lost,
        size=size,
        sha256=storage_for(path).sha256(path),
        notes=pictures.notes,
    )


def load_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as (height, width, 3) uint8 RGB as displayed.

    Rotated as its EXIF says; alpha composited on white; 16 bits scaled to 8; of several pictures
    the first.

    Raises:
        ReadError: Pillow cannot read it.
    """
    with _errors_told(path), Image.open(path) as file:
        _load(file, 0)
        return _to_rgb(_upright(file))


class ImageReader:
    """The pictures of an image file; in an animation, each with what it builds on."""

    def __init__(self, video: Video, alive: Callable[[], None] = lambda: None) -> None:
        self._video = video
        self._alive = alive
        self._open()

    def _open(self) -> None:
        with _errors_told(self._video.path):
            self._file = Image.open(self._video.path)
        self._at = -1  # the picture that was decoded last
        self._is_whole = True  # whether nothing that it builds on was damaged

    def frame(self, index: int) -> NDArray[np.uint8] | None:
        """See `readers.Reader`."""
        wanted = int(self._video.pts[index - self._video.first])
        if wanted <= self._at:
            self.close()
            self._open()
        keys = self._video.keyframe_pts
        if not len(keys):
            return self._shown() if self._decode(wanted) else None
        if not self._is_whole and not ((self._at < keys) & (keys <= wanted)).any():
            return None
        for number in range(self._at + 1, wanted + 1):
            is_good = self._decode(number)
            self._is_whole = is_good and (self._is_whole or number in keys)
        return self._shown() if self._is_whole else None

    def _decode(self, number: int) -> bool:
        """Decode a picture; return whether it is undamaged."""
        self._alive()
        self._at = number
        try:
            with _errors_told(self._video.path):
                _load(self._file, number)
        except ReadError:
            return False
        return True

    def _shown(self) -> NDArray[np.uint8]:
        image, size = _upright(self._file), (self._video.width, self._video.height)
        return _to_rgb(image if image.size == size else ImageOps.pad(image, size))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def _errors_told(path: Path) -> Iterator[None]:
    """Let Pillow read pictures of up to `MAX_PIXELS`, and say in a sentence what it cannot read."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # beyond it Pillow warns, beyond twice that it raises
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError as error:
        raise ReadError(
            f"{path} has more than {MAX_PIXELS / 1e6:.0f} million pixels. Save it smaller."
        ) from error
    except Exception as error:  # a broken file can cause any
        raise ReadError(
            f"{path} is not an image that Pillow can read ({error}). "
            f"Check that it is one and complete."
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _pictures(path: Path, file: Image.Image) -> _Pictures:
    """Find the pictures of a file that are frames, and when each is shown."""
    if file.format == "TIFF":
        return _pages(file)
    count = getattr(file, "n_frames", 1)
    if file.format == "AVIF" and count > 1:
        return _clocked([_avif_picture(file, number) for number in range(count)])
    if file.format in COMPOSED and (animation := read_animation(path)):
        return _clocked(list(animation.pictures), animation.first, animation.lost)
    note = f"the first of {count} pictures was taken: the others are previews or a second eye"
    is_mpo = file.format == "MPO" and count > 1
    return _Pictures([0], np.zeros(1), 0.0, notes=(note,) if is_mpo else ())


def _avif_picture(file: Image.Image, number: int) -> Picture:
    file.seek(number)
    file.load()  # it tells the duration
    return Picture(float(file.info["duration"]) / 1000, is_key=False)


def _clocked(pictures: list[Picture], first: int = 0, lost: int = 0) -> _Pictures:
    ends = np.cumsum([picture.seconds for picture in pictures])
    slowed = sum(picture.seconds != picture.stated_s for picture in pictures)
    is_still = len(pictures) == 1
    note = f"{slowed} pictures that state at most 10 ms are shown for 100 ms, as browsers do"
    return _Pictures(
        numbers=[first + n for n in range(len(pictures))],
        times=np.append(0.0, ends[:-1]).astype(np.float64),
        seconds=0.0 if is_still else float(ends[-1]),
        keys=tuple(first + n for n, picture in enumerate(pictures) if picture.is_key),
        lost=lost,
        notes=(note,) if slowed and not is_still else (),
    )


def _pages(file: Image.Image) -> _Pictures:
    """Find the pages of a TIFF, but for those that are copies or masks of another."""
    numbers, lost = [], 0
    for number in itertools.count():
        try:
            file.seek(number)
        except EOFError:
            break
        except Exception:  # a broken directory can cause any: where the next is, is lost with it
            lost = 1
            break
        assert isinstance(file, TiffImagePlugin.TiffImageFile)
        if not file.tag_v2.get(ExifTags.Base.NewSubfileType, 0) & (REDUCED | MASK):
            numbers.append(number)
    pages = len(numbers)
    note = f"the {pages} pages have no times: they are shown for {PAGE_S:g} s each"
    return _Pictures(
        numbers=numbers or [0],
        times=np.arange(max(1, pages), dtype=np.float64) * PAGE_S,
        seconds=pages * PAGE_S if pages > 1 else 0.0,
        lost=lost,
        notes=(note,) if pages > 1 else (),
    )


def _size(path: Path, numbers: list[int], alive: Callable[[], None]) -> tuple[int, int]:
    """Width and height as displayed of the first picture that can be decoded."""
    with _errors_told(path):
        for number in numbers:
            alive()
            with Image.open(path) as file:
                try:
                    _load(file, number)
                except Exception:
                    if number == numbers[-1]:
                        raise
                    continue
                return file.size if _orientation(file) < SIDEWAYS else file.size[::-1]
    raise AssertionError("a file has at least one picture")


def _load(file: Image.Image, number: int) -> None:
    file.seek(number)
    if file.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers of unknown range: save it with 8 bits"
        )
    file.load()


def _upright(file: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says; without need it is not copied."""
    orientation = _orientation(file)
    return file if orientation == UPRIGHT else file.transpose(TURNS[orientation])


def _orientation(file: Image.Image) -> int:
    try:
        stated = file.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # broken EXIF can cause any; viewers show the picture all the same
        return UPRIGHT
    return stated if isinstance(stated, int) and stated in TURNS else UPRIGHT


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP_ROWS):
        bottom = min(image.height, top + STRIP_ROWS)
        rgb[top:bottom] = _strip_to_rgb(image.crop((0, top, image.width, bottom)))
    return rgb


def _strip_to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits, stored in 16 or 32
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))

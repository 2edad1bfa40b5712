"""The clock of GIF, APNG and WebP animations, from the structure of the file, without decoding."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SHORTEST_S = 0.01
SLOW_S = 0.1
"""Durations of up to 10 ms are shown for 100 ms: so do Chromium, Firefox and WebKit, since old
programs wrote 0 where they meant "as usual"."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """One picture of an animation, as its header describes it.

    Attributes:
        stated_s: Its duration in s as the file states it.
        is_key: Whether it covers all that was shown before it, so that it needs no other picture.
    """

    stated_s: float
    is_key: bool

    @property
    def seconds(self) -> float:
        """How long it is shown."""
        return SLOW_S if self.stated_s <= SHORTEST_S else self.stated_s


@dataclass(frozen=True)
class Animation:
    """The pictures of an animation.

    Attributes:
        pictures: Those that are there to their last byte, in order.
        lost: Number of further ones that the file states or begins, at least.
        first: Number of pictures before them that are not shown: an APNG's default image.
    """

    pictures: tuple[Picture, ...]
    lost: int = 0
    first: int = 0


class _Found:
    """Collects what a file's structure says, up to where the file is damaged or ends."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self.stated = 0
        self.first = 0

    def add(self, stated_s: float, covers_all: bool) -> None:
        """Add a picture. Before the first one there is nothing that could show through it."""
        self.pictures.append(Picture(stated_s, covers_all or not self.pictures))


def read_animation(path: Path) -> Animation | None:
    """Read the structure of an animation.

    Returns:
        None for any other file, a still image, and a file without one whole picture.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(16)
        walk = next((walk for is_kind, walk in _KINDS if is_kind(start)), None)
        if walk is None:
            return None
        found = _Found()
        try:
            walk(file, found)
        except EOFError:
            found.stated = max(found.stated, len(found.pictures) + 1)
        if not found.pictures:
            return None
        lost = max(0, found.stated - len(found.pictures))
        return Animation(tuple(found.pictures), lost, found.first)


def _read(file: BinaryIO, count: int) -> bytes:
    """Read exactly so many bytes; EOFError where there are fewer."""
    content = file.read(count)
    if len(content) < count:
        raise EOFError
    return content


def _skip(file: BinaryIO, count: int) -> None:
    """Pass so many bytes, of which the last must be there."""
    if count:
        file.seek(count - 1, 1)
        _read(file, 1)


def _walk_gif(file: BinaryIO, found: _Found) -> None:
    """Walk through the blocks of a GIF (version 89a)."""
    file.seek(6)
    canvas = _read(file, 4)
    _skip_palette(file, *_read(file, 3)[:1])
    delay_s, transparent = 0.0, False
    while (kind := _read(file, 1)) != b";":
        if kind == b"!":
            label, block = _read(file, 1), _sub_blocks(file)
            if label == b"\xf9" and len(block) >= 4:  # graphic control extension
                delay_s = struct.unpack_from("<H", block, 1)[0] / 100
                transparent = bool(block[0] & 1)
        elif kind == b",":
            found.stated = len(found.pictures) + 1
            corner, size, flags = struct.unpack("<4s4sB", _read(file, 9))
            _skip_palette(file, flags)
            _skip(file, 1)  # code size
            _sub_blocks(file)
            found.add(delay_s, not transparent and corner == bytes(4) and size == canvas)
            delay_s, transparent = 0.0, False
        elif kind != b"\0":  # zeros are tolerated as padding
            raise EOFError


def _skip_palette(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        _skip(file, 3 << ((flags & 7) + 1))


def _sub_blocks(file: BinaryIO) -> bytes:
    """Pass data that is cut into blocks; return the first block."""
    first = b""
    while length := _read(file, 1)[0]:
        block = _read(file, length)
        first = first or block
    return first


def _walk_png(file: BinaryIO, found: _Found) -> None:
    """Walk through the chunks of a PNG (third edition, with animation)."""
    file.seek(len(PNG_SIGNATURE))
    canvas, header, has_control = b"", None, False
    while True:
        length, kind = struct.unpack(">I4s", _read(file, 8))
        if kind in (b"fcTL", b"IEND") and header:
            _add_png_picture(header, canvas, found)
            header = None
        if kind == b"IEND":
            return
        if kind == b"IDAT" and not has_control:
            if not found.stated:
                return  # a still image
            found.first = 1
        content = _read(file, min(length, 26))
        _skip(file, length - len(content) + 4)
        if kind == b"IHDR":
            canvas = content[:8]
        elif kind == b"acTL":
            (found.stated,) = struct.unpack_from(">I", content)
        elif kind == b"fcTL":
            header, has_control = content, True


def _add_png_picture(header: bytes, canvas: bytes, found: _Found) -> None:
    size, corner, delay, unit, blends = struct.unpack_from(">4x8s8sHHxB", header)
    found.add(delay / (unit or 100), not blends and corner == bytes(8) and size == canvas)


def _walk_webp(file: BinaryIO, found: _Found) -> None:
    """Walk through the chunks of a WebP file (RFC 9649)."""
    file.seek(4)
    end = 8 + int.from_bytes(_read(file, 4), "little")
    file.seek(12)
    while file.tell() < end:
        kind, length = struct.unpack("<4sI", _read(file, 8))
        if kind in (b"VP8 ", b"VP8L"):
            return  # a still image
        content = _read(file, min(length, 16))
        _skip(file, length + length % 2 - len(content))
        if kind == b"ANMF":
            found.stated = len(found.pictures) + 1
            duration_ms = int.from_bytes(content[12:15], "little")
            # libwebp does not go on behind damage, whatever the pictures cover.
            found.add(duration_ms / 1000, covers_all=False)


_KINDS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, _Found], None]], ...] = (
    (lambda start: start[:6] in (b"GIF87a", b"GIF89a"), _walk_gif),
    (lambda start: start.startswith(PNG_SIGNATURE), _walk_png),
    (lambda start: start[:4] == b"RIFF" and start[8:12] == b"WEBP", _walk_webp),
)

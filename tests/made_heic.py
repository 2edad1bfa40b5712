"""HEIC photos for tests, written box by box (ISO/IEC 23008-12) around pictures that x265 codes."""

import struct
from pathlib import Path

import numpy as np
from made_clips import ffmpeg
from numpy.typing import NDArray
from PIL import Image


def make_heic(
    path: Path, image: NDArray[np.uint8], *, tiles: int = 1, quarter_turns: int = 0
) -> Path:
    """Write a photo as one picture or, as phones do, as a row of equally wide tiles.

    Args:
        path: Where to write it.
        image: (height, width, 3) RGB, even in both sizes.
        tiles: Number of tiles, which divides the width.
        quarter_turns: Turns anti-clockwise for display, in the file's `irot` property.
    """
    height, width, _ = image.shape
    coded = [_coded(path.with_suffix(".mp4"), part) for part in np.split(image, tiles, axis=1)]
    data = [sample for _, sample in coded]
    types = [b"hvc1"] * tiles
    if tiles > 1:  # rows - 1, columns - 1, width, height
        data.append(struct.pack(">BBBBHH", 0, 0, 0, tiles - 1, width, height))
        types.append(b"grid")
    shown = len(types)
    properties = [
        _box(b"hvcC", coded[0][0]),
        _full(b"ispe", struct.pack(">II", width // tiles, height)),
        _full(b"ispe", struct.pack(">II", width, height)),
        _box(b"irot", bytes([quarter_turns])),
    ]
    used = {item: [1, 2] for item in range(1, tiles + 1)}
    used[shown] = ([3] if tiles > 1 else [1, 2]) + [4]
    associations = b"".join(
        struct.pack(">HB", item, len(which)) + bytes(which) for item, which in used.items()
    )
    ipma = _full(b"ipma", struct.pack(">I", len(used)) + associations)
    entries = [
        _full(b"infe", struct.pack(">HH", item, 0) + kind + b"\0", version=2)
        for item, kind in enumerate(types, 1)
    ]
    children = [
        _full(b"hdlr", bytes(4) + b"pict" + bytes(13)),
        _full(b"pitm", struct.pack(">H", shown)),
        _full(b"iinf", struct.pack(">H", len(entries)) + b"".join(entries)),
        _box(b"iprp", _box(b"ipco", b"".join(properties)) + ipma),
    ]
    if tiles > 1:
        parts = struct.pack(f">HH{tiles}H", shown, tiles, *range(1, tiles + 1))
        children.append(_full(b"iref", _box(b"dimg", parts)))
    start = _box(b"ftyp", b"heic" + bytes(4) + b"mif1heic")
    length_of_iloc = 16 + 14 * len(data)
    offset = len(start) + 12 + sum(map(len, children)) + length_of_iloc + 8
    places = b""
    for item, content in enumerate(data, 1):
        places += struct.pack(">HHHII", item, 0, 1, offset, len(content))
        offset += len(content)
    iloc = _full(b"iloc", struct.pack(">BBH", 0x44, 0, len(data)) + places)
    meta = _full(b"meta", b"".join(children) + iloc)
    path.write_bytes(start + meta + _box(b"mdat", b"".join(data)))
    return path


def _coded(mp4: Path, image: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """Code a picture; return x265's configuration (the content of hvcC) and its sample."""
    picture = mp4.with_suffix(".png")
    Image.fromarray(image).save(picture)
    coder = ["-c:v", "libx265", "-x265-params", "log-level=none", "-pix_fmt", "yuv420p"]
    ffmpeg("-i", picture, *coder, "-crf", "5", "-tag:v", "hvc1", mp4)
    whole = mp4.read_bytes()
    return _content(whole, b"hvcC"), _content(whole, b"mdat")


def _content(whole: bytes, kind: bytes) -> bytes:
    at = whole.index(kind)
    (length,) = struct.unpack(">I", whole[at - 4 : at])
    return whole[at + 4 : at - 4 + length]


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def _full(kind: bytes, content: bytes, version: int = 0) -> bytes:
    return _box(kind, bytes([version, 0, 0, 0]) + content)

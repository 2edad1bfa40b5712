"""How players show a decoded frame: deinterlaced, tone-mapped, in square pixels, upright."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideData
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from emopipe.pipeline.media.video import Deinterlacing, Video

MOST_STRETCHED = 8
"""Sample aspect ratios above this, or below its inverse, come from a damaged header."""

UNTAGGED = 2
"""Matrix coefficients "unspecified" of ISO/IEC 23091-2."""

SD_WIDTH, SD_HEIGHT = 1279, 576
"""Players assume BT.601 for untagged video up to this size, and BT.709 for larger video."""

HDR_TRANSFERS: dict[int, str] = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}

FIELD_ORDERS: dict[int, Deinterlacing] = {2: "tff", 3: "bff", 4: "tff", 5: "bff"}
"""Which field is shown first, by libav's field order: AV_FIELD_TT, _BB, _TB (with which it writes
top field first to QuickTime files) and _BT."""

SMALLEST_PX = 16
"""Width and height from which on bwdif takes frames, however few pixels their chroma has."""

SAME_SHAPE_PX = 1.0
"""A frame that differs from the video's shape by no more than this fills its whole size."""

FRAMES = Fraction(1)
"""Time base of a filter that does not use the time."""


@dataclass(frozen=True)
class Display:
    """How a stream is shown, going by its first frames. Fields as in `Video`."""

    width: int
    height: int
    rotation: int
    mirrored: bool
    deinterlace: Deinterlacing
    notes: tuple[str, ...]


def display_of(
    first: av.VideoFrame,
    sample_aspect_ratio: Fraction | None,
    field_order: int,
    has_marks: bool,
    deinterlace: bool,
) -> Display:
    """Find how a stream is shown.

    Args:
        first: Its first frame.
        sample_aspect_ratio: Width by height of that frame's pixels; None if unknown.
        field_order: The stream's, by libav.
        has_marks: Whether any of the first frames is marked as interlaced.
        deinterlace: Whether interlaced frames are to be deinterlaced.
    """
    rotation, mirrored = orientation(first)
    width, height = size_in_square_pixels(first, sample_aspect_ratio)
    notes = []
    if width != first.width:
        notes.append(
            f"anamorphic: {first.width}×{first.height} pixels are shown as {width}×{height}"
        )
    if transfer := HDR_TRANSFERS.get(first.color_trc):
        notes.append(f"HDR ({transfer}): tone-mapped to BT.709")
    order = "marked" if has_marks else FIELD_ORDERS.get(field_order)
    if order:
        done = "deinterlaced by bwdif" if deinterlace else "analyzed as it is"
        notes.append(f"interlaced: {done}")
    if rotation in (90, 270):
        width, height = height, width
    used: Deinterlacing = (order or "marked") if deinterlace else "off"
    return Display(width, height, rotation, mirrored, used, tuple(notes))


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Read a frame's display matrix (ISO/IEC 14496-12, 6.2.2).

    Returns:
        Degrees clockwise to rotate the frame for display, to the nearest quarter turn, and whether
        it is mirrored, left to right, before that.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return 0, False
    # Pixel (x, y) is shown at (a·x + c·y, b·x + d·y).
    a, b, _, c, d = struct.unpack("<5i", bytes(matrix)[:20])
    mirrored = a * d - b * c < 0
    angle = math.degrees(math.atan2(-b, -a) if mirrored else math.atan2(b, a))
    return round(angle / 90) * 90 % 360, mirrored


def size_in_square_pixels(
    frame: av.VideoFrame, sample_aspect_ratio: Fraction | None
) -> tuple[int, int]:
    """Width and height of a frame before its rotation, the lines kept and their pixels squared."""
    ratio = sample_aspect_ratio or Fraction(1)
    if not 1 / MOST_STRETCHED <= ratio <= MOST_STRETCHED:
        ratio = Fraction(1)
    return max(1, round(frame.width * ratio)), frame.height


def is_untagged_hd(frame: av.VideoFrame) -> bool:
    """Whether a frame is of HD size but carries no colour matrix: players assume BT.709 then."""
    is_hd = frame.width > SD_WIDTH or frame.height > SD_HEIGHT
    return is_hd and frame.colorspace == UNTAGGED and not frame.format.is_rgb


def to_rgb(
    frame: av.VideoFrame, sample_aspect_ratio: Fraction | None, video: Video, threads: int
) -> NDArray[np.uint8]:
    """Convert a progressive frame to (height, width, 3) RGB of the video's size, as displayed.

    A frame of another shape than the video's first one keeps its shape, between black bars.

    Args:
        frame: What the decoder gave, deinterlaced where that is wanted.
        sample_aspect_ratio: Width by height of its pixels; None if unknown.
        video: The probed video.
        threads: For the conversion.
    """
    width, height = video.width, video.height
    if video.rotation in (90, 270):
        width, height = height, width
    inner_width, inner_height = _fitted(
        size_in_square_pixels(frame, sample_aspect_ratio), (width, height)
    )
    image = _converted(frame, threads)
    if (inner_width, inner_height) != (frame.width, frame.height):
        # Sharper than libswscale's filters: emotions agree better with those of square pixels.
        stretched = Image.fromarray(image).resize(
            (inner_width, inner_height), Image.Resampling.LANCZOS
        )
        image = np.asarray(stretched)
    if (inner_width, inner_height) != (width, height):
        left, top = (width - inner_width) // 2, (height - inner_height) // 2
        framed = np.zeros((height, width, 3), np.uint8)
        framed[top : top + inner_height, left : left + inner_width] = image
        image = framed
    if video.mirrored:
        image = image[:, ::-1]
    return np.rot90(image, -video.rotation // 90).astype(np.uint8, copy=False)


def _converted(frame: av.VideoFrame, threads: int) -> NDArray[np.uint8]:
    """Convert a frame to (height, width, 3) RGB of SDR, in its own size."""
    is_hdr = frame.color_trc in HDR_TRANSFERS
    if is_hdr and frame.width % 2:
        # Of an odd width, libswscale maps the tones of subsampled chroma to wrong colours.
        frame = frame.reformat(format="yuv444p10le")
    converted = _reformatter(is_hdr).reformat(
        frame,
        format="rgb24",
        src_colorspace=Colorspace.ITU709 if is_untagged_hd(frame) else None,
        # Asked for another transfer function, libswscale maps tones and primaries as well.
        dst_color_trc=ColorTrc.BT709 if is_hdr else None,
        dst_color_primaries=ColorPrimaries.BT709 if is_hdr else None,
        threads=threads,
    )
    return converted.to_ndarray().astype(np.uint8, copy=False)


def _fitted(size: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int]:
    """Scale a width and height, their ratio kept, to the largest within the outer ones."""
    scale = min(outer[0] / size[0], outer[1] / size[1])
    fitted = size[0] * scale, size[1] * scale
    if all(o - f <= SAME_SHAPE_PX for o, f in zip(outer, fitted, strict=True)):
        return outer
    return max(1, round(fitted[0])), max(1, round(fitted[1]))


@cache
def _reformatter(_is_hdr: bool) -> VideoReformatter:
    """The process's converter: for HDR it takes seconds to set up, and one serves many videos."""
    return VideoReformatter()


class PixelShape:
    """The shape of a stream's pixels: as its container states it, else as the frames do.

    Args:
        stream: From which nothing was decoded yet.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._stated = stream.sample_aspect_ratio
        # Where the container says nothing, libav states what the first frames say.
        self._by_container = self._stated != stream.codec_context.sample_aspect_ratio

    def of(self, coded: Fraction | None = None) -> Fraction | None:
        """Width by height of the pixels of a frame that is coded with this ratio."""
        return self._stated if self._by_container else coded or self._stated


class Deinterlacer:
    """Deinterlaces frames, one for one, with bwdif of libavfilter.

    A result depends on the frame and its two neighbours only, not on what came before them.

    Args:
        mode: The video's.
    """

    def __init__(self, mode: Deinterlacing) -> None:
        self._mode = mode
        self._graph: Graph | None = None
        self._fed: tuple[av.VideoFrame | None, av.VideoFrame] | None = None

    def wants(self, frame: av.VideoFrame) -> bool:
        """Whether a frame is to be deinterlaced."""
        if min(frame.width, frame.height) < SMALLEST_PX:
            return False
        return self._mode in ("tff", "bff") or (self._mode == "marked" and frame.interlaced_frame)

    def deinterlace(
        self, before: av.VideoFrame | None, frame: av.VideoFrame, after: av.VideoFrame | None
    ) -> av.VideoFrame:
        """Deinterlace a frame.

        Args:
            before: The frame shown before it; None where there is none.
            frame: The frame.
            after: The frame shown after it; None where there is none.
        """
        before = before if before and _same_layout(before, frame) else None
        after = after if after and _same_layout(after, frame) else None
        if self._graph is None or self._fed != (before, frame):
            self._graph = self._new_graph(frame)
            if before:
                self._graph.push(before)
            self._graph.push(frame)
            if before:
                self._graph.pull()
        self._graph.push(after)
        result = self._graph.pull()
        assert isinstance(result, av.VideoFrame)
        if after:
            self._fed = frame, after
        else:
            self._graph = self._fed = None  # it has been told of its stream's end
        return result

    def _new_graph(self, frame: av.VideoFrame) -> Graph:
        graph = Graph()
        parity = "auto" if self._mode == "marked" else self._mode
        graph.link_nodes(
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=FRAMES
            ),
            graph.add("bwdif", f"mode=send_frame:parity={parity}:deint=all"),
            graph.add("buffersink"),
        ).configure()
        return graph


def _same_layout(a: av.VideoFrame, b: av.VideoFrame) -> bool:
    return (a.width, a.height, a.format.name) == (b.width, b.height, b.format.name)

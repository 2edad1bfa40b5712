"""Indexing a file: the frames a player shows, when, and how to find each of them again.

Frames and times come from the packets, read once without decoding. Where the packets do not
identify the frames (missing or equal timestamps, a clock that jumps, packets that hold no frame or
two), the whole file is decoded once instead and the frames are counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from emopipe.pipeline.media import readers
from emopipe.pipeline.media.container import ReadError, decode_all, open_container, packets
from emopipe.pipeline.media.display import Display, PixelShape, display_of
from emopipe.pipeline.media.images import probe_image, read_image_header
from emopipe.pipeline.media.suffixes import IMAGE_SUFFIXES
from emopipe.pipeline.media.video import HeaderInfo, Video, VideoError
from emopipe.pipeline.storage import storage_for

CLOCK_JUMP_S = 1.0
"""Decoding times that go back by more than this mean that the container's clock was reset."""

LONGEST_INTERVAL_S = 3600.0
SHORTEST_INTERVAL_S = 1e-4
LATEST_S = 1e9
"""Mean intervals and times beyond these come from a damaged or missing time base."""

FALLBACK_FPS = 25.0
"""Assumed where neither timestamps nor the container give a rate."""

AV_TIME_BASE_HZ = 1_000_000
"""libav gives a container's duration in microseconds."""

HEAD_FRAMES = 16
"""This many frames are decoded to see whether the packets identify the frames."""


@dataclass(frozen=True)
class _Index:
    """What identifies the shown frames; fields as in `Video`."""

    times: NDArray[np.float64]
    pts: NDArray[np.int64]
    keyframe_pts: NDArray[np.int64]
    truncated_frames: int
    stated_fps: float

    @property
    def fps(self) -> float:
        count = len(self.times)
        return float((count - 1) / np.ptp(self.times)) if count > 1 else self.stated_fps


@dataclass(frozen=True)
class _Head:
    """What the first decoded frames show."""

    stamps: list[int | None]
    damaged: bool  # whether packets among them could not be decoded
    display: Display


def read_header(path: Path) -> HeaderInfo:
    """Read a file's header only.

    Raises:
        VideoError: It cannot be opened, or has no video.
    """
    try:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return read_image_header(path)
        with open_container(path) as (container, stream):
            rate = _stated_rate(stream)
            if stream.duration and stream.time_base:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / AV_TIME_BASE_HZ
            return HeaderInfo(max(0.0, seconds), stream.frames or max(0, round(seconds * rate)))
    except ReadError as error:
        raise VideoError(str(error)) from error


def probe(
    path: Path,
    name: str,
    backend: str = readers.DEFAULT_BACKEND,
    deinterlace: bool = True,
    *,
    alive: Callable[[], None] = lambda: None,
) -> Video:
    """Index a file's frames for the backend that will decode it.

    This runs native decoders on a file of unknown origin, which may crash or hang:
    `Decoder.probe` does the same in the decoding child.

    Args:
        path: A video, or an image by its suffix (`IMAGE_SUFFIXES`), which is a video of one frame.
        name: What the results call it.
        backend: One of `readers.BACKENDS`.
        deinterlace: Whether frames that are marked as interlaced are to be deinterlaced.
        alive: Called now and then while decoding, for whatever watches this process.

    Raises:
        VideoError: No frame of the file can be read, or the backend does not decode it correctly.
        ValueError: There is no such backend.
    """
    if backend not in readers.BACKENDS:
        names = ", ".join(readers.BACKENDS)
        raise ValueError(f"`backend` must be one of {names}, not {backend!r}")
    size = _size(path)
    try:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return probe_image(path, name, size, alive)
        video = _probe_video(path, name, backend, deinterlace, size, alive)
        readers.backend(backend).check(video, alive)
    except ReadError as error:
        raise VideoError(str(error)) from error
    return video


def _size(path: Path) -> int:
    try:
        info = storage_for(path).stat(path)
    except OSError as error:
        raise VideoError(f"{path} cannot be read: {error.strerror}.") from error
    if info is None:
        raise VideoError(f"{path} does not exist.")
    if info.size == 0:
        raise VideoError(f"{path} is empty (0 bytes). Copy or record it again.")
    return info.size


def _probe_video(
    path: Path, name: str, backend: str, deinterlace: bool, size: int, alive: Callable[[], None]
) -> Video:
    """Index the frames by their packets or, where these do not identify them, by decoding."""
    with open_container(path) as (container, stream):
        index = _index_by_packets(container, stream)
    with open_container(path) as (container, stream):
        head = _head(container, stream, deinterlace)
    if head is None:
        raise VideoError(f"{path} has no frame that can be decoded. Copy or record it again.")
    if index is None or not _agree(index, head):
        with open_container(path) as (container, stream):
            index = _index_by_decoding(container, stream, alive)
    return Video(
        path=path,
        name=name,
        backend=backend,
        width=head.display.width,
        height=head.display.height,
        rotation=head.display.rotation,
        mirrored=head.display.mirrored,
        deinterlace=head.display.deinterlace,
        notes=head.display.notes,
        times=index.times,
        pts=index.pts,
        keyframe_pts=index.keyframe_pts,
        fps=index.fps,
        truncated_frames=index.truncated_frames,
        size=size,
        sha256=storage_for(path).sha256(path),
    )


def _head(container: InputContainer, stream: VideoStream, deinterlace: bool) -> _Head | None:
    first = None
    stamps: list[int | None] = []
    damaged = has_marks = False
    pixel_shape = PixelShape(stream)
    for frame in decode_all(container, stream):
        if frame is None:
            damaged = True
            continue
        first = first or frame
        has_marks |= frame.interlaced_frame
        stamps.append(frame.pts)
        if len(stamps) == HEAD_FRAMES:
            break
    if first is None:
        return None
    order = stream.codec_context.field_order
    display = display_of(first, pixel_shape.of(), order, has_marks, deinterlace)
    return _Head(stamps, damaged, display)


def _agree(index: _Index, head: _Head) -> bool:
    """Whether the first decoded frames are those that the packets promise."""
    expected = index.pts.tolist()
    if not head.damaged:
        return bool(head.stamps == expected[: len(head.stamps)])
    return head.stamps == [stamp for stamp in expected if stamp in head.stamps]


def _index_by_packets(container: InputContainer, stream: VideoStream) -> _Index | None:
    """Index without decoding; None where the packets do not identify the frames."""
    entries = [
        (packet.pts, packet.dts, packet.is_keyframe, packet.is_discard)
        for packet in packets(container, stream)
    ]
    if not entries or any(pts is None for pts, *_ in entries):
        return None
    pts = np.array([entry[0] for entry in entries], np.int64)
    dts = np.array([entry[1] for entry in entries if entry[1] is not None], np.int64)
    key, hidden = np.array([entry[2:] for entry in entries], bool).T
    if len(np.unique(pts)) < len(pts) or not key.any():
        return None
    unit, rate = float(stream.time_base or 0), _stated_rate(stream)
    if (np.diff(dts) * unit < -CLOCK_JUMP_S).any():
        return None
    # Frames before the first key frame cannot be decoded.
    shown = ~hidden & (pts >= pts[np.argmax(key)])
    if not shown.any():
        return None
    shown_pts = np.sort(pts[shown])
    times = shown_pts * unit
    if _is_absurd(times):
        times = np.arange(len(shown_pts)) / rate
    # Only MP4 and its relatives list every frame; the counts of other containers are estimates.
    listed = stream.frames if "mp4" in container.format.name else 0
    return _Index(
        times=times,
        pts=shown_pts,
        keyframe_pts=np.sort(pts[key]),
        truncated_frames=max(0, listed - len(pts)),
        stated_fps=rate,
    )


def _index_by_decoding(
    container: InputContainer, stream: VideoStream, alive: Callable[[], None]
) -> _Index:
    """Index by counting the decoded frames: slow, but right where packets mislead."""
    stamps: list[int | None] = []
    for frame in decode_all(container, stream):
        alive()
        if frame:
            stamps.append(frame.pts)
    count, rate = len(stamps), _stated_rate(stream)
    known = np.array([stamp for stamp in stamps if stamp is not None], np.float64)
    times = known * float(stream.time_base or 0)
    if len(times) == count and not (np.diff(times) < -CLOCK_JUMP_S).any():
        # Some muxers write timestamps in decoding order: right, but for their order.
        times = np.sort(times)
    if len(times) < count or (np.diff(times) <= 0).any() or _is_absurd(times):
        times = np.arange(count) / rate
    return _Index(
        times=times,
        pts=np.arange(count),
        keyframe_pts=np.zeros(0, np.int64),
        truncated_frames=0,
        stated_fps=rate,
    )


def _is_absurd(times: NDArray[np.float64]) -> bool:
    if np.abs(times).max() > LATEST_S:
        return True
    interval = float(np.ptp(times)) / max(1, len(times) - 1)
    return len(times) > 1 and not SHORTEST_INTERVAL_S <= interval <= LONGEST_INTERVAL_S


def _stated_rate(stream: VideoStream) -> float:
    """Frames/s according to the container."""
    return float(stream.average_rate or stream.guessed_rate or FALLBACK_FPS)

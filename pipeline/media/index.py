"""Indexing a file: the frames a player shows, when, and how to find each of them again.

Frames and times come from the packets, read once without decoding. Where the packets do not
identify the frames (missing or equal timestamps, a clock that goes back, packets that hold no frame
or two), the whole file is decoded once instead and the frames are counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray

from emopipe.pipeline.media import readers
from emopipe.pipeline.media.clock import Clock, find_restarts
from emopipe.pipeline.media.container import ReadError, decode_all, open_container
from emopipe.pipeline.media.cut_short import read_stated, truncated_frames
from emopipe.pipeline.media.display import Display, PixelShape, display_of
from emopipe.pipeline.media.gaps import NO_GAPS, Gaps, find_gaps, heed_demuxer
from emopipe.pipeline.media.images import probe_image
from emopipe.pipeline.media.suffixes import IMAGE_SUFFIXES
from emopipe.pipeline.media.timeline import (
    NO_STAMP,
    Timeline,
    clock_of,
    origin_of,
    read_timeline,
)
from emopipe.pipeline.media.video import Video, VideoError
from emopipe.pipeline.storage import storage_for

CLOCK_JUMP_S = 1.0
"""Decoding times that go back by more than this mean that the container's clock was reset."""

HEAD_FRAMES = 16
"""This many frames are decoded to see whether the packets identify the frames."""


@dataclass(frozen=True)
class _Index:
    """When frames are shown and what identifies them; fields as in `Video`."""

    clock: Clock
    pts: NDArray[np.int64]
    keyframe_pts: NDArray[np.int64]
    gaps: Gaps = NO_GAPS


@dataclass(frozen=True)
class _Head:
    """What the first decoded frames show."""

    stamps: list[int | None]
    damaged: bool  # whether packets among them could not be decoded, or not well
    display: Display
    has_stated_stamps: bool  # by the container, not by libav's guess


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
        path: A video, or an image by its suffix (`IMAGE_SUFFIXES`): a frame for each picture in it.
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
    with heed_demuxer() as complained, open_container(path) as (container, stream):
        timeline = read_timeline(container, stream)
        gaps = find_gaps(timeline) if complained(container) else NO_GAPS
        stated = read_stated(path, container, stream)
        origin = origin_of(container)
        index = _index_by_packets(timeline, gaps, container, stream)
        others = _other_videos(container, stream)
    with open_container(path) as (container, stream):
        head = _head(container, stream, deinterlace)
    if head is None:
        raise VideoError(f"{path} has no frame that can be decoded. Copy or record it again.")
    if index is None or not _agree(index, head):
        with open_container(path) as (container, stream):
            index = _index_by_decoding(container, stream, alive)
    times = index.clock.times
    fps = float((len(times) - 1) / np.ptp(times)) if len(times) > 1 else stated.fps
    return Video(
        path=path,
        name=name,
        backend=backend,
        width=head.display.width,
        height=head.display.height,
        rotation=head.display.rotation,
        mirrored=head.display.mirrored,
        deinterlace=head.display.deinterlace,
        start_time=0.0 if index.clock.made_up else float(origin),
        notes=(*head.display.notes, *index.clock.notes, *others),
        times=times,
        pts=index.pts,
        keyframe_pts=index.keyframe_pts,
        distrusted_pts=gaps.beside,
        fps=fps,
        truncated_frames=truncated_frames(stated, timeline, fps),
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
        damaged |= frame.is_corrupt
        has_marks |= frame.interlaced_frame
        stamps.append(frame.pts)
        if len(stamps) == HEAD_FRAMES:
            break
    if first is None:
        return None
    order = stream.codec_context.field_order
    display = display_of(first, pixel_shape.of(), order, has_marks, deinterlace)
    return _Head(stamps, damaged, display, has_stated_stamps=container.format.name != "avi")


def _agree(index: _Index, head: _Head) -> bool:
    """Whether the first decoded frames are those that the packets promise."""
    expected = np.setdiff1d(index.pts, index.gaps.lost).tolist()
    if not head.damaged:
        return bool(head.stamps == expected[: len(head.stamps)])
    if head.stamps == [stamp for stamp in expected if stamp in head.stamps]:
        return True
    # Where one is lost the next ones do not wait for it, and another comes late.
    is_distinct = len(set(head.stamps)) == len(head.stamps)
    return head.has_stated_stamps and is_distinct and set(head.stamps) <= set(expected)


def _index_by_packets(
    timeline: Timeline, gaps: Gaps, container: InputContainer, stream: VideoStream
) -> _Index | None:
    """Index without decoding; None where the packets do not identify the frames."""
    shown = timeline.shown
    if not shown.any() or (timeline.pts == NO_STAMP).any():
        return None
    if len(np.unique(timeline.pts)) < len(timeline.pts) or _is_reset(timeline, stream):
        return None
    pts = np.union1d(timeline.pts[shown], gaps.lost)
    return _Index(
        clock=clock_of(container, stream, pts),
        pts=pts,
        keyframe_pts=np.sort(timeline.pts[timeline.keys]),
        gaps=gaps,
    )


def _is_reset(timeline: Timeline, stream: VideoStream) -> bool:
    """Whether the container's clock goes back, so that its times do not order the frames."""
    dts = timeline.dts[timeline.dts != NO_STAMP]
    if (np.diff(dts) * float(stream.time_base or 0) < -CLOCK_JUMP_S).any():
        return True
    return bool(find_restarts(timeline.pts.astype(np.float64)))


def _index_by_decoding(
    container: InputContainer, stream: VideoStream, alive: Callable[[], None]
) -> _Index:
    """Index by counting the decoded frames: slow, but right where packets mislead."""
    stamps = []
    for frame in decode_all(container, stream):
        alive()
        if frame:
            stamps.append(NO_STAMP if frame.pts is None else frame.pts)
    return _Index(
        clock=clock_of(container, stream, np.array(stamps, np.int64)),
        pts=np.arange(len(stamps)),
        keyframe_pts=np.zeros(0, np.int64),
    )


def _other_videos(container: InputContainer, stream: VideoStream) -> tuple[str, ...]:
    """Say which video stream was taken where there are several, cover art aside."""
    videos = [
        one for one in container.streams.video if not one.disposition & Disposition.attached_pic
    ]
    others = [_size_of(one) for one in videos if one.index != stream.index]
    if not others:
        return ()
    return (
        f"it has {len(videos)} video streams: stream {stream.index} ({_size_of(stream)}) was "
        f"taken, which ffmpeg's rules choose; {len(others)} other{'s' * (len(others) > 1)} "
        f"({', '.join(others)}) {'were' if len(others) > 1 else 'was'} left out",
    )


def _size_of(stream: VideoStream) -> str:
    context = stream.codec_context
    return f"{context.width}×{context.height}" if context else "of unknown kind"

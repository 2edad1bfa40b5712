"""A file's header: what it holds, before it is read as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from emopipe.pipeline.media.container import AV_TIME_BASE_HZ, ReadError, open_container
from emopipe.pipeline.media.cut_short import read_stated
from emopipe.pipeline.media.images import read_image_header
from emopipe.pipeline.media.suffixes import IMAGE_SUFFIXES
from emopipe.pipeline.media.timeline import (
    clock_of,
    origin_of,
    read_timeline,
    seconds_since,
    stated_rate,
)
from emopipe.pipeline.media.video import HeaderInfo, VideoError

MOST_BYTES = 16 * 2**20
"""Of files without an index at least this much is read, if they have it: 0.2 s from a slow disk."""

LIKELY_FACTOR = 2
"""A stated duration that differs by more from what the file's size suggests is wrong."""


def read_header(path: Path) -> HeaderInfo:
    """Estimate a file's frames and their times, reading a part of it at most.

    Exact where MP4's index lists them or the file is small.

    Raises:
        VideoError: It cannot be opened, or has no video.
    """
    try:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return read_image_header(path)
        with open_container(path) as (container, stream):
            times = _listed_times(container, stream)
            if times is None:
                times = _read_times(path, container, stream)
            return HeaderInfo(times, _seconds(times, 1 / stated_rate(stream)))
    except ReadError as error:
        raise VideoError(str(error)) from error


def _listed_times(container: InputContainer, stream: VideoStream) -> NDArray[np.float64] | None:
    """Return the times of frames that MP4's index lists, and the file holds; None for others.

    They are decoding times, which differ from presentation times by some frames.
    """
    if "mp4" not in container.format.name or not stream.frames:
        return None
    held = [
        entry.timestamp
        for entry in stream.index_entries
        if not entry.is_discard and entry.pos + entry.size <= container.size
    ]
    dts = np.array(held, np.int64)
    seconds = seconds_since(origin_of(container), dts, stream.time_base)
    first = float((stream.start_time or 0) * (stream.time_base or 0) - origin_of(container))
    return np.asarray(seconds - seconds.min(initial=np.inf) + first)


def _read_times(path: Path, container: InputContainer, stream: VideoStream) -> NDArray[np.float64]:
    """Read the times of the frames at the file's begin, and guess those of the rest."""
    timeline = read_timeline(container, stream, MOST_BYTES)
    pts = timeline.pts[timeline.shown]  # in decoding order, which `clock_of` puts right
    if not len(pts):
        return np.zeros(0)
    times = clock_of(container, stream, pts).times
    if timeline.is_whole:
        return times
    seconds = _seconds(times, 1 / stated_rate(stream))
    by_size = seconds * container.size / timeline.bytes
    duration = _stated_seconds(path, container, stream, float(times[0]))
    is_likely = by_size / LIKELY_FACTOR <= duration <= by_size * LIKELY_FACTOR
    factor = (duration if is_likely else by_size) / seconds
    rest = round(len(times) * max(0.0, factor - 1))
    return np.append(times, times[-1] + np.arange(1, rest + 1) * seconds / len(times))


def _stated_seconds(
    path: Path, container: InputContainer, stream: VideoStream, first: float
) -> float:
    """How long the video is by what the file states; 0 where it states nothing that can be true.

    Args:
        path: The file.
        container: The same, open.
        stream: Its video stream.
        first: Time of the first frame, in s since the container's start.
    """
    stated = read_stated(path, container, stream)
    if stated.is_short:
        return 0.0
    if (end := stated.ends.get(stream.index)) is not None:
        return end - float(origin_of(container)) - first
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / AV_TIME_BASE_HZ


def _seconds(times: NDArray[np.float64], interval: float) -> float:
    """How long frames are shown, the last for an interval as the mean or, if alone, as given."""
    if len(times) < 2:
        return interval * len(times)
    return float(np.ptp(times)) * len(times) / (len(times) - 1)

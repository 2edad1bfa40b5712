"""What a file's packets say without decoding: when frames are shown, and where each stream ends."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.container import InputContainer
from av.format import Flags
from av.stream import Stream
from av.video.stream import VideoStream
from numpy.typing import NDArray

from emopipe.pipeline.media.clock import Clock, read_clock
from emopipe.pipeline.media.container import AV_TIME_BASE_HZ, packets

NO_STAMP = -(2**63)
"""libav's AV_NOPTS_VALUE: a missing timestamp."""

STATING_FORMATS = frozenset({"matroska", "avi", "flv", "asf", "mxf"})
"""Formats, by libav's names, that state how long they are before their content. (MP4 lists every
frame; other durations that libav gives are measured in the file.)"""

FALLBACK_FPS = 25.0
"""Assumed where neither timestamps nor the container give a rate."""

MAX_FPS = 2000
"""A stated rate above this is none: the ticks of a clock, as raw DV states."""


@dataclass(frozen=True)
class Timeline:
    """A video stream's packets in decoding order.

    Attributes:
        pts: (packets,) int64 presentation timestamps in the stream's time base, or `NO_STAMP`.
        dts: (packets,) int64 decoding timestamps, likewise.
        keys: (packets,) bool, whether each holds a key frame.
        hidden: (packets,) bool, whether each is decoded but not shown, as an edit list says.
        time_base: Of the timestamps, in s; 0 if unknown.
        ends: When the last packet of each stream that was read ends, in s on the container's
            clock, by the stream's index.
        is_last_damaged: Whether the last packet that was read is damaged.
        bytes: How far the file was read.
        is_whole: Whether it was read to its end.
    """

    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    keys: NDArray[np.bool_]
    hidden: NDArray[np.bool_]
    time_base: Fraction
    ends: dict[int, float]
    is_last_damaged: bool
    bytes: int
    is_whole: bool

    @property
    def shown(self) -> NDArray[np.bool_]:
        """(packets,) whether each holds a frame that can be decoded and is shown, by its packet.

        Frames before the first key frame cannot be decoded. (Those that follow the second one are
        not before the first, even if the clock was set back between them.)
        """
        keys = np.flatnonzero(self.keys)
        if not len(keys):
            return np.zeros(len(self.pts), bool)
        before_key = (self.pts < self.pts[keys[0]]) & (self.pts != NO_STAMP)
        if len(keys) > 1:
            before_key[keys[1] :] = False
        return np.asarray(~before_key & ~self.hidden)


def read_timeline(
    container: InputContainer, stream: VideoStream, most_bytes: int | None = None
) -> Timeline:
    """Read the packets, without decoding.

    Of formats that state how long they are, the packets of all streams are read.

    Args:
        container: The open file, at its start.
        stream: Its video stream.
        most_bytes: Stop when about this much of the file has been read.
    """
    states_end = not STATING_FORMATS.isdisjoint(container.format.name.split(","))
    streams: list[Stream] = list(container.streams) if states_end else [stream]
    entries: list[tuple[int, int, bool, bool]] = []
    ends: dict[int, int] = {}  # in the streams' time bases
    damaged, lasts, is_whole, position, total = False, False, True, 0, 0
    # AVI numbers its frames in decoding order; libav guesses their presentation times.
    counts = container.format.name == "avi"
    for packet in packets(container, *streams):
        index, duration = packet.stream_index, packet.duration or 0
        pts = NO_STAMP if packet.pts is None else packet.pts
        dts = NO_STAMP if packet.dts is None else packet.dts
        if index == stream.index:
            entries.append((pts, dts, packet.is_keyframe, packet.is_discard))
            lasts |= duration > 0
        stamp = dts if counts or pts == NO_STAMP else pts
        if stamp != NO_STAMP:
            ends[index] = max(stamp + duration, ends.get(index, NO_STAMP))
        damaged = packet.is_corrupt
        total += packet.size
        position = max(position, packet.pos or 0)
        if most_bytes is not None and max(position, total) > most_bytes:
            is_whole = False
            break
    units = {one.index: one.time_base or Fraction(0) for one in streams}
    seconds = {index: float(end * units[index]) for index, end in ends.items()}
    if stream.index in seconds and not lasts:  # as in FLV
        seconds[stream.index] += 1 / stated_rate(stream)
    columns = np.array(entries, np.int64).reshape(-1, 4).T
    return Timeline(
        pts=columns[0],
        dts=columns[1],
        keys=columns[2].astype(bool),
        hidden=columns[3].astype(bool),
        time_base=stream.time_base or Fraction(0),
        ends=seconds,
        is_last_damaged=damaged,
        bytes=max(position, total),
        is_whole=is_whole,
    )


def origin_of(container: InputContainer) -> Fraction:
    """Return a container's start in s on its own clock: 0 where it has none.

    It is the least start time of its streams, as libav finds it: without what an edit list or an
    audio encoder's delay hides, as players do.
    """
    if not container.start_time:
        return Fraction(0)
    start = Fraction(container.start_time, AV_TIME_BASE_HZ)
    for stream in container.streams:
        if stream.start_time is not None and stream.time_base:
            exact = stream.start_time * stream.time_base
            if abs(exact - start) < Fraction(1, AV_TIME_BASE_HZ):  # libav rounded it
                return exact
    return start


def seconds_since(
    origin: Fraction, stamps: NDArray[np.int64], time_base: Fraction | None
) -> NDArray[np.float64]:
    """Convert timestamps to s since the container's start; NaN where they are missing."""
    if not time_base:
        return np.full(len(stamps), np.nan)
    ticks = stamps.astype(np.float64) - float(origin / time_base)  # exact below 2**53
    seconds = ticks * time_base.numerator / time_base.denominator
    return np.where(stamps == NO_STAMP, np.nan, seconds)


def clock_of(container: InputContainer, stream: VideoStream, pts: NDArray[np.int64]) -> Clock:
    """Read the clock of some frames' timestamps, in s since the container's start.

    Args:
        container: The open file.
        stream: Its video stream.
        pts: (frames,) int64 in the stream's time base, or `NO_STAMP`, at least one.
    """
    seconds = seconds_since(origin_of(container), pts, stream.time_base)
    may_leap = Flags.ts_discont in Flags(container.format.flags)  # MPEG-TS and its relatives
    return read_clock(seconds, stated_rate(stream), may_leap=may_leap)


def stated_rate(stream: VideoStream) -> float:
    """Frames/s according to the container."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and 0 < rate <= MAX_FPS:
            return float(rate)
    return FALLBACK_FPS

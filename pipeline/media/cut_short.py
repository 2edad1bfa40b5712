"""How much of a file that was cut short is gone, by what its container states.

A file is cut short where the container states more bytes than there are, or where the packets of
all its streams end before the end that it states. MPEG-TS and Ogg state neither, but show whether
they stop in the middle; MPEG-PS and raw streams do not even show that.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from emopipe.pipeline.media.clock import MAX_REORDER
from emopipe.pipeline.media.container import AV_TIME_BASE_HZ
from emopipe.pipeline.media.timeline import (
    NO_STAMP,
    STATING_FORMATS,
    Timeline,
    stated_rate,
)

TOLERANCE_S = 0.1
"""Containers' durations may be off by this, and by one frame: muxers round, leave out or count
twice the last frame (an interval) and the delay of the first (ASF from ffmpeg: 46 ms)."""

ENDED_EARLIER_S = 0.5
"""A video that ends this long before the sound where the file is cut had ended by itself, unless
its own end is stated: streams are interleaved more closely."""

READ_PART = 0.9
"""A file of the stated size is as good as cut short where its content ends before this part of it:
the rest is damaged beyond reading, or never came. (An index may follow the content.)"""

LONGEST_S = 30 * 86_400
"""A duration above 30 days comes from a damaged header."""

CONSTANT_RATE = 0.1
"""Where the mean rate differs by less than this part from the one that the container states, it
does so because frames are missing here and there."""

HEAD_BYTES = 65_536
"""The part of a file that is searched for what its container states."""

ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
"""GUID of ASF's File Properties Object (ASF specification, 10.2)."""

BROADCAST = 1
"""Flag of that object: sizes and durations in it mean nothing."""

EBML, SEGMENT = 0x1A45DFA3, 0x18538067
"""IDs of Matroska's two top-level elements (RFC 8794, RFC 9559)."""

LIVE = 0xFFFFFFFF
"""RIFF size, besides 0, of a file whose writer could not go back to state it."""

TS_PACKETS = {188: 0, 192: 188, 204: 0}
"""Bytes of a packet of MPEG-TS: plain, with a time code before it (AVCHD, Blu-ray), with a checksum
after it (ISO/IEC 13818-1, 2.4.3); and what a whole file has left after the sync byte of a packet
and as many packets as fit."""

TS_SYNC = 0x47
"""First byte of a packet."""

OGG_PAGE, OGG_LAST = b"OggS", 4
"""Begin of a page, and the flag of a stream's last one (RFC 3533, 6)."""

WHOLE = -1
"""Stands for the whole among the indices of streams."""


@dataclass(frozen=True)
class Stated:
    """What a container states of a file.

    Attributes:
        frames: Number of the video's frames, where they are listed.
        ends: When streams end, in s on the container's clock, by their index, and `WHOLE`.
        video: Index of the video stream.
        bytes: Size of the file; None where it does not state that.
        found_bytes: The size that the file has.
        stops_midway: Whether the file, of a format that states no size, stops in the middle.
        fps: The video's frames/s.
    """

    frames: int | None
    ends: dict[int, float]
    video: int
    bytes: int | None
    found_bytes: int
    stops_midway: bool
    fps: float

    @property
    def is_short(self) -> bool:
        """Whether there are fewer bytes than are stated."""
        return self.bytes is not None and self.bytes > self.found_bytes


def read_stated(path: Path, container: InputContainer, stream: VideoStream) -> Stated:
    """Collect what a container states.

    Args:
        path: The file.
        container: The same, open and read to its end: MP4's fragments list their frames as they
            come.
        stream: Its video stream.
    """
    listed = "mp4" in container.format.name
    states_end = not STATING_FORMATS.isdisjoint(container.format.name.split(","))
    return Stated(
        # Not `stream.frames`: that counts what an edit list leaves out as well.
        frames=len(stream.index_entries) if listed else None,
        ends=_stated_ends(path, container) if states_end else {},
        video=stream.index,
        bytes=_stated_size(path) if states_end else None,
        found_bytes=container.size,
        stops_midway=_stops_midway(path, container.format.name),
        fps=stated_rate(stream),
    )


def truncated_frames(stated: Stated, timeline: Timeline, fps: float) -> int:
    """Count the frames that the container states and that the file, cut short, no longer holds.

    Args:
        stated: What the container states.
        timeline: The whole file's.
        fps: Mean frames/s of the frames that were found.

    Returns:
        The number: exact for MP4, from stated durations for others; 1 where nobody knows how many;
        0 for a whole file.
    """
    if stated.frames is not None:
        return max(0, stated.frames - len(timeline.pts))
    if stated.stops_midway:
        return 1
    end = timeline.ends.get(stated.video)
    if end is None or not stated.ends:
        return 0
    latest = max(timeline.ends.values())
    if abs(fps / stated.fps - 1) < CONSTANT_RATE:
        fps = stated.fps
    is_early = max(stated.ends.values()) - latest > TOLERANCE_S + 1 / fps
    if stated.bytes is not None and not stated.is_short:
        is_cut = is_early and timeline.bytes < READ_PART * stated.found_bytes
    else:
        is_cut = is_early or stated.is_short or timeline.is_last_damaged
    if not is_cut:
        return 0
    end_of_video = stated.ends.get(stated.video)
    if end_of_video is None:
        end_of_video = end if latest - end > ENDED_EARLIER_S else max(stated.ends.values())
    return max(0, round((end_of_video - min(end, _gapless_end(timeline, fps))) * fps))


def _gapless_end(timeline: Timeline, fps: float) -> float:
    """When the last frames end, in s on the container's clock, if none is missing among them.

    The last packets may hold a frame on which others depend that are shown before it, but gone.
    """
    pts = timeline.pts[timeline.pts != NO_STAMP]
    if not len(pts):
        return np.inf
    last = np.sort(pts)[-1 - MAX_REORDER :]
    return float(int(last[0]) * timeline.time_base) + len(last) / fps


def _stated_ends(path: Path, container: InputContainer) -> dict[int, float]:
    """Return `Stated.ends`."""
    ends: dict[int, float | None] = {}
    for one in container.streams:
        if container.format.name == "avi":
            ends[one.index] = float(one.frames * (one.time_base or 0))
        else:
            ends[one.index] = _clock_seconds(one.metadata.get("DURATION", ""))
    if container.format.name == "asf":  # libav leaves it out where the file is cut short
        with path.open("rb") as file:
            asf = _asf_properties(file.read(HEAD_BYTES))
        ends[WHOLE] = asf.seconds if asf else None
    elif container.format.name != "avi":
        ends[WHOLE] = (container.duration or 0) / AV_TIME_BASE_HZ
    return {index: end for index, end in ends.items() if end and 0 < end <= LONGEST_S}


def _stops_midway(path: Path, container_format: str) -> bool:
    with path.open("rb") as file:
        if container_format == "mpegts":
            return _ends_within_packet(file)
        if container_format == "ogg":
            return not _has_last_page(file)
    return False


def _ends_within_packet(file: BinaryIO) -> bool:
    head = np.frombuffer(file.read(HEAD_BYTES), np.uint8)
    size = file.seek(0, os.SEEK_END)
    for length, rest in TS_PACKETS.items():
        for begin in np.flatnonzero(head[:length] == TS_SYNC).tolist():
            if (head[begin::length] == TS_SYNC).all():
                return bool((size - begin) % length != rest)
    return False  # damaged


def _has_last_page(file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - HEAD_BYTES))  # more than a page takes
    tail = file.read()
    page = tail.rfind(OGG_PAGE)
    return page >= 0 and page + 5 < len(tail) and bool(tail[page + 5] & OGG_LAST)


def _clock_seconds(text: str) -> float | None:
    """Read a Matroska tag such as 00:00:02.411000000."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except (ValueError, OverflowError):
        return None


def _stated_size(path: Path) -> int | None:
    """Return how many bytes the container says the file has; None where it does not say."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if head[:4] == b"RIFF":
            return _riff_size(file)
    asf = _asf_properties(head)
    return asf.bytes if asf else _matroska_size(head)


def _riff_size(file: BinaryIO) -> int | None:
    """Add up the RIFF chunks, of which OpenDML writes several."""
    end = 0
    while True:
        file.seek(end)
        kind, size = file.read(4), int.from_bytes(file.read(4), "little")
        if kind != b"RIFF":
            return end
        if size in (0, LIVE):
            return None
        end += 8 + size


def _matroska_size(head: bytes) -> int | None:
    """Read the size of Matroska's one segment, which follows the header."""
    position = 0
    for wanted in (EBML, SEGMENT):
        body = position + 4
        if int.from_bytes(head[position:body]) != wanted or len(head) <= body or not head[body]:
            return None
        length = 9 - head[body].bit_length()  # the first bit that is set tells it
        unknown = (1 << 7 * length) - 1
        size = int.from_bytes(head[body : body + length]) & unknown
        if size == unknown:
            return None
        position = body + length + size
    return position


@dataclass(frozen=True)
class _ASFProperties:
    """What the File Properties Object of an ASF file states."""

    bytes: int
    seconds: float


def _asf_properties(head: bytes) -> _ASFProperties | None:
    """Read the File Properties Object; None where there is none or the writer could not fill it."""
    at = head.find(ASF_FILE_PROPERTIES)
    try:
        size, play, preroll, flags = struct.unpack_from("<40xQ16xQ8xQI", head, max(0, at))
    except struct.error:
        return None
    if at < 0 or flags & BROADCAST:
        return None
    return _ASFProperties(size, play / 1e7 - preroll / 1e3)

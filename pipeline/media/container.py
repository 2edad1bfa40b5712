"""Opening a media file with PyAV, and its packets and frames past whatever is damaged."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from emopipe.emonet.errors import EmopipeError

AnyStream = TypeVar("AnyStream", bound=Stream)

AV_TIME_BASE_HZ = 1_000_000
"""libav gives a container's start and duration in microseconds."""

MAX_DEMUX_ERRORS = 100
"""A demuxer that fails this often in a row does not recover."""

NEEDS_SLICE_THREADS = frozenset({"vp8"})
"""Decoders, by libav's names, that look for damage only while they decode parts of a frame in
threads. H.264's looks for damage only while it does not."""

CAREFUL = {"mjpeg": {"err_detect": "explode"}, "libdav1d": {"max_frame_delay": "1"}}
"""Options of decoders: with them MJPEG's tells of damage, and AV1's returns each frame, or the
error of it, before it takes the next packet."""


class ReadError(EmopipeError):
    """A file cannot be opened, or its reader cannot continue."""


class BackendError(ReadError):
    """One backend cannot decode this video correctly; the text names the backend that may."""


@contextmanager
def open_container(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its video stream, which ffmpeg's rules choose, and close them at the end.

    Raises:
        ReadError: libav cannot open the file, or it has no video.
    """
    container, stream = open_stream(path)
    with container:
        yield container, stream


def open_stream(path: Path) -> tuple[InputContainer, VideoStream]:
    """Do what `open_container` does, but leave closing to the caller."""
    try:
        # With its protocol, or libav takes 12:30:45.mp4 for a URL of the protocol 12.
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ReadError(_why_not_opened(path, error)) from error
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        container.close()
        raise ReadError(f"{path} has no video, perhaps only sound. Leave it out.")
    if any(one.disposition & Disposition.dependent for one in container.streams.video):
        container.close()
        raise ReadError(
            f"{path} is a photo that is stored in tiles, which PyAV does not put together. "
            f"Convert it to JPEG."
        )
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        container.close()
        raise ReadError(f"{path} holds video of a kind that PyAV cannot decode. Convert it first.")
    _look_for_damage(stream.codec_context)
    return container, stream


def _look_for_damage(context: VideoCodecContext) -> None:
    """Have a decoder that is not open yet look for damage, and tell of which packet a frame is."""
    needs_threads = context.name in NEEDS_SLICE_THREADS
    context.thread_type = "SLICE" if needs_threads else "NONE"
    context.thread_count = 2 if needs_threads else 1
    context.options = CAREFUL.get(context.name, {})
    context.copy_opaque = True


def _why_not_opened(path: Path, error: Exception) -> str:
    if "moov" not in (boxes := _boxes(path)) and boxes[:1] == ["ftyp"]:
        return (
            f"{path} is an MP4 without its index (moov box): its recording or copying was cut "
            f"short. Copy it again, or repair it with a tool such as untrunc."
        )
    reason = getattr(error, "strerror", None) or error
    return (
        f"{path} is not a video that PyAV can open ({reason}). Check that it is one and complete."
    )


def _boxes(path: Path) -> list[str]:
    """Types of an MP4's top-level boxes (ISO/IEC 14496-12), up to the first that makes no sense."""
    kinds = []
    size = path.stat().st_size
    with path.open("rb") as file:
        position = 0
        while position + 8 <= size:
            file.seek(position)
            length, kind = struct.unpack(">I4s", file.read(8))
            if length == 1:  # a 64-bit length follows
                length = int.from_bytes(file.read(8))
            kinds.append(kind.decode("latin-1"))
            if length < 8:  # 0 means to the end of the file; no other box is that short
                break
            position += length
    return kinds


def packets(
    container: InputContainer, *streams: AnyStream, flush: bool = False
) -> Iterator[av.Packet[AnyStream]]:
    """Read streams' packets, each stream's in decoding order, continuing after read errors.

    Args:
        container: An open file.
        streams: Streams of it.
        flush: End with the empty packets that make decoders return their delayed frames.
    """
    demuxed = cast("Iterator[av.Packet[AnyStream]]", container.demux(*streams))
    errors = 0
    while errors < MAX_DEMUX_ERRORS:
        try:
            packet = next(demuxed)
        except StopIteration:
            return
        except (av.error.FFmpegError, IndexError):  # PyAV's, of a stream that begins later (FLV)
            errors += 1
            demuxed = cast("Iterator[av.Packet[AnyStream]]", container.demux(*streams))
            continue
        errors = 0
        if packet.size or flush:
            yield packet


def decode_all(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame | None]:
    """Decode everything, in the decoder's order; None stands for a packet that fails to decode."""
    for packet in packets(container, stream, flush=True):
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            yield None

"""A stream's undamaged frames, in the order they are shown, past whatever is damaged."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from emopipe.pipeline.media.container import decode_all, packets
from emopipe.pipeline.media.video import Video


@dataclass(frozen=True)
class DecodedFrame:
    """A decoded frame.

    Attributes:
        stamp: Its entry in `Video.pts`: a timestamp or a rank.
        frame: As the decoder gave it.
        sample_aspect_ratio: Width by height of its pixels, by the coded stream, which may change
            it; None if that does not say. Read it when the decoder has just given the frame.
    """

    stamp: int
    frame: av.VideoFrame
    sample_aspect_ratio: Fraction | None


def undamaged_frames(
    video: Video, container: InputContainer, stream: VideoStream, threads: int = 1
) -> Iterator[DecodedFrame]:
    """Decode the undamaged frames from a container's current position on.

    Args:
        video: A probed video or a slice of it: its frames are found by timestamp or, where it has
            no key frames' timestamps, by counting from the file's start.
        container: The open file: at a key frame or, for counting, at its start.
        stream: Its video stream.
        threads: How many frames the decoder may hold back for threads of its own.
    """
    if len(video.keyframe_pts):
        return _by_stamp(container, stream, threads)
    return _by_count(container, stream)


def _by_stamp(
    container: InputContainer, stream: VideoStream, threads: int
) -> Iterator[DecodedFrame]:
    """Decode the undamaged frames, by timestamp.

    A frame that is predicted from a damaged one is damaged too. So after a broken packet, and
    where decoding starts, frames count as undamaged from the next key frame on.
    """
    good: set[int] = set()  # timestamps of packets whose frames will be undamaged
    good_from: int | None = None  # None: no frame is until the next key frame
    started = False
    # With frame threads the error of a packet surfaces some packets later.
    suspects: deque[int] = deque(maxlen=threads)
    for packet in packets(container, stream, flush=True):
        if packet.size and packet.pts is not None:
            if packet.is_corrupt:
                good_from = None
                continue
            if good_from is None and packet.is_keyframe:
                started, good_from = True, packet.pts
            if not started:
                continue
            suspects.append(packet.pts)
            if good_from is not None and packet.pts >= good_from:
                good.add(packet.pts)
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            good.difference_update(suspects)
            good_from = None
            continue
        for frame in frames:
            if frame.pts in good and not frame.is_corrupt:
                yield DecodedFrame(frame.pts, frame, stream.codec_context.sample_aspect_ratio)
            good.discard(frame.pts)


def _by_count(container: InputContainer, stream: VideoStream) -> Iterator[DecodedFrame]:
    frames = (frame for frame in decode_all(container, stream) if frame)
    for rank, frame in enumerate(frames):
        if not frame.is_corrupt:
            yield DecodedFrame(rank, frame, stream.codec_context.sample_aspect_ratio)

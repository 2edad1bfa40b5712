"""A stream's undamaged frames, in the order they are shown, past whatever is damaged.

A frame that refers to a damaged one is damaged too, whether or not the decoder notices. What it
refers to comes before it in decoding order, but may be shown after it. So a frame is handed on only
when it is known of each packet before its own whether it is damaged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, count

import av
import av.error
from av.container import InputContainer
from av.video.frame import PictureType
from av.video.stream import VideoStream

from emopipe.pipeline.media.container import NEEDS_SLICE_THREADS, packets
from emopipe.pipeline.media.video import Video

MAX_REORDER = 16
"""A frame is shown at most so many frames after it was decoded: the most that the picture buffers
of H.264 and HEVC hold."""

PREDICTED = (PictureType.P, PictureType.B)

# Codecs by libav's names of their decoders.
PREDICTED_KEY_FRAMES = frozenset({"h264"})
"""Key frames here may be predicted ones: the picture refreshes little by little."""
B_FRAMES_ARE_NO_REFERENCES = frozenset({"mpeg1video", "mpeg2video", "mpeg4", "vc1", "wmv3"})
FRAMELESS_PACKETS = frozenset({"h264", "vp8", "vp9", "libdav1d", "av1"})
"""A packet here may hold a field of a frame, or one that is only referred to."""
EMPTY_BYTES = 16
"""Packets of other codecs hold no frame if they are smaller: the last one is to be repeated."""


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


def use_threads(video: Video, stream: VideoStream, threads: int) -> None:
    """Have a stream's decoder, before it is used, decode several frames at once.

    Frames that are counted are decoded by one thread, as they were when the index was made.

    Args:
        video: See `undamaged_frames`.
        stream: The video stream of a file that was just opened.
        threads: How many.
    """
    context = stream.codec_context
    if threads > 1 and len(video.keyframe_pts) and context.name not in NEEDS_SLICE_THREADS:
        context.thread_type = "FRAME"
        context.thread_count = threads


def undamaged_frames(
    video: Video,
    container: InputContainer,
    stream: VideoStream,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[DecodedFrame]:
    """Decode the undamaged frames from a container's current position on.

    Args:
        video: A probed video or a slice of it: its frames are found by timestamp or, where it has
            no key frames' timestamps, by counting from the file's start.
        container: The open file: at a key frame or, for counting, at its start.
        stream: Its video stream, as `open_stream` returned it.
        alive: Called for each packet, for whatever watches this process.
    """
    context = stream.codec_context
    by_stamp = len(video.keyframe_pts) > 0
    references = _References(context.name, by_stamp, set(video.distrusted_pts.tolist()))
    decoded: deque[tuple[_Packet, DecodedFrame]] = deque()
    # With frame threads the error of a packet surfaces some packets later.
    suspects: deque[_Packet] = deque(maxlen=context.thread_count)
    ranks = count()
    for packet in chain(packets(container, stream), (None,)):  # None: return what is delayed
        alive()
        if packet:
            if by_stamp and not references.started and not packet.is_keyframe:
                continue
            packet.opaque = sent = references.add(packet)
            if by_stamp and packet.is_corrupt:
                continue
            suspects.append(sent)
        try:
            frames = context.decode(packet)
        except av.error.FFmpegError:
            for suspect in suspects:
                suspect.mark(damaged=True)
            frames = []
        for frame in frames:
            stamp = frame.pts if by_stamp else next(ranks)
            if stamp is None:
                continue
            source = frame.opaque if isinstance(frame.opaque, _Packet) else sent
            references.note_shown(source, frame, stamp)
            shown = DecodedFrame(stamp, frame, context.sample_aspect_ratio)
            decoded.append((source, shown))
        references.settle()
        yield from _settled(decoded)
    references.end()
    yield from _settled(decoded)


def _settled(decoded: deque[tuple[_Packet, DecodedFrame]]) -> Iterator[DecodedFrame]:
    """Take out the first frames, up to one that may still turn out to be damaged."""
    while decoded and decoded[0][0].intact is not None:
        source, frame = decoded.popleft()
        if source.intact:
            yield frame


@dataclass(eq=False)
class _Packet:
    """What is known of a packet that was sent to the decoder, and of its frame.

    Attributes:
        order: Its rank in decoding order.
        stamp: Its presentation timestamp; None where frames are counted.
        may_be_empty: Whether it may hold no frame that is shown.
        is_key: Whether its frame refers to no other.
        is_reference: Whether other frames may refer to its frame.
        key: The last key frame's packet before it in decoding order, if there was one.
        is_leading: Whether its frame is shown before the one of `key`, and so may refer to frames
            before that (an open group of pictures).
        is_early: Whether its frame is shown before one that was decoded earlier.
        was_shown: Whether the decoder gave its frame.
        damaged: Whether it is damaged itself; None while that is not known.
        intact: Whether its frame is right: neither it nor what it may refer to is damaged; None
            while that is not known.
    """

    order: int
    stamp: int | None
    may_be_empty: bool
    is_key: bool
    is_reference: bool
    key: _Packet | None
    is_leading: bool
    is_early: bool
    was_shown: bool = False
    damaged: bool | None = None
    intact: bool | None = None

    def mark(self, *, damaged: bool) -> None:
        """Note whether it is damaged, if that is not known yet."""
        if self.damaged is None:
            self.damaged = damaged


class _References:
    """Follows in decoding order how damage spreads.

    Args:
        codec: Name of the decoder.
        by_stamp: Whether each packet but the hidden ones holds the frame of its timestamp, and the
            first one a key frame. Otherwise a packet may hold no frame, and where no key frame is
            marked frames count as undamaged until damage is met.
        distrusted: See `Video.distrusted_pts`.
    """

    def __init__(self, codec: str, by_stamp: bool, distrusted: set[int]) -> None:
        self._codec = codec
        self._distrusted = distrusted
        self._by_stamp = by_stamp
        self._orders = count()
        self._pending: deque[_Packet] = deque()  # from the first that may or may not be damaged
        self._key: _Packet | None = None
        self._latest: int | None = None  # the greatest timestamp
        self._intact = not by_stamp  # what the next frame refers to
        self._leading_intact = not by_stamp  # what the next leading frame refers to

    @property
    def started(self) -> bool:
        """Whether there was a key frame."""
        return self._key is not None

    def add(self, packet: av.Packet[VideoStream]) -> _Packet:
        """Follow a packet, the next one in decoding order."""
        stamp = packet.pts if self._by_stamp else None
        added = _Packet(
            order=next(self._orders),
            stamp=stamp,
            may_be_empty=packet.is_discard
            or (
                not self._by_stamp
                and (self._codec in FRAMELESS_PACKETS or packet.size < EMPTY_BYTES)
            ),
            is_key=packet.is_keyframe,
            is_reference=not packet.is_disposable,
            key=self._key,
            is_leading=_is_before(stamp, self._key.stamp if self._key else None),
            is_early=_is_before(stamp, self._latest),
        )
        if added.is_key:
            self._key = added
        if not added.is_early:
            self._latest = stamp
        if stamp in self._distrusted:
            added.mark(damaged=True)
            added.is_reference = True  # what is missing after it may be one
        if packet.is_corrupt and self._by_stamp:  # also said where clips of MPEG-TS are joined
            added.mark(damaged=True)
        self._pending.append(added)
        return added

    def note_shown(self, source: _Packet, frame: av.VideoFrame, stamp: int) -> None:
        """Note that the decoder gave the frame of a packet.

        Frames come in the order they are shown: one that was passed over does not come any more.
        """
        source.was_shown = True
        is_predicted = frame.pict_type in PREDICTED
        if is_predicted and self._codec not in PREDICTED_KEY_FRAMES:
            source.is_key = False
        if not self._by_stamp:
            source.is_leading = source.key is not None and not source.key.was_shown
        refers_to_nothing = is_predicted and source.key is None and not source.is_key
        source.mark(damaged=frame.is_corrupt or refers_to_nothing)
        # A damaged frame's picture type may be wrong, but its timestamp is not part of it.
        is_b_frame = source.is_early and frame.pict_type == PictureType.B
        if is_b_frame and self._codec in B_FRAMES_ARE_NO_REFERENCES:
            source.is_reference = False
        for packet in self._pending:
            if _is_before(packet.stamp, stamp) or packet.order + MAX_REORDER < source.order:
                packet.mark(damaged=not packet.may_be_empty)

    def end(self) -> None:
        """Note that the decoder gives no more frames."""
        for packet in self._pending:
            packet.mark(damaged=not packet.may_be_empty)
        self.settle()

    def settle(self) -> None:
        """Decide which frames are right, as far as it is known which packets are damaged."""
        while self._pending and self._pending[0].damaged is not None:
            packet = self._pending.popleft()
            if packet.is_key:
                packet.intact = not packet.damaged
                self._leading_intact = self._intact and packet.intact
                self._intact = packet.intact
            elif packet.is_leading and packet.key and packet.key.is_key:
                packet.intact = self._leading_intact and not packet.damaged
                if packet.is_reference:
                    self._leading_intact = packet.intact
            else:
                packet.intact = self._intact and not packet.damaged
                if packet.is_reference:
                    self._intact = packet.intact


def _is_before(stamp: int | None, other: int | None) -> bool:
    return stamp is not None and other is not None and stamp < other

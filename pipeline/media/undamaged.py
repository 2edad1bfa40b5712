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
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.stream import VideoStream

from emopipe.pipeline.media.clock import MAX_REORDER
from emopipe.pipeline.media.container import NEEDS_SLICE_THREADS, packets
from emopipe.pipeline.media.video import Video

AVCC = b"\1"
"""H.264's parameters begin with this where its units come after their lengths, as in MP4 (ISO/IEC
14496-15, 5.3.3.1), instead of start codes."""

NON_KEY_SLICE = 1
"""H.264's nal_unit_type of a slice that is not of a key frame (ITU-T H.264, table 7-1)."""

PREDICTED = (PictureType.P, PictureType.B)

# Codecs by libav's names of their decoders.
PREDICTED_KEY_FRAMES = frozenset({"h264"})
"""Key frames here may be predicted ones: the picture refreshes little by little."""
B_FRAMES_ARE_NO_REFERENCES = frozenset({"mpeg1video", "mpeg2video", "mpeg4", "vc1", "wmv3"})
FRAMELESS_PACKETS = frozenset({"h264", "vp8", "vp9", "libdav1d", "av1"})
"""A packet here may hold a field of a frame, or one that is only referred to."""
NOT_FRAME_THREADS = NEEDS_SLICE_THREADS | {"mpeg4"}
"""MPEG-4's decoder gets interlaced B-frames wrong with threads for frames, and is no faster."""
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
    if threads > 1 and len(video.keyframe_pts) and context.name not in NOT_FRAME_THREADS:
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
    order_is_stated = by_stamp and container.format.name != "avi"  # there libav guesses timestamps
    distrusted = set(video.distrusted_pts.tolist())
    references = _References(context, by_stamp, order_is_stated, distrusted)
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
        says_no_reference: Whether it says itself that no frame refers to its own.
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
    says_no_reference: bool = False
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
        context: The decoder.
        by_stamp: Whether each packet but the hidden ones holds the frame of its timestamp, and the
            first one a key frame. Otherwise a packet may hold no frame, and where no key frame is
            marked frames count as undamaged until damage is met.
        order_is_stated: Whether the timestamps are the container's and so not changed by damage.
        distrusted: See `Video.distrusted_pts`.
    """

    def __init__(
        self,
        context: VideoCodecContext,
        by_stamp: bool,
        order_is_stated: bool,
        distrusted: set[int],
    ) -> None:
        self._order_is_stated = order_is_stated
        self._codec = context.name
        self._has_lengths = (context.extradata or b"").startswith(AVCC)
        self._distrusted = distrusted
        self._by_stamp = by_stamp
        self._orders = count()
        self._pending: deque[_Packet] = deque()  # from the first that may or may not be damaged
        self._key: _Packet | None = None
        self._latest: int | None = None  # the greatest timestamp of packets
        self._shown: int | None = None  # and of frames that came
        self._intact = not by_stamp  # what the next frame refers to
        self._leading_intact = not by_stamp  # what the next leading frame refers to

    @property
    def started(self) -> bool:
        """Whether there was a key frame."""
        return self._key is not None

    def add(self, packet: av.Packet[VideoStream]) -> _Packet:
        """Follow a packet, the next one in decoding order."""
        stamp = packet.pts if self._by_stamp else None
        key, place = self._key, stamp if self._order_is_stated else None  # among the frames shown
        is_first_group = key is not None and key.key is None
        added = _Packet(
            order=next(self._orders),
            stamp=stamp,
            may_be_empty=packet.is_discard
            or (
                not self._by_stamp
                and (self._codec in FRAMELESS_PACKETS or packet.size < EMPTY_BYTES)
            ),
            is_key=packet.is_keyframe,
            is_reference=not packet.is_disposable or self._codec == "h264",
            key=key,
            is_leading=_is_before(stamp if is_first_group else place, key.stamp if key else None),
            is_early=_is_before(place, self._latest),
        )
        if added.is_early and self._codec == "h264":
            added.says_no_reference = _says_no_reference(bytes(packet), self._has_lengths)
        if added.is_key:
            self._key = added
        if not added.is_early:
            self._latest = place
        if packet.pts in self._distrusted:
            added.mark(damaged=True)
            # What is missing after it may be a reference, so it stands for one.
            added.is_reference, added.is_early = True, False
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
        if not self._order_is_stated:
            source.is_leading = source.key is not None and not source.key.was_shown
        refers_to_nothing = is_predicted and source.key is None and not source.is_key
        source.mark(damaged=frame.is_corrupt or refers_to_nothing)
        # What a damaged frame says of itself may be wrong, but timestamps are not part of it: one
        # that nothing refers to is shown before another that was decoded earlier, in its turn.
        is_b_frame = frame.pict_type == PictureType.B and self._codec in B_FRAMES_ARE_NO_REFERENCES
        if (is_b_frame or source.says_no_reference) and source.is_early:
            source.is_reference &= _is_before(stamp, self._shown)
        if not _is_before(stamp, self._shown):
            self._shown = stamp
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


def _says_no_reference(packet: bytes, has_lengths: bool) -> bool:
    """Whether a packet of H.264 holds a frame that no other refers to: nal_ref_idc is 0."""
    units, position = [], 0
    if has_lengths:
        while position + 4 < len(packet):
            units.append(packet[position + 4])
            position += 4 + int.from_bytes(packet[position : position + 4])
    else:
        units = [unit[0] for unit in packet.split(b"\0\0\1")[1:] if unit]
    slices = [unit for unit in units if unit & 31 == NON_KEY_SLICE]
    return bool(slices) and not any(unit >> 5 & 3 for unit in slices)

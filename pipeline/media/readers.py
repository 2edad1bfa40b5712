"""Frames of a video by number: one reader for each backend.

All give RGB as displayed, and None for a frame that could not be had: a picture that a decoder
repeats or makes up in place of a damaged one is not a decoded frame.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageOps

from emopipe.emonet.errors import EmopipeError

if TYPE_CHECKING:
    from emopipe.pipeline.media.video import Video

FAR_FRAMES = 32
"""Seek only where it saves decoding at least this many frames: a seek costs some itself."""

UNTAGGED = 2
"""Matrix coefficients "unspecified" of ISO/IEC 23091-2."""

SD_WIDTH, SD_HEIGHT = 1279, 576
"""Players take untagged video up to this size for BT.601, and larger video for BT.709."""

NOWHERE = -(2**63)
"""Before every timestamp."""

MAX_DEMUX_ERRORS = 100
"""A demuxer that fails so often in a row does not find its way again."""

FAULT_TOLERANCE = 1e-9
"""decord then raises on the first frame that it repeats for a damaged one (0 means never)."""


class ReadError(EmopipeError):
    """A file cannot be opened, or its reader cannot go on."""


class Reader(Protocol):
    """Frames of one video by number, in any order; ascending order is fast."""

    def frame(self, index: int) -> NDArray[np.uint8] | None:
        """Frame `index` as (height, width, 3) RGB as displayed; None where it is damaged.

        Raises:
            ReadError: The backend cannot go on with this video.
        """

    def close(self) -> None:
        """Give the file back."""


def open_reader(video: Video, threads: int = 1, alive: Callable[[], None] = lambda: None) -> Reader:
    """Open the video with the backend it was probed for.

    Args:
        video: A probed video.
        threads: For decoding.
        alive: Called for each frame that PyAV decodes, wanted or not; decord does not tell.

    Raises:
        ReadError: It cannot be opened.
    """
    if video.backend == "image":
        return ImageReader(video)
    if video.backend == "decord":
        return DecordReader(video, threads)
    return PyAVReader(video, threads, alive)


class ImageReader:
    """The one frame of a picture."""

    def __init__(self, video: Video) -> None:
        self._pictures = [load_image(video.path)]

    def frame(self, index: int) -> NDArray[np.uint8]:
        """The picture, which is frame 0."""
        return self._pictures[index]

    def close(self) -> None:
        """Let the picture go."""
        self._pictures.clear()


class DecordReader:
    """Frames by decord, which turns them for display itself."""

    def __init__(self, video: Video, threads: int = 1) -> None:
        self._video = video
        import decord  # here, since some machines have no wheel of it

        decord.logging.set_level(decord.logging.QUIET)
        try:
            self._reader = decord.VideoReader(
                str(video.path), num_threads=threads, fault_tol=FAULT_TOLERANCE
            )
        except Exception as error:  # its errors share no base
            raise ReadError(f"decord cannot open {video.path}.") from error

    def count(self) -> int:
        """Coded frames that decord finds."""
        return len(self._reader)

    def frame(self, index: int) -> NDArray[np.uint8]:
        """See `Reader`; decord gives a frame or cannot go on."""
        try:
            self._reader.seek_accurate(index)
            picture: NDArray[np.uint8] = self._reader.next().asnumpy()
        except Exception as error:
            raise ReadError(
                f"decord met a damaged frame in {self._video.path}, at or before frame {index}."
            ) from error
        return picture

    def close(self) -> None:
        """Give the file back."""
        del self._reader


class PyAVReader:
    """Frames by PyAV, going on past damaged packets.

    Where the video has key frames' timestamps, frames are found by timestamp; elsewhere by
    counting the decoder's output from the file's start.
    """

    def __init__(
        self, video: Video, threads: int = 1, alive: Callable[[], None] = lambda: None
    ) -> None:
        self._video = video
        self._threads = threads
        self._alive = alive
        self._reformatter = VideoReformatter()
        self._open()

    def _open(self) -> None:
        self._container, self._stream = _open(self._video.path)
        if len(self._video.keyframe_pts) and self._threads > 1:
            self._stream.thread_type = "AUTO"
            self._stream.codec_context.thread_count = self._threads
        self._restart()

    def _restart(self) -> None:
        """Decode from where the container stands."""
        self._decoded = self._by_stamp() if len(self._video.keyframe_pts) else self._by_count()
        self._ahead: _DecodedFrame | None = None  # decoded, but not asked for yet
        self._passed = NOWHERE

    def frame(self, index: int) -> NDArray[np.uint8] | None:
        """See `Reader`."""
        wanted = int(self._video.pts[index])
        self._approach(wanted)
        while (coded := self._peek()) and coded.stamp <= wanted:
            self._passed, self._ahead = coded.stamp, None
            if coded.stamp == wanted:
                return self._display(coded.frame)
        return None

    def _peek(self) -> _DecodedFrame | None:
        if self._ahead is None:
            self._ahead = next(self._decoded, None)
            self._alive()
        return self._ahead

    def _approach(self, wanted: int) -> None:
        """Go to where decoding on leads to the wanted frame, without a long way."""
        if self._ahead and self._passed < wanted <= self._ahead.stamp:
            return
        keys, coded = self._video.keyframe_pts, self._video.pts
        before = keys[: np.searchsorted(keys, wanted, side="right")]
        if wanted > self._passed:
            if not len(before):
                return
            saved = np.searchsorted(coded, before[-1]) - np.searchsorted(coded, self._passed)
            if saved < FAR_FRAMES:
                return
        # A demuxer may land behind the key frame that was asked for: then try the one before it.
        for key in before[:-3:-1]:
            with suppress(av.error.FFmpegError):
                self._container.seek(int(key), stream=self._stream)
                self._restart()
                if (first := self._peek()) and first.stamp <= wanted:
                    return
        self.close()
        self._open()

    def _by_stamp(self) -> Iterator[_DecodedFrame]:
        """Good frames, by timestamp.

        Nothing that is built on damage is good: after a packet that is broken, or where decoding
        starts, frames count again from the next key frame on.
        """
        good: set[int] = set()
        good_from: int | None = None  # None: nothing is until the next key frame
        started = False
        # With frame threads the error of a packet surfaces some packets later.
        suspects: deque[int] = deque(maxlen=self._threads)
        for packet in packets(self._container, self._stream, flush=True):
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
                    yield _DecodedFrame(frame.pts, frame)
                good.discard(frame.pts)

    def _by_count(self) -> Iterator[_DecodedFrame]:
        frames = (frame for frame in decode_all(self._container, self._stream) if frame)
        for rank, frame in enumerate(frames):
            if not frame.is_corrupt:
                yield _DecodedFrame(rank, frame)

    def _display(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        width, height = self._video.width, self._video.height
        if self._video.rotation in (90, 270):
            width, height = height, width
        rgb = self._reformatter.reformat(
            frame,
            width,
            height,
            "rgb24",
            src_colorspace=Colorspace.ITU709 if is_untagged_hd(frame) else None,
            threads=self._threads,
        ).to_ndarray()
        return np.rot90(rgb, -self._video.rotation // 90).astype(np.uint8, copy=False)

    def close(self) -> None:
        """Give the file back."""
        self._container.close()


@dataclass(frozen=True)
class _DecodedFrame:
    """A decoded frame and what `Video.pts` calls it."""

    stamp: int
    frame: av.VideoFrame


@contextmanager
def open_container(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its video stream, as ffmpeg chooses it.

    Raises:
        ReadError: libav cannot open the file, or it has no video.
    """
    container, stream = _open(path)
    with container:
        yield container, stream


def _open(path: Path) -> tuple[InputContainer, VideoStream]:
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ReadError(_why_not_opened(path, error)) from error
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        container.close()
        raise ReadError(f"{path} has no video, perhaps only sound. Leave it out.")
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        container.close()
        raise ReadError(f"{path} holds video of a kind that PyAV cannot decode. Convert it first.")
    return container, stream


def _why_not_opened(path: Path, error: Exception) -> str:
    if "moov" not in (boxes := _boxes(path)) and boxes[:1] == ["ftyp"]:
        return (
            f"{path} is an MP4 without its index (moov box), so its recording or copying was cut "
            f"short. Copy it anew, or mend it with a repair tool such as untrunc."
        )
    reason = getattr(error, "strerror", None) or error
    return f"{path} is no video that PyAV can open ({reason}). Check that it is one and is whole."


def _boxes(path: Path) -> list[str]:
    """Types of the top-level boxes of an MP4 (ISO/IEC 14496-12), as far as they go."""
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
            if length < 8:  # 0: to the end of the file; less is no box
                break
            position += length
    return kinds


def packets(
    container: InputContainer, stream: VideoStream, *, flush: bool = False
) -> Iterator[av.Packet[VideoStream]]:
    """The stream's packets in coded order, going on past what cannot be read.

    Args:
        container: An open file.
        stream: Its video.
        flush: End with the empty packet that makes the decoder put out what it holds back.
    """
    demuxed = container.demux(stream)
    errors = 0
    while errors < MAX_DEMUX_ERRORS:
        try:
            packet = next(demuxed)
        except StopIteration:
            return
        except av.error.FFmpegError:
            errors += 1
            demuxed = container.demux(stream)
            continue
        errors = 0
        if packet.size or flush:
            yield packet


def decode_all(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame | None]:
    """All that the decoder puts out, in its order; None stands for a packet it cannot decode."""
    for packet in packets(container, stream, flush=True):
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            yield None


def is_untagged_hd(frame: av.VideoFrame) -> bool:
    """Whether the picture is of HD size and does not say that it is BT.709, as players assume."""
    is_hd = frame.width > SD_WIDTH or frame.height > SD_HEIGHT
    return is_hd and frame.colorspace == UNTAGGED and not frame.format.is_rgb


def load_image(path: Path) -> NDArray[np.uint8]:
    """A picture file as (height, width, 3) RGB as displayed.

    Turned as its EXIF says, alpha laid on white, 16-bit scaled to 8, the first frame of several.

    Raises:
        ReadError: Pillow cannot read it.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            return _to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ReadError(f"{path} is no picture that Pillow can read ({error}).") from error


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers, of unknown range: save it as 8 bit"
        )
    if image.mode.startswith("I"):  # 16 bits, in 16 or 32
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))

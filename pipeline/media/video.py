"""What a video shows: which frames, when, and how to find each of them again.

`frame` n is the n-th frame that a player shows, in presentation order, whichever library decodes
it. The number and its time come from the packets, read once without decoding. Where the packets do
not tell the frames (no or equal timestamps, a clock that jumps, packets that hold no picture or
two), everything is decoded once instead and the frames are counted.
"""

import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from emopipe.emonet.errors import EmopipeError
from emopipe.pipeline.media import readers

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".vob", ".ts",
    ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".mjpeg",
    ".mjpg", ".mxf", ".dv", ".h264", ".264", ".hevc", ".265",
})
# fmt: on
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

BACKENDS = ("pyav", "decord")
"""Who decodes videos. decord decodes far ahead of who takes its frames: with a consumer of 25 to 50
frames/s, on four clips, it took 3 to 23 times PyAV's CPU time and up to 1.5 GB."""

DEFAULT_BACKEND = BACKENDS[0]

MAX_GREY_LEVELS = 2.0
"""Two decoders that agree differ by less than this, in grey levels of 255, on average."""

TICK_TOLERANCE_S = 1e-3
"""Matroska rounds times to whole ms: a frame this much before a tick still is the tick's."""

CLOCK_JUMP_S = 1.0
"""Decoding times that go back by more than this mean that the container's clock was set anew."""

LONGEST_INTERVAL_S = 3600.0
SHORTEST_INTERVAL_S = 1e-4
LATEST_S = 1e9
"""Mean intervals and times beyond these are no clock but a damaged or missing time base."""

FALLBACK_FPS = 25.0
"""Assumed where neither timestamps nor the container tell a rate."""

AV_TIME_BASE_HZ = 1_000_000
"""Unit of a container's duration in libav: microseconds."""

HEAD_FRAMES = 16
"""So many frames are decoded to see whether the packets tell the frames."""

SPAN_FRAMES = 128
"""Sampled frames of a span: the unit of batching, of parts and of resume."""


class VideoError(EmopipeError):
    """This file has no frame to look at; the text says why."""


@dataclass(frozen=True)
class Video:
    """One probed input. Plain data: it travels to the decoding child and to other machines.

    Attributes:
        path: What to open.
        name: Path relative to the input root, "/" between parts.
        backend: "decord", "pyav" or "image": who decodes it, from the first frame to the last.
        width: Pixels as displayed, after rotation.
        height: Pixels as displayed, after rotation.
        rotation: Degrees clockwise to turn the coded picture for display: 0, 90, 180 or 270.
        times: (frames,) presentation time of each shown frame in s on the container's clock (the
            audio's), strictly increasing.
        pts: (frames,) where PyAV finds each shown frame: its timestamp in the stream's time base
            or, where `keyframe_pts` is empty, its rank among the frames decoded from the file's start.
        keyframe_pts: Ascending timestamps of the key frames, in the stream's time base: where PyAV may
            start decoding. Empty where timestamps do not identify the frames.
        fps: Mean frames/s of the shown frames; 0 for a picture.
        truncated_frames: Frames that the container lists behind `times` but the file, cut short, no longer has.
        size: Bytes of the file.
        sha256: Hex digest of the file's content.
    """

    path: Path
    name: str
    backend: str
    width: int
    height: int
    rotation: int
    times: NDArray[np.float64]
    pts: NDArray[np.int64]
    keyframe_pts: NDArray[np.int64]
    fps: float
    truncated_frames: int
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"rotation must be 0, 90, 180 or 270 degrees, not {self.rotation}")
        if not len(self.times) or self.times.shape != self.pts.shape:
            raise ValueError("times and pts must be of the same length, at least 1")
        if not (np.diff(self.times) > 0).all():
            raise ValueError("times must increase strictly")

    @property
    def frames(self) -> int:
        """Number of frames a player shows."""
        return len(self.times)


@dataclass(frozen=True)
class HeaderInfo:
    """What a file's header says, which may be wrong: for estimates before it is read.

    Attributes:
        seconds: Duration; 0 for a picture.
        frames: Number of frames.
    """

    seconds: float
    frames: int


@dataclass(frozen=True)
class _Index:
    """What identifies the shown frames; fields as in `Video`."""

    times: NDArray[np.float64]
    pts: NDArray[np.int64]
    keyframe_pts: NDArray[np.int64]
    plain: bool  # whether every coded frame is shown, and no group of pictures is open
    damaged: bool  # whether the container says that packets are incomplete
    truncated_frames: int
    stated_fps: float

    @property
    def fps(self) -> float:
        count = len(self.times)
        return float((count - 1) / np.ptp(self.times)) if count > 1 else self.stated_fps


def sample(
    video: Video,
    *,
    stride: int = 1,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> NDArray[np.int64]:
    """Choose the frames to look at.

    Args:
        video: A probed video.
        stride: Take every stride-th frame of the chosen stretch.
        fps: Instead: for each tick of this many a second, from the stretch's first frame on, the
            first frame that is not before it; a frame that serves two ticks is taken once. The
            caller sees to it that stride and fps do not come together.
        start: Seconds on the clock of `video.times`; frames from there on. None: from the first.
        end: Seconds on the same clock; frames before it. None: to the last.

    Returns:
        (n,) frame numbers, ascending; none where the stretch holds no frame.

    Raises:
        ValueError: stride is less than 1, fps is not positive, end is not after start.
    """
    if stride < 1:
        raise ValueError(f"stride must be at least 1, not {stride}")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps must be positive, not {fps}")
    if start is not None and end is not None and end <= start:
        raise ValueError(f"end ({end} s) must be after start ({start} s)")
    first = 0 if start is None else int(np.searchsorted(video.times, start))
    stop = video.frames if end is None else int(np.searchsorted(video.times, end))
    if fps is None or first >= stop:
        return np.arange(first, stop, stride, dtype=np.int64)
    times = video.times[first:stop]
    ticks_passed = np.floor((times - times[0] + TICK_TOLERANCE_S) * fps)
    return first + np.flatnonzero(np.diff(ticks_passed, prepend=-1.0) > 0).astype(np.int64)


def spans_of(numbers: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Divide a video's sampled frames into spans.

    Args:
        numbers: (n,) frame numbers, ascending.

    Returns:
        Span index to its frame numbers.
    """
    return {
        span: numbers[first : first + SPAN_FRAMES]
        for span, first in enumerate(range(0, len(numbers), SPAN_FRAMES))
    }


def read_header(path: Path) -> HeaderInfo:
    """Read a file's header only.

    Raises:
        VideoError: it cannot be opened, or says nothing.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return HeaderInfo(0.0, 1)
    try:
        with readers.open_container(path) as (container, stream):
            rate = float(stream.average_rate or stream.guessed_rate or FALLBACK_FPS)
            if stream.duration and stream.time_base:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / AV_TIME_BASE_HZ
            return HeaderInfo(max(0.0, seconds), stream.frames or max(0, round(seconds * rate)))
    except readers.ReadError as error:
        raise VideoError(str(error)) from error


def probe(
    path: Path,
    name: str,
    backend: str = DEFAULT_BACKEND,
    *,
    alive: Callable[[], None] = lambda: None,
) -> Video:
    """Index a file's frames for who is to decode it.

    This runs native decoders on a file of unknown origin, which may crash or hang:
    `Decoder.probe` does the same in the decoding child.

    Args:
        path: A video, or a picture by its suffix (`IMAGE_SUFFIXES`), which is a video of one frame.
        name: What the results call it.
        backend: one of `BACKENDS`; "decord" leaves to PyAV what decord reads wrongly.
        alive: Called now and then while decoding, for whoever watches this process.

    Raises:
        VideoError: The file has no frame that can be had.
        ValueError: No such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    size = _size(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _probe_image(path, name, size)
    index, head = _index(path, alive)
    by_pyav = Video(
        path=path,
        name=name,
        backend="pyav",
        width=head.width,
        height=head.height,
        rotation=head.rotation,
        times=index.times,
        pts=index.pts,
        keyframe_pts=index.keyframe_pts,
        fps=index.fps,
        truncated_frames=index.truncated_frames,
        size=size,
        sha256=_sha256(path),
    )
    if backend == "pyav":
        return by_pyav
    return replace(by_pyav, backend="decord") if _decord_reads(by_pyav, index, head) else by_pyav


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise VideoError(f"{path} does not exist.") from None
    except OSError as error:
        raise VideoError(f"{path} cannot be read: {error.strerror}.") from error
    if size == 0:
        raise VideoError(f"{path} is empty (0 bytes). Copy or record it anew.")
    return size


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _probe_image(path: Path, name: str, size: int) -> Video:
    try:
        height, width, _ = readers.load_image(path).shape
    except readers.ReadError as error:
        raise VideoError(str(error)) from error
    return Video(
        path=path,
        name=name,
        backend="image",
        width=width,
        height=height,
        rotation=0,
        times=np.zeros(1),
        pts=np.zeros(1, np.int64),
        keyframe_pts=np.zeros(0, np.int64),
        fps=0.0,
        truncated_frames=0,
        size=size,
        sha256=_sha256(path),
    )


@dataclass(frozen=True)
class _Head:
    """What the first decoded frames tell."""

    stamps: list[int | None]
    damaged: bool  # whether packets among them could not be decoded
    width: int  # as displayed
    height: int
    rotation: int  # degrees clockwise
    untagged_hd: bool


def _index(path: Path, alive: Callable[[], None]) -> tuple[_Index, _Head]:
    """The frames by their packets or, where those do not tell, by decoding.

    Raises:
        VideoError: PyAV cannot open the file, or finds no frame in it.
    """
    try:
        with readers.open_container(path) as (container, stream):
            index = _index_by_packets(container, stream)
        with readers.open_container(path) as (container, stream):
            head = _head(container, stream)
        if head is None:
            raise VideoError(f"{path} has no frame that can be decoded. Copy or record it anew.")
        if index is None or not _agree(index, head):
            with readers.open_container(path) as (container, stream):
                index = _index_by_decoding(container, stream, alive)
    except readers.ReadError as error:
        raise VideoError(str(error)) from error
    return index, head


def _head(container: InputContainer, stream: VideoStream) -> _Head | None:
    first = None
    stamps: list[int | None] = []
    damaged = False
    for frame in readers.decode_all(container, stream):
        if frame is None:
            damaged = True
            continue
        first = first or frame
        stamps.append(frame.pts)
        if len(stamps) == HEAD_FRAMES:
            break
    if first is None:
        return None
    # libav's angle is counter-clockwise, and any angle is possible: take the nearest quarter turn.
    rotation = -round(first.rotation / 90) * 90 % 360
    size = first.width, first.height
    width, height = size[::-1] if rotation in (90, 270) else size
    return _Head(stamps, damaged, width, height, rotation, readers.is_untagged_hd(first))


def _agree(index: _Index, head: _Head) -> bool:
    """Whether the decoder's first frames are those that the packets promise."""
    expected = index.pts.tolist()
    if not head.damaged:
        return bool(head.stamps == expected[: len(head.stamps)])
    return head.stamps == [stamp for stamp in expected if stamp in head.stamps]


def _index_by_packets(container: InputContainer, stream: VideoStream) -> _Index | None:
    """Index by demuxing alone; None where packets do not tell the frames."""
    packets = [
        (packet.pts, packet.dts, packet.is_keyframe, packet.is_discard, packet.is_corrupt)
        for packet in readers.packets(container, stream)
    ]
    if not packets or any(pts is None for pts, *_ in packets):
        return None
    pts = np.array([packet[0] for packet in packets], np.int64)
    dts = np.array([packet[1] for packet in packets if packet[1] is not None], np.int64)
    key, hidden, damaged = np.array([packet[2:] for packet in packets], bool).T
    if len(np.unique(pts)) < len(pts) or not key.any():
        return None
    unit, rate = float(stream.time_base or 0), _stated_rate(stream)
    if (np.diff(dts) * unit < -CLOCK_JUMP_S).any():
        return None
    # What is coded before the first key frame cannot be decoded.
    shown = ~hidden & (pts >= pts[np.argmax(key)])
    if not shown.any():
        return None
    order = np.argsort(pts)
    leading = np.argsort(order)[key] != np.flatnonzero(key)  # shown before, coded after a key frame
    coded = np.sort(pts[shown])
    times = coded * unit
    if _is_absurd(times):
        times = np.arange(len(coded)) / rate
    # Only MP4 and its kin list every frame; the counts of other containers are estimates.
    listed = stream.frames if "mp4" in container.format.name else 0
    return _Index(
        times=times,
        pts=coded,
        keyframe_pts=np.sort(pts[key]),
        plain=bool(shown.all() and not leading.any()),
        damaged=bool(damaged.any()),
        truncated_frames=max(0, listed - len(pts)),
        stated_fps=rate,
    )


def _index_by_decoding(
    container: InputContainer, stream: VideoStream, alive: Callable[[], None]
) -> _Index:
    """Index by counting what the decoder puts out. Slow, but right where packets mislead."""
    stamps: list[int | None] = []
    for frame in readers.decode_all(container, stream):
        alive()
        if frame:
            stamps.append(frame.pts)
    count, rate = len(stamps), _stated_rate(stream)
    known = np.array([stamp for stamp in stamps if stamp is not None], np.float64)
    times = known * float(stream.time_base or 0)
    if len(times) == count and not (np.diff(times) < -CLOCK_JUMP_S).any():
        # Timestamps that some muxers hand out in decoding order are right but for their order.
        times = np.sort(times)
    if len(times) < count or (np.diff(times) <= 0).any() or _is_absurd(times):
        times = np.arange(count) / rate
    return _Index(
        times=times,
        pts=np.arange(count),
        keyframe_pts=np.zeros(0, np.int64),
        plain=False,
        damaged=False,
        truncated_frames=0,
        stated_fps=rate,
    )


def _is_absurd(times: NDArray[np.float64]) -> bool:
    if np.abs(times).max() > LATEST_S:
        return True
    interval = float(np.ptp(times)) / max(1, len(times) - 1)
    return len(times) > 1 and not SHORTEST_INTERVAL_S <= interval <= LONGEST_INTERVAL_S


def _stated_rate(stream: VideoStream) -> float:
    """Frames/s by the container's word."""
    return float(stream.average_rate or stream.guessed_rate or FALLBACK_FPS)


def _decord_reads(by_pyav: Video, index: _Index, head: _Head) -> bool:
    """Tell whether decord gives this video's frames as PyAV does."""
    # After a seek it miscounts what is not plain; it makes up incomplete frames, and takes HD
    # without a colour tag for BT.601.
    if not index.plain or index.damaged or head.untagged_hd:
        return False
    # The first frame, and those at and behind a seek to the middle.
    middle = int(np.searchsorted(by_pyav.pts, by_pyav.keyframe_pts[len(by_pyav.keyframe_pts) // 2]))
    numbers = np.unique(np.minimum([0, middle, middle + 1], by_pyav.frames - 1))
    try:
        with (
            closing(readers.DecordReader(by_pyav)) as decord,
            closing(readers.PyAVReader(by_pyav)) as pyav,
        ):
            return decord.count() == by_pyav.frames and not any(
                _differ(decord.frame(number), ours)
                for number in map(int, numbers)
                if (ours := pyav.frame(number)) is not None
            )
    except readers.ReadError:
        return False


def _differ(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    return a.shape != b.shape or bool(np.abs(a.astype(np.int16) - b).mean() > MAX_GREY_LEVELS)

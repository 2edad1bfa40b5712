"""What the driver and its workers say to each other. Light: no PyTorch is loaded for it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emopipe.pipeline.inputs import InputFile
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.table.results import SpanFaces


@dataclass(frozen=True)
class Task:
    """An input to be probed and done.

    Attributes:
        file: which.
        backend: who is to decode it.
    """

    file: InputFile
    backend: str


@dataclass(frozen=True)
class Planned:
    """What probing found of an input."""

    file: InputFile
    video: Video


@dataclass(frozen=True)
class Failed:
    """An input that cannot be probed, and why."""

    file: InputFile
    reason: str


@dataclass(frozen=True)
class Segment:
    """Some spans of a video to be decoded in one go: span index to frame numbers."""

    video: Video
    spans: dict[int, NDArray[np.int64]]


@dataclass(frozen=True)
class Found:
    """A span's faces, on their way to the network."""

    key: str
    faces: SpanFaces


@dataclass(frozen=True)
class Rows:
    """A span's rows as an Arrow stream."""

    video: str
    key: str
    span: int
    stream: bytes


@dataclass(frozen=True)
class Lost:
    """A span that no try brought to its end, and why."""

    video: str
    key: str
    span: int
    reason: str


@dataclass(frozen=True)
class Redo:
    """A video that decord stumbled over: PyAV is to do the whole of it."""

    video: str


Message = Task | Planned | Failed | Segment | Found | Rows | Lost | Redo


def segments(video: Video, spans: Mapping[int, NDArray[np.int64]], most: int) -> Iterator[Segment]:
    """Divide spans into segments, smaller ones towards the end: actors then end together.

    Args:
        video: whose.
        spans: span index to frame numbers.
        most: spans of a segment, down to a quarter of it at the end. It is all of them that many
            where decoding can only begin at the file's start.
    """
    order = list(spans)
    least = max(1, most // 4) if len(video.keys) else most
    while order:
        size = max(least, min(most, -(-len(order) // 2)))
        yield Segment(video, {span: spans[span] for span in order[:size]})
        del order[:size]

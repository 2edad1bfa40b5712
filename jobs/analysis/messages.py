"""What the driver sends to workers and what they answer. Light: PyTorch is not loaded for it.

An input to be probed travels as its `InputFile` and comes back as a `Video`; a span that failed is
a `pipeline.run.FailedSpan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emopipe.pipeline.media.video import Video


@dataclass(frozen=True)
class SegmentTask:
    """Spans of a video to be analyzed in one go: one open, one seek.

    Attributes:
        video: the slice of the video's index that its frames need.
        span_ids: (n,) int32, which spans, ascending.
        sizes: (n,) int32, number of sampled frames of each.
        frame_indices: (sum of sizes,) int32, the frames of all spans, ascending.
    """

    video: Video
    span_ids: NDArray[np.int32]
    sizes: NDArray[np.int32]
    frame_indices: NDArray[np.int32]

    @classmethod
    def of(cls, video: Video, spans: Mapping[int, NDArray[np.int64]]) -> SegmentTask:
        """Cut what some spans need out of the whole video's index.

        Args:
            video: with its whole index.
            spans: span id to its frame indices, both ascending.
        """
        frame_indices = np.concatenate(list(spans.values()))
        return cls(
            video=video.slice(frame_indices),
            span_ids=np.array(list(spans), np.int32),
            sizes=np.array([len(frames) for frames in spans.values()], np.int32),
            frame_indices=frame_indices.astype(np.int32),
        )

    @property
    def spans(self) -> dict[int, NDArray[np.int64]]:
        """Span id to its frame indices."""
        parts = np.split(self.frame_indices.astype(np.int64), np.cumsum(self.sizes)[:-1])
        return dict(zip(self.span_ids.tolist(), parts, strict=True))


@dataclass(frozen=True)
class FailedVideo:
    """An input that cannot be analyzed, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class SpanDetected:
    """A span's faces are found; its `DetectedSpan` follows as an object of its own.

    The driver passes that object's reference on to an emotion worker and never loads the crops.

    Attributes:
        video: the input's name.
        span: which span of it.
        bytes: size of the crops.
    """

    video: str
    span: int
    bytes: int


@dataclass(frozen=True)
class SpanRows:
    """A finished span.

    Attributes:
        video: the input's name.
        span: which span of it.
        part: the content of its part, as the store keeps it.
        faces: how many faces it has.
    """

    video: str
    span: int
    part: bytes = field(repr=False)
    faces: int

"""Which frames of a video are analyzed, and how they are grouped into spans."""

import numpy as np
from numpy.typing import NDArray

from emopipe.pipeline.media.video import Video

SPAN_FRAMES = 24
"""Sampled frames of a span: the unit of batching, of parts of the output and of resuming. One CPU
core takes a second or two for it: that is what a worker that dies takes along."""

TICK_TOLERANCE_S = 1e-3
"""Matroska rounds times to whole ms: a frame this little before a tick still belongs to it."""


def sample(
    video: Video,
    *,
    stride: int = 1,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> NDArray[np.int64]:
    """Choose the frames to analyze.

    Args:
        video: A probed video.
        stride: Take every stride-th frame between `start` and `end`.
        fps: Instead: for each of this many ticks a second, counted from the first frame between
            `start` and `end`, take the first frame that is not before the tick; a frame that
            serves two ticks is taken once. The caller makes sure that only one of `stride` and
            `fps` is given.
        start: Seconds since the container's start, as `video.times`: frames from there on. None:
            from the first.
        end: Likewise: frames before it. None: to the last.

    Returns:
        (n,) frame indices, ascending; empty where there is no frame between `start` and `end`.

    Raises:
        ValueError: `stride` is less than 1, `fps` is not positive, or `end` is not after `start`.
    """
    chosen = sample_times(video.times, stride=stride, fps=fps, start=start, end=end)
    return video.first + chosen


def sample_times(
    times: NDArray[np.float64],
    *,
    stride: int = 1,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> NDArray[np.int64]:
    """Do what `sample` does for a video whose frames have these times, (frames,) ascending."""
    if stride < 1:
        raise ValueError(f"`stride` must be at least 1, not {stride}")
    if fps is not None and not fps > 0:
        raise ValueError(f"`fps` must be positive, not {fps}")
    if start is not None and end is not None and end <= start:
        raise ValueError(f"`end` ({end} s) must be after `start` ({start} s)")
    first = 0 if start is None else int(np.searchsorted(times, start))
    stop = len(times) if end is None else int(np.searchsorted(times, end))
    if fps is None or first >= stop:
        return np.arange(first, stop, stride, dtype=np.int64)
    since = times[first:stop] - times[first]
    ticks_passed = np.floor((since + TICK_TOLERANCE_S) * fps)
    return first + np.flatnonzero(np.diff(ticks_passed, prepend=-1.0) > 0).astype(np.int64)


def spans_of(frame_indices: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Divide a video's sampled frames into spans.

    Args:
        frame_indices: (n,) ascending.

    Returns:
        Span index to its frame indices.
    """
    return {
        span: frame_indices[start : start + SPAN_FRAMES]
        for span, start in enumerate(range(0, len(frame_indices), SPAN_FRAMES))
    }

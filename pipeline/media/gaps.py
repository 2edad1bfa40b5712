"""Packets that are missing in the middle of a file whose container is damaged.

A demuxer skips what it cannot read and goes on. What is left shows a gap in its timestamps, but so
does an undamaged video of variable rate: a gap counts only where the demuxer complained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av.logging
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from emopipe.pipeline.media.timeline import NO_STAMP, Timeline

GAP_INTERVALS = 1.5
"""More of the usual intervals between two frames than this are a gap: timestamps in whole ms vary
by less."""

LONGEST_GAP_S = 60.0
"""More is a clock that was set anew."""

CONSTANT_SHARE = 0.8
"""With fewer usual intervals than this the rate is variable, and nobody knows what is missing."""


@dataclass(frozen=True)
class Gaps:
    """Where packets are missing.

    Attributes:
        lost: (n,) int64, ascending timestamps that the missing frames would have, in the stream's
            time base.
        beside: (m,) int64, timestamps of the packets before the gaps in decoding order: what is
            left of them is not to be trusted.
    """

    lost: NDArray[np.int64]
    beside: NDArray[np.int64]


NO_GAPS = Gaps(np.zeros(0, np.int64), np.zeros(0, np.int64))


@contextmanager
def heed_demuxer() -> Iterator[Callable[[InputContainer], bool]]:
    """Listen to libav while a file is opened and its packets are read, without decoding.

    Yields:
        A function that says whether the container's demuxer complained so far.
    """
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture(local=False) as complaints:
            yield lambda container: any(who == container.format.name for _, who, _ in complaints)
    finally:
        av.logging.set_skip_repeated(skips)
        av.logging.set_level(level)


def find_gaps(timeline: Timeline) -> Gaps:
    """Find the gaps in the timestamps of a video whose demuxer complained."""
    pts = np.sort(timeline.pts[timeline.shown & (timeline.pts != NO_STAMP)])
    steps = np.diff(pts)
    if not (steps > 0).any():
        return NO_GAPS
    usual = float(np.median(steps[steps > 0]))
    if np.mean(np.abs(steps / usual - 1) < GAP_INTERVALS - 1) < CONSTANT_SHARE:
        return NO_GAPS
    longest = LONGEST_GAP_S / float(timeline.time_base) if timeline.time_base else np.inf
    lost = [
        np.linspace(pts[at], pts[at + 1], round(steps[at] / usual) + 1)[1:-1].round()
        for at in _wide(steps, usual, longest)
    ]
    found = np.unique(np.concatenate([*lost, np.zeros(0)])).astype(np.int64)
    if (timeline.dts == NO_STAMP).any():
        later = timeline.pts[:, None] > found
        # With one later frame only the file is cut short: what was shown before that is gone.
        followed = np.count_nonzero(later, axis=0) > 1
        before = np.maximum(0, np.argmax(later, axis=0)[followed] - 1)
    else:
        before = _wide(np.diff(timeline.dts), usual, longest)
    return Gaps(lost=found, beside=np.unique(timeline.pts[before]))


def _wide(steps: NDArray[np.int64], usual: float, longest: float) -> NDArray[np.int64]:
    return np.flatnonzero((steps > GAP_INTERVALS * usual) & (steps < longest)).astype(np.int64)

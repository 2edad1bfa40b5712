"""When each frame is shown: the container's clock, repaired only where it cannot be right.

Timestamps tie, are missing or wrong, and jump where clips were joined. All other frames keep the
time that the container gives them, to the bit.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

OUTLIER_S = 1.0
"""One timestamp that is off by more than this, between two that agree, is wrong."""

LONGEST_INTERVAL_S = 24 * 3600.0
SHORTEST_INTERVAL_S = 1e-4
LATEST_S = 1e9
"""Median intervals and times beyond these come from a damaged or missing time base."""

LEAP_S = 3600.0
"""Where a format allows it, a clock that leaps ahead by more than this was set anew, as where clips
were joined."""

MAX_REORDER = 16
"""Frames that the decoded picture buffer of H.264 and HEVC holds: timestamps in decoding order
bring a frame before at most this many that are shown earlier."""

NUDGE_S = 5e-4
"""Frames that tie are moved apart by at most this: less than the 1 ms to which Matroska and FLV
round."""


@dataclass(frozen=True)
class Clock:
    """Times of a video's frames.

    Attributes:
        times: (frames,) float64 s on the container's clock, strictly increasing.
        notes: A sentence on each repair.
        made_up: Whether the container has no usable clock: the times are frame / rate.
    """

    times: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    made_up: bool = False


def read_clock(stamps: NDArray[np.float64], rate: float, *, may_leap: bool = False) -> Clock:
    """Make strictly increasing times of timestamps.

    Args:
        stamps: (frames,) timestamps in s, in presentation order, at least one; NaN where missing.
        rate: Frames/s, for what the timestamps do not tell.
        may_leap: Whether the format's clock may leap ahead, as MPEG-TS's. Elsewhere a long interval
            is a pause.
    """
    known = np.isfinite(stamps)
    if not known.any() or _is_absurd(stamps[known]):
        note = f"its frames have no usable timestamps: times are made up, {rate:.6g} frames/s"
        notes = (note,) if len(stamps) > 1 else ()  # a photo needs no clock
        return Clock(np.arange(len(stamps)) / rate, notes, made_up=True)
    interval = _usual_interval(stamps[known], rate)
    wrong = _outliers(stamps, max(OUTLIER_S, MAX_REORDER * interval))
    times = np.where(wrong, np.nan, stamps)
    times, restarts = _continued(times, interval, LEAP_S if may_leap else np.inf)
    times = _filled(times, interval)
    times, tied = _nudged(times)
    told = {
        "joined or restarted clocks, whose times go on from the jump": restarts,
        "frames without a timestamp, placed between their neighbours": int((~known).sum()),
        "frames with a timestamp far from their neighbours', placed between them": int(wrong.sum()),
        "frames with the timestamp of the frame before, moved by less than 1 ms": tied,
    }
    return Clock(times, tuple(f"{what}: {count:,}" for what, count in told.items() if count))


def find_restarts(stamps: NDArray[np.float64]) -> list[int]:
    """Find where a clock that goes back does so because it was set anew.

    Timestamps in decoding order also go back, but only behind `MAX_REORDER` frames and never to
    the timestamp of another frame.

    Args:
        stamps: (frames,) timestamps in presentation or decoding order; NaN where missing.

    Returns:
        The indices of the first frames on a new clock, ascending.
    """
    window = 2 * MAX_REORDER
    padded = np.concatenate([np.full(window, np.nan), stamps])
    before = sliding_window_view(padded, window)[: len(stamps)]
    later = (before > stamps[:, None]).sum(axis=1)
    repeated = (before == stamps[:, None]).any(axis=1)
    restarts: list[int] = []
    begin = 0
    for index in np.flatnonzero((later > MAX_REORDER) | (repeated & (later > 0))).tolist():
        recent = stamps[max(begin, index - window) : index]  # on the clock that runs now
        overtaken = int((recent > stamps[index]).sum())
        if overtaken > MAX_REORDER or (overtaken and (recent == stamps[index]).any()):
            restarts.append(index)
            begin = index
    return restarts


def _is_absurd(stamps: NDArray[np.float64]) -> bool:
    """Whether timestamps, none missing, cannot be a clock."""
    if np.median(np.abs(stamps)) > LATEST_S:
        return True
    if len(stamps) == 1:
        return False
    stands_still = (np.diff(stamps) == 0).mean() > 0.5
    return (
        bool(stands_still)
        or not SHORTEST_INTERVAL_S <= _usual_interval(stamps, 0.0) <= LONGEST_INTERVAL_S
    )


def _usual_interval(stamps: NDArray[np.float64], rate: float) -> float:
    """Return the median interval in s: 1 / rate where timestamps, none missing, give none."""
    steps = np.diff(stamps)
    forward = steps[steps > 0]
    if len(forward):
        return float(np.median(forward))
    return 1 / rate if rate else 0.0


def _outliers(stamps: NDArray[np.float64], far: float) -> NDArray[np.bool_]:
    """Mark single timestamps that are far from both neighbours, which are near each other."""
    steps = np.abs(np.diff(stamps))
    wrong = np.zeros(len(stamps), bool)
    wrong[1:-1] = (steps[:-1] > far) & (steps[1:] > far)
    wrong[1:-1] &= np.abs(stamps[2:] - stamps[:-2]) <= far
    return wrong


def _continued(
    times: NDArray[np.float64], interval: float, leap: float
) -> tuple[NDArray[np.float64], int]:
    """Put times in order and, where the clock was set anew, go on one interval later.

    Returns:
        The times, ascending but for missing ones, and how often the clock was set anew.
    """
    restarts = find_restarts(times)
    ordered = times.copy()
    latest = None
    for begin, stop in pairwise([0, *restarts, len(times)]):
        part = ordered[begin:stop]  # a view
        known = np.isfinite(part)
        part[known] = np.sort(part[known])
        if latest is not None and known.any():
            part += latest + interval - part[known][0]
        if known.any():
            latest = part[known][-1]
    known = np.isfinite(ordered)
    steps = np.diff(ordered[known])
    leaps = steps > leap
    ordered[known] -= np.append(0, np.cumsum(np.where(leaps, steps - interval, 0)))
    return ordered, len(restarts) + int(leaps.sum())


def _filled(times: NDArray[np.float64], interval: float) -> NDArray[np.float64]:
    """Place frames without a time evenly between their neighbours, or at intervals outside."""
    known = np.flatnonzero(np.isfinite(times))
    if len(known) == len(times):
        return times
    index = np.arange(len(times))
    outside = np.minimum(index - known[0], 0) + np.maximum(index - known[-1], 0)
    return np.asarray(np.interp(index, known, times[known]) + outside * interval)


def _nudged(times: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Move ascending times that tie apart, and count those that were moved."""
    starts = np.flatnonzero(np.diff(times, prepend=-np.inf) > 0)
    counts = np.diff(starts, append=len(times))
    rank = np.arange(len(times)) - np.repeat(starts, counts)
    room = np.diff(times[starts], append=np.inf)
    step = np.minimum(NUDGE_S, room / 2) / np.maximum(1, counts - 1)
    return times + rank * np.repeat(step, counts), int((rank > 0).sum())

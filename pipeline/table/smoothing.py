"""Smoothed emotions, valence and arousal: a transform of a video's rows, track by track.

Only frames of one *run* are averaged. A run of a track ends where

- a sampled frame of the video lies between without the track;
- sampled frames are missing from the table, as damaged ones are. With `stride` the frames' numbers
  tell. With `fps` it counts as missing if a frame of the video was there to be sampled: if, by the
  two frames' numbers and times, the last frame between them is `1 / fps` or more after the first;
- two sampled frames are more than `MAX_STEP_S` apart, and more than `MAX_STEP_RATIO` times as far
  as the two before them: the recording has a hole, whatever its frame rate.

What is smoothed does not depend on how the rows are divided into tables.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emopipe.pipeline.media.sampling import TICK_TOLERANCE_S
from emopipe.pipeline.table.commit import Transform
from emopipe.pipeline.table.schema import SMOOTH

EMONET_WEIGHTS = (0.4, 0.25, 0.15, 0.1, 0.1)
"""Weights of a face's last five frames, the newest first, of the published EmoNet (Toisoul et al.,
Nature Machine Intelligence 2021)."""

MAX_STEP_S = 1.0
"""Sampled frames this near in time are never a hole in the recording."""

MAX_STEP_RATIO = 2.0
"""Nor are those up to this many times as far apart as the two sampled frames before."""

_NS = 1e9
_NO_TRACK = -1
_BLOCK_ROWS = 8_192
"""Rows that are smoothed at once: 6 MB with landmarks."""


def smoothing(
    smooth: Literal["emonet"] | float, stride: int = 1, fps: float | None = None
) -> Transform:
    """Return the transform that fills the columns `*_smooth`.

    `emotion_smooth` is the class that is most likely by the smoothed probabilities. Rows without a
    track have nulls.

    Args:
        smooth: "emonet" averages a frame and the four before it with `EMONET_WEIGHTS`, which are
            renormalised where a run has fewer. A number averages over that many seconds, half of
            them before and half after the frame: the mean over time of the values joined by
            straight lines, so that frames weigh by the time they stand for. At a run's ends it is
            the mean over the part that is there.
        stride: every how many frames are sampled.
        fps: how many frames a second are sampled instead, if set.
    """

    def transform(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        kernel = _LastFrames() if smooth == "emonet" else _Window(round(smooth * _NS / 2))
        return _Smoother(kernel, _Counter(stride, fps)).smoothed(tables)

    return transform


@dataclass(frozen=True)
class _Rows:
    """Rows in the table's order.

    Attributes:
        track: (n,) int64, `_NO_TRACK` without one.
        step: (n,) int64, the number of the frame, see `_Counter`.
        time: (n,) int64, ns. Differences of whole numbers are exact wherever a video begins.
        values: (columns, n) float64.
    """

    track: NDArray[np.int64]
    step: NDArray[np.int64]
    time: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.track)

    def since(self, first: int) -> "_Rows":
        """The rows from one on."""
        return _Rows(
            self.track[first:], self.step[first:], self.time[first:], self.values[:, first:]
        )

    def followed_by(self, more: "_Rows") -> "_Rows":
        """These rows and more."""
        return _Rows(
            np.concatenate((self.track, more.track)),
            np.concatenate((self.step, more.step)),
            np.concatenate((self.time, more.time)),
            np.concatenate((self.values, more.values), axis=1),
        )


@dataclass(frozen=True)
class _Runs:
    """Rows that have a track, ordered by run, then time.

    Attributes:
        row: (m,) int64, where each row stands in the table.
        run: (m,) int64, ascending.
        time: (m,) int64, ns.
        values: (columns, m) float64.
    """

    row: NDArray[np.int64]
    run: NDArray[np.int64]
    time: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, rows: _Rows) -> "_Runs":
        """Order rows."""
        order = np.lexsort((rows.step, rows.track))
        order = order[rows.track[order] != _NO_TRACK]
        track, step = rows.track[order], rows.step[order]
        begins = (np.diff(track) != 0) | (np.diff(step) != 1)
        run = np.concatenate((np.zeros(min(len(order), 1), np.int64), np.cumsum(begins)))
        return cls(order, run, rows.time[order], rows.values[:, order])


class _Kernel(Protocol):
    """What is averaged."""

    def final(self, rows: _Rows) -> int:
        """How many of the rows have all that their means need, whatever follows."""

    def needed(self, rows: _Rows, first: int) -> int:
        """The first row that means of the rows from `first` on need, and of those that follow."""

    def means(self, runs: _Runs, at: NDArray[np.int64]) -> NDArray[np.float64]:
        """The means (columns, k) float64 around rows of runs, (k,) indices."""


class _LastFrames:
    """A frame and those before it, with `EMONET_WEIGHTS`."""

    def final(self, rows: _Rows) -> int:
        return len(rows)

    def needed(self, rows: _Rows, first: int) -> int:  # noqa: ARG002 -- all rows are final
        oldest = rows.step[-1] - (len(EMONET_WEIGHTS) - 1)
        return int(np.searchsorted(rows.step, oldest))

    def means(self, runs: _Runs, at: NDArray[np.int64]) -> NDArray[np.float64]:
        total = np.zeros((len(runs.values), len(at)))
        weights = np.zeros(len(at))
        for age, weight in enumerate(EMONET_WEIGHTS):
            then = np.maximum(at - age, 0)
            counts = np.where((at >= age) & (runs.run[then] == runs.run[at]), weight, 0.0)
            total += counts * runs.values[:, then]
            weights += counts
        return total / weights


@dataclass(frozen=True)
class _Window:
    """The time around a frame, half of it on each side.

    Attributes:
        half: ns.
    """

    half: int

    def final(self, rows: _Rows) -> int:
        begun = np.searchsorted(rows.step, rows.step[-1])  # more of the last frame may follow
        if not begun:
            return 0
        return int(np.searchsorted(rows.time, rows.time[begun - 1] - self.half, "right"))

    def needed(self, rows: _Rows, first: int) -> int:
        edge = rows.time[min(first, len(rows) - 1)] - self.half
        before = max(np.searchsorted(rows.time, edge, "right") - 1, 0)
        return int(np.searchsorted(rows.step, rows.step[before]))

    def means(self, runs: _Runs, at: NDArray[np.int64]) -> NDArray[np.float64]:
        time, values = runs.time, runs.values
        # All runs on one axis, so far apart that no window reaches from one into another.
        axis = runs.run * (np.ptp(time) + self.half + 1) + time
        first = np.searchsorted(axis, axis[at] - self.half)
        last = np.searchsorted(axis, axis[at] + self.half, "right") - 1
        areas = np.zeros_like(values)  # from each row to the next
        areas[:, :-1] = np.diff(time) * (values[:, :-1] + values[:, 1:]) / 2
        bounds = np.stack((first, last), axis=1).ravel()
        # Each window is summed by itself: a sum carried along would differ with its beginning.
        inside = np.add.reduceat(areas, bounds, axis=1)[:, ::2]
        total = np.where(first < last, inside, 0.0)
        width = time[last] - time[first]
        for side, inner in ((-1, first), (1, last)):
            edge = time[at] + side * self.half
            outer = np.clip(inner + side, 0, len(time) - 1)
            goes_on = (outer != inner) & (runs.run[outer] == runs.run[inner])
            beyond = np.where(goes_on, abs(time[inner] - edge), 0)
            share = beyond / np.maximum(abs(time[outer] - time[inner]), 1)
            there = values[:, inner] + (values[:, outer] - values[:, inner]) * share
            total += beyond * (values[:, inner] + there) / 2
            width = width + beyond
        return np.where(width > 0, total / np.maximum(width, 1), values[:, at])


class _Counter:
    """Numbers sampled frames: neighbours differ by 1, the frames beside a gap by 2."""

    def __init__(self, stride: int, fps: float | None) -> None:
        self._stride = stride
        self._fps = fps
        self._number = 0
        self._frames = np.zeros(0, np.int64)  # the last two, with their times in ns
        self._times = np.zeros(0, np.int64)

    def steps(self, frame: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of the next rows' frames, (n,) int64.

        Args:
            frame: (n,) the frames' ranks in the video.
            time: (n,) ns.
        """
        known = len(self._frames)
        begins = np.diff(frame, prepend=self._frames[-1] if known else -1) != 0
        frames = np.concatenate((self._frames, frame[begins]))
        times = np.concatenate((self._times, time[begins]))
        after_gap = np.concatenate(([True], self._are_gaps(np.diff(frames), np.diff(times) / _NS)))
        numbers = self._number + np.concatenate(([0], np.cumsum(1 + after_gap[known:])))
        self._number, self._frames, self._times = int(numbers[-1]), frames[-2:], times[-2:]
        steps: NDArray[np.int64] = numbers[np.cumsum(begins)]
        return steps

    def _are_gaps(
        self, ranks: NDArray[np.int64], seconds: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Whether the steps from one sampled frame to the next are gaps."""
        before = np.concatenate(([np.inf], seconds))[: len(seconds)]
        hole = (seconds > MAX_STEP_S) & (seconds > MAX_STEP_RATIO * before)
        if self._fps is None:
            return hole | (ranks > self._stride)
        to_last_between = seconds * (ranks - 1) / ranks
        return hole | (ranks > 1) & (to_last_between >= 1 / self._fps - TICK_TOLERANCE_S)


class _Smoother:
    """Passes one video's rows on, each once its means are known."""

    def __init__(self, kernel: _Kernel, counter: _Counter) -> None:
        self._kernel = kernel
        self._counter = counter
        self._rows: _Rows | None = None
        self._passed = 0  # how many of these rows stay for the means of others alone

    def smoothed(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the tables' rows with the smoothed columns filled."""
        waiting: list[pa.Table] = []
        n_new = 0
        for table in filter(len, tables):
            waiting.append(table)
            n_new += table.num_rows
            # In blocks that grow with the rows that stay, so that these cost little.
            if n_new >= max(_BLOCK_ROWS, self._passed):
                done, rest = self._filled(waiting, n_new, at_end=False)
                yield done
                waiting, n_new = [rest], 0
        if waiting:
            yield self._filled(waiting, n_new, at_end=True)[0]

    def _filled(
        self, waiting: list[pa.Table], n_new: int, at_end: bool
    ) -> tuple[pa.Table, pa.Table]:
        """Fill the columns of the first of the waiting rows; return these and the others.

        Args:
            waiting: the rows that have not been passed on, the last `n_new` of them seen first.
            n_new: how many are new.
            at_end: whether no row follows.
        """
        table = pa.concat_tables(waiting)
        names = _smoothed_columns(table)
        rows = self._extended(table.slice(table.num_rows - n_new), names[1:])
        runs = _Runs.of(rows)
        final = len(rows) if at_end else max(self._kernel.final(rows), self._passed)
        at = np.flatnonzero((runs.row >= self._passed) & (runs.row < final))
        means = np.full((len(rows.values), final - self._passed), np.nan, np.float32)
        if len(at):
            means[:, runs.row[at] - self._passed] = self._kernel.means(runs, at)
        done = _with_means(table.slice(0, means.shape[1]), means, names)
        first = self._kernel.needed(rows, final)
        self._rows, self._passed = rows.since(first), final - first
        return done, table.slice(means.shape[1])

    def _extended(self, table: pa.Table, names: list[str]) -> _Rows:
        """The rows that stayed, with those of a table."""
        time = np.rint(table.column("time").to_numpy() * _NS).astype(np.int64)
        frame = table.column("frame").to_numpy().astype(np.int64)
        new = _Rows(
            track=table.column("track").fill_null(_NO_TRACK).to_numpy().astype(np.int64),
            step=self._counter.steps(frame, time),
            time=time,
            values=np.stack([table.column(name).to_numpy() for name in names]).astype(np.float64),
        )
        return self._rows.followed_by(new) if self._rows else new


def _smoothed_columns(table: pa.Table) -> list[str]:
    """The columns that are smoothed, the emotion first; classes may have any names."""
    first, last = (table.column_names.index(f"{name}{SMOOTH}") for name in ("emotion", "arousal"))
    return [name.removesuffix(SMOOTH) for name in table.column_names[first : last + 1]]


def _with_means(table: pa.Table, means: NDArray[np.float32], names: list[str]) -> pa.Table:
    """Fill the smoothed columns: the emotion, the classes' probabilities, valence and arousal.

    Args:
        table: n rows.
        means: (columns, n), of all named columns but the emotion; NaN for rows without a track.
        names: of the columns that are smoothed.
    """
    absent = np.isnan(means[0])
    classes = [name.removeprefix("p_") for name in names if name.startswith("p_")]
    likeliest = means[: len(classes)].argmax(axis=0).astype(np.int32)
    emotion = pa.DictionaryArray.from_arrays(pa.array(likeliest, mask=absent), pa.array(classes))
    columns: list[Any] = [emotion, *(pa.array(mean, mask=absent) for mean in means)]
    for name, column in zip(names, columns, strict=True):
        index = table.column_names.index(f"{name}{SMOOTH}")
        table = table.set_column(index, table.schema.field(index), column)
    return table

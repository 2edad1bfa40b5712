"""What happens to a video when its spans are all there: the ordered pass over its rows, its record.

The pass is the place for what needs a video's rows in the order of time, such as tracks and
smoothing: see `Transform`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emopipe.emonet.arguments import counted
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.table.parts import failure_reason
from emopipe.pipeline.table.schema import CLUES, VideoRecord

Transform = Callable[[Iterator[pa.Table]], Iterator[pa.Table]]
"""Takes the rows of one video, a table a span, ordered by frame and face, and yields them changed.

It fills columns; rows, their order and the schema stay. Beside the results' columns, those of
`table.schema.CLUES` are there to be read. It may hold tables back and yield others
than it was given: memory is bounded by what it holds.
"""


class OrderedRows:
    """One pass over a video's rows, ordered by frame and face, through transforms.

    Args:
        video: name of the video, for errors.
        schema: of the results.
        transforms: applied in their order.

    Attributes:
        frames: (n,) int64, the distinct frames, ascending; like the rest valid after the pass.
        faces: number of faces.
        reason: why the last failed span failed; empty if none did.
    """

    def __init__(self, video: str, schema: pa.Schema, transforms: Sequence[Transform]) -> None:
        self.frames = np.zeros(0, np.int64)
        self.faces = 0
        self.reason = ""
        self._video = video
        self._schema = schema
        self._transforms = transforms
        self._in_transit: deque[NDArray[np.int64]] = deque()  # keys of rows in the transforms

    def tables(self, parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the rows after the transforms, lazily.

        Args:
            parts: of the video's spans, in order.

        Raises:
            RuntimeError: a frame is in two spans, or a transform changed the schema, the order or
                the rows.
        """
        spans = self._spans(parts)
        rows = spans
        for transform in self._transforms:
            rows = transform(rows)
        for table in rows:
            table = table.drop_columns([name for name in CLUES if name in table.column_names])
            self._check_schema(table)
            self._require_same_rows(np.array_equal(_keys(table), self._next_keys(table.num_rows)))
            self.faces += table.num_rows - table.column("face").null_count
            yield table
        self._require_same_rows(not self._in_transit and next(spans, None) is None)

    def _spans(self, parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the parts that have rows, and note these."""
        spans = [self.frames]
        for part in parts:
            self.reason = failure_reason(part) or self.reason
            if not part.num_rows:
                continue
            frames = np.unique(part.column("frame").to_numpy()).astype(np.int64)
            if len(spans[-1]) and frames[0] <= spans[-1][-1]:
                raise RuntimeError(f"{self._video}: a frame stands in two spans")
            spans.append(frames)
            self._in_transit.append(_keys(part))
            yield part.replace_schema_metadata(self._schema.metadata)
        self.frames = np.concatenate(spans)

    def _next_keys(self, n_rows: int) -> NDArray[np.int64]:
        """Take the keys of the next rows that are to come out of the transforms."""
        keys = [np.zeros((0, 2), np.int64)]
        while n_rows and self._in_transit:
            first = self._in_transit.popleft()
            if len(first) > n_rows:
                self._in_transit.appendleft(first[n_rows:])
            keys.append(first[:n_rows])
            n_rows -= len(keys[-1])
        return np.concatenate(keys)

    def _require_same_rows(self, condition: bool) -> None:
        if not condition:
            raise RuntimeError(f"{self._video}: a transform added, left out or reordered rows")

    def _check_schema(self, table: pa.Table) -> None:
        if table.schema.equals(self._schema):
            return
        wrong = set(table.schema) ^ set(self._schema)
        raise RuntimeError(
            f"{self._video}: a transform changed the schema, in "
            f"{', '.join(sorted({field.name for field in wrong})) or 'the order of columns'}"
        )


def record_of(
    video: Video, wanted: NDArray[np.int64], rows: OrderedRows, end: float | None
) -> VideoRecord:
    """Say what became of a video whose rows have passed.

    Args:
        video: the video.
        wanted: (n,) the sampled frames, ascending.
        rows: its rows, which have all passed.
        end: s, where the user's `end` cuts the video off, if anywhere.

    Returns:
        The record, without what is known of the file itself: its modification time and path.

    Raises:
        RuntimeError: the rows have frames that were not sampled.
    """
    absent = np.setdiff1d(wanted, rows.frames)
    if len(rows.frames) + len(absent) != len(wanted):
        raise RuntimeError(f"{video.name}: the spans' frames are not those that were sampled")
    truncated = _truncated(video, end)
    complete = len(wanted) > 0 and not len(absent) and not truncated
    return VideoRecord(
        video=video.name,
        status="ok" if complete else "partial" if len(rows.frames) else "failed",
        error=None
        if complete
        else _problem(video, len(absent), len(wanted), bool(truncated), rows.reason),
        missing=ranges(absent, wanted) + truncated,
        backend=video.backend,
        frames=len(rows.frames),
        faces=rows.faces,
        fps=video.fps,
        width=video.width,
        height=video.height,
        start_time=video.start_time,
        notes=video.notes,
        bytes=video.size,
        sha256=video.sha256,
    )


def ranges(missing: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Join missing frames to (first, last) ranges of those that are neighbours in `wanted`."""
    if not len(missing):
        return ()
    rank = np.searchsorted(wanted, missing)
    runs = np.split(missing, np.flatnonzero(np.diff(rank) > 1) + 1)
    return tuple((int(run[0]), int(run[-1])) for run in runs)


def _truncated(video: Video, end: float | None) -> tuple[tuple[int, int], ...]:
    """Return the range of frames that the file promises but does not hold, if any are wanted."""
    if not video.truncated_frames or (end is not None and video.times[-1] >= end):
        return ()
    return ((video.frames, video.frames + video.truncated_frames - 1),)


def _problem(video: Video, absent: int, wanted: int, truncated: bool, reason: str) -> str:
    """Describe in words what is missing, and why if that is known."""
    problems = []
    if not wanted:
        shown = f"{video.times[0]:.1f} to {video.times[-1]:.1f} s"
        problems.append(f"no frame lies between the chosen start and end: it shows {shown}")
    if absent:
        problems.append(f"{absent} of {wanted} sampled frames are missing")
    if truncated:
        problems.append(
            f"the file is cut short: it lacks about {counted(video.truncated_frames, 'frame')} "
            f"that it promises"
        )
    return "; ".join(problems) + (f" ({reason})" if reason else "")


def _keys(rows: pa.Table) -> NDArray[np.int64]:
    """Return the frame and face of each row as (n, 2); -1 stands for no face."""
    columns = (rows.column("frame"), rows.column("face").fill_null(-1))
    return np.stack([column.to_numpy() for column in columns], axis=1).astype(np.int64)

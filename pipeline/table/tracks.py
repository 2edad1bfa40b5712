"""Fills the column `track` when a video is committed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emopipe.pipeline.faces.appearance import DIMENSIONS
from emopipe.pipeline.media.cuts import THUMBNAIL, ChangeFinder
from emopipe.pipeline.table.commit import Transform

if TYPE_CHECKING:
    from emopipe.pipeline.faces.tracklets import Tracklet

_BOX = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class _Faces:
    """What tracking needs of a table's rows.

    Attributes:
        bounds: (f + 1,) int64, the first row of each frame, and the number of rows.
        times: (f,) float64, s.
        thumbnails: f, see `pipeline.media.cuts`.
        present: (rows,) bool, whether the row has a face.
        boxes: (rows, 4) float32 x1 y1 x2 y2 in pixels of the frame.
        appearances: (rows, 16) float32, see `pipeline.faces.appearance`.
    """

    bounds: NDArray[np.int64]
    times: NDArray[np.float64]
    thumbnails: list[NDArray[np.uint8]]
    present: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    appearances: NDArray[np.float32]


@dataclass
class _Waiting:
    """A table whose rows' tracks are not all known yet: a tracklet for each row with a face."""

    rows: pa.Table
    present: NDArray[np.bool_]
    tracklets: list[Tracklet] = field(default_factory=list)


def tracking(max_gap: float) -> Transform:
    """Number the people of a video from 0, in the order in which they are first seen.

    Rows are held back until it is known whose they are: some ten seconds of video, and a span.
    A face that is no more than a flicker of the detector has no track.

    Args:
        max_gap: s, for how long a person who is not seen is remembered.
    """

    def transform(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        # Loads for half a second: the command line and the workers do not wait for it.
        from emopipe.pipeline.faces.tracks import Tracker, is_decided

        tracker, changes = Tracker(max_gap), ChangeFinder()
        waiting: deque[_Waiting] = deque()
        numbers = _Numbers()
        for table in tables:
            faces = _faces(table)
            waiting.append(_Waiting(table, faces.present))
            for frame, (first, last) in enumerate(pairwise(faces.bounds.tolist())):
                rows = slice(first, last) if faces.present[first] else slice(0)
                waiting[-1].tracklets += tracker.update(
                    float(faces.times[frame]),
                    faces.boxes[rows],
                    faces.appearances[rows],
                    changes.changed(faces.thumbnails[frame]),
                )
            while waiting and all(map(is_decided, waiting[0].tracklets)):
                yield numbers.filled(waiting.popleft())
        tracker.finish()
        while waiting:
            yield numbers.filled(waiting.popleft())

    return transform


class _Numbers:
    """Numbers people from 0, in the order of the rows."""

    def __init__(self) -> None:
        self._next = 0

    def filled(self, waiting: _Waiting) -> pa.Table:
        """The table with its tracks."""
        tracks = np.zeros(len(waiting.present), np.int32)
        tracks[waiting.present] = [self._number(tracklet) for tracklet in waiting.tracklets]
        column = pa.array(tracks, mask=~waiting.present | (tracks < 0))
        return waiting.rows.set_column(
            waiting.rows.schema.get_field_index("track"), "track", column
        )

    def _number(self, tracklet: Tracklet) -> int:
        person = tracklet.person
        if person is None or not person.confirmed:
            return -1
        if person.track is None:
            person.track = self._next
            self._next += 1
        return person.track


def _faces(table: pa.Table) -> _Faces:
    frames = table.column("frame").to_numpy()
    starts = np.flatnonzero(np.diff(frames, prepend=-1))
    present = table.column("face").is_valid().to_numpy()
    thumbnails = table.column("thumbnail").take(starts).to_pylist()
    return _Faces(
        bounds=np.append(starts, len(frames)),
        times=table.column("time").to_numpy()[starts],
        thumbnails=[np.frombuffer(one, np.uint8).reshape(THUMBNAIL) for one in thumbnails],
        present=present,
        boxes=np.stack([table.column(name).to_numpy() for name in _BOX], axis=1),
        appearances=_vectors(table.column("appearance"), present),
    )


def _vectors(column: pa.ChunkedArray, present: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The appearances (rows, 16), 0 where there are none."""
    vectors = np.zeros((len(present), DIMENSIONS), np.float32)
    values = column.combine_chunks().flatten().to_numpy()
    vectors[present] = values.reshape(-1, DIMENSIONS)
    return vectors

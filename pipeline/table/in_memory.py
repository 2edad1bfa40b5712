"""Results in memory: pandas for the rows, NumPy for the landmarks."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emopipe.emonet.labels import N_LANDMARKS

if TYPE_CHECKING:  # writing needs no pandas, which takes half a second to load
    import pandas as pd

LANDMARKS = "landmarks"
"""The column that is an array of its own in memory."""


@dataclass(frozen=True, repr=False, eq=False)
class Results:
    """A results table read into memory.

    Attributes:
        rows: one row per face per sampled frame, ordered by video, frame and face; integers are
            nullable, and a frame without a face has its face columns null. The landmarks are not
            among its columns.
        landmarks: (len(rows), 68, 2) float32 x y in pixels of the frame as displayed, NaN where
            there is no face; None if they were not kept, or not read.
        settings: how the table was made.
        videos: one row per input; None if the videos table is not beside the output.
    """

    rows: pd.DataFrame
    landmarks: NDArray[np.float32] | None
    settings: dict[str, Any]
    videos: pd.DataFrame | None

    def __repr__(self) -> str:
        counts = [f"{len(self.rows):,} rows"]
        if "video" in self.rows:
            counts.append(f"{self.rows['video'].nunique():,} videos")
        if "face" in self.rows:
            face = self.rows["face"]
            # Each frame has one row whose face is the first, or none.
            counts.append(f"{(face.isna() | (face == 0)).sum():,} frames")
            counts.append(f"{face.notna().sum():,} faces")
        landmarks = "none" if self.landmarks is None else f"{self.landmarks.shape} float32"
        model = self.settings.get("checkpoint", {}).get("name", "unknown")
        columns = textwrap.fill(", ".join(self.rows.columns), 80, subsequent_indent=" " * 10)
        return (
            f"<Results: {', '.join(counts)}\n"
            f" columns: {columns}\n"
            f" landmarks: {landmarks}\n"
            f" model: {model}>"
        )


def in_memory(table: pa.Table, settings: dict[str, Any], videos: pa.Table | None) -> Results:
    """Convert rows, with or without landmarks, and the videos table if there is one."""
    landmarks = None
    if LANDMARKS in table.column_names:
        landmarks = _landmark_array(table.column(LANDMARKS))
        table = table.drop_columns([LANDMARKS])
    rows = _to_pandas(table)
    if "video" in rows:  # row groups are shared with videos that were not asked for
        rows["video"] = rows["video"].cat.remove_unused_categories()
    return Results(
        rows=rows,
        landmarks=landmarks,
        settings=settings,
        videos=None if videos is None else _to_pandas(videos),
    )


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    import pandas as pd

    nullable = {
        pa.int16(): pd.Int16Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
    }
    frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get)
    return frame


def _landmark_array(column: pa.ChunkedArray) -> NDArray[np.float32]:
    parts = []
    for chunk in column.chunks:
        storage = chunk.storage
        points = np.full((len(storage), N_LANDMARKS * 2), np.nan, np.float32)
        valid = np.asarray(storage.is_valid())
        points[valid] = storage.flatten().to_numpy().reshape(-1, N_LANDMARKS * 2)
        parts.append(points.reshape(-1, N_LANDMARKS, 2))
    return np.concatenate(parts) if parts else np.zeros((0, N_LANDMARKS, 2), np.float32)

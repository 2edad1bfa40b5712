"""How far two analyses of the same frames agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.metrics import landmark_errors
from emopipe.pipeline.table.in_memory import Results

if TYPE_CHECKING:  # loaded with the results: it takes half a second
    import pandas as pd

SAME_FACE = 0.5
"""Two boxes are of one face where their centres are nearer than this, in units of the mean side."""


@dataclass(frozen=True)
class Agreement:
    """How far an analysis agrees with a reference.

    Attributes:
        faces: faces of the reference.
        faces_found: share of them that the other has too; what follows is of these, and None
            without any.
        faces_added: faces that only the other has, as a share of the reference's.
        same_emotion: share whose most likely emotion is the same.
        landmark_distance: mean distance of the landmarks over that of the outer eye corners; None
            also where a table has no landmarks.
        valence_mean: mean absolute difference of valence.
        valence_max: largest absolute difference of valence.
    """

    faces: int
    faces_found: float | None
    faces_added: float | None
    same_emotion: float | None
    landmark_distance: float | None
    valence_mean: float | None
    valence_max: float | None


def agreement(reference: Results, other: Results) -> Agreement:
    """Compare two tables of the same videos, face by face.

    Args:
        reference: what is taken for right.
        other: with the same names of videos.
    """
    faces, others = int(reference.rows["face"].count()), int(other.rows["face"].count())
    rows, other_rows = _pairs(reference.rows, other.rows)
    n = len(rows)
    if not n:
        return Agreement(faces, 0.0 if faces else None, None, None, None, None, None)
    ours, theirs = reference.rows.iloc[rows], other.rows.iloc[other_rows]
    valence = np.abs(ours["valence"].to_numpy() - theirs["valence"].to_numpy())
    distance = None
    if reference.landmarks is not None and other.landmarks is not None:
        errors = landmark_errors(other.landmarks[other_rows], reference.landmarks[rows])
        distance = float(errors.mean())
    return Agreement(
        faces=faces,
        faces_found=n / faces,
        faces_added=(others - n) / faces,
        same_emotion=float(
            np.mean(ours["emotion"].to_numpy(str) == theirs["emotion"].to_numpy(str))
        ),
        landmark_distance=distance,
        valence_mean=float(valence.mean()),
        valence_max=float(valence.max()),
    )


def _pairs(
    reference: pd.DataFrame, other: pd.DataFrame
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Match faces of the same frame by their boxes, the nearest first, each once.

    Returns:
        The positions of the matched rows, (n,) in the reference and (n,) in the other.
    """
    both = _boxes(reference).merge(_boxes(other), on=["video", "frame"], suffixes=("", "_other"))
    both["off"] = np.hypot(both.x - both.x_other, both.y - both.y_other) / both.side
    near = both[both.off < SAME_FACE].sort_values("off", kind="stable")
    matches: dict[int, int] = {}
    taken: set[int] = set()
    for row, row_other in zip(near["row"].tolist(), near["row_other"].tolist(), strict=True):
        if row not in matches and row_other not in taken:
            matches[row] = row_other
            taken.add(row_other)
    rows = np.array(sorted(matches), np.int64)
    return rows, np.array([matches[row] for row in rows.tolist()], np.int64)


def _boxes(rows: pd.DataFrame) -> pd.DataFrame:
    """Each face's video, frame, row, and its box's centre and mean side in pixels."""
    import pandas as pd

    x1, y1, x2, y2 = (rows[name] for name in ("x1", "y1", "x2", "y2"))
    boxes = pd.DataFrame(
        {
            "video": rows["video"].astype(str),
            "frame": rows["frame"],
            "row": np.arange(len(rows)),
            "x": (x1 + x2) / 2,
            "y": (y1 + y2) / 2,
            "side": (x2 - x1 + y2 - y1) / 2,
        }
    )
    return boxes[rows["face"].notna()]

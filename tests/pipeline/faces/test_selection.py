"""A selection keeps the faces that it describes, and refuses values out of range."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emopipe.pipeline.faces.base import Faces
from emopipe.pipeline.faces.selection import Selection, SelectionError, parse_roi, select


def some_faces() -> st.SearchStrategy[Faces]:
    corner, extent = st.floats(0, 500, width=16), st.floats(1, 200, width=16)
    face = st.tuples(corner, corner, extent, extent, st.floats(0, 1, width=32))
    return st.lists(face, max_size=8).map(_faces_of)


def _faces_of(rows: list[tuple[float, ...]]) -> Faces:
    table = np.array(rows, np.float32).reshape(-1, 5)
    table = table[np.argsort(-table[:, 4], kind="stable")]
    points = np.repeat(table[:, None, :2], 5, axis=1)
    return Faces(np.hstack([table[:, :2], table[:, :2] + table[:, 2:4]]), table[:, 4], points)


@given(
    faces=some_faces(),
    min_score=st.none() | st.floats(0, 1),
    min_size=st.floats(0, 200),
    most=st.none() | st.integers(1, 4),
    wanted=st.sampled_from(["all", "largest"]),
)
def test_a_selection_keeps_what_it_promises_in_order(
    faces: Faces, min_score: float | None, min_size: float, most: int | None, wanted: str
) -> None:
    roi = (100.0, 100.0, 400.0, 400.0)
    chosen = select(faces, Selection(min_score, min_size, most, wanted, roi))  # type: ignore[arg-type]
    fit = [
        i
        for i, (x1, y1, x2, y2) in enumerate(faces.boxes)
        if faces.sides[i] >= min_size
        and (min_score is None or faces.scores[i] >= min_score)
        and 100 <= (x1 + x2) / 2 < 400
        and 100 <= (y1 + y2) / 2 < 400
    ]
    if wanted == "largest":
        assert len(chosen) == min(1, len(fit))
        assert all(chosen.sides[0] >= faces.sides[i] for i in fit)
    else:
        np.testing.assert_array_equal(chosen.boxes, faces[np.array(fit[:most], np.intp)].boxes)
    assert chosen.points is not None
    np.testing.assert_array_equal(chosen.points[:, 0], chosen.boxes[:, :2])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"min_score": -0.1}, "`min_score` is from 0 to 1, not -0.1"),
        ({"min_score": float("nan")}, "`min_score` is from 0 to 1, not nan"),
        ({"min_size": -1}, "`min_size` is 0 or more, not -1"),
        ({"max_faces": 0}, "`max_faces` is 1 or more, not 0"),
        ({"faces": "biggest"}, "`faces` is one of all, largest, not 'biggest'"),
        ({"roi": (10, 0, 10, 5)}, "`roi` 10,0,10,5 is empty"),
        ({"roi": (0, 0, float("nan"), 5)}, "`roi`"),
        ({"roi": "0,0,640,720"}, "`roi` is a tuple of 4 numbers, not '0,0,640,720'"),
        ({"roi": (0, 0, 640)}, "`roi` is a tuple of 4 numbers"),
        ({"max_faces": 1.5}, "`max_faces` is a whole number"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(SelectionError, match=sentence):
        Selection(**options)  # type: ignore[arg-type]


def test_a_region_of_interest_is_read() -> None:
    assert parse_roi("0, 0,320.5,360") == (0, 0, 320.5, 360)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1 2 3 4"])
def test_a_region_of_interest_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SelectionError, match="`roi` is four numbers"):
        parse_roi(text)

"""Agreement of two tables: what is compared with what, and in which units."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from emopipe.emonet.labels import OUTER_EYE_CORNERS
from emopipe.pipeline.agreement import agreement
from emopipe.pipeline.table.in_memory import Results

EYES = 40.0
"""Pixels between the outer eye corners."""


def results(boxes: dict[int, list[float]]) -> Results:
    """A table of faces 100 px wide, given by the left edges of their boxes on each frame."""
    rows, landmarks = [], []
    for frame, lefts in boxes.items():
        for face, left in enumerate(lefts or [None]):
            there = left is not None
            rows.append(
                {
                    "video": "a.mp4",
                    "frame": frame,
                    "face": face if there else None,
                    "x1": left,
                    "x2": left + 100 if there else None,
                    "y1": 0.0 if there else None,
                    "y2": 100.0 if there else None,
                    "emotion": "happy" if there else None,
                    "valence": 0.5 if there else None,
                }
            )
            points = np.full((68, 2), left if there else np.nan, np.float32)
            points[OUTER_EYE_CORNERS[1], 0] += EYES
            landmarks.append(points)
    table = pd.DataFrame(rows).astype({"frame": "Int32", "face": "Int16"})
    return Results(table.astype({"video": "category"}), np.array(landmarks), {}, None)


def test_a_table_agrees_with_itself() -> None:
    table = results({0: [10.0, 300.0], 1: [], 2: [12.0]})
    same = agreement(table, table)
    assert (same.faces, same.faces_found, same.faces_added) == (3, 1, 0)
    assert (same.same_emotion, same.landmark_distance) == (1, 0)
    assert (same.valence_mean, same.valence_max) == (0, 0)


def test_faces_are_matched_by_their_boxes_whatever_their_order() -> None:
    one, other = results({0: [10.0, 300.0]}), results({0: [303.0, 12.0]})
    both = agreement(one, other)
    assert (both.faces_found, both.faces_added) == (1, 0)
    # They lie 2 and 3 px apart on both axes.
    assert both.landmark_distance == pytest.approx(2.5 * np.sqrt(2) / EYES)


def test_of_faces_close_together_the_nearest_are_matched_each_once() -> None:
    one, other = results({0: [10.0, 40.0]}), results({0: [38.0, 11.0]})
    # They lie 1 and 2 px apart on both axes.
    assert agreement(one, other).landmark_distance == pytest.approx(1.5 * np.sqrt(2) / EYES)
    assert agreement(one, results({0: [12.0]})).faces_found == 0.5


def test_a_face_whose_nearest_is_taken_gets_its_next() -> None:
    # 20 and 45 are both nearest to 30, which goes to 20; 80 is near enough to 45 alone.
    one, other = results({0: [45.0, 20.0]}), results({0: [30.0, 80.0]})
    for both in (agreement(one, other), agreement(other, one)):
        assert (both.faces_found, both.faces_added) == (1, 0)
        assert both.landmark_distance == pytest.approx((10 + 35) / 2 * np.sqrt(2) / EYES)


def test_faces_that_one_side_lacks_are_counted() -> None:
    one = results({0: [10.0, 300.0], 1: [10.0], 2: []})
    other = results({0: [10.0], 1: [], 2: [10.0]})
    both = agreement(one, other)
    assert both.faces == 3
    assert both.faces_found == pytest.approx(1 / 3)
    assert both.faces_added == pytest.approx(1 / 3)
    assert both.same_emotion == 1


def test_a_box_elsewhere_is_another_face() -> None:
    assert agreement(results({0: [0.0]}), results({0: [49.0]})).faces_found == 1
    assert agreement(results({0: [0.0]}), results({0: [51.0]})).faces_found == 0


def test_emotions_and_valence_are_those_of_the_same_faces() -> None:
    one = results({0: [10.0], 1: [10.0], 2: [10.0], 3: [10.0]})
    rows = one.rows.assign(valence=[0.5, 0.4, 0.5, 0.8], emotion=["happy", "sad", "happy", "happy"])
    both = agreement(one, replace(one, rows=rows))
    assert both.same_emotion == 0.75
    assert both.valence_mean == pytest.approx(0.1)
    assert both.valence_max == pytest.approx(0.3)


def test_without_faces_or_landmarks_nothing_is_made_up() -> None:
    nobody, somebody = results({0: []}), results({0: [10.0]})
    assert agreement(nobody, somebody).faces_found is None
    assert agreement(nobody, somebody).same_emotion is None
    assert agreement(somebody, nobody).faces_found == 0
    without = replace(somebody, landmarks=None)
    assert agreement(somebody, without).landmark_distance is None
    assert agreement(somebody, without).same_emotion == 1

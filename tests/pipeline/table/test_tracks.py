"""Tracks: who is whom, on made rows and on real clips."""

from pathlib import Path

import numpy as np
import pytest
from made_spans import a_span

import emopipe
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.pipeline.table.schema import rows_schema, span_rows, with_clues
from emopipe.pipeline.table.tracks import tracking

VIDEOS = Path(__file__).parents[3].parent / "shared" / "data" / "videos"
ANN, BOB = np.zeros(16, np.float32), np.full(16, 10, np.float32)


def tracks_of(frames, pictures=None, max_gap=30.0, at_a_time=7):
    """The track of each face of frames at 25/s, each a list of (x, appearance); None without."""
    parts = []
    for first in range(0, len(frames), at_a_time):
        some = frames[first : first + at_a_time]
        span, predictions = a_span([len(one) for one in some], first=first, stride=1)
        x = np.array([x for one in some for x, _ in one], np.float32)
        looks = [look for one in some for _, look in one]
        span.times[:] = (first + np.arange(len(some))) / 25
        span.boxes[:] = np.stack([x, x * 0, x + 50, x * 0 + 50], axis=1)
        span.appearances[:] = np.stack(looks) if looks else span.appearances
        for i in range(len(some)):
            picture = pictures[first + i] if pictures else 0
            span.thumbnails[i] = np.random.default_rng(picture).integers(0, 256, (16, 16, 3))
        schema = rows_schema(EMOTIONS_8)
        rows = span_rows(span, predictions, predictions.landmarks, schema)
        parts.append(with_clues(rows, span))
    tables = list(tracking(max_gap)(iter(parts)))
    return [track for table in tables for track in table.column("track").to_pylist()]


def test_a_face_that_moves_keeps_its_number_and_others_have_their_own():
    frames = [[(3.0 * i, ANN), (400.0 - 2 * i, BOB)] for i in range(40)]
    assert tracks_of(frames) == [0, 1] * 40


def test_who_cuts_to_the_same_place_is_known_by_appearance():
    frames = [[(100.0, ANN)]] * 20 + [[(100.0, BOB)]] * 20 + [[(300.0, ANN)]] * 20
    pictures = [1] * 20 + [2] * 20 + [3] * 20
    assert tracks_of(frames, pictures) == [0] * 20 + [1] * 20 + [0] * 20


@pytest.mark.parametrize(("max_gap", "last"), [(10.0, 0), (1.0, 1)])
def test_a_person_is_remembered_for_so_long(max_gap, last):
    frames = [[(100.0, ANN)]] * 20 + [[]] * 75 + [[(400.0, ANN)]] * 20
    assert tracks_of(frames, max_gap=max_gap) == [0] * 20 + [None] * 75 + [last] * 20


def test_a_flicker_has_no_track_and_a_still_image_has():
    frames = [[(100.0, ANN)] for _ in range(60)]
    frames[30] = [(100.0, ANN), (500.0, BOB)]
    assert tracks_of(frames) == [0] * 31 + [None] + [0] * 29
    assert tracks_of([[(0.0, ANN), (200.0, BOB)]]) == [0, 1]


def test_tracks_do_not_depend_on_how_rows_are_divided():
    random = np.random.default_rng(4)
    frames = [
        [(100 + 5 * i + random.normal(), ANN)] * (i % 9 != 4) + [(500 - 5 * i, BOB)] * (i < 60)
        for i in range(90)
    ]
    assert tracks_of(frames, at_a_time=3) == tracks_of(frames, at_a_time=90)


@pytest.mark.parametrize(("clip", "people"), [("debate.mp4", 2), ("face_noface.mov", 1)])
def test_real_clips_have_one_track_a_person(tmp_path, clip, people):
    if not (VIDEOS / clip).is_file():
        pytest.skip(f"no reference data: {VIDEOS / clip} is absent")
    results = emopipe.analyze(VIDEOS / clip, tmp_path / "out.parquet", engine="local")
    faces = results.rows[results.rows.face.notna()]
    assert faces.track.nunique() == people
    if clip == "debate.mp4":  # the close-up after the cut shows the one who stood on the right
        right = faces[faces.frame == 75].sort_values("x1").track.iloc[-1]
        assert (faces[faces.frame >= 97].track == right).all()

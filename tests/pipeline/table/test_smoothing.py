"""Smoothed columns: what is averaged, where a track's run ends, and that tables do not matter."""

import itertools
import time
from collections.abc import Iterator, Sequence
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_faces import face_clip
from made_spans import a_span, a_video

from emopipe import analyze
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.pipeline.table.results import read_results
from emopipe.pipeline.table.schema import rows_schema, span_rows
from emopipe.pipeline.table.smoothing import EMONET_WEIGHTS, smoothing
from emopipe.pipeline.table.store import open_store, part_key

SCHEMA = rows_schema(EMOTIONS_8, "none", smooth=True)
MEANS = [*(f"p_{name}" for name in EMOTIONS_8), "valence", "arousal"]
FPS = 25

Tracks = Sequence[int | None]
"""A frame's faces: the track of each, None for none."""


def a_table(
    tracks: Sequence[Tracks],
    frames: Sequence[int] | None = None,
    times: Sequence[float] | None = None,
    valence: Sequence[float] | None = None,
) -> pa.Table:
    """Rows of a video whose frames have these faces; one without faces has a row of nulls."""
    n = len(tracks)
    frames = np.arange(n) if frames is None else np.array(frames)
    times = frames / FPS if times is None else np.array(times)
    rows = [(i, face, track) for i, on in enumerate(tracks) for face, track in enumerate(on)]
    rows += [(i, None, None) for i, on in enumerate(tracks) if not on]
    rows.sort(key=lambda row: (row[0], row[1] or 0))
    frame = np.array([row[0] for row in rows], int)
    rng = np.random.default_rng(len(rows))
    p = rng.dirichlet(np.ones(len(EMOTIONS_8)), len(rows)).astype(np.float32)
    absent = np.array([row[1] is None for row in rows], bool)
    columns = {
        "video": pa.array(["a.mp4"] * len(rows)).dictionary_encode(),
        "frame": frames[frame],
        "time": times[frame],
        "face": [row[1] for row in rows],
        "track": [row[2] for row in rows],
        **{f"p_{name}": pa.array(p[:, i], mask=absent) for i, name in enumerate(EMOTIONS_8)},
        "valence": rng.uniform(-1, 1, len(rows)) if valence is None else valence,
        "arousal": rng.uniform(-1, 1, len(rows)),
    }
    filled = [
        columns[field.name].cast(field.type)
        if isinstance(columns.get(field.name), pa.Array)
        else pa.array(columns.get(field.name, [None] * len(rows)), field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(filled, schema=SCHEMA)


def smoothed(table: pa.Table, *arguments: object, cuts: Sequence[int] = (), **options: object):
    """The rows after the transform, which gets them in tables that begin at the cuts."""
    edges = sorted({0, *cuts, table.num_rows})
    parts = (table.slice(a, b - a) for a, b in itertools.pairwise(edges))
    tables = list(smoothing(*arguments, **options)(parts))
    assert all(one.schema.equals(SCHEMA) for one in tables)
    return pa.concat_tables(tables).to_pandas() if tables else SCHEMA.empty_table().to_pandas()


def runs_of(rows: pd.DataFrame) -> Iterator[np.ndarray]:
    """Row indices of each track's stretches of neighbouring frames."""
    ranks = rows.frame.rank(method="dense")
    for _, of_track in rows[rows.track.notna()].groupby("track"):
        begins = (ranks[of_track.index].diff() != 1).cumsum()
        for _, run in of_track.groupby(begins):
            yield run.index.to_numpy()


def at_many_points(rows: pd.DataFrame, seconds: float) -> pd.DataFrame:
    """The means over a window, the lines between the values drawn and added up point by point."""
    means = rows[MEANS].astype(float) * np.nan
    for run in runs_of(rows):
        times = rows.time[run].to_numpy()
        for i, now in zip(run, times, strict=True):
            start, end = max(now - seconds / 2, times[0]), min(now + seconds / 2, times[-1])
            points = (np.arange(10_000) + 0.5) / 10_000 * (end - start) + start
            for name in MEANS:
                means.loc[i, name] = np.interp(points, times, rows[name][run]).mean()
    return means


present = st.lists(
    st.lists(st.sampled_from([0, 1, 2, 7, None]), max_size=4).map(
        lambda on: [t for i, t in enumerate(on) if t is None or t not in on[:i]]
    ),
    max_size=30,
)


@settings(max_examples=30)
@given(present)
def test_emonet_weighs_the_last_five_frames_of_a_run(tracks):
    rows = smoothed(a_table(tracks), "emonet")
    for run in runs_of(rows):
        for i in range(len(run)):
            last = run[max(i - 4, 0) : i + 1][::-1]
            weights = np.array([0.4, 0.25, 0.15, 0.1, 0.1][: len(last)])
            for name in MEANS:
                mean = np.average(rows[name][last].astype(float), weights=weights)
                assert rows[f"{name}_smooth"][run[i]] == pytest.approx(mean, abs=1e-6)
    assert sum(EMONET_WEIGHTS) == pytest.approx(1)


@settings(max_examples=25)
@given(
    present.filter(lambda tracks: len(tracks) < 12),
    st.floats(0.01, 0.5),
    st.data(),
)
def test_seconds_average_over_the_time_around_a_frame(tracks, seconds, data):
    steps = data.draw(
        st.lists(st.floats(0.005, 0.3), min_size=len(tracks), max_size=len(tracks)), label="steps"
    )
    rows = smoothed(a_table(tracks, times=np.cumsum(steps)), seconds)
    expected = at_many_points(rows, seconds)
    for name in MEANS:
        np.testing.assert_allclose(rows[f"{name}_smooth"], expected[name], atol=1e-4)


@given(
    tracks=present,
    kind=st.sampled_from(["emonet", 0.1, 0.37, 3.0]),
    sampling=st.sampled_from([{}, {"stride": 3}, {"fps": 10.0}]),
    block=st.integers(1, 20),
    data=st.data(),
)
def test_other_tables_give_the_same_bits(tracks, kind, sampling, block, data):
    n = len(tracks)
    steps = data.draw(st.lists(st.integers(1, 4), min_size=n, max_size=n), label="frames")
    seconds = data.draw(
        st.lists(st.sampled_from([0.04, 0.033, 0.2, 1.5, 0.0]), min_size=n, max_size=n)
    )
    table = a_table(tracks, np.cumsum(steps), np.cumsum(seconds))
    cuts = data.draw(st.lists(st.integers(0, table.num_rows)), label="cuts")
    whole = smoothed(table, kind, **sampling)
    with patch("emopipe.pipeline.table.smoothing._BLOCK_ROWS", block):
        cut = smoothed(table, kind, cuts=cuts, **sampling)
    pd.testing.assert_frame_equal(whole, cut, check_exact=True)


@settings(max_examples=30)
@given(present, st.sampled_from(["emonet", 0.2]))
def test_raw_values_stay_and_the_smoothed_emotion_is_the_likeliest(tracks, kind):
    table = a_table(tracks)
    rows = smoothed(table, kind)
    raw = [name for name in rows if not name.endswith("_smooth")]
    pd.testing.assert_frame_equal(rows[raw], table.to_pandas()[raw], check_exact=True)
    on_track = rows.track.notna()
    added = [name for name in rows if name.endswith("_smooth")]
    assert added == ["emotion_smooth", *(f"{name}_smooth" for name in MEANS)]
    assert rows.loc[~on_track, added].isna().all(axis=None)
    assert rows.loc[on_track, added].notna().all(axis=None)
    p = rows.loc[on_track, [f"p_{name}_smooth" for name in EMOTIONS_8]].to_numpy()
    assert rows.emotion_smooth[on_track].tolist() == [EMOTIONS_8[i] for i in p.argmax(axis=1)]
    assert p.sum(axis=1) == pytest.approx(np.ones(len(p)), abs=1e-5)


JUMP = [0.0] * 3 + [1.0] * 3
"""Valence of six frames."""


def starts_anew(kind: object = "emonet", **video: object) -> bool:
    """Whether the values before a jump leave those after it alone."""
    options = {name: video.pop(name) for name in ("stride", "fps") if name in video}
    rows = smoothed(a_table([[0]] * 6, valence=JUMP, **video), kind, **options)
    bridged = rows.valence_smooth.tolist() != JUMP
    return not bridged


@pytest.mark.parametrize("kind", ["emonet", 0.5])
@pytest.mark.parametrize(
    ("gap", "sampled"),
    [
        (False, {"frames": range(6)}),
        (True, {"frames": [0, 1, 2, 4, 5, 6]}),
        (False, {"frames": range(0, 18, 3), "stride": 3}),
        (True, {"frames": [0, 3, 6, 12, 15, 18], "stride": 3}),
        (False, {"frames": range(0, 600, 100), "stride": 100}),
        # --fps 10 of 25 frames/s takes every second or third frame, --fps 20 leaves out some.
        (False, {"frames": [0, 3, 5, 8, 10, 13], "fps": 10}),
        (True, {"frames": [0, 3, 5, 10, 13, 15], "fps": 10}),
        (False, {"frames": [0, 2, 3, 4, 5, 7], "fps": 20}),
        (True, {"frames": [0, 2, 3, 7, 8, 9], "fps": 20}),
        # As many as the video has, or more than that: each frame is sampled.
        (False, {"frames": range(6), "fps": 25}),
        (True, {"frames": [0, 1, 2, 4, 5, 6], "fps": 25}),
        (False, {"frames": range(6), "fps": 1000}),
        (True, {"frames": [0, 1, 2, 4, 5, 6], "fps": 1000}),
        (False, {"frames": range(0, 750, 125), "fps": 0.2}),
        (True, {"frames": [0, 125, 250, 500, 625, 750], "fps": 0.2}),
    ],
)
def test_missing_frames_end_a_run(kind, gap: bool, sampled):
    assert starts_anew(30.0 if "fps" in sampled and kind != "emonet" else kind, **sampled) is gap


@pytest.mark.parametrize(
    ("hole", "times"),
    [
        (False, [0, 0.03, 0.07, 0.17, 0.2, 0.23]),  # a phone's camera in low light
        (False, [0, 0.03, 0.07, 1.0, 1.03, 1.07]),
        (True, [0, 0.03, 0.07, 1.2, 1.23, 1.27]),  # a call that froze
        (False, [0, 4, 8, 13, 17, 21]),  # a picture every few seconds
        (True, [0, 4, 8, 20, 24, 28]),
    ],
)
def test_a_hole_in_the_recording_ends_a_run_whatever_its_frame_rate(hole: bool, times):
    assert starts_anew("emonet", times=times) is hole
    assert starts_anew(60.0, times=times) is hole


def test_frames_weigh_by_the_time_they_stand_for():
    """25 frames of one second count as much as 5 of the next."""
    times = [*np.arange(0, 1, 0.04), *np.arange(1, 2.01, 0.2)]
    valence = [0.0] * 25 + [0.5] + [1.0] * (len(times) - 26)
    rows = smoothed(a_table([[0]] * len(times), times=times, valence=valence), 2.0)
    # 0.04 s from 0 to 0.5, 0.2 s from 0.5 to 1, 0.8 s at 1, of 2 s.
    assert rows.valence_smooth[25] == pytest.approx((0.01 + 0.15 + 0.8) / 2, abs=1e-6)


def test_another_face_between_does_not_carry_a_track_over_its_gap():
    tracks = [[0], [0, 1], [1], [0, 1], [1, 0]]
    rows = smoothed(a_table(tracks, valence=[0, 0, 0.5, 0.5, 1, 0.5, 0.5, 1]), "emonet")
    assert rows.valence_smooth.tolist() == [0, 0, 0.5, 0.5, 1, 0.5, 0.5, 1]


@pytest.mark.parametrize("kind", ["emonet", 2.0])
def test_rows_pass_with_no_more_held_back_than_the_window_needs(kind):
    n_frames, on = 4_000, [0, 1, 2]
    table = a_table([on] * n_frames)
    taken = 0

    def spans() -> Iterator[pa.Table]:
        nonlocal taken
        for first in range(0, table.num_rows, 72):
            taken += min(72, table.num_rows - first)
            yield table.slice(first, 72)

    passed = most = 0
    with patch("emopipe.pipeline.table.smoothing._BLOCK_ROWS", 500):
        for done in smoothing(kind)(spans()):
            passed += done.num_rows
            most = max(most, taken - passed)
    assert passed == table.num_rows
    half_window = 0 if kind == "emonet" else FPS * len(on)
    assert most <= half_window + 72


@pytest.mark.parametrize("kind", ["emonet", 5.0])
def test_many_rows_take_no_loop_over_each(kind):
    table = a_table([[0, 1]] * 25_000)
    began = time.perf_counter()
    assert sum(one.num_rows for one in smoothing(kind)(iter([table]))) == 50_000
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("smooth", [None, "emonet", 0.5])
def test_results_have_the_columns_where_they_are_asked_for(tmp_path, smooth):
    transforms = [on_one_track, *([smoothing(smooth)] if smooth else [])]
    out = tmp_path / "results.parquet"
    with open_store(
        out, {"settings": {"smooth": smooth}}, EMOTIONS_8, transforms=transforms
    ) as store:
        video = a_video(tmp_path, "a.mp4", frames=30)
        span, predictions = a_span([1] * 30, "a.mp4", stride=1)
        rows = span_rows(span, predictions, predictions.landmarks, store.schema)
        store.write(part_key(video), 0, rows)
        store.commit(video, np.arange(30))
        store.finish()
    results = read_results(out)
    smooth_columns = [name for name in results.rows if name.endswith("_smooth")]
    if smooth is None:
        assert not smooth_columns
    else:
        assert len(smooth_columns) == 3 + len(EMOTIONS_8)
        assert results.rows[smooth_columns].notna().all(axis=None)
        assert results.rows.emotion_smooth.dtype == "category"
        assert results.rows.valence_smooth.std() < results.rows.valence.std()
    assert results.landmarks.shape == (30, 68, 2)


def test_analyze_smooths_what_is_on_a_track(tmp_path):
    rows = analyze(face_clip(tmp_path), smooth="emonet", stride=2).rows
    for name in ("emotion", "p_happy", "valence", "arousal"):
        assert (rows[f"{name}_smooth"].notna() == rows.track.notna()).all()
    assert not [name for name in analyze(face_clip(tmp_path), stride=25).rows if "smooth" in name]


def on_one_track(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Stands for the transform that fills the tracks."""
    for table in tables:
        index = table.schema.get_field_index("track")
        track = pa.array(np.zeros(table.num_rows), pa.int32())
        yield table.set_column(index, table.schema.field(index), track)

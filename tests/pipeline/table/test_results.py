"""The table has its rows, types and nulls, and pandas, DuckDB and Polars read them."""

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_spans import a_span, a_video

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.predictor import Predictions
from emopipe.pipeline.table import parts
from emopipe.pipeline.table.results import ResultsError, read_records, read_results, videos_path
from emopipe.pipeline.table.schema import (
    VideoRecord,
    rows_schema,
    span_rows,
    videos_schema,
    videos_table,
)
from emopipe.pipeline.table.store import open_store, part_key


def write(path: Path, faces_per_frame: list[int], landmarks: str = "float32") -> Predictions:
    span, predictions = a_span(faces_per_frame)
    schema = rows_schema(EMOTIONS_8, landmarks, {"settings": {"stride": 2}})
    pq.write_table(span_rows(span, predictions, predictions.landmarks, schema), path)
    return predictions


@given(st.lists(st.integers(0, 3), max_size=20))
def test_each_frame_has_its_faces_or_one_row_of_nulls(faces_per_frame):
    span, predictions = a_span(faces_per_frame)
    table = span_rows(span, predictions, predictions.landmarks, rows_schema(EMOTIONS_8))
    table.validate(full=True)
    rows = table.drop_columns("landmarks").to_pandas()

    assert len(rows) == sum(max(1, k) for k in faces_per_frame)
    assert rows.frame.is_monotonic_increasing
    for number, count in zip(span.frame_indices, faces_per_frame, strict=True):
        on_frame = rows[rows.frame == number]
        assert on_frame.face.dropna().tolist() == list(range(count))
        assert len(on_frame) == max(1, count)
    nobody = rows[rows.face.isna()]
    assert (
        nobody[["x1", "score", "emotion", "p_happy", "valence", "sharpness"]].isna().all(axis=None)
    )
    assert nobody[["video", "frame", "time"]].notna().all(axis=None)


def test_values_stand_with_their_face(tmp_path):
    path = tmp_path / "results.parquet"
    predictions = write(path, [2, 0, 1])
    results = read_results(path)
    seen = results.rows[results.rows.face.notna()]
    assert np.array_equal(seen.valence, predictions.valence)
    assert np.array_equal(results.landmarks[results.rows.face.notna()], predictions.landmarks)
    assert np.isnan(results.landmarks[2]).all()
    best = [EMOTIONS_8[i] for i in predictions.probabilities.argmax(axis=1)]
    assert seen.emotion.tolist() == best
    assert results.rows.face.dtype == "Int16"
    assert results.rows.frame.dtype == "Int32"
    assert results.settings["settings"] == {"stride": 2}


@pytest.mark.parametrize("landmarks", ["float32", "float16"])
def test_duckdb_and_polars_read_landmarks(tmp_path, landmarks):
    path = tmp_path / "results.parquet"
    predictions = write(path, [1, 0], landmarks)
    first = predictions.landmarks[0].ravel()

    by_duckdb = duckdb.sql(f"select landmarks from '{path}' order by frame").fetchall()
    assert np.allclose(by_duckdb[0][0], first, atol=0.05)
    assert by_duckdb[1][0] is None

    by_polars = pl.read_parquet(path)["landmarks"].ext.storage()
    assert np.allclose(by_polars[0].to_numpy(), first, atol=0.05)
    assert by_polars[1] is None


def test_landmarks_can_be_left_out(tmp_path):
    path = tmp_path / "results.parquet"
    write(path, [1], "none")
    assert read_results(path).landmarks is None
    assert "landmarks" not in pq.read_schema(path).names


def test_a_folder_is_read_as_one_table(tmp_path):
    write(tmp_path / "b.parquet", [0])
    write(tmp_path / "a.parquet", [2, 1])
    results = read_results(tmp_path)
    assert len(results.rows) == len(results.landmarks) == 4


@pytest.mark.parametrize("content", [None, b"", b"PAR1 no"], ids=["absent", "empty", "text"])
def test_what_is_no_result_is_named(tmp_path, content):
    path = tmp_path / "other.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ResultsError, match=r"other\.parquet"):
        read_results(path)


def test_a_parquet_file_of_others_is_refused(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "theirs.parquet")
    with pytest.raises(ResultsError, match="not written by emopipe"):
        read_results(tmp_path / "theirs.parquet")


def test_records_come_back_as_they_were(tmp_path):
    records = [
        VideoRecord("b.mp4", "partial", "cut", ((3, 5), (9, 9)), "pyav", 10, 12, 25.0, 64, 48),
        VideoRecord("a.mp4", "failed", "empty", bytes=0, modified=1.5, sha256="ff"),
    ]
    path = tmp_path / "results.videos.parquet"
    pq.write_table(videos_table(records, videos_schema()), path)
    assert read_records(path) == [records[1], records[0]]


def test_faces_of_unequal_length_are_refused():
    span, _ = a_span([2, 1])
    with pytest.raises(ValueError, match="3 faces have 1 scores"):
        replace(span, scores=span.scores[:1])


VIDEOS = ["a.mp4", "b/clip.mp4", "c.mp4"]


def an_output(out: Path, frames: int = 30, **settings: object) -> Path:
    """An output of three videos with two faces a frame, and one that failed."""
    with open_store(out, {"settings": settings}, EMOTIONS_8) as store:
        for name in VIDEOS:
            video = a_video(out.parent / "videos", name, frames)
            span, predictions = a_span([2] * frames, name, stride=1)
            rows = span_rows(span, predictions, predictions.landmarks, store.schema)
            store.write(part_key(video), 0, rows)
            store.commit(video, np.arange(frames))
        store.fail("bad.mp4", out.parent / "videos" / "bad.mp4", "it is text")
        store.finish()
    return out


@pytest.fixture(params=["results.parquet", "results"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return an_output(tmp_path / request.param)


def test_named_columns_come_in_the_tables_order(output):
    results = read_results(output, columns=["valence", "video"], landmarks=False)
    assert list(results.rows.columns) == ["video", "valence"]
    every = read_results(output)
    assert results.rows.equals(every.rows[["video", "valence"]])
    assert results.landmarks is None
    assert list(read_results(output, columns="time").rows.columns) == ["time"]


def test_named_videos_are_read_alone(output):
    every = read_results(output)
    mask = (every.rows.video == "b/clip.mp4").to_numpy()
    one = read_results(output, videos="b/clip.mp4")
    expected = every.rows[mask].reset_index(drop=True)
    pd.testing.assert_frame_equal(one.rows, expected, check_categorical=False)
    assert one.rows.video.cat.categories.tolist() == ["b/clip.mp4"]
    np.testing.assert_array_equal(one.landmarks, every.landmarks[mask])
    assert one.videos.video.tolist() == ["b/clip.mp4"]

    two = read_results(output, columns=["frame"], videos=["c.mp4", "a.mp4", "bad.mp4"])
    assert list(two.rows.columns) == ["frame"]
    assert len(two.rows) == len(two.landmarks) == 2 * 60
    assert sorted(two.videos.status) == ["failed", "ok", "ok"]
    nothing = read_results(output, videos=["bad.mp4"])
    assert nothing.rows.columns.equals(every.rows.columns)
    assert nothing.landmarks.shape == (0, 68, 2)


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_PER_GROUP", 60)
    out = an_output(tmp_path / "results.parquet")
    groups = []
    read = pq.ParquetFile.read_row_group

    def read_row_group(file, group, columns):
        groups.append((group, set(columns)))
        return read(file, group, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_row_group)
    read_results(out, columns=["valence"], videos=["b/clip.mp4"], landmarks=False)
    assert groups == [(1, {"video", "valence"})]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"columns": ["valance"]}, r"has no column 'valance': did you mean valence\?"),
        ({"columns": "qqq"}, "has no column 'qqq': it has video, frame, time"),
        ({"columns": ["landmarks"]}, "`columns` does not name the landmarks"),
        ({"columns": 5}, "`columns` is text or a list of texts, not 5"),
        ({"videos": ["clip.mp4"]}, r"has no video 'clip\.mp4': did you mean b/clip\.mp4\?"),
        ({"videos": "q"}, r"`videos`: .* has no video 'q': it has a\.mp4, b/clip\.mp4"),
        ({"videos": [1]}, r"`videos` is text or a list of texts, not \[1\]"),
        ({"landmarks": "none"}, "`landmarks` is True or False, not 'none'"),
        ({"column": "time"}, r"no argument `column`: did you mean columns\?"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(output, arguments, says):
    with pytest.raises(EmopipeError, match=says):
        read_results(output, **arguments)


def test_videos_are_known_without_the_videos_table(output):
    videos_path(output).unlink()
    assert len(read_results(output, videos=["b/clip.mp4"]).rows) == 60
    assert read_results(output).videos is None
    with pytest.raises(ResultsError, match=r"did you mean b/clip\.mp4\?"):
        read_results(output, videos=["b-clip.mp4"])


@pytest.mark.parametrize("path", [5, None, "", ["results.parquet"]])
def test_a_path_of_a_wrong_type_is_a_sentence(path):
    with pytest.raises(
        EmopipeError, match=r"`path` is (text or a path|a results file or folder), "
    ):
        read_results(path)


def test_the_current_folder_may_be_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(an_output(tmp_path / "results"))
    assert len(read_results(".").rows) == 3 * 60
    assert read_results(".").videos is not None


def test_files_of_two_outputs_are_not_mixed(output):
    elsewhere = output.parent / "videos"
    with pytest.raises(ResultsError, match="neither a results file nor a folder"):
        read_results(elsewhere)
    if output.suffix:
        (output.parent / "other.parquet").write_bytes(videos_path(output).read_bytes())
        videos_path(output).unlink()
        with pytest.raises(ResultsError, match="are not of one output"):
            read_results(output.parent)


def test_what_lies_around_an_output_is_told_from_it(output, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("video,time\n")
    no_output = "neither a results file nor a folder with results in it: give what"
    for path, complaint in {
        output.parent: rf"is no output itself: read {output}$",
        videos_path(output): "is the videos table beside an output: read that",
        tmp_path / "empty": no_output,
        tmp_path / "table.csv": no_output,
        tmp_path / "absent.parquet": r"absent\.parquet: there is no such file or folder",
        tmp_path / "absent": "there is no such file or folder",
        Path("/"): "`path` is a results file or folder, not '/'",
        Path("a\0b"): "cannot be read",
        Path("x" * 999): "cannot be read",
    }.items():
        with pytest.raises(ResultsError, match=complaint):
            read_results(path)
    monkeypatch.chdir(output.parent)
    with pytest.raises(ResultsError, match="is no output itself: read"):
        read_results(".")


def test_results_are_shown_in_a_few_lines(output):
    shown = repr(read_results(output)).splitlines()
    assert shown[0] == "<Results: 180 rows, 3 videos, 90 frames, 180 faces"
    assert shown[1].startswith(" columns: video, frame, time, face, track, x1")
    assert shown[-2:] == [" landmarks: (180, 68, 2) float32", " model: unknown>"]
    assert len(shown) <= 10 and max(map(len, shown)) <= 100
    few = repr(read_results(output, columns=["emotion"], landmarks=False)).splitlines()
    assert few[:3] == ["<Results: 180 rows", " columns: emotion", " landmarks: none"]

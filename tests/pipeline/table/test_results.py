"""The table has its rows, types and nulls, and pandas, DuckDB and Polars read them."""

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_spans import a_span

from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.predictor import Predictions
from emopipe.pipeline.table.results import ResultsError, read_records, read_results
from emopipe.pipeline.table.schema import (
    VideoRecord,
    rows_schema,
    span_rows,
    videos_schema,
    videos_table,
)


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

"""A video's rows pass through transforms, in order and lazily, on their way to the results."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_spans import a_span, a_video

from emopipe.emonet.labels import EMOTIONS_8
from emopipe.pipeline.table.commit import OrderedRows, Transform, ranges
from emopipe.pipeline.table.results import read_results
from emopipe.pipeline.table.schema import rows_schema, span_rows
from emopipe.pipeline.table.store import Store, open_store, part_key

SCHEMA = rows_schema(EMOTIONS_8)
SPAN = 10  # frames


def span_table(span: int, faces: int = 2, schema: pa.Schema = SCHEMA) -> pa.Table:
    found, predictions = a_span([faces] * SPAN, "a.mp4", first=span * SPAN, stride=1)
    return span_rows(found, predictions, predictions.landmarks, schema)


def with_tracks(table: pa.Table, tracks: np.ndarray) -> pa.Table:
    index = table.schema.get_field_index("track")
    return table.set_column(index, "track", pa.array(tracks, pa.int32()))


def write(store: Store, tmp_path: Path, spans: int) -> None:
    video = a_video(tmp_path, "a.mp4", frames=spans * SPAN)
    for span in reversed(range(spans)):
        store.write(part_key(video), span, span_table(span, schema=store.schema))
    store.commit(video, np.arange(video.frames))
    store.finish()


def test_a_transform_sees_all_rows_in_order_and_fills_a_column(tmp_path):
    seen: list[pa.Table] = []

    def numbered(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
        n_rows = 0
        for table in rows:
            seen.append(table)
            yield with_tracks(table, n_rows + np.arange(table.num_rows))
            n_rows += table.num_rows

    def doubled(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in rows:
            yield with_tracks(table, 2 * table.column("track").to_numpy())

    out = tmp_path / "results.parquet"
    with open_store(out, {"settings": {}}, EMOTIONS_8, transforms=(numbered, doubled)) as store:
        write(store, tmp_path, spans=3)
    given = pa.concat_tables(seen)
    assert given.column("frame").to_pylist() == [i for i in range(3 * SPAN) for _ in range(2)]
    assert given.column("face").to_pylist() == [0, 1] * (3 * SPAN)
    assert read_results(out).rows.track.tolist() == list(range(0, 2 * 6 * SPAN, 2))


def test_rows_pass_one_table_at_a_time():
    events = []

    def parts() -> Iterator[pa.Table]:
        for span in range(3):
            events.append(f"read {span}")
            yield span_table(span)

    def transform(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for span, table in enumerate(rows):
            events.append(f"transform {span}")
            yield table

    for span, _ in enumerate(OrderedRows("a.mp4", SCHEMA, [transform]).tables(parts())):
        events.append(f"write {span}")
    steps = ("read", "transform", "write")
    assert events == [f"{step} {span}" for span in range(3) for step in steps]


def test_a_transform_may_hold_rows_back_and_cut_them_anew():
    def whole(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
        joined = pa.concat_tables(rows)
        yield joined.slice(0, 7)
        yield joined.slice(7)

    rows = OrderedRows("a.mp4", SCHEMA, [whole])
    tables = list(rows.tables(span_table(span) for span in range(3)))
    assert [table.num_rows for table in tables] == [7, 2 * 3 * SPAN - 7]
    assert rows.faces == 2 * 3 * SPAN
    np.testing.assert_array_equal(rows.frames, np.arange(3 * SPAN))


def dropping(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in rows:
        yield table.slice(1)


def swallowing(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield next(rows)


def repeating(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in rows:
        yield table
        yield table


def reordering(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in rows:
        yield table.take(np.arange(table.num_rows)[::-1])


@pytest.mark.parametrize("transform", [dropping, swallowing, repeating, reordering])
def test_a_transform_keeps_the_rows_and_their_order(transform: Transform):
    rows = OrderedRows("a.mp4", SCHEMA, [transform])
    with pytest.raises(RuntimeError, match=r"a\.mp4: a transform added, left out or reordered"):
        list(rows.tables(span_table(span) for span in range(2)))


def wider(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in rows:
        track = pa.array(np.zeros(table.num_rows), pa.float64())
        yield table.set_column(table.schema.get_field_index("track"), "track", track)


def longer(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in rows:
        yield table.append_column("extra", table.column("frame"))


@pytest.mark.parametrize(("transform", "column"), [(wider, "track"), (longer, "extra")])
def test_a_transform_keeps_the_schema(tmp_path, transform: Transform, column: str):
    out = tmp_path / "results.parquet"
    with (
        open_store(out, {"settings": {}}, EMOTIONS_8, transforms=[transform]) as store,
        pytest.raises(RuntimeError, match=rf"a\.mp4: a transform changed the schema, in {column}"),
    ):
        write(store, tmp_path, spans=2)
    assert not out.exists()


def test_missing_frames_are_joined_over_frames_that_were_not_sampled():
    wanted = np.arange(0, 100, 10)
    assert ranges(np.array([10, 20, 50, 90]), wanted) == ((10, 20), (50, 50), (90, 90))
    assert ranges(np.array([], int), wanted) == ()

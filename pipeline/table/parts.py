"""The store's single files: parts, which hold one span's rows as Arrow, and tables as Parquet.

Parts are read once or twice and thrown away, and Arrow is several times as fast to write as
Parquet.
"""

import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emopipe.pipeline.table.schema import DICTIONARY_COLUMNS

ROWS_PER_GROUP = 65_536
"""Rows of a Parquet row group: some 45 MB with landmarks, the most that merging holds at once."""

_MAX_WAITING_TABLES = 256
"""Tables that wait for their row group: a small one takes more memory than its few rows."""

_MAGIC = b"ARROW1"
"""What an Arrow file begins and ends with."""

_FAILED_KEY = b"emopipe_failed"
"""Metadata key of a failed span's part: the reason."""


def encode_part(rows: pa.Table) -> bytes:
    """Return the content of a part."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def encode_failure(schema: pa.Schema, reason: str) -> bytes:
    """Return the content of a failed span's part, which has no rows."""
    metadata = {**(schema.metadata or {}), _FAILED_KEY: reason.encode()}
    return encode_part(schema.with_metadata(metadata).empty_table())


def is_complete(part: BinaryIO) -> bool:
    """Whether a part has its end: a power cut may leave it cut off, or empty."""
    size = part.seek(0, os.SEEK_END)
    part.seek(-min(size, len(_MAGIC)), os.SEEK_END)
    # A file of the beginning alone ends with the same bytes.
    return size > 2 * len(_MAGIC) and part.read() == _MAGIC


def read_part(content: bytes) -> pa.Table:
    """Read the rows of a part."""
    with pa.ipc.open_file(pa.BufferReader(content)) as opened:
        return opened.read_all()


def failure_reason(rows: pa.Table) -> str:
    """Return why the span of a part failed; empty if it did not."""
    reason: bytes = (rows.schema.metadata or {}).get(_FAILED_KEY, b"")
    return reason.decode()


def write_table(file: BinaryIO, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write tables as one Parquet file, in row groups of bounded size."""
    with pq.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=DICTIONARY_COLUMNS
    ) as writer:
        waiting: list[pa.Table] = []
        n_rows = 0
        for table in tables:
            waiting.append(table.replace_schema_metadata(schema.metadata))
            n_rows += table.num_rows
            if n_rows >= ROWS_PER_GROUP:
                writer.write_table(_joined(waiting))
                waiting, n_rows = [], 0
            elif len(waiting) == _MAX_WAITING_TABLES:
                waiting = [_joined(waiting).combine_chunks()]
        if waiting:
            writer.write_table(_joined(waiting))


def row_groups(file: BinaryIO) -> Iterator[pa.Table]:
    """Yield the row groups of a Parquet file."""
    with pq.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            yield opened.read_row_group(group)


def rows_by_video(file: BinaryIO, names: set[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield (name, rows) of the named videos from a Parquet file that is sorted by video."""
    for rows in row_groups(file):
        runs = pc.run_end_encode(rows.column("video").cast(pa.string()).combine_chunks())
        start = 0
        for name, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            if name in names:
                yield name, rows.slice(start, end - start)
            start = end


def _joined(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries()

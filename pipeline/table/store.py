"""The output being made: parts of spans, one commit a video, then the results.

While a run works, everything lies in `<out>.partial/` beside the output:

    run.json            how the run makes its results; another way is refused
    lock                held by the one run that may write
    <key>/00000.arrow   the rows of span 0 of one video, of one content, by one backend
    <key>.parquet       a video's rows, merged
    attempts            how often spans brought their worker down
    <key>.json          its record: written last, this commits the video

A killed run goes on from there. `finish` puts the results in place, each replaced only by a whole
file, and then removes the folder.
"""

import hashlib
import heapq
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.files import appearing_whole, sha256_of
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.table.results import (
    ResultsError,
    VideoRecord,
    is_single_file,
    read_records,
    read_settings,
    rows_schema,
    videos_path,
    videos_schema,
    videos_table,
)

ROWS_PER_GROUP = 65_536
"""Rows of a Parquet row group: some 45 MB with landmarks, the most that merging holds at once."""

_MOST_TABLES = 256
"""Tables that wait for their row group: a small one takes more memory than its few rows."""

_OTHER_SUFFIXES = {".csv", ".tsv", ".txt", ".json", ".xlsx", ".feather", ".arrow", ".pq", ".mp4"}
"""Endings that nobody gives a folder: whoever names such an output expects another format."""

_DICTIONARY_COLUMNS = ["video", "emotion"]

_PART_MAGIC = b"ARROW1"
"""Parts are Arrow files: they are read once or twice and thrown away, and Parquet takes several
times as long to write."""

_FAILED_KEY = b"emopipe_failed"
"""In the metadata of a failed span's part: why."""


class OutputError(EmopipeError):
    """An output that cannot be written, or that holds something else."""


class Store:
    """One output, opened by `open_store`.

    Args:
        out: the results file (`*.parquet`) or folder.
        description: how this run makes its results; `description["settings"]` is all that
            changes them.
        classes: expression names.
        landmarks: "float32", "float16" or "none".
    """

    def __init__(
        self, out: Path, description: dict[str, Any], classes: tuple[str, ...], landmarks: str
    ) -> None:
        self.out = out
        self.schema = rows_schema(classes, landmarks, description)
        self._description = description
        self._partial = partial_path(out)
        self._run = self._partial / "run.json"
        self._layout = "file" if is_single_file(out) else "folder"
        self._kept: dict[str, VideoRecord] = {}
        self._new: dict[str, VideoRecord] = {}
        self._replaced: Set[str] = frozenset()

    def record(self, name: str, file: Path) -> VideoRecord | None:
        """Return what is already known of an input, or None if it is to be done.

        An input that failed in an earlier run is to be done, and one whose size or modification
        time is not the recorded one; where only the time differs its content decides.

        Raises:
            OutputError: the output holds another input of that name.
        """
        record = self._new.get(name) or self._kept.get(name)
        if record is None or (record.status == "failed" and name not in self._new):
            return None
        try:
            stat = file.stat()
            if (record.bytes, record.modified) == (stat.st_size, stat.st_mtime):
                return record
            if record.bytes == stat.st_size and record.sha256 == sha256_of(file):
                return record
        except OSError:
            return record
        if record.path != _place_of(file):
            raise OutputError(
                f"{self.out} holds the rows of another {name} ({record.path}): choose another "
                f"--out, or name both inputs in one command"
            )
        return None

    def spans(self, key: str) -> set[int]:
        """Return which spans of the video with that `part_key` are here already."""
        parts = (self._partial / key).glob("*.arrow")
        return {_span(part) for part in parts if _ends_well(part)}

    def unfinished(self) -> dict[str, set[int]]:
        """Return the spans that are here of videos that are not committed, by `part_key`."""
        folders = (path.name for path in self._partial.iterdir() if path.is_dir())
        return {key: self.spans(key) for key in folders}

    def write(self, key: str, span: int, rows: pa.Table) -> None:
        """Keep a span's rows.

        Args:
            key: `part_key` of the video.
            span: which span of it.
            rows: its rows.

        Raises:
            OutputError: the disk does not take them.
        """
        self._write(key, span, rows, self.schema)

    def write_failed(self, key: str, span: int, reason: str) -> None:
        """Keep a span of which no frame could be had, and why: it is done, and has no rows."""
        schema = self.schema.with_metadata({**self.schema.metadata, _FAILED_KEY: reason.encode()})
        self._write(key, span, schema.empty_table(), schema)

    def record_attempt(self, key: str, span: int) -> int:
        """Note that a span brought its worker down, and return how often it has, in all runs."""
        path = self._partial / "attempts"
        counts = json.loads(path.read_text()) if path.exists() else {}
        count: int = counts.get(f"{key}/{span}", 0) + 1
        with _writing(self.out), appearing_whole(path) as growing:
            growing.write_text(json.dumps(counts | {f"{key}/{span}": count}))
        return count

    def commit(self, video: Video, wanted: NDArray[np.int64]) -> VideoRecord:
        """Merge a video's spans and commit it.

        Args:
            video: the video.
            wanted: (n,) the sampled frames' numbers, ascending.

        Raises:
            OutputError: the disk does not take it.
            RuntimeError: a frame stands in two spans, or was not asked for.
        """
        folder = self._partial / part_key(video)
        parts = sorted(folder.glob("*.arrow"), key=_span)
        frames, faces, why = _count(parts)
        absent = np.setdiff1d(wanted, frames)
        if len(frames) + len(absent) != len(wanted):
            raise RuntimeError(f"{video.name}: the spans' frames are not those that were sampled")
        lost = self._lost(video)
        complete = len(wanted) > 0 and not len(absent) and not lost
        record = VideoRecord(
            video=video.name,
            status="ok" if complete else "partial" if len(frames) else "failed",
            error=None if complete else _problem(video, len(absent), len(wanted), bool(lost), why),
            missing=ranges(absent, wanted) + lost,
            backend=video.backend,
            frames=len(frames),
            faces=faces,
            fps=video.fps,
            width=video.width,
            height=video.height,
            bytes=video.size,
            modified=_modified(video.path),
            sha256=video.sha256,
            path=_place_of(video.path),
        )
        with _writing(self.out):
            merged = map(_read_part, parts)
            _write_whole(self._file(video.name, ".parquet"), merged, self.schema)
            self._commit(record)
            shutil.rmtree(folder, ignore_errors=True)
        return record

    def fail(self, name: str, file: Path, error: str) -> VideoRecord:
        """Commit an input of which nothing could be had."""
        size = file.stat().st_size if file.exists() else None
        record = VideoRecord(
            video=name,
            status="failed",
            error=error,
            bytes=size,
            modified=_modified(file),
            path=_place_of(file),
        )
        with _writing(self.out):
            self._commit(record)
            self._file(name, ".parquet").unlink(missing_ok=True)  # of an earlier content
        return record

    def _lost(self, video: Video) -> tuple[tuple[int, int], ...]:
        """Return the range of frames that the file lists but no longer has, if any are wanted."""
        end = self._description["settings"].get("end")
        if not video.truncated_frames or (end is not None and video.times[-1] >= end):
            return ()
        return ((video.frames, video.frames + video.truncated_frames - 1),)

    def _write(self, key: str, span: int, rows: pa.Table, schema: pa.Schema) -> None:
        with _writing(self.out):
            (self._partial / key).mkdir(exist_ok=True)
            # A part that a power cut spoils is done again: see `spans`.
            part = self._partial / key / f"{span:05d}.arrow"
            with (
                appearing_whole(part, durable=False) as growing,
                pa.ipc.new_file(growing, schema) as writer,
            ):
                writer.write_table(rows.replace_schema_metadata(schema.metadata))

    def finish(self) -> list[VideoRecord]:
        """Put the results in place and remove the working folder.

        Returns:
            The records of all the output's videos, sorted by name.

        Raises:
            OutputError: the disk does not take them.
        """
        records = sorted({**self._kept, **self._new}.values(), key=lambda record: record.video)
        with _writing(self.out):
            if self._new or not self.out.exists():
                if not is_single_file(self.out):
                    self._place_files()
                elif not self.out.exists() or self._rows_change():
                    self._put(self.out, self._all_rows(), self.schema)
                described = self._description | {"layout": self._layout}
                table = videos_table(records, videos_schema(described))
                self._put(videos_path(self.out), [table], table.schema)
            # Killed after this, no run takes the records for work on results that it replaces;
            # killed after these, none looks for rows that are gone.
            self._run.unlink(missing_ok=True)
            self._forget_records()
            shutil.rmtree(self._partial)
        return records

    def _rows_change(self) -> bool:
        """Whether this run adds rows or takes some away: inputs may just have failed again."""
        pairs = ((new, self._kept.get(name)) for name, new in self._new.items())
        return bool(self._replaced) or any(new.frames or (old and old.frames) for new, old in pairs)

    def _prepare(self, overwrite: bool) -> None:
        """Take up what an earlier run left, or refuse it."""
        begun = json.loads(self._run.read_text()) if self._run.exists() and not overwrite else None
        replacing = begun["replacing"] if begun else overwrite
        if begun:
            self._refuse_other_settings(begun["description"])
        earlier = self._earlier_records(replacing, finishing=begun is not None)
        # Only now: a refused run must not stand in the way of the right one.
        if overwrite:
            self._wipe()
        if not begun:
            content = {"description": self._description, "replacing": replacing}
            with appearing_whole(self._run) as growing:
                growing.write_text(json.dumps(content, indent=1))
        if replacing:
            self._replaced = earlier.keys()
        else:
            self._kept = earlier
        for path in self._record_files():
            record = _record(json.loads(path.read_text()))
            self._new[record.video] = record

    def _earlier_records(self, replacing: bool, finishing: bool) -> dict[str, VideoRecord]:
        """Return the records of the results that lie in place already.

        Args:
            replacing: whether these are to go.
            finishing: whether a run that was stopped may have put its rows there.
        """
        beside = videos_path(self.out)
        vacant = not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir()))
        if not beside.exists():
            if vacant or replacing:
                return {}
            if finishing:
                if is_single_file(self.out):
                    self._refuse_other_settings(read_settings(self.out))
                return {}
            raise OutputError(
                f"{self.out} exists and {beside.name} does not lie beside it, so it is not known "
                f"what it holds: choose another --out, or --overwrite to replace it"
            )
        try:
            made, records = read_settings(beside), read_records(beside)
        except ResultsError:
            if replacing:
                return {}
            raise
        if made.get("layout", self._layout) != self._layout:
            raise OutputError(
                f"{beside} tells of a {made['layout']} of the same name: choose another --out"
            )
        if vacant:
            return {}
        if not replacing:
            self._refuse_other_settings(made)
        return {record.video: record for record in records}

    def _refuse_other_settings(self, description: dict[str, Any]) -> None:
        then, now = description.get("settings", {}), self._description["settings"]
        changed = sorted(k for k in {*then, *now} if then.get(k) != now.get(k))
        if unknown := [k for k in changed if k not in then or k not in now]:
            raise OutputError(
                f"{self.out} was begun by another version of emopipe, which had other settings "
                f"({', '.join(unknown)}): choose another --out, or --overwrite to start anew"
            )
        if changed:
            differences = ", ".join(f"{k} was {then.get(k)} and is {now.get(k)}" for k in changed)
            raise OutputError(
                f"{self.out} was begun with other settings ({differences}): use those, "
                f"choose another --out, or --overwrite to start anew"
            )

    def _commit(self, record: VideoRecord) -> None:
        with appearing_whole(self._file(record.video, ".json")) as growing:
            growing.write_text(json.dumps(asdict(record)))
        self._new[record.video] = record

    def _record_files(self) -> list[Path]:
        return [path for path in self._partial.glob("*.json") if path != self._run]

    def _forget_records(self) -> None:
        for path in self._record_files():
            path.unlink()

    def _wipe(self) -> None:
        """Remove an earlier run's work: records first, lest a kill leave some without their rows.

        Its run.json is replaced and not removed, so that what is left is never another run's.
        """
        self._forget_records()
        for path in self._partial.iterdir():
            if path.name != "lock" and path != self._run:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _put(self, path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        """Make a file in the working folder: a kill leaves no half one beside the output."""
        made = self._partial / path.name
        _write_whole(made, tables, schema)
        made.replace(path)

    def _all_rows(self) -> Iterator[pa.Table]:
        """Yield the rows of all videos in order of name: new ones, and those of the old file."""
        kept = self._kept.keys() - self._new.keys()
        old = _rows_by_video(self.out, kept) if kept else iter(())
        new = (
            (name, rows)
            for name in sorted(self._new)
            if self._new[name].frames
            for rows in _row_groups(self._file(name, ".parquet"))
        )
        for _, rows in heapq.merge(old, new, key=lambda named: named[0]):
            yield rows

    def _place_files(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        for name, record in self._new.items():
            merged = self._file(name, ".parquet")
            target = self._place(name)
            if record.status == "failed":
                target.unlink(missing_ok=True)
            elif merged.exists():  # else a run that was killed has put it there
                target.parent.mkdir(parents=True, exist_ok=True)
                merged.replace(target)
        for name in self._replaced - self._new.keys():
            self._place(name).unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        return self.out / f"{name}.parquet"

    def _file(self, name: str, suffix: str) -> Path:
        return self._partial / (_key(name) + suffix)


@contextmanager
def open_store(
    out: Path,
    description: dict[str, Any],
    classes: tuple[str, ...],
    landmarks: str = "float32",
    overwrite: bool = False,
) -> Iterator[Store]:
    """Open an output for one run, which alone may write it.

    Raises:
        OutputError: it cannot be written, another run is writing it, or what lies there was made
            otherwise (and `overwrite` is not set).
    """
    if out.name in ("", ".."):
        raise OutputError(f"--out {out} has no name of its own: give one, such as results.parquet")
    if out.suffix.lower() in _OTHER_SUFFIXES:
        raise OutputError(
            f"--out {out}: results are Parquet; name a file that ends in .parquet, or a folder"
        )
    partial = partial_path(out)
    with _writing(out):
        if out.is_file() and not is_single_file(out):
            raise OutputError(
                f"--out {out} is a file already: name one that ends in .parquet, or a folder"
            )
        store = Store(out, description, classes, landmarks)
        partial.mkdir(parents=True, exist_ok=True)
        lock = FileLock(partial / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(
                f"another run is writing {out}: wait for it, or choose another --out"
            ) from error
    try:
        with _writing(out):
            store._prepare(overwrite)
        yield store
    finally:
        try:
            _tidy(partial)
        finally:
            lock.release()


def _tidy(partial: Path) -> None:
    """Remove a working folder in which no work lies."""
    if partial.is_dir() and {path.name for path in partial.iterdir()} <= {"lock", "run.json"}:
        shutil.rmtree(partial)


def part_key(video: Video) -> str:
    """Name the parts of a video: of one content, by one backend."""
    return _key(f"{video.name}\n{video.sha256}\n{video.backend}")


def partial_path(out: Path) -> Path:
    """Where a run works on an output."""
    return out.with_name(out.name + ".partial")


def ranges(missing: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Join missing frames into (first, last) ranges of neighbours among the wanted ones."""
    if not len(missing):
        return ()
    rank = np.searchsorted(wanted, missing)
    runs = np.split(missing, np.flatnonzero(np.diff(rank) > 1) + 1)
    return tuple((int(run[0]), int(run[-1])) for run in runs)


def _problem(video: Video, absent: int, wanted: int, cut: bool, reason: str) -> str:
    """Say in words what is missing, and why if that is known."""
    if not wanted:
        shown = f"{video.times[0]:.1f} to {video.times[-1]:.1f} s"
        return f"no frame lies between --start and --end: it shows {shown}"
    said = []
    if absent:
        said.append(f"{absent} of {wanted} sampled frames could not be had")
    if cut:
        said.append(f"the file is cut short: {video.truncated_frames} frames that it lists are not in it")
    return "; ".join(said) + (f" ({reason})" if reason else "")


def _place_of(file: Path) -> str:
    """Return a file's absolute path as text; names need not be UTF-8."""
    return os.fsencode(file.absolute()).decode(errors="replace")


def _modified(file: Path) -> float | None:
    return file.stat().st_mtime if file.exists() else None


def _span(part: Path) -> int:
    return int(part.stem)


def _count(parts: list[Path]) -> tuple[NDArray[np.int64], int, str]:
    """Return a video's distinct frames, its number of faces, and why a span was lost, if one was.

    The last failed span's reason stands for all.
    """
    frames, faces, reason = [np.zeros(0, np.int64)], 0, b""
    for part in parts:
        table = _read_part(part)
        reason = table.schema.metadata.get(_FAILED_KEY, reason)
        frames.append(np.unique(table.column("frame").to_numpy()).astype(np.int64))
        faces += table.num_rows - table.column("face").null_count
    every = np.concatenate(frames)
    if len(np.unique(every)) != len(every):
        raise RuntimeError(f"{parts[0].parent}: a frame stands in two spans")
    return every, faces, reason.decode()


def _row_groups(file: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            yield opened.read_row_group(group)


def _rows_by_video(file: Path, names: set[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield (name, rows) of the named videos from a file that is sorted by video."""
    for rows in _row_groups(file):
        runs = pc.run_end_encode(rows.column("video").cast(pa.string()).combine_chunks())
        start = 0
        for name, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            if name in names:
                yield name, rows.slice(start, end - start)
            start = end


def _ends_well(part: Path) -> bool:
    """Whether a part has its end, which is written last."""
    with part.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(-min(size, len(_PART_MAGIC)), os.SEEK_END)
        # It is what such a file begins with, too.
        return size > 2 * len(_PART_MAGIC) and file.read() == _PART_MAGIC


def _read_part(part: Path) -> pa.Table:
    with pa.ipc.open_file(part) as opened:
        return opened.read_all()


def _write_whole(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write tables as one Parquet file, in row groups of bounded size."""
    with (
        appearing_whole(path) as growing,
        pq.ParquetWriter(
            growing, schema, compression="zstd", use_dictionary=_DICTIONARY_COLUMNS
        ) as writer,
    ):
        waiting: list[pa.Table] = []
        n_rows = 0
        for table in tables:
            waiting.append(table.replace_schema_metadata(schema.metadata))
            n_rows += table.num_rows
            if n_rows >= ROWS_PER_GROUP:
                writer.write_table(_join(waiting))
                waiting, n_rows = [], 0
            elif len(waiting) == _MOST_TABLES:
                waiting = [_join(waiting).combine_chunks()]
        if waiting:
            writer.write_table(_join(waiting))


def _join(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries()


def _record(content: dict[str, Any]) -> VideoRecord:
    return VideoRecord(**content | {"missing": tuple(tuple(pair) for pair in content["missing"])})


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn the disk's refusals into a sentence."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written ({error.strerror or error}): choose another --out, "
            f"or make room and rights there"
        ) from error

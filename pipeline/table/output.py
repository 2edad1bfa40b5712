"""The results in place: what an output holds already, and how a run's work gets there."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from emopipe.emonet.errors import EmopipeError
from emopipe.pipeline.inputs import WORKING_SUFFIX
from emopipe.pipeline.storage import storage_for
from emopipe.pipeline.table.parts import row_groups, rows_by_video, write_table
from emopipe.pipeline.table.results import (
    ResultsError,
    is_single_file,
    present_videos_path,
    read_records,
    read_settings,
    videos_path,
)
from emopipe.pipeline.table.schema import VideoRecord, videos_schema, videos_table


class OutputError(EmopipeError):
    """An output that cannot be written, or that holds something else."""


class Output:
    """The results of earlier runs, in place, and the place of this run's.

    Args:
        out: the results file (`*.parquet`) or folder.
        schema: of this run's results.
        description: how this run makes its results; `description["settings"]` holds all that
            changes them.
    """

    def __init__(self, out: Path, schema: pa.Schema, description: dict[str, Any]) -> None:
        self._out = out
        self._schema = schema
        self._description = description
        self._storage = storage_for(out)
        self._beside = videos_path(out)
        self._beside_before = present_videos_path(out)
        self._single = is_single_file(out)
        self._layout = "file" if self._single else "folder"

    def earlier_records(self, replacing: bool, resuming: bool) -> dict[str, VideoRecord]:
        """Return the records of the results that are in place, by video.

        Args:
            replacing: whether this run replaces them.
            resuming: whether a run that was stopped may have put its rows there.

        Raises:
            OutputError: they were made with other settings, or are not known to be results.
            ResultsError: they cannot be read.
        """
        info = self._storage.stat(self._out)
        empty = info is None or (info.is_folder and not self._storage.children(self._out))
        if info and info.is_file:
            self._refuse_videos_table()
        if self._storage.stat(self._beside_before) is None:
            if not empty and not replacing:
                self._require_own_rows(resuming)
            return {}
        try:
            description = read_settings(self._beside_before)
        except ResultsError:
            if replacing:
                return {}
            raise
        if description.get("layout") != self._layout:
            raise OutputError(
                f"{self._beside_before} belongs to another output, and {self._out} would take its "
                f"place: choose another `out`"
            )
        records = read_records(self._beside_before)
        if empty:
            return {}
        if not replacing:
            self.refuse_other_settings(description)
        return {record.video: record for record in records}

    def refuse_other_settings(self, description: dict[str, Any]) -> None:
        """Compare with how earlier results were made.

        Raises:
            OutputError: their settings are not this run's; the text names those that differ.
        """
        then, now = description.get("settings", {}), self._description["settings"]
        changed = sorted(k for k in {*then, *now} if then.get(k) != now.get(k))
        if unknown := [k for k in changed if k not in then or k not in now]:
            raise OutputError(
                f"{self._out} was started by another version of emopipe, which had other settings "
                f"({', '.join(unknown)}): choose another `out`, or set `overwrite` to start anew"
            )
        if changed:
            differences = ", ".join(f"{k} was {then.get(k)} and is {now.get(k)}" for k in changed)
            raise OutputError(
                f"{self._out} was started with other settings ({differences}): use those, "
                f"choose another `out`, or set `overwrite` to start anew"
            )

    def place(
        self,
        new: Mapping[str, VideoRecord],
        kept: Mapping[str, VideoRecord],
        replaced: Set[str],
        moved: bool = False,
    ) -> list[VideoRecord]:
        """Put a run's rows and the records of all videos in place.

        Args:
            new: the records of this run's videos, whose rows lie in the working folder.
            kept: the records of the rows in place.
            replaced: names of the videos in place that go.
            moved: whether some of `kept` say now where else their file lies.

        Returns:
            The records of all the output's videos, sorted by name.

        Raises:
            OutputError: they cannot be written.
        """
        records = sorted({**kept, **new}.values(), key=lambda record: record.video)
        with writing(self._out):
            exists = self._storage.stat(self._out) is not None
            if new or moved or not exists:
                if not self._single:
                    self._place_files(new, replaced)
                elif not exists or replaced or _rows_change(new, kept):
                    self._put(self._out, self._all_rows(new, kept), self._schema)
                described = self._description | {"layout": self._layout}
                table = videos_table(records, videos_schema(described))
                self._put(self._beside, [table], table.schema)
                if self._beside_before != self._beside:
                    self._storage.remove(self._beside_before)
        return records

    def _refuse_videos_table(self) -> None:
        """Refuse to take the place of another output's videos table."""
        with suppress(ResultsError):
            if "layout" in read_settings(self._out):
                raise OutputError(
                    f"`out` {self._out} is the videos table of another output: name another file"
                )

    def _require_own_rows(self, resuming: bool) -> None:
        """Refuse an output without its videos table, unless a run was stopped before that."""
        if not resuming:
            raise OutputError(
                f"{self._out} exists and {self._beside.name} is not beside it, so it is not known "
                f"what it holds: choose another `out`, or set `overwrite` to replace it"
            )
        if self._single:
            self.refuse_other_settings(read_settings(self._out))

    def _put(self, path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        """Write a file in the working folder and move it: a kill leaves no half file in place."""
        written = partial_path(self._out) / path.name
        with self._storage.write(written) as file:
            write_table(file, tables, schema)
        self._storage.move(written, path)

    def _all_rows(
        self, new: Mapping[str, VideoRecord], kept: Mapping[str, VideoRecord]
    ) -> Iterator[pa.Table]:
        """Yield the rows of all videos, ordered by name: new ones, and those of the old file."""
        staying = kept.keys() - new.keys()
        with ExitStack() as stack:
            old: Iterator[tuple[str, pa.Table]] = iter(())
            if staying:
                old = rows_by_video(stack.enter_context(self._storage.open(self._out)), staying)
            for _, rows in heapq.merge(old, self._new_rows(new), key=lambda named: named[0]):
                yield rows

    def _new_rows(self, new: Mapping[str, VideoRecord]) -> Iterator[tuple[str, pa.Table]]:
        for name in sorted(new):
            if new[name].frames:
                with self._storage.open(partial_file(self._out, name, ".parquet")) as file:
                    for rows in row_groups(file):
                        yield name, rows

    def _place_files(self, new: Mapping[str, VideoRecord], replaced: Set[str]) -> None:
        self._storage.make_folder(self._out)
        for name, record in new.items():
            merged, target = partial_file(self._out, name, ".parquet"), self._place_of(name)
            if record.status == "failed":
                self._storage.remove(target)
            elif self._storage.stat(merged):  # else a run that was killed has moved it already
                self._storage.make_folder(target.parent)
                self._storage.move(merged, target)
        for name in replaced - new.keys():
            self._storage.remove(self._place_of(name))

    def _place_of(self, name: str) -> Path:
        return self._out / f"{name}.parquet"


def partial_path(out: Path) -> Path:
    """Return the working folder of an output."""
    return out.with_name(out.name + WORKING_SUFFIX)


def partial_file(out: Path, name: str, suffix: str) -> Path:
    """Return the path of a video's file in the working folder."""
    return partial_path(out) / (key_of(name) + suffix)


def key_of(text: str) -> str:
    """Return a text's hash: a file name of bounded length, without special characters."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn operating system errors into a sentence.

    Raises:
        OutputError: for any `OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written ({error.strerror or error}): choose another `out`, "
            f"or make room and rights there"
        ) from error


def _rows_change(new: Mapping[str, VideoRecord], kept: Mapping[str, VideoRecord]) -> bool:
    """Whether new records add or remove rows; inputs may just have failed once more."""
    return any(
        record.frames or (name in kept and kept[name].frames) for name, record in new.items()
    )

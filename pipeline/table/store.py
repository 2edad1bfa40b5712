"""The output of a run: parts of spans, one commit a video, then the results.

While a run works, everything lies in `<out>.partial/` beside the output:

    run.json            how the run makes its results; other settings are refused
    lock                held by the one run that may write
    <key>/00000.arrow   the rows of span 0 of one video, of one content, by one backend
    attempts            how often spans brought their worker down
    <key>.parquet       a video's rows, merged
    <key>.json          its record: written last, this commits the video

A run that was killed resumes from there. `finish` puts the results in place, each file replaced
only by a whole one, and then removes the folder. Files are reached through `pipeline.storage`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emopipe.pipeline.inputs import RUN_FILE
from emopipe.pipeline.media.sampling import SPAN_FRAMES
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.storage import LockedError, printable, storage_for
from emopipe.pipeline.table.commit import OrderedRows, Transform, record_of
from emopipe.pipeline.table.output import (
    Output,
    OutputError,
    key_of,
    partial_file,
    partial_path,
    writing,
)
from emopipe.pipeline.table.parts import (
    encode_failure,
    encode_part,
    is_complete,
    read_part,
    write_table,
)
from emopipe.pipeline.table.records import is_gone, moved_to, place_of, record_from, with_file
from emopipe.pipeline.table.results import is_single_file
from emopipe.pipeline.table.schema import VideoRecord, rows_schema

_OTHER_SUFFIXES = {".csv", ".tsv", ".txt", ".json", ".xlsx", ".feather", ".arrow", ".pq", ".mp4"}
"""Suffixes that no folder has: whoever names such an output expects another format."""

_LOCK = "lock"


class Store:
    """One output, opened by `open_store`.

    Args:
        out: the results file (`*.parquet`) or folder.
        description: how this run makes its results; `description["settings"]` holds all that
            changes them.
        classes: expression names.
        landmarks: "float32", "float16" or "none".
        transforms: applied in order to each video's rows when it is committed.
    """

    def __init__(
        self,
        out: Path,
        description: dict[str, Any],
        classes: tuple[str, ...],
        landmarks: str,
        transforms: Sequence[Transform] = (),
    ) -> None:
        self.out = out
        smooth = description["settings"].get("smooth") is not None
        self.schema = rows_schema(classes, landmarks, description, smooth)
        self._description = description
        self._transforms = transforms
        self._storage = storage_for(out)
        self._partial = partial_path(out)
        self._run = self._partial / RUN_FILE
        self._output = Output(out, self.schema, description)
        self._kept: dict[str, VideoRecord] = {}
        self._new: dict[str, VideoRecord] = {}
        self._replaced: Set[str] = frozenset()
        self._resuming = self._moved = False

    @property
    def is_new(self) -> bool:
        """Whether no earlier run has left records or unfinished work here that this one keeps."""
        return not (self._kept or self._new or self._resuming)

    def names(self, files: Iterable[Path] = ()) -> dict[Path, str]:
        """Return the name of each recorded input by its file's resolved path.

        Args:
            files: inputs; one that has moved since, from where it was recorded, is known by its
                file name and content.
        """
        # Where older versions recorded a file twice, the name with rows counts.
        records = sorted(self._records().values(), key=lambda record: record.status != "failed")
        names = {place: record.video for record in records if (place := place_of(record))}
        gone = {record.video: record for record in records if record.sha256 and is_gone(record)}
        for file in files if gone else ():
            place = self._storage.resolve(file)
            if place not in names and (moved := moved_to(file, gone.values())):
                names[place] = gone.pop(moved.video).video
                self._note_moved(moved, file)
        return names

    def others(self, named: Set[str]) -> list[VideoRecord]:
        """Return the records of the output's inputs that are not among the named ones."""
        return [record for name, record in sorted(self._records().items()) if name not in named]

    def record(self, name: str, file: Path) -> VideoRecord | None:
        """Return the record of an input that is finished, or None if it is to be analyzed.

        An input that failed is to be analyzed, and one whose size or modification time is not the
        recorded one; where only the time or the path differs its content decides. An input whose
        file is gone since is finished: its rows may be all that is left of it.

        Raises:
            OutputError: the output holds another input of that name.
        """
        record = self._new.get(name) or self._kept.get(name)
        if record is None or record.status == "failed":
            return None
        storage = storage_for(file)
        same_place = storage.resolve(file) == place_of(record)
        try:
            info = storage.stat(file)
            known = info is None or (record.bytes, record.modified) == (info.size, info.modified)
            if same_place and known:
                return record
            if info and record.bytes == info.size and record.sha256 == storage.sha256(file):
                return self._note_moved(record, file)
        except OSError as error:
            if same_place:
                return record
            raise OutputError(f"{file} cannot be read ({error.strerror}): check it") from error
        if not same_place:
            raise OutputError(
                f"{self.out} holds the rows of another {name} ({record.path}): choose another "
                f"`out`, or name both inputs in one command"
            )
        return None

    def spans(self, key: str) -> set[int]:
        """Return the spans of the video with that `part_key` that have been written."""
        return {span for span, part in self._parts(key).items() if self._is_complete(part)}

    def write(self, key: str, span: int, rows: pa.Table) -> None:
        """Write a span's rows.

        Args:
            key: `part_key` of the video.
            span: index of the span.
            rows: its rows.

        Raises:
            OutputError: they cannot be written.
        """
        self.write_part(key, span, encode_part(rows))

    def write_part(self, key: str, span: int, part: bytes) -> None:
        """Write a span's rows that `encode_part` has encoded, as `write` does with a table."""
        folder = self._partial / key
        with writing(self.out):
            self._storage.make_folder(folder)
            # Not durable: `spans` leaves out a part that a power cut has damaged.
            with self._storage.write(folder / f"{span:05d}.arrow", durable=False) as file:
                file.write(part)

    def write_failed(self, key: str, span: int, reason: str) -> None:
        """Write that a span failed, and why: it is finished and has no rows.

        Args:
            key: `part_key` of the video.
            span: which span.
            reason: in words.

        Raises:
            OutputError: it cannot be written.
        """
        self.write_part(key, span, encode_failure(self.schema, reason))

    def record_attempt(self, key: str, span: int) -> int:
        """Count an attempt that brought its worker down; return the count over all runs.

        Args:
            key: `part_key` of the video, or an input's name where it was probed.
            span: which span.

        Raises:
            OutputError: it cannot be written.
        """
        path = self._partial / "attempts"
        exists = self._storage.stat(path) is not None
        counts = json.loads(self._storage.read(path)) if exists else {}
        count: int = counts.get(f"{key}/{span}", 0) + 1
        self._write_json(path, counts | {f"{key}/{span}": count})
        return count

    def commit(self, video: Video, wanted: NDArray[np.int64]) -> VideoRecord:
        """Pass a video's rows through the transforms, merge them and commit the video.

        Args:
            video: the video.
            wanted: (n,) the sampled frames, ascending.

        Raises:
            OutputError: it cannot be written.
            RuntimeError: a frame is in two spans or was not sampled, or a transform changed more
                than values.
        """
        parts = self._parts(part_key(video))
        contents = (read_part(self._storage.read(parts[span])) for span in sorted(parts))
        rows = OrderedRows(video.name, self.schema, self._transforms)
        with writing(self.out):
            with self._storage.write(self._file(video.name, ".parquet")) as file:
                write_table(file, rows.tables(contents), self.schema)
            record = record_of(video, wanted, rows, self._description["settings"].get("end"))
            self._commit(with_file(record, video.path))
            with suppress(OSError):  # the video is committed, whatever is left
                self._storage.remove_tree(self._partial / part_key(video))
        return self._new[video.name]

    def fail(self, name: str, file: Path, error: str) -> VideoRecord:
        """Commit an input that has no rows, with the reason."""
        with writing(self.out):
            self._commit(with_file(VideoRecord(name, "failed", printable(error)), file))
            # There may be rows of an earlier content.
            self._storage.remove(self._file(name, ".parquet"))
        return self._new[name]

    def finish(self) -> list[VideoRecord]:
        """Put the results in place and remove the working folder.

        Returns:
            The records of all the output's videos, sorted by name.

        Raises:
            OutputError: they cannot be written.
        """
        records = self._output.place(self._new, self._kept, self._replaced, self._moved)
        with writing(self.out):
            # In this order: a run killed after the first line does not take the records for work
            # on results that it replaces; after the second, none looks for rows that are gone.
            self._storage.remove(self._run)
            self._forget_records()
            self._storage.remove_tree(self._partial)
        return records

    def _prepare(self, overwrite: bool) -> None:
        """Resume what an earlier run left, or refuse it."""
        self._resuming = self._storage.stat(self._run) is not None and not overwrite
        earlier_run = json.loads(self._storage.read(self._run)) if self._resuming else None
        replacing = earlier_run["replacing"] if earlier_run else overwrite
        if earlier_run:
            self._output.refuse_other_settings(earlier_run["description"])
        earlier = self._output.earlier_records(replacing, self._resuming)
        # Not before: a run that is refused must leave the work of the other one alone.
        if overwrite:
            self._wipe()
        if not earlier_run:
            content = {"description": self._description, "replacing": replacing}
            self._write_json(self._run, content)
        if replacing:
            self._replaced = earlier.keys()
        else:
            self._kept = earlier
        for path in self._record_files():
            record = record_from(json.loads(self._storage.read(path)))
            self._new[record.video] = record

    def _records(self) -> dict[str, VideoRecord]:
        return self._kept | self._new

    def _note_moved(self, record: VideoRecord, file: Path) -> VideoRecord:
        """Record where a file of known content lies now, so that it is not hashed every time."""
        moved = with_file(record, file)
        (self._new if record.video in self._new else self._kept)[record.video] = moved
        self._moved = True
        return moved

    def _commit(self, record: VideoRecord) -> None:
        self._write_json(self._file(record.video, ".json"), asdict(record))
        self._new[record.video] = record

    def _record_files(self) -> list[Path]:
        files = self._storage.children(self._partial)
        return [path for path in files if path.suffix == ".json" and path != self._run]

    def _forget_records(self) -> None:
        for path in self._record_files():
            self._storage.remove(path)

    def _wipe(self) -> None:
        """Remove an earlier run's work: records first, so that a kill leaves none without its rows.

        Its run.json is replaced and not removed, so that what a kill leaves belongs to that run.
        """
        self._forget_records()
        for path in self._storage.children(self._partial):
            if path.name not in (_LOCK, RUN_FILE):
                self._remove(path)

    def _remove(self, path: Path) -> None:
        info = self._storage.stat(path)
        if info and info.is_folder:
            self._storage.remove_tree(path)
        else:
            self._storage.remove(path)

    def _file(self, name: str, suffix: str) -> Path:
        return partial_file(self.out, name, suffix)

    def _parts(self, key: str) -> dict[int, Path]:
        files = self._storage.children(self._partial / key)
        return {int(path.stem): path for path in files if path.suffix == ".arrow"}

    def _is_complete(self, part: Path) -> bool:
        with self._storage.open(part) as file:
            return is_complete(file)

    def _write_json(self, path: Path, content: dict[str, Any]) -> None:
        with writing(self.out), self._storage.write(path) as file:
            file.write(json.dumps(content, indent=1).encode())


@contextmanager
def open_store(
    out: Path,
    description: dict[str, Any],
    classes: tuple[str, ...],
    landmarks: str = "float32",
    overwrite: bool = False,
    transforms: Sequence[Transform] = (),
) -> Iterator[Store]:
    """Open an output for one run, which alone may write it.

    Args:
        out: the results file (`*.parquet`) or folder.
        description: how this run makes its results, see `Store`.
        classes: expression names.
        landmarks: "float32", "float16" or "none".
        overwrite: start anew, replacing what is there.
        transforms: applied in order to each video's rows when it is committed.

    Raises:
        OutputError: it cannot be written, another run is writing it, or what is there was made with
            other settings (and `overwrite` is not set).
    """
    if out.name in ("", ".."):
        raise OutputError(f"`out` {out} has no name of its own: give one, such as results.parquet")
    if out.suffix.lower() in _OTHER_SUFFIXES:
        raise OutputError(
            f"`out` {out}: results are Parquet; name a file that ends in .parquet, or a folder"
        )
    storage, partial = storage_for(out), partial_path(out)
    with ExitStack() as stack:
        with writing(out):
            info = storage.stat(out)
            if info and info.is_file and not is_single_file(out):
                raise OutputError(
                    f"`out` {out} is a file already: name one that ends in .parquet, or a folder"
                )
            store = Store(out, description, classes, landmarks, transforms)
            storage.make_folder(partial)
            try:
                stack.enter_context(storage.lock(partial / _LOCK))
            except LockedError as error:
                raise OutputError(
                    f"another run is writing {out}: wait for it, or choose another `out`"
                ) from error
            stack.callback(_tidy, partial)
            store._prepare(overwrite)
        yield store


def part_key(video: Video) -> str:
    """Name the parts of a video: of one content, decoded by one backend, in spans of one size."""
    return key_of(f"{video.name}\n{video.sha256}\n{video.backend}\n{SPAN_FRAMES}")


def _tidy(partial: Path) -> None:
    """Remove a working folder that holds no work."""
    storage = storage_for(partial)
    if {path.name for path in storage.children(partial)} <= {_LOCK, RUN_FILE}:
        storage.remove_tree(partial)

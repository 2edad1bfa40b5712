"""Reading an output back: its rows, its landmarks, its videos."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emopipe.emonet.arguments import did_you_mean, first_few, public
from emopipe.emonet.errors import EmopipeError
from emopipe.pipeline.storage import storage_for, user_path
from emopipe.pipeline.table.in_memory import LANDMARKS, Results, in_memory
from emopipe.pipeline.table.people import (
    COLUMNS_OF_TRACKS,
    PERSON,
    person_column,
    read_people,
    require_videos,
)
from emopipe.pipeline.table.schema import METADATA_KEY, VideoRecord, rows_schema

_VIDEOS = ".videos.parquet"


class ResultsError(EmopipeError):
    """Results that cannot be read, or do not hold what was asked for."""


@public
def read_results(
    path: str | os.PathLike[str],
    columns: str | Sequence[str] | None = None,
    videos: str | Sequence[str] | None = None,
    landmarks: bool = True,
    people: str | os.PathLike[str] | None = None,
) -> Results:
    """Read an output of `analyze` into pandas.

    Memory is bounded by what is asked for: other columns and landmarks are not read, nor are row
    groups and files without the videos asked for.

    Example:
        >>> import emopipe
        >>> results = emopipe.read_results("results.parquet")
        >>> results.landmarks.shape[1:]
        (68, 2)
        >>> valence = emopipe.read_results(
        ...     "results.parquet", columns=["video", "time", "valence"], landmarks=False
        ... )
        >>> list(valence.rows.columns)
        ['video', 'time', 'valence']

    Names of people come from a CSV file with the columns video, track and person, such as

        video,track,person
        debate.mp4,0,Ann
        debate.mp4,1,Bob
        debate.mp4,4,Ann

    They are a column `person` beside `track`, a category that is null where nobody is named: tracks
    0 and 4 are one person. The table itself stays as it was measured.

    Args:
        path: the Parquet file, or the folder of them.
        columns: names of the columns to read, one or several; they come in the table's order. None
            for all.
        videos: names of the videos to read, one or several; None for all.
        landmarks: whether to read the landmarks, the larger part of the table.
        people: a CSV file of names for tracks; None for no column `person`.

    Raises:
        ResultsError: nothing readable is there, or a column or video is not in it.
        PeopleError: the names cannot be read, are of videos or tracks that are not there, or give
            two faces of one frame to one person.
    """
    out = _as_path(path)
    wanted_columns = _as_names(columns)
    wanted_videos = _as_names(videos)
    _require_output(out)
    files, table_of_videos = _files(out), _table_of_videos(out)
    schema = _schema(files[0]) if files else _schema_of(read_settings(present_videos_path(out)))
    named = None if people is None else read_people(user_path(people))
    if named and wanted_columns is not None:
        wanted_columns = [name for name in wanted_columns if name != PERSON]
    names = _names_to_read(wanted_columns, landmarks, schema, out)
    needed = COLUMNS_OF_TRACKS if named else ()
    read = [name for name in schema.names if name in {*names, *needed}]
    known = _known_videos(table_of_videos, files, out) if named or wanted_videos else []
    if named:
        require_videos(named, known, out)
    if wanted_videos is not None:
        _require_videos(wanted_videos, known, out)
        files = _files_of(wanted_videos, files, out)
        if table_of_videos is not None:
            table_of_videos = _only(table_of_videos, wanted_videos)
    tables = [table for file in files for table in _read_rows(file, schema, read, wanted_videos)]
    table = pa.concat_tables(tables or [schema.empty_table().select(read)]).unify_dictionaries()
    results = in_memory(table, _settings(schema), table_of_videos)
    if named is None:
        return results
    rows = results.rows
    person = person_column(rows, named, wanted_videos)
    rows.insert(read.index("track") + 1, PERSON, person)
    return replace(results, rows=rows[[name for name in rows if name in {PERSON, *names}]])


def read_records(path: Path) -> list[VideoRecord]:
    """Read a videos table back into records.

    Raises:
        ResultsError: the file is not one.
    """
    rows = read_table(path).to_pylist()
    return [
        VideoRecord(
            **row
            | {
                "missing": tuple((m["first"], m["last"]) for m in row["missing"]),
                "notes": tuple(row.get("notes", ())),  # schema version 1 has none
            }
        )
        for row in rows
    ]


def read_settings(path: Path) -> dict[str, Any]:
    """Read from a table's metadata how it was made.

    Raises:
        ResultsError: the file is not a table of emopipe.
    """
    return _settings(_schema(path))


def read_table(path: Path) -> pa.Table:
    """Read one Parquet file of an output whole, with its dictionary and tensor types.

    Raises:
        ResultsError: the file is not a table of emopipe.
    """
    with _opened(path) as file:
        return file.read()


def videos_path(out: Path) -> Path:
    """Return the path of an output's videos table, beside `results.parquet` or `results/`.

    The two may stand side by side: theirs are `results.videos.parquet` and
    `results.folder.videos.parquet`. Not in the folder: `results/*.parquet` are the rows.
    """
    return out.with_name(f"{out.stem if is_single_file(out) else out.name + '.folder'}{_VIDEOS}")


def present_videos_path(out: Path) -> Path:
    """Return where an output's videos table lies: a folder's, of versions up to 0.1, as a file's.

    Without any, it is `videos_path`.
    """
    path, old = videos_path(out), out.with_name(out.name + _VIDEOS)
    if is_single_file(out) or not _is_file(old) or _is_file(path):
        return path
    with suppress(ResultsError):
        if read_settings(old).get("layout") == "folder":
            return old
    return path


def is_single_file(out: Path) -> bool:
    """Whether an output is one file rather than a folder with one file a video."""
    return out.suffix.lower() == ".parquet" and not _is_folder(out)


def _is_folder(path: Path) -> bool:
    info = storage_for(path).stat(path)
    return info is not None and info.is_folder


def _is_file(path: Path) -> bool:
    info = storage_for(path).stat(path)
    return info is not None and info.is_file


def _as_path(path: str | os.PathLike[str]) -> Path:
    out = user_path(path)
    if out.name in ("", ".."):  # "." gets the name that it has
        out = storage_for(out).resolve(out)
    if not os.fspath(path) or not out.name:
        raise ResultsError(f"`path` is a results file or folder, not {os.fspath(path)!r}")
    return out


def _require_output(out: Path) -> None:
    """Raise unless a path is that of an output."""
    try:
        info = storage_for(out).stat(out)
        beside = _is_file(present_videos_path(out))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{out} cannot be read ({error})") from error
    if out.name.endswith(_VIDEOS):
        raise ResultsError(f"{out} is the videos table beside an output: read that, it has both")
    if info is None and (is_single_file(out) or not beside):
        raise ResultsError(f"{out}: there is no such file or folder")
    if is_single_file(out) or beside:
        return
    children = storage_for(out).children(out)
    outputs = [str(child) for child in children if _is_file(present_videos_path(child))]
    if outputs:
        raise ResultsError(f"{out} is no output itself: read {first_few(sorted(outputs))}")
    if not _files(out):
        raise ResultsError(
            f"{out} is neither a results file nor a folder with results in it: give what "
            "`emopipe analyze` wrote, a file that ends in .parquet or a folder"
        )


def _as_names(names: str | Sequence[str] | None) -> list[str] | None:
    return None if names is None else [names] if isinstance(names, str) else list(names)


def _files(out: Path) -> list[Path]:
    if is_single_file(out):
        return [out]
    return sorted(path for path in storage_for(out).walk(out) if path.suffix == ".parquet")


def _files_of(videos: list[str], files: list[Path], out: Path) -> list[Path]:
    """Return those of an output's files that hold the videos."""
    if is_single_file(out):
        return files
    named = {out / f"{video}.parquet" for video in videos}
    return [file for file in files if file in named]


def _table_of_videos(out: Path) -> pa.Table | None:
    beside = present_videos_path(out)
    return read_table(beside) if storage_for(beside).stat(beside) else None


def _names_to_read(
    columns: list[str] | None, landmarks: bool, schema: pa.Schema, out: Path
) -> list[str]:
    """Return the columns to read, in the table's order."""
    known = [name for name in schema.names if name != LANDMARKS]
    for name in columns or ():
        if name == LANDMARKS:
            raise ResultsError(
                "`columns` does not name the landmarks: they are an array of their own, which "
                "`landmarks` includes or leaves out"
            )
        if name == PERSON:
            raise ResultsError(
                f"`columns`: {out} has no column 'person': give a CSV file of names as `people`"
            )
        if name not in known:
            guess = did_you_mean(name, known) or f": it has {', '.join(known)}"
            raise ResultsError(f"`columns`: {out} has no column {name!r}{guess}")
    names = [name for name in known if columns is None or name in columns]
    return [*names, LANDMARKS] if landmarks and LANDMARKS in schema.names else names


def _known_videos(table_of_videos: pa.Table | None, files: list[Path], out: Path) -> list[str]:
    """Return the videos of an output."""
    if table_of_videos is not None:
        videos: list[str] = table_of_videos.column("video").to_pylist()
        return videos
    if is_single_file(out):
        (rows,) = _read_rows(out, _schema(out), ["video"], None)
        return [str(name) for name in rows.column("video").unique().to_pylist()]
    return [file.relative_to(out).with_suffix("").as_posix() for file in files]


def _require_videos(videos: list[str], known: list[str], out: Path) -> None:
    for name in videos:
        if name not in known:
            guess = did_you_mean(name, known) or f": it has {first_few(known)}"
            raise ResultsError(f"`videos`: {out} has no video {name!r}{guess}")


def _only(table: pa.Table, videos: list[str]) -> pa.Table:
    """Return the rows of some videos."""
    names = table.column("video").cast(pa.string())
    return table.filter(pc.is_in(names, pa.array(videos, pa.string())))


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of emopipe, and turn what goes wrong into a sentence."""
    try:
        with storage_for(path).open(path) as file, pq.ParquetFile(file) as opened:
            if METADATA_KEY not in (opened.schema_arrow.metadata or {}):
                raise ResultsError(
                    f"{path} was not written by emopipe: its metadata lacks 'emopipe'"
                )
            yield opened
    except (pa.ArrowInvalid, OSError) as error:
        raise ResultsError(f"{path} cannot be read as Parquet ({error})") from error


def _schema(path: Path) -> pa.Schema:
    with _opened(path) as file:
        return file.schema_arrow


def _schema_of(settings: dict[str, Any]) -> pa.Schema:
    """Return the schema of an output without rows: all its videos failed."""
    chosen = settings["settings"]
    smooth = chosen.get("smooth") is not None  # up to schema version 2 there is none
    return rows_schema(tuple(chosen["classes"]), chosen["landmarks"], settings, smooth)


def _settings(schema: pa.Schema) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(schema.metadata[METADATA_KEY])
    return settings


def _read_rows(
    path: Path, schema: pa.Schema, columns: list[str], videos: list[str] | None
) -> Iterator[pa.Table]:
    """Yield columns of one file's rows: all of them, or those of some videos."""
    with _opened(path) as file:
        if not file.schema_arrow.equals(schema):
            raise ResultsError(
                f"{path} has other columns than the files beside it: they are not of one output, "
                "so read them one by one"
            )
        if videos is None:
            yield file.read(columns).select(columns)
            return
        for group in range(file.num_row_groups):
            if _may_hold(file.metadata.row_group(group), videos):
                rows = file.read_row_group(group, [*{"video", *columns}])
                yield _only(rows, videos).select(columns)


def _may_hold(group: pq.RowGroupMetaData, videos: list[str]) -> bool:
    """Whether a row group may hold rows of some videos, as far as its statistics say."""
    statistics = group.column(0).statistics  # of `video`
    if statistics is None or not statistics.has_min_max:
        return True
    return any(statistics.min <= video <= statistics.max for video in videos)

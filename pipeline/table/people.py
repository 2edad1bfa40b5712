"""Names for tracks: a CSV file of video, track and person, and the column `person` made of it.

Two tracks with one person are so joined by name. The table itself stays as measured.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.arguments import did_you_mean, first_few
from emopipe.emonet.data.csv_files import header_names, open_csv
from emopipe.emonet.errors import EmopipeError

if TYPE_CHECKING:  # writing needs no pandas, which takes half a second to load
    import pandas as pd

PERSON = "person"
"""The column that names add."""

COLUMNS_OF_TRACKS = ("video", "frame", "time", "track")
"""Columns of the rows that naming needs."""

_COLUMNS = ("video", "track", PERSON)
_MAX_TRACKS = 2**31  # the table's column is int32
_NO_TRACK = _NO_ROWS = _UNNAMED = -1
_WHOLE_NUMBER = re.compile(r"\d+(\.0*)?")  # spreadsheets and pandas write 3.0


class PeopleError(EmopipeError):
    """A file of names that cannot be used, or does not fit the results."""


@dataclass(frozen=True)
class NamedTrack:
    """A row of the file: whose track it is.

    Attributes:
        video: the video's name in the results.
        track: the track's number there.
        person: the name.
        line: where the row stands in the file, the header being line 1.
    """

    video: str
    track: int
    person: str
    line: int


@dataclass(frozen=True)
class People:
    """The names of tracks.

    Attributes:
        path: the file.
        tracks: its rows; each track of a video once.
    """

    path: Path
    tracks: tuple[NamedTrack, ...]


def read_people(path: Path) -> People:
    """Read a CSV file of names.

    It has the columns video, track and person in any order and case, others are ignored; it may be
    packed, and of any usual encoding and separator. Lines without any value are left out.

    Args:
        path: the CSV file.

    Raises:
        PeopleError: it cannot be read, lacks a column, names a track twice, or has a track that is
            no whole number or a row without a video or person.
    """
    with open_csv(path, PeopleError) as opened:
        rows = opened.rows()
        header = _header(next(rows, []), path)
        tracks = tuple(
            _named_track(row, header, path, rows.line_num)
            for row in rows
            if any(map(str.strip, row))
        )
    if not tracks:
        raise PeopleError(f"`people`: {path} names no track: give a row for each")
    first: dict[tuple[str, int], NamedTrack] = {}
    for one in tracks:
        before = first.setdefault((one.video, one.track), one)
        if before is not one:
            raise PeopleError(
                f"`people`: {path} line {one.line} names track {one.track} of {one.video} again, "
                f"after line {before.line} ({before.person}): leave one of them"
            )
    return People(path, tracks)


def require_videos(people: People, videos: Collection[str], out: Path) -> None:
    """Hold the named videos to those of the results.

    Args:
        people: the names.
        videos: all that the results have.
        out: the results.

    Raises:
        PeopleError: a named video is not there.
    """
    absent = [one for one in people.tracks if one.video not in videos]
    if absent:
        first, *others = absent
        guess = did_you_mean(first.video, videos) or f": it has {first_few(sorted(videos))}"
        raise PeopleError(
            f"`people`: {people.path} line {first.line}: {out} has no video {first.video!r}{guess}"
            f"{_same_holds(others)}"
        )


def person_column(rows: pd.DataFrame, people: People, videos: Collection[str] | None) -> pd.Series:
    """Name the rows of named tracks.

    Args:
        rows: n rows with `COLUMNS_OF_TRACKS`.
        people: the names.
        videos: those that the rows are of, if not all of the results'; names for others are left
            out.

    Returns:
        The (n,) names, a category in the file's order; null for rows without a named track.

    Raises:
        PeopleError: a video has no such track, or two tracks of a person are on one frame.
    """
    import pandas as pd

    named = [one for one in people.tracks if videos is None or one.video in videos]
    persons = list(dict.fromkeys(one.person for one in named))
    by_video = rows["video"].astype("category").cat
    codes = {str(video): code for code, video in enumerate(by_video.categories)}
    index = _index_of_tracks(
        np.asarray(by_video.codes, np.int64),
        rows["track"].fillna(_NO_TRACK).to_numpy(np.int64),
        [(codes.get(one.video, _NO_ROWS), one.track) for one in named],
    )
    _require_tracks(people, named, index, rows)
    person_of = np.array([*(persons.index(one.person) for one in named), _UNNAMED], np.int32)
    _require_one_face(people, rows, person_of[index])
    names = pd.Categorical.from_codes(person_of[index], pd.Index(persons, dtype="str"))
    return pd.Series(names, rows.index)


def _index_of_tracks(
    video: NDArray[np.int64], track: NDArray[np.int64], named: Sequence[tuple[int, int]]
) -> NDArray[np.int64]:
    """Find each row's track among named ones.

    Args:
        video: (n,) number of the row's video.
        track: (n,) its track, `_NO_TRACK` for none.
        named: video and track of each, all different.

    Returns:
        (n,) indices into `named`, `_UNNAMED` for other tracks.
    """
    possible = {i: key for i, key in enumerate(named) if key[1] < _MAX_TRACKS}
    index = np.full(len(track), _UNNAMED)
    if possible:
        keys = np.array([v * _MAX_TRACKS + t for v, t in possible.values()], np.int64)
        order = np.argsort(keys)
        rows = video * _MAX_TRACKS + track
        near = order[np.searchsorted(keys[order], rows).clip(max=len(keys) - 1)]
        same = (keys[near] == rows) & (track != _NO_TRACK)
        index[same] = np.array(list(possible))[near[same]]
    return index


def _require_tracks(
    people: People, named: Sequence[NamedTrack], index: NDArray[np.int64], rows: pd.DataFrame
) -> None:
    """Raise unless each named track has a row."""
    there = set(np.unique(index))
    absent = [one for i, one in enumerate(named) if i not in there]
    if not absent:
        return
    first, *others = absent
    known = rows["track"][rows["video"] == first.video].dropna().unique().astype(int)
    tracks = f"it has {first_few(sorted(known))}" if len(known) else "none of its faces has one"
    raise PeopleError(
        f"`people`: {people.path} line {first.line}: {first.video} has no track {first.track} in "
        f"the results: {tracks}{_same_holds(others)}"
    )


def _require_one_face(people: People, rows: pd.DataFrame, person: NDArray[np.int32]) -> None:
    """Raise if a person has two faces on a frame."""
    faces = rows.loc[person != _UNNAMED, list(COLUMNS_OF_TRACKS)]
    faces = faces.assign(person=person[person != _UNNAMED])
    twice = faces[faces.duplicated(["video", "frame", PERSON], keep=False)]
    if twice.empty:
        return
    video, frame, time, _, code = twice.iloc[0]
    pair = twice[(twice["video"] == video) & (twice["frame"] == frame) & (twice[PERSON] == code)]
    one, other = sorted(pair["track"])[:2]
    raise PeopleError(
        f"`people`: {people.path} gives tracks {one} and {other} of {video} one name, and at "
        f"{time:.2f} s both are in the picture: leave out the one that is somebody else"
    )


def _header(row: Sequence[str], path: Path) -> list[str]:
    """The columns' names, all that are needed among them."""
    header = header_names(row)
    if missing := [name for name in _COLUMNS if name not in header]:
        raise PeopleError(
            f"`people`: {path} line 1 has no column {' and no column '.join(missing)}: it names "
            f"the columns, {', '.join(_COLUMNS)}"
        )
    if twice := [name for name in _COLUMNS if header.count(name) > 1]:
        raise PeopleError(f"`people`: {path} has several columns {twice[0]}: leave one of them")
    return header


def _named_track(row: Sequence[str], header: Sequence[str], path: Path, line: int) -> NamedTrack:
    """Check one row of the file."""
    place = f"`people`: {path} line {line}"
    if any(map(str.strip, row[len(header) :])):
        raise PeopleError(
            f"{place} has {len(row)} values for {len(header)} columns: put a name with a comma in "
            "it between quotes"
        )
    values = {name: cell.strip() for name, cell in zip(header, row, strict=False)}
    for name in _COLUMNS:
        if not values.get(name):
            raise PeopleError(f"{place} has no {name}: fill it in, or leave the line out")
    if not _WHOLE_NUMBER.fullmatch(values["track"]):
        raise PeopleError(
            f"{place}: the track is a whole number, as in the results' column track, not "
            f"{values['track']!r}"
        )
    return NamedTrack(values["video"], int(values["track"].partition(".")[0]), values[PERSON], line)


def _same_holds(others: Sequence[NamedTrack]) -> str:
    """The end of a sentence about the first of the file's lines that do not fit."""
    if not others:
        return ""
    lines = "line" if len(others) == 1 else "lines"
    return f" (the same holds for {lines} {first_few([one.line for one in others])})"

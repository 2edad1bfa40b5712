"""Inputs: from what the user named to the videos and images to analyze, each with a unique name.

A video's name says where it lies below what named it, whatever else is named: a file goes by its
file name, a file in a folder by its path below that folder, a pattern's match by its path below
the folders before the first wildcard. Only where another video of the command has that name
already, folders are put in front of it, as many as it takes. A name once given stays: files and
arguments that come later rename nothing, and an output goes on calling a file as it did.
"""

import glob
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path
from types import MappingProxyType

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.files import is_hidden
from emopipe.pipeline.lists import LIST_SUFFIX, ListError, listed_paths
from emopipe.pipeline.media.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES, way_out
from emopipe.pipeline.storage import printable, storage_for, user_path

OWN_SUFFIX, WORKING_SUFFIX, RUN_FILE = ".parquet", ".partial", "run.json"
"""Results, and the working folders of runs, which hold that file, may lie among the videos: they
are left out without being reported."""

MAX_LINES = 5
"""So many files that are not analyzed are named one by one, more are counted."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class InputError(EmopipeError):
    """An input that does not exist, or holds no video or image."""


@dataclass(frozen=True)
class InputFile:
    """One video or image to analyze.

    Attributes:
        path: the file.
        name: what it is called in the results, with "/" between parts; unique in a run.
        problem: why it cannot be looked at, a sentence with the way out: it was named, so it gets
            a row that says so; None for one to analyze.
    """

    path: Path
    name: str
    problem: str | None = None

    @property
    def bytes(self) -> int:
        """Its size; 0 if it no longer exists, or cannot be looked at."""
        info = None if self.problem else storage_for(self.path).stat(self.path)
        return info.size if info else 0


@dataclass(frozen=True)
class Skipped:
    """A file or folder that was found, not named, and is not analyzed.

    Attributes:
        path: the file or folder.
        reason: a sentence for the user.
        kind: the file's suffix, or its name if it has none; empty for what deserves a line of its
            own.
    """

    path: Path
    reason: str
    kind: str = ""


@dataclass(frozen=True)
class Inputs:
    """All that a list of arguments names.

    Attributes:
        files: in the order of the arguments, sorted within folders, each file once.
        skipped: what is not analyzed, with the reason.
    """

    files: tuple[InputFile, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Argument:
    """What the user wrote, on the command line or in a list.

    Attributes:
        text: the path, pattern or URL.
        list: the list it stands in, if any.
    """

    text: str
    list: Path | None = None

    @property
    def path(self) -> Path:
        """Where it leads; lines of a list are relative to the list's folder."""
        return self.list.parent / user_path(self.text) if self.list else user_path(self.text)

    @property
    def name(self) -> str:
        """What it is called in the results if nothing is found there."""
        plain = not glob.has_magic(self.text) and not _URL.match(self.text)
        return printable((plain and Path(self.text).name) or self.text)


def find_inputs(arguments: Sequence[str | Path]) -> Inputs:
    """Resolve files, folders, patterns and lists of paths.

    Args:
        arguments: each a file; a folder, which is searched with all folders below it (hidden files
            left out); a glob pattern such as `day*/**/*.mp4`; or a `.txt` file of such paths, one a
            line, in quotes or not, relative to the list's folder, with `#` at the start of
            comments. `~` is the home folder.

    Returns:
        The files to analyze and those skipped. A file that is named twice counts once. A file that
        is named but is no video or image, and a line of a list where nothing is found, is among
        the files, with its problem.

    Raises:
        InputError: an argument does not exist or may not be read, a pattern is invalid or matches
            nothing, a list is unreadable or empty, or nothing is found that could be looked at.
    """
    found: dict[Path, InputFile] = {}
    skipped: dict[Path, Skipped] = {}
    absent: set[Path] = set()
    for argument in _without_lists(arguments):
        try:
            expanded = list(_expand(argument.path, argument.text))
        except InputError as error:
            if argument.list is None:
                raise
            problem = f"{error} It stands in {argument.list}."
            expanded = [InputFile(argument.path, argument.name, printable(problem))]
            absent.add(storage_for(argument.path).resolve(argument.path))
        for one in expanded:
            key = storage_for(one.path).resolve(one.path)
            if isinstance(one, InputFile):
                found.setdefault(key, one)
            else:
                skipped.setdefault(key, one)
    if not found.keys() - absent:
        reasons = [str(file.problem) for file in found.values()]
        reasons += [one.reason for one in skipped.values()]
        raise InputError(f"There is nothing to analyze. {[*reasons, 'No input was named.'][0]}")
    told = (one for key, one in skipped.items() if key not in found and one.kind != OWN_SUFFIX)
    return Inputs(with_unique_names(tuple(found.values())), tuple(told))


def summed_up(skipped: Sequence[Skipped]) -> list[str]:
    """Say in a few lines what is not analyzed: files by kind, where there are many."""
    files = Counter(one.kind for one in skipped if one.kind)
    others = [one.reason for one in skipped if not one.kind]
    lines = others[:MAX_LINES]
    if len(others) > MAX_LINES:
        lines.append(f"{len(others) - MAX_LINES:,} more links and closed folders were skipped.")
    if files.total() <= MAX_LINES:
        return lines + [one.reason for one in skipped if one.kind]
    for kind in [kind for kind in files if way_out(kind)]:
        lines.append(f"{_were_skipped(files.pop(kind), f' {kind}')}: {way_out(kind)}.")
    counted = [f"{n:,} {kind}" for kind, n in files.most_common(MAX_LINES)]
    rest = files.total() - sum(n for _, n in files.most_common(MAX_LINES))
    kinds = ", ".join(counted) + (f" and {rest:,} of other kinds" if rest else "")
    if files:
        lines.append(f"{_were_skipped(files.total())}, no video or image: {kinds}.")
    return lines


def _were_skipped(n: int, kind: str = "") -> str:
    return f"{n:,}{kind} file{' was' if n == 1 else 's were'} skipped"


def with_unique_names(
    files: Sequence[InputFile], recorded: Mapping[Path, str] = MappingProxyType({})
) -> tuple[InputFile, ...]:
    """Let each file keep the name that an output knows it by, and give the others unique ones.

    Args:
        files: inputs, of which an earlier one's name wins.
        recorded: names in the output by the files' resolved paths.
    """
    places = [storage_for(file.path).resolve(file.path) for file in files]
    taken = {recorded[place] for place in places if place in recorded}
    # A file that is not there cannot be told from another one of its name by its content.
    of_others = set(recorded.values())
    named = []
    for file, place in zip(files, places, strict=True):
        name = recorded.get(place)
        if name is None:
            barred = taken | of_others if file.problem else taken
            name = next(name for name in _ever_longer_names(file) if name not in barred)
            taken.add(name)
        named.append(replace(file, name=name))
    return tuple(named)


def _ever_longer_names(file: InputFile) -> Iterator[str]:
    """Yield a file's name, then with more and more of its folders, at last with a number."""
    yield file.name
    folders = storage_for(file.path).resolve(file.path.parent)
    # Without the anchor "/": a name is relative, and its results lie inside the output.
    parts = (folders / file.path.name).parts[1:]
    for n in range(file.name.count("/") + 2, len(parts) + 1):
        yield printable("/".join(parts[-n:]))
    yield from (f"{file.name} ({n})" for n in count(2))


def _without_lists(arguments: Sequence[str | Path]) -> Iterator[_Argument]:
    """Yield the arguments with each list file replaced by its lines."""
    for argument in map(str, arguments):
        path = user_path(argument)
        if path.suffix.lower() != LIST_SUFFIX or not _is_file(path):
            yield _Argument(argument)
            continue
        try:
            yield from (_Argument(line, path) for line in listed_paths(path))
        except ListError as error:
            raise InputError(str(error)) from error


def _expand(path: Path, written: str) -> Iterator[InputFile | Skipped]:
    """Yield what one argument names: a file itself, a folder's files, or a pattern's.

    Raises:
        InputError: nothing is there, or it may not be read.
    """
    storage = storage_for(path)
    try:
        info = storage.stat(path)
        if info and info.is_folder:
            yield from _in_folder(path)
        elif info:
            yield _named(path)
        elif _URL.match(written):
            raise InputError(f"{written} is a URL. Download the video, and name the file.")
        elif glob.has_magic(str(path)):
            yield from _matching(str(path))
        else:
            raise InputError(f"{path} does not exist. Check the path.")
    except (OSError, ValueError) as error:  # no permission, or an invalid pattern
        raise InputError(f"{path} cannot be searched ({error}). Check it.") from error


def _named(path: Path) -> InputFile | Skipped:
    """A file that was named: whatever it is, it is not passed over, unless it is our own."""
    if path.suffix.lower() == OWN_SUFFIX:
        return Skipped(path, f"{path} is a table. Name videos or images.", OWN_SUFFIX)
    file = InputFile(path, printable(path.name))
    if _is_media(path):
        return file
    otherwise = "" if way_out(path.suffix) else " Leave it out, or convert it."
    return replace(file, problem=printable(_why_skipped(path) + otherwise))


def _in_folder(folder: Path) -> Iterator[InputFile | Skipped]:
    """Yield what a named folder holds."""
    if not storage_for(folder).may_list(folder):
        raise InputError(f"{folder} may not be opened. Change its permissions.")
    everything = _visible_in(folder)
    files = [path for path in everything if not _is_own(path)]
    if _is_own(folder) or (everything and not files):
        yield Skipped(folder, f"{folder} holds results. Name videos or images.", OWN_SUFFIX)
    elif not any(_is_media(path) or _is_left_out(path) for path in files):
        raise InputError(f"{folder} holds no video or image, nor do the folders in it.")
    else:
        yield from (_found(path, folder) for path in files)


def _matching(pattern: str) -> Iterator[InputFile | Skipped]:
    """Yield the files that match a pattern; the root is its part before the first wildcard."""
    parts = Path(pattern).parts
    fixed = len(list(takewhile(lambda part: not glob.has_magic(part), parts)))
    root = Path(*parts[:fixed])
    matching = storage_for(root).glob(root, str(Path(*parts[fixed:])))
    matches = sorted(path for path in matching if not is_hidden(path.relative_to(root)))
    if not matches:
        raise InputError(f"Nothing matches {pattern}. Check the pattern.")
    for path in matches:
        files = _visible_in(path) if _is_folder(path) else [path]
        yield from (_found(file, root) for file in files if not _is_own(file))


def _found(path: Path, root: Path) -> InputFile | Skipped:
    """A file below a folder that was named: what is no video or image is passed over."""
    if _is_media(path):
        return InputFile(path, printable(path.relative_to(root).as_posix()))
    kind = "" if _is_folder(path) else printable(path.suffix.lower() or path.name)
    return Skipped(path, printable(_why_skipped(path)), kind)


def _visible_in(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted, without hidden ones.

    Among them are the folders that are not searched and broken links, so that they are reported:
    a disk may not be mounted.
    """
    return [
        path
        for path in sorted(storage_for(folder).walk(folder))
        if (_is_file(path) or _is_left_out(path) or _is_broken_link(path))
        and not is_hidden(path.relative_to(folder))
    ]


def _is_own(path: Path) -> bool:
    """Whether a path is one of a run's: results, or its working folder or a file in there."""
    if path.suffix.lower() == OWN_SUFFIX and not _is_folder(path):
        return True
    working = (one for one in (path, *path.parents) if one.suffix == WORKING_SUFFIX)
    return any(_is_file(folder / RUN_FILE) for folder in working)


def _is_left_out(path: Path) -> bool:
    """Whether a folder is not searched: it is closed, or a link, which may lead in circles."""
    storage = storage_for(path)
    return _is_folder(path) and (storage.is_link(path) or not storage.may_list(path))


def _why_skipped(path: Path) -> str:
    if _is_folder(path):
        if storage_for(path).is_link(path):
            return f"{path} was skipped: it is a link to a folder. Name it as an input of its own."
        return f"{path} was skipped: it may not be opened."
    kind = path.suffix or path.name
    known = way_out(kind) or f"{kind} is not a type of video or image"
    return f"{path} was skipped: {known}."


def _is_folder(path: Path) -> bool:
    info = storage_for(path).stat(path)
    return info is not None and info.is_folder


def _is_file(path: Path) -> bool:
    info = storage_for(path).stat(path)
    return info is not None and info.is_file


def _is_broken_link(path: Path) -> bool:
    return storage_for(path).stat(path) is None


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES

"""Inputs: from what the user named to the videos and images to analyze, each with a unique name."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from emopipe.emonet.errors import EmopipeError
from emopipe.pipeline.media.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from emopipe.pipeline.storage import storage_for

OWN_SUFFIXES = {".parquet"}
"""Results may lie among the videos; they are left out without being reported."""


class InputError(EmopipeError):
    """An input that does not exist, or holds no video or image."""


@dataclass(frozen=True)
class InputFile:
    """One video or image to analyze.

    Attributes:
        path: the file.
        name: its path relative to the input root, with "/" between parts; unique in a run.
    """

    path: Path
    name: str

    @property
    def bytes(self) -> int:
        """Its size; 0 if it no longer exists."""
        info = storage_for(self.path).stat(self.path)
        return info.size if info else 0


@dataclass(frozen=True)
class Skipped:
    """A file or folder that was found but is not analyzed.

    Attributes:
        path: the file or folder.
        reason: a sentence for the user.
    """

    path: Path
    reason: str


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
class _Found:
    """A file below its root; its name may include some of the root's folders to be unique."""

    path: Path
    root: Path
    depth: int = 0  # how many of the root's last folders the name includes

    @property
    def name(self) -> str:
        # Without the anchor "/": a name is relative, and its results lie inside the output.
        root = storage_for(self.root).resolve(self.root)
        prefix = root.parts[1:][-self.depth :] if self.depth else ()
        return Path(*prefix, self.path.relative_to(self.root)).as_posix()


def find_inputs(arguments: Sequence[str | Path]) -> Inputs:
    """Resolve files, folders, patterns and lists of paths.

    Args:
        arguments: each a file; a folder, which is searched with all folders below it (hidden files
            left out); a glob pattern such as `day*/**/*.mp4`; or a `.txt` file of such paths, one a
            line, relative to the list's folder, with `#` at the start of comments.

    Returns:
        The files to analyze and those skipped. A file that is named twice counts once.

    Raises:
        InputError: a path does not exist or may not be read, a pattern is invalid or matches
            nothing, no video or image is found, or a file's name is not UTF-8.
    """
    found: dict[Path, _Found] = {}
    skipped: dict[Path, Skipped] = {}
    for one in _without_lists(arguments):
        try:
            expanded = list(_expand(one))
        except (OSError, ValueError) as error:  # no permission, or an invalid pattern
            raise InputError(f"{one} cannot be searched ({error}). Check it.") from error
        for file in expanded:
            key = storage_for(file.path).resolve(file.path)
            if _is_media(file.path):
                found.setdefault(key, file)
            else:
                skipped.setdefault(key, Skipped(file.path, _why_skipped(file.path)))
    if not found:
        reason = next((one.reason for one in skipped.values()), "No input was named.")
        raise InputError(f"There is nothing to analyze. {reason}")
    files = tuple(InputFile(file.path, file.name) for file in _with_unique_names(found))
    return Inputs(files, tuple(skipped.values()))


def _without_lists(arguments: Sequence[str | Path]) -> Iterator[str]:
    """Yield the arguments with each list file replaced by its lines."""
    for argument in map(str, arguments):
        path = Path(argument)
        if path.suffix.lower() == ".txt" and _is_file(path):
            yield from _lines(path)
        else:
            yield argument


def _lines(path: Path) -> Iterator[str]:
    try:
        text = storage_for(path).read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a list of paths: it is not UTF-8 text.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    # File names may contain "#", so it marks a comment only at the start of a line.
    lines = [line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"]
    if not lines:
        raise InputError(f"{path} lists no paths. Write one video or folder on each line.")
    for line in lines:
        yield str(path.parent / os.path.expanduser(line))  # noqa: PTH111 -- Path's raises


def _expand(argument: str) -> Iterator[_Found]:
    """Yield the files that one argument names: itself, its folder's, or its pattern's."""
    path = Path(argument)
    storage = storage_for(path)
    info = storage.stat(path)
    if info and info.is_folder:
        if not storage.may_list(path):
            raise InputError(f"{path} may not be opened. Change its permissions.")
        files = _files_in(path)
        if not any(_is_media(file) or _is_left_out(file) for file in files):
            raise InputError(f"{path} holds no video or image, nor do the folders in it.")
        yield from (_Found(file, path) for file in files)
    elif info:
        yield _Found(path, path.parent)
    elif glob.has_magic(argument):
        yield from _matching(argument)
    else:
        raise InputError(f"{path} does not exist. Check the path.")


def _matching(pattern: str) -> Iterator[_Found]:
    """Yield the files that match a pattern; the root is its part before the first wildcard."""
    parts = Path(pattern).parts
    fixed = len(list(takewhile(lambda part: not glob.has_magic(part), parts)))
    root = Path(*parts[:fixed])
    matching = storage_for(root).glob(root, str(Path(*parts[fixed:])))
    matches = sorted(path for path in matching if not _is_hidden(path, root))
    if not matches:
        raise InputError(f"Nothing matches {pattern}. Check the pattern.")
    for path in matches:
        files = _files_in(path) if _is_folder(path) else [path]
        yield from (_Found(file, root) for file in files)


def _files_in(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted, without hidden ones and results.

    Among them are the folders that are not searched and broken links, so that they are reported:
    a disk may not be mounted.
    """
    return [
        path
        for path in sorted(storage_for(folder).walk(folder))
        if (_is_file(path) or _is_left_out(path) or _is_broken_link(path))
        and not _is_hidden(path, folder)
        and path.suffix.lower() not in OWN_SUFFIXES
    ]


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
    return f"{path} was skipped: {kind} is not a type of video or image."


def _is_folder(path: Path) -> bool:
    info = storage_for(path).stat(path)
    return info is not None and info.is_folder


def _is_file(path: Path) -> bool:
    info = storage_for(path).stat(path)
    return info is not None and info.is_file


def _is_broken_link(path: Path) -> bool:
    return storage_for(path).stat(path) is None


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES


def _with_unique_names(found: dict[Path, _Found]) -> list[_Found]:
    """Let names that clash include more and more of their roots' folders until none do."""
    files = list(found.values())
    for file in files:
        try:
            file.name.encode()
        except UnicodeEncodeError as error:  # no text, so the table could not hold it
            problem = f"The name of {os.fsencode(file.path)!r} is not UTF-8. Rename it."
            raise InputError(problem) from error
    while True:
        count = Counter(file.name for file in files)
        clashing = [index for index, file in enumerate(files) if count[file.name] > 1]
        if not clashing:
            return files
        for index in clashing:
            files[index] = replace(files[index], depth=files[index].depth + 1)

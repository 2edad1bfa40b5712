"""What the user named → the videos and pictures to look at, each under a name of its own."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from emopipe.emonet.errors import EmopipeError
from emopipe.pipeline.media.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES

OWN_SUFFIXES = {".parquet"}
"""Our own results may lie among the videos; they are passed over without a word."""

_LISTING = os.R_OK | os.X_OK
"""The rights that it takes to look into a folder."""


class InputError(EmopipeError):
    """What was named does not exist, or holds no video."""


@dataclass(frozen=True)
class InputFile:
    """One video or picture to look at.

    Attributes:
        path: What to open.
        name: Path relative to the input root, "/" between parts; no two inputs share one.
    """

    path: Path
    name: str

    @property
    def bytes(self) -> int:
        """Its size; 0 where it is gone."""
        return self.path.stat().st_size if self.path.exists() else 0


@dataclass(frozen=True)
class Skipped:
    """A file that was named or met but is neither video nor picture.

    Attributes:
        path: The file.
        reason: A sentence for the user.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Inputs:
    """All that a list of arguments stands for.

    Attributes:
        files: In the order of the arguments, sorted inside folders, each file once.
        skipped: What was passed over, with the reason.
    """

    files: tuple[InputFile, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Found:
    """A file below its root; `name` may reach up into the root's own folders to be unique."""

    path: Path
    root: Path
    depth: int = 0  # how many of the root's last folders the name takes in

    @property
    def name(self) -> str:
        # Without the anchor "/": a name is relative, and its results lie inside the output.
        prefix = self.root.resolve().parts[1:][-self.depth :] if self.depth else ()
        return Path(*prefix, self.path.relative_to(self.root)).as_posix()


def find_inputs(arguments: Sequence[str | Path]) -> Inputs:
    """Resolve files, folders, patterns and lists of paths.

    Args:
        arguments: Each a file; a folder (searched to the bottom, hidden files left out); a glob
            pattern such as `day*/**/*.mp4`; or a `.txt` file of such paths, one a line, relative to
            the list, `#` before a comment.

    Returns:
        The files to look at and those skipped. A file that is named twice counts once.

    Raises:
        InputError: A path does not exist or may not be read, a pattern is none or matches nothing,
            a folder holds no video, nothing that was named is one, or a name is no text.
    """
    found: dict[Path, _Found] = {}
    skipped: dict[Path, Skipped] = {}
    for one in _without_lists(arguments):
        try:
            expanded = list(_expand(one))
        except (OSError, ValueError) as error:  # no right to look there, or no pattern
            raise InputError(f"{one} cannot be searched ({error}). Check it.") from error
        for file in expanded:
            key = file.path.resolve()
            if _is_media(file.path):
                found.setdefault(key, file)
            else:
                skipped.setdefault(key, Skipped(file.path, _why_skipped(file.path)))
    if not found:
        reason = next((one.reason for one in skipped.values()), "No input was named.")
        raise InputError(f"There is nothing to look at. {reason}")
    files = tuple(InputFile(file.path, file.name) for file in _with_unique_names(found))
    return Inputs(files, tuple(skipped.values()))


def _without_lists(arguments: Sequence[str | Path]) -> Iterator[str]:
    """The arguments with each list file replaced by its lines."""
    for argument in map(str, arguments):
        path = Path(argument)
        if path.suffix.lower() == ".txt" and path.is_file():
            yield from _lines(path)
        else:
            yield argument


def _lines(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no list of paths: it is not UTF-8 text.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    # A name may hold a "#", so only one at the start of a line makes a comment.
    lines = [line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"]
    if not lines:
        raise InputError(f"{path} lists no paths. Write one video or folder on each line.")
    for line in lines:
        yield str(path.parent / os.path.expanduser(line))  # noqa: PTH111 -- Path's raises


def _expand(argument: str) -> Iterator[_Found]:
    """The files one argument stands for: itself, its folder's, or its pattern's."""
    path = Path(argument)
    if path.is_dir():
        if not os.access(path, _LISTING):
            raise InputError(f"{path} may not be opened. Change its rights.")
        files = _files_in(path)
        if not any(_is_media(file) or _is_passed_over(file) for file in files):
            raise InputError(f"{path} holds no video or picture, nor do the folders in it.")
        yield from (_Found(file, path) for file in files)
    elif path.exists():
        yield _Found(path, path.parent)
    elif glob.has_magic(argument):
        yield from _matching(argument)
    else:
        raise InputError(f"{path} does not exist. Check the path.")


def _matching(pattern: str) -> Iterator[_Found]:
    """What the pattern matches; its root is the part before the first wildcard."""
    parts = Path(pattern).parts
    fixed = len(list(takewhile(lambda part: not glob.has_magic(part), parts)))
    root = Path(*parts[:fixed])
    matches = sorted(
        path for path in root.glob(str(Path(*parts[fixed:]))) if not _is_hidden(path, root)
    )
    if not matches:
        raise InputError(f"Nothing matches {pattern}. Check the pattern.")
    for path in matches:
        files = _files_in(path) if path.is_dir() else [path]
        yield from (_Found(file, root) for file in files)


def _files_in(folder: Path) -> list[Path]:
    """All files below the folder, sorted, without hidden ones and our own results.

    With them the folders that are not looked into: nothing shall vanish without a word.
    """
    return [
        path
        for path in sorted(folder.rglob("*"))
        # A broken link shall fail, not vanish: perhaps a disk is not mounted.
        if (path.is_file() or _is_passed_over(path) or not path.exists())
        and not _is_hidden(path, folder)
        and path.suffix.lower() not in OWN_SUFFIXES
    ]


def _is_passed_over(path: Path) -> bool:
    """Whether it is a folder that is not looked into: shut, or a link, which may go in circles."""
    return path.is_dir() and (path.is_symlink() or not os.access(path, _LISTING))


def _why_skipped(path: Path) -> str:
    if path.is_symlink() and path.is_dir():
        return f"{path} was skipped: it is a link to a folder. Name it as an input of its own."
    if path.is_dir():
        return f"{path} was skipped: it may not be opened."
    kind = path.suffix or path.name
    return f"{path} was skipped: {kind} is no type of video or picture."


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES


def _with_unique_names(found: dict[Path, _Found]) -> list[_Found]:
    """Let the names that clash take in more and more of their roots until none do."""
    files = list(found.values())
    for file in files:
        try:
            file.name.encode()
        except UnicodeEncodeError as error:  # a table cannot hold it
            problem = f"The name of {os.fsencode(file.path)!r} is not UTF-8. Rename it."
            raise InputError(problem) from error
    while True:
        count = Counter(file.name for file in files)
        clashing = [index for index, file in enumerate(files) if count[file.name] > 1]
        if not clashing:
            return files
        for index in clashing:
            files[index] = replace(files[index], depth=files[index].depth + 1)

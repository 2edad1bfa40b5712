"""The file-system seam: the only place where inputs are listed and outputs are written.

Code on top of it treats a `Path` as a name: it joins and compares paths, and hands them to the
storage for everything else. It does not rely on rename being atomic, except for `move`, nor on
anything being visible before `write` has ended, so that an object store can stand here too.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from emopipe.emonet.files import atomic_write, sha256_of


class LockedError(Exception):
    """Another process holds the lock."""


@dataclass(frozen=True)
class FileInfo:
    """What is known of a file or folder without opening it.

    Attributes:
        is_file: whether it is a regular file.
        is_folder: whether it is a folder; a device is neither.
        size: bytes; of no meaning for a folder.
        modified: modification time in s since 1970.
    """

    is_file: bool
    is_folder: bool
    size: int
    modified: float


_ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")
"""A byte that `printable` has written: none of ASCII is escaped."""


def printable(text: str) -> str:
    r"""Write the bytes of a file name that are not UTF-8 as `\xff`: other text stays as it is.

    No table or terminal takes such bytes.
    """
    return os.fsencode(text).decode(errors="backslashreplace")


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path as the user means it: `~` at its start is their home folder.

    A shell leaves it in `--out=~/results.parquet`, and Python does everywhere. A `~` before what is
    no user's name stays.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 -- Path's raises for an unknown user


class LocalStorage:
    """The file system of this machine. Every method may raise `OSError`."""

    def stat(self, path: Path) -> FileInfo | None:
        """Describe what a path names, links followed; None if nothing is there."""
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link to itself
                return None
            raise
        is_file, is_folder = stat.S_ISREG(found.st_mode), stat.S_ISDIR(found.st_mode)
        return FileInfo(is_file, is_folder, found.st_size, found.st_mtime)

    def children(self, folder: Path) -> list[Path]:
        """Return what lies directly in a folder, in no order; nothing if it does not exist."""
        return list(folder.iterdir()) if folder.is_dir() else []

    def walk(self, folder: Path) -> Iterator[Path]:
        """Yield all files and folders below a folder; links to folders are not followed."""
        return folder.rglob("*")

    def glob(self, folder: Path, pattern: str) -> Iterator[Path]:
        """Yield what matches a pattern relative to a folder.

        Raises:
            ValueError: the pattern is invalid.
        """
        return folder.glob(pattern)

    def is_link(self, path: Path) -> bool:
        """Whether a path is a link to something else."""
        return path.is_symlink()

    def may_list(self, folder: Path) -> bool:
        """Whether this user has the permissions to list a folder."""
        return os.access(folder, os.R_OK | os.X_OK)

    def resolve(self, path: Path) -> Path:
        """Return the one absolute path of a file, however it was named; of a dead link, its own."""
        return Path(os.path.realpath(path))  # Path.resolve raises for a link to itself

    def address(self, path: Path) -> str:
        """Return a path's absolute form as `printable` text, links kept."""
        return printable(str(path.absolute()))

    def located(self, address: str) -> Path:
        """Return the path that has this `address`."""
        raw = _ESCAPED.sub(lambda byte: bytes.fromhex(byte[1].decode()), os.fsencode(address))
        return Path(os.fsdecode(raw))

    def open(self, path: Path) -> BinaryIO:
        """Open a file for reading; it can seek."""
        return path.open("rb")

    def read(self, path: Path) -> bytes:
        """Return a file's content."""
        return path.read_bytes()

    def sha256(self, path: Path) -> str:
        """Hash a file's content, hexadecimal."""
        return sha256_of(path)

    @contextmanager
    def write(self, path: Path, durable: bool = True) -> Iterator[BinaryIO]:
        """Write a file that appears as a whole when the block ends, or not at all if it raises.

        Args:
            path: the file. One that exists is replaced.
            durable: whether it must survive a power cut from then on, which takes milliseconds.
        """
        with atomic_write(path, durable) as growing, growing.open("wb") as file:
            yield file

    def make_folder(self, folder: Path) -> None:
        """Create a folder and those above it, where they do not exist."""
        folder.mkdir(parents=True, exist_ok=True)

    def move(self, source: Path, target: Path) -> None:
        """Move a file to a path in the same storage; a file that is there is replaced."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file, if it exists."""
        path.unlink(missing_ok=True)

    def remove_tree(self, folder: Path) -> None:
        """Remove a folder and all it holds, if it exists."""
        if folder.is_dir():
            shutil.rmtree(folder)

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """Hold a lock, by a file, while the block runs; a killed process releases it.

        Raises:
            LockedError: another process holds it.
        """
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise LockedError(str(path)) from error
        try:
            yield
        finally:
            lock.release()


_LOCAL = LocalStorage()


def storage_for(path: Path) -> LocalStorage:  # noqa: ARG001 -- a URL will choose another
    """Return the storage that a path belongs to."""
    return _LOCAL

"""CSV files as they come: packed or plain, of any usual encoding and separator.

What a file is follows from its first bytes, not from its name.
"""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, TextIO

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.files import is_hidden

_HEAD_BYTES = 64 * 1024
"""Bytes from a file's start by which its form, encoding and separator are told."""

_COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_ZIP = b"PK\x03\x04"
_TAR = (b"ustar", 257)  # and where it stands
_NOT_UNPACKED = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
}
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_WORKBOOK = "[Content_Types].xml"  # is in each .xlsx file, which is a ZIP archive
_SEPARATORS = ",;\t|"
_SHOWN = 5
_WINDOWS = "windows-1252-where-not-utf-8"
_READ_ERRORS = (
    OSError,
    EOFError,
    UnicodeError,
    csv.Error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)


def _as_windows(problem: UnicodeError) -> tuple[str, int]:
    """Decode what is no UTF-8 as spreadsheets on Windows write it."""
    if not isinstance(problem, UnicodeDecodeError):
        raise problem
    return problem.object[problem.start : problem.end].decode("cp1252", "replace"), problem.end


codecs.register_error(_WINDOWS, _as_windows)


@dataclass(frozen=True)
class OpenCsv:
    """A CSV file that is being read.

    Attributes:
        text: its text from the start, line ends untranslated.
        separator: what stands between the columns.
    """

    text: TextIO
    separator: str

    def rows(self) -> Any:
        """A `csv.reader` of the file's rows, the header first."""
        return csv.reader(self.text, delimiter=self.separator)


@contextmanager
def open_csv(
    path: Path, error: type[EmopipeError], preferred: tuple[str, ...] = ()
) -> Iterator[OpenCsv]:
    """Open a CSV file, plain, compressed or inside a ZIP or tar archive.

    Text that is neither marked as Unicode nor UTF-8 is taken for Windows-1252.

    Args:
        path: the file.
        error: what to raise.
        preferred: names of the files to read from an archive that holds several, best first.

    Raises:
        EmopipeError: of that kind, naming the file, where it cannot be read; the block's own errors
            of reading and decoding are raised as such too.
    """
    try:
        with ExitStack() as stack:
            binary = stack.enter_context(path.open("rb"))
            content = _Opening(path, error, preferred, stack).unpacked(binary)
            head = _head_of(content)
            encoding = _encoding(head)
            if encoding == "utf-8" and b"\0" in head:
                raise error(f"{path} is no text file: save the table as CSV")
            first_line = head.decode(encoding, "replace").splitlines()[:1]
            yield OpenCsv(
                text=io.TextIOWrapper(
                    content, encoding, _WINDOWS if encoding.startswith("utf-8") else "strict", ""
                ),
                separator=max(_SEPARATORS, key="".join(first_line).count),
            )
    except _READ_ERRORS as problem:
        raise error(f"{path} cannot be read as CSV: {problem}") from problem


def column_names(
    path: Path, error: type[EmopipeError], preferred: tuple[str, ...] = ()
) -> list[str]:
    """The names of a CSV file's columns, in lower case; see `open_csv`."""
    with open_csv(path, error, preferred) as opened:
        return header_names(next(opened.rows(), []))


def header_names(header: Iterable[str]) -> list[str]:
    """The names of columns as they are compared: in lower case, without spaces around them."""
    return [name.strip().lower() for name in header]


@dataclass(frozen=True)
class _Opening:
    """A file that is being opened: `open_csv`'s arguments, and what must be closed after it."""

    path: Path
    error: type[EmopipeError]
    preferred: tuple[str, ...]
    stack: ExitStack

    def unpacked(self, stream: IO[bytes]) -> IO[bytes]:
        """What a stream holds, its layers of compression and archives taken off."""
        head = _head_of(stream)
        for start, what in _NOT_UNPACKED.items():
            if head.startswith(start):
                raise self._refused(f"is {what}: unpack it, or save it as CSV, and give that file")
        for start, opener in _COMPRESSIONS.items():
            if head.startswith(start):
                return self.unpacked(self.stack.enter_context(opener(stream)))
        mark, offset = _TAR
        if head.startswith(_ZIP):
            return self.unpacked(self.stack.enter_context(self._zip_member(stream)))
        if head[offset:].startswith(mark):
            return self.unpacked(self.stack.enter_context(self._tar_member(stream)))
        return stream

    def _zip_member(self, stream: IO[bytes]) -> IO[bytes]:
        archive = self.stack.enter_context(zipfile.ZipFile(stream))
        name = self._chosen(archive.namelist())
        try:
            return archive.open(name)
        except RuntimeError as problem:  # encrypted, or compressed in an unknown way
            raise self._refused(f"cannot be unpacked ({problem}): unpack it first") from problem

    def _tar_member(self, stream: IO[bytes]) -> IO[bytes]:
        archive = self.stack.enter_context(tarfile.TarFile(fileobj=stream))
        names = [member.name for member in archive.getmembers() if member.isfile()]
        member = archive.extractfile(self._chosen(names))
        assert member is not None  # as it is for a file
        return member

    def _chosen(self, names: list[str]) -> str:
        """The one file of an archive to read."""
        if _WORKBOOK in names:
            raise self._refused("is an Excel workbook: save it as CSV, and give that file")
        places = {name: PurePosixPath(name) for name in names if not name.endswith("/")}
        files = {
            name: place.name.lower().removesuffix(".gz")
            for name, place in places.items()
            if not is_hidden(place)
        }
        tables = [name for name, plain in files.items() if plain.endswith(".csv")]
        best = [name for wanted in self.preferred for name in tables if files[name] == wanted]
        if best or len(tables) == 1:
            return (best or tables)[0]
        shown = ", ".join((tables or list(files))[:_SHOWN]) or "nothing"
        held = f"several CSV files ({shown})" if tables else f"no CSV file, but {shown}"
        raise self._refused(f"holds {held}: unpack it, and give the file or folder that you mean")

    def _refused(self, what: str) -> EmopipeError:
        return self.error(f"{self.path} {what}")


def _head_of(stream: IO[bytes]) -> bytes:
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    return head


def _encoding(head: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    # A header begins with characters of ASCII: every other byte of them is 0 in UTF-16.
    even, odd = head[0:8:2], head[1:8:2]
    if not any(odd) and all(even):
        return "utf-16-le" if head else "utf-8"
    return "utf-16-be" if not any(even) and all(odd) else "utf-8"

"""Standard input, output and error, as a program may find them: closed, full, read by nobody."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _File(io.FileIO):
    """A file that takes all that is written: the first error is kept for the program's end.

    Attributes:
        error: why something is missing.
    """

    error: OSError | None = None

    def write(self, data: ReadableBuffer) -> int:
        """Write what the disk takes."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            return memoryview(data).nbytes


class StandardStreams:
    """The three standard streams, none of which ends or harms a run.

    A descriptor from 0 to 2 that is closed is opened on the null device: the next file would get
    its number otherwise, and what is printed, by a native library too, would land in that file.
    """

    def __init__(self) -> None:
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
        self._output = _File(1, "w", closefd=False)
        sys.stdout = _text(self._output, sys.stdout)
        sys.stderr = _text(_File(2, "w", closefd=False), sys.stderr)

    def lost(self) -> str | None:
        """Write what is buffered; return why standard output is incomplete, or None if it is not.

        The reason is empty where whoever read it has gone, as `head` does.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        error = self._output.error
        if error is None:
            return None
        return "" if error.errno == errno.EPIPE else str(error.strerror)


def _text(file: _File, before: TextIO | None) -> TextIO:
    """A text stream like the one before, which cannot fail on a character either."""
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",
        line_buffering=file.fileno() == 2 or file.isatty(),
    )

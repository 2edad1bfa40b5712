"""Lists of paths: text files with a path on each line, as editors and shells write them."""

import codecs
import os
import re
from collections.abc import Iterator
from pathlib import Path

from emopipe.emonet.errors import EmopipeError
from emopipe.pipeline.storage import storage_for

LIST_SUFFIX = ".txt"

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
"""Characters that stand in no text."""


class ListError(EmopipeError):
    """A list that cannot be read, or lists nothing."""


def listed_paths(path: Path) -> Iterator[str]:
    """Yield the lines of a list, without comments and the quotes around a path.

    Args:
        path: the list: UTF-8, or UTF-16 that begins with its mark. Bytes that are neither stay in
            the lines as in file names, which may hold them too. A `#` at the start of a line makes
            it a comment: further on it may belong to a file's name.

    Raises:
        ListError: it cannot be read, is no text, or lists no paths.
    """
    try:
        content = storage_for(path).read(path)
    except OSError as error:
        raise ListError(f"{path} cannot be read ({error.strerror}).") from error
    try:
        text = content.decode("utf-16") if content.startswith(_UTF_16) else _decoded(content)
    except UnicodeDecodeError as error:
        raise ListError(f"{path} is not a list of paths: its UTF-16 text is damaged.") from error
    if _CONTROL.search(text):
        raise ListError(f"{path} is not a list of paths: it is not UTF-8 text.")
    # Not splitlines: file names may hold the rarer characters that it takes for line ends.
    lines = [line for line in map(str.strip, re.split(r"[\r\n]", text)) if line and line[0] != "#"]
    if not lines:
        raise ListError(f"{path} lists no paths. Write one video or folder on each line.")
    yield from map(_unquoted, lines)


def _decoded(content: bytes) -> str:
    return os.fsdecode(content.removeprefix(codecs.BOM_UTF8))


def _unquoted(line: str) -> str:
    """Take off a pair of quotes: "Copy as path" and spreadsheets put paths in them."""
    quoted = len(line) > 2 and line[0] == line[-1] and line[0] in "\"'"
    return line[1:-1] if quoted else line

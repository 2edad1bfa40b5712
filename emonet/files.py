"""Files that are whole or not there, and their hashes."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing_whole(path: Path, durable: bool = True) -> Iterator[Path]:
    """Give a path to write to; its content gets the name `path` only if the block succeeds.

    Args:
        path: where the file appears.
        durable: have the content on the disk before it gets the name, so that not even a power cut
            leaves half a file under it. It takes milliseconds.

    Raises:
        OSError: the disk does not take it.
    """
    growing = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield growing
        if durable:
            with growing.open("rb") as written:
                os.fsync(written.fileno())
        growing.replace(path)
    finally:
        growing.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hash a file's content, hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

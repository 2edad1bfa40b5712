"""Files that appear complete or not at all, their hashes, and which are hidden."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` if the block succeeds.

    Args:
        path: where the file appears; an existing one is replaced.
        durable: flush the content to the disk before the rename, so that not even a power failure
            leaves a partial file. This takes milliseconds.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hash a file's content; the digest is hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_hidden(place: PurePath) -> bool:
    """Whether a file is hidden, or an operating system's own, such as macOS's `._face.png`.

    Args:
        place: the file, relative to the folder or archive that is looked through.
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in place.parts)

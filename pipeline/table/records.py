"""Records of inputs and the files that they are of."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from emopipe.pipeline.storage import printable, storage_for
from emopipe.pipeline.table.schema import VideoRecord


def with_file(record: VideoRecord, file: Path) -> VideoRecord:
    """Add what is known of the input's file; its size only where the record lacks it."""
    storage = storage_for(file)
    info = None
    with suppress(OSError):  # it may be gone by now: that is not the output's fault
        info = storage.stat(file)
    return replace(
        record,
        bytes=info.size if info and record.bytes is None else record.bytes,
        modified=info.modified if info else None,
        path=storage.address(file),
    )


def place_of(record: VideoRecord) -> Path | None:
    """Return the resolved path of a record's file; None if it has no path."""
    if record.path is None:
        return None
    storage = storage_for(Path(record.path))
    return storage.resolve(storage.located(record.path))


def is_gone(record: VideoRecord) -> bool:
    """Whether a record's file is no longer where it was."""
    if record.path is None:
        return False
    storage = storage_for(Path(record.path))
    try:
        return storage.stat(storage.located(record.path)) is None
    except OSError:  # it cannot be known
        return False


def moved_to(file: Path, gone: Iterable[VideoRecord]) -> VideoRecord | None:
    """Return the record, of those whose file is gone, that is of this file, by name and content."""
    storage = storage_for(file)
    try:
        info = storage.stat(file)
        alike = {
            record.sha256: record
            for record in gone
            if info and record.bytes == info.size
            if Path(record.path or "").name == printable(file.name)
        }
        return alike.get(storage.sha256(file)) if alike else None
    except OSError:  # whoever opens it will say so
        return None


def record_from(content: dict[str, Any]) -> VideoRecord:
    """Read a record back from its JSON object."""
    missing = tuple(tuple(pair) for pair in content["missing"])
    return VideoRecord(**content | {"missing": missing, "notes": tuple(content["notes"])})

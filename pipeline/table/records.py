"""Records of inputs and the files that they are of."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from emopipe.pipeline.storage import storage_for
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


def record_from(content: dict[str, Any]) -> VideoRecord:
    """Read a record back from its JSON object."""
    missing = tuple(tuple(pair) for pair in content["missing"])
    return VideoRecord(**content | {"missing": missing, "notes": tuple(content["notes"])})

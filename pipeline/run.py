"""What every way of running shares: who is told, what frames a run, the machine's cores.

Light: the Ray job loads it, and PyTorch only while Ray starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from emopipe.pipeline.estimate import Plan, plan
from emopipe.pipeline.inputs import InputFile, Inputs
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.settings import Settings, SettingsError, describe
from emopipe.pipeline.table.results import VideoRecord
from emopipe.pipeline.table.store import Store, open_store

if TYPE_CHECKING:
    from emopipe.emonet.checkpoint import Checkpoint

TRIES = 3
"""How often a span is begun before its frames count as missing."""


class Observer:
    """Is told how a run goes on; this one does nothing with it."""

    def begun(self, inputs: Inputs, done: int, ahead: Plan) -> None:
        """The run begins; an earlier one finished `done` inputs, `ahead` is left."""

    def video_begun(self, video: Video, frames: int, done: int) -> None:
        """A video begins: so many sampled frames, of which so many were done earlier."""

    def span_done(self, video: Video, frames: int, faces: int) -> None:
        """So many more frames and faces of a video are done."""

    def video_done(self, file: InputFile, record: VideoRecord) -> None:
        """A video is committed."""


def conduct(
    inputs: Inputs,
    out: Path,
    settings: Settings,
    checkpoint: Checkpoint,
    overwrite: bool,
    observer: Observer,
    work: Callable[[Store, list[InputFile], Plan], Iterator[tuple[InputFile, VideoRecord]]],
) -> list[VideoRecord]:
    """Open the output, have what is not there yet worked off, and put the results in place.

    Args:
        inputs: what to analyze.
        out: results file or folder.
        settings: as `resolved` gave them.
        checkpoint: of the network.
        overwrite: start anew.
        observer: is told how it goes on.
        work: does inputs, of which the plan tells how long they are, in any order, and yields
            each with its record once it is committed.

    Returns:
        One record for each input, in their order.

    Raises:
        EmopipeError: decord is asked for and not here, the output cannot be used, or `work` raised
            it.
    """
    if settings.backend == "decord" and find_spec("decord") is None:
        raise SettingsError("--backend decord: decord is not installed; without it PyAV decodes")
    description = describe(settings, checkpoint)
    with open_store(out, description, checkpoint.classes, settings.landmarks, overwrite) as store:
        records = {
            file.name: record
            for file in inputs.files
            if (record := store.record(file.name, file.path))
        }
        todo = [file for file in inputs.files if file.name not in records]
        ahead = plan(todo, settings)
        observer.begun(inputs, len(records), ahead)
        for file, record in work(store, todo, ahead):
            records[file.name] = record
            observer.video_done(file, record)
        store.finish()
    return [records[file.name] for file in inputs.files]


def cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

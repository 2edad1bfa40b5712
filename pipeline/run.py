"""What every engine shares: the outline of a run and its progress callback.

Light: neither PyTorch nor Ray is loaded for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from emopipe.pipeline.estimate import Estimate, estimate
from emopipe.pipeline.inputs import InputFile, Inputs, with_unique_names
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.media.readers import missing_backend
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.settings import DEFAULT_MODEL, Settings, SettingsError, describe
from emopipe.pipeline.table.commit import Transform
from emopipe.pipeline.table.schema import VideoRecord
from emopipe.pipeline.table.smoothing import smoothing
from emopipe.pipeline.table.store import Store, open_store
from emopipe.pipeline.table.tracks import tracking

if TYPE_CHECKING:
    from emopipe.emonet.checkpoint import Checkpoint

MAX_ATTEMPTS = 3
"""How often a span is tried before its frames count as missing."""

Finished = tuple[InputFile, VideoRecord]
"""An input that is committed, with its record."""


@dataclass(frozen=True)
class FailedSpan:
    """A span that no attempt finished.

    Attributes:
        video: the input's name.
        span: which span of it.
        reason: what went wrong in the last attempt, in words.
    """

    video: str
    span: int
    reason: str


Work = Callable[[Store, list[InputFile], Estimate], Iterator[Finished]]
"""Analyzes inputs in any order and yields each once it is committed."""


class ProgressCallback:
    """Follows a run. Every method does nothing here; override those of interest."""

    def on_phase(self, text: str) -> None:
        """The run enters a phase before the first frame, such as "starting Ray"."""

    def on_message(self, text: str) -> None:
        """Something the user should read, such as which engine runs and why."""

    def on_new_output(self, model: str) -> None:
        """Nothing has been analyzed into this output yet; `model` says with what this run will."""

    def on_video_kept(self, file: InputFile, record: VideoRecord) -> None:
        """A video was committed by an earlier run: told before `on_start`."""

    def on_start(self, inputs: Inputs, done: int, estimate: Estimate) -> None:
        """The run begins; `done` inputs are finished already, `estimate` is what is left."""

    def on_video_start(self, video: Video, frames: int, done: int) -> None:
        """A video begins: it has `frames` sampled frames, of which `done` are finished already."""

    def on_span(self, video: Video, frames: int, faces: int) -> None:
        """`frames` more frames of a video are finished, with `faces` faces on them."""

    def on_video_end(self, file: InputFile, record: VideoRecord) -> None:
        """A video is committed, or an input that cannot be looked at has its row."""

    def on_end(self, others: list[VideoRecord]) -> None:
        """The results are in place; they go on holding `others`, which this run did not name."""


def run_analysis(
    inputs: Inputs,
    out: Path,
    settings: Settings,
    checkpoint: Checkpoint,
    overwrite: bool,
    progress: ProgressCallback,
    decoder: Decoder,
    work: Work,
) -> list[VideoRecord]:
    """Open the output, let an engine analyze what it lacks, and put the results in place.

    Args:
        inputs: what to analyze.
        out: results file or folder.
        settings: as `resolved` returned them.
        checkpoint: describes the network.
        overwrite: start anew.
        progress: follows the run.
        decoder: reads the inputs' headers.
        work: the engine.

    Returns:
        One record for each input, in their order.

    Raises:
        EmopipeError: the decoding backend is not installed, the output cannot be used, or the
            engine failed.
    """
    if missing := missing_backend(settings.backend):
        raise SettingsError(missing)
    description = describe(settings, checkpoint)
    with open_store(
        out,
        description,
        checkpoint.classes,
        settings.landmarks,
        overwrite,
        transforms=transforms_of(settings),
    ) as store:
        if store.is_new:
            progress.on_new_output(_model_in_words(settings, checkpoint))
        names = store.names(file.path for file in inputs.files if not file.problem)
        inputs = replace(inputs, files=with_unique_names(inputs.files, names))
        records: dict[str, VideoRecord] = {}
        for file in inputs.files:
            if record := store.record(file.name, file.path):
                records[file.name] = record
                progress.on_video_kept(file, record)
        left = [file for file in inputs.files if file.name not in records]
        todo = [file for file in left if not file.problem]
        ahead = estimate(todo, settings, decoder)
        progress.on_start(inputs, len(records), ahead)
        failed = ((f, store.fail(f.name, f.path, f.problem)) for f in left if f.problem)
        for file, record in chain(failed, work(store, todo, ahead)):
            records[file.name] = record
            progress.on_video_end(file, record)
        store.finish()
        progress.on_end(store.others(records.keys()))
    return [records[file.name] for file in inputs.files]


def transforms_of(settings: Settings) -> list[Transform]:
    """What a video's rows pass through, in this order, when it is committed."""
    transforms = [tracking(settings.max_gap)]
    if settings.smooth is not None:
        transforms.append(smoothing(settings.smooth, settings.stride, settings.fps))
    return transforms


def _model_in_words(settings: Settings, checkpoint: Checkpoint) -> str:
    """Name the model, and say what is to be known of it."""
    bundled = settings.model == DEFAULT_MODEL
    name = f"model {checkpoint.name}{' (bundled)' if bundled else ''}"
    note = checkpoint.valence_arousal_note
    other = "for the published one: emopipe models fetch emonet-8, then `model` emonet-8"
    return f"{name}{', ' + note if note else ''}{'; ' + other if bundled else ''}"

"""Inputs to an output, in this process: the plain loop, and its door from Python."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch

from emonet.checkpoint import Checkpoint, open_model
from emonet.predictor import Predictor
from pipeline.decoder import DecodeError
from pipeline.faces import Selection
from pipeline.inputs import InputFile, Inputs, find_inputs
from pipeline.plan import Plan, plan
from pipeline.results import Results, SpanFaces, VideoRecord, read_results
from pipeline.settings import Settings, describe, resolved
from pipeline.stages import EmotionStage, FaceStage, LostSpan, sampler
from pipeline.store import Store, open_store, part_key
from pipeline.video import Video, VideoError, spans_of


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


def analyze(
    inputs: str | Path | Sequence[str | Path], out: str | Path | None = None, **settings: Any
) -> Results:
    """Analyze videos and read the results into memory.

    Example:
        >>> results = analyze("clip.mp4", stride=5)
        >>> results.rows[["time", "emotion", "valence"]]

    Args:
        inputs: files, folders, globs, or text files of paths.
        out: results file or folder to keep; one that is there already is gone on with.
        settings: fields of `Settings` and of its `Selection`.

    Raises:
        EmopipeError: a setting, an input, a checkpoint or the output cannot be used. Videos that
            fail do not raise: `Results.videos` tells of them.
    """
    arguments = [inputs] if isinstance(inputs, str | Path) else inputs
    chosen = {k: settings.pop(k) for k in Selection.__dataclass_fields__ if k in settings}
    whole = Settings(selection=Selection(**chosen), **settings)
    with tempfile.TemporaryDirectory(prefix="emopipe-") as scratch:
        target = Path(out or Path(scratch) / "results.parquet")
        run(find_inputs([str(argument) for argument in arguments]), target, whole)
        return read_results(target)


def run(
    inputs: Inputs,
    out: Path,
    settings: Settings,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> list[VideoRecord]:
    """Analyze inputs one after the other in this process.

    Args:
        inputs: what to analyze.
        out: results file (`*.parquet`) or folder.
        settings: how.
        overwrite: start anew, replacing what lies there.
        observer: is told how it goes on.

    Returns:
        One record for each input, in their order.

    Raises:
        EmopipeError: a checkpoint, a detector or the output cannot be used.
    """
    observer = observer or Observer()
    settings = resolved(settings)
    use_threads(settings.threads)
    model, checkpoint = open_model(settings.model, settings.classes)
    predictor = Predictor(
        model, checkpoint, settings.device, settings.precision, settings.faces_per_batch
    )
    with FaceStage(settings, checkpoint.crop, checkpoint.input_size) as faces:

        def work(
            store: Store, files: list[InputFile], _: Plan
        ) -> Iterator[tuple[InputFile, VideoRecord]]:
            stages = _Stages(settings, faces, EmotionStage(predictor, store.schema))
            for file in files:
                yield file, stages.video(file, store, observer)

        return conduct(inputs, out, settings, checkpoint, overwrite, observer, work)


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
        EmopipeError: the output cannot be used, or `work` raised it.
    """
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


def use_threads(threads: int | None) -> None:
    """Give detection and network so many CPU threads; None for all cores there are."""
    threads = threads or cores()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


@dataclass(frozen=True)
class _Stages:
    """The stages of a run in this process."""

    settings: Settings
    faces: FaceStage
    emotions: EmotionStage

    def video(self, file: InputFile, store: Store, observer: Observer) -> VideoRecord:
        """Do one input, whatever is wrong with it."""
        try:
            video = self.faces.probe(file)
            try:
                return self._spans(video, store, observer)
            except DecodeError:
                # decord's errors only: its pictures are not to be mixed with PyAV's.
                video = self.faces.probe(file, backend="pyav")
                return self._spans(video, store, observer)
        except (VideoError, DecodeError) as error:
            return store.fail(file.name, file.path, str(error))

    def _spans(self, video: Video, store: Store, observer: Observer) -> VideoRecord:
        key, numbers = part_key(video), sampler(self.settings)(video)
        spans = spans_of(numbers)
        done = store.spans(key)
        observer.video_begun(video, len(numbers), sum(len(spans[span]) for span in done))
        for span in self.faces.spans(video, {k: v for k, v in spans.items() if k not in done}):
            rows = self.emotions.rows(span) if isinstance(span, SpanFaces) else span
            if isinstance(rows, LostSpan):
                store.lose(key, rows.span, rows.reason)
            else:
                store.write(key, span.span, rows)
                observer.span_done(
                    video, len(spans[span.span]), rows.num_rows - rows["face"].null_count
                )
        return store.commit(video, numbers)

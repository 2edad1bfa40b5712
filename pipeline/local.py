"""Inputs to an output, in this process: the plain loop, and its door from Python."""

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from emonet.checkpoint import open_model
from emonet.predictor import Predictor
from pipeline.decoder import DecodeError
from pipeline.faces import Selection
from pipeline.inputs import InputFile, Inputs, find_inputs
from pipeline.results import Results, VideoRecord, read_results
from pipeline.settings import Settings, describe
from pipeline.stages import SEGMENT_SPANS, EmotionStage, FaceStage, spans_of
from pipeline.store import OutputError, Store, open_store
from pipeline.video import Video, VideoError, sample

TRIES = 3
"""How often a span is begun before its frames count as missing."""


class Observer:
    """Is told how a run goes on; this one does nothing with it."""

    def begun(self, inputs: Inputs, done: int) -> None:
        """The run begins; `done` of its inputs were finished by an earlier one."""

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
    use_threads(settings.threads)
    model, checkpoint = open_model(settings.model, settings.classes)
    predictor = Predictor(
        model, checkpoint, settings.device, settings.precision, settings.faces_per_batch
    )
    description = describe(settings, checkpoint, predictor)
    with (
        FaceStage(settings, checkpoint.crop, checkpoint.input_size) as faces,
        open_store(out, description, checkpoint.classes, settings.landmarks, overwrite) as store,
    ):
        records = {
            file.name: record
            for file in inputs.files
            if (record := store.record(file.name, file.path))
        }
        observer.begun(inputs, len(records))
        work = _Work(settings, faces, EmotionStage(predictor, store.schema), store, observer)
        for file in inputs.files:
            if file.name not in records:
                records[file.name] = work.video(file)
                observer.video_done(file, records[file.name])
        store.finish()
    return [records[file.name] for file in inputs.files]


def use_threads(threads: int | None) -> None:
    """Give detection and network so many CPU threads; None for all cores there are."""
    threads = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


class _Work:
    """The stages of one run and the store they fill."""

    def __init__(
        self,
        settings: Settings,
        faces: FaceStage,
        emotions: EmotionStage,
        store: Store,
        observer: Observer,
    ) -> None:
        self._settings = settings
        self._faces = faces
        self._emotions = emotions
        self._store = store
        self._observer = observer

    def video(self, file: InputFile) -> VideoRecord:
        """Do one input, whatever is wrong with it."""
        try:
            video = self._faces.probe(file)
            try:
                return self._spans(video)
            except DecodeError:
                # decord's errors only: its pictures are not to be mixed with PyAV's.
                return self._spans(self._faces.probe(file, backend="pyav"))
        except (VideoError, DecodeError) as error:
            return self._store.fail(file.name, file.path, str(error))

    def _spans(self, video: Video) -> VideoRecord:
        numbers = wanted_frames(video, self._settings)
        spans = spans_of(numbers)
        pending = sorted(spans.keys() - self._store.spans(video))
        self._observer.video_begun(
            video, len(numbers), sum(len(spans[k]) for k in spans.keys() - pending)
        )
        error, tries = None, Counter[int]()
        while pending:
            segment = {k: spans[k] for k in pending[:SEGMENT_SPANS]}
            try:
                for span in self._faces.spans(video, segment):
                    self._store.write(video, span.span, self._emotions.rows(span))
                    pending.remove(span.span)
                    self._observer.span_done(video, len(span.numbers), len(span.face))
            except OutputError:
                raise
            except Exception as problem:
                if isinstance(problem, DecodeError) and video.backend == "decord":
                    raise
                error = str(problem) or repr(problem)
                tries[pending[0]] += 1
                if tries[pending[0]] == TRIES:
                    self._store.write(video, pending.pop(0), self._store.schema.empty_table())
        return self._store.commit(video, numbers, error)


def wanted_frames(video: Video, settings: Settings) -> NDArray[np.int64]:
    """Return the frame numbers that the settings ask for, ascending."""
    return sample(
        video,
        stride=settings.stride,
        fps=settings.fps,
        start=settings.start,
        end=settings.end,
    )

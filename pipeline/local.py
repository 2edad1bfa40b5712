"""Inputs to an output, in this process: the plain loop, and its door from Python."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch

from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.predictor import Predictor
from emopipe.pipeline.estimate import Plan
from emopipe.pipeline.faces.selection import Selection
from emopipe.pipeline.inputs import InputFile, Inputs, find_inputs
from emopipe.pipeline.media.decoder import DecodeError
from emopipe.pipeline.media.video import Video, VideoError, spans_of
from emopipe.pipeline.run import Observer, conduct, cores
from emopipe.pipeline.settings import Settings, resolved, sampler
from emopipe.pipeline.stages import EmotionStage, FaceStage, FailedSpan
from emopipe.pipeline.table.results import Results, DetectedSpan, VideoRecord, read_results
from emopipe.pipeline.table.store import Store, part_key


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
            rows = self.emotions.rows(span) if isinstance(span, DetectedSpan) else span
            if isinstance(rows, FailedSpan):
                store.write_failed(key, rows.span, rows.reason)
            else:
                store.write(key, span.span, rows)
                observer.span_done(
                    video, len(spans[span.span]), rows.num_rows - rows["face"].null_count
                )
        return store.commit(video, numbers)

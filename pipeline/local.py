"""The engine of this process: one input after the other, on all cores."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import cv2
import torch

from emopipe.emonet.checkpoint import Checkpoint, open_model
from emopipe.emonet.model import EmoNet
from emopipe.emonet.runtime import available_cores
from emopipe.pipeline.estimate import Estimate
from emopipe.pipeline.inputs import InputFile, Inputs
from emopipe.pipeline.media.decoder import DecodeError, Decoder
from emopipe.pipeline.media.sampling import spans_of
from emopipe.pipeline.media.video import Video, VideoError
from emopipe.pipeline.run import FailedSpan, Finished, ProgressCallback, run_analysis
from emopipe.pipeline.settings import Settings, resolved, sampler
from emopipe.pipeline.stages import EmotionStage, FaceStage, load_predictor
from emopipe.pipeline.table.schema import DetectedSpan, VideoRecord
from emopipe.pipeline.table.store import Store, part_key

T = TypeVar("T")


def run(
    inputs: Inputs,
    out: Path,
    settings: Settings,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> list[VideoRecord]:
    """Analyze inputs one after the other in this process.

    Args:
        inputs: what to analyze.
        out: results file (`*.parquet`) or folder.
        settings: how.
        overwrite: start anew, replacing what lies there.
        progress: follows the run.

    Returns:
        One record for each input, in their order.

    Raises:
        EmopipeError: a checkpoint, a detector or the output cannot be used.
    """
    progress = progress or ProgressCallback()
    with Decoder() as decoder:
        model, checkpoint = open_model(settings.model, settings.classes)
        settings = resolved(settings, checkpoint)
        engine = LocalEngine(settings, model, checkpoint, progress, decoder)
        return run_analysis(
            inputs, out, settings, checkpoint, overwrite, progress, decoder, engine.work
        )


def use_threads(threads: int | None) -> None:
    """Set how many CPU threads detection and network use; None for all cores there are."""
    threads = threads or available_cores()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


class LocalEngine:
    """Both stages in this process.

    Args:
        settings: as `resolved` returned them.
        model: the network; it is moved to the device and converted in place.
        checkpoint: describes the network.
        progress: follows the run.
        decoder: probes and decodes.

    Raises:
        EmopipeError: the detector's weights cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        model: EmoNet,
        checkpoint: Checkpoint,
        progress: ProgressCallback,
        decoder: Decoder,
    ) -> None:
        use_threads(settings.threads)
        self._settings = settings
        self._progress = progress
        self._decoder = decoder
        with ThreadPoolExecutor(1) as beside:
            # pyarrow imports it at the first row otherwise, and a Ctrl-C meanwhile would be lost.
            # Beside networks that are being compiled it takes no time.
            beside.submit(import_module, "pandas")
            self._predictor = load_predictor(settings, model, checkpoint)
            self._faces = FaceStage(settings, checkpoint, decoder, self._predictor)

    def work(self, store: Store, files: list[InputFile], _estimate: Estimate) -> Iterator[Finished]:
        """Analyze inputs in their order; see `pipeline.run.Work`."""
        emotions = EmotionStage(self._predictor, store.schema, self._settings.detector)
        with ThreadPoolExecutor(1) as beside:
            try:
                for file in files:
                    yield file, self._record(file, store, emotions, beside)
            except BaseException:  # such as Ctrl-C: nobody is to wait for the span at work
                self._faces.stop()
                raise

    def _record(
        self, file: InputFile, store: Store, emotions: EmotionStage, beside: Executor
    ) -> VideoRecord:
        try:
            video = self._decoder.probe(
                file.path, file.name, self._settings.backend, self._settings.deinterlace
            )
            return self._analyze(video, store, emotions, beside)
        except (VideoError, DecodeError) as error:
            return store.fail(file.name, file.path, str(error))

    def _analyze(
        self, video: Video, store: Store, emotions: EmotionStage, beside: Executor
    ) -> VideoRecord:
        """Write the spans that the store lacks, and commit the video."""
        key, frame_indices = part_key(video), sampler(self._settings)(video)
        spans = spans_of(frame_indices)
        done = store.spans(key)
        already = sum(len(spans[span]) for span in done)
        self._progress.on_video_start(video, len(frame_indices), already)
        wanted = {span: indices for span, indices in spans.items() if span not in done}
        for found in _prefetched(self._faces.spans(video, wanted), beside):
            rows = emotions.rows(found) if isinstance(found, DetectedSpan) else found
            if isinstance(rows, FailedSpan):
                store.write_failed(key, rows.span, rows.reason)
            else:
                store.write(key, found.span, rows)
                faces = rows.num_rows - rows["face"].null_count
                self._progress.on_span(video, len(spans[found.span]), faces)
        return store.commit(video, frame_indices)


def _prefetched(items: Iterator[T], beside: Executor) -> Iterator[T]:
    """Yield items; a thread takes the next one from the iterator while one is used."""
    upcoming = beside.submit(next, items, None)
    while (item := upcoming.result()) is not None:
        upcoming = beside.submit(next, items, None)
        yield item

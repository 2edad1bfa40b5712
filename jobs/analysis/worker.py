"""What runs on Ray's workers: the stages of an analysis behind actors."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from emopipe.jobs.analysis.messages import FailedVideo, SegmentTask, SpanDetected, SpanRows
from emopipe.pipeline.media.decoder import DecodeError, Decoder
from emopipe.pipeline.media.video import Video, VideoError
from emopipe.pipeline.run import FailedSpan

if TYPE_CHECKING:  # PyTorch is loaded when a worker starts: the driver imports this file too
    from emopipe.emonet.checkpoint import Checkpoint
    from emopipe.emonet.model import EmoNet
    from emopipe.emonet.predictor import Predictor
    from emopipe.pipeline.inputs import InputFile
    from emopipe.pipeline.settings import Settings
    from emopipe.pipeline.stages import EmotionStage
    from emopipe.pipeline.table.schema import DetectedSpan


CUDA_ERROR = "CUDA error"
"""PyTorch's words for an error of the GPU, after which the process cannot use it any more."""


@dataclass(frozen=True)
class WorkerConfig:
    """What workers are made from: no worker needs a file of weights.

    Attributes:
        settings: resolved, with the threads of one worker.
        checkpoint: describes the network.
        model: the network, on the CPU.
        detector_files: the detector's weights, file name to content.
    """

    settings: Settings
    checkpoint: Checkpoint
    model: EmoNet
    detector_files: dict[str, bytes]


class FaceWorker:
    """Decodes, detects and aligns; without emotion workers it runs the network too.

    Args:
        config: what it is made from.
        with_network: whether it finishes its spans itself.
    """

    def __init__(self, config: WorkerConfig, with_network: bool) -> None:
        self._config = config
        self._with_network = with_network

    def ping(self) -> None:
        """Answer."""

    def start(self) -> None:
        """Load the detector and, where it is to run here, the network.

        Not in the constructor, so that errors reach the driver as they are.

        Raises:
            EmopipeError: the weights cannot be used here.
        """
        from emopipe.pipeline.stages import FaceStage

        _set_up_process(self._config.settings)
        predictor = _predictor(self._config) if self._with_network else None
        self._emotions = _emotion_stage(self._config, predictor) if predictor else None
        self._decoder = Decoder()
        # Detectors read their files when they are made. Removed right after that, the files are not
        # left behind by a worker that is killed.
        with tempfile.TemporaryDirectory(prefix="emopipe-weights-") as folder:
            for name, content in self._config.detector_files.items():
                Path(folder, name).write_bytes(content)
            self._faces = FaceStage(
                replace(self._config.settings, detector_weights=Path(folder)),
                self._config.checkpoint,
                self._decoder,
                predictor,
            )

    def probe(self, file: InputFile) -> Iterator[Video | FailedVideo]:
        """Index an input."""
        yield probe(file, self._decoder, self._config.settings)

    def analyze(
        self, task: SegmentTask
    ) -> Iterator[SpanRows | FailedSpan | FailedVideo | SpanDetected | DetectedSpan]:
        """Yield each span of a segment as it is finished, or detected."""
        try:
            for found in self._faces.spans(task.video, task.spans):
                if isinstance(found, FailedSpan):
                    _die_with_gpu(found)
                    yield found
                elif self._emotions:
                    yield _finished(self._emotions, found)
                else:
                    yield SpanDetected(found.video, found.span, found.crops.nbytes)
                    yield found
        except DecodeError as error:
            yield FailedVideo(task.video.name, str(error))


class EmotionWorker:
    """Runs the network on detected spans.

    Args:
        config: what it is made from.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config

    def ping(self) -> None:
        """Answer."""

    def start(self) -> None:
        """Load the network."""
        _set_up_process(self._config.settings)
        self._emotions = _emotion_stage(self._config, _predictor(self._config))

    def predict(self, span: DetectedSpan) -> Iterator[SpanRows | FailedSpan]:
        """Finish a detected span."""
        yield _finished(self._emotions, span)


def probe(file: InputFile, decoder: Decoder, settings: Settings) -> Video | FailedVideo:
    """Index an input in the decoding child."""
    try:
        return decoder.probe(file.path, file.name, settings.backend, settings.deinterlace)
    except (VideoError, DecodeError) as error:
        return FailedVideo(file.name, str(error))


def _predictor(config: WorkerConfig) -> Predictor:
    from emopipe.pipeline.stages import load_predictor

    return load_predictor(config.settings, config.model, config.checkpoint)


def _emotion_stage(config: WorkerConfig, predictor: Predictor) -> EmotionStage:
    from emopipe.pipeline.stages import EmotionStage
    from emopipe.pipeline.table.schema import rows_schema

    settings = config.settings
    schema = rows_schema(
        config.checkpoint.classes, settings.landmarks, smooth=settings.smooth is not None
    )
    return EmotionStage(predictor, schema, settings.detector)


def _finished(emotions: EmotionStage, span: DetectedSpan) -> SpanRows | FailedSpan:
    from emopipe.pipeline.table.parts import encode_part

    rows = emotions.rows(span)
    if isinstance(rows, FailedSpan):
        _die_with_gpu(rows)
        return rows
    return SpanRows(span.video, span.span, encode_part(rows), len(span.face))


def _die_with_gpu(failed: FailedSpan) -> None:
    """End this process if its GPU failed: in it every later call would fail as well."""
    if CUDA_ERROR in failed.reason:
        os._exit(1)


def _set_up_process(settings: Settings) -> None:
    from emopipe.pipeline.local import use_threads

    use_threads(settings.threads)
    # When they exit, the libraries loaded here may wait for each other forever. Ray has let go of
    # the worker by then: nobody would end it.
    atexit.register(os._exit, 0)

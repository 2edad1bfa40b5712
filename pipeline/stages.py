"""The two stages of a span: frames to faces (CPU), faces to rows (the network's device)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from emopipe.emonet.checkpoint import CropSpec
from emopipe.emonet.predictor import Predictor
from emopipe.pipeline.faces.align import crop_boxes, cut, sharpness, to_frame
from emopipe.pipeline.faces.base import Faces
from emopipe.pipeline.faces.detectors import load_detector
from emopipe.pipeline.faces.selection import select
from emopipe.pipeline.inputs import InputFile
from emopipe.pipeline.media.decoder import DecodeError, Decoder, Frames
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import TRIES
from emopipe.pipeline.settings import Settings
from emopipe.pipeline.table.results import DetectedSpan, span_rows


@dataclass(frozen=True)
class FailedSpan:
    """A span that no try brought to its end.

    Attributes:
        video: the input's name.
        span: which span of it.
        reason: what went wrong the last time, in words.
    """

    video: str
    span: int
    reason: str


class FaceStage:
    """Decodes, detects and aligns. A context manager, since it owns the decoding child.

    Args:
        settings: the analysis's.
        crop: where the network wants its crop.
        size: the crop's side, pixels.
    """

    def __init__(self, settings: Settings, crop: CropSpec, size: int) -> None:
        self._settings = settings
        self._detector = load_detector(
            settings.detector,
            weights=settings.detector_weights,
            long_side=settings.detect_size,
            min_score=settings.selection.min_score,
            threads=settings.threads,
        )
        self._crop = crop
        self._size = size
        self._decoder = Decoder()

    def __enter__(self) -> "FaceStage":
        self._decoder.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._decoder.__exit__(*exception)

    def probe(self, file: InputFile, backend: str | None = None) -> Video:
        """Index a file in the decoding child, which a broken file may crash or hang.

        Args:
            file: which.
            backend: who is to decode it; None for the settings' choice.

        Raises:
            VideoError: it has no frame to look at.
            DecodeError: the child crashed or hung over it.
        """
        return self._decoder.probe(file.path, file.name, backend or self._settings.backend)

    def spans(
        self, video: Video, wanted: Mapping[int, NDArray[np.int64]]
    ) -> Iterator[DetectedSpan | FailedSpan]:
        """Yield a video's spans in order, each once it is whole, or lost after three tries.

        Frames that the decoder could not deliver are not in their span.

        Args:
            video: the video.
            wanted: span index to frame numbers, ascending.

        Raises:
            DecodeError: of kind "backend": the video's backend cannot decode it correctly. Nothing
                of the video is to be kept.
        """
        pending = dict(wanted)
        tries = 0
        while pending:
            first = next(iter(pending))
            # Behind a failure one at a time: a child that dies takes frames along that it has not
            # handed over, and these may be of spans before the one that kills it.
            attempted = {first: pending[first]} if tries else dict(pending)
            try:
                for found in self._attempt(video, attempted):
                    del pending[found.span]
                    yield found
                tries = 0
            except Exception as problem:
                if isinstance(problem, DecodeError) and problem.kind == "backend":
                    raise
                tries = tries + 1 if first in pending else 1
                if tries == TRIES:
                    tries = 0
                    span = next(iter(pending))
                    del pending[span]
                    yield FailedSpan(video.name, span, str(problem) or repr(problem))

    def _attempt(
        self, video: Video, wanted: Mapping[int, NDArray[np.int64]]
    ) -> Iterator[DetectedSpan]:
        """Yield spans until something breaks."""
        collected: list[_FrameFaces] = []
        waiting = list(wanted)
        for frames in self._decoder.frames(video, np.concatenate(list(wanted.values()))):
            for looked in self._look(frames):
                while looked.frame_index > wanted[waiting[0]][-1]:
                    yield self._span(video, waiting.pop(0), collected)
                    collected = []
                collected.append(looked)
        for span in waiting:
            yield self._span(video, span, collected)
            collected = []

    def _look(self, frames: Frames) -> Iterator["_FrameFaces"]:
        """Find, choose and cut out the faces of some frames."""
        found = self._detector.detect(list(frames.images))
        for number, time, image, every in zip(
            frames.frame_indices.tolist(), frames.times.tolist(), frames.images, found, strict=True
        ):
            faces = select(every, self._settings.selection)
            boxes = crop_boxes(faces, self._detector.calibration, self._crop, self._settings.crop)
            yield _FrameFaces(number, time, faces, boxes, cut(image, boxes, self._size))

    def _span(self, video: Video, span: int, looked: list["_FrameFaces"]) -> DetectedSpan:
        counts = [len(one.faces.scores) for one in looked]
        crops = _joined([one.crops for one in looked], (0, self._size, self._size, 3), np.uint8)
        return DetectedSpan(
            video=video.name,
            span=span,
            frame_indices=np.array([one.frame_index for one in looked], np.int32),
            times=np.array([one.time for one in looked], np.float64),
            frame=np.repeat(np.arange(len(looked)), counts),
            face=_joined([np.arange(count) for count in counts], (0,), np.int16),
            boxes=_joined([one.faces.boxes for one in looked], (0, 4), np.float32),
            scores=_joined([one.faces.scores for one in looked], (0,), np.float32),
            crops=crops,
            crop_boxes=_joined([one.boxes for one in looked], (0, 4), np.float32),
            sharpness=sharpness(crops),
        )


class EmotionStage:
    """Runs the network over a span's crops and lays out its rows.

    Args:
        predictor: the network.
        schema: of the results.
    """

    def __init__(self, predictor: Predictor, schema: pa.Schema) -> None:
        self._predictor = predictor
        self._schema = schema

    def rows(self, span: DetectedSpan) -> pa.Table | FailedSpan:
        """Predict and lay out; three tries."""
        problem = ""
        for _ in range(TRIES):
            try:
                return self._rows(span)
            except Exception as error:
                problem = str(error) or repr(error)
        return FailedSpan(span.video, span.span, problem)

    def _rows(self, span: DetectedSpan) -> pa.Table:
        predictions = self._predictor(span.crops)
        size = self._predictor.checkpoint.input_size
        landmarks = to_frame(predictions.landmarks, span.crop_boxes, size)
        return span_rows(span, predictions, landmarks, self._schema)


@dataclass(frozen=True)
class _FrameFaces:
    """One frame with its chosen faces, their crops' boxes in the frame, and the crops."""

    frame_index: int
    time: float
    faces: Faces
    boxes: NDArray[np.float32]
    crops: NDArray[np.uint8]


def _joined(arrays: list[NDArray[Any]], empty: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    return np.concatenate([np.zeros(empty, dtype), *arrays], dtype=dtype)

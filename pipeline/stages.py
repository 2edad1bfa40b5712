"""The two stages of a span: frames to faces (decoded on the CPU), faces to rows (the network)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from emopipe.emonet.checkpoint import Checkpoint
from emopipe.emonet.model import EmoNet
from emopipe.emonet.predictor import Predictions, Predictor, concatenated
from emopipe.pipeline.faces.align import crop_boxes, cut, sharpness, to_frame
from emopipe.pipeline.faces.appearance import DIMENSIONS, appearances
from emopipe.pipeline.faces.base import Faces
from emopipe.pipeline.faces.detectors import load_detector
from emopipe.pipeline.faces.following import Follower
from emopipe.pipeline.faces.pose import head_poses
from emopipe.pipeline.faces.quality import SeenFaces, usable
from emopipe.pipeline.faces.selection import select
from emopipe.pipeline.media.cuts import THUMBNAIL, thumbnail
from emopipe.pipeline.media.decoder import DecodeError, Decoder, Frames
from emopipe.pipeline.media.readers import other_backend
from emopipe.pipeline.media.sampling import SPAN_FRAMES
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import MAX_ATTEMPTS, FailedSpan
from emopipe.pipeline.settings import Settings, compute_of
from emopipe.pipeline.table.schema import DetectedSpan, span_rows, with_clues

DETECTION_BATCH = 16
"""Frames of one call of the detector: a finished span is not held back by frames after it."""


@dataclass(frozen=True)
class FrameFaces:
    """One frame's selected faces, on their way into a span.

    Attributes:
        index: the frame's rank in the video.
        time: its presentation time in s.
        faces: n faces.
        boxes: (n, 4) float32, where their crops lie, in pixels of the frame.
        crops: (n, size, size, 3) uint8 RGB.
        appearances: (n, 16) float32, see `pipeline.faces.appearance`.
        thumbnail: (16, 16, 3) uint8 RGB of the frame.
        predictions: for the crops; None where the network has not run yet.
    """

    index: int
    time: float
    faces: Faces
    boxes: NDArray[np.float32]
    crops: NDArray[np.uint8]
    appearances: NDArray[np.float32]
    thumbnail: NDArray[np.uint8]
    predictions: Predictions | None = None


class FaceStage:
    """Decodes, detects and aligns.

    Args:
        settings: of the analysis.
        checkpoint: the network's: how it wants its crops.
        decoder: decodes.
        predictor: the network, by whose landmarks faces are followed between detections; not
            needed if every frame is detected.

    Raises:
        EmopipeError: the detector's weights cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        checkpoint: Checkpoint,
        decoder: Decoder,
        predictor: Predictor | None = None,
    ) -> None:
        self._decoder = decoder
        self._settings = settings
        self._detector = load_detector(
            settings.detector,
            weights=settings.detector_weights,
            long_side=settings.detect_size,
            min_score=settings.selection.min_score,
            compute=compute_of(settings),
        )
        self._crop = checkpoint.crop
        self._size = checkpoint.input_size
        if settings.detect_every > 1 and predictor is None:
            raise ValueError("`detect_every` above 1 needs the network")
        self._predictor = predictor
        self._stopping = Event()

    def stop(self) -> None:
        """Have a thread that takes spans end soon, without those it has not finished."""
        self._stopping.set()
        self._decoder.interrupt()

    def spans(
        self, video: Video, wanted: Mapping[int, NDArray[np.int64]]
    ) -> Iterator[DetectedSpan | FailedSpan]:
        """Yield a video's spans in order, each once it is complete or all attempts have failed.

        Frames that the decoder could not deliver are not in their span.

        Args:
            video: the video, or the slice of it that holds the wanted frames.
            wanted: span index to frame indices, ascending.

        Raises:
            DecodeError: of kind "backend": the video's backend cannot decode it correctly where
                another may, and nothing of the video is to be kept.
        """
        pending = dict(wanted)
        attempts = 0
        while pending and not self._stopping.is_set():
            first = next(iter(pending))
            # After a failure one span at a time: with a child that dies, frames are lost that it
            # had not handed over yet, and these may be of spans before the one that kills it.
            attempted = {first: pending[first]} if attempts else dict(pending)
            try:
                for found in self._attempt(video, attempted):
                    del pending[found.span]
                    yield found
                attempts = 0
            except Exception as problem:
                if self._stopping.is_set():
                    return
                if isinstance(problem, DecodeError) and problem.kind == "backend":
                    raise
                attempts = attempts + 1 if first in pending else 1
                if attempts == MAX_ATTEMPTS:
                    attempts = 0
                    if isinstance(problem, DecodeError) and (hint := other_backend(video.backend)):
                        raise DecodeError(f"{problem} {hint}", "backend") from problem
                    span = next(iter(pending))
                    del pending[span]
                    yield FailedSpan(video.name, span, str(problem) or repr(problem))

    def _attempt(
        self, video: Video, wanted: Mapping[int, NDArray[np.int64]]
    ) -> Iterator[DetectedSpan]:
        """Yield spans until something breaks."""
        collected: list[FrameFaces] = []
        waiting = list(wanted)
        find = self._detect if self._settings.detect_every == 1 else self._following(wanted)
        for frames in self._decoder.frames(video, np.concatenate(list(wanted.values()))):
            if self._stopping.is_set():
                return
            for frame in find(frames):
                while frame.index > wanted[waiting[0]][-1]:  # its last frames are damaged
                    yield detected_span(video, waiting.pop(0), collected, self._size)
                    collected = []
                collected.append(frame)
                if frame.index == wanted[waiting[0]][-1]:
                    yield detected_span(video, waiting.pop(0), collected, self._size)
                    collected = []
        for span in waiting:
            yield detected_span(video, span, collected, self._size)
            collected = []

    def _detect(self, frames: Frames) -> Iterator[FrameFaces]:
        """Detect, select and crop the faces of some frames."""
        for first in range(0, len(frames.images), DETECTION_BATCH):
            if self._stopping.is_set():
                return
            batch = slice(first, first + DETECTION_BATCH)
            images = list(frames.images[batch])
            indices, times = frames.frame_indices[batch].tolist(), frames.times[batch].tolist()
            detected = self._detector.detect(images)
            for index, time, image, every in zip(indices, times, images, detected, strict=True):
                faces = select(every, self._settings.selection)
                boxes = crop_boxes(
                    faces, self._detector.calibration, self._crop, self._settings.crop
                )
                yield FrameFaces(
                    index,
                    time,
                    faces,
                    boxes,
                    cut(image, boxes, self._size),
                    appearances(image, faces, self._detector.calibration),
                    thumbnail(image),
                )

    def _following(
        self, wanted: Mapping[int, NDArray[np.int64]]
    ) -> Callable[[Frames], Iterator[FrameFaces]]:
        """What finds faces on consecutive frames, and detects anew where each span begins."""
        assert self._predictor
        every = self._settings.detect_every
        planned = np.concatenate(list(wanted.values()))
        # Of a damaged frame the next one takes the part: what is found does not depend on where a
        # run begins.
        periods = np.concatenate(
            [
                span * SPAN_FRAMES + np.arange(len(indices)) // every
                for span, indices in wanted.items()
            ]
        )
        follower = Follower(
            self._detector, self._predictor, self._settings.selection, self._settings.crop
        )

        def find(frames: Frames) -> Iterator[FrameFaces]:
            indices, times = frames.frame_indices, frames.times.tolist()
            found = follower.find(
                list(frames.images), times, periods[np.searchsorted(planned, indices)]
            )
            for index, time, image, one in zip(
                indices.tolist(), times, frames.images, found, strict=True
            ):
                yield FrameFaces(
                    index,
                    time,
                    one.faces,
                    one.crop_boxes,
                    one.crops,
                    appearances(image, one.faces, self._detector.calibration),
                    thumbnail(image),
                    one.predictions,
                )

        return find


class EmotionStage:
    """Runs the network on a span's crops and lays out its rows.

    Args:
        predictor: the network.
        schema: of the results.
        detector: name of the detector that finds the faces.
    """

    def __init__(self, predictor: Predictor, schema: pa.Schema, detector: str) -> None:
        self._predictor = predictor
        self._detector = detector
        self._schema = schema

    def rows(self, span: DetectedSpan) -> pa.Table | FailedSpan:
        """Return the span's rows, or why all attempts failed."""
        problem = ""
        for _ in range(MAX_ATTEMPTS):
            try:
                return self._rows(span)
            except Exception as error:
                problem = str(error) or repr(error)
        return FailedSpan(span.video, span.span, problem)

    def _rows(self, span: DetectedSpan) -> pa.Table:
        predictions = span.predictions or self._predictor(span.crops)
        size = self._predictor.checkpoint.input_size
        landmarks = to_frame(predictions.landmarks, span.crop_boxes, size)
        return with_clues(
            measured_rows(span, predictions, landmarks, self._schema, self._detector), span
        )


def measured_rows(
    span: DetectedSpan,
    predictions: Predictions,
    landmarks: NDArray[np.float32],
    schema: pa.Schema,
    detector: str,
) -> pa.Table:
    """A span's rows, with the heads' pose and whether the faces are usable.

    Args:
        span: frames and faces.
        predictions: for the span's crops.
        landmarks: (n, 68, 2) float32 in pixels of the frame.
        schema: of the results.
        detector: name of the detector that found the faces.
    """
    poses = head_poses(landmarks)
    seen = SeenFaces(
        boxes=span.boxes,
        scores=span.scores,
        crops=span.crops,
        crop_boxes=span.crop_boxes,
        sharpness=span.sharpness,
        landmarks=landmarks,
        landmark_score=predictions.landmark_score,
        poses=poses,
        frame_size=span.frame_size,
    )
    flags = usable(seen, detector=detector)
    return span_rows(span, predictions, landmarks, schema, poses.angles, flags)


def detected_span(video: Video, span: int, frames: Sequence[FrameFaces], size: int) -> DetectedSpan:
    """Join the frames of a span.

    Args:
        video: the video.
        span: index of the span in the video.
        frames: in order; may be empty.
        size: side of the crops, pixels.
    """
    counts = [len(one.faces.scores) for one in frames]
    boxes = _joined([one.faces.boxes for one in frames], (0, 4), np.float32)
    crops = _joined([one.crops for one in frames], (0, size, size, 3), np.uint8)
    crop_boxes = _joined([one.boxes for one in frames], (0, 4), np.float32)
    predictions = [one.predictions for one in frames if one.predictions]
    return DetectedSpan(
        video=video.name,
        span=span,
        frame_indices=np.array([one.index for one in frames], np.int32),
        times=np.array([one.time for one in frames], np.float64),
        frame=np.repeat(np.arange(len(frames)), counts),
        face=_joined([np.arange(count) for count in counts], (0,), np.int16),
        boxes=boxes,
        scores=_joined([one.faces.scores for one in frames], (0,), np.float32),
        crops=crops,
        crop_boxes=crop_boxes,
        sharpness=sharpness(crops, crop_boxes, boxes),
        appearances=_joined([one.appearances for one in frames], (0, DIMENSIONS), np.float32),
        thumbnails=_joined([one.thumbnail[None] for one in frames], (0, *THUMBNAIL), np.uint8),
        frame_size=(video.width, video.height),
        predictions=concatenated(predictions) if predictions else None,
    )


def load_predictor(settings: Settings, model: EmoNet, checkpoint: Checkpoint) -> Predictor:
    """The network as the settings want it computed.

    Args:
        settings: as `resolved` returned them.
        model: the network; it is moved to the device and converted in place.
        checkpoint: describes it.
    """
    return Predictor(
        model,
        checkpoint,
        device=settings.device,
        precision=settings.precision,
        faces_per_batch=settings.faces_per_batch,
        runtime=settings.runtime,
        threads=settings.threads,
        mirror=settings.mirror,
    )


def _joined(arrays: list[NDArray[Any]], empty: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    return np.concatenate([np.zeros(empty, dtype), *arrays], dtype=dtype)

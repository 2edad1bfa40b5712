"""Each stage of an analysis alone, in this process, and the plain loop to compare with."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count, cycle, islice
from pathlib import Path

import av
import av.error
import numpy as np
import torch
from numpy.typing import NDArray

from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.landmarks import decode_heatmaps
from emopipe.emonet.predictor import Predictions, Predictor
from emopipe.emonet.roofline import counted_flop
from emopipe.emonet.runtime import Compute
from emopipe.pipeline.faces.align import crop_boxes, cut, sharpness, to_frame
from emopipe.pipeline.faces.appearance import appearances
from emopipe.pipeline.faces.base import Detector, Faces
from emopipe.pipeline.faces.centerface import flop_per_image
from emopipe.pipeline.faces.detectors import (
    SMALLEST_LONG_SIDE,
    device_of,
    load_detector,
    resized_sides,
    weights_files,
)
from emopipe.pipeline.faces.selection import Selection, select
from emopipe.pipeline.media.cuts import thumbnail
from emopipe.pipeline.media.decoder import Decoder, Frames
from emopipe.pipeline.media.sampling import spans_of
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import transforms_of
from emopipe.pipeline.settings import Settings, compute_of, describe
from emopipe.pipeline.stages import DETECTION_BATCH, FrameFaces, detected_span, measured_rows
from emopipe.pipeline.table.schema import DetectedSpan, with_clues
from emopipe.pipeline.table.store import open_store, part_key

STAGES = ("decode", "detect", "align", "network", "write")

SAMPLE_SPANS = 5
SAMPLE_BYTES = 2**28
"""Detection to writing are measured on so many spans, spread over the video; on fewer where their
frames would take more memory than this, but on one."""

Step = tuple[int, int]
"""Frames and faces that a piece of work dealt with."""


class BenchError(EmopipeError):
    """A video that nothing can be measured on."""


@dataclass(frozen=True)
class Speed:
    """Work and the time it took.

    Attributes:
        frames: dealt with; more than 0.
        faces: on these frames.
        seconds: for all of them.
    """

    frames: int
    faces: int
    seconds: float

    @property
    def seconds_per_frame(self) -> float:
        """Time that a frame takes."""
        return self.seconds / self.frames

    @property
    def frames_per_second(self) -> float:
        """Frames dealt with in a second."""
        return self.frames / self.seconds

    @property
    def faces_per_second(self) -> float:
        """Faces dealt with in a second."""
        return self.faces / self.seconds


class Stages:
    """The stages of one analysis, each with its work at hand.

    Args:
        settings: as `resolved` returned them.
        predictor: the network.
        decoder: decodes.
        video: what is analyzed.
        wanted: (n,) its sampled frames, ascending; more than a span.
        out: a results file that may be written, again and again.

    Raises:
        BenchError: none of the chosen frames can be decoded.
        EmopipeError: the detector's weights cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        predictor: Predictor,
        decoder: Decoder,
        video: Video,
        wanted: NDArray[np.int64],
        out: Path,
    ) -> None:
        self._settings = settings
        self._predictor = predictor
        self._decoder = decoder
        self._video = video
        self._wanted = wanted
        self._out = out
        self._detector = _detector(settings, compute_of(settings))
        self._frames = list(self._sample())
        if not self._frames:
            raise BenchError(f"{video.path}: the frames to measure on are damaged, use another")
        self._faces = [list(self._found(frames)) for frames in self._frames]
        self._spans = list(map(self._span, self._frames, self._faces))
        self._predictions = [predictor(span.crops) for span in self._spans]

    @property
    def faces_per_frame(self) -> float:
        """How many faces the sampled frames show on average."""
        frames = sum(len(span.frame_indices) for span in self._spans)
        return sum(len(span.crops) for span in self._spans) / frames

    def detector_flop_per_frame(self) -> int | None:
        """FLOP that the detector's network takes for a frame; None for one that is not PyTorch's.

        CenterFace is counted in PyTorch, whatever computes it for the results.
        """
        image, settings = self._frames[0].images[0], self._settings
        if settings.detector != "centerface":
            return counted_flop(lambda: self._detector.detect([image])) or None
        (path,) = weights_files(settings.detector, settings.detector_weights).values()
        height, width, _ = image.shape
        sides = resized_sides(height, width, SMALLEST_LONG_SIDE, settings.detect_size)
        try:
            return flop_per_image(path, *sides)
        except ValueError:  # OpenCV and OpenVINO run other networks too
            return None

    def measure(self, stage: str, seconds: float) -> Speed | None:
        """Measure one stage.

        Args:
            stage: one of `STAGES`.
            seconds: for so long at least.

        Returns:
            None for a stage that works on faces, where no sampled frame shows one.
        """
        if stage in ("align", "network") and not self.faces_per_frame:
            return None
        work: dict[str, Callable[[], Iterator[Step]]] = {
            "decode": self._decode,
            "detect": self._detect,
            "align": self._align,
            "network": self._network,
            "write": self._write,
        }
        return _speed(work[stage], seconds)

    def _decode(self) -> Iterator[Step]:
        for frames in self._decoder.frames(self._video, self._wanted):
            n = len(frames.images)
            yield n, round(n * self.faces_per_frame)

    def _detect(self) -> Iterator[Step]:
        for frames in self._frames:
            for first in range(0, len(frames.images), DETECTION_BATCH):
                found = self._detector.detect(list(frames.images[first : first + DETECTION_BATCH]))
                yield len(found), sum(map(len, found))

    def _align(self) -> Iterator[Step]:
        for frames, faces in zip(self._frames, self._faces, strict=True):
            boxes, crops = self._aligned(frames, faces)
            sharpness(crops, boxes, np.concatenate([one.boxes for one in faces]))
            self._appearances(frames, faces)
            yield len(faces), len(crops)

    def _network(self) -> Iterator[Step]:
        for span in self._spans:
            self._predictor(span.crops)
            yield len(span.frame_indices), len(span.crops)

    def _write(self) -> Iterator[Step]:
        """Write the whole video, from its rows to the results in place, as one step."""
        checkpoint, key = self._predictor.checkpoint, part_key(self._video)
        description = describe(self._settings, checkpoint)
        frames, faces = [], 0
        with open_store(
            self._out,
            description,
            checkpoint.classes,
            self._settings.landmarks,
            overwrite=True,
            transforms=transforms_of(self._settings),
        ) as store:
            for number, span, predictions in self._whole_video():
                points = to_frame(predictions.landmarks, span.crop_boxes, checkpoint.input_size)
                rows = measured_rows(
                    span, predictions, points, store.schema, self._settings.detector
                )
                store.write(key, number, with_clues(rows, span))
                frames.append(span.frame_indices)
                faces += len(span.crops)
            wanted = np.concatenate(frames).astype(np.int64)
            store.commit(self._video, wanted)
            store.finish()
        yield len(wanted), faces

    def _whole_video(self) -> Iterator[tuple[int, DetectedSpan, Predictions]]:
        """Yield as many spans as the video has, the sampled ones over and over."""
        sampled = cycle(zip(self._spans, self._predictions, strict=True))
        for number, indices in spans_of(self._wanted).items():
            span, predictions = next(sampled)
            taken = indices[: len(span.times)].astype(np.int32)
            if len(taken) == len(span.times):  # the video's last span may be shorter
                times = self._video.times[taken]
                yield number, replace(span, frame_indices=taken, times=times), predictions

    def _sample(self) -> Iterator[Frames]:
        """Decode spans that are spread over the video, and copy their frames."""
        *spans, _ = spans_of(self._wanted).values()  # the last one may be shorter
        span_bytes = len(spans[0]) * self._video.height * self._video.width * 3
        n = min(max(1, SAMPLE_BYTES // span_bytes), SAMPLE_SPANS, len(spans))
        for place in np.linspace(0, len(spans) - 1, n).round().astype(int):
            parts = [
                (frames.frame_indices, frames.times, frames.images.copy())
                for frames in self._decoder.frames(self._video, spans[place])
            ]
            if parts:
                yield Frames(*map(np.concatenate, zip(*parts, strict=True)))

    def _found(self, frames: Frames) -> Iterator[Faces]:
        for first in range(0, len(frames.images), DETECTION_BATCH):
            images = list(frames.images[first : first + DETECTION_BATCH])
            for faces in self._detector.detect(images):
                yield select(faces, self._settings.selection)

    def _aligned(
        self, frames: Frames, faces: list[Faces]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Boxes of crops (n, 4), and crops (n, size, size, 3), of all the frames' faces."""
        checkpoint, mode = self._predictor.checkpoint, self._settings.crop
        calibration = self._detector.calibration
        boxes = [crop_boxes(one, calibration, checkpoint.crop, mode) for one in faces]
        crops = [
            cut(image, some, checkpoint.input_size)
            for image, some in zip(frames.images, boxes, strict=True)
        ]
        return np.concatenate(boxes), np.concatenate(crops)

    def _appearances(self, frames: Frames, faces: list[Faces]) -> list[NDArray[np.float32]]:
        calibration = self._detector.calibration
        return [
            appearances(image, one, calibration)
            for image, one in zip(frames.images, faces, strict=True)
        ]

    def _span(self, frames: Frames, faces: list[Faces]) -> DetectedSpan:
        boxes, crops = self._aligned(frames, faces)
        ends = np.cumsum([len(one) for one in faces])[:-1]
        joined = zip(
            frames.frame_indices.tolist(),
            frames.times.tolist(),
            faces,
            np.split(boxes, ends),
            np.split(crops, ends),
            self._appearances(frames, faces),
            map(thumbnail, frames.images),
            strict=True,
        )
        size = self._predictor.checkpoint.input_size
        return detected_span(self._video, 0, [FrameFaces(*one) for one in joined], size)


def detector_runs(settings: Settings) -> tuple[str, str]:
    """Device and precision of the detector: it shares the network's only where it can.

    Args:
        settings: as `resolved` returned them.
    """
    compute = compute_of(settings)
    device = device_of(settings.detector, compute.device)
    # On a CPU all but CenterFace on OpenVINO is float32, whatever the network is in.
    on_openvino = settings.detector == "centerface" and compute.runtime == "openvino"
    return device, "float32" if device == "cpu" and not on_openvino else compute.precision


def measure_plain_loop(settings: Settings, path: Path, seconds: float) -> Speed:
    """Measure what the published demo does: one frame, its largest face, in float32, no batches.

    Toisoul et al., "Estimation of continuous valence and arousal levels from faces in naturalistic
    conditions", Nature Machine Intelligence 3, 42-50 (2021). Detector, network and device are the
    settings'; on a CPU they run on OpenCV and PyTorch. Nothing is written.

    Args:
        settings: as `resolved` returned them.
        path: the video.
        seconds: for so long at least.

    Raises:
        BenchError: PyAV's own loop cannot decode the video.
    """
    network, checkpoint = open_model(settings.model, settings.classes)
    device = torch.device(settings.device)
    network.to(device)
    compute = Compute("torch", "float32", settings.threads, settings.device)
    detector = _detector(settings, compute)

    @torch.inference_mode()
    def predict(crops: NDArray[np.uint8]) -> None:
        x = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float() / 255
        output = network(x)
        points, _ = decode_heatmaps(output.heatmaps)
        for tensor in (output.logits.softmax(dim=1), output.valence, output.arousal, points):
            tensor.cpu()

    def loop() -> Iterator[Step]:
        frame = None
        with av.open(f"file:{path}") as container:
            for frame in container.decode(video=0):
                image: NDArray[np.uint8] = np.asarray(frame.to_ndarray(format="rgb24"))
                [found] = detector.detect([image])
                face = select(found, Selection(faces="largest"))
                if len(face):
                    box = crop_boxes(face, detector.calibration, checkpoint.crop)
                    predict(cut(image, box, checkpoint.input_size))
                yield 1, len(face)
        if frame is None:
            raise BenchError(f"{path}: no frame can be decoded, use another")

    frames = chain.from_iterable(loop() for _ in count())
    try:
        return _speed(lambda: islice(frames, 1), seconds)
    except av.error.FFmpegError as error:
        raise BenchError(f"{path} is damaged ({error}): use another") from error


def _detector(settings: Settings, compute: Compute) -> Detector:
    return load_detector(
        settings.detector,
        weights=settings.detector_weights,
        long_side=settings.detect_size,
        min_score=settings.selection.min_score,
        compute=compute,
    )


def _speed(work: Callable[[], Iterator[Step]], seconds: float) -> Speed:
    """Measure rounds of work, whole ones, for so long at least; a first step is not counted."""
    next(work())
    frames, faces, passed = 0, 0, 0.0
    begun = time.perf_counter()
    while passed < seconds:
        for more_frames, more_faces in work():
            frames, faces = frames + more_frames, faces + more_faces
        passed = time.perf_counter() - begun
    return Speed(frames, faces, passed)

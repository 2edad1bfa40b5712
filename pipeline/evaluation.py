"""Evaluation on labelled image files and of results on annotated videos."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from emopipe.emonet.checkpoint import CropSpec
from emopipe.emonet.evaluation import (
    VIEWS,
    ImageReport,
    VideoReport,
    expected_classes,
    score_labels,
)
from emopipe.emonet.metrics import DimensionScores, ExpressionScores, score_dimension
from emopipe.emonet.predictor import Predictions, Predictor, concatenated
from emopipe.emonet.registry import valence_arousal_note
from emopipe.pipeline.annotations import AnnotationError, LabelledImages
from emopipe.pipeline.faces.align import crop_boxes, cut
from emopipe.pipeline.faces.base import BoxToLandmarks, Detector, Faces
from emopipe.pipeline.faces.detectors import load_detector
from emopipe.pipeline.settings import DEFAULT_DETECTOR
from emopipe.pipeline.table.in_memory import Results

_DIMENSIONS = ("valence", "arousal")
_LANDMARKS_ARE_THE_BOX = BoxToLandmarks(shift=(0.0, 0.0), scale=1.0)
_IMAGES_AT_A_TIME = 256
_SHOWN = 5

FAR_BEYOND = 2
"""Annotated up to this many times the video's length, and a second more, times may be seconds: the
clocks of annotation tools run on. Beyond it they are not: frame numbers lie 24 times as far and
more, milliseconds 1,000 times."""

FEW_FRAMES = 0.5
"""A note names the videos of which a smaller share of the frames with a face is annotated."""


def predict_images(
    predictor: Predictor, images: LabelledImages
) -> tuple[NDArray[np.int64], Predictions, tuple[str, ...]]:
    """Predict from labelled images, each cropped as the checkpoint needs it.

    The crop is placed by the landmarks, else by the given box (as if it were the default
    detector's), else by the face to which the default detector gives the highest score.

    Args:
        predictor: the network.
        images: what to predict from.

    Returns:
        Indices of the m images that could be used, (m,); the predictions for them; and sentences
        about the others.

    Raises:
        AnnotationError: no image could be used.
    """
    checkpoint = predictor.checkpoint
    cutter = _Cutter(images, checkpoint.crop, checkpoint.input_size)
    parts: list[Predictions] = []
    used: list[int] = []
    for indices, crops in _batches(cutter, len(images.paths)):
        used += indices
        parts.append(predictor(crops))
    if not parts:
        raise AnnotationError(f"no image could be used: {'; '.join(cutter.problems[:_SHOWN])}")
    return np.array(used, np.int64), concatenated(parts), tuple(cutter.problems)


def evaluate_images(predictor: Predictor, images: LabelledImages) -> ImageReport:
    """Score a network on labelled images, plain and averaged with the mirror images.

    Args:
        predictor: the network.
        images: the images with their labels.

    Raises:
        AnnotationError: no image could be used.
        EvaluationError: network and labels have no class in common.
    """
    model_classes = predictor.checkpoint.classes
    classes = expected_classes(images.expression, model_classes)
    expressions: dict[str, ExpressionScores] = {}
    dimensions: dict[str, DimensionScores] = {}
    for view, mirror in VIEWS.items():
        used, predictions, problems = predict_images(predictor.with_mirror(mirror), images)
        labels = images.expression[used], images.dimensions[used]
        scores, rated, unmatched = score_labels(predictions, model_classes, classes, *labels)
        if scores is not None:
            expressions[view] = scores
        dimensions.update({f"{name}, {view}": one for name, one in rated.items()})
    return ImageReport(
        images=len(used),
        given=len(images.paths),
        classes=classes,
        notes=(*problems, *unmatched, *_about(predictor.checkpoint.valence_arousal, dimensions)),
        expressions=expressions,
        dimensions=dimensions,
    )


def join_continuous(
    results: Results, annotation: pd.DataFrame
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Join each frame's first face with the annotation that is nearest in time.

    The annotation must be within half of the usual interval between annotations, so that frames
    outside of the annotated time do not count.

    Args:
        results: of `analyze`.
        annotation: see `read_continuous`.

    Returns:
        Columns video, time, valence, arousal (both predicted), valence_annotated and
        arousal_annotated; and sentences about videos that one side lacks, and about those of which
        few frames are annotated.

    Raises:
        AnnotationError: nothing can be joined, or the annotation's times are no seconds.
    """
    beyond = _annotated_far_beyond(results, annotation)
    rows = results.rows.loc[results.rows["face"] == 0, ["video", "time", *_DIMENSIONS]]
    rows = rows.astype({"video": str}).sort_values("time")
    joined = {
        str(video): _join(predicted, annotated)
        for video, predicted in rows.groupby("video")
        if len(annotated := annotation[annotation["video"] == video])
    }
    table = pd.concat(joined.values()) if joined else pd.DataFrame()
    there, wanted = set(rows["video"]), set(annotation["video"])
    if not len(table):
        raise AnnotationError(
            "no annotated time has a face beside it: the results have the videos "
            f"{_few(there)}, the annotation {_few(wanted)}"
        )
    faces = rows["video"].value_counts()
    sparse = {
        f"{video} ({len(matched):,} of {faces[video]:,})"
        for video, matched in joined.items()
        if len(matched) < FEW_FRAMES * faces[video]
    }
    notes = {
        "annotated, but without a face in the results": wanted - there,
        "in the results, but not annotated": there - wanted,
        "few of the frames with a face have an annotated time beside them": sparse,
        "annotated far beyond the last analyzed frame, as if `time` were no seconds": beyond,
    }
    return table, tuple(f"{note}: {_few(videos)}" for note, videos in notes.items() if videos)


def evaluate_continuous(results: Results, annotation: pd.DataFrame) -> VideoReport:
    """Score results on continuously annotated videos, each video and all together.

    Args:
        results: of `analyze`.
        annotation: see `read_continuous`.

    Raises:
        AnnotationError: no annotation belongs to a frame of the results.
    """
    joined, notes = join_continuous(results, annotation)
    videos = {str(video): rows for video, rows in joined.groupby("video")}
    scores = {
        f"{video}: {name}": score_dimension(
            rows[name].to_numpy(float), rows[f"{name}_annotated"].to_numpy(float)
        )
        for video, rows in {**videos, "all videos": joined}.items()
        for name in _DIMENSIONS
    }
    learnt_from = results.settings.get("checkpoint", {}).get("valence_arousal", "")
    return VideoReport((*notes, *_about(learnt_from, scores)), scores)


def _about(learnt_from: str, scores: dict[str, DimensionScores]) -> tuple[str, ...]:
    """What to know when reading the scores of valence and arousal, if there are any.

    Args:
        learnt_from: what they were learnt from, as the checkpoint says it.
        scores: of valence and arousal.
    """
    note = valence_arousal_note(learnt_from)
    return (note,) if note and scores else ()


class _Cutter:
    """Cuts crops out of images, collecting problems."""

    def __init__(self, images: LabelledImages, crop: CropSpec, size: int) -> None:
        self.problems: list[str] = []
        self._images = images
        self._crop = crop
        self._size = size
        self._detector: Detector | None = None

    def cut(self, index: int) -> NDArray[np.uint8] | None:
        """The crop of an image, (size, size, 3) uint8 RGB; None if there is a problem."""
        path = self._images.paths[index]
        try:
            with Image.open(path) as opened:
                image = np.asarray(opened.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            self.problems.append(f"{path} cannot be read ({error})")
            return None
        faces, calibration = self._face(image, self._images.boxes[index])
        if not len(faces):
            self.problems.append(f"{path}: no face was found")
            return None
        boxes = crop_boxes(faces[:1], calibration, self._crop)
        crop: NDArray[np.uint8] = cut(image, boxes, self._size)[0]
        return crop

    def _face(
        self, image: NDArray[np.uint8], box: NDArray[np.float64]
    ) -> tuple[Faces, BoxToLandmarks]:
        if np.isfinite(box).all():
            given = Faces(box[None].astype(np.float32), np.ones(1, np.float32))
            if self._images.of_landmarks:
                return given, _LANDMARKS_ARE_THE_BOX
            return given, self._loaded_detector().calibration
        detector = self._loaded_detector()
        return detector.detect([image])[0], detector.calibration

    def _loaded_detector(self) -> Detector:
        self._detector = self._detector or load_detector(DEFAULT_DETECTOR)
        return self._detector


def _batches(cutter: _Cutter, count: int) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    for first in range(0, count, _IMAGES_AT_A_TIME):
        indices = range(first, min(first + _IMAGES_AT_A_TIME, count))
        crops = {i: crop for i in indices if (crop := cutter.cut(i)) is not None}
        if crops:
            yield list(crops), np.stack(list(crops.values()))


def _annotated_far_beyond(results: Results, annotation: pd.DataFrame) -> set[str]:
    """Videos that are annotated far beyond their last analyzed frame.

    Raises:
        AnnotationError: most videos are, and they were analyzed up to their ends.
    """
    ends = results.rows.astype({"video": str}).groupby("video")["time"].max()
    annotated = annotation.groupby("video")["time"].max()
    both = pd.concat({"end": ends, "annotated": annotated}, axis="columns", join="inner")
    beyond = both[both["annotated"] > FAR_BEYOND * both["end"] + 1]
    to_the_end = results.settings.get("settings", {}).get("end") is None
    if to_the_end and 2 * len(beyond) > len(both):
        video, (end, last) = next(iter(zip(beyond.index, beyond.to_numpy(), strict=True)))
        raise AnnotationError(
            f"the column `time` is in seconds, but {video} is annotated up to {last:,g} and its "
            f"last frame is at {end:,.1f} s: divide milliseconds by 1,000, or frame numbers by the "
            "frames per second"
        )
    return set(beyond.index)


def _join(predicted: pd.DataFrame, annotated: pd.DataFrame) -> pd.DataFrame:
    """Join a video's frames with the annotation nearest in time."""
    return pd.merge_asof(
        predicted,
        annotated.sort_values("time").drop(columns="video"),
        on="time",
        direction="nearest",
        # pandas' stubs only allow dates as times.
        tolerance=_half_step(annotated["time"]),  # type: ignore[arg-type]
        suffixes=("", "_annotated"),
    ).dropna()


def _half_step(times: "pd.Series[float]") -> float:
    """Half of the median interval between annotations, s; infinite for a single one."""
    steps = times.drop_duplicates().sort_values().diff()
    return float(steps.median()) / 2 if len(steps) > 1 else float("inf")


def _few(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown or "none"

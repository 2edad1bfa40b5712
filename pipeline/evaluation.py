"""Evaluation on labelled image files and of results on annotated videos."""

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from emopipe.emonet.arguments import first_few
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
from emopipe.pipeline.table.people import PERSON

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
    """Join the faces of each annotated person with the annotation that is nearest in time.

    The annotation must be within half of the usual interval between annotations, so that frames
    outside of the annotated time do not count. Whose faces count, see `_by_subject`.

    Args:
        results: of `analyze`, with or without names of people.
        annotation: see `read_continuous`.

    Returns:
        Columns subject (the video, and who if people are named in it), time, valence, arousal (both
        predicted), valence_annotated and arousal_annotated; and sentences about subjects that one
        side lacks, and about those of which few frames are annotated.

    Raises:
        AnnotationError: nothing can be joined, the annotation's times are no seconds, or it is not
            known whom an annotation is about.
    """
    beyond = _annotated_far_beyond(results, annotation)
    rows, annotation, unnamed = _by_subject(results.rows, annotation)
    rows = rows.sort_values("time")
    joined = {
        str(subject): _join(predicted, annotated)
        for subject, predicted in rows.groupby("subject")
        if len(annotated := annotation[annotation["subject"] == subject])
    }
    table = pd.concat(joined.values()) if joined else pd.DataFrame()
    there, wanted = set(rows["subject"]), set(annotation["subject"])
    if not len(table):
        raise AnnotationError(
            "no annotated time has a face beside it: the results have the videos "
            f"{first_few(sorted(there))}, the annotation {first_few(sorted(wanted))}"
        )
    faces = rows["subject"].value_counts()
    sparse = {
        f"{subject} ({len(matched):,} of {faces[subject]:,})"
        for subject, matched in joined.items()
        if len(matched) < FEW_FRAMES * faces[subject]
    }
    notes = {
        "annotated, but without a face in the results": wanted - there,
        "in the results, but not annotated": there - wanted,
        "few of the frames with a face have an annotated time beside them": sparse,
        "nobody is named, so the first face of each frame counts": unnamed,
        "annotated far beyond the last analyzed frame, as if `time` were no seconds": beyond,
    }
    return table, tuple(
        f"{note}: {first_few(sorted(videos))}" for note, videos in notes.items() if videos
    )


def evaluate_continuous(results: Results, annotation: pd.DataFrame) -> VideoReport:
    """Score results on continuously annotated videos, each video or person and all together.

    Args:
        results: of `analyze`, with or without names of people.
        annotation: see `read_continuous`.

    Raises:
        AnnotationError: no annotation belongs to a frame of the results, or it is not known whom
            one is about.
    """
    joined, notes = join_continuous(results, annotation)
    subjects = {str(subject): rows for subject, rows in joined.groupby("subject")}
    scores = {
        f"{subject}: {name}": score_dimension(
            rows[name].to_numpy(float), rows[f"{name}_annotated"].to_numpy(float)
        )
        for subject, rows in {**subjects, "all videos": joined}.items()
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


def _by_subject(
    rows: pd.DataFrame, annotation: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, set[str]]:
    """Find out whom each annotation is about, and keep their faces.

    Where people are named in a video, their faces count: those of whom the annotation names; or, if
    it names nobody, of the only one. Where nobody is named, the first face of each frame counts.

    Args:
        rows: of the results; with a column person if people are named.
        annotation: see `read_continuous`.

    Returns:
        The rows that count and the annotation, both with a column subject: the video, followed by
        the person if people are named in it; and the annotated videos in which nobody is, where
        people are named in others.

    Raises:
        AnnotationError: a video has several named people and an annotation that does not say whose
            it is, or is annotated for several and nobody is named.
    """
    rows, annotation = rows.reset_index(drop=True), annotation.reset_index(drop=True)
    named, rated = _people_of(rows), _people_of(annotation)
    _require_clear_subjects(sorted(set(annotation["video"])), named, rated)
    with_names = rows["video"].isin(named)
    counts = rows[PERSON].notna() if named else with_names
    counts = counts | (~with_names & (rows["face"] == 0))
    unnamed = set(annotation["video"]) & set(rows["video"]) - set(named)
    only = annotation["video"].map({video: people[0] for video, people in named.items()})
    return (
        _with_subject(rows[counts], rows.get(PERSON, rows["video"]), named),
        _with_subject(annotation, annotation.get(PERSON, only), named),
        unnamed if named else set(),
    )


def _require_clear_subjects(
    videos: Iterable[str], named: Mapping[str, list[str]], rated: Mapping[str, list[str]]
) -> None:
    """Raise unless it is known whose each video's annotation is.

    Args:
        videos: the annotated ones.
        named: the people of each video that has names.
        rated: those of each video whose annotation says whose it is.
    """
    for video in videos:
        there, wanted = named.get(video, []), rated.get(video, [])
        if len(there) > 1 and not wanted:
            raise AnnotationError(
                f"{video} has {len(there)} named people ({first_few(there)}), and the annotation "
                "does not say whose it is: add a column person to it, or name only that one in "
                "`people`"
            )
        if len(wanted) > 1 and not there:
            raise AnnotationError(
                f"{video} is annotated for {len(wanted)} people ({first_few(wanted)}), and no "
                "track of it has a name: name them in `people`, a CSV of video, track, person"
            )


def _people_of(table: pd.DataFrame) -> dict[str, list[str]]:
    """The people of each video that has any."""
    if PERSON not in table:
        return {}
    pairs = table[["video", PERSON]].astype(object).dropna().drop_duplicates()
    return {str(video): sorted(people) for video, people in pairs.groupby("video")[PERSON]}


def _with_subject(table: pd.DataFrame, person: pd.Series, named: Collection[str]) -> pd.DataFrame:
    """Only what is joined, with the column subject.

    Args:
        table: rows or annotation.
        person: of each row.
        named: the videos in which people are named.
    """
    video = table["video"].astype(str)
    subject = video.where(~video.isin(named), video + ", " + person.astype(object).astype(str))
    return table[["time", *_DIMENSIONS]].assign(subject=subject)


def _join(predicted: pd.DataFrame, annotated: pd.DataFrame) -> pd.DataFrame:
    """Join a video's frames with the annotation nearest in time."""
    return pd.merge_asof(
        predicted,
        annotated.sort_values("time").drop(columns="subject"),
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

"""What people said of pictures and videos, and what the network says of the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from emopipe.emonet.checkpoint import CropSpec
from emopipe.emonet.data.fer2013 import class_named
from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.evaluation import Prediction, of_crops
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.predictor import Predictor
from emopipe.pipeline.faces.align import crop_boxes, cut
from emopipe.pipeline.faces.base import BoxToLandmarks, Detector, Faces
from emopipe.pipeline.faces.detectors import load_detector
from emopipe.pipeline.settings import DEFAULT_DETECTOR
from emopipe.pipeline.table.results import Results

NO_EXPRESSION = -1
"""Stands for the expression of a picture that has none (AffectNet's 8 to 10, or an empty cell)."""

_PATH_NAMES = ("image", "path", "file", "filename", "subdirectory_filepath")
_BOX_NAMES = (("x1", "y1", "x2", "y2"), ("face_x", "face_y", "face_width", "face_height"))
_LANDMARKS = "facial_landmarks"
_DIMENSIONS = ("valence", "arousal")
_NOT_GIVEN = (-2, -5)  # AffectNet's and Aff-Wild's sign for no annotation
_LANDMARKS_ARE_THE_BOX = BoxToLandmarks(shift=(0.0, 0.0), scale=1.0)
_PICTURES_AT_A_TIME = 256
_SHOWN = 5


class AnnotationError(EmopipeError):
    """A file of annotations that cannot be used."""


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures of a face each, as people labelled them.

    Attributes:
        paths: (n) where they lie.
        expression: (n,) int64, index into `EMOTIONS_8`, or `NO_EXPRESSION`.
        dimensions: (n, 2) float64, valence and arousal in [-1, 1]; NaN where not given.
        boxes: (n, 4) float64, x1 y1 x2 y2 in pixels; NaN where not given.
        of_landmarks: whether the boxes are the landmarks' (else a face detector's).
    """

    paths: tuple[Path, ...]
    expression: NDArray[np.int64]
    dimensions: NDArray[np.float64]
    boxes: NDArray[np.float64]
    of_landmarks: bool

    def __post_init__(self) -> None:
        n = len(self.paths)
        shapes = (self.expression.shape, self.dimensions.shape, self.boxes.shape)
        if shapes != ((n,), (n, 2), (n, 4)):
            raise ValueError(f"{n} pictures have labels of shapes {shapes}")


def read_pictures(path: Path, root: Path | None = None) -> LabelledPictures:
    """Read a CSV file of labelled pictures, as AffectNet has them.

    Columns, in any order and case: the picture's path (image, path, file, filename or
    subDirectory_filePath); expression (a name, or AffectNet's number); valence and arousal
    (empty or AffectNet's -2: none); and, if there are, facial_landmarks (x;y;x;y…) or a face
    detector's box (x1 y1 x2 y2, or face_x face_y face_width face_height), in pixels.

    Args:
        path: the CSV file.
        root: the folder that the paths begin in; the CSV file's by default.

    Raises:
        AnnotationError: it cannot be read or lacks columns, an expression is unknown, or a number
            is none or out of range.
    """
    table = _read_table(path)
    named = [name for name in _PATH_NAMES if name in table]
    rated = set(_DIMENSIONS) <= set(table)
    if not named or not (rated or "expression" in table):
        raise AnnotationError(
            f"{path} has columns {', '.join(table.columns)}: it needs the picture's path (image) "
            "and expression, or valence and arousal"
        )
    dimensions = _dimensions(table, path) if rated else np.full((len(table), 2), np.nan)
    expressions = table["expression"] if "expression" in table else [""] * len(table)
    return LabelledPictures(
        paths=tuple((root or path.parent) / str(name) for name in table[named[0]]),
        expression=np.array([_expression(value, path) for value in expressions], np.int64),
        dimensions=dimensions,
        boxes=_boxes(table, path),
        of_landmarks=_LANDMARKS in table,
    )


def predict_pictures(
    predictor: Predictor, pictures: LabelledPictures, *, mirror: bool
) -> tuple[NDArray[np.int64], Prediction, tuple[str, ...]]:
    """Predict from labelled pictures, each cropped as the checkpoint wants it.

    The crop is laid around the landmarks, else around the given box (taken for that of the default
    detector), else around the face that the default detector is surest of.

    Args:
        predictor: the network.
        pictures: what to predict from.
        mirror: whether to average over each crop and its mirror image.

    Returns:
        Indices of the pictures that could be predicted from, what the network says of these, and
        sentences about the others.

    Raises:
        AnnotationError: that is true of none of them.
    """
    checkpoint = predictor.checkpoint
    cutter = _Cutter(pictures, checkpoint.crop, checkpoint.input_size)
    parts: list[Prediction] = []
    done: list[int] = []
    for indices, crops in _batches(cutter, len(pictures.paths)):
        done += indices
        parts.append(of_crops(predictor, crops, mirror=mirror))
    if not parts:
        raise AnnotationError(f"no picture could be used: {'; '.join(cutter.problems[:_SHOWN])}")
    said = Prediction(
        probabilities=np.concatenate([part.probabilities for part in parts]),
        valence=np.concatenate([part.valence for part in parts]),
        arousal=np.concatenate([part.arousal for part in parts]),
    )
    return np.array(done, np.int64), said, tuple(cutter.problems)


def read_continuous(path: Path) -> pd.DataFrame:
    """Read a CSV file of continuous annotations of videos.

    Returns:
        Columns video (as results name it), time (s), valence, arousal; NaN where these are not
        given (empty, or Aff-Wild's -5).

    Raises:
        AnnotationError: it cannot be read, lacks a column or a time, or a number is none or out of
            range.
    """
    table = _read_table(path)
    needed = ["video", "time", *_DIMENSIONS]
    if missing := [name for name in needed if name not in table]:
        raise AnnotationError(f"{path} has no column {' and no column '.join(missing)}")
    times = _numbers(table, ("time",), path)[:, 0]
    if np.isnan(times).any():
        raise AnnotationError(f"{path} has rows without a time: give each its seconds")
    dimensions = _dimensions(table, path)
    return pd.DataFrame(
        {
            "video": table["video"].astype(str),
            "time": times,
            "valence": dimensions[:, 0],
            "arousal": dimensions[:, 1],
        }
    )


def join_continuous(
    results: Results, annotation: pd.DataFrame
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Put beside each annotated frame's surest face what people said at the nearest time.

    Nearest is within half of the annotation's usual step, so that no frame outside of it counts.

    Args:
        results: of `analyze`.
        annotation: as `read_continuous` gives it.

    Returns:
        Columns video, time, valence, arousal (the network's), valence_annotated and
        arousal_annotated; and sentences about videos that one side lacks.

    Raises:
        AnnotationError: nothing can be joined.
    """
    rows = results.rows.loc[results.rows["face"] == 0, ["video", "time", *_DIMENSIONS]]
    rows = rows.astype({"video": str}).sort_values("time")
    joined = [
        pd.merge_asof(
            mine,
            said.sort_values("time").drop(columns="video"),
            on="time",
            direction="nearest",
            # pandas' stubs know of times as dates only.
            tolerance=_half_step(said["time"]),  # type: ignore[arg-type]
            suffixes=("", "_annotated"),
        ).dropna()
        for video, mine in rows.groupby("video")
        if len(said := annotation[annotation["video"] == video])
    ]
    whole = pd.concat(joined) if joined else pd.DataFrame()
    there, wanted = set(rows["video"]), set(annotation["video"])
    if not len(whole):
        raise AnnotationError(
            "no annotated time has a face beside it: the results have the videos "
            f"{_few(there)}, the annotation {_few(wanted)}"
        )
    notes = []
    if missing := wanted - there:
        notes.append(f"annotated, but without a face in the results: {_few(missing)}")
    if missing := there - wanted:
        notes.append(f"in the results, but not annotated: {_few(missing)}")
    return whole, tuple(notes)


class _Cutter:
    """Cuts the crop of one picture after the other, collecting what goes wrong."""

    def __init__(self, pictures: LabelledPictures, crop: CropSpec, size: int) -> None:
        self.problems: list[str] = []
        self._pictures = pictures
        self._crop = crop
        self._size = size
        self._detector: Detector | None = None

    def cut(self, index: int) -> NDArray[np.uint8] | None:
        """The picture's crop (size, size, 3), or None and a problem more."""
        path = self._pictures.paths[index]
        try:
            with Image.open(path) as opened:
                image = np.asarray(opened.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            self.problems.append(f"{path} cannot be read ({error})")
            return None
        faces, calibration = self._face(image, self._pictures.boxes[index])
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
            if self._pictures.of_landmarks:
                return given, _LANDMARKS_ARE_THE_BOX
            return given, self._ready_detector().calibration
        detector = self._ready_detector()
        return detector.detect([image])[0], detector.calibration

    def _ready_detector(self) -> Detector:
        self._detector = self._detector or load_detector(DEFAULT_DETECTOR)
        return self._detector


def _batches(cutter: _Cutter, count: int) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    for first in range(0, count, _PICTURES_AT_A_TIME):
        indices = range(first, min(first + _PICTURES_AT_A_TIME, count))
        crops = {i: crop for i in indices if (crop := cutter.cut(i)) is not None}
        if crops:
            yield list(crops), np.stack(list(crops.values()))


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, skipinitialspace=True)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise AnnotationError(f"{path} cannot be read as CSV: {error}") from error
    return table.rename(columns=lambda name: str(name).strip().lower())


def _numbers(table: pd.DataFrame, names: tuple[str, ...], path: Path) -> NDArray[np.float64]:
    """Columns as (n, names) float64; NaN for empty cells."""
    columns = []
    for name in names:
        column = pd.to_numeric(table[name], errors="coerce")
        if (wrong := column.isna() & table[name].notna()).any():
            raise AnnotationError(
                f"{path}: {name} is a number, not {str(table[name][wrong].iloc[0])!r}"
            )
        columns.append(column.to_numpy(np.float64))
    return np.stack(columns, axis=1)


def _dimensions(table: pd.DataFrame, path: Path) -> NDArray[np.float64]:
    """(n, 2) float64 valence and arousal in [-1, 1]; both NaN where one is not given."""
    dimensions = _numbers(table, _DIMENSIONS, path)
    given = ~(np.isnan(dimensions) | np.isin(dimensions, _NOT_GIVEN)).any(axis=1)
    if (wrong := dimensions[given & (np.abs(dimensions) > 1).any(axis=1)]).size:
        raise AnnotationError(
            f"{path}: valence and arousal lie from -1 to 1, not at {wrong[0, 0]:g}, "
            f"{wrong[0, 1]:g}: rescale them"
        )
    dimensions[~given] = np.nan
    return dimensions


def _expression(value: object, path: Path) -> int:
    """The index of a name, or AffectNet's number, which is one for its first eight."""
    text = str(value).strip()
    if text in ("", "nan"):
        return NO_EXPRESSION
    if text.removesuffix(".0").isdigit():
        number = int(float(text))
        return number if number < len(EMOTIONS_8) else NO_EXPRESSION
    if class_named(text) not in EMOTIONS_8:
        raise AnnotationError(
            f"{path}: the expression {text!r} is unknown: use {', '.join(EMOTIONS_8)} "
            "or AffectNet's numbers"
        )
    return EMOTIONS_8.index(class_named(text))


def _boxes(table: pd.DataFrame, path: Path) -> NDArray[np.float64]:
    if _LANDMARKS in table:
        return np.array([_around(text, path) for text in table[_LANDMARKS]]).reshape(-1, 4)
    corners, extents = _BOX_NAMES
    if set(corners) <= set(table):
        return _numbers(table, corners, path)
    if set(extents) <= set(table):
        boxes = _numbers(table, extents, path)
        boxes[:, 2:] += boxes[:, :2]
        return boxes
    return np.full((len(table), 4), np.nan)


def _around(text: object, path: Path) -> NDArray[np.float64]:
    """The bounding box of landmarks "x;y;x;y…"; NaN where there are none."""
    if not isinstance(text, str) or not text.strip():
        return np.full(4, np.nan)
    try:
        points = np.array(text.split(";"), np.float64).reshape(-1, 2)
    except ValueError as error:
        raise AnnotationError(f"{path}: landmarks are x;y;x;y…, not {text[:40]!r}") from error
    return np.concatenate((points.min(axis=0), points.max(axis=0)))


def _half_step(times: "pd.Series[float]") -> float:
    """Half of the usual time between annotations, s; of a single one, any time is near."""
    steps = times.sort_values().diff()
    return float(steps.median()) / 2 if len(times) > 1 else float("inf")


def _few(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown or "none"

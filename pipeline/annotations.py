"""Labels of images and continuous annotations of videos, read from CSV files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emopipe.emonet.arguments import counted
from emopipe.emonet.data.csv_files import header_names, open_csv
from emopipe.emonet.data.fer2013 import class_named
from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.labels import EMOTIONS_8, NO_EXPRESSION
from emopipe.pipeline.table.people import PERSON

_PATH_NAMES = ("image", "path", "file", "filename", "subdirectory_filepath")
_BOX_NAMES = (("x1", "y1", "x2", "y2"), ("face_x", "face_y", "face_width", "face_height"))
_LANDMARKS = "facial_landmarks"
_DIMENSIONS = ("valence", "arousal")
_NOT_GIVEN = (-2, -5)  # mark missing annotations in AffectNet and Aff-Wild


class AnnotationError(EmopipeError):
    """A file of annotations that cannot be used."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of one face each, with labels given by people.

    Attributes:
        paths: (n) the image files.
        expression: (n,) int64, index into `EMOTIONS_8`, or `NO_EXPRESSION` (AffectNet's 8 to 10,
            or an empty cell).
        dimensions: (n, 2) float64, valence and arousal in [-1, 1]; NaN where not given.
        boxes: (n, 4) float64, x1 y1 x2 y2 in image pixels; NaN where not given.
        of_landmarks: whether the boxes enclose the landmarks (else a face detector gave them).
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
            raise ValueError(f"{n} images have labels of shapes {shapes}")


def read_images(path: Path, root: Path | None = None) -> LabelledImages:
    """Read a CSV file of labelled images, in the format of AffectNet.

    Columns, in any order and case: the image's path (image, path, file, filename or
    subDirectory_filePath); expression (a name, or AffectNet's number); valence and arousal
    (empty, or AffectNet's -2, if missing); optionally facial_landmarks (x;y;x;y…) or a face
    detector's box (x1 y1 x2 y2, or face_x face_y face_width face_height), in pixels. Rows of
    macOS's resource forks (._face.png) are left out.

    Args:
        path: the CSV file.
        root: folder that the paths are relative to; the CSV file's by default.

    Raises:
        AnnotationError: it cannot be read or lacks columns, an expression is unknown, or a number
            is invalid or out of range.
    """
    table = _read_table(path)
    named = [name for name in _PATH_NAMES if name in table]
    rated = set(_DIMENSIONS) <= set(table)
    if not named or not (rated or "expression" in table):
        raise AnnotationError(
            f"{path} has columns {', '.join(table.columns)}: it needs the image's path (image) "
            "and expression, or valence and arousal"
        )
    # Lists of a folder's files name macOS's resource forks, which are no images.
    forks = [Path(str(name)).name.startswith("._") for name in table[named[0]]]
    table = table[~np.array(forks)].reset_index(drop=True)
    if table.empty:
        raise AnnotationError(f"{path} names no image: give a row for each")
    dimensions = _dimensions(table, path) if rated else np.full((len(table), 2), np.nan)
    expressions = table["expression"] if "expression" in table else [""] * len(table)
    return LabelledImages(
        paths=tuple((root or path.parent) / str(name) for name in table[named[0]]),
        expression=np.array([_expression(value, path) for value in expressions], np.int64),
        dimensions=dimensions,
        boxes=_boxes(table, path),
        of_landmarks=_LANDMARKS in table,
    )


def read_continuous(path: Path) -> pd.DataFrame:
    """Read a CSV file of continuous annotations of videos.

    Returns:
        Columns video (its name in the results), time (s), valence and arousal; NaN where these are
        not given (empty, or Aff-Wild's -5). If the file says whom it rates: person too.

    Raises:
        AnnotationError: it cannot be read, lacks a column, a time or a person, or a number is
            invalid or out of range.
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
            **_persons(table, path),
            "time": times,
            "valence": dimensions[:, 0],
            "arousal": dimensions[:, 1],
        }
    )


def _read_table(path: Path) -> pd.DataFrame:
    try:
        with open_csv(path, AnnotationError) as opened:
            table = pd.read_csv(
                opened.text,
                sep=opened.separator,
                decimal="," if opened.separator == ";" else ".",  # spreadsheets' German and French
                skipinitialspace=True,
                index_col=False,  # rows that end in a separator have no column more
            )
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise AnnotationError(f"{path} cannot be read as CSV: {error}") from error
    table = table.set_axis(header_names(map(str, table.columns)), axis="columns")
    if twice := table.columns[table.columns.duplicated()].tolist():
        raise AnnotationError(f"{path} has several columns {twice[0]}: leave one of them")
    if table.empty:
        raise AnnotationError(f"{path} has no row: give one for each image or time")
    return table


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
    """(n, 2) float64 valence and arousal in [-1, 1]; both NaN where either is not given."""
    dimensions = _numbers(table, _DIMENSIONS, path)
    given = ~(np.isnan(dimensions) | np.isin(dimensions, _NOT_GIVEN)).any(axis=1)
    if (wrong := dimensions[given & (np.abs(dimensions) > 1).any(axis=1)]).size:
        raise AnnotationError(
            f"{path}: valence and arousal lie from -1 to 1, not at {wrong[0, 0]:g}, "
            f"{wrong[0, 1]:g}: rescale them"
        )
    dimensions[~given] = np.nan
    return dimensions


def _persons(table: pd.DataFrame, path: Path) -> dict[str, pd.Series]:
    """The column of persons, if there is one."""
    if PERSON not in table:
        return {}
    persons = table[PERSON].astype(str).str.strip()
    if (unnamed := table[PERSON].isna() | (persons == "")).any():
        raise AnnotationError(
            f"{path} has {counted(int(unnamed.sum()), 'row')} without a person: name each row's, "
            "or leave the column out"
        )
    return {PERSON: persons}


def _expression(value: object, path: Path) -> int:
    """Class index of a name, or of AffectNet's number: its first eight are `EMOTIONS_8`."""
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

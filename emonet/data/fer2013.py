"""FER2013: reading it in the forms it is handed around in, and dividing it fairly.

Goodfellow et al., "Challenges in Representation Learning: A report on three machine learning
contests", ICONIP 2013: 35,887 grey face pictures of 48×48 pixels with seven labels. FER+ (Barsoum,
Zhang, Canton Ferrer, Zhang, "Training Deep Networks for Facial Expression Recognition with
Crowd-Sourced Label Distribution", ICMI 2016) has ten votes a picture over eight emotions.
"""

import csv
import gzip
import hashlib
import io
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from emopipe.emonet.checkpoint import CropSpec
from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.files import appearing_whole, sha256_of
from emopipe.emonet.labels import EMOTIONS_8, FER2013_7
from emopipe.emonet.registry import cache_folder

SIDE = 48
"""Pixels a picture is wide and high."""

CROP = CropSpec(scale=1.39, shift=(0.0, -0.13))
"""Where the pictures lie on the face, relative to the landmarks (the median of what a network
trained on them finds)."""

USAGES = ("Training", "PublicTest", "PrivateTest")
"""FER2013's official parts, as its column `Usage` names them."""

HELD_OUT = 0.1
"""Share of Training that is drawn for validation or test where the official part is not used."""

_CACHE_VERSION = 1
_SHOWN_PROBLEMS = 5
_PIXEL_VALUES = {str(value): value for value in range(256)}
_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
_FERPLUS_NAMES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
_FERPLUS_VOTES = (*_FERPLUS_NAMES, "contempt")  # in the order of EMOTIONS_8
_FERPLUS_NO_FACE = ("unknown", "nf")
_OTHER_NAMES = {
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "scared": "fear",
    "happiness": "happy",
    "sadness": "sad",
    "surprised": "surprise",
}
_PART_OF_FOLDER = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("publictest", "validation", "valid", "val"), 1),
    **dict.fromkeys(("privatetest", "test", "testing"), 2),
}


class DataError(EmopipeError):
    """Training data that cannot be read or used."""


@dataclass(frozen=True)
class FaceSet:
    """Labelled face pictures.

    Attributes:
        images: (n, 48, 48) uint8, grey.
        targets: (n, classes) float32, each row a distribution: all on the label, or votes.
        usage: (n,) int8, index into `USAGES`.
        rows: (n,) int64, which data row of the source each is, from 0; bad rows count.
        classes: names, in the order of the targets.
        source: name of the file or folder.
        sha256: of the source's content.
        skipped: what was left out, each with where and why.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.float32]
    usage: NDArray[np.int8]
    rows: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str
    sha256: str
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.shape != (n, SIDE, SIDE) or self.images.dtype != np.uint8:
            raise ValueError(f"pictures are uint8 (n, {SIDE}, {SIDE}), not {self.images.shape}")
        if self.targets.shape != (n, len(self.classes)):
            raise ValueError(f"{n} pictures have targets of shape {self.targets.shape}")
        if self.usage.shape != (n,) or self.rows.shape != (n,):
            raise ValueError(f"{n} pictures have {len(self.usage)} usages, {len(self.rows)} rows")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) int64: each picture's class, the one with most of its target."""
        labels: NDArray[np.int64] = self.targets.argmax(axis=1)
        return labels


@dataclass(frozen=True)
class Split:
    """Indices of a `FaceSet` by what they are used for; copies of a picture are on one side.

    Attributes:
        train: (n,) int64 to learn from.
        validation: (n,) int64 to select the model by.
        tests: name to (n,) int64, to judge the selected model by.
        known: name to (n,) bool for each test: its pictures that also stand in Training, and that
            a start model may have seen.
        notes: what is unusual about it, in sentences.
        drawn: purposes ("validation", "test") whose pictures are drawn from Training.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    tests: dict[str, NDArray[np.int64]]
    known: dict[str, NDArray[np.bool_]]
    notes: tuple[str, ...]
    drawn: tuple[str, ...] = ()


def read(path: Path, *, ferplus: Path | None = None, skip_bad: bool = False) -> FaceSet:
    """Read FER2013.

    A CSV file is read once and kept, compactly, in the cache folder under its content's hash.

    Args:
        path: `fer2013.csv` or `icml_face_data.csv` (columns emotion, pixels and, if it has several
            parts, Usage), plain or `.gz`; or a folder with a folder of pictures for each class,
            named by it, inside folders `train`, `test`, … or not.
        ferplus: `fer2013new.csv`: take FER+'s votes for targets and drop what is no face.
        skip_bad: leave out what cannot be read instead of refusing.

    Raises:
        DataError: it cannot be read, is something else, or has bad rows; the text names them.
    """
    if ferplus and path.is_dir():
        raise DataError(
            f"{path}: FER+'s votes belong to the rows of fer2013.csv, and a folder has another "
            "order: give that file, or leave out --ferplus"
        )
    if path.is_dir():
        faces = _read_folder(path)
    elif path.is_file():
        faces = _read_cached(path)
    else:
        raise DataError(f"{path}: there is no such file or folder")
    if faces.skipped and not skip_bad:
        shown = "; ".join(faces.skipped[:_SHOWN_PROBLEMS])
        more = len(faces.skipped) - _SHOWN_PROBLEMS
        raise DataError(
            f"{path}: {shown}{f'; and {more} more' if more > 0 else ''}: "
            "mend the file, or leave such rows out with --skip-bad"
        )
    if not len(faces):
        raise DataError(f"{path} holds no labelled picture")
    return _with_votes(faces, ferplus, skip_bad=skip_bad) if ferplus else faces


def split(faces: FaceSet, seed: int, validation: str = "PublicTest") -> Split:
    """Divide pictures into those to learn from, to select by and to judge by.

    PublicTest selects and PrivateTest judges; or, with `validation` "Training", a part of Training
    selects and both judge. What is missing is drawn from Training, the same share of each class. A
    picture that stands on several sides stays with the one that judges, else that selects.

    Args:
        faces: the pictures.
        seed: of what is drawn.
        validation: "PublicTest" or "Training".

    Raises:
        DataError: there is too little to learn from.
    """
    pictures = picture_ids(faces.images)
    parts = {name: np.flatnonzero(faces.usage == i) for i, name in enumerate(USAGES)}
    training = parts["Training"]
    rng = np.random.default_rng(seed)
    notes: list[str] = []
    drawn_for: list[str] = []
    tests = {name: parts[name] for name in USAGES[1:] if name != validation and len(parts[name])}
    selecting = parts[validation] if validation != "Training" else training[:0]

    def draw(purpose: str) -> NDArray[np.int64]:
        taken = [*tests.values(), selecting]
        free = training[~np.isin(pictures[training], pictures[np.concatenate(taken)])]
        drawn = _drawn(free, pictures, faces.labels, rng)
        drawn_for.append(purpose)
        notes.append(
            f"the {purpose} pictures are {len(drawn):,} drawn from Training, "
            f"{HELD_OUT:.0%} of each class (seed {seed})"
        )
        return drawn

    if not tests:
        tests["drawn from Training"] = draw("test")
    if not len(selecting):
        selecting = draw("validation")
    judged = np.concatenate(list(tests.values()))
    selecting = selecting[~np.isin(pictures[selecting], pictures[judged])]
    held_out = pictures[np.concatenate((judged, selecting))]
    train = training[~np.isin(pictures[training], held_out)]
    if not len(train) or not len(selecting):
        raise DataError(
            f"{faces.source} has {len(training)} Training pictures, too few to learn from and to "
            "hold some out"
        )
    drawn_rows = np.concatenate([selecting, *tests.values()])
    copies = len(training) - len(train) - np.isin(training, drawn_rows).sum()
    if copies:
        notes.append(f"{copies:,} Training pictures are copies of held-out ones and left out")
    return Split(
        train=train,
        validation=selecting,
        tests=tests,
        known=standing_in_training(faces, tests),
        notes=tuple(notes),
        drawn=tuple(drawn_for),
    )


def standing_in_training(
    faces: FaceSet, tests: dict[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.bool_]]:
    """Find the test pictures that also stand in Training outside of the test itself.

    Args:
        faces: the pictures.
        tests: name to (n,) rows.

    Returns:
        Name to (n,) bool.
    """
    pictures = picture_ids(faces.images)
    training = np.flatnonzero(faces.usage == 0)
    return {
        name: np.isin(pictures[rows], pictures[np.setdiff1d(training, rows)])
        for name, rows in tests.items()
    }


def picture_ids(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number pictures so that exact copies share a number.

    Args:
        images: (n, height, width) uint8.

    Returns:
        (n,) int64, the index of each picture's first copy.
    """
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(x.tobytes(), i) for i, x in enumerate(images)], np.int64)


def network_input(images: NDArray[np.uint8], size: int) -> Tensor:
    """Make FER2013 pictures what the network takes: the picture itself is the crop.

    Args:
        images: (n, 48, 48) uint8 grey.
        size: the network's input, pixels.

    Returns:
        (n, 3, size, size) float32 in [0, 1].
    """
    grey = torch.from_numpy(images)[:, None].float() / 255
    resized = F.interpolate(grey, (size, size), mode="bilinear", align_corners=False)
    return resized.expand(-1, 3, -1, -1)


def class_named(name: str) -> str:
    """Spell an expression's name as `EMOTIONS_8` does: "Angry" and "anger" are one."""
    plain = name.strip().lower()
    return _OTHER_NAMES.get(plain, plain)


def _drawn(
    free: NDArray[np.int64],
    pictures: NDArray[np.int64],
    labels: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw `HELD_OUT` of each class from the rows `free`, a picture with all its copies."""
    chosen: list[NDArray[np.int64]] = []
    distinct = np.unique(pictures[free])
    for label in np.unique(labels[distinct]):
        candidates = rng.permutation(distinct[labels[distinct] == label])
        chosen.append(candidates[: round(HELD_OUT * len(candidates))])
    return free[np.isin(pictures[free], np.concatenate(chosen))] if chosen else free[:0]


def _read_cached(path: Path) -> FaceSet:
    """Read a CSV file, or what an earlier reading of the same content kept."""
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    kept = cache_folder() / "fer2013" / f"{sha256[:32]}-{_CACHE_VERSION}.npz"
    arrays = _load(kept)
    if arrays is None:
        arrays = _read_csv(path)
        # The cache only saves time: a full or read-only disk must not stop anybody.
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with appearing_whole(kept) as growing, growing.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
    return FaceSet(
        images=arrays["images"],
        targets=np.eye(len(FER2013_7), dtype=np.float32)[arrays["labels"]],
        usage=arrays["usage"],
        rows=arrays["rows"],
        classes=FER2013_7,
        source=path.name,
        sha256=sha256,
        skipped=tuple(arrays["problems"].tolist()),
    )


def _load(kept: Path) -> dict[str, NDArray[Any]] | None:
    try:
        with np.load(kept, allow_pickle=False) as archive:
            return {n: archive[n] for n in ("images", "labels", "usage", "rows", "problems")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _read_csv(path: Path) -> dict[str, NDArray[Any]]:
    """Read pixels and labels; bad rows become problems."""
    pixels, labels, usages, rows = bytearray(), [], [], []
    problems: list[str] = []
    for number, (line, row) in enumerate(_csv_rows(path, ("emotion", "pixels"))):
        try:
            picture, label, usage = _parsed(row)
        except ValueError as problem:
            problems.append(f"line {line}: {problem}")
            continue
        pixels += picture
        labels.append(label)
        usages.append(usage)
        rows.append(number)
    return {
        "images": np.frombuffer(pixels, np.uint8).reshape(-1, SIDE, SIDE),
        "labels": np.array(labels, np.int64),
        "usage": np.array(usages, np.int8),
        "rows": np.array(rows, np.int64),
        "problems": np.array(problems, np.str_),
    }


def _parsed(row: dict[str, str]) -> tuple[bytes, int, int]:
    """Return a row's pixels, label and usage.

    Raises:
        ValueError: one of them is wrong; the text says how.
    """
    values = row["pixels"].split()
    if len(values) != SIDE * SIDE:
        raise ValueError(f"{len(values)} pixels instead of {SIDE * SIDE}")
    try:
        picture = bytes(map(_PIXEL_VALUES.__getitem__, values))
    except KeyError as error:
        raise ValueError(f"a pixel is {error.args[0]!r}, not 0 to 255") from None
    emotion = row["emotion"].strip()
    if emotion not in _PIXEL_VALUES or int(emotion) >= len(FER2013_7):
        raise ValueError(f"emotion is {emotion!r}, not 0 to {len(FER2013_7) - 1}")
    usage = row.get("usage", USAGES[0]).strip()
    if usage not in USAGES:
        raise ValueError(f"Usage is {usage!r}, not one of {', '.join(USAGES)}")
    return picture, int(emotion), USAGES.index(usage)


def _csv_rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row with its line, columns by their names in lower case without spaces.

    Raises:
        DataError: the file is no CSV with those columns.
    """
    try:
        with _open_text(path) as stream:
            reader = csv.reader(stream)
            columns = [name.strip().lower() for name in next(reader, [])]
            if missing := [name for name in needed if name not in columns]:
                raise DataError(
                    f"{path} has no column {' and no column '.join(missing)}: it has "
                    f"{', '.join(columns[:_SHOWN_PROBLEMS]) or 'no header'}"
                )
            for row in reader:
                if row:
                    filled = row + [""] * (len(columns) - len(row))
                    yield reader.line_num, dict(zip(columns, filled, strict=False))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_folder(path: Path) -> FaceSet:
    """Read a folder of class folders; pictures of another size are resampled."""
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _PICTURE_SUFFIXES)
    known = {file: class_named(file.parent.name) for file in files}
    if strange := sorted({f.parent.name for f, name in known.items() if name not in EMOTIONS_8}):
        raise DataError(
            f"{path}: pictures lie in folders whose names are no expressions "
            f"({', '.join(strange[:_SHOWN_PROBLEMS])}): name them {', '.join(EMOTIONS_8)}"
        )
    classes = EMOTIONS_8 if "contempt" in known.values() else FER2013_7
    images, labels, usages, rows = [], [], [], []
    problems: list[str] = []
    digest = hashlib.sha256()
    for number, (file, name) in enumerate(known.items()):
        place = file.relative_to(path)
        try:
            content = file.read_bytes()
            digest.update(f"{place.as_posix()}\0{len(content)}\0".encode() + content)
            images.append(_grey(content))
        except (UnidentifiedImageError, OSError, ValueError) as error:
            problems.append(f"{place}: {error}")
            continue
        labels.append(classes.index(name))
        usages.append(next((_PART_OF_FOLDER[p] for p in _folders(place)), 0))
        rows.append(number)
    return FaceSet(
        images=np.array(images, np.uint8).reshape(-1, SIDE, SIDE),
        targets=np.eye(len(classes), dtype=np.float32)[np.array(labels, np.int64)],
        usage=np.array(usages, np.int8),
        rows=np.array(rows, np.int64),
        classes=classes,
        source=path.name,
        sha256=digest.hexdigest(),
        skipped=tuple(problems),
    )


def _folders(place: Path) -> list[str]:
    """The folders on a file's way that name a part of the data."""
    return [part.lower() for part in place.parts if part.lower() in _PART_OF_FOLDER]


def _grey(content: bytes) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content)) as image:
            grey = image.convert("L")
    if grey.size != (SIDE, SIDE):
        grey = grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(grey)


def _with_votes(faces: FaceSet, path: Path, *, skip_bad: bool) -> FaceSet:
    """Put FER+'s votes in the place of the labels; rows where most see no face are dropped.

    Raises:
        DataError: the votes are not of these pictures, or are no numbers.
    """
    parts, counts, problems = [], [], []
    needed = ("usage", *_FERPLUS_VOTES, *_FERPLUS_NO_FACE)
    for line, row in _csv_rows(path, needed):
        parts.append(row["usage"].strip())
        try:
            counts.append([int(row[name]) for name in (*_FERPLUS_VOTES, *_FERPLUS_NO_FACE)])
        except ValueError as error:
            problem = f"line {line} holds a vote that is no number"
            if not skip_bad:
                raise DataError(
                    f"{path}: {problem}: mend the file, or leave such rows out with --skip-bad"
                ) from error
            problems.append(f"{path.name}: {problem}")
            counts.append([0] * len((*_FERPLUS_VOTES, *_FERPLUS_NO_FACE)))
    of_faces = [USAGES[u] for u in faces.usage]
    if faces.rows[-1] >= len(parts) or [parts[row] for row in faces.rows] != of_faces:
        raise DataError(
            f"{path} does not go with {faces.source}: row by row their Usage differs; both must "
            "have the official order"
        )
    votes = np.array(counts, np.float32)[faces.rows]
    seen, unseen = votes[:, : len(EMOTIONS_8)], votes[:, len(EMOTIONS_8) :].sum(axis=1)
    usable = seen.sum(axis=1) > unseen
    return replace(
        faces,
        images=faces.images[usable],
        targets=seen[usable] / seen[usable].sum(axis=1, keepdims=True),
        usage=faces.usage[usable],
        rows=faces.rows[usable],
        classes=EMOTIONS_8,
        source=f"{faces.source} with {path.name}",
        sha256=hashlib.sha256(f"{faces.sha256} {sha256_of(path)}".encode()).hexdigest(),
        skipped=(*faces.skipped, *problems),
    )

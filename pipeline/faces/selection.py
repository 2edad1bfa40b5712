"""Which of the detected faces are analyzed."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.fields import check_settings, documented, setting
from emopipe.pipeline.faces.base import Faces


class SelectionError(EmopipeError):
    """A selection of faces with an invalid value."""


FaceChoice = Literal["all", "largest"]


@documented
@dataclass(frozen=True)
class Selection:
    """Which of the detected faces are analyzed.

    `min_score` filters what the detector returns: to get faces below the detector's own least
    score, give it to `load_detector` as well.

    Raises:
        SelectionError: a value of the wrong type or out of range; the text names the argument.
    """

    min_score: float | None = setting(
        None,
        "Lowest detector score of a face.",
        group="faces",
        least=0,
        most=1,
        unset="the detector's own",
    )
    min_size: float = setting(
        0.0,
        "Smallest face: mean side of its box, in pixels of the frame.",
        group="faces",
        least=0,
    )
    max_faces: int | None = setting(
        None, "Most faces per frame, best scores first.", group="faces", least=1, unset="all"
    )
    faces: FaceChoice = setting(
        "all",
        "All faces of a frame, or the largest one.",
        group="faces",
        choices=("all", "largest"),
    )
    roi: tuple[float, float, float, float] | None = setting(
        None,
        "Only faces whose centre lies in this rectangle: x1, y1, x2, y2 in pixels.",
        group="faces",
        unset="the whole frame",
    )

    def __post_init__(self) -> None:
        check_settings(self, SelectionError)
        if self.roi is not None:
            x1, y1, x2, y2 = self.roi
            if not (np.isfinite(self.roi).all() and x1 < x2 and y1 < y2):
                raise SelectionError(
                    f"`roi` {','.join(f'{v:g}' for v in self.roi)} is empty: it is x1,y1,x2,y2 in "
                    "pixels of the frame, with x1 < x2 and y1 < y2"
                )


def parse_roi(text: str) -> tuple[float, float, float, float]:
    """Read a region of interest from the command line's "x1,y1,x2,y2".

    Raises:
        SelectionError: it is not four numbers.
    """
    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
    except ValueError:
        raise SelectionError(
            f"`roi` is four numbers, x1,y1,x2,y2 in pixels of the frame, not {text!r}"
        ) from None
    return x1, y1, x2, y2


def select(faces: Faces, selection: Selection) -> Faces:
    """Return the faces of a frame that a selection keeps, by descending score."""
    return faces[selected(faces, selection)]


def selected(faces: Faces, selection: Selection) -> NDArray[np.intp]:
    """Return the indices (m,) of the faces of a frame that a selection keeps, ascending."""
    keep = faces.sides >= selection.min_size
    if selection.min_score is not None:
        keep &= faces.scores >= selection.min_score
    if selection.roi is not None:
        centres = (faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2
        low, high = np.array(selection.roi).reshape(2, 2)
        keep &= ((centres >= low) & (centres < high)).all(axis=1)
    kept = np.flatnonzero(keep)
    if selection.faces == "largest":
        return kept[np.argsort(-faces.sides[kept], kind="stable")[:1]]
    return kept[: selection.max_faces]

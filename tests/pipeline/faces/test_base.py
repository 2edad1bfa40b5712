"""Faces that do not fit together are refused where they are made."""

import numpy as np
import pytest
from numpy.typing import NDArray

from emopipe.pipeline.faces.base import Faces


@pytest.mark.parametrize(
    ("boxes", "scores", "points"),
    [
        ([[0, 0, 1, 1]], [0.5, 0.4], None),
        ([[0, 0, 0, 1]], [0.5], None),
        ([[0, 0, np.nan, 1]], [0.5], None),
        ([[0, 0, 1, 1], [0, 0, 2, 2]], [0.4, 0.5], None),
        ([[0, 0, 1, 1]], [0.5], np.zeros((1, 6, 2))),
    ],
)
def test_faces_that_do_not_fit_together_are_refused(
    boxes: list[list[float]], scores: list[float], points: NDArray[np.float32] | None
) -> None:
    with pytest.raises(ValueError, match=r"box|scores|points"):
        Faces(np.array(boxes, np.float32), np.array(scores, np.float32), points)

"""How much of a face is hidden: by a hand, a microphone, another head, or because it is none.

A small network looks at the face where its landmarks say that it is. It has seen faces covered in
part and turned upside down, and places beside faces, see `pipeline.faces.learn_visibility`.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from emopipe.pipeline.faces.align import to_crop

GRID = 32
"""The face is seen as 32×32 grey cells."""

FILE = "visibility.safetensors"
"""Made by `pipeline.faces.learn_visibility`."""

_LEAST_CONTRAST = 4.0  # grey levels: below it noise is not enlarged to a face
_SMOOTHING = 0.8  # pixels of the crop, standard deviation


def hidden_shares(
    greys: Sequence[NDArray[np.float32]],
    crop_boxes: NDArray[np.floating[Any]],
    landmarks: NDArray[np.floating[Any]],
) -> NDArray[np.float32]:
    """Estimate how much of each face something hides.

    Args:
        greys: n square grey crops from `align.grey_crops`.
        crop_boxes: (n, 4) where they lie, x1 y1 x2 y2 in pixels of the frame.
        landmarks: (n, 68, 2) x y in pixels of the frame, 300-W order.

    Returns:
        (n,) float32, share of the landmarks' hull from 0 to 1; near 1 for what is no upright face.
    """
    learnt = _learnt()
    faces = normalized(aligned(greys, crop_boxes, landmarks, learnt["shape"]), learnt["hull"])
    # Not one product for all: its last digits would depend on how many faces there are.
    return np.array([hidden_share(face, learnt) for face in faces], np.float32)


def aligned(
    greys: Sequence[NDArray[np.float32]],
    crop_boxes: NDArray[np.floating[Any]],
    landmarks: NDArray[np.floating[Any]],
    shape: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Move the landmarks of faces to those of a mean face, by affine maps of least squares.

    Args:
        greys: n square grey crops.
        crop_boxes: (n, 4) where they lie, x1 y1 x2 y2 in pixels of the frame.
        landmarks: (n, 68, 2) x y in pixels of the frame, 300-W order.
        shape: (68, 2) the mean face's landmarks in cells of the grid, x y.

    Returns:
        (n, 32, 32) float32 grey levels.
    """
    to_affine = np.linalg.pinv(np.column_stack([shape, np.ones(len(shape))]))
    sides = np.array([len(grey) for grey in greys]).reshape(-1, 1, 1)
    to_pixels = (to_affine @ (to_crop(landmarks, crop_boxes, 1) * sides)).transpose(0, 2, 1)
    # OpenCV's pixels have their centres at whole numbers, ours at half ones.
    to_pixels[..., 2] += to_pixels[..., :2].sum(axis=2) / 2 - 0.5
    faces = np.empty((len(greys), GRID, GRID), np.float32)
    for face, grey, matrix in zip(faces, greys, to_pixels, strict=True):
        cv2.warpAffine(
            cv2.GaussianBlur(grey, (0, 0), _SMOOTHING),
            matrix,
            (GRID, GRID),
            dst=face,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return faces


def normalized(faces: NDArray[np.float32], hull: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take the light out of aligned faces.

    Args:
        faces: (n, 32, 32) grey levels.
        hull: (32, 32), positive within the landmarks' hull, sums to 1.

    Returns:
        (n, 1024) float32, each face of mean 0 and standard deviation 1 within the hull; below 1
        with hardly any contrast.
    """
    cells, weights = faces.reshape(len(faces), GRID**2), hull.reshape(-1)
    around = cells - (cells * weights).sum(axis=1, keepdims=True)
    contrasts = np.sqrt((around * around * weights).sum(axis=1, keepdims=True))
    return np.asarray(around / (contrasts + np.float32(_LEAST_CONTRAST)))


def hidden_share(face: NDArray[np.float32], learnt: dict[str, NDArray[np.float32]]) -> float:
    """Run the network: two hidden layers, then the hidden share of each part of the face.

    Args:
        face: (1024,) float32 from `normalized`.
        learnt: its weights and biases, and each part's share of the face.
    """
    values = face
    for layer in ("1", "2"):
        values = np.maximum(values @ learnt[f"weight{layer}"] + learnt[f"bias{layer}"], 0)
    logits = values @ learnt["weight3"] + learnt["bias3"]
    return float(learnt["parts"] @ (1 / (1 + np.exp(-logits))))


@cache
def _learnt() -> dict[str, NDArray[np.float32]]:
    """What `pipeline.faces.learn_visibility` has stored, in float32."""
    tensors = load((files("emopipe.pretrained") / FILE).read_bytes())
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}

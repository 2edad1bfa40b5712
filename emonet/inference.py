"""Predictions for labelled data sets."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emopipe.emonet.data.augmentation import N_RANDOM_PARAMS
from emopipe.emonet.data.config import NONE
from emopipe.emonet.data.fer2013 import network_input
from emopipe.emonet.data.landmarks68 import LandmarkSet
from emopipe.emonet.metrics import landmark_errors
from emopipe.emonet.model import EmoNet
from emopipe.emonet.predictor import FACES_PER_BATCH, Predictions, Predictor, concatenated

_IMAGES_AT_A_TIME = 128  # bounds memory: 100 MB of 256 px crops, as float32


def predict_fer2013(predictor: Predictor, images: NDArray[np.uint8]) -> Predictions:
    """Predict from FER2013 images; the whole image is the crop.

    Args:
        predictor: the network.
        images: (n, 48, 48) uint8 grey; n is 1 or more.
    """
    parts = []
    for first in range(0, len(images), _IMAGES_AT_A_TIME):
        some = images[first : first + _IMAGES_AT_A_TIME]
        parts.append(predictor(_as_bytes(network_input(some, predictor.checkpoint.input_size))))
    return concatenated(parts)


def landmark_errors_of(
    predictor: Predictor, faces: LandmarkSet, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Errors of a network's landmarks, see `emonet.metrics.landmark_errors`.

    Args:
        predictor: the network.
        faces: images with landmarks.
        rows: (m,) indices of the images; 1 or more.

    Returns:
        (m,) float64.
    """
    checkpoint = predictor.checkpoint
    errors = []
    for first in range(0, len(rows), _IMAGES_AT_A_TIME):
        some = rows[first : first + _IMAGES_AT_A_TIME]
        params = torch.zeros(len(some), N_RANDOM_PARAMS)
        crops, points = faces.augmented(some, checkpoint.crop, checkpoint.input_size, params, NONE)
        errors.append(landmark_errors(predictor(_as_bytes(crops)).landmarks, points.numpy()))
    return np.concatenate(errors)


@torch.inference_mode()
def output_range(network: EmoNet, images: NDArray[np.uint8], size: int) -> tuple[float, float]:
    """Lowest and highest valence or arousal before clamping, over images and mirror images.

    Args:
        network: in evaluation mode, in float32.
        images: (n, 48, 48) uint8 grey; n is 1 or more.
        size: side of the network's input, pixels.
    """
    raw = []
    device = next(network.parameters()).device
    step = FACES_PER_BATCH[device.type]
    for first in range(0, len(images), step):
        crops = network_input(images[first : first + step], size).to(device)
        for view in (crops, crops.flip(-1)):
            out = network(view.contiguous(memory_format=torch.channels_last))
            raw += [out.valence, out.arousal]
    values = torch.cat(raw)
    return values.min().item(), values.max().item()


def _as_bytes(crops: Tensor) -> NDArray[np.uint8]:
    """(n, 3, size, size) in [0, 1] to what a predictor takes: (n, size, size, 3) uint8."""
    images: NDArray[np.uint8] = (crops * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(images)

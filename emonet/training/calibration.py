"""Calibration of class probabilities after training, folded into the last layer.

Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017 (temperature);
Menon et al., "Long-tail learning via logit adjustment", ICLR 2021 (offsets).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from emopipe.emonet.model import EmoNet

_TEMPERATURES = np.geomspace(0.1, 5.0, 400)
_SHARE_UNDONE = 0.5  # of the shift that class weights in the loss cause
_LEAST = 1e-12  # probability


@dataclass(frozen=True)
class Calibration:
    """Maps a network's logits to (logits + offsets) / temperature.

    Attributes:
        temperature: more than 0; below 1 makes probabilities more confident.
        offsets: (classes,) float32.
    """

    temperature: float
    offsets: NDArray[np.float32]

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"a temperature is more than 0, not {self.temperature}")


def fit(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    class_weights: NDArray[np.float32] | None = None,
) -> Calibration:
    """Fit a calibration to predictions for images that the network was not trained on.

    Class weights in the loss shift probabilities towards rare classes, as if each class were that
    much more frequent. The offsets undo half of this shift: a compromise between the fairest
    treatment of rare classes and the highest accuracy. The share is fixed because rare classes have
    too few images to fit it. The temperature is the maximum-likelihood one of a grid.

    Args:
        probabilities: (n, classes).
        truth: (n,) true classes.
        class_weights: (classes,) weights in the training loss; None for an unweighted one.
    """
    logits = np.log(probabilities.clip(min=_LEAST)).astype(np.float64)
    offsets = np.zeros(logits.shape[1])
    if class_weights is not None:
        occurring = class_weights > 0
        shift = np.log(class_weights, out=np.zeros(len(occurring)), where=occurring)
        offsets = -_SHARE_UNDONE * shift
    logits = logits + offsets
    likelihoods = [
        _log_softmax(logits / temperature)[np.arange(len(truth)), truth].mean()
        for temperature in _TEMPERATURES
    ]
    return Calibration(
        temperature=float(_TEMPERATURES[int(np.argmax(likelihoods))]),
        offsets=offsets.astype(np.float32),
    )


def fold(calibration: Calibration, network: EmoNet) -> None:
    """Change a network's last layer, in place, so that its logits are calibrated."""
    last = network.emo_fc_2[3]
    if not isinstance(last, nn.Linear):
        raise TypeError("the emotion branch ends with a linear layer")
    n = network.n_expression
    with torch.no_grad():
        last.weight[:n] /= calibration.temperature
        offsets = torch.from_numpy(calibration.offsets)
        last.bias[:n] = (last.bias[:n] + offsets) / calibration.temperature


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

"""Probabilities that mean what they say: fitted after training, folded into the last layer.

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
_TAKEN_BACK = 0.5
_LEAST = 1e-12  # probability


@dataclass(frozen=True)
class Calibration:
    """What brings a network's logits to (logits + offsets) / temperature.

    Attributes:
        temperature: more than 0; below 1 makes probabilities bolder.
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
    """Fit to what a network says of pictures it has not learnt from.

    Class weights in the loss push probabilities towards rare classes, as if each class were that
    much more frequent. Half of it is taken back, half way from the answer that is fairest to rare
    classes to the one that is right most often: the pictures of rare classes are too few to find a
    better share by. The temperature is the likeliest.

    Args:
        probabilities: (n, classes).
        truth: (n,) the right classes.
        class_weights: (classes,) that the loss was weighted with; None if it was not.
    """
    logits = np.log(probabilities.clip(min=_LEAST)).astype(np.float64)
    offsets = np.zeros(logits.shape[1])
    if class_weights is not None:
        known = class_weights > 0
        pushed = np.log(class_weights, out=np.zeros(len(known)), where=known)
        offsets = -_TAKEN_BACK * pushed
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
    """Change a network's last layer so that its logits come out calibrated."""
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

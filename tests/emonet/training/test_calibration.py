"""Calibrated probabilities agree with the accuracy."""

import numpy as np
import pytest
import torch

from emopipe.emonet.metrics import expected_calibration_error, score_expressions
from emopipe.emonet.model import EmoNet
from emopipe.emonet.training import calibration
from emopipe.emonet.training.calibration import Calibration


def drawn(scale: float, seed: int = 0):
    """Logits of 4 classes, probabilities at `scale` times them, and truths drawn at 1 times."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (6000, 4)) + np.log([0.6, 0.25, 0.1, 0.05])
    right, predicted = (np.exp(s * logits) for s in (1.0, scale))
    right, predicted = (p / p.sum(axis=1, keepdims=True) for p in (right, predicted))
    truth = (right.cumsum(axis=1) > rng.random((6000, 1))).argmax(axis=1)
    return predicted.astype(np.float32), truth


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_over_and_underconfidence(scale):
    predicted, truth = drawn(scale)
    fitted = calibration.fit(predicted, truth)
    assert fitted.temperature == pytest.approx(scale, rel=0.06)
    assert (fitted.offsets == 0).all()
    powers = predicted ** (1 / fitted.temperature)
    after = powers / powers.sum(axis=1, keepdims=True)
    assert expected_calibration_error(after, truth) < 0.02


def test_half_of_the_class_weights_shift_is_undone():
    """More predictions are right than if none was undone, more of rare classes than if all was."""
    predicted, truth = drawn(1.0)
    weights = np.array([0.5, 1.0, 3.0, 9.0], np.float32)
    shifted = predicted * weights
    shifted /= shifted.sum(axis=1, keepdims=True)
    fitted = calibration.fit(shifted, truth, weights)
    np.testing.assert_allclose(fitted.offsets, -np.log(weights) / 2, rtol=1e-6)
    half_undone = shifted * np.exp(fitted.offsets)
    half_undone /= half_undone.sum(axis=1, keepdims=True)
    all_undone, half, none_undone = (
        score_expressions(p, truth) for p in (predicted, half_undone, shifted)
    )
    assert half.accuracy > none_undone.accuracy
    assert half.recall.mean() > all_undone.recall.mean()


def test_it_is_folded_into_the_last_layer_and_leaves_the_rest():
    torch.manual_seed(0)
    network = EmoNet(4, 16).eval()
    crops = torch.rand(2, 3, 64, 64)
    offsets = np.array([0.5, 0, -1, 2], np.float32)
    with torch.no_grad():
        before = network(crops)
        calibration.fold(Calibration(0.5, offsets), network)
        after = network(crops)
    torch.testing.assert_close(after.logits, (before.logits + torch.from_numpy(offsets)) / 0.5)
    torch.testing.assert_close(after.valence, before.valence)
    torch.testing.assert_close(after.heatmaps, before.heatmaps)


def test_a_temperature_is_more_than_0():
    with pytest.raises(ValueError, match="more than 0, not 0"):
        Calibration(0.0, np.zeros(4, np.float32))

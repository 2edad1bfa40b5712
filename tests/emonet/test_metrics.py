"""Metrics agree with scikit-learn, with known values and with their laws."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as oracle

from emopipe.emonet import metrics

CLASSES = 4


@st.composite
def samples(draw):
    """Probabilities and true classes of some samples."""
    n = draw(st.integers(1, 40))
    raw = draw(arrays(np.float64, (n, CLASSES), elements=st.floats(0.01, 1)))
    truth = draw(arrays(np.int64, n, elements=st.integers(0, CLASSES - 1)))
    return raw / raw.sum(axis=1, keepdims=True), truth


dimension = arrays(np.float64, st.shared(st.integers(2, 40), key="n"), elements=st.floats(-1, 1))


@given(samples())
def test_expression_scores_are_those_of_scikit_learn(sample):
    probabilities, truth = sample
    predicted = probabilities.argmax(axis=1)
    scores = metrics.score_expressions(probabilities, truth)

    assert scores.samples == len(truth)
    assert scores.accuracy == pytest.approx(oracle.accuracy_score(truth, predicted))
    assert scores.macro_f1 == pytest.approx(oracle.f1_score(truth, predicted, average="macro"))
    assert scores.weighted_f1 == pytest.approx(
        oracle.f1_score(truth, predicted, average="weighted")
    )
    labels = range(CLASSES)
    assert (scores.confusion == oracle.confusion_matrix(truth, predicted, labels=labels)).all()
    for name, expected in zip(
        ("precision", "recall", "f1"),
        oracle.precision_recall_fscore_support(
            truth, predicted, labels=labels, zero_division=np.nan
        ),
        strict=False,
    ):
        np.testing.assert_allclose(getattr(scores, name), expected, err_msg=name)


@given(samples())
def test_calibration_error_is_the_mean_gap_between_confidence_and_accuracy(sample):
    probabilities, truth = sample
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    edges = np.linspace(0, 1, 16)
    expected = 0.0
    for low, high in pairwise(edges):
        inside = (confidence >= low) & ((confidence < high) | (high == 1))
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    # A confidence that lies on an edge but for rounding may count to either bin.
    assume((np.abs(confidence[:, None] - edges[1:-1]) > 1e-9).all())
    assert metrics.expected_calibration_error(probabilities, truth) == pytest.approx(expected)


def test_a_network_that_is_as_sure_as_it_is_right_is_calibrated():
    probabilities = np.tile([0.75, 0.25], (400, 1))
    truth = np.repeat([0, 1], [300, 100])
    assert metrics.expected_calibration_error(probabilities, truth) == pytest.approx(0)
    assert metrics.expected_calibration_error(probabilities, 1 - truth) == pytest.approx(0.5)


@given(dimension, dimension)
def test_dimension_scores_obey_their_laws(predicted, truth):
    assume(predicted.std() > 1e-3 and truth.std() > 1e-3)
    scores = metrics.score_dimension(predicted, truth)

    assert scores.pcc == pytest.approx(np.corrcoef(predicted, truth)[0, 1], abs=1e-9)
    assert scores.rmse == pytest.approx(oracle.root_mean_squared_error(truth, predicted))
    assert abs(scores.ccc) <= abs(scores.pcc) + 1e-9 <= 1 + 2e-9
    assert metrics.concordance(truth, predicted) == pytest.approx(scores.ccc)
    assert metrics.concordance(truth, truth) == pytest.approx(1)
    # An offset changes concordance only by what it adds to the squared distance of the means.
    shifted = metrics.score_dimension(predicted + 2, truth)
    assert shifted.pcc == pytest.approx(scores.pcc, abs=1e-6)


def test_known_values():
    truth, predicted = np.array([0.0, 0.5, 1.0, -0.5]), np.array([0.1, 0.4, 0.6, 0.1])
    # By hand: means .25 and .3; population variances .3125 and .045; covariance .1125.
    assert metrics.concordance(predicted, truth) == pytest.approx(0.225 / (0.3125 + 0.045 + 0.0025))
    assert metrics.sign_agreement(predicted, truth) == 0.5


def test_what_is_undefined_is_nan_and_what_does_not_pair_is_refused():
    constant = np.ones(3)
    assert np.isnan(metrics.correlation(constant, np.array([0.0, 0.5, 1.0])))
    assert metrics.concordance(constant, np.array([0.0, 0.5, 1.0])) == 0
    with pytest.raises(ValueError, match="do not pair up"):
        metrics.score_dimension(constant, np.ones(2))
    with pytest.raises(ValueError, match="not in 0 … 1"):
        metrics.confusion(np.array([2]), np.array([0]), 2)


def test_landmark_errors_are_in_units_of_the_distance_of_the_eyes():
    truth = np.zeros((2, 68, 2))
    truth[:, 45, 0] = [50, 100]
    moved = truth + np.array([3, 4])
    np.testing.assert_allclose(metrics.landmark_errors(moved, truth), [0.1, 0.05])
    half = truth.copy()
    half[0, :34] += [3, 4]
    assert metrics.landmark_errors(half, truth)[0] == pytest.approx(0.05)

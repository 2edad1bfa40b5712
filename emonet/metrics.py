"""Metrics for predicted expressions, valence and arousal, and landmarks.

All functions take NumPy arrays whose first axis is the samples. An undefined value (the recall of a
class that never occurs, a correlation with a constant) is NaN; averages treat it as their docstring
says.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.labels import OUTER_EYE_CORNERS

CALIBRATION_BINS = 15
"""Equally wide bins of confidence, as in Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern
Neural Networks", ICML 2017."""


@dataclass(frozen=True)
class ExpressionScores:
    """Scores of predicted classes.

    Attributes:
        samples: number of samples.
        accuracy: share of samples whose predicted class is the true one.
        macro_f1: mean F1 of the classes that occur, in the truth or in the predictions.
        weighted_f1: mean F1, weighted by the frequency of each class in the truth.
        calibration_error: `expected_calibration_error`.
        confusion: (classes, classes) int64, rows by truth, columns by prediction.
        precision: (classes,) NaN for a class that is never predicted.
        recall: (classes,) NaN for a class that never occurs.
        f1: (classes,) harmonic mean of both; 0 if only one is defined, NaN if neither is.
    """

    samples: int
    accuracy: float
    macro_f1: float
    weighted_f1: float
    calibration_error: float
    confusion: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


@dataclass(frozen=True)
class DimensionScores:
    """Scores of a continuous dimension: valence or arousal.

    Attributes:
        samples: number of samples.
        ccc: concordance correlation coefficient.
        pcc: Pearson's correlation coefficient.
        rmse: root mean squared error, in units of the dimension.
        sagr: sign agreement.
    """

    samples: int
    ccc: float
    pcc: float
    rmse: float
    sagr: float


def score_expressions(
    probabilities: NDArray[np.floating], truth: NDArray[np.integer]
) -> ExpressionScores:
    """Score class probabilities; the most probable class is the predicted one.

    Args:
        probabilities: (n, classes), each row sums to 1; n is 1 or more.
        truth: (n,) index of the true class.

    Raises:
        ValueError: the shapes disagree or there are no samples.
    """
    classes = probabilities.shape[1]
    counts = confusion(truth, probabilities.argmax(axis=1), classes)
    right, occurs, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    f1 = _shares(2 * right, occurs + predicted)
    return ExpressionScores(
        samples=len(truth),
        accuracy=float(right.sum() / len(truth)),
        macro_f1=float(np.nanmean(f1)),
        weighted_f1=float(np.nansum(f1 * occurs) / len(truth)),
        calibration_error=expected_calibration_error(probabilities, truth),
        confusion=counts,
        precision=_shares(right, predicted),
        recall=_shares(right, occurs),
        f1=f1,
    )


def score_dimension(
    predicted: NDArray[np.floating], truth: NDArray[np.floating]
) -> DimensionScores:
    """Score valence or arousal.

    Args:
        predicted: (n,) in [-1, 1]; n is 1 or more.
        truth: (n,) in [-1, 1].

    Raises:
        ValueError: the shapes disagree or there are no samples.
    """
    _check_pair(predicted, truth)
    return DimensionScores(
        samples=len(truth),
        ccc=concordance(predicted, truth),
        pcc=correlation(predicted, truth),
        rmse=rmse(predicted, truth),
        sagr=sign_agreement(predicted, truth),
    )


def confusion(
    truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """The confusion matrix.

    Args:
        truth: (n,) class indices below `classes`.
        predicted: (n,) class indices below `classes`.
        classes: number of classes.

    Returns:
        (classes, classes) int64; [t, p] counts the samples of class t that are predicted as p.

    Raises:
        ValueError: the shapes disagree, there are no samples, or an index is out of range.
    """
    _check_pair(predicted, truth)
    if min(truth.min(), predicted.min()) < 0 or max(truth.max(), predicted.max()) >= classes:
        raise ValueError(f"a class index is not in 0 … {classes - 1}")
    pairs = truth.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def expected_calibration_error(
    probabilities: NDArray[np.floating], truth: NDArray[np.integer], bins: int = CALIBRATION_BINS
) -> float:
    """Mean distance between confidence and accuracy over all samples (ECE: Guo et al. 2017).

    Samples are binned by the probability of the predicted class; in each bin, the mean of that
    probability is compared with the share of correct samples.

    Args:
        probabilities: (n, classes), each row sums to 1.
        truth: (n,) index of the true class.
        bins: number of equally wide bins over [0, 1].
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(index, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def concordance(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Lin's concordance correlation coefficient (Biometrics 45, 1989), with population moments.

    2·cov / (var + var' + (mean - mean')²): 1 for perfect agreement; a wrong scale or offset also
    lowers it. NaN if both are constant and equal.
    """
    p, t = predicted.astype(np.float64), truth.astype(np.float64)
    covariance = ((p - p.mean()) * (t - t.mean())).mean()
    return _ratio(2 * covariance, p.var() + t.var() + (p.mean() - t.mean()) ** 2)


def correlation(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Pearson's correlation coefficient; NaN if either is constant."""
    p, t = predicted.astype(np.float64), truth.astype(np.float64)
    covariance = ((p - p.mean()) * (t - t.mean())).mean()
    return _ratio(covariance, p.std() * t.std())


def rmse(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Root mean squared error."""
    errors = predicted.astype(np.float64) - truth.astype(np.float64)
    return float(np.sqrt((errors**2).mean()))


def sign_agreement(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Share of samples with the true sign (SAGR: Nicolaou, Gunes, Pantic 2011), 0 being its own."""
    return float((np.sign(predicted) == np.sign(truth)).mean())


def landmark_errors(
    predicted: NDArray[np.floating], truth: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Mean point distance of each face over its outer-eye-corner distance (NME, as for 300-W).

    Args:
        predicted: (n, 68, 2) x and y.
        truth: (n, 68, 2) x and y in the same units.

    Returns:
        (n,) float64.
    """
    right, left = OUTER_EYE_CORNERS
    eyes = np.linalg.norm(truth[:, right] - truth[:, left], axis=1)
    distances: NDArray[np.float64] = np.linalg.norm(predicted - truth, axis=2).mean(axis=1) / eyes
    return distances


def as_json(scores: ExpressionScores | DimensionScores) -> dict[str, Any]:
    """Scores as JSON has them: lists and numbers by field, null for what is undefined."""
    return {name: _plain(value) for name, value in vars(scores).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value.tolist()]
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if value != value else value


def _shares(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Quotients, NaN where the whole is 0."""
    shares = np.full(len(part), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else float("nan")


def _check_pair(predicted: NDArray[np.generic], truth: NDArray[np.generic]) -> None:
    if predicted.ndim != 1 or predicted.shape != truth.shape or not len(truth):
        raise ValueError(f"predictions {predicted.shape} and truth {truth.shape} do not pair up")

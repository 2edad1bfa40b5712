"""Pretraining: expressions, valence, arousal and landmarks at once.

A batch holds faces with FER+'s votes beside faces with landmarks; each teaches what it knows.
Nobody has rated valence and arousal: their targets are what the votes stand for on average.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from emopipe.emonet.checkpoint import Checkpoint
from emopipe.emonet.data.fer2013 import FaceSet, Split
from emopipe.emonet.data.landmarks68 import LandmarkSet
from emopipe.emonet.evaluation import landmark_errors_of, of_fer2013
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.landmarks import peaks
from emopipe.emonet.metrics import concordance, score_expressions
from emopipe.emonet.model import STRIDE, EmoNet
from emopipe.emonet.predictor import Predictor
from emopipe.emonet.training import augmentation
from emopipe.emonet.training.augmentation import augment
from emopipe.emonet.training.config import Pretraining, TrainingError
from emopipe.emonet.training.trainer import balancing, steps_of

VALENCE_AROUSAL = {
    "neutral": (0.0, 0.0),
    "happy": (0.81, 0.51),
    "sad": (-0.63, -0.27),
    "surprise": (0.40, 0.67),
    "fear": (-0.64, 0.60),
    "disgust": (-0.60, 0.35),
    "anger": (-0.51, 0.59),
    "contempt": (-0.40, 0.20),
}
"""Pleasure and arousal of each emotion: Russell, Mehrabian, "Evidence for a three-factor theory of
emotions", Journal of Research in Personality 11, 273-294 (1977). Neutral is the origin; contempt is
set by us, milder than disgust."""

ONE_VOTE = 0.15
"""A smaller share of FER+'s votes for emotions is a single one, if there are seven or more of them:
an outlier, which is not learnt (Barsoum et al. 2016)."""

PICTURE_SIDE = 1.5
"""Side of the stored landmark pictures over the network's input: a crop of them then has about the
input's pixels."""

_SIGMA = 1.0  # of the target heatmaps' Gaussians, cells
_HEATMAP_WEIGHT = 0.5  # a Gaussian of one cell has the squared sum π
_POINT_WEIGHT = 0.5  # error in cells
_REACH = 2.0  # error in cells from which on a peak's place tells nothing of the way to the truth
_STRAY_WEIGHT = 0.1
_TOLERATED = 0.3  # how far heatmaps without a target may leave [0, 1]
_TINY = 1e-6


class Batch(NamedTuple):
    """Faces with votes, then faces with landmarks.

    Attributes:
        pictures: (n + m, 3, size, size) float32 in [0, 1].
        votes: (n, 8) float32, each row a distribution.
        dimensions: (n, 2) float32, valence and arousal.
        points: (m, 68, 2) float32 in crop pixels.
    """

    pictures: Tensor
    votes: Tensor
    dimensions: Tensor
    points: Tensor


class PretrainingTask:
    """Learning all that EmoNet tells; a `emonet.training.trainer.Task`.

    Args:
        faces: pictures with FER+'s votes.
        split: which of them are for what.
        landmarked: pictures with landmarks.
        landmark_split: rows of them to learn from, rows to select by.
        settings: how.
        checkpoint: describes the network that is trained.
        batch_size: faces with votes a step and worker.
        seed: of order and augmentation.
        device: where the network is.
        precision: in which the network is judged.

    Attributes:
        class_weights: (8,) float32, what each class weighs in the loss.

    Raises:
        TrainingError: the pictures have other classes.
    """

    def __init__(
        self,
        faces: FaceSet,
        split: Split,
        landmarked: LandmarkSet,
        landmark_split: tuple[NDArray[np.int64], NDArray[np.int64]],
        settings: Pretraining,
        checkpoint: Checkpoint,
        batch_size: int,
        seed: int,
        device: torch.device,
        precision: str,
    ) -> None:
        if faces.classes != EMOTIONS_8:
            raise TrainingError(f"{faces.source} has no FER+ votes: name them with --ferplus")
        self._faces = faces
        self._split = split
        self._landmarked = landmarked
        self._landmark_train, self._landmark_validation = landmark_split
        self._settings = settings
        self._checkpoint = checkpoint
        self._batch_size = batch_size
        self._landmark_size = max(1, round(settings.landmark_share * batch_size))
        self._seed = seed
        self._device = device
        self._precision = precision
        self._votes = without_outliers(faces.targets)
        self._dimensions = dimensions(faces.targets)
        self.class_weights = torch.from_numpy(
            class_weights(faces.targets[split.train], settings.balance)
        ).to(device)

    def steps(self, workers: int) -> int:
        """How many batches an epoch of the faces with votes has for each worker."""
        return steps_of(len(self._split.train), self._batch_size, workers)

    def batches(
        self, epoch: int, worker: int, workers: int, *, settling: bool = False
    ) -> Iterator[Batch]:
        """One worker's share of each step's pictures."""
        faces, landmarked = self._settings.faces, self._settings.landmarked
        if settling:
            faces, landmarked = faces.halved(), landmarked.halved()
        rng = np.random.default_rng((self._seed, epoch, 1))
        order = rng.permutation(self._split.train)
        needed = self.steps(workers) * workers * self._landmark_size
        rounds = -(-needed // len(self._landmark_train))
        landmark_order = np.concatenate(
            [rng.permutation(self._landmark_train) for _ in range(rounds)]
        )
        draws = augmentation.draws(self._seed, 2 * epoch, len(order))
        landmark_draws = augmentation.draws(self._seed, 2 * epoch + 1, needed)
        for step in range(self.steps(workers)):
            place = step * workers + worker
            some = slice(place * self._batch_size, (place + 1) * self._batch_size)
            others = slice(place * self._landmark_size, (place + 1) * self._landmark_size)
            rows, landmark_rows = order[some], landmark_order[others]
            with_votes = augment(
                torch.from_numpy(self._faces.images[rows])[:, None].to(self._device),
                torch.from_numpy(draws[some]).to(self._device),
                self._checkpoint.input_size,
                faces,
            )
            with_landmarks, points = self._landmarked.seen(
                landmark_rows,
                self._checkpoint.crop,
                self._checkpoint.input_size,
                torch.from_numpy(landmark_draws[others]).to(self._device),
                landmarked,
            )
            pictures = torch.cat((with_votes, with_landmarks))
            yield Batch(
                pictures.contiguous(memory_format=torch.channels_last),
                torch.from_numpy(self._votes[rows]).to(self._device),
                torch.from_numpy(self._dimensions[rows]).to(self._device),
                points,
            )

    def loss(self, network: Callable[[Tensor], Any], batch: Batch) -> Tensor:
        """The sum of what is wrong with expressions, valence and arousal, and landmarks."""
        out = network(batch.pictures)
        n = len(batch.votes)
        expression = F.cross_entropy(out.logits[:n].float(), batch.votes, weight=self.class_weights)
        said = torch.stack((out.valence[:n], out.arousal[:n]), dim=1).float()
        loss = expression + _dimension_loss(said, batch.dimensions)
        targets = gaussians(batch.points, out.heatmaps.shape[-1])
        for heatmaps in (out.heatmaps.float(), out.first_heatmaps.float()):
            squares = (heatmaps[n:] - targets).square().sum(dim=(2, 3))
            loss = loss + _HEATMAP_WEIGHT * squares.mean() + _STRAY_WEIGHT * _straying(heatmaps[:n])
        return loss + _POINT_WEIGHT * _point_loss(out.heatmaps[n:], batch.points)

    def score(self, network: EmoNet) -> tuple[float, dict[str, float]]:
        """Judge all outputs on the validation pictures; the score is their mean quality."""
        predictor = Predictor(network, self._checkpoint, str(self._device), self._precision)
        rows = self._split.validation
        said = of_fer2013(predictor, self._faces.images[rows], mirror=False)
        scores = score_expressions(said.probabilities, self._faces.labels[rows])
        error = float(
            landmark_errors_of(predictor, self._landmarked, self._landmark_validation).mean()
        )
        told = {
            "accuracy": scores.accuracy,
            "macro_recall": float(np.nanmean(scores.recall)),
            "valence_ccc": concordance(said.valence, self._dimensions[rows, 0]),
            "arousal_ccc": concordance(said.arousal, self._dimensions[rows, 1]),
        }
        quality = [*told.values(), 1 - error]
        return float(np.mean(quality)), {**told, "landmark_error": error}


def without_outliers(votes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Leave out single votes, where others remain.

    Args:
        votes: (n, classes), each row a distribution.

    Returns:
        (n, classes) float32, each row a distribution.
    """
    kept = np.where(votes < ONE_VOTE, 0, votes)
    kept = np.where(kept.sum(axis=1, keepdims=True) > 0, kept, votes)
    return np.asarray(kept / kept.sum(axis=1, keepdims=True), np.float32)


def class_weights(votes: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    """What each class weighs in the loss, see `emonet.training.trainer.balancing`.

    Args:
        votes: (n, 8) of the pictures that are learnt from, each row a distribution.
        power: see there.
    """
    return balancing(without_outliers(votes), power)


def dimensions(votes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Valence and arousal that votes stand for on average.

    Args:
        votes: (n, 8), each row a distribution over `EMOTIONS_8`.

    Returns:
        (n, 2) float32 valence and arousal.
    """
    coordinates = np.array([VALENCE_AROUSAL[name] for name in EMOTIONS_8], np.float32)
    return (votes @ coordinates).astype(np.float32)


def gaussians(points: Tensor, cells: int) -> Tensor:
    """Target heatmaps: a Gaussian of height 1 and one cell's standard deviation at each point.

    Args:
        points: (n, k, 2) x and y in crop pixels.
        cells: side of a heatmap; a cell is STRIDE crop pixels wide.

    Returns:
        (n, k, cells, cells) float32.
    """
    centres = torch.arange(cells, device=points.device) + 0.5
    distances = (centres - points[..., None] / STRIDE).square() / (2 * _SIGMA**2)
    columns, rows = (-distances).exp().unbind(dim=2)
    return rows[..., :, None] * columns[..., None, :]


def _dimension_loss(said: Tensor, truth: Tensor) -> Tensor:
    """Squared error, and what the concordance of valence and of arousal lacks to 1."""
    deviations, deviations_true = said - said.mean(dim=0), truth - truth.mean(dim=0)
    covariance = (deviations * deviations_true).mean(dim=0)
    spread = deviations.square().mean(dim=0) + deviations_true.square().mean(dim=0)
    apart = (said.mean(dim=0) - truth.mean(dim=0)).square()
    agreement = 2 * covariance / (spread + apart + _TINY)
    return (said - truth).square().mean() + (1 - agreement).mean()


def _point_loss(heatmaps: Tensor, points: Tensor) -> Tensor:
    """Error, in cells, of the points that the heatmaps' peaks give, where these are near."""
    found, _ = peaks(heatmaps)
    errors = (found - points) / STRIDE
    near = (errors.abs() < _REACH).all(dim=2, keepdim=True)
    each = F.smooth_l1_loss(errors, torch.zeros_like(errors), beta=0.5, reduction="none")
    return (each * near).sum() / near.sum().clamp(min=1)


def _straying(heatmaps: Tensor) -> Tensor:
    """How far heatmaps without a target leave [0, 1] by more than `_TOLERATED`.

    Their sum weighs the features that the emotion is told from: where it bursts, so do valence and
    arousal.
    """
    outside = ((heatmaps - 0.5).abs() - 0.5 - _TOLERATED).clamp(min=0)
    return outside.square().sum(dim=(2, 3)).mean()

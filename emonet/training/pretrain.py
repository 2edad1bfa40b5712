"""Pretraining: expressions, valence, arousal and landmarks at once.

A batch holds faces with FER+'s votes and faces with landmarks; each contributes to the losses that
it has labels for. Valence and arousal are not annotated: their targets are derived from the votes.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from emopipe.emonet.checkpoint import Checkpoint
from emopipe.emonet.data import augmentation
from emopipe.emonet.data.augmentation import augment
from emopipe.emonet.data.fer2013 import FaceSet
from emopipe.emonet.data.landmarks68 import LandmarkSet
from emopipe.emonet.data.splits import Split
from emopipe.emonet.errors import TrainingError
from emopipe.emonet.inference import landmark_errors_of, predict_fer2013
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.landmarks import decode_heatmaps
from emopipe.emonet.metrics import concordance, score_expressions
from emopipe.emonet.model import STRIDE, EmoNet
from emopipe.emonet.predictor import Predictor
from emopipe.emonet.training.config import Pretraining
from emopipe.emonet.training.trainer import class_weights_of, steps_of

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
emotions", Journal of Research in Personality 11, 273-294 (1977). Neutral is the origin; the value
of contempt is our own, milder than disgust."""

ONE_VOTE = 0.15
"""A smaller share of FER+'s votes for emotions is a single vote, if there are seven or more votes:
an outlier, which is removed from the targets (Barsoum et al. 2016)."""

IMAGE_SCALE = 1.5
"""Side of the stored landmark images over that of the network's input. The crops then have about as
many pixels as the input."""

_SIGMA = 1.0  # of the target heatmaps' Gaussians, cells
_HEATMAP_WEIGHT = 0.5  # a Gaussian of one cell has the squared sum π
_POINT_WEIGHT = 0.5  # error in cells
_REACH = 2.0  # error in cells from which on the gradient of a decoded point is meaningless
_RANGE_WEIGHT = 0.1
_TOLERATED = 0.3  # how far heatmaps without a target may leave [0, 1]
_TINY = 1e-6


class Batch(NamedTuple):
    """Faces with votes, then faces with landmarks.

    Attributes:
        crops: (n + m, 3, size, size) float32 RGB in [0, 1].
        votes: (n, 8) float32, each row a distribution.
        dimensions: (n, 2) float32, valence and arousal.
        points: (m, 68, 2) float32 in crop pixels.
    """

    crops: Tensor
    votes: Tensor
    dimensions: Tensor
    points: Tensor


class PretrainingTask:
    """Learning all outputs of EmoNet; a `emonet.training.trainer.Task`.

    Args:
        faces: images with FER+'s votes.
        split: their use.
        landmarked: images with landmarks.
        landmark_split: their rows to train on, and those to select by.
        settings: what to learn.
        checkpoint: describes the network that is trained.
        batch_size: faces with votes per step and worker.
        seed: of order and augmentation.
        device: of the network.
        precision: of the network in the evaluation.

    Attributes:
        class_weights: (8,) float32, weight of each class in the loss.

    Raises:
        TrainingError: the images have other classes.
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
            raise TrainingError(f"{faces.source} has no FER+ votes: give them as `ferplus`")
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
        """Batches of an epoch, a pass over the faces with votes, for each worker."""
        return steps_of(len(self._split.train), self._batch_size, workers)

    def batches(
        self, epoch: int, worker: int, workers: int, *, cooldown: bool = False
    ) -> Iterator[Batch]:
        """One worker's batches of an epoch, see `Task.batches`."""
        faces, landmarked = self._settings.faces, self._settings.landmarked
        if cooldown:
            faces, landmarked = faces.halved(), landmarked.halved()
        rng = np.random.default_rng((self._seed, epoch, 1))
        order = rng.permutation(self._split.train)
        needed = self.steps(workers) * workers * self._landmark_size
        rounds = -(-needed // len(self._landmark_train))
        landmark_order = np.concatenate(
            [rng.permutation(self._landmark_train) for _ in range(rounds)]
        )
        params = augmentation.random_params(self._seed, 2 * epoch, len(order))
        landmark_params = augmentation.random_params(self._seed, 2 * epoch + 1, needed)
        for step in range(self.steps(workers)):
            position = step * workers + worker
            some = slice(position * self._batch_size, (position + 1) * self._batch_size)
            others = slice(position * self._landmark_size, (position + 1) * self._landmark_size)
            rows, landmark_rows = order[some], landmark_order[others]
            with_votes = augment(
                torch.from_numpy(self._faces.images[rows])[:, None].to(self._device),
                torch.from_numpy(params[some]).to(self._device),
                self._checkpoint.input_size,
                faces,
            )
            with_landmarks, points = self._landmarked.augmented(
                landmark_rows,
                self._checkpoint.crop,
                self._checkpoint.input_size,
                torch.from_numpy(landmark_params[others]).to(self._device),
                landmarked,
            )
            crops = torch.cat((with_votes, with_landmarks))
            yield Batch(
                crops.contiguous(memory_format=torch.channels_last),
                torch.from_numpy(self._votes[rows]).to(self._device),
                torch.from_numpy(self._dimensions[rows]).to(self._device),
                points,
            )

    def loss(self, network: Callable[[Tensor], Any], batch: Batch) -> Tensor:
        """Sum of the losses of expressions, of valence and arousal, and of landmarks."""
        out = network(batch.crops)
        n = len(batch.votes)
        expression = F.cross_entropy(out.logits[:n].float(), batch.votes, weight=self.class_weights)
        predicted = torch.stack((out.valence[:n], out.arousal[:n]), dim=1).float()
        loss = expression + _dimension_loss(predicted, batch.dimensions)
        targets = gaussians(batch.points, out.heatmaps.shape[-1])
        for heatmaps in (out.heatmaps.float(), out.first_heatmaps.float()):
            squares = (heatmaps[n:] - targets).square().sum(dim=(2, 3))
            loss = (
                loss + _HEATMAP_WEIGHT * squares.mean() + _RANGE_WEIGHT * _range_loss(heatmaps[:n])
            )
        return loss + _POINT_WEIGHT * _point_loss(out.heatmaps[n:], batch.points)

    def score(self, network: EmoNet) -> tuple[float, dict[str, float]]:
        """Evaluate all outputs on the validation images; the score is their mean quality."""
        predictor = Predictor(
            network, self._checkpoint, str(self._device), self._precision, mirror=False
        )
        rows = self._split.validation
        prediction = predict_fer2013(predictor, self._faces.images[rows])
        expressions = score_expressions(prediction.probabilities, self._faces.labels[rows])
        error = float(
            landmark_errors_of(predictor, self._landmarked, self._landmark_validation).mean()
        )
        scores = {
            "accuracy": expressions.accuracy,
            "macro_recall": float(np.nanmean(expressions.recall)),
            "valence_ccc": concordance(prediction.valence, self._dimensions[rows, 0]),
            "arousal_ccc": concordance(prediction.arousal, self._dimensions[rows, 1]),
        }
        quality = [*scores.values(), 1 - error]
        return float(np.mean(quality)), {**scores, "landmark_error": error}


def without_outliers(votes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Remove single votes where other votes remain.

    Args:
        votes: (n, classes), each row a distribution.

    Returns:
        (n, classes) float32, each row a distribution.
    """
    kept = np.where(votes < ONE_VOTE, 0, votes)
    kept = np.where(kept.sum(axis=1, keepdims=True) > 0, kept, votes)
    return np.asarray(kept / kept.sum(axis=1, keepdims=True), np.float32)


def class_weights(votes: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    """Loss weights of the classes, see `emonet.training.trainer.class_weights_of`.

    Args:
        votes: (n, 8) of the images to train on, each row a distribution.
        power: see there.

    Returns:
        (8,) float32.
    """
    return class_weights_of(without_outliers(votes), power)


def dimensions(votes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Valence and arousal of votes: the mean of `VALENCE_AROUSAL` over them.

    Args:
        votes: (n, 8), each row a distribution over `EMOTIONS_8`.

    Returns:
        (n, 2) float32 valence and arousal.
    """
    coordinates = np.array([VALENCE_AROUSAL[name] for name in EMOTIONS_8], np.float32)
    return (votes @ coordinates).astype(np.float32)


def gaussians(points: Tensor, cells: int) -> Tensor:
    """Target heatmaps: at each point a Gaussian of height 1 and a standard deviation of one cell.

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


def _dimension_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error, plus 1 - CCC averaged over valence and arousal; both (n, 2)."""
    deviations, deviations_true = predicted - predicted.mean(dim=0), truth - truth.mean(dim=0)
    covariance = (deviations * deviations_true).mean(dim=0)
    spread = deviations.square().mean(dim=0) + deviations_true.square().mean(dim=0)
    offset = (predicted.mean(dim=0) - truth.mean(dim=0)).square()
    ccc = 2 * covariance / (spread + offset + _TINY)
    return (predicted - truth).square().mean() + (1 - ccc).mean()


def _point_loss(heatmaps: Tensor, points: Tensor) -> Tensor:
    """Error of the decoded points, in cells, over the points that are close to the truth.

    Args:
        heatmaps: (m, 68, cells, cells).
        points: (m, 68, 2) x and y in crop pixels, the truth.

    Returns:
        Scalar: the smooth L1 loss, summed over x and y, averaged over these points; 0 if there are
        none.
    """
    found, _ = decode_heatmaps(heatmaps)
    errors = (found - points) / STRIDE
    near = (errors.abs() < _REACH).all(dim=2, keepdim=True)
    each = F.smooth_l1_loss(errors, torch.zeros_like(errors), beta=0.5, reduction="none")
    return (each * near).sum() / near.sum().clamp(min=1)


def _range_loss(heatmaps: Tensor) -> Tensor:
    """Penalty for heatmaps without a target that leave [0, 1] by more than `_TOLERATED`.

    The sum of the heatmaps is the attention over the emotion branch's features: where it explodes,
    so do valence and arousal.

    Args:
        heatmaps: (n, 68, cells, cells).

    Returns:
        Scalar: the squared excess, summed over cells and averaged over heatmaps.
    """
    outside = ((heatmaps - 0.5).abs() - 0.5 - _TOLERATED).clamp(min=0)
    return outside.square().sum(dim=(2, 3)).mean()

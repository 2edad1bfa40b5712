"""Transfer learning: a start model's network learns the expressions of another data set.

The last layer gets new rows for the expressions; classes that the start model has start from its
rows. Valence, arousal and landmarks are preserved: their weights are frozen, or a distillation loss
keeps the outputs close to the start model's on the same images (Li, Hoiem, "Learning without
Forgetting", ECCV 2016).
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
from emopipe.emonet.data.splits import Split
from emopipe.emonet.inference import predict_fer2013
from emopipe.emonet.metrics import score_expressions
from emopipe.emonet.model import EmoNet
from emopipe.emonet.predictor import Predictor
from emopipe.emonet.training.config import FineTuning
from emopipe.emonet.training.trainer import class_weights_of, steps_of

DISTILL_EVERY = 4
"""The start model predicts every fourth sample of a batch: enough for distillation, and it costs a
fraction of a step."""

_EMOTION_BRANCH = ("conv1x1_input_emo_2", "emo_net_2", "emo_fc_2")
_LAST_LAYER = "emo_fc_2.3"
_QUADRATIC_UP_TO = 0.1  # error of valence or arousal from which on the distillation loss is linear
_HEATMAP_WEIGHT = 0.2  # a Gaussian of one cell has the squared sum π; valence's scale is 1


class Batch(NamedTuple):
    """Crops (n, 3, size, size) float32 RGB in [0, 1] and targets (n, classes) float32."""

    crops: Tensor
    targets: Tensor


def initial_network(
    start: EmoNet,
    start_classes: tuple[str, ...],
    classes: tuple[str, ...],
    trained: str,
    seed: int,
) -> EmoNet:
    """Make the network to be trained; only its trained parameters require gradients.

    Args:
        start: the start model.
        start_classes: its classes.
        classes: those to be learnt.
        trained: one of `PARTS`.
        seed: of the random rows of classes that the start model does not have.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = EmoNet(len(classes), start.width)
    state = start.state_dict()
    fresh = network.state_dict()
    sources = [
        *(start_classes.index(name) if name in start_classes else None for name in classes),
        *(-2, -1),  # valence and arousal
    ]
    for name in (f"{_LAST_LAYER}.weight", f"{_LAST_LAYER}.bias"):
        rows = [fresh[name][i] if s is None else state[name][s] for i, s in enumerate(sources)]
        state[name] = torch.stack(rows)
    network.load_state_dict(state)
    for name, parameter in network.named_parameters():
        parameter.requires_grad = (
            trained == "all"
            or (trained == "emotion" and name.startswith(_EMOTION_BRANCH))
            or name.startswith(_LAST_LAYER)
        )
    if trained == "head":
        last = network.get_submodule(_LAST_LAYER)
        for parameter in last.parameters():
            parameter.register_hook(_zero_last_two)  # type: ignore[no-untyped-call]
    return network


class FineTuningTask:
    """Learning the classes of a `FaceSet`; a `emonet.training.trainer.Task`.

    Args:
        faces: the images.
        split: their use.
        settings: what to learn.
        start: the start model, in evaluation mode; moved to the device. None without distillation.
        checkpoint: describes the network that is trained.
        batch_size: samples per step and worker.
        seed: of order and augmentation.
        device: of the network.
        precision: of the network in the evaluation.

    Attributes:
        class_weights: (classes,) float32, weight of each class in the loss.
    """

    def __init__(
        self,
        faces: FaceSet,
        split: Split,
        settings: FineTuning,
        start: EmoNet | None,
        checkpoint: Checkpoint,
        batch_size: int,
        seed: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self._faces = faces
        self._split = split
        self._settings = settings
        self._start = start.to(device).eval() if start and settings.distill else None
        self._checkpoint = checkpoint
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._precision = precision
        power = 1.0 if settings.balance == "loss" else 0.0
        weights = class_weights_of(faces.targets[split.train], power)
        self.class_weights = torch.from_numpy(weights).to(device)
        self._sampling = _inverse_frequency(faces.labels[split.train])

    def steps(self, workers: int) -> int:
        """Batches of an epoch for each worker; an incomplete last one is dropped."""
        return steps_of(len(self._split.train), self._batch_size, workers)

    def batches(
        self, epoch: int, worker: int, workers: int, *, cooldown: bool = False
    ) -> Iterator[Batch]:
        """One worker's batches of an epoch, see `Task.batches`."""
        strength = self._settings.augmentation
        if cooldown:
            strength = strength.halved()
        order = self.rows(epoch)
        params = augmentation.random_params(self._seed, epoch, len(order))
        for step in range(self.steps(workers)):
            first = (step * workers + worker) * self._batch_size
            positions = slice(first, first + self._batch_size)
            rows = order[positions]
            crops = augment(
                torch.from_numpy(self._faces.images[rows])[:, None].to(self._device),
                torch.from_numpy(params[positions]).to(self._device),
                self._checkpoint.input_size,
                strength,
            )
            targets = torch.from_numpy(self._faces.targets[rows]).to(self._device)
            yield Batch(crops.contiguous(memory_format=torch.channels_last), targets)

    def loss(self, network: Callable[[Tensor], Any], batch: Batch) -> Tensor:
        """Cross-entropy with the targets, and the distillation loss."""
        out = network(batch.crops)
        smoothing = self._settings.smoothing
        targets = batch.targets * (1 - smoothing) + smoothing / batch.targets.shape[1]
        each = F.cross_entropy(out.logits.float(), targets, reduction="none")
        loss = (each * (batch.targets @ self.class_weights)).mean()
        if self._start is None or self._settings.trained == "head":
            return loss
        with torch.no_grad():
            teacher = self._start(batch.crops[::DISTILL_EVERY])
        return loss + self._settings.distill * _distillation_loss(
            out, teacher, heatmaps=self._settings.trained == "all"
        )

    def score(self, network: EmoNet) -> tuple[float, dict[str, float]]:
        """Weighted F1 to select by, and further scores, on the validation images."""
        rows = self._split.validation
        predictor = Predictor(
            network, self._checkpoint, str(self._device), self._precision, mirror=False
        )
        prediction = predict_fer2013(predictor, self._faces.images[rows])
        scores = score_expressions(prediction.probabilities, self._faces.labels[rows])
        return scores.weighted_f1, {
            "accuracy": scores.accuracy,
            "macro_f1": scores.macro_f1,
            "weighted_f1": scores.weighted_f1,
            "calibration_error": scores.calibration_error,
        }

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """An epoch's rows of the face set, in training order: (n,) int64."""
        rng = np.random.default_rng((self._seed, epoch, 1))
        train = self._split.train
        if self._settings.balance == "sampling":
            return rng.choice(train, len(train), p=self._sampling)
        return rng.permutation(train)


def _distillation_loss(out: Any, teacher: Any, *, heatmaps: bool) -> Tensor:
    """Distance of every DISTILL_EVERY-th sample's outputs from the start model's."""
    loss = torch.zeros((), device=teacher.valence.device)
    for name in ("valence", "arousal"):
        # Raw outputs may be far outside of [-1, 1]. The target is clamped, as reported, and the
        # loss linear for large errors, so that one image does not dominate the batch.
        target = getattr(teacher, name).float().clamp(-1, 1)
        predicted = getattr(out, name)[::DISTILL_EVERY].float()
        loss = loss + F.smooth_l1_loss(predicted, target, beta=_QUADRATIC_UP_TO)
    if heatmaps:
        for name in ("heatmaps", "first_heatmaps"):
            predicted = getattr(out, name)[::DISTILL_EVERY].float()
            target = getattr(teacher, name).float()
            # Not squared: heatmaps explode on a few images, which would dominate the batch.
            errors = F.smooth_l1_loss(predicted, target, reduction="none")
            loss = loss + _HEATMAP_WEIGHT * errors.sum(dim=(2, 3)).mean()
    return loss


def _zero_last_two(gradient: Tensor) -> Tensor:
    """A gradient of the last layer with zeros in the rows of valence and arousal."""
    masked = gradient.clone()
    masked[-2:] = 0
    return masked


def _inverse_frequency(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities of sampling each image, (n,), that make all classes equally frequent."""
    weights = 1 / np.bincount(labels)[labels]
    return np.asarray(weights / weights.sum(), np.float64)

"""The training loop: plain PyTorch, one process or several, resumed exactly.

What is learnt, from what data, is a `Task`; this is the rest: schedule, precision, clipping,
averaged weights, early stopping, and a state that holds all that the next epoch depends on. Where
`torch.distributed` is initialised (Ray Train does that) each process is a worker.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from emopipe.emonet.model import EmoNet
from emopipe.emonet.training.config import TrainingError, TrainingSettings

Tensors = tuple[Tensor, ...] | list[Tensor]

_UNDECAYED = "emo_fc_2.3"  # the last layer: those of its rows that are held must not shrink


class Task(Protocol):
    """What is learnt."""

    def steps(self, workers: int) -> int:
        """How many batches an epoch has for each worker."""

    def batches(
        self, epoch: int, worker: int, workers: int, *, settling: bool = False
    ) -> Iterator[Any]:
        """One worker's batches of an epoch, the same whenever they are asked for again.

        While `settling`, in the last epochs, pictures are changed less.
        """

    def loss(self, network: Callable[[Tensor], Any], batch: Any) -> Tensor:
        """The mean loss of a batch, given what runs the network; called under autocast."""

    def score(self, network: EmoNet) -> tuple[float, dict[str, float]]:
        """Judge averaged weights: what to select by (more is better) and what to report."""


@dataclass(frozen=True)
class Epoch:
    """What became of one epoch.

    Attributes:
        number: from 1.
        loss: mean over its batches and workers.
        learning_rate: at its end.
        samples_per_second: of all workers, the scoring not counted.
        data_share: share of the steps' time that went into making batches.
        score: what the weights are selected by.
        scores: what the task reports.
        best: whether this is the best so far.
    """

    number: int
    loss: float
    learning_rate: float
    samples_per_second: float
    data_share: float
    score: float
    scores: dict[str, float]
    best: bool


class Trainer:
    """Trains a network, an epoch at a time.

    Parameters that do not require a gradient stay as they are, and so do the statistics of batch
    norms whose weights do not.

    Args:
        network: trained in place.
        task: what to learn.
        settings: how.
        device: where to.
        on_step: told (epoch, step, steps, loss) after each.
    """

    def __init__(
        self,
        network: EmoNet,
        task: Task,
        settings: TrainingSettings,
        device: torch.device,
        on_step: Callable[[int, int, int, float], None] | None = None,
    ) -> None:
        self._task = task
        self._settings = settings
        self._device = device
        self._on_step = on_step or (lambda *_: None)
        spread = distributed.is_available() and distributed.is_initialized()
        self._worker = distributed.get_rank() if spread else 0
        self._workers = distributed.get_world_size() if spread else 1
        self._network = network.to(device)
        # PyTorch's stubs lack this overload.
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._runner: nn.Module = (
            DistributedDataParallel(self._network) if self._workers > 1 else self._network
        )
        self._averaged = AveragedModel(self._network, multi_avg_fn=self._average, use_buffers=True)
        self._optimizer = torch.optim.AdamW(_groups(self._network, settings.weight_decay), lr=0.0)
        self._steps = task.steps(self._workers)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}

    def epochs(self) -> Iterator[Epoch]:
        """Train the epochs that are left; after each, `state` holds it.

        Raises:
            TrainingError: the loss is no longer a number.
        """
        while len(self.history) < self._settings.epochs and self._patience_left() > 0:
            epoch = self._epoch(len(self.history) + 1)
            self.history.append(epoch)
            yield epoch

    def state(self) -> dict[str, Any]:
        """Return all that the next epoch depends on; `torch.save` takes it."""
        return {
            "settings": asdict(self._settings),
            "network": self._network.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "best": self.best,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from another trainer's state.

        Raises:
            TrainingError: it was made with other settings.
        """
        ours = asdict(self._settings)
        if differing := [k for k in ours if state["settings"].get(k) != ours[k]]:
            raise TrainingError(
                f"the run was begun with another {' and another '.join(differing)}: "
                "go on with the same, or begin a new run"
            )
        self._network.load_state_dict(state["network"])
        self._averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best = state["best"]

    def _epoch(self, number: int) -> Epoch:
        first_settling = self._settings.epochs - self._settings.settle + 1
        if number == first_settling:
            self._network.load_state_dict(self._averaged.module.state_dict())
        settling = number >= first_settling
        self._set_modes(settling=settling)
        total, waited = 0.0, 0.0
        began = before = time.perf_counter()
        batches = self._task.batches(number, self._worker, self._workers, settling=settling)
        for step, batch in enumerate(batches):
            waited += time.perf_counter() - before
            loss = self._step((number - 1) * self._steps + step, batch)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {step + 1} of epoch {number}: "
                    "begin again with a lower --learning-rate, or --precision float32"
                )
            total += loss
            self._on_step(number, step + 1, self._steps, loss)
            before = time.perf_counter()
        seconds = time.perf_counter() - began
        score, scores, loss = self._judged(total / self._steps)
        best = not math.isnan(score) and score > self._best_score()
        if best:
            # A copy: the averaged weights go on changing.
            state = self._averaged.module.state_dict()
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        samples = self._steps * self._settings.batch_size * self._workers
        return Epoch(
            number=number,
            loss=loss,
            learning_rate=self._optimizer.param_groups[0]["lr"],
            samples_per_second=samples / seconds,
            data_share=waited / seconds,
            score=score,
            scores=scores,
            best=best,
        )

    def _step(self, index: int, batch: Any) -> float:
        rate = learning_rate(index, self._steps * self._settings.epochs, self._settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        dtype = getattr(torch, self._settings.precision)
        with torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
            loss = self._task.loss(self._runner, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._network.parameters(), self._settings.clip)
        self._optimizer.step()
        self._averaged.update_parameters(self._network)
        return loss.item()

    def _judged(self, loss: float) -> tuple[float, dict[str, float], float]:
        """Score, scores and mean loss: the first worker's word, so that all stop together."""
        if self._workers > 1:
            mean = torch.tensor(loss, device=self._device)
            distributed.all_reduce(mean)
            loss = mean.item() / self._workers
        said: list[Any] = [None]
        if self._worker == 0:
            # Judging may convert the network it is given.
            judged = cast(EmoNet, copy.deepcopy(self._averaged.module).eval())
            said = [self._task.score(judged)]
        if self._workers > 1:
            distributed.broadcast_object_list(said, device=self._device)
        score, scores = said[0]
        return score, scores, loss

    def _average(self, averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        """Exponential moving average; of few steps it is shorter, as the first are far off."""
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        steps = int(count)
        decay = min(self._settings.ema, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def _set_modes(self, *, settling: bool) -> None:
        keeps = settling or self._settings.batch_norm == "frozen"
        self._runner.train()
        for module in self._network.modules():
            if isinstance(module, _BatchNorm):
                module.train(module.weight.requires_grad and not keeps)

    def _best_score(self) -> float:
        return max((e.score for e in self.history if e.best), default=-math.inf)

    def _patience_left(self) -> int:
        last_best = max((e.number for e in self.history if e.best), default=0)
        return last_best + self._settings.patience - len(self.history)


def learning_rate(step: int, steps: int, settings: TrainingSettings) -> float:
    """The rate of one step: a linear rise, then half cosines down to 0.

    Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.

    Args:
        step: from 0.
        steps: of the whole training.
        settings: highest rate, warm-up and cycles.
    """
    rising = round(settings.warmup * steps)
    if step < rising:
        return settings.learning_rate * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising) * settings.cycles
    return settings.learning_rate * (1 + math.cos(math.pi * (done % 1))) / 2


def steps_of(pictures: int, batch_size: int, workers: int) -> int:
    """How many whole batches an epoch has for each worker; an incomplete last one is left out.

    Raises:
        TrainingError: there is less than one.
    """
    steps = pictures // (batch_size * workers)
    if not steps:
        raise TrainingError(
            f"{pictures} pictures to learn from are less than one batch for each of {workers} "
            f"workers: lower --batch-size {batch_size}"
        )
    return steps


def balancing(targets: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    """Weigh classes by how rare they are.

    Args:
        targets: (n, classes), each row a distribution.
        power: 0 for all alike, 1 for in inverse proportion to their share.

    Returns:
        (classes,) float32, 0 for one that never occurs; over the targets their mean is 1, so that
        the learning rate means the same.
    """
    shares = targets.mean(axis=0, dtype=np.float64)
    weights = np.zeros(len(shares))
    np.power(shares, -power, out=weights, where=shares > 0)
    return np.asarray(weights / (weights * shares).sum(), np.float32)


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters with and without decay."""
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.ndim > 1 and not name.startswith(_UNDECAYED)]
    rest = [p for name, p in trained if p.ndim <= 1 or name.startswith(_UNDECAYED)]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]

"""The training loop in plain PyTorch, in one process or several, exactly resumable.

A `Task` defines the data, the loss and the score. The trainer does the rest: schedule, precision,
gradient clipping, averaged weights, early stopping, and a state with all that the next epoch
depends on. Where `torch.distributed` is initialised (as by Ray Train), each process is a worker.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from emopipe.emonet.errors import TrainingError
from emopipe.emonet.model import EmoNet
from emopipe.emonet.predictor import resolve_device, resolve_precision
from emopipe.emonet.training.config import COOLDOWN_EPOCHS, TrainingConfig

Tensors = tuple[Tensor, ...] | list[Tensor]

_NOT_DECAYED = "emo_fc_2.3"  # the last layer: rows that are not trained must not shrink


class Task(Protocol):
    """What is learnt: data, loss and score."""

    def steps(self, workers: int) -> int:
        """Batches of an epoch for each worker."""

    def batches(
        self, epoch: int, worker: int, workers: int, *, cooldown: bool = False
    ) -> Iterator[Any]:
        """One worker's batches of an epoch; the same at every call with the same arguments.

        Args:
            epoch: from 1.
            worker: rank of the worker, from 0.
            workers: how many there are.
            cooldown: whether images are augmented less, as in the cooldown epochs.
        """

    def loss(self, network: Callable[[Tensor], Any], batch: Any) -> Tensor:
        """Mean loss of a batch; `network` runs the trained network. Called under autocast."""

    def score(self, network: EmoNet) -> tuple[float, dict[str, float]]:
        """Evaluate the averaged weights: the score to select by (more is better), and figures."""


@dataclass(frozen=True)
class Epoch:
    """Result of one epoch.

    Attributes:
        number: from 1.
        loss: mean over batches and workers.
        learning_rate: of the last step.
        samples_per_second: of all workers together, without the time for scoring.
        data_share: share of the steps' time spent on making batches.
        score: the averaged weights are selected by it; more is better.
        scores: further figures of the task, by name.
        best: whether the score is the best so far.
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
    """Trains a network, one epoch at a time.

    Parameters that do not require a gradient are not changed, nor are the statistics of batch norms
    whose weights do not require one.

    Args:
        network: trained in place.
        task: what to learn.
        config: how to train.
        device: where to train.
        on_step: called with (epoch, step, steps, loss) after each step.

    Attributes:
        history: the epochs so far.
        best: averaged weights of the best epoch, on the CPU; empty before there is one.
    """

    def __init__(
        self,
        network: EmoNet,
        task: Task,
        config: TrainingConfig,
        device: torch.device,
        on_step: Callable[[int, int, int, float], None] | None = None,
    ) -> None:
        self._task = task
        self._config = resolved(config, gpu=device.type == "cuda")
        self._device = device
        self._on_step = on_step or (lambda *_: None)
        several = distributed.is_available() and distributed.is_initialized()
        self._worker = distributed.get_rank() if several else 0
        self._workers = distributed.get_world_size() if several else 1
        self._network = network.to(device)
        # PyTorch's stubs lack this overload.
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._runner: nn.Module = (
            DistributedDataParallel(self._network) if self._workers > 1 else self._network
        )
        self._averaged = AveragedModel(self._network, multi_avg_fn=self._average, use_buffers=True)
        self._optimizer = torch.optim.AdamW(_groups(self._network, config.weight_decay), lr=0.0)
        self._steps = task.steps(self._workers)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}

    def epochs(self) -> Iterator[Epoch]:
        """Train the remaining epochs; `state` includes each epoch when it is yielded.

        Raises:
            TrainingError: the loss is not finite.
        """
        while len(self.history) < self._config.epochs and self._patience_left() > 0:
            epoch = self._epoch(len(self.history) + 1)
            self.history.append(epoch)
            yield epoch

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on, in types that `torch.save` takes."""
        return {
            "config": asdict(self._config),
            "network": self._network.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "best": self.best,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from the state of another trainer.

        Raises:
            TrainingError: it was made with another configuration.
        """
        ours = asdict(self._config)
        if differing := [f"`{k}`" for k in ours if state["config"].get(k) != ours[k]]:
            raise TrainingError(
                f"the run was begun with another {' and another '.join(differing)}: "
                "continue with the same, or begin a new run"
            )
        self._network.load_state_dict(state["network"])
        self._averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best = state["best"]

    def _epoch(self, number: int) -> Epoch:
        first_cooldown = self._config.epochs - (self._config.cooldown_epochs or 0) + 1
        if number == first_cooldown:
            self._network.load_state_dict(self._averaged.module.state_dict())
        cooldown = number >= first_cooldown
        self._set_modes(cooldown=cooldown)
        total, waited = 0.0, 0.0
        began = before = time.perf_counter()
        batches = self._task.batches(number, self._worker, self._workers, cooldown=cooldown)
        for step, batch in enumerate(batches):
            waited += time.perf_counter() - before
            loss = self._step((number - 1) * self._steps + step, batch)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {step + 1} of epoch {number}: "
                    "begin again with a lower `learning_rate`, or `precision` float32"
                )
            total += loss
            self._on_step(number, step + 1, self._steps, loss)
            before = time.perf_counter()
        seconds = time.perf_counter() - began
        score, scores, loss = self._evaluate(total / self._steps)
        best = not math.isnan(score) and score > self._best_score()
        if best:
            # A copy: the averaged weights change with every further step.
            state = self._averaged.module.state_dict()
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        samples = self._steps * self._config.batch_size * self._workers
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
        rate = learning_rate(index, self._steps * self._config.epochs, self._config)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        dtype = getattr(torch, self._config.precision)
        with torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
            loss = self._task.loss(self._runner, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._network.parameters(), self._config.clip)
        self._optimizer.step()
        self._averaged.update_parameters(self._network)
        return loss.item()

    def _evaluate(self, loss: float) -> tuple[float, dict[str, float], float]:
        """Score, scores and mean loss, equal in all workers so that all stop at the same epoch."""
        if self._workers > 1:
            mean = torch.tensor(loss, device=self._device)
            distributed.all_reduce(mean)
            loss = mean.item() / self._workers
        result: list[Any] = [None]
        if self._worker == 0:
            # A copy: the task may convert the network to another precision.
            network = cast(EmoNet, copy.deepcopy(self._averaged.module).eval())
            result = [self._task.score(network)]
        if self._workers > 1:
            distributed.broadcast_object_list(result, device=self._device)
        score, scores = result[0]
        return score, scores, loss

    def _average(self, averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        """Exponential moving average, shorter in the first steps, whose weights are far off."""
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        steps = int(count)
        decay = min(self._config.ema, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def _set_modes(self, *, cooldown: bool) -> None:
        frozen = cooldown or self._config.batch_norm == "frozen"
        self._runner.train()
        for module in self._network.modules():
            if isinstance(module, _BatchNorm):
                module.train(module.weight.requires_grad and not frozen)

    def _best_score(self) -> float:
        return max((e.score for e in self.history if e.best), default=-math.inf)

    def _patience_left(self) -> int:
        last_best = max((e.number for e in self.history if e.best), default=0)
        return last_best + self._config.patience - len(self.history)


def resolved(config: TrainingConfig, *, gpu: bool) -> TrainingConfig:
    """Replace "auto" and None by the values they stand for.

    Args:
        config: as asked for.
        gpu: whether the network is trained on a GPU.
    """
    cooldown, precision = config.cooldown_epochs, config.precision
    if cooldown is None:
        cooldown = min(COOLDOWN_EPOCHS, config.epochs // 4)
    if precision == "auto":
        # GPUs used for training have bfloat16; float16 would need loss scaling.
        native = "bfloat16" if gpu else resolve_precision("auto", resolve_device("cpu"))
        precision = native if native == "bfloat16" else "float32"
    return replace(config, cooldown_epochs=cooldown, precision=precision)


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """Learning rate of one step: linear warm-up, then half cosines down to 0.

    Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.

    Args:
        step: from 0.
        steps: of the whole training.
        config: highest rate, warm-up and cycles.
    """
    rising = round(config.warmup * steps)
    if step < rising:
        return config.learning_rate * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising) * config.cycles
    return config.learning_rate * (1 + math.cos(math.pi * (done % 1))) / 2


def steps_of(images: int, batch_size: int, workers: int) -> int:
    """Whole batches of an epoch for each worker; an incomplete last batch is dropped.

    Raises:
        TrainingError: there is less than one.
    """
    steps = images // (batch_size * workers)
    if not steps:
        raise TrainingError(
            f"{images} images to train on are less than one batch for each of {workers} workers: "
            f"lower `batch_size` {batch_size}"
        )
    return steps


def class_weights_of(targets: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    """Loss weights of classes, larger for rare ones: share ** -power, normalised.

    Args:
        targets: (n, classes), each row a distribution.
        power: 0 for equal weights, 1 for weights in inverse proportion to the classes' shares.

    Returns:
        (classes,) float32, 0 for a class that never occurs; their mean over the targets is 1, so
        that the learning rate keeps its meaning.
    """
    shares = targets.mean(axis=0, dtype=np.float64)
    weights = np.zeros(len(shares))
    np.power(shares, -power, out=weights, where=shares > 0)
    return np.asarray(weights / (weights * shares).sum(), np.float32)


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters in two groups, with and without weight decay."""
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.ndim > 1 and not name.startswith(_NOT_DECAYED)]
    rest = [p for name, p in trained if p.ndim <= 1 or name.startswith(_NOT_DECAYED)]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]

"""What every training takes: data, start model, where it runs. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from emopipe.emonet.errors import TrainingError
from emopipe.emonet.fields import check_settings, documented, setting
from emopipe.emonet.training.config import TrainingConfig

if TYPE_CHECKING:  # the command line shows its help without PyTorch, which takes seconds to load
    import torch


@documented
@dataclass(frozen=True)
class ComputeConfig:
    """Where a training runs.

    Raises:
        TrainingError: a value of the wrong type or out of its range, or values that exclude each
            other.
    """

    local: bool = setting(False, "Train in this process, without Ray.", group="cluster")
    workers: int = setting(
        1, "Ray Train's processes that share each step.", group="cluster", least=1
    )
    gpu: bool | None = setting(
        None, "A GPU for each worker.", group="cluster", unset="if there is one"
    )
    cpus: int | None = setting(None, "CPUs for the run.", group="cluster", least=1, unset="all")
    address: str | None = setting(
        None,
        "Train on a running Ray cluster: auto, HOST:6379; all its nodes must see `out`.",
        group="cluster",
    )

    def __post_init__(self) -> None:
        check_settings(self, TrainingError)
        if self.local and (self.workers > 1 or self.address):
            raise TrainingError(
                "`local` trains in this process: `workers` and `address` are for Ray"
            )

    @property
    def device(self) -> torch.device:
        """Device of each worker's network."""
        from emopipe.emonet.predictor import resolve_device

        return resolve_device("cuda" if self.gpu else "cpu")

    def resolved(self) -> ComputeConfig:
        """Set `gpu` to whether PyTorch finds one here, where it is None.

        Raises:
            TrainingError: a GPU is asked for in this process, and there is none.
        """
        import torch

        found = torch.cuda.is_available()
        if self.local and self.gpu and not found:
            raise TrainingError("`gpu`: PyTorch finds no GPU here; leave it out")
        return replace(self, gpu=found if self.gpu is None else self.gpu)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every training takes.

    Attributes:
        data: FER2013, see `emonet.data.fer2013.read`.
        skip_bad: leave out its rows that cannot be read.
        start_model: name or path of the checkpoint to start from; None for random weights.
        training: how to train.
        compute: where to train.
    """

    data: Path
    skip_bad: bool
    start_model: str | None
    training: TrainingConfig
    compute: ComputeConfig

    def resolved(self) -> Self:
        """Replace what is left to the machine by its values; see `ComputeConfig.resolved`.

        Raises:
            TrainingError: see there.
        """
        from emopipe.emonet.training.trainer import resolved

        compute = self.compute.resolved()
        training = resolved(self.training, gpu=bool(compute.gpu))
        return replace(self, compute=compute, training=training)

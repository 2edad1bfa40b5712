"""Where a training runs: in this process or on Ray, with how many workers. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from emopipe.emonet.errors import TrainingError
from emopipe.emonet.fields import check_settings, documented, setting

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

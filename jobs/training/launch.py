"""Where a trainer runs: in this process or in Ray Train's workers, its state kept each epoch."""

import ctypes
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.files import appearing_whole
from emopipe.emonet.predictor import resolve_device
from emopipe.emonet.training.trainer import Epoch, Trainer
from emopipe.pipeline.local import use_threads

STATE = "state.pt"
_RAY_RUN = "ray"  # folder of Ray Train's files inside the run's

# From malloc.h; the largest block that can be kept is glibc's limit on 64-bit systems.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 32 << 20  # bytes
_KEPT = 2**31 - 1  # bytes

OnStep = Callable[[int, int, int, float], None]
MakeTrainer = Callable[[OnStep], Trainer]


@dataclass(frozen=True)
class Place:
    """Where to train.

    Attributes:
        local: in this process, without Ray.
        workers: processes that share each step, Ray's.
        gpu: whether each has a GPU.
        cpus: CPUs for all of them; None for all of this machine's.
        address: of a running Ray cluster; None to start Ray on this machine.
    """

    local: bool = False
    workers: int = 1
    gpu: bool = False
    cpus: int | None = None
    address: str | None = None

    @property
    def device(self) -> torch.device:
        """Where each process's network is."""
        return resolve_device("cuda" if self.gpu else "cpu")


class Watcher(Protocol):
    """Is told how a training goes on."""

    def resumed(self, history: list[Epoch]) -> None:
        """An earlier run did these epochs."""

    def stepped(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """A step is done."""

    def epoch_done(self, epoch: Epoch) -> None:
        """An epoch is done and kept."""


def train(make: MakeTrainer, folder: Path, place: Place, watcher: Watcher) -> dict[str, Any]:
    """Train to the end, going on from the state that an earlier run left in the folder.

    Args:
        make: makes the trainer, given what to tell of each step; with Ray it is sent to workers.
        folder: the run's.
        place: where.
        watcher: is told how it goes on.

    Returns:
        The trainer's last state.

    Raises:
        EmopipeError: training failed, or Ray does not start.
    """
    return (_train_here if place.local else _train_on_ray)(make, folder, place, watcher)


def _train_here(make: MakeTrainer, folder: Path, place: Place, watcher: Watcher) -> dict[str, Any]:
    use_threads(place.cpus)
    _keep_freed_memory()
    trainer = make(watcher.stepped)
    path = folder / STATE
    if path.exists():
        trainer.load_state(_loaded(path))
        watcher.resumed(trainer.history)
    for epoch in trainer.epochs():
        with appearing_whole(path) as growing:
            torch.save(trainer.state(), growing)
        watcher.epoch_done(epoch)
    return trainer.state()


def _train_on_ray(
    make: MakeTrainer, folder: Path, place: Place, watcher: Watcher
) -> dict[str, Any]:
    # Loaded here: training in this process needs no Ray.
    import ray
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    from emopipe.jobs.cluster import ClusterError, ClusterOptions, ray_session

    options = ClusterOptions(place.address, place.cpus, None if place.gpu else 0)
    with ray_session(options):
        there = ray.cluster_resources()
        # Ray waits forever for what a cluster has not.
        if place.gpu and there.get("GPU", 0) < place.workers:
            raise ClusterError(
                f"--gpus: {place.workers} workers need a GPU each, Ray finds "
                f"{there.get('GPU', 0):.0f}; lower --workers or say --no-gpus"
            )
        cpus = _cpus_each(place, [n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"]])
        threads = max(1, int(cpus))
        told = Queue(actor_options={"num_cpus": 0})
        problems: list[EmopipeError] = []
        trainer = TorchTrainer(
            lambda: _work(make, threads, told),
            scaling_config=ScalingConfig(
                num_workers=place.workers,
                use_gpu=place.gpu,
                resources_per_worker={
                    "CPU": threads if cpus >= 1 else int(cpus * 1e4) / 1e4,
                    **({"GPU": 1} if place.gpu else {}),
                },
            ),
            run_config=RunConfig(
                name=_RAY_RUN,
                # A run of this name that is there already is gone on with.
                storage_path=str(folder.resolve()),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        )
        listening = threading.Thread(target=_pass_on, args=(told, watcher, problems), daemon=True)
        listening.start()
        failure = None
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            failure = error
        except SystemExit as stopped:
            # Ray takes Ctrl-C for itself, ends its workers, and then this process.
            raise KeyboardInterrupt from stopped
        finally:
            told.put(None)
            listening.join()
        if problems:
            raise problems[0]
        if failure:
            raise ClusterError(
                f"training on Ray failed ({_last_line(failure)}); --resume goes on from the last "
                "epoch, --local trains without Ray"
            ) from failure
        if result.checkpoint is None:
            raise ClusterError("Ray kept no checkpoint of the training; --local trains without Ray")
        with result.checkpoint.as_directory() as kept:
            return _loaded(Path(kept) / STATE)


def _cpus_each(place: Place, nodes: list[float]) -> float:
    """How many CPUs a worker can have: Ray waits forever for more than a node has to give."""
    most = (place.cpus or sum(nodes)) / place.workers
    fits = (n for n in range(int(most), 0, -1) if sum(c // n for c in nodes) >= place.workers)
    return next(fits, most)


def _work(make: MakeTrainer, threads: int, told: Any) -> None:
    """Train in one of Ray's workers."""
    use_threads(threads)
    _keep_freed_memory()
    try:
        _train_there(make, told)
    except EmopipeError as error:
        told.put(error)
        raise


def _train_there(make: MakeTrainer, told: Any) -> None:
    import ray.train

    first = ray.train.get_context().get_world_rank() == 0

    def stepped(epoch: int, step: int, steps: int, loss: float) -> None:
        if first:
            told.put((epoch, step, steps, loss))

    trainer = make(stepped)
    if kept := ray.train.get_checkpoint():
        with kept.as_directory() as folder:
            trainer.load_state(_loaded(Path(folder) / STATE))
        if first:
            told.put(trainer.history)
    for epoch in trainer.epochs():
        with tempfile.TemporaryDirectory(prefix="emopipe-state-") as folder:
            checkpoint = None
            if first:
                torch.save(trainer.state(), Path(folder) / STATE)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"score": epoch.score, "loss": epoch.loss}, checkpoint=checkpoint)
        if first:
            told.put(epoch)


def _pass_on(told: Any, watcher: Watcher, problems: list[EmopipeError]) -> None:
    """Tell the watcher what the workers say, until None comes; collect what they fail with."""
    while (message := told.get()) is not None:
        if isinstance(message, EmopipeError):
            problems.append(message)
        elif isinstance(message, list):
            watcher.resumed(message)
        elif isinstance(message, Epoch):
            watcher.epoch_done(message)
        else:
            watcher.stepped(*message)


def _keep_freed_memory() -> None:
    """Keep what a step frees for the next: faulting it in again is a twentieth of a step and more.

    Only GNU's C library has the setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def _loaded(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]

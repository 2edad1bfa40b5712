"""Running a trainer in this process or in Ray Train's workers, its state saved after each epoch."""

import ctypes
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.files import atomic_write
from emopipe.emonet.training.trainer import Epoch, Trainer
from emopipe.jobs.training.compute import ComputeConfig
from emopipe.pipeline.local import use_threads

STATE = "state.pt"
_RAY_RUN = "ray"  # folder of Ray Train's files inside the run's folder

# Parameters of mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 32 << 20  # bytes; glibc's limit on 64-bit systems
_LARGEST_HEAP = 2**31 - 1  # bytes

OnStep = Callable[[int, int, int, float], None]
MakeTrainer = Callable[[OnStep], Trainer]


class TrainingCallback(Protocol):
    """Is informed of a training's progress."""

    def on_resume(self, history: list[Epoch]) -> None:
        """These epochs were done by an earlier run."""

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Step `step` of an epoch's `steps` is done; both count from 1."""

    def on_epoch_end(self, epoch: Epoch) -> None:
        """An epoch is done and its state saved."""


def train(
    make_trainer: MakeTrainer, out: Path, compute: ComputeConfig, callback: TrainingCallback
) -> dict[str, Any]:
    """Train to the end, continuing from the state that an earlier run left in the folder.

    Args:
        make_trainer: makes the trainer, given its `on_step`; with Ray it is sent to the workers.
        out: the run's folder.
        compute: where to train.
        callback: is informed of the progress.

    Returns:
        The trainer's last state.

    Raises:
        EmopipeError: training failed, or Ray does not start.
    """
    run = _train_locally if compute.local else _train_on_ray
    return run(make_trainer, out, compute, callback)


def _train_locally(
    make_trainer: MakeTrainer, out: Path, compute: ComputeConfig, callback: TrainingCallback
) -> dict[str, Any]:
    use_threads(compute.cpus)
    _keep_freed_memory()
    trainer = make_trainer(callback.on_step)
    path = out / STATE
    if path.exists():
        trainer.load_state(_load(path))
        callback.on_resume(trainer.history)
    for epoch in trainer.epochs():
        with atomic_write(path) as temporary:
            torch.save(trainer.state(), temporary)
        callback.on_epoch_end(epoch)
    return trainer.state()


def _train_on_ray(
    make_trainer: MakeTrainer, out: Path, compute: ComputeConfig, callback: TrainingCallback
) -> dict[str, Any]:
    # Imported late: training in this process needs no Ray.
    from ray.train import TrainingFailedError
    from ray.util.queue import Queue

    from emopipe.jobs.cluster import ClusterError, ClusterOptions, ray_session

    options = ClusterOptions(compute.address, compute.cpus, None if compute.gpu else 0)
    with ray_session(options, "`local` trains without Ray"):
        messages = Queue(actor_options={"num_cpus": 0})
        trainer = _ray_trainer(make_trainer, out, compute, messages)
        with _forwarding(messages, callback) as problems:
            failure = None
            try:
                result = trainer.fit()
            except TrainingFailedError as error:
                failure = error
            except SystemExit as stopped:
                # Ray handles Ctrl-C itself: it ends its workers, and then exits this process.
                raise KeyboardInterrupt from stopped
        if problems:
            raise problems[0]
        if failure:
            raise ClusterError(
                f"training on Ray failed ({_last_line(failure)}); `resume` continues from the last "
                "epoch, `local` trains without Ray"
            ) from failure
        if result.checkpoint is None:
            raise ClusterError("Ray saved no checkpoint of the training; `local` trains without it")
        with result.checkpoint.as_directory() as folder:
            return _load(Path(folder) / STATE)


def _ray_trainer(
    make_trainer: MakeTrainer, out: Path, compute: ComputeConfig, messages: Any
) -> Any:
    """Ray's `TorchTrainer` with resources that the cluster has.

    Raises:
        ClusterError: the cluster has too few GPUs.
    """
    import ray
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from emopipe.jobs.cluster import ClusterError

    gpus = ray.cluster_resources().get("GPU", 0)
    # Ray waits forever for resources that a cluster does not have.
    if compute.gpu and gpus < compute.workers:
        raise ClusterError(
            f"`gpu`: {compute.workers} workers need a GPU each, Ray finds {gpus:.0f}; lower "
            "`workers`, or train without"
        )
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    cpus = _cpus_per_worker(compute, nodes)
    threads = max(1, int(cpus))
    resources = {"CPU": threads if cpus >= 1 else int(cpus * 1e4) / 1e4}
    return TorchTrainer(
        lambda: _run_worker(make_trainer, threads, messages),
        scaling_config=ScalingConfig(
            num_workers=compute.workers,
            use_gpu=compute.gpu,
            resources_per_worker={**resources, **({"GPU": 1} if compute.gpu else {})},
        ),
        run_config=RunConfig(
            name=_RAY_RUN,
            # Ray resumes a run of the same name in the same folder.
            storage_path=str(out.resolve()),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )


def _cpus_per_worker(compute: ComputeConfig, nodes: list[float]) -> float:
    """CPUs that each worker can have, so that all workers fit into the nodes' CPUs.

    Ray waits forever for a worker that needs more than any node has.
    """
    most = (compute.cpus or sum(nodes)) / compute.workers
    fits = (n for n in range(int(most), 0, -1) if sum(c // n for c in nodes) >= compute.workers)
    return next(fits, most)


def _run_worker(make_trainer: MakeTrainer, threads: int, messages: Any) -> None:
    """Train in one of Ray's workers; an `EmopipeError` is also sent to the driver."""
    use_threads(threads)
    _keep_freed_memory()
    try:
        _train_in_worker(make_trainer, messages)
    except EmopipeError as error:
        messages.put(error)
        raise


def _train_in_worker(make_trainer: MakeTrainer, messages: Any) -> None:
    import ray.train

    first = ray.train.get_context().get_world_rank() == 0

    def on_step(epoch: int, step: int, steps: int, loss: float) -> None:
        if first:
            messages.put((epoch, step, steps, loss))

    trainer = make_trainer(on_step)
    if saved := ray.train.get_checkpoint():
        with saved.as_directory() as folder:
            trainer.load_state(_load(Path(folder) / STATE))
        if first:
            messages.put(trainer.history)
    for epoch in trainer.epochs():
        with tempfile.TemporaryDirectory(prefix="emopipe-state-") as folder:
            checkpoint = None
            if first:
                torch.save(trainer.state(), Path(folder) / STATE)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"score": epoch.score, "loss": epoch.loss}, checkpoint=checkpoint)
        if first:
            messages.put(epoch)


@contextmanager
def _forwarding(messages: Any, callback: TrainingCallback) -> Iterator[list[EmopipeError]]:
    """Forward the workers' messages to the callback; yield a list that collects their errors."""
    problems: list[EmopipeError] = []
    listener = threading.Thread(
        target=_forward_messages, args=(messages, callback, problems), daemon=True
    )
    listener.start()
    try:
        yield problems
    finally:
        messages.put(None)
        listener.join()


def _forward_messages(
    messages: Any, callback: TrainingCallback, problems: list[EmopipeError]
) -> None:
    """Forward messages until None arrives."""
    while (message := messages.get()) is not None:
        if isinstance(message, EmopipeError):
            problems.append(message)
        elif isinstance(message, list):
            callback.on_resume(message)
        elif isinstance(message, Epoch):
            callback.on_epoch_end(message)
        else:
            callback.on_step(*message)


def _keep_freed_memory() -> None:
    """Keep memory that a step frees for the next step, instead of returning it to the system.

    Page faults otherwise take a twentieth of a step and more. Only GNU's C library has the setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_TRIM_THRESHOLD, _LARGEST_HEAP)


def _load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]

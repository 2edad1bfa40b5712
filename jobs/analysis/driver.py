"""The Ray Data job: inputs to an output, on one machine or a cluster.

Pools of actors in a row. Probing turns an input into segments, the face stage a segment into spans
with their crops, the network a span into rows. Where GPUs run the network it has a pool of its own;
without one, the actors that find a span's faces run it too: no crops travel, and no split of the
cores between two pools is to be guessed. What is said travels as messages, one a row, and the
driver alone writes.

A pass over the inputs ends early when a worker dies; the next takes up what is missing.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayActorError, RayError

from emopipe.jobs.analysis.ledger import Ledger
from emopipe.jobs.analysis.messages import Message, Segment, Task
from emopipe.jobs.analysis.scheduler import Bookkeeper, Done
from emopipe.jobs.analysis.worker import (
    FaceFinder,
    NetworkRunner,
    Prober,
    Recipe,
    Stage,
    Worker,
    probed,
)
from emopipe.jobs.cluster import ClusterError, ClusterOptions, ray_session
from emopipe.pipeline.estimate import Plan
from emopipe.pipeline.faces.detectors import weights_files
from emopipe.pipeline.inputs import InputFile, Inputs
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.media.video import SPAN_FRAMES
from emopipe.pipeline.run import Observer, conduct
from emopipe.pipeline.settings import Settings, resolved, sampler
from emopipe.pipeline.table.results import VideoRecord
from emopipe.pipeline.table.store import Store

if TYPE_CHECKING:
    from emopipe.emonet.checkpoint import Checkpoint
    from emopipe.emonet.model import EmoNet

SEGMENT_SPANS = 16
"""Most spans of a segment: what one actor decodes in one go, from one seek."""

SEGMENTS_PER_ACTOR = 4
"""At least so many segments for each actor, where there is work enough, so that none idles long."""

CPUS_IN_USE = 0.9
"""Share of the CPUs that the actors ask for: pools that hold all CPUs starve Ray Data's own tasks
(ray-project/ray#44687)."""

PROBED_HERE_BYTES = 2**28
"""Inputs of so many bytes in all, or fewer, the driver probes itself: to read and hash them should
take no longer than an actor's start (1 to 2 s), from a local disk."""

SCHEDULING_BYTES = 1
"""Ray Data joins rows into blocks up to this size: each row is passed on at once."""


@dataclass(frozen=True)
class Spread:
    """How the work is spread.

    Attributes:
        face_actors: actors that decode, detect and align.
        network_actors: actors of their own for the network; 0 where the face actors run it.
        cpus_each: what each actor asks Ray for.
        gpus_each: what each actor of the network asks Ray for.
        threads: of each actor, for detection and network.
        segment_spans: most spans of a segment.
    """

    face_actors: int
    network_actors: int
    cpus_each: float
    gpus_each: float
    threads: int
    segment_spans: int


@dataclass(frozen=True)
class Pool:
    """Some actors that do the same."""

    stages: tuple[Callable[[], Stage], ...]
    size: int
    cpus_each: float
    gpus_each: float = 0.0
    ahead: int = 1  # messages an actor is given at once; what waits for one no other can take


def run(
    inputs: Inputs,
    out: Path,
    settings: Settings,
    overwrite: bool = False,
    observer: Observer | None = None,
    options: ClusterOptions | None = None,
) -> list[VideoRecord]:
    """Analyze inputs on Ray. Gives the table that `pipeline.local.run` gives.

    Args:
        inputs: what to analyze; on a cluster every node sees it under the same paths.
        out: results file (`*.parquet`) or folder; only this process writes it.
        settings: how.
        overwrite: start anew, replacing what lies there.
        observer: is told how it goes on.
        options: where, and with how many actors. A Ray that this process uses already is used, and
            left running.

    Returns:
        One record for each input, in their order.

    Raises:
        EmopipeError: a checkpoint, a detector, the cluster or the output cannot be used.
    """
    options = options or ClusterOptions()
    observer = observer or Observer()
    with ThreadPoolExecutor(1) as beside:
        # PyTorch takes seconds to load, and Ray to start: it is for other processes that it waits.
        loading = beside.submit(_weights, settings)
        with ray_session(options):
            model, checkpoint, detector_files = loading.result()
            gpus = _gpus(settings, options)
            settings = _resolved_there(settings, options, gpus)

            def work(store: Store, files: list[InputFile], plan: Plan) -> Iterator[Done]:
                spread = spread_work(settings, options, gpus, _cpus(), plan)
                recipe = Recipe(
                    replace(settings, threads=spread.threads),
                    checkpoint,
                    ray.put(model),
                    ray.put(detector_files),
                    ledger=None,
                )
                tasks = [Task(file, settings.backend) for file in files]
                book = Bookkeeper(store, tasks, sampler(settings), spread.segment_spans, observer)
                return _passes(book, recipe, spread)

            return conduct(inputs, out, settings, checkpoint, overwrite, observer, work)


def _weights(settings: Settings) -> tuple[EmoNet, Checkpoint, dict[str, bytes]]:
    """Load PyTorch and the network, and read the detector's files, so that no worker needs any."""
    from emopipe.emonet.checkpoint import open_model

    model, checkpoint = open_model(settings.model, settings.classes)
    files = weights_files(settings.detector, settings.detector_weights)
    return model, checkpoint, {name: path.read_bytes() for name, path in files.items()}


def spread_work(
    settings: Settings, options: ClusterOptions, gpus: int, cpus: float, plan: Plan
) -> Spread:
    """Decide on actors, threads and segments: all CPUs busy, and no actor without work.

    Args:
        settings: the analysis's.
        options: what the user wants of it.
        gpus: for the network.
        cpus: that Ray has.
        plan: what there is to do.
    """
    spans = max(plan.inputs, -(-plan.frames // SPAN_FRAMES), 1)
    faces = options.face_actors or max(1, min(int(cpus), spans))
    network = options.network_actors or gpus
    return Spread(
        face_actors=faces,
        network_actors=network,
        cpus_each=int(CPUS_IN_USE * cpus / (faces + network + 1) * 1e4) / 1e4,
        gpus_each=min(1.0, gpus / network) if network else 0.0,
        threads=settings.threads or max(1, int(cpus) // faces),
        segment_spans=max(1, min(SEGMENT_SPANS, spans // (SEGMENTS_PER_ACTOR * faces))),
    )


def _cpus() -> float:
    return float(ray.cluster_resources().get("CPU", 1.0))


def _gpus(settings: Settings, options: ClusterOptions) -> int:
    """Return how many GPUs the network is to use.

    Raises:
        ClusterError: Ray has fewer than asked for, or is asked for a certain one.
    """
    found = int(ray.cluster_resources().get("GPU", 0))
    if settings.device.startswith("cuda:"):
        raise ClusterError(f"--device {settings.device}: Ray chooses the GPUs; say --gpus, or cuda")
    if options.gpus is not None and options.gpus > found:
        raise ClusterError(f"--gpus {options.gpus}: Ray finds {found}; ask for that many or fewer")
    if settings.device == "cuda" and not found:
        raise ClusterError("--device cuda: Ray finds no GPU; --local uses one that Ray overlooks")
    if settings.device not in ("auto", "cuda"):
        return 0
    return found if options.gpus is None else options.gpus


def _resolved_there(settings: Settings, options: ClusterOptions, gpus: int) -> Settings:
    """Resolve "auto" where the network will run, which may be another kind of machine."""
    if settings.device == "auto" and options.gpus == 0:
        settings = replace(settings, device="cpu")
    if not gpus and options.address is None:
        return resolved(settings)
    resolve = ray.remote(num_cpus=0, num_gpus=min(gpus, 1) / 100)(resolved)
    there: Settings = ray.get(resolve.remote(settings))
    return there


def _passes(book: Bookkeeper, recipe: Recipe, spread: Spread) -> Iterator[Done]:
    """Pass over what is missing until nothing is."""
    while todo := book.todo():
        tasks = [one for one in todo if isinstance(one, Task)]
        if tasks and sum(task.file.bytes for task in tasks) <= PROBED_HERE_BYTES:
            yield from _probed_here(tasks, book)
            continue
        ledger = ray.remote(num_cpus=0, max_restarts=0)(Ledger).remote()
        pools = _pools(todo, book, replace(recipe, ledger=ledger), spread)
        try:
            for message in _messages(todo, pools, ledger):
                if done := book.take(message):
                    yield done
        except RayError as error:
            actor = error.actor_id if isinstance(error, RayActorError) else None
            if done := book.died(_begun(ledger), actor, _last_line(error)):
                yield done
        finally:
            _dismiss(ledger)


def _probed_here(tasks: Sequence[Task], book: Bookkeeper) -> Iterator[Done]:
    with Decoder() as decoder:
        for task in tasks:
            if done := book.take(probed(task, decoder)):
                yield done


def _pools(
    todo: Sequence[Task | Segment], book: Bookkeeper, recipe: Recipe, spread: Spread
) -> list[Pool]:
    """Return the pools of a pass, in the order in which messages go through them."""
    sampling, size = sampler(recipe.settings), spread.segment_spans
    prober = Pool((partial(Prober, sampling, book.here, size),), 1, spread.cpus_each, ahead=2)
    probing = [prober] if any(isinstance(one, Task) for one in todo) else []
    faces, network = partial(FaceFinder, recipe), partial(NetworkRunner, recipe)
    # All there is to do is known where nothing is to be probed: a suspect span, say, is alone.
    n_faces = spread.face_actors if probing else min(spread.face_actors, len(todo))
    if not spread.network_actors:
        return [*probing, Pool((faces, network), n_faces, spread.cpus_each)]
    return [
        *probing,
        Pool((faces,), n_faces, spread.cpus_each),
        Pool((network,), spread.network_actors, spread.cpus_each, spread.gpus_each, ahead=2),
    ]


def _messages(
    todo: Sequence[Task | Segment], pools: Sequence[Pool], ledger: ray.actor.ActorHandle
) -> Iterator[Message]:
    """Run the pools over what is to be done and yield what they say, as it comes."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = SCHEDULING_BYTES
    context.max_errored_blocks = 0
    rows = ray.data.from_items(
        [{"message": pickle.dumps(one)} for one in todo], override_num_blocks=len(todo)
    )
    for pool in pools:
        rows = rows.map_batches(
            Worker,
            fn_constructor_args=(ledger, pool.stages),
            compute=ray.data.ActorPoolStrategy(
                size=pool.size, max_tasks_in_flight_per_actor=pool.ahead
            ),
            batch_size=1,
            batch_format="numpy",
            num_cpus=pool.cpus_each,
            num_gpus=pool.gpus_each,
            # Ray would restart and retry forever; tries are counted here.
            max_restarts=0,
            max_task_retries=0,
        )
    # Fetching ahead would hold each message back until there is another.
    for batch in rows.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        yield from map(pickle.loads, batch["message"])


def _begun(ledger: ray.actor.ActorHandle) -> dict[str, tuple[str, int]]:
    """Ask the ledger, which may itself be dead."""
    try:
        begun: dict[str, tuple[str, int]] = ray.get(ledger.begun.remote())
    except RayError:
        return {}
    return begun


def _dismiss(ledger: ray.actor.ActorHandle) -> None:
    """End a pass's workers: Ray Data lets them finish what they are at, for nobody."""
    with suppress(RayError):
        for worker in ray.get(ledger.workers.remote()):
            ray.kill(pickle.loads(worker))
    ray.kill(ledger)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]

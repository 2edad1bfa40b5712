"""The engine on Ray: actors do the work; the driver schedules it and alone writes the output.

Face workers decode and align on CPUs, and detect there or on a share of a GPU. Where GPUs run the
network it has emotion workers of its own, to which crops travel by object reference; without GPUs
the face workers run it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from emopipe.jobs.analysis.pool import WorkerPool
from emopipe.jobs.analysis.resources import cpus_found, gpus_for, plan_resources
from emopipe.jobs.analysis.scheduler import Scheduler
from emopipe.jobs.analysis.worker import WorkerConfig
from emopipe.jobs.cluster import WITHOUT_RAY, ClusterOptions, ray_session
from emopipe.jobs.interrupts import interrupts_remembered
from emopipe.pipeline.estimate import Estimate
from emopipe.pipeline.faces.detectors import weights_files
from emopipe.pipeline.inputs import InputFile, Inputs
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.run import Finished, ProgressCallback, run_analysis
from emopipe.pipeline.settings import Settings, resolved, sampler
from emopipe.pipeline.table.schema import VideoRecord
from emopipe.pipeline.table.store import Store

if TYPE_CHECKING:  # PyTorch is loaded while Ray starts
    from emopipe.emonet.checkpoint import Checkpoint


def run(
    inputs: Inputs,
    out: Path,
    settings: Settings,
    overwrite: bool,
    progress: ProgressCallback,
    cluster: ClusterOptions,
) -> list[VideoRecord]:
    """Analyze inputs on Ray; the arguments are those of `jobs.engine.run`.

    On a cluster every node sees the inputs under the same paths; only this process writes the
    output. A Ray that this process has initialized is used, and left running.

    Raises:
        EmopipeError: a checkpoint, a detector, the cluster or the output cannot be used.
    """
    progress.on_phase("starting Ray")
    with ThreadPoolExecutor(1) as beside:
        # PyTorch takes seconds to load, and Ray's start mostly waits for other processes.
        loading = beside.submit(load, settings)
        with Decoder() as decoder, ray_session(cluster, WITHOUT_RAY):
            config = loading.result()
            gpus = gpus_for(settings, cluster)
            settings = _resolved_there(settings, config.checkpoint, cluster, gpus)
            config = replace(config, settings=settings)
            work = partial(work_on_ray, config, cluster, gpus, progress, decoder)
            return run_analysis(
                inputs, out, settings, config.checkpoint, overwrite, progress, decoder, work
            )


def load(settings: Settings) -> WorkerConfig:
    """Load PyTorch and the network, and read the detector's files.

    Raises:
        EmopipeError: the checkpoint or the detector's weights cannot be used.
    """
    import pandas  # noqa: F401 -- see `LocalEngine`; here it is imported while Ray starts

    from emopipe.emonet.checkpoint import open_model

    model, checkpoint = open_model(settings.model, settings.classes)
    files = weights_files(settings.detector, settings.detector_weights)
    contents = {name: path.read_bytes() for name, path in files.items()}
    return WorkerConfig(settings, checkpoint, model, contents)


def work_on_ray(
    config: WorkerConfig,
    cluster: ClusterOptions,
    gpus: int,
    progress: ProgressCallback,
    decoder: Decoder,
    store: Store,
    files: list[InputFile],
    estimate: Estimate,
) -> Iterator[Finished]:
    """Analyze inputs on the Ray that is running; see `pipeline.run.Work`.

    Raises:
        ClusterError: Ray lacks what was asked for.
        WorkersError: workers die before they do anything.
    """
    if not files:
        return
    settings = config.settings
    plan = plan_resources(settings, cluster, gpus, cpus_found(), estimate)
    config = replace(config, settings=replace(settings, threads=plan.threads))
    scheduler = Scheduler(store, files, sampler(settings), plan.segment_spans, progress)
    progress.on_phase("starting workers")
    pool = WorkerPool(scheduler, config, plan)
    try:
        with interrupts_remembered() as raise_if_interrupted:
            yield from pool.probe_while_starting(decoder)
            while not scheduler.done:
                raise_if_interrupted()
                yield from pool.step()
    finally:
        pool.shutdown()


def _resolved_there(
    settings: Settings, checkpoint: Checkpoint, cluster: ClusterOptions, gpus: int
) -> Settings:
    """Resolve "auto" where the network will run, which may be another kind of machine."""
    if settings.device == "auto" and cluster.gpus == 0:
        settings = replace(settings, device="cpu")
    if not gpus and cluster.address is None:
        return resolved(settings, checkpoint)
    resolve = ray.remote(num_cpus=0, num_gpus=min(gpus, 1) / 100)(resolved)
    there: Settings = ray.get(resolve.remote(settings, checkpoint))
    return there

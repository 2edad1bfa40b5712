"""Where an analysis runs: in this process, on Ray, or wherever it is estimated to end sooner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from emopipe.emonet.arguments import did_you_mean
from emopipe.emonet.runtime import available_cores
from emopipe.jobs.cluster import (
    ENGINES,
    WITHOUT_RAY,
    ClusterError,
    ClusterOptions,
    check_surroundings,
    ray_session,
)
from emopipe.pipeline.estimate import Estimate
from emopipe.pipeline.inputs import InputFile, Inputs
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.run import Finished, ProgressCallback, run_analysis
from emopipe.pipeline.settings import Settings, resolved
from emopipe.pipeline.table.schema import VideoRecord

if TYPE_CHECKING:
    from emopipe.pipeline.table.store import Store

RAY_START_S = 5.0
"""From Ray's start to the first frame at work, on two cores (`make bench-ray`)."""

DETECTION_CPU_S = 0.02
FRAME_CPU_S = 0.01
"""CPU time of a detection at 640 px on OpenVINO, and of all else that a frame takes."""

PROCESS_CORES = 4
"""One process keeps about this many cores busy: detection gains little from further threads."""


def run(
    inputs: Inputs,
    out: Path,
    settings: Settings,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    engine: str = "auto",
    cluster: ClusterOptions | None = None,
) -> list[VideoRecord]:
    """Analyze inputs. On CPUs every engine makes the same table, cell by cell.

    Args:
        inputs: what to analyze.
        out: results file (`*.parquet`) or folder.
        settings: how.
        overwrite: start anew, replacing what lies there.
        progress: follows the run; `on_message` gets which engine "auto" chose, and why.
        engine: "local", "ray", or "auto": Ray with any of the cluster's options, with GPUs, or
            where the estimated work repays Ray's start on this machine's cores; else this process.
        cluster: where Ray runs, and with how many workers.

    Returns:
        One record for each input, in their order.

    Raises:
        EmopipeError: an option, a checkpoint, a detector, the cluster or the output cannot be used.
    """
    cluster = cluster or ClusterOptions()
    progress = progress or ProgressCallback()
    chosen = [f"`{f.name}`" for f in fields(cluster) if getattr(cluster, f.name) is not None]
    if engine not in ENGINES:
        raise ClusterError(
            f"`engine` is one of {', '.join(ENGINES)}, not {engine!r}"
            f"{did_you_mean(str(engine), ENGINES)}"
        )
    if engine == "local" and chosen:
        raise ClusterError(
            f"`engine` local works in this process: only Ray takes {', '.join(chosen)}"
        )
    if settings.detect_every > 1 and cluster.network_actors:
        raise ClusterError(
            "`network_actors`: with `detect_every` above 1 the network runs where faces are "
            "detected; leave one of them out, or say `face_actors`"
        )
    if engine == "auto" and chosen:
        progress.on_message(f"engine ray: only Ray takes {', '.join(chosen)}")
        engine = "ray"
    if engine == "auto" and (gpus := _gpus(settings)):
        progress.on_message(f"engine ray: this machine has {gpus}")
        engine = "ray"
    if engine == "ray":
        from emopipe.jobs.analysis import driver

        return driver.run(inputs, out, settings, overwrite, progress, cluster)
    if engine == "local":
        from emopipe.pipeline import local

        return local.run(inputs, out, settings, overwrite, progress)
    return _run_estimated(inputs, out, settings, overwrite, progress)


def repays_ray(frames: int, cores: int, detect_every: int = 1) -> tuple[bool, str]:
    """Whether an analysis ends sooner on Ray, its start included, and why in words.

    Args:
        frames: number of sampled frames.
        cores: of this machine.
        detect_every: as in `Settings`.
    """
    cpu_s = frames * (DETECTION_CPU_S / detect_every + FRAME_CPU_S)
    here_s = cpu_s / min(cores, PROCESS_CORES)
    on_ray_s = RAY_START_S + cpu_s / cores
    words = f"about {here_s:.0f} s in this process, {on_ray_s:.0f} s on Ray and {cores} cores"
    return on_ray_s < here_s, words


def _gpus(settings: Settings) -> str:
    """This machine's GPUs in words, if the settings leave them to Ray."""
    if settings.device not in ("auto", "cuda"):
        return ""
    import torch

    count = torch.cuda.device_count()
    return f"{count} GPU{'s' if count > 1 else ''}" if count else ""


def _run_estimated(
    inputs: Inputs, out: Path, settings: Settings, overwrite: bool, progress: ProgressCallback
) -> list[VideoRecord]:
    """Estimate the work, then analyze in this process or on a Ray started here."""
    from emopipe.emonet.checkpoint import open_model
    from emopipe.pipeline.local import LocalEngine

    with Decoder() as decoder:
        model, checkpoint = open_model(settings.model, settings.classes)
        settings = resolved(settings, checkpoint)
        local = LocalEngine(settings, model, checkpoint, progress, decoder)

        def work(store: Store, files: list[InputFile], estimate: Estimate) -> Iterator[Finished]:
            on_ray, why = repays_ray(estimate.frames, available_cores(), settings.detect_every)
            if on_ray:
                try:
                    check_surroundings(WITHOUT_RAY)
                except ClusterError as error:
                    on_ray, why = False, str(error)
            if files:
                progress.on_message(f"engine {'ray' if on_ray else 'local'}: {why}")
            if not on_ray:
                return local.work(store, files, estimate)
            return _work_on_ray(settings, progress, decoder, store, files, estimate)

        return run_analysis(inputs, out, settings, checkpoint, overwrite, progress, decoder, work)


def _work_on_ray(
    settings: Settings,
    progress: ProgressCallback,
    decoder: Decoder,
    store: Store,
    files: list[InputFile],
    estimate: Estimate,
) -> Iterator[Finished]:
    from emopipe.jobs.analysis import driver

    cluster = ClusterOptions()
    progress.on_phase("starting Ray")
    with ray_session(cluster, WITHOUT_RAY):
        config = driver.load(settings)  # anew: the local engine has converted its network
        yield from driver.work_on_ray(config, cluster, 0, progress, decoder, store, files, estimate)

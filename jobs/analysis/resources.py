"""How an analysis is spread over what Ray has: workers, CPUs, GPUs, segments."""

from dataclasses import dataclass

import ray

from emopipe.jobs.cluster import ClusterError, ClusterOptions
from emopipe.pipeline.estimate import Estimate
from emopipe.pipeline.faces.detectors import device_of
from emopipe.pipeline.media.sampling import SPAN_FRAMES
from emopipe.pipeline.settings import Settings

SEGMENT_FRAMES = 2048
"""Most sampled frames of a segment: what one worker decodes in one go, from one seek."""

SEGMENTS_PER_WORKER = 4
"""At least this many segments for each worker, given enough work, so that none idles long."""

FACE_WORKERS_PER_GPU = 8
"""At most this many by default where they compute on it: each takes half a GB of it for itself."""


@dataclass(frozen=True)
class ResourcePlan:
    """How the work is spread.

    Attributes:
        face_workers: workers that decode, detect and align.
        emotion_workers: workers of their own for the network; 0 where the face workers run it.
        cpus_each: CPUs that each face worker reserves.
        face_gpus: GPUs that each face worker reserves; 0 where it computes on the CPU.
        emotion_gpus: GPUs that each emotion worker reserves.
        threads: CPU threads of each worker, for detection and network.
        segment_spans: most spans of a segment.
    """

    face_workers: int
    emotion_workers: int
    cpus_each: float
    face_gpus: float
    emotion_gpus: float
    threads: int
    segment_spans: int


def plan_resources(
    settings: Settings, cluster: ClusterOptions, gpus: int, cpus: float, estimate: Estimate
) -> ResourcePlan:
    """Decide on workers, threads and segments: all CPUs busy, and no worker without work.

    Args:
        settings: the analysis's.
        cluster: what the user wants of it.
        gpus: for the network, and for the detector if it runs on the network's device.
        cpus: that Ray has.
        estimate: what there is to do.
    """
    spans = max(estimate.inputs, -(-estimate.frames // SPAN_FRAMES), 1)
    follows = settings.detect_every > 1  # by the network's landmarks, so it runs there too
    detects_on_gpu = device_of(settings.detector, settings.device) == "cuda"
    shares_gpu = gpus > 0 and (follows or detects_on_gpu)
    usual = min(int(cpus), gpus * FACE_WORKERS_PER_GPU) if shares_gpu else int(cpus)
    faces = cluster.face_actors or max(1, min(usual, spans))
    emotions = 0 if follows else cluster.network_actors or gpus
    # Equal shares fit in whatever order Ray places the workers.
    share = _share(gpus, emotions + (faces if shares_gpu else 0))
    most = SEGMENT_FRAMES // SPAN_FRAMES
    return ResourcePlan(
        face_workers=faces,
        emotion_workers=emotions,
        cpus_each=min(1.0, int(cpus / faces * 1e4) / 1e4),  # Ray counts in ten-thousandths
        face_gpus=share if shares_gpu else 0.0,
        emotion_gpus=share,
        threads=settings.threads or max(1, int(cpus) // faces),
        segment_spans=max(1, min(most, spans // (SEGMENTS_PER_WORKER * faces))),
    )


def _share(gpus: int, workers: int) -> float:
    """The GPU that each of some workers reserves, so that all of them find a place."""
    if not (gpus and workers):
        return 0.0
    workers_per_gpu = -(-workers // gpus)
    return int(1e4 / workers_per_gpu) / 1e4


def cpus_found() -> float:
    """How many CPUs Ray has."""
    return float(ray.cluster_resources().get("CPU", 1.0))


def gpus_for(settings: Settings, cluster: ClusterOptions) -> int:
    """How many of Ray's GPUs the network is to use.

    Raises:
        ClusterError: Ray has fewer than asked for, or is asked for a certain one.
    """
    found = int(ray.cluster_resources().get("GPU", 0))
    if settings.device.startswith("cuda:"):
        raise ClusterError(
            f"`device` {settings.device}: Ray chooses the GPUs; say `gpus`, or `device` cuda"
        )
    if cluster.gpus is not None and cluster.gpus > found:
        raise ClusterError(f"`gpus` {cluster.gpus}: Ray finds {found}; ask for that many or fewer")
    if settings.device == "cuda" and not found:
        raise ClusterError(
            "`device` cuda: Ray finds no GPU; `engine` local uses one that Ray overlooks"
        )
    if settings.device not in ("auto", "cuda"):
        return 0
    return found if cluster.gpus is None else cluster.gpus

"""Workers ask for what is there, and no more of them are planned than have work."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emopipe.jobs.analysis.pool import _starts
from emopipe.jobs.analysis.resources import ResourcePlan, plan_resources
from emopipe.jobs.analysis.worker import EmotionWorker
from emopipe.jobs.cluster import ClusterOptions
from emopipe.pipeline.estimate import Estimate
from emopipe.pipeline.media.sampling import SPAN_FRAMES
from emopipe.pipeline.settings import Settings

MANY_FRAMES = 10_000_000


def planned(
    gpus: int, cpus: int, *, frames: int = MANY_FRAMES, settings: Settings | None = None, **workers
) -> ResourcePlan:
    estimate = Estimate(inputs=1, unreadable=0, seconds=1.0, frames=frames, bytes=0)
    settings = settings or Settings(device="cuda" if gpus else "cpu")
    return plan_resources(settings, ClusterOptions(**workers), gpus, cpus, estimate)


@given(
    cpus=st.integers(1, 1000),
    gpus=st.integers(0, 16),
    emotion_workers=st.none() | st.integers(1, 40),
    face_workers=st.none() | st.integers(1, 200),
    detector=st.sampled_from(["centerface", "yunet"]),
    frames=st.integers(0, 20 * SPAN_FRAMES) | st.integers(0, MANY_FRAMES),
)
def test_no_worker_asks_for_what_is_not_there_and_none_is_without_work(
    cpus, gpus, emotion_workers, face_workers, detector, frames
):
    settings = Settings(device="cuda" if gpus else "cpu", detector=detector)
    workers = {"face_actors": face_workers, "network_actors": emotion_workers}
    plan = planned(gpus, cpus, frames=frames, settings=settings, **workers)
    assert 0 < plan.face_workers * plan.cpus_each <= cpus
    assert plan.face_workers == (face_workers or plan.face_workers)
    assert plan.emotion_workers == (emotion_workers or gpus)
    detects_on_gpu = gpus > 0 and detector == "centerface"
    assert plan.face_gpus == (plan.emotion_gpus if detects_on_gpu else 0)
    on_gpus = plan.emotion_workers + (plan.face_workers if detects_on_gpu else 0)
    # A worker's share of a GPU lies on one GPU.
    places = gpus * int(1 / plan.emotion_gpus) if gpus else 0
    assert places >= on_gpus * bool(gpus) and plan.emotion_gpus <= 1
    spans = max(1, frames / SPAN_FRAMES)
    assert plan.face_workers * plan.segment_spans < spans + plan.face_workers
    usual = min(cpus, 8 * gpus) if detects_on_gpu else cpus
    assert face_workers or plan.face_workers == usual or plan.face_workers >= spans / 2
    assert plan.threads * plan.face_workers <= max(cpus, plan.face_workers)


@pytest.mark.parametrize(
    ("gpus", "cpus", "workers", "faces", "share"),
    [
        (1, 64, {}, 8, 0.1111),
        (1, 4, {}, 4, 0.2),
        (8, 64, {}, 64, 0.1111),
        (8, 16, {}, 16, 0.3333),
        (1, 64, {"face_actors": 20}, 20, 0.0476),
        (2, 64, {"network_actors": 4}, 16, 0.1),
        (8, 64, {"face_actors": 3, "network_actors": 3}, 3, 1.0),
    ],
)
def test_a_gpu_is_shared_equally_by_who_computes_on_it(gpus, cpus, workers, faces, share):
    plan = planned(gpus, cpus, **workers)
    assert (plan.face_workers, plan.face_gpus, plan.emotion_gpus) == (faces, share, share)


def test_workers_that_follow_faces_run_the_network_on_their_share_of_a_gpu():
    settings = Settings(detector="yunet", device="cuda", detect_every=5)
    plan = planned(2, 64, settings=settings)
    assert (plan.face_workers, plan.emotion_workers, plan.face_gpus) == (16, 0, 0.125)


def test_detection_on_the_cpu_takes_all_cpus_and_leaves_the_gpus_to_the_network():
    for settings in (Settings(device="cuda", detector="yunet"), Settings(device="cpu")):
        plan = planned(2, 64, settings=settings)
        assert (plan.face_workers, plan.face_gpus, plan.emotion_gpus) == (64, 0, 1)


@pytest.mark.parametrize(("gpus", "cpus"), [(1, 64), (2, 8), (8, 64)])
def test_workers_start_in_an_order_that_gives_each_gpu_its_emotion_worker(gpus, cpus):
    plan = planned(gpus, cpus)
    order = _starts(plan)
    assert len(order) == plan.emotion_workers + plan.face_workers
    each = len(order) // gpus
    for first in range(0, len(order), each):
        assert Counter(order[first : first + each])[EmotionWorker] == 1

"""Ray makes the table of the local engine, whatever dies on the way, and leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from chaos import command, left_of
from made_clips import make_clip, zero_packets
from made_faces import face_clip, two_faces_picture
from ray.cloudpickle import register_pickle_by_value

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.registry import locate
from emopipe.jobs import engine
from emopipe.jobs.analysis import driver, pool
from emopipe.jobs.analysis import worker as worker_module
from emopipe.jobs.analysis.driver import load
from emopipe.jobs.analysis.messages import SegmentTask
from emopipe.jobs.analysis.resources import ResourcePlan, plan_resources
from emopipe.jobs.analysis.worker import EmotionWorker, FaceWorker
from emopipe.jobs.cluster import ClusterError, ClusterOptions
from emopipe.pipeline.estimate import Estimate
from emopipe.pipeline.faces.detectors import weights_files
from emopipe.pipeline.inputs import Inputs, find_inputs
from emopipe.pipeline.local import run as run_local
from emopipe.pipeline.media.repeat import repeat
from emopipe.pipeline.media.sampling import SPAN_FRAMES
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import FailedSpan, ProgressCallback
from emopipe.pipeline.settings import Settings
from emopipe.pipeline.table.results import read_records, read_table, videos_path
from emopipe.pipeline.table.schema import DetectedSpan, VideoRecord
from emopipe.pipeline.table.store import partial_path

SPARSE = Settings(stride=3)
LONG_COPIES = 5  # of 50 frames


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips: one face, short and long; nobody; two faces; damaged; broken."""
    folder = tmp_path_factory.mktemp("clips")
    scratch = tmp_path_factory.mktemp("scratch")
    face = face_clip(scratch)
    shutil.copy(face, folder / "face.mp4")
    repeat(face, LONG_COPIES, folder / "long.mp4")
    shutil.copy(face, folder / "damaged.mp4")
    zero_packets(folder / "damaged.mp4", slice(20, 23))
    shutil.copy(make_clip(scratch, "vfr.mp4"), folder / "nobody.mp4")
    two_faces_picture().save(folder / "two.png")
    (folder / "broken.mp4").write_bytes(face.read_bytes()[:400])
    return folder


@pytest.fixture(scope="module")
def endless(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of a face that takes much longer than a run takes to start."""
    path = tmp_path_factory.mktemp("endless") / "endless.mp4"
    repeat(made / "face.mp4", 40 * LONG_COPIES, path)
    return path


@pytest.fixture(scope="module")
def inputs(made: Path) -> Inputs:
    return find_inputs([made])


@pytest.fixture(scope="module")
def local(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("local") / "results.parquet"
    run_local(inputs, out, SPARSE)
    return tables(out)


@pytest.fixture(scope="module")
def fake_gpus() -> Iterator[None]:
    """A Ray of four CPUs and two GPUs that are only counted."""
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def run(
    inputs: Inputs,
    out: Path,
    settings: Settings,
    progress: ProgressCallback | None = None,
    **cluster: Any,
) -> list[VideoRecord]:
    options = ClusterOptions(**cluster)
    return engine.run(inputs, out, settings, progress=progress, engine="ray", cluster=options)


def tables(out: Path) -> str:
    """All cells of the results and of the videos table."""
    return repr((read_table(out).to_pylist(), read_records(videos_path(out))))


def workers(kind: str = "FaceWorker") -> list[psutil.Process]:
    """The living workers of Ray below this process."""
    below = psutil.Process().children(recursive=True)
    return [one for one in below if command(one).startswith(f"ray::{kind}")]


class GpusInUse(ProgressCallback):
    """Notes how many of Ray's GPUs are taken while spans are finished."""

    def __init__(self) -> None:
        self.taken: set[float] = set()

    def on_span(self, video: Video, frames: int, faces: int) -> None:
        free = ray.available_resources().get("GPU", 0.0)
        self.taken.add(ray.cluster_resources()["GPU"] - free)


@pytest.mark.parametrize(
    ("cluster", "gpus", "probed_here"),
    [
        ({"gpus": 0, "face_actors": 1}, 0, True),
        ({"gpus": 0, "face_actors": 2}, 0, False),
        ({"gpus": 0, "face_actors": 4}, 0, True),
        ({"gpus": 1, "face_actors": 2, "network_actors": 2}, 1, True),
    ],
    ids=["1 worker", "2 workers that probe", "4 workers", "2 emotion workers on one GPU"],
)
def test_the_tables_are_those_of_local_in_every_cell(
    cluster, gpus, probed_here, inputs, local, fake_gpus, tmp_path, monkeypatch
):
    if not probed_here:
        monkeypatch.setattr(pool, "PROBED_HERE_BYTES", -1)
    progress = GpusInUse()
    records = run(inputs, tmp_path / "results.parquet", SPARSE, progress, **cluster)
    assert tables(tmp_path / "results.parquet") == local
    status = {record.video: record.status for record in records}
    assert (status.pop("broken.mp4"), status.pop("damaged.mp4")) == ("failed", "partial")
    assert set(status.values()) == {"ok"}
    assert max(progress.taken) == gpus  # Ray counts with some delay


def test_followed_and_smoothed_faces_are_those_of_local_in_every_cell(made, fake_gpus, tmp_path):
    found = find_inputs([made / name for name in ("face.mp4", "damaged.mp4", "two.png")])
    settings = Settings(detect_every=4, smooth=0.2)
    outs = {name: tmp_path / f"{name}.parquet" for name in ("local", "ray", "gpu")}
    run_local(found, outs["local"], settings)
    run(found, outs["ray"], settings, face_actors=2, gpus=0)
    run(found, outs["gpu"], settings, face_actors=2, gpus=1)
    assert tables(outs["ray"]) == tables(outs["local"])
    assert tables(outs["gpu"]) == tables(outs["local"])


class WeightsRemover(ProgressCallback):
    """Removes the files of weights as soon as the driver has read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_start(self, inputs: Inputs, done: int, estimate: Estimate) -> None:
        shutil.rmtree(self.folder)


def test_workers_need_no_file_of_weights(made, fake_gpus, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    model = shutil.copy(locate("emonet-lite"), folder / "mine.safetensors")
    [centerface] = weights_files("centerface").values()
    shutil.copy(centerface, folder)
    settings = Settings(model=str(model), detector_weights=folder, stride=25)
    found, out = find_inputs([made / "face.mp4"]), tmp_path / "results.parquet"
    [record] = run(found, out, settings, WeightsRemover(folder), gpus=0)
    assert not folder.exists()
    assert (record.status, record.frames, record.faces) == ("ok", 2, 2)


def test_a_worker_at_work_has_no_files_that_its_death_would_leave_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("atexit.register", lambda *_: None)
    worker = FaceWorker(load(replace(SPARSE, device="cpu")), with_network=False)
    worker.start()
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_for_every_worker_is_told_in_its_own_words(made, fake_gpus, tmp_path):
    """Here: a detector's file that is none. The driver only reads it, for workers to use."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "centerface.onnx").write_text("no network")
    settings = Settings(detector_weights=tmp_path / "weights")
    with pytest.raises(EmopipeError, match="cannot be used as the weights of centerface") as caught:
        run(find_inputs([made / "face.mp4"]), tmp_path / "results.parquet", settings, gpus=0)
    assert "Traceback" not in str(caught.value)


class Killer(ProgressCallback):
    """Kills workers of Ray, one after each of the first spans."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = list(kinds)
        self.spans = 0

    def on_span(self, video: Video, frames: int, faces: int) -> None:
        self.spans += 1
        if self.kinds:
            workers(self.kinds.pop())[-1].kill()


@pytest.mark.parametrize(
    ("kinds", "cluster"),
    [
        (["FaceWorker"] * 3, {"gpus": 0, "face_actors": 2}),
        (["EmotionWorker", "FaceWorker"], {"gpus": 1, "face_actors": 2, "network_actors": 2}),
    ],
    ids=["three face workers", "a face and an emotion worker"],
)
def test_a_run_whose_workers_are_killed_ends_by_itself_with_the_same_tables(
    kinds, cluster, inputs, local, fake_gpus, tmp_path
):
    """What a death costs the others, `make chaos` measures over a minute."""
    killer = Killer(*kinds)
    out = tmp_path / "results.parquet"
    records = run(inputs, out, SPARSE, killer, **cluster)
    assert killer.kinds == []
    assert tables(out) == local
    assert killer.spans == sum(-(-record.frames // SPAN_FRAMES) for record in records)


DEATHS = ""


def die_of(span: DetectedSpan) -> None:
    """Kill this process if the span is of `deadly.mp4`, and note it."""
    if span.video == "deadly.mp4":
        with Path(DEATHS).open("a") as deaths:
            deaths.write("x")
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlyFaceWorker(FaceWorker):
    def analyze(self, task: SegmentTask) -> Iterator[Any]:
        for found in self._faces.spans(task.video, task.spans):
            die_of(found)
            yield worker_module._finished(self._emotions, found)


class DeadlyEmotionWorker(EmotionWorker):
    def predict(self, span: DetectedSpan) -> Iterator[Any]:
        die_of(span)
        yield from super().predict(span)


@pytest.mark.parametrize("deadly", [DeadlyFaceWorker, DeadlyEmotionWorker])
def test_a_span_that_kills_its_worker_is_given_up_after_three_attempts_and_the_rest_is_done(
    deadly, made, fake_gpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys.modules[__name__], "DEATHS", str(tmp_path / "deaths"))
    monkeypatch.setattr(pool, deadly.__name__.removeprefix("Deadly"), deadly)
    register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    shutil.copy(made / "face.mp4", tmp_path / "deadly.mp4")
    shutil.copy(made / "nobody.mp4", tmp_path / "harmless.mp4")
    found = find_inputs([tmp_path / "deadly.mp4", tmp_path / "harmless.mp4"])
    gpus = 1 if deadly is DeadlyEmotionWorker else 0
    lost, harmless = run(
        found, tmp_path / "results.parquet", SPARSE, gpus=gpus, face_actors=2, network_actors=None
    )
    assert (tmp_path / "deaths").read_text() == "xxx"
    assert (lost.status, lost.frames) == ("failed", 0)
    assert "17 of 17 sampled frames" in lost.error
    assert harmless.status == "ok"


WORKERS = ""


def note_gpus(kind: str) -> None:
    with Path(WORKERS).open("a") as notes:
        notes.write(f"{kind} on {ray.get_gpu_ids()}\n")


class NotingFaceWorker(FaceWorker):
    def start(self) -> None:
        note_gpus("face worker")
        super().start()


class NotingEmotionWorker(EmotionWorker):
    def start(self) -> None:
        note_gpus("emotion worker")
        super().start()


def test_face_workers_that_detect_on_gpus_share_them_evenly_with_the_emotion_workers(
    inputs, local, fake_gpus, tmp_path, monkeypatch
):
    def as_on_gpus(settings: Settings, *others: Any) -> ResourcePlan:
        return plan_resources(replace(settings, device="cuda"), *others)

    monkeypatch.setattr(driver, "plan_resources", as_on_gpus)
    monkeypatch.setattr(sys.modules[__name__], "WORKERS", str(tmp_path / "workers"))
    monkeypatch.setattr(pool, "FaceWorker", NotingFaceWorker)
    monkeypatch.setattr(pool, "EmotionWorker", NotingEmotionWorker)
    register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    out, in_use = tmp_path / "results.parquet", GpusInUse()
    run(inputs, out, SPARSE, in_use, face_actors=4)
    assert tables(out) == local
    assert max(in_use.taken) == pytest.approx(2, abs=1e-3)
    of_one_gpu = ["emotion worker on [{}]", *["face worker on [{}]"] * 2]
    expected = [line.format(gpu) for gpu in (0, 1) for line in of_one_gpu]
    assert sorted((tmp_path / "workers").read_text().splitlines()) == sorted(expected)


GPU_FAILED = FailedSpan("face.mp4", 0, "CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("where", ["detector", "network of a face worker", "network"])
def test_a_worker_whose_gpu_failed_dies_and_delivers_nothing(where, monkeypatch):
    monkeypatch.setattr(os, "_exit", sys.exit)
    worker = EmotionWorker(None) if where == "network" else FaceWorker(None, where != "detector")
    detected = GPU_FAILED if where == "detector" else "a detected span"
    worker._faces = SimpleNamespace(spans=lambda *_: iter([detected]))
    worker._emotions = SimpleNamespace(rows=lambda _: GPU_FAILED)
    call = worker.predict if where == "network" else worker.analyze
    with pytest.raises(SystemExit):
        next(call(SimpleNamespace(video=None, spans={})))


def test_more_gpus_than_there_are_and_a_certain_one_are_refused(inputs, fake_gpus, tmp_path):
    out = tmp_path / "results.parquet"
    with pytest.raises(ClusterError, match="`gpus` 5: Ray finds 2"):
        run(inputs, out, SPARSE, gpus=5)
    with pytest.raises(ClusterError, match="`device` cuda:1"):
        run(inputs, out, Settings(device="cuda:1"))


def start(*arguments: str | Path, engine: str = "ray") -> subprocess.Popen[str]:
    """Start an analysis as a shell on a terminal does: in a process group of its own."""
    program = [sys.executable, "-m", "emopipe.jobs.cli", "analyze", "--engine", engine]
    return subprocess.Popen(
        [*program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def at_work(process: subprocess.Popen[str], out: Path) -> list[psutil.Process]:
    """Wait until a run's first span, or the video it is all of, is there; all its processes."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if any(any(partial_path(out).glob(done)) for done in ("*/*.arrow", "*.parquet")):
            return psutil.Process(process.pid).children(recursive=True)
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("the run did not get to work")


def test_one_cpu_is_enough_and_more_than_there_are_do_no_harm_even_at_once(made, tmp_path):
    common = (made / "nobody.mp4", "--stride", 12)
    outs = {cpus: tmp_path / f"{cpus}.parquet" for cpus in (1, 16)}
    runs = [start(*common, "--cpus", cpus, "--out", out) for cpus, out in outs.items()]
    for process in runs:
        said, complained = process.communicate(timeout=200)
        assert process.returncode == 0, complained
        assert said.startswith("1 ok, 0 partial, 0 failed: ")
        expected = ("model emonet-lite", "starting", "1 input", "0/1 videos", "1/1 videos")
        assert all(line.startswith(expected) for line in complained.splitlines()), complained


def test_a_running_cluster_is_joined_by_its_address_and_left_running(made, local, tmp_path):
    """Ray's head runs in processes of its own, as `ray start --head` leaves it."""
    port = 6400 + os.getpid() % 500
    program = Path(sys.executable).with_name("ray")
    head = [program, "start", "--head", "--port", port, "--num-cpus", 2, "--block"]
    head += ["--include-dashboard", "false", "--disable-usage-stats", "--node-ip-address"]
    process = subprocess.Popen(
        [*map(str, head), "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_port(port)
        out = tmp_path / "results.parquet"
        run = start(made, "--stride", 3, "--address", f"127.0.0.1:{port}", "--out", out)
        said, complained = run.communicate(timeout=200)
        assert run.returncode == 3, complained  # some inputs are damaged
        assert "4 ok, 1 partial, 1 failed" in said
        assert tables(out) == local
        assert process.poll() is None
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):  # it may end with one that is killed before it
                one.kill()
        process.wait()


def wait_for_port(port: int) -> None:
    """Until Ray's control process answers there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        listening = {one.laddr.port for one in psutil.net_connections("tcp") if one.laddr}
        if port in listening:
            return
        time.sleep(0.1)
    raise AssertionError("no Ray head")


def test_a_signal_stops_within_seconds_and_leaves_only_what_can_be_resumed(made, endless, tmp_path):
    outs = {number: tmp_path / f"{number}.parquet" for number in (signal.SIGINT, signal.SIGTERM)}
    both = (made / "nobody.mp4", endless)
    runs = {number: start(*both, "--out", out) for number, out in outs.items()}
    below = [at_work(runs[number], out) for number, out in outs.items()]
    began = time.monotonic()
    for number, process in runs.items():
        os.killpg(process.pid, number)
    for number, process in runs.items():
        _, complained = process.communicate(timeout=60)
        assert time.monotonic() - began < 20
        assert process.returncode == 128 + number, complained
        assert "stopped; the same command resumes here" in complained
        assert "Traceback" not in complained
        lines = [line for line in complained.lower().splitlines() if "ray" in line]
        assert lines in ([], ["starting ray"])
    for out in outs.values():
        assert not out.exists()
        assert {path.name for path in partial_path(out).iterdir()} > {"run.json"}
    assert left_of([process for processes in below for process in processes]) == []


def test_nothing_lives_on_when_the_driver_is_killed(made, endless, tmp_path):
    out = tmp_path / "results.parquet"
    process = start(made / "nobody.mp4", endless, "--out", out)
    below = at_work(process, out)
    process.kill()
    process.communicate()
    assert left_of(below) == []


def test_ray_client_is_refused_with_the_way_out():
    with pytest.raises(ClusterError, match=r"`address` ray://head:10001: .* HOST:6379"):
        ClusterOptions(address="ray://head:10001")

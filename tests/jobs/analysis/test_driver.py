"""The Ray job gives the table of --local, whatever dies on the way, and leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
from chaos import command, left_of
from made_clips import zero_packets
from ray.cloudpickle import register_pickle_by_value

from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.registry import locate
from emopipe.jobs.analysis import driver
from emopipe.jobs.analysis.driver import run, spread_work
from emopipe.jobs.analysis.messages import Found, Message
from emopipe.jobs.analysis.worker import FaceFinder, Recipe
from emopipe.jobs.cluster import ClusterError, ClusterOptions
from emopipe.pipeline.estimate import Plan
from emopipe.pipeline.faces.detectors import weights_files
from emopipe.pipeline.inputs import Inputs, find_inputs
from emopipe.pipeline.local import run as run_local
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import Observer
from emopipe.pipeline.settings import Settings
from emopipe.pipeline.table.results import read_records, read_table, videos_path
from emopipe.pipeline.table.store import partial_path

SPARSE = Settings(stride=12)
SHORT_AND_LONG = ("no_face.mp4", "WolfgangLanger_Pexels.mp4")
"""One is done when much of the other is still to do."""


@pytest.fixture(scope="module")
def inputs(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The four clips and one that is cut off before its index."""
    folder = tmp_path_factory.mktemp("clips")
    for clip in clips.iterdir():
        (folder / clip.name).symlink_to(clip)
    whole = (clips / "single_face.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    return find_inputs([folder])


@pytest.fixture(scope="module")
def local(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("local") / "results.parquet"
    run_local(inputs, out, SPARSE)
    return tables(out)


@pytest.fixture(scope="module")
def fake_gpus() -> Iterator[None]:
    """A Ray of two CPUs and two GPUs that are only counted."""
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def tables(out: Path) -> str:
    """All cells of the results and of the videos table."""
    return repr((read_table(out).to_pylist(), read_records(videos_path(out))))


def workers() -> list[psutil.Process]:
    """The living workers of Ray below this process."""
    below = psutil.Process().children(recursive=True)
    return [one for one in below if command(one).startswith("ray::MapWorker")]


class GpusInUse(Observer):
    """Notes how many of Ray's GPUs are taken while spans are done."""

    def __init__(self) -> None:
        self.taken: set[float] = set()

    def span_done(self, video: Video, frames: int, faces: int) -> None:
        free = ray.available_resources().get("GPU", 0.0)
        self.taken.add(ray.cluster_resources()["GPU"] - free)


@pytest.mark.parametrize(
    ("options", "gpus", "probed_here"),
    [
        (ClusterOptions(gpus=0, face_actors=1), 0, True),
        (ClusterOptions(gpus=0), 0, False),
        (ClusterOptions(gpus=1, network_actors=2), 1, True),
    ],
    ids=["1 worker", "2 workers and a prober", "2 network workers on one GPU"],
)
def test_the_tables_are_those_of_local_in_every_cell(
    options, gpus, probed_here, inputs, local, fake_gpus, tmp_path, monkeypatch
):
    if not probed_here:
        monkeypatch.setattr(driver, "PROBED_HERE_BYTES", 0)
    observer = GpusInUse()
    records = run(inputs, tmp_path / "results.parquet", SPARSE, observer=observer, options=options)
    assert tables(tmp_path / "results.parquet") == local
    status = {record.video: record.status for record in records}
    assert status.pop("broken.mp4") == "failed"
    assert set(status.values()) == {"ok"}
    assert max(observer.taken) == gpus  # Ray counts with some delay


class WeightsRemover(Observer):
    """Removes the files of weights as soon as the driver has read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begun(self, inputs: Inputs, done: int, ahead: Plan) -> None:
        shutil.rmtree(self.folder)


def test_workers_need_no_file_of_weights(clips, shared, fake_gpus, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    model = shutil.copy(locate("emonet-lite"), folder / "mine.safetensors")
    yunet = shutil.copy(shared / "weights" / "face_detection_yunet_2023mar.onnx", folder)
    settings = Settings(model=str(model), detector="yunet", detector_weights=Path(yunet), stride=24)
    found, out = find_inputs([clips / "single_face.mp4"]), tmp_path / "results.parquet"
    remover = WeightsRemover(folder)
    [record] = run(found, out, settings, observer=remover, options=ClusterOptions(gpus=0))
    assert not folder.exists()
    assert (record.status, record.frames, record.faces) == ("ok", 3, 3)


def test_a_worker_at_work_has_no_files_that_its_death_would_leave_behind(
    fake_gpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, checkpoint = open_model("emonet-lite")
    [file] = weights_files("centerface").values()
    content = ray.put({file.name: file.read_bytes()})
    worker = FaceFinder(Recipe(SPARSE, checkpoint, None, content, ledger=None))
    assert worker
    assert list(tmp_path.iterdir()) == []


class Killer(Observer):
    """Kills a worker of Ray when the first span is done."""

    def __init__(self) -> None:
        self.killed: list[psutil.Process] = []

    def span_done(self, video: Video, frames: int, faces: int) -> None:
        if not self.killed:
            self.killed = workers()[-1:]
            self.killed[0].kill()


def test_a_run_whose_worker_is_killed_ends_by_itself_with_the_same_tables(
    inputs, local, fake_gpus, tmp_path
):
    killer = Killer()
    out = tmp_path / "results.parquet"
    run(inputs, out, SPARSE, observer=killer, options=ClusterOptions(gpus=0))
    assert killer.killed
    assert tables(out) == local


class DeadlyFaceFinder(FaceFinder):
    """Is killed by each span of `deadly.mp4`, and notes it beside the video."""

    def answers(self, message: Message) -> Iterable[Message]:
        for answer in super().answers(message):
            if isinstance(answer, Found) and answer.faces.video == "deadly.mp4":
                with message.video.path.with_suffix(".deaths").open("a") as deaths:
                    deaths.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            yield answer


def test_a_span_that_kills_its_worker_is_given_up_after_three_tries_and_the_rest_is_done(
    clips, fake_gpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(driver, "FaceFinder", DeadlyFaceFinder)
    register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    shutil.copy(clips / "single_face.mp4", tmp_path / "deadly.mp4")
    shutil.copy(clips / "no_face.mp4", tmp_path / "harmless.mp4")
    found = find_inputs([tmp_path / "deadly.mp4", tmp_path / "harmless.mp4"])
    options = ClusterOptions(gpus=0)
    records = run(found, tmp_path / "results.parquet", SPARSE, options=options)
    deadly, harmless = records
    assert (tmp_path / "deadly.deaths").read_text() == "xxx"
    assert (deadly.status, deadly.frames) == ("failed", 0)
    assert "6 of 6 sampled frames" in deadly.error
    assert harmless.status == "ok"


def test_what_decord_stumbles_over_is_done_by_pyav(clips, fake_gpus, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("good.mp4", "damaged.mp4"):
        shutil.copy(clips / "single_face.mp4", folder / name)
    zero_packets(folder / "damaged.mp4", slice(50, 52))
    settings = Settings(stride=6, backend="decord")
    run(find_inputs([folder]), tmp_path / "ray.parquet", settings)
    records = run_local(find_inputs([folder]), tmp_path / "local.parquet", settings)
    assert {r.video: r.backend for r in records} == {"good.mp4": "decord", "damaged.mp4": "pyav"}
    assert tables(tmp_path / "ray.parquet") == tables(tmp_path / "local.parquet")


def test_more_gpus_than_there_are_and_a_certain_one_are_refused(inputs, fake_gpus, tmp_path):
    out = tmp_path / "results.parquet"
    with pytest.raises(ClusterError, match="--gpus 5: Ray finds 2"):
        run(inputs, out, SPARSE, options=ClusterOptions(gpus=5))
    with pytest.raises(ClusterError, match="--device cuda:1"):
        run(inputs, out, Settings(device="cuda:1"))


@pytest.mark.parametrize("cpus", [1, 2, 16, 1000])
@pytest.mark.parametrize("gpus", [0, 1, 4])
@pytest.mark.parametrize("frames", [0, 72, 10_000, 10_000_000])
def test_no_pool_asks_for_what_is_not_there_and_no_actor_is_without_work(cpus, gpus, frames):
    plan = Plan(inputs=1, unreadable=0, seconds=1.0, frames=frames, bytes=0)
    spread = spread_work(Settings(), ClusterOptions(), gpus, cpus, plan)
    actors = spread.face_actors + spread.network_actors + 1
    assert actors * spread.cpus_each < cpus
    assert spread.cpus_each > 0
    assert spread.network_actors * spread.gpus_each == gpus
    spans = max(1, frames / 128)
    assert spread.face_actors * spread.segment_spans < spans + spread.face_actors
    assert spread.face_actors == cpus or spread.face_actors >= spans / 2
    assert spread.threads * spread.face_actors <= max(cpus, spread.face_actors)


def emopipe(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start a command as a shell on a terminal does: in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "emopipe.jobs.cli", "analyze", *map(str, arguments)],
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
        time.sleep(0.05)
    raise AssertionError("the run did not get to work")


def test_one_cpu_is_enough_and_more_than_there_are_do_no_harm_even_at_once(clips, tmp_path):
    common = (clips / "no_face.mp4", "--stride", 12)
    outs = {cpus: tmp_path / f"{cpus}.parquet" for cpus in (1, 16)}
    runs = [emopipe(*common, "--cpus", cpus, "--out", out) for cpus, out in outs.items()]
    for process in runs:
        said, complained = process.communicate(timeout=200)
        assert process.returncode == 0, complained
        assert said.startswith("1 ok, 0 partial, 0 failed: 8 frames, 0 faces")
        expected = ("model emonet-lite", "1 input", "0/1 videos", "1/1 videos")
        assert all(line.startswith(expected) for line in complained.splitlines()), complained


def test_ctrl_c_stops_within_seconds_and_leaves_only_what_can_be_gone_on_with(clips, tmp_path):
    out = tmp_path / "results.parquet"
    process = emopipe(*(clips / name for name in SHORT_AND_LONG), "--out", out)
    below = at_work(process, out)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, complained = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 130, complained
    assert "stopped; the same command goes on from here" in complained
    assert "Traceback" not in complained
    assert "ray" not in complained.lower()
    assert left_of(below) == []
    assert not out.exists()
    assert {path.name for path in partial_path(out).iterdir()} > {"run.json"}


def test_nothing_lives_on_when_the_driver_is_killed(clips, tmp_path):
    out = tmp_path / "results.parquet"
    process = emopipe(*(clips / name for name in SHORT_AND_LONG), "--out", out)
    below = at_work(process, out)
    process.kill()
    process.communicate()
    assert left_of(below) == []

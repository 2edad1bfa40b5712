"""Where an analysis runs: as asked for, or where it is estimated to end sooner."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_faces import face_clip

from emopipe.jobs import engine
from emopipe.jobs.cluster import ClusterError, ClusterOptions
from emopipe.pipeline.inputs import Inputs, find_inputs
from emopipe.pipeline.run import ProgressCallback
from emopipe.pipeline.settings import Settings
from emopipe.pipeline.table.results import read_table

SPARSE = Settings(stride=10)


class Told(ProgressCallback):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.phases: list[str] = []

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_phase(self, text: str) -> None:
        self.phases.append(text)


@pytest.fixture(autouse=True)
def _no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(engine, "available_cores", lambda: 2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return find_inputs([face_clip(tmp_path_factory.mktemp("clips"))])


@given(frames=st.integers(0, 10**9), cores=st.integers(1, 256))
def test_ray_is_worth_it_with_many_cores_and_much_work(frames: int, cores: int) -> None:
    on_ray, why = engine.repays_ray(frames, cores)
    assert "in this process" in why and "on Ray" in why
    if cores <= engine.PROCESS_CORES or frames < 100:
        assert not on_ray
    if cores >= 8 and frames > 10_000:
        assert on_ray
    if on_ray:
        assert engine.repays_ray(frames + 1, cores)[0]
        assert engine.repays_ray(frames, cores + 1)[0]


def test_a_short_clip_stays_in_this_process(inputs: Inputs, tmp_path: Path) -> None:
    told = Told()
    engine.run(inputs, tmp_path / "results.parquet", SPARSE, progress=told)
    assert told.messages == ["engine local: about 0 s in this process, 5 s on Ray and 2 cores"]
    assert told.phases == []
    again = Told()
    engine.run(inputs, tmp_path / "results.parquet", SPARSE, progress=again)
    assert again.messages == []  # nothing is left to do, so nothing is chosen


def test_what_repays_ray_runs_on_ray_with_the_same_table(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    engine.run(inputs, here, SPARSE, engine="local")
    monkeypatch.setattr(engine, "RAY_START_S", -1.0)
    told = Told()
    engine.run(inputs, there, SPARSE, progress=told)
    assert told.messages[0].startswith("engine ray: about ")
    assert told.phases == ["starting Ray", "starting workers"]
    assert read_table(there).to_pylist() == read_table(here).to_pylist()


def test_where_ray_would_not_start_the_work_is_done_in_this_process(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    monkeypatch.setattr(engine, "RAY_START_S", -1.0)
    told = Told()
    engine.run(inputs, tmp_path / "results.parquet", SPARSE, progress=told)
    assert told.messages[0].startswith("engine local: Ray's temporary folder")
    assert told.phases == []


def test_gpus_and_options_of_the_cluster_ask_for_ray(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emopipe.jobs.analysis import driver

    seen: list[ClusterOptions] = []
    monkeypatch.setattr(driver, "run", lambda *arguments: seen.append(arguments[-1]) or [])
    told = Told()
    engine.run(inputs, tmp_path / "a", SPARSE, progress=told, cluster=ClusterOptions(cpus=2))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    engine.run(inputs, tmp_path / "a", SPARSE, progress=told)
    assert told.messages == [
        "engine ray: only Ray takes `cpus`",
        "engine ray: this machine has 2 GPUs",
    ]
    assert seen == [ClusterOptions(cpus=2), ClusterOptions()]
    on_cpu = Settings(stride=10, device="cpu")
    engine.run(inputs, tmp_path / "b.parquet", on_cpu, progress=told)
    assert len(seen) == 2  # the GPUs are not to be used


def test_what_does_not_go_together_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "results.parquet"
    with pytest.raises(ClusterError, match="in this process: only Ray takes `gpus`"):
        engine.run(inputs, out, SPARSE, engine="local", cluster=ClusterOptions(gpus=0))
    with pytest.raises(ClusterError, match="`network_actors`: with `detect_every` above 1"):
        following, cluster = Settings(detect_every=5), ClusterOptions(network_actors=1)
        engine.run(inputs, out, following, cluster=cluster)
    with pytest.raises(ClusterError, match=r"not 'rays': did you mean ray\?"):
        engine.run(inputs, out, SPARSE, engine="rays")

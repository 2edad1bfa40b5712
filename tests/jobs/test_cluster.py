"""What Ray needs of a machine is checked before it starts: it would wait for half a minute."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emopipe.jobs.cluster import ClusterError, ClusterOptions, ray_session

WITHOUT_LOOPBACK = ["unshare", "--net"]


@pytest.fixture(autouse=True)
def _ray_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr("ray.init", started)


def start() -> None:
    with ray_session(ClusterOptions(), "`engine` local needs no Ray"):
        pass


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_that_cannot_be_written_is_named_with_the_way_out(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "file"
    folder.touch()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(folder))
    with pytest.raises(ClusterError, match=f"{folder} cannot be written .* RAY_TMPDIR .* local"):
        start()


def test_a_full_temporary_folder_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ClusterError, match=f"{tmp_path} is full .1 MiB free.* RAY_TMPDIR .* local"):
        start()


def test_without_a_loopback_interface_the_way_out_is_said() -> None:
    if (
        not shutil.which("unshare")
        or subprocess.run([*WITHOUT_LOOPBACK, "true"], check=False).returncode
    ):
        pytest.skip("a network without loopback takes unshare, and the right to use it")
    program = (
        "from emopipe.jobs.cluster import ClusterOptions, ray_session\n"
        "with ray_session(ClusterOptions(), 'otherwise'): pass"
    )
    command = [*WITHOUT_LOOPBACK, sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert "127.0.0.1 (Network is unreachable)" in ran.stderr.splitlines()[-1]
    assert ran.stderr.splitlines()[-1].endswith("otherwise")

"""A run's results and exit status do not depend on what its standard streams are, or on signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_faces import face_clip, face_picture

from emopipe.pipeline.table.results import Results, read_results
from emopipe.pipeline.table.store import partial_path

COMMAND = f"{sys.executable} -m emopipe.jobs.cli"
FULL = Path("/dev/full")

on_full_disk = pytest.mark.skipif(not FULL.exists(), reason="/dev/full is Linux's")


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("face") / "face.png"
    face_picture().save(path)
    return path


@pytest.fixture(scope="module")
def expected(face: Path) -> Results:
    out = face.with_name("expected.parquet")
    ran = shell(f"analyze {face} --local --quiet --out {out}", face.parent)
    assert ran.returncode == 0, ran.stderr
    return read_results(out)


def shell(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run an `emopipe` command, with redirections, in a folder."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {COMMAND} {command}"],
        capture_output=True, text=True, timeout=120, cwd=folder, env=environment, check=False,
    )  # fmt: skip


def test_closed_streams_change_neither_results_nor_status(
    face: Path, expected: Results, tmp_path: Path
) -> None:
    ran = shell(f"analyze {face} --local <&- >&- 2>&-", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert read_results(tmp_path / "results.parquet").rows.equals(expected.rows)


def test_a_daemon_without_standard_streams_can_analyze(
    face: Path, expected: Results, tmp_path: Path
) -> None:
    program = (
        "import os, sys\nos.closerange(0, 3)\nimport emopipe\n"
        "emopipe.analyze(sys.argv[1], 'results.parquet', engine='local')\nos._exit(0)"
    )
    command = [sys.executable, "-c", program, str(face)]
    assert subprocess.run(command, cwd=tmp_path, timeout=60, check=False).returncode == 0
    assert read_results(tmp_path / "results.parquet").rows.equals(expected.rows)


@on_full_disk
def test_a_full_disk_under_standard_output_is_said_and_the_results_are_there(
    face: Path, expected: Results, tmp_path: Path
) -> None:
    ran = shell(f"analyze {face} --local --quiet --json >/dev/full", tmp_path)
    assert ran.returncode == 1
    assert ran.stderr == "Error: standard output cannot be written: No space left on device\n"
    assert read_results(tmp_path / "results.parquet").rows.equals(expected.rows)


@on_full_disk
@pytest.mark.parametrize("command", ["--help", "--version", "models list"])
def test_every_command_says_that_standard_output_is_full(command: str, tmp_path: Path) -> None:
    ran = shell(f"{command} >/dev/full", tmp_path)
    assert ran.returncode == 1
    assert ran.stderr == "Error: standard output cannot be written: No space left on device\n"


@on_full_disk
def test_a_full_disk_under_standard_error_stops_nothing(
    face: Path, expected: Results, tmp_path: Path
) -> None:
    ran = shell(f"analyze {face} --local 2>/dev/full", tmp_path)
    assert ran.returncode == 0
    assert "1 ok" in ran.stdout
    assert read_results(tmp_path / "results.parquet").rows.equals(expected.rows)


def test_a_reader_that_has_gone_is_no_error_to_speak_of(tmp_path: Path) -> None:
    ran = shell("models list | true", tmp_path)
    assert (ran.returncode, ran.stderr) == (1, "")


def test_a_terminated_run_says_so_and_the_same_command_resumes(tmp_path: Path) -> None:
    clip = face_clip(tmp_path)
    out = tmp_path / "results.parquet"
    program = [*COMMAND.split(), "analyze", str(clip), "--local", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        program, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(partial_path(out).glob("*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # the decoding child gets it too
    _, complained = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM, complained
    assert complained.endswith("stopped; the same command resumes here\n")
    assert not out.exists()
    again = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0, again.stderr
    assert read_results(out).videos.status.tolist() == ["ok"]


@pytest.mark.parametrize(
    ("before", "status"), [(signal.SIG_DFL, 128 + signal.SIGHUP), (signal.SIG_IGN, 0)]
)
def test_a_closed_terminal_ends_a_command_unless_under_nohup(
    before: signal.Handlers, status: int
) -> None:
    program = (
        "import os, signal, time\n"
        f"signal.signal(signal.SIGHUP, signal.Handlers({int(before)}))\n"
        "from emopipe.jobs import cli\n"
        "cli.main = lambda **_: (os.kill(os.getpid(), signal.SIGHUP), time.sleep(1))\n"
        "cli.program()\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert ran.returncode == status

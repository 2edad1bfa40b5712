"""A run's results and exit status do not depend on what its standard streams are, or on signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_faces import FRAMES, face_clip, face_picture

from emopipe.pipeline.table.results import read_results
from emopipe.pipeline.table.store import partial_path

COMMAND = f"{sys.executable} -m emopipe.jobs.cli"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
FULL = Path("/dev/full")

on_full_disk = pytest.mark.skipif(not FULL.exists(), reason="/dev/full is Linux's")


@pytest.fixture
def face(tmp_path: Path) -> Path:
    path = tmp_path / "face.png"
    face_picture().save(path)
    return path


def shell(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run an `emopipe` command, with redirections, in a folder."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {COMMAND} {command}"],
        capture_output=True, text=True, timeout=120, cwd=folder, env=ENVIRONMENT, check=False,
    )  # fmt: skip


def faces(out: Path) -> list[int]:
    return read_results(out).rows["face"].tolist()


def test_closed_streams_change_neither_results_nor_status(face: Path, tmp_path: Path) -> None:
    ran = shell(f"analyze {face} --local <&- >&- 2>&-", tmp_path)
    assert ran.returncode == 0
    assert faces(tmp_path / "results.parquet") == [0]


def test_a_daemon_without_standard_streams_can_decode(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from emopipe.pipeline.media.decoder import Decoder\n"
        "os.closerange(0, 3)\n"
        "with Decoder() as decoder:\n"
        "    video = decoder.probe(Path(sys.argv[1]), 'clip')\n"
        "    read = sum(len(some.images) for some in decoder.frames(video, range(video.frames)))\n"
        "os._exit(read)\n"
    )
    command = [sys.executable, "-c", program, str(face_clip(tmp_path))]
    ran = subprocess.run(command, timeout=60, env=ENVIRONMENT, check=False)
    assert ran.returncode == FRAMES


@on_full_disk
def test_a_full_disk_under_standard_output_is_said_and_the_results_are_there(
    face: Path, tmp_path: Path
) -> None:
    ran = shell(f"analyze {face} --local --quiet --json >/dev/full", tmp_path)
    assert ran.returncode == 1
    assert ran.stderr == "Error: standard output cannot be written: No space left on device\n"
    assert faces(tmp_path / "results.parquet") == [0]


@on_full_disk
def test_the_help_too_says_that_standard_output_is_full(tmp_path: Path) -> None:
    ran = shell("--help >/dev/full", tmp_path)
    assert ran.returncode == 1
    assert ran.stderr == "Error: standard output cannot be written: No space left on device\n"


def test_a_reader_that_has_gone_is_no_error_to_speak_of(tmp_path: Path) -> None:
    ran = shell("--help | true", tmp_path)
    assert (ran.returncode, ran.stderr) == (1, "")


@on_full_disk
def test_a_terminated_run_says_so_and_the_same_command_resumes_even_with_standard_error_full(
    face: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.parquet"
    command = f"analyze {face} {face_clip(tmp_path)} --stride 2 --local --out {out}"
    process = subprocess.Popen(
        [*COMMAND.split(), *command.split()],
        stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(partial_path(out).glob("*.json"))) < 2:  # run.json, and the picture's record
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # the decoding child gets it too
    _, complained = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM, complained
    assert complained.endswith("stopped; the same command resumes here\n")
    assert not out.exists()
    again = shell(f"{command} 2>/dev/full", tmp_path)
    assert again.returncode == 0
    assert again.stdout.startswith("2 ok")
    assert "26 frames, 26 faces, 1 of the frames by an earlier run" in again.stdout
    assert len(faces(out)) == 26


@pytest.mark.parametrize(
    ("before", "status"), [(signal.SIG_DFL, 128 + signal.SIGHUP), (signal.SIG_IGN, 0)]
)
def test_a_closed_terminal_ends_a_command_unless_under_nohup(
    before: signal.Handlers, status: int
) -> None:
    longest = 0.3 if status == 0 else 20
    program = (
        "import os, signal, time\n"
        f"signal.signal(signal.SIGHUP, signal.Handlers({int(before)}))\n"
        "from emopipe.jobs import cli\n"
        f"cli.main = lambda **_: (os.kill(os.getpid(), signal.SIGHUP), time.sleep({longest}))\n"
        "cli.program()\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert ran.returncode == status

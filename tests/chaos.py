"""Kills runs at random moments and holds what comes of them to an undisturbed run's table.

    python tests/chaos.py driver  [--times 20] [--seed 0]   # SIGKILL to the driver's process group
    python tests/chaos.py workers [--times 20] [--seed 0]   # SIGKILL to a worker or decoding child

A killed driver's run is started again until it ends; a run whose worker is killed ends by itself.
Either way each cell of the results and of the videos table must be as if nothing had happened, and
nothing may be said of it.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from emopipe.pipeline.table.results import read_records, read_table, videos_path

CLIPS = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "videos"
COMMAND = [sys.executable, "-m", "emopipe.jobs.cli", "analyze", str(CLIPS), "--engine", "ray"]
COMMAND += ["--stride", "12", "--quiet"]
"""Some 12 s on two idle cores."""

OUTPUTS = ("results.parquet", "folder")
GONE_S = 60.0
"""So long after the driver's end something may be left of its Ray: seconds, on an idle machine."""


NODE_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""A node of Ray ends with its agents; all its other processes are workers. Of a driver that was
killed they are the last to end: for a minute they try to tell Ray's control process of it."""


def tables(out: Path) -> str:
    """All cells of the results and of the videos table."""
    files = [out] if out.is_file() else sorted(out.rglob("*.parquet"))
    rows = [row for file in files for row in read_table(file).to_pylist()]
    return repr((rows, read_records(videos_path(out))))


def start(out: Path) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with said(out).open("ab") as said_here:
        return subprocess.Popen(
            [*COMMAND, "--out", str(out)],
            stdout=said_here,
            stderr=said_here,
            start_new_session=True,
        )


def said(out: Path) -> Path:
    """Where all goes that runs on this output print."""
    return out.with_name(f"{out.name}.said")


def offspring(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All living processes below a run."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def killed(process: subprocess.Popen[bytes], after_s: float) -> bool:
    """Kill a driver's group at that moment; whether it still ran. Nothing of it may stay."""
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        below = offspring(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if left := left_of(below):
            raise SystemExit(f"left behind: {left}") from None
        return True
    return False


def left_of(processes: list[psutil.Process]) -> list[str]:
    """Command lines of those that live on, given some time to end; Ray's agents aside."""
    deadline = time.monotonic() + GONE_S
    while True:
        lines = map(command, processes)
        left = [line for line in lines if line and not line.startswith(NODE_AGENTS)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def command(process: psutil.Process) -> str:
    """A process's command line; empty when it has ended, reaped or not."""
    try:
        return (
            "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline()).strip()
        )
    except psutil.Error:
        return ""


def kill_worker(process: subprocess.Popen[bytes], moments: random.Random) -> str | None:
    """Kill a worker or a decoding child of a run; what it was, or None if there is none."""
    found = [(one, kind) for one in offspring(process) if (kind := _kind(one))]
    if not found:
        return None
    victim, kind = moments.choice(found)
    victim.kill()
    return kind


def _kind(process: psutil.Process) -> str | None:
    """Name a process if it is a worker or a decoding child."""
    line = command(process)
    if "decoder_child" in line:
        return "decoding child"
    return line if line.startswith("ray::") and not line.startswith(NODE_AGENTS) else None


def finished(out: Path) -> None:
    """Run to the end."""
    process = start(out)
    if process.wait(600):
        raise SystemExit(f"the run ended with exit status {process.returncode}")


def main() -> None:
    """Kill and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["driver", "workers"])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        out = Path(folder) / "undisturbed.parquet"
        began = time.monotonic()
        finished(out)
        seconds = time.monotonic() - began
        undisturbed = tables(out)
        print(f"undisturbed: {seconds:.1f} s", flush=True)
        equal = done = tried = 0
        while done < arguments.times:
            tried += 1
            out = Path(folder) / str(tried) / OUTPUTS[done % len(OUTPUTS)]
            after_s = moments.uniform(0, seconds)
            if arguments.what == "driver":
                what = "driver" if killed(start(out), after_s) else None
                finished(out)
            else:
                process = start(out)
                time.sleep(after_s)
                what = kill_worker(process, moments)
                if process.wait(600):
                    raise SystemExit(f"the run ended with exit status {process.returncode}")
            if what is None:
                continue  # it was over, or had not begun: another moment
            same = tables(out) == undisturbed and not said(out).read_text()
            done, equal = done + 1, equal + same
            verdict = "equal" if same else "DIFFERENT"
            print(f"{done:3} {what} killed after {after_s:5.1f} s: {verdict}", flush=True)
            print(said(out).read_text(), end="")
    print(f"{equal} of {arguments.times} equal")
    sys.exit(equal != arguments.times)


if __name__ == "__main__":
    main()

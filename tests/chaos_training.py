"""Kills trainings on Ray at random moments and compares their weights with an undisturbed run's.

    python tests/chaos_training.py [--times 10] [--seed 0]

The driver's process group is killed once, and the run continued with --resume. Weights and metrics
must equal those of a run that was not killed.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from chaos import killed
from made_fer2013 import write_csv

from emopipe.emonet import checkpoint
from emopipe.emonet.checkpoint import random_weights
from emopipe.emonet.labels import EMOTIONS_8

IMAGES = 2100
SETTINGS = (
    *("--epochs", "6", "--cooldown-epochs", "2", "--batch-size", "16", "--train", "all"),
    *("--workers", "2", "--cpus", "2", "--no-gpus", "--precision", "float32"),
)
"""About 45 s on two idle cores, half of it for Ray."""

TIMES = ["images_per_second", "data_share"]


def start(folder: Path, run: str, *options: str) -> subprocess.Popen[bytes]:
    """Start a training in its own process group."""
    command = [
        *(sys.executable, "-m", "emopipe.jobs.cli", "finetune", str(folder / "fer2013.csv")),
        *("--from", str(folder / "start.safetensors"), "--out", str(folder / run)),
        *(*SETTINGS, *options),
    ]
    with (folder / f"{run}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "EMOPIPE_CACHE": str(folder / "cache")},
        )


def finished(folder: Path, run: str, *options: str) -> None:
    """Train to the end."""
    status = start(folder, run, *options).wait(600)
    if status:
        log = (folder / f"{run}.log").read_text()
        raise SystemExit(f"the run ended with exit status {status}:\n{log}")


def epochs_done(run: Path) -> int:
    """Epochs in a run's metrics."""
    path = run / "metrics.csv"
    return len(pd.read_csv(path)) if path.exists() else 0


def same(one: Path, other: Path) -> bool:
    """Whether two runs have equal weights and equal metrics, except for times."""
    metrics = [pd.read_csv(run / "metrics.csv").drop(columns=TIMES) for run in (one, other)]
    weights = [checkpoint.load(run / "best.safetensors")[0].state_dict() for run in (one, other)]
    return metrics[0].equals(metrics[1]) and all(
        torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items()
    )


def main() -> None:
    """Kill, resume and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-training-") as name:
        folder = Path(name)
        write_csv(folder / "fer2013.csv", IMAGES)
        model, described = random_weights(1, EMOTIONS_8, width=16, input_size=64)
        checkpoint.save(model, described, folder / "start.safetensors")
        began = time.monotonic()
        finished(folder, "undisturbed")
        seconds = time.monotonic() - began
        print(f"undisturbed: {seconds:.1f} s", flush=True)
        equal = done = tried = 0
        while done < arguments.times:
            tried += 1
            run = f"run-{tried}"
            after_s = moments.uniform(0, seconds)
            if not killed(start(folder, run), after_s):
                continue  # it had already ended
            epochs = epochs_done(folder / run)
            begun = (folder / run / "settings.json").exists()
            finished(folder, run, *(["--resume"] if begun else []))
            equals = same(folder / run, folder / "undisturbed")
            done, equal = done + 1, equal + equals
            verdict = "equal" if equals else "DIFFERENT"
            print(f"{done:3} killed after {after_s:5.1f} s, {epochs} epochs: {verdict}", flush=True)
    print(f"{equal} of {arguments.times} equal")
    sys.exit(equal != arguments.times)


if __name__ == "__main__":
    main()

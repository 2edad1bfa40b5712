"""`make bench-data`: what share of a training step goes into reading and augmenting, on this CPU.

Takes the FER2013 file named on the command line, else one with pictures made here.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from made_fer2013 import write_csv

from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.data import fer2013
from emopipe.emonet.training.config import PARTS, FineTuning, TrainingSettings
from emopipe.emonet.training.finetune import FineTuningTask, begin
from emopipe.emonet.training.trainer import Trainer
from emopipe.jobs.training.run import training_precision

PICTURES = 1000
SHARE_ALLOWED = 0.15


def main() -> None:
    """Measure reading, then an epoch for each choice of what is trained."""
    with tempfile.TemporaryDirectory() as folder:
        given = [Path(argument) for argument in sys.argv[1:]]
        path = given[0] if given else write_csv(Path(folder) / "fer2013.csv", PICTURES)
        megabytes = path.stat().st_size / 1e6
        for how in ("first reading", "from the cache"):
            began = time.perf_counter()
            faces = fer2013.read(path)
            print(f"{how}: {megabytes:.0f} MB in {time.perf_counter() - began:.2f} s")
    split = fer2013.split(faces, seed=0)
    split = replace(split, train=split.train[:PICTURES], validation=split.validation[:64])
    shares = [_share(faces, split, trained) for trained in PARTS]
    if max(shares) > SHARE_ALLOWED:
        sys.exit(f"more than {SHARE_ALLOWED:.0%} of a step goes into data")


def _share(faces: fer2013.FaceSet, split: fer2013.Split, trained: str) -> float:
    """The share of the steps' time that batches took in an epoch."""
    start, described = open_model("emonet-lite")
    cpu, precision = torch.device("cpu"), training_precision("auto", gpu=False)
    settings = TrainingSettings(epochs=2, precision=precision)
    network = begin(start, described.classes, faces.classes, trained, seed=0)
    goal = replace(described, classes=faces.classes)
    tuning = FineTuning(trained=trained)
    task = FineTuningTask(faces, split, tuning, start, goal, settings.batch_size, 0, cpu, precision)
    # The first epoch warms up.
    *_, epoch = Trainer(network, task, settings, cpu).epochs()
    print(
        f"training {trained} in {precision}: {epoch.samples_per_second:.0f} images/s, "
        f"data {epoch.data_share:.1%} of a step"
    )
    return epoch.data_share


if __name__ == "__main__":
    main()

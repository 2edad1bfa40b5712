"""`make bench-data`: share of a training step spent on reading and augmenting, on this CPU.

Uses the FER2013 file named on the command line, else one with generated images.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from made_fer2013 import write_csv

from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.data import fer2013, splits
from emopipe.emonet.training.config import PARTS, FineTuning, TrainingConfig
from emopipe.emonet.training.finetune import FineTuningTask, initial_network
from emopipe.emonet.training.trainer import Trainer, resolved

IMAGES = 1000
SHARE_ALLOWED = 0.15


def main() -> None:
    """Measure reading, then an epoch for each choice of what is trained."""
    with tempfile.TemporaryDirectory() as folder:
        given = [Path(argument) for argument in sys.argv[1:]]
        path = given[0] if given else write_csv(Path(folder) / "fer2013.csv", IMAGES)
        megabytes = path.stat().st_size / 1e6
        for how in ("first reading", "from the cache"):
            began = time.perf_counter()
            faces = fer2013.read(path)
            print(f"{how}: {megabytes:.0f} MB in {time.perf_counter() - began:.2f} s")
    split = splits.split(faces, seed=0)
    split = replace(split, train=split.train[:IMAGES], validation=split.validation[:64])
    shares = [_share(faces, split, trained) for trained in PARTS]
    if max(shares) > SHARE_ALLOWED:
        sys.exit(f"more than {SHARE_ALLOWED:.0%} of a step is spent on data")


def _share(faces: fer2013.FaceSet, split: splits.Split, trained: str) -> float:
    """Share of an epoch's time spent on making batches."""
    start, described = open_model("emonet-lite")
    cpu, config = torch.device("cpu"), resolved(TrainingConfig(epochs=2), gpu=False)
    network = initial_network(start, described.classes, faces.classes, trained, seed=0)
    output, tuning = replace(described, classes=faces.classes), FineTuning(trained=trained)
    batch_size, precision = config.batch_size, config.precision
    task = FineTuningTask(faces, split, tuning, start, output, batch_size, 0, cpu, precision)
    # The first epoch warms up.
    *_, epoch = Trainer(network, task, config, cpu).epochs()
    print(
        f"training {trained} in {precision}: {epoch.samples_per_second:.0f} images/s, "
        f"data {epoch.data_share:.1%} of a step"
    )
    return epoch.data_share


if __name__ == "__main__":
    main()

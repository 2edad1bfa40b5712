"""First steps of fine-tuning in one of several processes.

A module of its own, since processes that are spawned must import it by name.
"""

import itertools
from dataclasses import replace

import torch
from made_fer2013 import face_set
from torch import distributed

from emopipe.emonet.checkpoint import random_weights
from emopipe.emonet.data import splits
from emopipe.emonet.labels import EMOTIONS_8, FER2013_7
from emopipe.emonet.training.config import BATCH_NORMS, FineTuning, TrainingConfig
from emopipe.emonet.training.finetune import FineTuningTask, initial_network
from emopipe.emonet.training.trainer import Trainer

CPU = torch.device("cpu")
WIDTH, SIZE = 16, 64


def start_model():
    return random_weights(1, EMOTIONS_8, WIDTH, SIZE)


def task(tuning, batch_size=16, faces=None, mirror=False):
    start, described = start_model()
    faces = faces or face_set(98)
    output = replace(described, classes=FER2013_7, mirror=mirror)
    split = splits.split(faces, 0)
    return FineTuningTask(faces, split, tuning, start, output, batch_size, 0, CPU, "float32")


def first_steps(rank, workers, rendezvous, folder):
    """Take one process's first step with either batch norm; save the losses and gradients."""
    torch.set_num_threads(1)
    if workers > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers
        )
    taken = {}
    for batch_norm in BATCH_NORMS:
        start, _ = start_model()
        network = initial_network(start, EMOTIONS_8, FER2013_7, "all", seed=0)
        learner = OneStep(task(FineTuning(trained="all"), 16 // workers))
        config = TrainingConfig(epochs=1, batch_norm=batch_norm, clip=1e9, precision="float32")
        (epoch,) = Trainer(network, learner, config, CPU).epochs()
        taken[batch_norm] = epoch.loss, gradients(network)
    torch.save(taken, folder / f"{rank}.pt")
    if workers > 1:
        distributed.destroy_process_group()


class OneStep:
    """A task with an epoch of one step, and a constant score."""

    def __init__(self, task):
        self.batches = lambda *which, **how: itertools.islice(task.batches(*which, **how), 1)
        self.loss = task.loss

    def steps(self, workers):
        return 1

    def score(self, network):
        return 1.0, {}


def gradients(network):
    return {name: parameter.grad for name, parameter in network.named_parameters()}

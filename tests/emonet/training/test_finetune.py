"""What the start model knew survives, and several workers learn what one would."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_fer2013 import face_set
from torch import distributed, multiprocessing

from emopipe.emonet.checkpoint import random_weights
from emopipe.emonet.data import fer2013
from emopipe.emonet.labels import EMOTIONS_8, FER2013_7
from emopipe.emonet.training.config import BATCH_NORMS, NONE, FineTuning, TrainingSettings
from emopipe.emonet.training.finetune import FineTuningTask, begin
from emopipe.emonet.training.trainer import Trainer

CPU = torch.device("cpu")
WIDTH, SIZE = 16, 64
ROUNDING = 1e-6


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """So small a network only waits for more, where other work runs beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start_model():
    return random_weights(1, EMOTIONS_8, WIDTH, SIZE)


def task(tuning, batch_size=16, faces=None):
    start, described = start_model()
    faces = faces or face_set(98)
    goal = replace(described, classes=FER2013_7)
    split = fer2013.split(faces, 0)
    return FineTuningTask(faces, split, tuning, start, goal, batch_size, 0, CPU, "float32")


def fine_tuned(tuning, **settings):
    """The trained network in evaluation mode."""
    start, _ = start_model()
    network = begin(start, EMOTIONS_8, FER2013_7, tuning.trained, seed=0)
    how = TrainingSettings(**{"epochs": 3, "batch_size": 16, "learning_rate": 1e-3, **settings})
    trainer = Trainer(network, task(tuning), how, CPU)
    for _ in trainer.epochs():
        pass
    network.load_state_dict(trainer.best)
    return network.eval()


@torch.no_grad()
def departures(network):
    """Root mean squared change of (heatmaps, valence, arousal) on new pictures."""
    start, _ = start_model()
    pictures = fer2013.network_input(face_set(21, seed=8).images, SIZE)
    before, after = start(pictures), network(pictures)
    return [
        (getattr(after, name) - getattr(before, name)).square().mean().sqrt().item()
        for name in ("heatmaps", "valence", "arousal")
    ]


def test_a_new_head_begins_with_the_rows_of_classes_that_are_known():
    start, _ = start_model()
    network = begin(start, EMOTIONS_8, (*FER2013_7, "bored"), "head", seed=0)
    old, new = start.emo_fc_2[3].weight, network.emo_fc_2[3].weight
    for row, name in enumerate(FER2013_7):
        assert torch.equal(new[row], old[EMOTIONS_8.index(name)])
    assert torch.equal(new[-2:], old[-2:])
    assert not any(torch.equal(new[7], row) for row in old)
    again = begin(start, EMOTIONS_8, (*FER2013_7, "bored"), "head", seed=0)
    assert torch.equal(again.emo_fc_2[3].weight, new)


def test_training_the_head_leaves_valence_arousal_and_landmarks_as_they_are():
    network = fine_tuned(FineTuning(trained="head"), learning_rate=1e-2)
    assert max(departures(network)) < ROUNDING
    start, _ = start_model()
    begun = begin(start, EMOTIONS_8, FER2013_7, "head", seed=0).emo_fc_2[3].weight
    trained = network.emo_fc_2[3].weight
    assert torch.equal(trained[-2:], begun[-2:])
    assert (trained[:-2] != begun[:-2]).any(dim=1).all()


@pytest.mark.parametrize("trained", ["emotion", "all"])
def test_what_is_not_frozen_is_held_to_the_start_model(trained):
    held, loose = (
        departures(
            fine_tuned(
                FineTuning(trained=trained, keep=keep, augmentation=NONE),
                batch_norm="frozen",
                learning_rate=4e-3,
            )
        )
        for keep in (10.0, 0.0)
    )
    if trained == "emotion":
        assert max(held[0], loose[0]) < ROUNDING
    else:
        assert held[0] < 0.5 * loose[0]
    assert max(held[1:]) < 0.5 * max(loose[1:])


def test_pictures_change_less_while_the_network_settles():
    plain = next(task(FineTuning(augmentation=NONE)).batches(1, 0, 1)).pictures
    learner = task(FineTuning(augmentation=replace(NONE, brightness=0.1)))
    full, less = (
        (next(learner.batches(1, 0, 1, settling=settling)).pictures - plain).abs().mean().item()
        for settling in (False, True)
    )
    assert less == pytest.approx(full / 2, rel=0.05)


@pytest.mark.parametrize("balance", ["none", "loss", "sampling"])
def test_balancing_makes_classes_count_alike(balance):
    faces = face_set(140)
    # Most pictures of the first class are now of the second.
    moved = (faces.labels == 0) & (np.arange(140) >= 70)
    targets = np.where(moved[:, None], np.eye(7, dtype=np.float32)[1], faces.targets)
    learner = task(FineTuning(balance=balance), faces=replace(faces, targets=targets))
    shown = np.concatenate([learner.rows(epoch) for epoch in range(1, 30)])
    counts = np.bincount(targets.argmax(axis=1)[shown], minlength=7)
    importance = counts * learner.class_weights.numpy()
    assert (importance.max() / importance.min() < 1.3) == (balance != "none")
    assert (counts.max() / counts.min() < 1.3) == (balance == "sampling")


def first_steps(rank, workers, rendezvous, folder):
    """Take one process's first step with either batch norm; write its losses and gradients."""
    torch.set_num_threads(1)
    if workers > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers
        )
    taken = {}
    for batch_norm in BATCH_NORMS:
        start, _ = start_model()
        network = begin(start, EMOTIONS_8, FER2013_7, "all", seed=0)
        learner = OneStep(task(FineTuning(trained="all"), 16 // workers))
        how = TrainingSettings(epochs=1, batch_norm=batch_norm, clip=1e9)
        (epoch,) = Trainer(network, learner, how, CPU).epochs()
        taken[batch_norm] = epoch.loss, gradients(network)
    torch.save(taken, folder / f"{rank}.pt")
    if workers > 1:
        distributed.destroy_process_group()


class OneStep:
    """A task with an epoch of one step, and no judgement."""

    def __init__(self, task):
        self.batches = lambda *which, **how: itertools.islice(task.batches(*which, **how), 1)
        self.loss = task.loss

    def steps(self, workers):
        return 1

    def score(self, network):
        return 1.0, {}


def gradients(network):
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """Loss and gradients, by batch norm, of two processes with 8 samples each."""
    folder = tmp_path_factory.mktemp("workers")
    multiprocessing.spawn(first_steps, args=(2, folder / "rendezvous", folder), nprocs=2)
    one, other = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    for batch_norm in BATCH_NORMS:
        assert_close(one[batch_norm], other[batch_norm], tolerance=0)
    return one


def assert_close(one, other, tolerance):
    assert one[0] == pytest.approx(other[0], abs=tolerance)
    for name, gradient in one[1].items():
        far = (gradient - other[1][name]).abs().max()
        assert far <= tolerance * max(1, other[1][name].abs().max()), name


def test_two_workers_are_one_with_the_doubled_batch(two_workers, tmp_path):
    first_steps(0, 1, None, tmp_path)
    alone = torch.load(tmp_path / "0.pt")
    assert_close(two_workers["frozen"], alone["frozen"], tolerance=1e-5)


def test_two_workers_with_batch_statistics_are_one_that_takes_them_by_halves(two_workers):
    start, _ = start_model()
    network = begin(start, EMOTIONS_8, FER2013_7, "all", seed=0).train()
    network.to(memory_format=torch.channels_last)
    learner = task(FineTuning(trained="all"), 8)
    losses = [learner.loss(network, next(learner.batches(1, half, 2))) for half in range(2)]
    loss = torch.stack(losses).mean()
    loss.backward()
    assert_close(two_workers["train"], (loss.item(), gradients(network)), tolerance=1e-5)

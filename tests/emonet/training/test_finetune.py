"""What the start model predicts is preserved, and several workers learn what one would."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from first_steps import CPU, SIZE, first_steps, gradients, start_model, task
from made_fer2013 import face_set
from torch import multiprocessing

from emopipe.emonet.data import fer2013
from emopipe.emonet.data.config import NONE
from emopipe.emonet.labels import EMOTIONS_8, FER2013_7
from emopipe.emonet.training.config import BATCH_NORMS, FineTuning, TrainingConfig
from emopipe.emonet.training.finetune import initial_network
from emopipe.emonet.training.trainer import Trainer

ROUNDING = 1e-6


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """So small a network only waits for more, where other work runs beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fine_tuned(tuning, **settings):
    """The trained network in evaluation mode."""
    start, _ = start_model()
    network = initial_network(start, EMOTIONS_8, FER2013_7, tuning.trained, seed=0)
    defaults = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-3, "precision": "float32"}
    trainer = Trainer(network, task(tuning), TrainingConfig(**{**defaults, **settings}), CPU)
    for _ in trainer.epochs():
        pass
    network.load_state_dict(trainer.best)
    return network.eval()


@torch.no_grad()
def departures(network):
    """Root mean squared change of (heatmaps, valence, arousal) on new images."""
    start, _ = start_model()
    crops = fer2013.network_input(face_set(21, seed=8).images, SIZE)
    before, after = start(crops), network(crops)
    return [
        (getattr(after, name) - getattr(before, name)).square().mean().sqrt().item()
        for name in ("heatmaps", "valence", "arousal")
    ]


def test_a_new_head_begins_with_the_rows_of_classes_that_are_known():
    start, _ = start_model()
    network = initial_network(start, EMOTIONS_8, (*FER2013_7, "bored"), "head", seed=0)
    old, new = start.emo_fc_2[3].weight, network.emo_fc_2[3].weight
    for row, name in enumerate(FER2013_7):
        assert torch.equal(new[row], old[EMOTIONS_8.index(name)])
    assert torch.equal(new[-2:], old[-2:])
    assert not any(torch.equal(new[7], row) for row in old)
    again = initial_network(start, EMOTIONS_8, (*FER2013_7, "bored"), "head", seed=0)
    assert torch.equal(again.emo_fc_2[3].weight, new)


def test_training_the_head_leaves_valence_arousal_and_landmarks_as_they_are():
    network = fine_tuned(FineTuning(trained="head"), learning_rate=1e-2)
    assert max(departures(network)) < ROUNDING
    start, _ = start_model()
    begun = initial_network(start, EMOTIONS_8, FER2013_7, "head", seed=0).emo_fc_2[3].weight
    trained = network.emo_fc_2[3].weight
    assert torch.equal(trained[-2:], begun[-2:])
    assert (trained[:-2] != begun[:-2]).any(dim=1).all()


@pytest.mark.parametrize("trained", ["emotion", "all"])
def test_distillation_keeps_outputs_close_to_the_start_model(trained):
    distilled, free = (
        departures(
            fine_tuned(
                FineTuning(trained=trained, distill=weight, augmentation=NONE),
                batch_norm="frozen",
                learning_rate=4e-3,
            )
        )
        for weight in (10.0, 0.0)
    )
    if trained == "emotion":
        assert max(distilled[0], free[0]) < ROUNDING
    else:
        assert distilled[0] < 0.5 * free[0]
    assert max(distilled[1:]) < 0.5 * max(free[1:])


def test_images_are_augmented_less_in_the_cooldown():
    plain = next(task(FineTuning(augmentation=NONE)).batches(1, 0, 1)).crops
    learner = task(FineTuning(augmentation=replace(NONE, brightness=0.1)))
    full, less = (
        (next(learner.batches(1, 0, 1, cooldown=cooldown)).crops - plain).abs().mean().item()
        for cooldown in (False, True)
    )
    assert less == pytest.approx(full / 2, rel=0.05)


@pytest.mark.parametrize("balance", ["none", "loss", "sampling"])
def test_balancing_makes_classes_count_alike(balance):
    faces = face_set(140)
    # Most images of the first class now belong to the second.
    moved = (faces.labels == 0) & (np.arange(140) >= 70)
    targets = np.where(moved[:, None], np.eye(7, dtype=np.float32)[1], faces.targets)
    learner = task(FineTuning(balance=balance), faces=replace(faces, targets=targets))
    shown = np.concatenate([learner.rows(epoch) for epoch in range(1, 30)])
    counts = np.bincount(targets.argmax(axis=1)[shown], minlength=7)
    importance = counts * learner.class_weights.numpy()
    assert (importance.max() / importance.min() < 1.3) == (balance != "none")
    assert (counts.max() / counts.min() < 1.3) == (balance == "sampling")


def test_epochs_are_selected_by_single_views_whatever_the_checkpoint_says():
    start, _ = start_model()
    network = initial_network(start, EMOTIONS_8, FER2013_7, "head", seed=0)
    one, other = (task(FineTuning(), mirror=mirror).score(network) for mirror in (False, True))
    assert one == other


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
    network = initial_network(start, EMOTIONS_8, FER2013_7, "all", seed=0).train()
    network.to(memory_format=torch.channels_last)
    learner = task(FineTuning(trained="all"), 8)
    losses = [learner.loss(network, next(learner.batches(1, half, 2))) for half in range(2)]
    loss = torch.stack(losses).mean()
    loss.backward()
    assert_close(two_workers["train"], (loss.item(), gradients(network)), tolerance=1e-5)

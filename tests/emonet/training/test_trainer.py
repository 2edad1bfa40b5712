"""The loop: what is frozen stays, what is stopped goes on as if it had not, the best is kept."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from made_fer2013 import face_set

from emopipe.emonet.checkpoint import random_weights
from emopipe.emonet.data import fer2013
from emopipe.emonet.labels import EMOTIONS_8, FER2013_7
from emopipe.emonet.training.config import FineTuning, TrainingError, TrainingSettings
from emopipe.emonet.training.finetune import FineTuningTask, begin
from emopipe.emonet.training.trainer import Trainer, learning_rate

CPU = torch.device("cpu")
SETTINGS = TrainingSettings(epochs=3, batch_size=16, learning_rate=2e-3, ema=0.9, seed=5)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """So small a network only waits for more, where other work runs beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(settings=SETTINGS, trained="all", task_class=FineTuningTask):
    """A trainer of a small network on made pictures."""
    start, described = random_weights(1, EMOTIONS_8, width=16, input_size=64)
    faces = face_set(98)
    goal = replace(described, classes=FER2013_7)
    task = task_class(
        faces,
        fer2013.split(faces, settings.seed),
        FineTuning(trained=trained),
        start,
        goal,
        settings.batch_size,
        settings.seed,
        CPU,
        "float32",
    )
    network = begin(start, EMOTIONS_8, FER2013_7, trained, settings.seed)
    return Trainer(network, task, settings, CPU)


def outcome(trainer):
    """What must repeat: metrics without times, and the best weights."""
    metrics = [(e.number, e.loss, e.learning_rate, e.score, e.scores) for e in trainer.history]
    return metrics, trainer.best


def assert_same(one, other):
    assert one[0] == other[0]
    for name, tensor in one[1].items():
        assert torch.equal(tensor, other[1][name]), name


@pytest.fixture(scope="module")
def uninterrupted():
    trainer = made()
    list(trainer.epochs())
    return trainer


def test_two_runs_with_one_seed_give_the_same_and_the_loss_falls(uninterrupted):
    again = made()
    list(again.epochs())
    assert_same(outcome(again), outcome(uninterrupted))
    assert uninterrupted.history[-1].loss < uninterrupted.history[0].loss
    other = made(replace(SETTINGS, seed=6))
    next(other.epochs())
    assert other.history[0].loss != uninterrupted.history[0].loss


@pytest.mark.parametrize("settle", [0, 1, 2])
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(settle, tmp_path):
    """Stopped where none settles, before those that settle, or at their begin."""
    settings = replace(SETTINGS, settle=settle)
    uninterrupted = made(settings)
    list(uninterrupted.epochs())
    stopped = made(settings)
    for _ in itertools.islice(stopped.epochs(), 1):
        torch.save(stopped.state(), tmp_path / "state.pt")
    resumed = made(settings)
    resumed.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [epoch.number for epoch in resumed.epochs()] == [2, 3]
    assert_same(outcome(resumed), outcome(uninterrupted))


def test_a_run_is_not_gone_on_with_under_other_settings(uninterrupted):
    with pytest.raises(TrainingError, match="begun with another learning_rate and another seed"):
        made(replace(SETTINGS, seed=9, learning_rate=1.0)).load_state(uninterrupted.state())


def test_the_best_weights_are_a_copy_that_later_epochs_do_not_touch():
    class Worsening(FineTuningTask):
        scores = iter((0.5, 0.9, 0.1))

        def score(self, network):
            return next(self.scores), {}

    trainer = made(task_class=Worsening)
    epochs = trainer.epochs()
    next(epochs)
    next(epochs)
    kept = {name: tensor.clone() for name, tensor in trainer.best.items()}
    assert [epoch.best for epoch in epochs] == [False]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in trainer.best.items())


def test_training_ends_when_nothing_has_become_better_for_a_while():
    class Stuck(FineTuningTask):
        def score(self, network):
            return 0.5, {}

    trainer = made(replace(SETTINGS, patience=1), task_class=Stuck)
    assert [epoch.best for epoch in trainer.epochs()] == [True, False]


def test_a_loss_that_is_no_number_ends_training_with_words():
    class Exploding(FineTuningTask):
        def loss(self, network, batch):
            return super().loss(network, batch) * math.nan

    with pytest.raises(TrainingError, match=r"step 1 of epoch 1: .* lower --learning-rate"):
        next(made(task_class=Exploding).epochs())


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_statistics_of_what_is_frozen_stay(batch_norm):
    trainer = made(replace(SETTINGS, batch_norm=batch_norm, epochs=1), trained="emotion")
    before = {k: v.clone() for k, v in trainer.state()["network"].items()}
    list(trainer.epochs())
    changed = {k for k, v in trainer.state()["network"].items() if not torch.equal(v, before[k])}
    branch = {k for k in before if k.startswith(("conv1x1_input_emo_2", "emo_net_2", "emo_fc_2"))}
    statistics = {k for k in branch if "running" in k or "num_batches" in k}
    assert changed <= branch
    assert bool(changed & statistics) == (batch_norm == "train")
    assert branch - statistics <= changed


def test_the_learning_rate_rises_then_falls_and_restarts():
    settings = TrainingSettings(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.001

    restarting = replace(settings, cycles=3)
    tops = [s for s in range(11, 100) if learning_rate(s, 100, restarting) == pytest.approx(1)]
    assert tops == [40, 70]


def test_settings_that_cannot_be_are_refused_by_the_name_of_their_option():
    with pytest.raises(TrainingError, match="--batch-size"):
        TrainingSettings(batch_size=0)
    with pytest.raises(TrainingError, match="--precision"):
        TrainingSettings(precision="float16")
    with pytest.raises(TrainingError, match="lower --batch-size 200"):
        made(replace(SETTINGS, batch_size=200))


def test_settling_begins_with_the_averaged_weights_and_keeps_their_statistics():
    trainer = made(replace(SETTINGS, epochs=2, settle=1))
    epochs = trainer.epochs()
    next(epochs)
    averaged = {
        name.removeprefix("module."): tensor.clone()
        for name, tensor in trainer.state()["averaged"].items()
    }
    next(epochs)
    settled = trainer.state()["network"]
    statistics = [name for name in settled if "running" in name]
    assert all(torch.equal(settled[name], averaged[name]) for name in statistics)
    steps = SETTINGS.learning_rate * trainer._steps
    weights = [name for name in settled if name.endswith("weight")]
    assert any(not torch.equal(settled[name], averaged[name]) for name in weights)
    # AdamW moves a weight by about the learning rate a step, and here by much less.
    assert max((settled[n] - averaged[n]).abs().max() for n in weights) < steps

    with pytest.raises(TrainingError, match="--settle is from 0 to --epochs"):
        replace(SETTINGS, settle=4)

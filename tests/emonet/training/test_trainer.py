"""The loop: frozen layers stay, a stopped run resumes exactly, the best weights are kept."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from made_fer2013 import face_set

from emopipe.emonet.checkpoint import random_weights
from emopipe.emonet.data import splits
from emopipe.emonet.errors import TrainingError
from emopipe.emonet.labels import EMOTIONS_8, FER2013_7
from emopipe.emonet.training.config import FineTuning, TrainingConfig
from emopipe.emonet.training.finetune import FineTuningTask, initial_network
from emopipe.emonet.training.trainer import Trainer, learning_rate, resolved

CPU = torch.device("cpu")
CONFIG = TrainingConfig(
    epochs=3, batch_size=16, learning_rate=2e-3, ema=0.9, precision="float32", seed=5
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """So small a network only waits for more, where other work runs beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(config=CONFIG, trained="all", task_class=FineTuningTask):
    """A trainer of a small network on made images."""
    start, described = random_weights(1, EMOTIONS_8, width=16, input_size=64)
    faces = face_set(98)
    output = replace(described, classes=FER2013_7)
    task = task_class(
        faces,
        splits.split(faces, config.seed),
        FineTuning(trained=trained),
        start,
        output,
        config.batch_size,
        config.seed,
        CPU,
        "float32",
    )
    network = initial_network(start, EMOTIONS_8, FER2013_7, trained, config.seed)
    return Trainer(network, task, config, CPU)


def outcome(trainer):
    """What must be equal: metrics without times, and the best weights."""
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
    other = made(replace(CONFIG, seed=6))
    next(other.epochs())
    assert other.history[0].loss != uninterrupted.history[0].loss


@pytest.mark.parametrize("cooldown_epochs", [0, 1, 2])
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(cooldown_epochs, tmp_path):
    """Stopped in a run without cooldown, before the cooldown, or at its start."""
    config = replace(CONFIG, cooldown_epochs=cooldown_epochs)
    uninterrupted = made(config)
    list(uninterrupted.epochs())
    stopped = made(config)
    for _ in itertools.islice(stopped.epochs(), 1):
        torch.save(stopped.state(), tmp_path / "state.pt")
    resumed = made(config)
    resumed.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [epoch.number for epoch in resumed.epochs()] == [2, 3]
    assert_same(outcome(resumed), outcome(uninterrupted))


def test_a_run_is_not_resumed_with_another_configuration(uninterrupted):
    with pytest.raises(
        TrainingError, match="begun with another `learning_rate` and another `seed`"
    ):
        made(replace(CONFIG, seed=9, learning_rate=1.0)).load_state(uninterrupted.state())


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

    trainer = made(replace(CONFIG, patience=1), task_class=Stuck)
    assert [epoch.best for epoch in trainer.epochs()] == [True, False]


def test_a_loss_that_is_not_finite_ends_training_with_an_error():
    class Exploding(FineTuningTask):
        def loss(self, network, batch):
            return super().loss(network, batch) * math.nan

    with pytest.raises(TrainingError, match=r"step 1 of epoch 1: .* lower `learning_rate`"):
        next(made(task_class=Exploding).epochs())


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_statistics_of_what_is_frozen_stay(batch_norm):
    trainer = made(replace(CONFIG, batch_norm=batch_norm, epochs=1), trained="emotion")
    before = {k: v.clone() for k, v in trainer.state()["network"].items()}
    list(trainer.epochs())
    changed = {k for k, v in trainer.state()["network"].items() if not torch.equal(v, before[k])}
    branch = {k for k in before if k.startswith(("conv1x1_input_emo_2", "emo_net_2", "emo_fc_2"))}
    statistics = {k for k in branch if "running" in k or "num_batches" in k}
    assert changed <= branch
    assert bool(changed & statistics) == (batch_norm == "train")
    assert branch - statistics <= changed


def test_the_learning_rate_rises_then_falls_and_restarts():
    config = TrainingConfig(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.001

    restarting = replace(config, cycles=3)
    tops = [s for s in range(11, 100) if learning_rate(s, 100, restarting) == pytest.approx(1)]
    assert tops == [40, 70]


def test_invalid_values_are_refused_naming_their_field():
    with pytest.raises(TrainingError, match="`batch_size` is 1 or more, not 0"):
        TrainingConfig(batch_size=0)
    with pytest.raises(TrainingError, match="`precision` is one of auto, float32, bfloat16"):
        TrainingConfig(precision="float16")
    with pytest.raises(TrainingError, match="`cooldown_epochs` is from 0 to `epochs`, 3, not 4"):
        replace(CONFIG, cooldown_epochs=4)
    with pytest.raises(TrainingError, match="lower `batch_size` 200"):
        made(replace(CONFIG, batch_size=200))


@pytest.mark.parametrize(("epochs", "cooldown"), [(16, 3), (12, 3), (8, 2), (3, 0)])
def test_what_is_left_open_depends_on_the_epochs_and_the_machine(epochs, cooldown):
    found = resolved(TrainingConfig(epochs=epochs), gpu=True)
    assert (found.cooldown_epochs, found.precision) == (cooldown, "bfloat16")
    assert resolved(TrainingConfig(), gpu=False).precision in ("float32", "bfloat16")
    given = TrainingConfig(cooldown_epochs=1, precision="float32")
    assert resolved(given, gpu=True) == given


def test_the_cooldown_starts_from_the_averaged_weights_and_keeps_their_statistics():
    trainer = made(replace(CONFIG, epochs=2, cooldown_epochs=1))
    epochs = trainer.epochs()
    next(epochs)
    averaged = {
        name.removeprefix("module."): tensor.clone()
        for name, tensor in trainer.state()["averaged"].items()
    }
    next(epochs)
    cooled = trainer.state()["network"]
    statistics = [name for name in cooled if "running" in name]
    assert all(torch.equal(cooled[name], averaged[name]) for name in statistics)
    steps = CONFIG.learning_rate * trainer._steps
    weights = [name for name in cooled if name.endswith("weight")]
    assert any(not torch.equal(cooled[name], averaged[name]) for name in weights)
    # AdamW moves a weight by about the learning rate a step, and here by much less.
    assert max((cooled[n] - averaged[n]).abs().max() for n in weights) < steps

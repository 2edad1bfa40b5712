"""The targets of pretraining, and its losses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_fer2013 import face_set
from made_landmarks import landmark_set

from emopipe.emonet.checkpoint import random_weights
from emopipe.emonet.data import splits
from emopipe.emonet.data.config import NONE
from emopipe.emonet.errors import TrainingError
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.landmarks import decode_heatmaps
from emopipe.emonet.model import EmoNetOutput
from emopipe.emonet.training import pretrain as pretraining
from emopipe.emonet.training.config import Pretraining, TrainingConfig
from emopipe.emonet.training.pretrain import Batch, PretrainingTask, dimensions, gaussians
from emopipe.emonet.training.trainer import Trainer, class_weights_of

CPU = torch.device("cpu")
WIDTH, SIZE = 16, 64

votes = arrays(np.int64, (5, 8), elements=st.integers(0, 10)).filter(
    lambda counts: (counts.sum(axis=1) > 0).all()
)


def shares(counts):
    return (counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)


def with_votes():
    """Images with all votes for one of seven classes; the first two for the eighth, contempt."""
    faces = face_set(112)
    targets = np.zeros((112, 8), np.float32)
    targets[:, :7] = faces.targets
    targets[:2] = np.eye(8)[7]
    return replace(faces, targets=targets, classes=EMOTIONS_8)


def task(batch_size=16, faces_with_votes=None, mirror=False, **settings) -> PretrainingTask:
    faces = faces_with_votes or with_votes()
    _, described = random_weights(0, EMOTIONS_8, WIDTH, SIZE)
    return PretrainingTask(
        faces,
        splits.split(faces, 0, "Training"),
        landmark_set(20),
        (np.arange(18), np.arange(18, 20)),
        Pretraining(**settings),
        replace(described, mirror=mirror),
        batch_size,
        0,
        CPU,
        "float32",
    )


def test_single_votes_are_removed():
    given_votes = np.zeros((3, 10), np.float32)
    given_votes[:, :2] = [[0.1, 0.9], [0.2, 0.8], [0.1, 0.1]]
    given_votes[2] = 0.1
    kept = pretraining.without_outliers(given_votes)
    assert kept[0, 1] == 1
    assert kept[1, :2].tolist() == pytest.approx([0.2, 0.8])
    assert kept[2].tolist() == pytest.approx([0.1] * 10)


@given(votes)
def test_targets_lie_between_those_of_the_emotions_voted_for(counts):
    found = dimensions(shares(counts))
    every = np.array(list(pretraining.VALENCE_AROUSAL.values()))
    for row, (valence, arousal) in zip(counts, found, strict=True):
        voted = every[row > 0]
        assert voted[:, 0].min() - 1e-5 <= valence <= voted[:, 0].max() + 1e-5
        assert voted[:, 1].min() - 1e-5 <= arousal <= voted[:, 1].max() + 1e-5


def test_half_happy_half_surprised_is_half_way():
    targets = np.zeros((1, 8), np.float32)
    targets[0, [EMOTIONS_8.index("happy"), EMOTIONS_8.index("surprise")]] = 0.5
    np.testing.assert_allclose(dimensions(targets), [[0.605, 0.59]], atol=1e-6)


@given(votes, st.floats(0, 1))
def test_class_weights_favour_the_rare_and_average_to_1(counts, power):
    targets = shares(counts)
    weights = class_weights_of(targets, power)
    share = targets.mean(axis=0)
    assert (weights * share).sum() == pytest.approx(1, abs=1e-4)
    present = np.argsort(share[share > 0])
    assert (np.diff(weights[share > 0][present]) <= 1e-4 * weights.max()).all()
    np.testing.assert_allclose(class_weights_of(targets, 0)[share > 0], 1, rtol=1e-5)


@given(st.floats(8, 56), st.floats(8, 56))
def test_the_peaks_of_target_heatmaps_are_the_points(x, y):
    points = torch.tensor([[[x, y]]])
    found, heights = decode_heatmaps(gaussians(points, 16))
    assert (found - points).abs().max() < 0.4
    assert 0.75 < heights.item() <= 1


def test_two_workers_share_what_one_with_the_doubled_batch_sees():
    whole = next(task(32).batches(1, 0, 1))
    first, second = (next(task(16).batches(1, worker, 2)) for worker in (0, 1))
    for name in ("votes", "dimensions", "points"):
        together = torch.cat((getattr(first, name), getattr(second, name)))
        torch.testing.assert_close(together, getattr(whole, name))
    parts = [first.crops[:16], second.crops[:16], first.crops[16:], second.crops[16:]]
    torch.testing.assert_close(torch.cat(parts), whole.crops)


def test_an_epoch_repeats_and_the_next_differs():
    made = task()
    once, again, later = (next(made.batches(epoch, 0, 1)) for epoch in (1, 1, 2))
    torch.testing.assert_close(once.crops, again.crops)
    assert not torch.equal(once.crops, later.crops)


def test_images_of_both_kinds_are_augmented_less_in_the_cooldown():
    plain = next(task(faces=NONE, landmarked=NONE).batches(1, 0, 1)).crops
    strength = replace(NONE, brightness=0.1)
    made = task(faces=strength, landmarked=strength)
    full, less = (
        (next(made.batches(1, 0, 1, cooldown=cooldown)).crops - plain).abs()
        for cooldown in (False, True)
    )
    for kind in (slice(0, 16), slice(16, None)):
        assert less[kind].mean().item() == pytest.approx(full[kind].mean().item() / 2, rel=0.05)


def perfect_output(batch: Batch, **changed) -> EmoNetOutput:
    """Perfect outputs for a batch, except for those that are changed."""
    n, m = len(batch.votes), len(batch.points)
    heatmaps = torch.cat((torch.zeros(n, 68, 16, 16), gaussians(batch.points, 16)))
    right = {
        "heatmaps": heatmaps,
        "first_heatmaps": heatmaps,
        "logits": torch.cat((batch.votes.clamp(min=1e-9).log(), torch.zeros(m, 8))),
        "valence": torch.cat((batch.dimensions[:, 0], torch.zeros(m))),
        "arousal": torch.cat((batch.dimensions[:, 1], torch.zeros(m))),
    }
    return EmoNetOutput(**{**right, **changed})


def test_each_output_has_its_part_in_the_loss():
    made = task(balance=0.0)
    batch = next(made.batches(1, 0, 1))

    def loss(**changed):
        return made.loss(lambda _: perfect_output(batch, **changed), batch).item()

    right = perfect_output(batch)
    best = loss()
    assert best < 0.1
    moved = right.heatmaps.roll(2, dims=3)
    exploding = right.heatmaps.clone()
    exploding[0, 0, 3, 3] = 30.0
    worse = {
        "logits": torch.zeros_like(right.logits),
        "valence": torch.zeros_like(right.valence),
        "arousal": right.arousal + 0.3,
        "heatmaps": moved,
        "first_heatmaps": moved,
    }
    for name, value in worse.items():
        assert loss(**{name: value}) > best + 0.05, name
    assert loss(heatmaps=exploding) > best + 0.05


def test_a_few_steps_lower_the_loss_and_every_output_is_evaluated():
    torch.manual_seed(0)
    network, _ = random_weights(0, EMOTIONS_8, WIDTH, SIZE)
    config = TrainingConfig(
        epochs=4, batch_size=16, learning_rate=3e-3, ema=0.5, precision="float32", cooldown_epochs=0
    )
    epochs = list(Trainer(network, task(), config, CPU).epochs())
    assert epochs[-1].loss < 0.7 * epochs[0].loss
    names = {"accuracy", "macro_recall", "valence_ccc", "arousal_ccc", "landmark_error"}
    assert set(epochs[-1].scores) == names
    assert all(np.isfinite(list(epoch.scores.values())).all() for epoch in epochs)


def test_epochs_are_selected_by_single_views_whatever_the_checkpoint_says():
    network, _ = random_weights(0, EMOTIONS_8, WIDTH, SIZE)
    assert task(mirror=True).score(network) == task(mirror=False).score(network)


def test_images_without_votes_or_too_few_are_refused():
    with pytest.raises(TrainingError, match="less than one batch"):
        task(batch_size=400).steps(1)
    with pytest.raises(TrainingError, match=r"has no FER\+ votes: give them as `ferplus`"):
        task(faces_with_votes=face_set(112))


def test_points_have_their_part_in_the_loss_where_peaks_are_near():
    made = task()
    batch = next(made.batches(1, 0, 1))
    right = perfect_output(batch)

    def loss(shift):
        moved = batch._replace(points=batch.points + shift)
        heatmaps = {"heatmaps": right.heatmaps, "first_heatmaps": right.first_heatmaps}
        # What the heatmaps themselves cost for being elsewhere is the same with a flat peak.
        whole = made.loss(lambda _: perfect_output(batch, **heatmaps), moved).item()
        return whole - squares(right.heatmaps[len(batch.votes) :], moved.points)

    def squares(heatmaps, points):
        wrong = (heatmaps - gaussians(points, 16)).square().sum(dim=(2, 3)).mean().item()
        return 2 * pretraining._HEATMAP_WEIGHT * wrong

    assert loss(3.0) > loss(0.0) + 0.05
    assert loss(40.0) < loss(0.0) + 0.05


def test_a_rare_class_weighs_more_where_classes_are_balanced():
    even, balanced = task(balance=0.0), task(balance=1.0)
    batch = next(even.batches(1, 0, 1))

    def cost(made, name):
        column = EMOTIONS_8.index(name)
        votes = torch.zeros_like(batch.votes)
        votes[:, column] = 1
        blind = perfect_output(batch, logits=torch.zeros(len(batch.crops), 8))
        known = perfect_output(batch._replace(votes=votes))
        return sum(
            sign * made.loss(lambda _, out=out: out, batch._replace(votes=votes)).item()
            for sign, out in ((1, blind), (-1, known))
        )

    assert cost(even, "contempt") == pytest.approx(cost(even, "happy"), rel=1e-3)
    assert cost(balanced, "contempt") > 3 * cost(balanced, "happy")

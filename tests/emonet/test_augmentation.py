"""Augmentation changes pictures as told, each sample on its own."""

import numpy as np
import torch
from made_fer2013 import pictures

from emonet import augmentation
from emonet.augmentation import augment
from emonet.fer2013 import network_input
from emonet.recipe import NONE, Augmentation


def seen(images, draws, how, size=64):
    return augment(torch.from_numpy(images)[:, None], torch.from_numpy(draws), size, how)


def test_without_any_change_it_is_what_the_network_sees_in_use():
    images, _ = pictures(5)
    made = seen(images, augmentation.draws(0, 1, 5), NONE)
    torch.testing.assert_close(made.expand(-1, 3, -1, -1), network_input(images, 64))


def test_a_flip_mirrors():
    images, _ = pictures(5)
    flipped = seen(images, augmentation.draws(0, 1, 5), Augmentation(1.0, *(0.0,) * 7))
    torch.testing.assert_close(flipped.flip(-1), seen(images, augmentation.draws(0, 1, 5), NONE))


def test_a_shift_moves_by_its_share_of_the_picture():
    images, _ = pictures(1)
    draws = np.full((1, augmentation.DRAWS), 0.5, np.float32)
    draws[0, augmentation._X] = 1.0
    how = Augmentation(0.0, 0.0, 0.0, 0.25, *(0.0,) * 4)
    moved = seen(images, draws, how, size=48)[0, 0].numpy() * 255
    assert np.abs(moved[:, :36] - images[0][:, 12:]).max() < 0.01


def test_what_happens_to_a_sample_depends_on_nothing_else():
    images, _ = pictures(8)
    draws, how = augmentation.draws(3, 2, 8), Augmentation(erase=1.0)
    together = seen(images, draws, how)
    apart = torch.cat([seen(images[i : i + 1], draws[i : i + 1], how) for i in range(8)])
    torch.testing.assert_close(together, apart)
    assert together.min() >= 0
    assert together.max() <= 1


def test_draws_differ_by_seed_and_epoch_and_repeat():
    first = augmentation.draws(0, 1, 100)
    assert (augmentation.draws(0, 1, 100) == first).all()
    assert (augmentation.draws(0, 2, 100) != first).any()
    assert (augmentation.draws(1, 1, 100) != first).any()


def test_erasing_paints_a_rectangle_of_one_shade():
    images, _ = pictures(20)
    draws = augmentation.draws(0, 1, 20)
    erased = seen(images, draws, Augmentation(*(0.0,) * 6, 1.0, 0.8))
    changed = erased != seen(images, draws, NONE)
    assert changed.flatten(1).any(dim=1).float().mean() > 0.8
    for picture, mask in zip(erased, changed, strict=True):
        assert len(picture[mask].unique()) <= 1

"""Augmentation changes pictures as told, each sample on its own."""

from dataclasses import fields, replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_fer2013 import pictures

from emopipe.emonet.data.fer2013 import network_input
from emopipe.emonet.training import augmentation
from emopipe.emonet.training.augmentation import augment, carried, placements
from emopipe.emonet.training.config import NONE, Augmentation


def seen(images, draws, how, size=64):
    return augment(torch.from_numpy(images)[:, None], torch.from_numpy(draws), size, how)


def test_without_any_change_it_is_what_the_network_sees_in_use():
    images, _ = pictures(5)
    made = seen(images, augmentation.draws(0, 1, 5), NONE)
    torch.testing.assert_close(made, network_input(images, 64))


def test_a_flip_mirrors():
    images, _ = pictures(5)
    flipped = seen(images, augmentation.draws(0, 1, 5), replace(NONE, flip=1.0))
    torch.testing.assert_close(flipped.flip(-1), seen(images, augmentation.draws(0, 1, 5), NONE))


def test_half_as_strong_mirrors_as_many():
    assert Augmentation(flip=0.4, turn=20.0).halved() == replace(
        Augmentation(**{f.name: getattr(Augmentation(), f.name) / 2 for f in fields(Augmentation)}),
        flip=0.4,
        turn=10.0,
    )


def test_a_shift_moves_by_its_share_of_the_picture():
    images, _ = pictures(1)
    draws = np.full((1, augmentation.DRAWS), 0.5, np.float32)
    draws[0, augmentation._X] = 1.0
    how = replace(NONE, shift=0.25)
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
    erased = seen(images, draws, replace(NONE, erase=1.0, erase_side=0.8))
    changed = erased != seen(images, draws, NONE)
    assert changed.flatten(1).any(dim=1).float().mean() > 0.8
    for picture, mask in zip(erased, changed, strict=True):
        assert len(picture[mask].unique()) <= 1


def test_a_part_of_a_picture_can_be_looked_at():
    images, _ = pictures(1)
    squares = torch.tensor([[0.25, -0.5, 0.5]])
    draws = torch.from_numpy(augmentation.draws(0, 1, 1))
    part = augment(torch.from_numpy(images)[:, None], draws, 24, NONE, squares)
    assert np.abs(part[0, 0].numpy() * 255 - images[0][0:24, 18:42]).max() < 0.01


@given(
    seed=st.integers(0, 1000),
    square=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0.3, 1.0)),
)
def test_points_are_carried_to_where_their_picture_shows_them(seed, square):
    draws = torch.from_numpy(augmentation.draws(seed, 1, 4))
    places = placements(draws, Augmentation(), torch.tensor([square] * 4))
    shown = torch.rand(4, 5, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    source = shown @ places[:, :, :2].transpose(1, 2) + places[:, None, :, 2]
    torch.testing.assert_close(carried(source, places), shown, atol=1e-4, rtol=0)


def test_tints_differ_by_channel_and_fading_takes_colours_away():
    draws = torch.from_numpy(augmentation.draws(0, 1, 6))
    colours = torch.randint(50, 150, (6, 3, 48, 48), dtype=torch.uint8)
    faded = augment(colours, draws, 48, replace(NONE, grey=1.0))
    torch.testing.assert_close(faded[:, 0], faded[:, 2])
    tinted = augment(colours, draws, 48, replace(NONE, tint=0.2)) * 255 / colours
    assert (tinted.flatten(2).std(dim=2) < 1e-3).all()
    gains = tinted.flatten(2).mean(dim=2)
    assert (gains - 1).abs().max() < 0.2
    assert (gains.amax(dim=1) - gains.amin(dim=1)).min() > 0.01


def test_blur_softens_and_keeps_the_mean():
    images, _ = pictures(4)
    draws = np.ones((4, augmentation.DRAWS), np.float32)
    sharp, soft = seen(images, draws, NONE), seen(images, draws, replace(NONE, blur=1.0))
    assert (soft.flatten(1).std(dim=1) < 0.95 * sharp.flatten(1).std(dim=1)).all()
    torch.testing.assert_close(
        soft.flatten(1).mean(dim=1), sharp.flatten(1).mean(dim=1), atol=0.01, rtol=0
    )

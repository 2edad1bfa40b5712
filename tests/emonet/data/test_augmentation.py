"""Augmentation changes images as asked for, each sample independently."""

from dataclasses import fields, replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_fer2013 import images_and_labels

from emopipe.emonet.data import augmentation
from emopipe.emonet.data.augmentation import affine_matrices, augment, transform_points
from emopipe.emonet.data.config import NONE, Augmentation
from emopipe.emonet.data.fer2013 import network_input


def augmented(images, params, strength, size=64):
    return augment(torch.from_numpy(images)[:, None], torch.from_numpy(params), size, strength)


def test_without_any_change_it_is_what_the_network_sees_in_use():
    images, _ = images_and_labels(5)
    made = augmented(images, augmentation.random_params(0, 1, 5), NONE)
    torch.testing.assert_close(made, network_input(images, 64))


def test_a_flip_mirrors():
    images, _ = images_and_labels(5)
    flipped = augmented(images, augmentation.random_params(0, 1, 5), replace(NONE, flip=1.0))
    torch.testing.assert_close(
        flipped.flip(-1), augmented(images, augmentation.random_params(0, 1, 5), NONE)
    )


def test_half_as_strong_mirrors_as_many():
    assert Augmentation(flip=0.4, turn=20.0).halved() == replace(
        Augmentation(**{f.name: getattr(Augmentation(), f.name) / 2 for f in fields(Augmentation)}),
        flip=0.4,
        turn=10.0,
    )


def test_a_shift_moves_by_its_share_of_the_image():
    images, _ = images_and_labels(1)
    params = np.full((1, augmentation.N_RANDOM_PARAMS), 0.5, np.float32)
    params[0, augmentation._X] = 1.0
    strength = replace(NONE, shift=0.25)
    moved = augmented(images, params, strength, size=48)[0, 0].numpy() * 255
    assert np.abs(moved[:, :36] - images[0][:, 12:]).max() < 0.01


def test_what_happens_to_a_sample_depends_on_nothing_else():
    images, _ = images_and_labels(8)
    params, strength = augmentation.random_params(3, 2, 8), Augmentation(erase=1.0)
    together = augmented(images, params, strength)
    apart = torch.cat([augmented(images[i : i + 1], params[i : i + 1], strength) for i in range(8)])
    torch.testing.assert_close(together, apart)
    assert together.min() >= 0
    assert together.max() <= 1


def test_random_params_differ_by_seed_and_epoch_and_repeat():
    first = augmentation.random_params(0, 1, 100)
    assert (augmentation.random_params(0, 1, 100) == first).all()
    assert (augmentation.random_params(0, 2, 100) != first).any()
    assert (augmentation.random_params(1, 1, 100) != first).any()


def test_erasing_paints_a_rectangle_of_one_shade():
    images, _ = images_and_labels(20)
    params = augmentation.random_params(0, 1, 20)
    erased = augmented(images, params, replace(NONE, erase=1.0, erase_side=0.8))
    changed = erased != augmented(images, params, NONE)
    assert changed.flatten(1).any(dim=1).float().mean() > 0.8
    for crop, mask in zip(erased, changed, strict=True):
        assert len(crop[mask].unique()) <= 1


def test_a_square_of_an_image_can_be_cut_out():
    images, _ = images_and_labels(1)
    squares = torch.tensor([[0.25, -0.5, 0.5]])
    params = torch.from_numpy(augmentation.random_params(0, 1, 1))
    part = augment(torch.from_numpy(images)[:, None], params, 24, NONE, squares)
    assert np.abs(part[0, 0].numpy() * 255 - images[0][0:24, 18:42]).max() < 0.01


@given(
    seed=st.integers(0, 1000),
    square=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0.3, 1.0)),
)
def test_points_are_transformed_to_where_the_image_shows_them(seed, square):
    params = torch.from_numpy(augmentation.random_params(seed, 1, 4))
    matrices = affine_matrices(params, Augmentation(), torch.tensor([square] * 4))
    shown = torch.rand(4, 5, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    source = shown @ matrices[:, :, :2].transpose(1, 2) + matrices[:, None, :, 2]
    torch.testing.assert_close(transform_points(source, matrices), shown, atol=1e-4, rtol=0)


def test_tints_differ_by_channel_and_fading_takes_colours_away():
    params = torch.from_numpy(augmentation.random_params(0, 1, 6))
    colours = torch.randint(50, 150, (6, 3, 48, 48), dtype=torch.uint8)
    faded = augment(colours, params, 48, replace(NONE, grey=1.0))
    torch.testing.assert_close(faded[:, 0], faded[:, 2])
    tinted = augment(colours, params, 48, replace(NONE, tint=0.2)) * 255 / colours
    assert (tinted.flatten(2).std(dim=2) < 1e-3).all()
    gains = tinted.flatten(2).mean(dim=2)
    assert (gains - 1).abs().max() < 0.2
    assert (gains.amax(dim=1) - gains.amin(dim=1)).min() > 0.01


def test_blur_softens_and_keeps_the_mean():
    images, _ = images_and_labels(4)
    params = np.ones((4, augmentation.N_RANDOM_PARAMS), np.float32)
    sharp, soft = (
        augmented(images, params, NONE),
        augmented(images, params, replace(NONE, blur=1.0)),
    )
    assert (soft.flatten(1).std(dim=1) < 0.95 * sharp.flatten(1).std(dim=1)).all()
    torch.testing.assert_close(
        soft.flatten(1).mean(dim=1), sharp.flatten(1).mean(dim=1), atol=0.01, rtol=0
    )

"""Random changes to training pictures, a batch at a time, on any device.

What happens to a sample is decided by a row of uniform draws that depends on the seed, the epoch
and the sample's place in the epoch alone: not on batch size, workers or device.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from emopipe.emonet.training.config import Augmentation

DRAWS = 18
"""Uniform numbers that decide what happens to one sample."""

_FLIP, _ZOOM, _TURN, _X, _Y, _BRIGHTNESS, _CONTRAST = range(7)
_ERASE, _ERASE_X, _ERASE_Y, _ERASE_WIDTH, _ERASE_HEIGHT, _SHADE = range(7, 13)
_BLUR, _GREY, _RED, _GREEN, _BLUE = range(13, DRAWS)


def draws(seed: int, epoch: int, samples: int) -> NDArray[np.float32]:
    """Draw for all samples of an epoch.

    Returns:
        (samples, DRAWS) float32 in [0, 1).
    """
    return np.random.default_rng((seed, epoch)).random((samples, DRAWS), dtype=np.float32)


def augment(
    images: Tensor, draws: Tensor, size: int, how: Augmentation, squares: Tensor | None = None
) -> Tensor:
    """Change pictures and resample them to the network's size, in one go.

    Args:
        images: (n, channels, height, width) uint8, one channel or RGB.
        draws: (n, DRAWS) float in [0, 1), on the same device.
        size: side of the result, pixels.
        how: how strongly.
        squares: see `placements`.

    Returns:
        (n, 3, size, size) float32 in [0, 1].
    """
    grid = F.affine_grid(
        placements(draws, how, squares), [len(images), 1, size, size], align_corners=False
    )
    pictures = F.grid_sample(
        images.float() / 255, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    if how.blur:
        pictures = _blurred(pictures, draws, how)
    pictures = _coloured(pictures.expand(-1, 3, -1, -1), draws, how)
    return _erased(_relit(pictures, draws, how), draws, how)


def placements(draws: Tensor, how: Augmentation, squares: Tensor | None = None) -> Tensor:
    """Where each result's pixels come from.

    Args:
        draws: (n, DRAWS) float in [0, 1).
        how: how strongly.
        squares: (n, 3) x and y of the centre and half the side of the part of each picture that
            is looked at, the picture reaching from -1 to 1; None for the whole pictures.

    Returns:
        (n, 2, 3) maps from places in the result to places in the picture, both in [-1, 1] with x
        first, as `torch.nn.functional.affine_grid` takes them.
    """
    signed = 2 * draws - 1
    scale = 1 / (1 + how.zoom * signed[:, _ZOOM])
    angle = math.radians(how.turn) * signed[:, _TURN]
    mirror = torch.where(mirrored(draws, how), -1.0, 1.0)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    # A picture is 2 wide in these coordinates.
    shift_x, shift_y = 2 * how.shift * signed[:, _X], 2 * how.shift * signed[:, _Y]
    rows = [cosine * mirror, -sine, shift_x, sine * mirror, cosine, shift_y]
    places = torch.stack(rows, dim=1).reshape(-1, 2, 3)
    if squares is None:
        return places
    places = places * squares[:, 2, None, None]
    places[:, :, 2] += squares[:, :2]
    return places


def mirrored(draws: Tensor, how: Augmentation) -> Tensor:
    """Tell which samples are mirrored: (n,) bool."""
    return draws[:, _FLIP] < how.flip


def carried(points: Tensor, places: Tensor) -> Tensor:
    """Take points of pictures to where they lie in the results.

    Args:
        points: (n, k, 2) x and y in the picture, which reaches from -1 to 1.
        places: (n, 2, 3) as `placements` makes them.

    Returns:
        (n, k, 2) x and y in the result, which reaches from -1 to 1 too.
    """
    moved = points - places[:, None, :, 2]
    inverse: Tensor = torch.linalg.inv(places[:, :, :2])
    return moved @ inverse.transpose(1, 2)


def _blurred(pictures: Tensor, draws: Tensor, how: Augmentation) -> Tensor:
    soft = pictures
    for _ in range(2):
        soft = F.avg_pool2d(soft, 3, stride=1, padding=1, count_include_pad=False)
    return pictures.lerp(soft, how.blur * draws[:, _BLUR, None, None, None])


def _coloured(pictures: Tensor, draws: Tensor, how: Augmentation) -> Tensor:
    faded = (draws[:, _GREY] < how.grey)[:, None, None, None]
    pictures = torch.where(faded, pictures.mean(dim=1, keepdim=True), pictures)
    gains = 1 + how.tint * (2 * draws[:, [_RED, _GREEN, _BLUE]] - 1)
    return pictures * gains[:, :, None, None]


def _relit(pictures: Tensor, draws: Tensor, how: Augmentation) -> Tensor:
    signed = (2 * draws - 1)[:, :, None, None, None]
    mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
    contrast = 1 + how.contrast * signed[:, _CONTRAST]
    light = mean + how.brightness * signed[:, _BRIGHTNESS]
    return ((pictures - mean) * contrast + light).clamp(0, 1)


def _erased(pictures: Tensor, draws: Tensor, how: Augmentation) -> Tensor:
    height, width = pictures.shape[-2:]
    x = (torch.arange(width, device=pictures.device) + 0.5) / width
    y = (torch.arange(height, device=pictures.device) + 0.5) / height
    reach = how.erase_side / 2
    columns = (x - draws[:, _ERASE_X, None]).abs() < reach * draws[:, _ERASE_WIDTH, None]
    rows = (y - draws[:, _ERASE_Y, None]).abs() < reach * draws[:, _ERASE_HEIGHT, None]
    rows = rows & (draws[:, _ERASE, None] < how.erase)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, draws[:, _SHADE, None, None, None], pictures)

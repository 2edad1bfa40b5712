"""Random changes to training images, a batch at a time, on any device.

A row of uniform random numbers decides what happens to a sample. It depends on the seed, the epoch
and the sample's position in the epoch only: not on batch size, number of workers or device.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from emopipe.emonet.data.config import Augmentation

N_RANDOM_PARAMS = 18
"""Uniform random numbers per sample."""

_FLIP, _ZOOM, _TURN, _X, _Y, _BRIGHTNESS, _CONTRAST = range(7)
_ERASE, _ERASE_X, _ERASE_Y, _ERASE_WIDTH, _ERASE_HEIGHT, _SHADE = range(7, 13)
_BLUR, _GREY, _RED, _GREEN, _BLUE = range(13, N_RANDOM_PARAMS)


def random_params(seed: int, epoch: int, samples: int) -> NDArray[np.float32]:
    """Draw the random numbers of all samples of an epoch.

    Args:
        seed: of the training.
        epoch: its number.
        samples: how many there are in it.

    Returns:
        (samples, N_RANDOM_PARAMS) float32, uniform in [0, 1).
    """
    return np.random.default_rng((seed, epoch)).random((samples, N_RANDOM_PARAMS), dtype=np.float32)


def augment(
    images: Tensor,
    params: Tensor,
    size: int,
    strength: Augmentation,
    squares: Tensor | None = None,
) -> Tensor:
    """Augment images and resample them to the network's input size in the same step.

    Args:
        images: (n, channels, height, width) uint8, grey (1 channel) or RGB.
        params: (n, N_RANDOM_PARAMS) float in [0, 1), on the same device.
        size: side of the result, pixels.
        strength: how strongly images are changed.
        squares: see `affine_matrices`.

    Returns:
        (n, 3, size, size) float32 RGB in [0, 1].
    """
    grid = F.affine_grid(
        affine_matrices(params, strength, squares),
        [len(images), 1, size, size],
        align_corners=False,
    )
    crops = F.grid_sample(
        images.float() / 255, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    if strength.blur:
        crops = _blur(crops, params, strength)
    crops = _tint(crops.expand(-1, 3, -1, -1), params, strength)
    return _erase(_relight(crops, params, strength), params, strength)


def affine_matrices(
    params: Tensor, strength: Augmentation, squares: Tensor | None = None
) -> Tensor:
    """Matrices that map positions in the result to positions in the image.

    Both lie in [-1, 1], x first, as `torch.nn.functional.affine_grid` has them.

    Args:
        params: (n, N_RANDOM_PARAMS) float in [0, 1).
        strength: how strongly images are changed.
        squares: (n, 3) x and y of the centre and half the side of the square of each image that is
            cut out, the image spanning [-1, 1]; None for whole images.

    Returns:
        (n, 2, 3) float32.
    """
    signed = 2 * params - 1
    scale = 1 / (1 + strength.zoom * signed[:, _ZOOM])
    angle = math.radians(strength.turn) * signed[:, _TURN]
    mirror = torch.where(mirrored(params, strength), -1.0, 1.0)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    # An image is 2 wide in these coordinates.
    shift_x, shift_y = 2 * strength.shift * signed[:, _X], 2 * strength.shift * signed[:, _Y]
    rows = [cosine * mirror, -sine, shift_x, sine * mirror, cosine, shift_y]
    matrices = torch.stack(rows, dim=1).reshape(-1, 2, 3)
    if squares is None:
        return matrices
    matrices = matrices * squares[:, 2, None, None]
    matrices[:, :, 2] += squares[:, :2]
    return matrices


def mirrored(params: Tensor, strength: Augmentation) -> Tensor:
    """Which samples are mirrored.

    Args:
        params: (n, N_RANDOM_PARAMS) float in [0, 1).
        strength: how strongly images are changed.

    Returns:
        (n,) bool.
    """
    return params[:, _FLIP] < strength.flip


def transform_points(points: Tensor, matrices: Tensor) -> Tensor:
    """Map points of images to where they appear in the results.

    Args:
        points: (n, k, 2) x and y, the image spanning [-1, 1].
        matrices: (n, 2, 3), see `affine_matrices`; applied inversely.

    Returns:
        (n, k, 2) x and y, the result spanning [-1, 1].
    """
    moved = points - matrices[:, None, :, 2]
    inverse: Tensor = torch.linalg.inv(matrices[:, :, :2])
    return moved @ inverse.transpose(1, 2)


# These take crops, (n, 3, height, width) float32 RGB in [0, 1], and the random numbers of each,
# (n, N_RANDOM_PARAMS), and return crops of the same shape.


def _blur(crops: Tensor, params: Tensor, strength: Augmentation) -> Tensor:
    """Mix each crop with itself blurred by two 3×3 box filters; grey crops may have 1 channel."""
    soft = crops
    for _ in range(2):
        soft = F.avg_pool2d(soft, 3, stride=1, padding=1, count_include_pad=False)
    return crops.lerp(soft, strength.blur * params[:, _BLUR, None, None, None])


def _tint(crops: Tensor, params: Tensor, strength: Augmentation) -> Tensor:
    """Remove the colours of some crops, then scale the channels; the result may exceed 1."""
    grey = (params[:, _GREY] < strength.grey)[:, None, None, None]
    crops = torch.where(grey, crops.mean(dim=1, keepdim=True), crops)
    gains = 1 + strength.tint * (2 * params[:, [_RED, _GREEN, _BLUE]] - 1)
    return crops * gains[:, :, None, None]


def _relight(crops: Tensor, params: Tensor, strength: Augmentation) -> Tensor:
    """Change each crop's contrast about its mean, and its brightness; clamped to [0, 1]."""
    signed = (2 * params - 1)[:, :, None, None, None]
    mean = crops.mean(dim=(1, 2, 3), keepdim=True)
    contrast = 1 + strength.contrast * signed[:, _CONTRAST]
    light = mean + strength.brightness * signed[:, _BRIGHTNESS]
    return ((crops - mean) * contrast + light).clamp(0, 1)


def _erase(crops: Tensor, params: Tensor, strength: Augmentation) -> Tensor:
    """Fill a rectangle of some crops with one grey (Zhong et al., AAAI 2020)."""
    height, width = crops.shape[-2:]
    x = (torch.arange(width, device=crops.device) + 0.5) / width
    y = (torch.arange(height, device=crops.device) + 0.5) / height
    reach = strength.erase_side / 2
    columns = (x - params[:, _ERASE_X, None]).abs() < reach * params[:, _ERASE_WIDTH, None]
    rows = (y - params[:, _ERASE_Y, None]).abs() < reach * params[:, _ERASE_HEIGHT, None]
    rows = rows & (params[:, _ERASE, None] < strength.erase)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, params[:, _SHADE, None, None, None], crops)

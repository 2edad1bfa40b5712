"""EmoNet: one network for expression, valence, arousal and 68 facial landmarks.

Toisoul, Kossaifi, Bulat, Tzimiropoulos, Pantic, "Estimation of continuous valence and arousal
levels from faces in naturalistic conditions", Nature Machine Intelligence 3, 42-50 (2021).

A face alignment network (two stacked hourglasses) locates the landmarks; its features, weighted by
its own heatmaps, feed a small convolutional branch that predicts the emotion. Module names are
those of the published checkpoints, so that these load strictly.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emopipe.emonet.labels import N_LANDMARKS

STRIDE = 4
"""Crop pixels per heatmap cell: the stem halves the resolution twice."""

SIZE_MULTIPLE = 64
"""The side of an input is a multiple of this: STRIDE, halved four times in hourglass and branch."""

WIDTH_MULTIPLE = 16
"""The channels of the hourglasses are a multiple of this, see `EmoNet`."""

PUBLISHED_WIDTH = 256
PUBLISHED_INPUT_SIZE = 256

_DEPTH = 4  # halvings inside an hourglass
_STACKS = 2


class EmoNetOutput(NamedTuple):
    """The network's raw outputs for N crops.

    Attributes:
        heatmaps: (N, 68, size / 4, size / 4), the last stack's.
        logits: (N, n_expression), unnormalised.
        valence: (N,), unclamped.
        arousal: (N,), unclamped.
        first_heatmaps: (N, 68, size / 4, size / 4), the first stack's (supervised in training).
    """

    heatmaps: Tensor
    logits: Tensor
    valence: Tensor
    arousal: Tensor
    first_heatmaps: Tensor


class ConvBlock(nn.Module):
    """Hierarchical pre-activation block: three 3×3 convolutions in a row, their outputs joined.

    The convolutions give 1/2, 1/4 and 1/4 of the output channels; the input is added to their
    concatenation, through a 1×1 convolution where the channel counts differ. The ReLUs overwrite
    the batch norms' outputs, which nothing else uses.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half, quarter = channels_out // 2, channels_out // 4
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, quarter, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(quarter)
        self.conv3 = nn.Conv2d(quarter, quarter, 3, padding=1, bias=False)
        self.downsample = (
            nn.Sequential(
                nn.BatchNorm2d(channels_in),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels_in, channels_out, 1, bias=False),
            )
            if channels_in != channels_out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels_out, H, W)."""
        first = self.conv1(F.relu(self.bn1(x), inplace=True))
        second = self.conv2(F.relu(self.bn2(first), inplace=True))
        third = self.conv3(F.relu(self.bn3(second), inplace=True))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.cat((first, second, third), dim=1).add_(shortcut)


class Hourglass(nn.Module):
    """Four halvings and as many doublings, with a skip branch at each level.

    `b1_l` is the skip branch of level l, `b2_l` and `b3_l` come before and after the next lower
    level; `b2_plus_1` is the lowest.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        for level in range(_DEPTH, 0, -1):
            self.add_module(f"b1_{level}", ConvBlock(features, features))
            self.add_module(f"b2_{level}", ConvBlock(features, features))
        self.b2_plus_1 = ConvBlock(features, features)
        for level in range(1, _DEPTH + 1):
            self.add_module(f"b3_{level}", ConvBlock(features, features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, features, H, W) to the same shape; H and W are multiples of 16."""
        return self._level(_DEPTH, x)

    def _level(self, level: int, x: Tensor) -> Tensor:
        skip: Tensor = self.get_submodule(f"b1_{level}")(x)
        low = self.get_submodule(f"b2_{level}")(F.max_pool2d(x, 2))
        low = self._level(level - 1, low) if level > 1 else self.b2_plus_1(low)
        low = self.get_submodule(f"b3_{level}")(low)
        return F.interpolate(low, scale_factor=2, mode="nearest").add_(skip)


class EmoNet(nn.Module):
    """The whole network.

    Args:
        n_expression: number of expression classes.
        width: channels of the hourglasses; a multiple of 16 (the published network has 256).
    """

    def __init__(self, n_expression: int = 8, width: int = PUBLISHED_WIDTH) -> None:
        super().__init__()
        self.n_expression = n_expression
        self.width = width
        self.conv1 = nn.Conv2d(3, width // 4, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(width // 4)
        self.conv2 = ConvBlock(width // 4, width // 2)
        self.conv3 = ConvBlock(width // 2, width // 2)
        self.conv4 = ConvBlock(width // 2, width)
        for stack in range(_STACKS):
            self.add_module(f"m{stack}", Hourglass(width))
            self.add_module(f"top_m_{stack}", ConvBlock(width, width))
            self.add_module(f"conv_last{stack}", nn.Conv2d(width, width, 1))
            self.add_module(f"bn_end{stack}", nn.BatchNorm2d(width))
            self.add_module(f"l{stack}", nn.Conv2d(width, N_LANDMARKS, 1))
        self.bl0 = nn.Conv2d(width, width, 1)
        self.al0 = nn.Conv2d(N_LANDMARKS, width, 1)
        self.conv1x1_input_emo_2 = nn.Conv2d((1 + _STACKS) * width, width, 1)
        self.emo_net_2 = nn.Sequential(
            *(layer for _ in range(4) for layer in (ConvBlock(width, width), nn.MaxPool2d(2)))
        )
        self.emo_fc_2 = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.BatchNorm1d(width // 2),
            nn.ReLU(),
            nn.Linear(width // 2, n_expression + 2),
        )

    def forward(self, crops: Tensor) -> EmoNetOutput:
        """Predict from crops.

        Args:
            crops: (N, 3, size, size) float, RGB in [0, 1]; size is a multiple of 64.

        Raises:
            ValueError: the size is not a multiple of 64.
        """
        if crops.shape[-1] % SIZE_MULTIPLE or crops.shape[-2] % SIZE_MULTIPLE:
            raise ValueError(
                f"EmoNet takes crops whose sides are multiples of {SIZE_MULTIPLE}, "
                f"not {crops.shape[-1]}×{crops.shape[-2]}"
            )
        heatmaps, pooled, first_heatmaps = self.trunk(crops)
        logits, valence, arousal = self.head(pooled)
        return EmoNetOutput(heatmaps, logits, valence, arousal, first_heatmaps)

    def trunk(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All but the last layers.

        Args:
            crops: see `forward`.

        Returns:
            The heatmaps (N, 68, size / 4, size / 4), the features (N, width), and the heatmaps of
            the first hourglass.
        """
        stem = self._stem(crops)
        first_features, first_heatmaps = self._stack(0, stem)
        first_features = self.bl0(first_features)
        second_input = stem + first_features + self.al0(first_heatmaps)
        second_features, heatmaps = self._stack(1, second_input)

        attention = heatmaps.sum(dim=1, keepdim=True)
        attended = torch.cat((first_features, second_features), dim=1) * attention
        emotion = self.conv1x1_input_emo_2(torch.cat((stem, attended), dim=1))
        pooled = self.emo_net_2(emotion).to(self.emo_fc_2[0].weight.dtype).mean(dim=(2, 3))
        return heatmaps, pooled, first_heatmaps

    def head(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The last layers, which the predictor keeps in float32: bfloat16 rounds valence to 1/256.

        Args:
            features: (N, width), from `trunk`.

        Returns:
            Logits (N, classes), valence (N,) and arousal (N,).
        """
        out = self.emo_fc_2(features)
        n = self.n_expression
        return out[:, :n], out[:, n], out[:, n + 1]

    def _stem(self, crops: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(crops)), inplace=True)
        x = F.max_pool2d(self.conv2(x), 2)
        out: Tensor = self.conv4(self.conv3(x))
        return out

    def _stack(self, stack: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and heatmaps of one hourglass with its head."""
        x = self.get_submodule(f"top_m_{stack}")(self.get_submodule(f"m{stack}")(x))
        x = self.get_submodule(f"conv_last{stack}")(x)
        features = F.relu(self.get_submodule(f"bn_end{stack}")(x), inplace=True)
        return features, self.get_submodule(f"l{stack}")(features)

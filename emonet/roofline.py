"""How near the network comes to what a machine can do: its FLOP a face beside a matrix product's.

Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52, 65-76 (2009). A floating-point operation (FLOP) is a
multiplication or an addition.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from emopipe.emonet.model import EmoNet
from emopipe.emonet.predictor import PRECISIONS, Predictor

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192, "mps": 4096}
"""Rows and columns of the multiplied matrices, by device type: large enough to keep it busy."""

LEAST_CALLS = 5
"""What is timed is called so often at least, unless that takes `LONGEST` times as long as asked:
one product of float16 matrices on a CPU without instructions for it takes tens of seconds."""

LONGEST = 10


@dataclass(frozen=True)
class Roofline:
    """The network in whole batches, and a large matrix product in the same precision.

    Attributes:
        matrix_side: rows and columns of the two matrices.
        matrix_flop_per_second: of their product, in PyTorch.
        faces_per_batch: crops in a forward pass.
        faces_per_second: of the network.
        flop_per_face: of its convolutions and linear layers, with the mirror image's if that is
            averaged in.
    """

    matrix_side: int
    matrix_flop_per_second: float
    faces_per_batch: int
    faces_per_second: float
    flop_per_face: int

    @property
    def network_flop_per_second(self) -> float:
        """What the network's speed amounts to."""
        return self.faces_per_second * self.flop_per_face

    @property
    def share(self) -> float:
        """The network's FLOP/s over the matrix product's."""
        return self.network_flop_per_second / self.matrix_flop_per_second


def measure_roofline(predictor: Predictor, least_seconds: float) -> Roofline:
    """Measure both on the predictor's device, with the threads that it and PyTorch have.

    Args:
        predictor: the network.
        least_seconds: how long to measure each.
    """
    checkpoint, device = predictor.checkpoint, predictor.device
    side, batch = MATRIX_SIDE[device.type], predictor.faces_per_batch
    matrix = torch.rand(side, side, device=device).to(PRECISIONS[predictor.precision])
    size = checkpoint.input_size
    crops = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    # Reading a value waits for a GPU.
    matrix_seconds = _median_seconds(lambda: (matrix @ matrix)[0, 0].item(), least_seconds)
    batch_seconds = _median_seconds(lambda: predictor(crops), least_seconds)
    passes = 2 if predictor.mirror else 1
    return Roofline(
        matrix_side=side,
        matrix_flop_per_second=2 * side**3 / matrix_seconds,
        faces_per_batch=batch,
        faces_per_second=batch / batch_seconds,
        flop_per_face=passes * flop_per_crop(len(checkpoint.classes), checkpoint.width, size),
    )


def flop_per_crop(classes: int, width: int, input_size: int) -> int:
    """Count the FLOP of a forward pass of `EmoNet`: convolutions and linear layers.

    Args:
        classes: expression classes.
        width: channels of the hourglasses.
        input_size: side of the crop, pixels.
    """
    # Not on the meta device: there batch normalization imports PyTorch's compiler, which takes
    # seconds.
    network, crop = EmoNet(classes, width).eval(), torch.zeros(1, 3, input_size, input_size)
    with torch.inference_mode():
        return counted_flop(lambda: network(crop))


def counted_flop(call: Callable[[], object]) -> int:
    """Count the FLOP of the convolutions and linear layers that PyTorch runs in a call.

    PyTorch's own counter gives the same, but loads its compiler, which takes seconds.
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        # A multiplication and an addition for each weight that a value takes part with: of a
        # transposed convolution that is each value that comes in, else each that goes out.
        if isinstance(layer, nn.ConvTranspose2d):
            total += 2 * inputs[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            total += 2 * output.numel() * layer.weight[0].numel()

    hook = register_module_forward_hook(count)
    try:
        call()
    finally:
        hook.remove()
    return total


def _median_seconds(call: Callable[[], object], least_seconds: float) -> float:
    """Median time of a call, repeated for some time; the first call is not counted."""
    call()
    seconds: list[float] = []
    while sum(seconds) < least_seconds or (
        len(seconds) < LEAST_CALLS and sum(seconds) < LONGEST * least_seconds
    ):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return median(seconds)

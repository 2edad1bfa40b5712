"""The roofline: FLOP are those that one counts by hand, figures are of the batches they name."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from emopipe.emonet import roofline as module
from emopipe.emonet.checkpoint import open_model
from emopipe.emonet.model import EmoNet
from emopipe.emonet.predictor import Predictor
from emopipe.emonet.roofline import MATRIX_SIDE, counted_flop, flop_per_crop, measure_roofline


def counted_by_pytorch(network: nn.Module, images: Tensor) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops()


@pytest.mark.parametrize(("classes", "width", "size"), [(8, 32, 64), (5, 16, 128)])
def test_the_networks_flop_are_those_that_pytorch_counts(
    classes: int, width: int, size: int
) -> None:
    network, crop = EmoNet(classes, width).eval(), torch.zeros(1, 3, size, size)
    assert flop_per_crop(classes, width, size) == counted_by_pytorch(network, crop)


@pytest.mark.parametrize(
    ("layer", "by_hand"),
    [
        (nn.Conv2d(3, 8, 5, padding=2), 2 * (10 * 12) * 8 * (3 * 5 * 5)),
        (nn.Conv2d(3, 6, 3, padding=1, stride=2, groups=3), 2 * (5 * 6) * 6 * (1 * 3 * 3)),
        (nn.ConvTranspose2d(3, 8, 2, stride=2), 2 * (20 * 24) * 8 * 3),
        (nn.Linear(12, 7), 2 * (3 * 10) * 7 * 12),
    ],
)
def test_a_layers_flop_are_those_counted_by_hand(layer: nn.Module, by_hand: int) -> None:
    images = torch.zeros(1, 3, 10, 12)
    assert counted_flop(lambda: layer(images)) == by_hand == counted_by_pytorch(layer, images)
    assert counted_flop(lambda: None) == 0


def test_the_published_network_takes_16_times_the_pixels_and_4_times_the_weights() -> None:
    ratio = flop_per_crop(8, 256, 256) / flop_per_crop(8, 128, 64)
    assert 0.9 < ratio / (16 * 4) < 1


@pytest.mark.parametrize("mirror", [False, True])
def test_a_mirror_image_costs_a_second_pass(mirror: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MATRIX_SIDE, "cpu", 256)
    # A clock by which every call takes 1 s.
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=count().__next__))
    predictor = Predictor(
        *open_model("emonet-lite"), "cpu", "float32", faces_per_batch=16, mirror=mirror
    )
    roofline = measure_roofline(predictor, least_seconds=0.01)
    checkpoint = predictor.checkpoint
    once = flop_per_crop(len(checkpoint.classes), checkpoint.width, checkpoint.input_size)
    assert roofline.flop_per_face == once * (2 if mirror else 1)
    assert (roofline.faces_per_batch, roofline.matrix_side) == (16, 256)
    assert (roofline.faces_per_second, roofline.matrix_flop_per_second) == (16, 2 * 256**3)
    assert roofline.share == pytest.approx(16 * roofline.flop_per_face / (2 * 256**3))


@pytest.mark.parametrize(
    ("each", "calls"),
    # 1 s is asked for, and the first call is not counted: 5 calls and more seconds, 1 s and more
    # calls, 5 calls would take over 10 s, a single one does.
    [(0.5, 1 + 5), (0.125, 1 + 8), (4.0, 1 + 3), (40.0, 1 + 1)],
)
def test_slow_calls_are_not_repeated(
    each: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, made = 0.0, 0

    def call() -> None:
        nonlocal now, made
        now, made = now + each, made + 1

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    assert (module._median_seconds(call, 1.0), made) == (each, calls)

"""Our EmoNet is the published EmoNet: proven on its tensors' names, shapes and outputs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from emopipe.emonet.model import ConvBlock, EmoNet, Hourglass

# Relative L2 error allowed per output: heatmaps, logits, valence, arousal.
BARS = {
    torch.float64: (1e-6, 1e-6, 1e-6, 1e-6),
    torch.float32: (1e-5, 1e-5, 1e-5, 1e-5),
    torch.bfloat16: (0.03, 0.03, 0.06, 0.06),
}


@pytest.fixture(scope="module")
def parity(shared: Path) -> Path:
    return shared / "parity"


def golden_state(parity: Path, n_expression: int) -> dict[str, torch.Tensor]:
    spec = importlib.util.spec_from_file_location("state_dict", parity / "state_dict.py")
    filler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(filler)
    shapes = json.loads((parity / "keys.json").read_text())[str(n_expression)]
    return {name: torch.from_numpy(array) for name, array in filler.fill(shapes).items()}


@pytest.mark.parametrize("n_expression", [8, 5])
@pytest.mark.parametrize("dtype", BARS, ids=str)
def test_outputs_are_those_of_the_published_network(parity, n_expression, dtype):
    golden = np.load(parity / "golden.npz")
    model = EmoNet(n_expression).eval()
    model.load_state_dict(golden_state(parity, n_expression), strict=True)
    crops = torch.from_numpy(golden["crops"]).permute(0, 3, 1, 2).to(torch.float64) / 255

    with torch.inference_mode():
        out = model.to(dtype)(crops.to(dtype))

    names = ("heatmap", "expression", "valence", "arousal")
    for name, ours, bar in zip(names, out, BARS[dtype], strict=False):
        published = golden[f"{name}_{n_expression}"]
        error = np.linalg.norm(ours.double().numpy() - published) / np.linalg.norm(published)
        assert error <= bar, name


@pytest.mark.parametrize(
    ("kind", "channels"),
    [(ConvBlock, (4, 8)), (ConvBlock, (8, 8)), (Hourglass, (8,))],
    ids=["widening", "even", "hourglass"],
)
def test_parts_work_in_place_on_nothing_of_others(kind, channels):
    torch.manual_seed(0)  # no ReLU then stands at its kink
    part = kind(*channels)
    x = torch.rand(1, channels[0], 16, 16, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    assert torch.autograd.gradcheck(part.double().eval(), x, nondet_tol=1e-9, fast_mode=True)
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize(("width", "size", "n_expression"), [(32, 64, 7), (64, 128, 3)])
def test_width_size_and_class_count_are_free(width, size, n_expression):
    model = EmoNet(n_expression, width).eval()
    with torch.inference_mode():
        out = model(torch.rand(2, 3, size, size))
    assert out.heatmaps.shape == out.first_heatmaps.shape == (2, 68, size // 4, size // 4)
    assert out.logits.shape == (2, n_expression)
    assert out.valence.shape == out.arousal.shape == (2,)


def test_a_size_the_network_cannot_halve_is_refused():
    with pytest.raises(ValueError, match="multiples of 64"):
        EmoNet(8, 32)(torch.rand(1, 3, 96, 96))

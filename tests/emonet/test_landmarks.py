"""Heatmap peaks are found where a Gaussian was drawn, finer than a cell."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from emopipe.emonet.landmarks import decode_heatmaps
from emopipe.emonet.model import STRIDE

CELLS = 16


def gaussian(x: float, y: float) -> torch.Tensor:
    """Draw a peak of height 1 and 1 cell wide at crop pixel (x, y): (1, 1, CELLS, CELLS)."""
    centres = torch.arange(CELLS) + 0.5
    along_x = torch.exp(-((centres - x / STRIDE) ** 2) / 2)
    along_y = torch.exp(-((centres - y / STRIDE) ** 2) / 2)
    return (along_y[:, None] * along_x[None])[None, None]


inside = st.floats(3 * STRIDE, (CELLS - 3) * STRIDE)


@given(inside, inside)
def test_a_peak_is_found_within_a_tenth_of_a_cell(x, y):
    points, heights = decode_heatmaps(gaussian(x, y))
    assert torch.allclose(points[0, 0], torch.tensor([x, y]), atol=0.1 * STRIDE)
    assert 0.7 < heights.item() <= 1


def test_a_peak_in_the_corner_stays_in_the_crop():
    points, _ = decode_heatmaps(gaussian(0, CELLS * STRIDE))
    assert 0 <= points[0, 0, 0] < STRIDE
    assert (CELLS - 1) * STRIDE < points[0, 0, 1] <= CELLS * STRIDE


def test_flat_and_negative_heatmaps_give_finite_points():
    points, _ = decode_heatmaps(torch.cat((torch.zeros(1, 1, 8, 8), -torch.ones(1, 1, 8, 8))))
    assert torch.isfinite(points).all()


def test_every_map_of_a_batch_is_its_own():
    maps = torch.cat([gaussian(20, 30), gaussian(40, 10)], dim=1)
    together, _ = decode_heatmaps(torch.cat([maps, maps.flip(1)]))
    assert torch.equal(together[0, 0], together[1, 1])
    assert torch.equal(together[0, 1], together[1, 0])
    assert not torch.equal(together[0, 0], together[0, 1])

"""A model's outputs are compared with its authors' example and with its own first load."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from emopipe.emonet.checkpoint import random_weights
from emopipe.emonet.golden_outputs import (
    ImageError,
    builtin_image,
    check_example,
    check_record,
    stretched,
)
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.predictor import PredictionError, Predictor
from emopipe.emonet.registry import WeightsError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMOPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def predictor(seed: int = 0) -> Predictor:
    model, checkpoint = random_weights(seed, EMOTIONS_8, width=32, input_size=64)
    return Predictor(model, replace(checkpoint, sha256="a" * 64), "cpu", "float32")


def constant(emotion: str, valence: float, arousal: float) -> Predictor:
    """A network with the same outputs for every image."""
    model, checkpoint = random_weights(0, EMOTIONS_8, width=32, input_size=64)
    last = model.get_submodule("emo_fc_2.3")
    logits = [float(name == emotion) for name in EMOTIONS_8]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([*logits, valence, arousal]))
    return Predictor(model, checkpoint, "cpu", "float32")


def test_the_first_load_is_recorded_and_later_ones_compared(cache: Path) -> None:
    first, second = check_record(predictor()), check_record(predictor())
    assert first.passed and "recorded" in first.finding
    assert second.passed and "differ by at most" in second.finding
    assert [path.stem for path in (cache / "known-answers").iterdir()] == ["a" * 64]


def test_other_outputs_under_the_same_hash_fail() -> None:
    check_record(predictor(seed=0))
    assert not check_record(predictor(seed=1)).passed


def test_outputs_that_are_not_finite_fail_and_are_not_recorded(cache: Path) -> None:
    with pytest.raises(PredictionError):
        check_record(constant("happy", float("nan"), 0.0))
    assert not (cache / "known-answers").exists()


def test_a_damaged_record_is_one_sentence(cache: Path) -> None:
    check_record(predictor())
    (cache / "known-answers" / f"{'a' * 64}.json").write_text("{")
    with pytest.raises(WeightsError, match="delete it"):
        check_record(predictor())


@pytest.mark.parametrize(
    ("outputs", "passed"),
    [
        (("happy", 0.064, 0.143), True),
        (("happy", 0.080, 0.130), True),
        (("sad", 0.064, 0.143), False),
        (("happy", 0.090, 0.143), False),
        (("happy", 0.064, 0.100), False),
    ],
)
def test_outputs_must_be_close_to_the_published_ones(
    tmp_path: Path, outputs: tuple[str, float, float], passed: bool
) -> None:
    image = tmp_path / "example.png"
    Image.new("RGBA", (31, 17), "red").save(image)
    check = check_example(constant(*outputs), image)
    assert check.passed is passed
    assert f"valence {outputs[1]:.3f}" in check.finding


def test_the_example_is_read_as_rgb_and_stretched_whole(tmp_path: Path) -> None:
    image = Image.new("RGB", (256, 32), (255, 0, 0))
    image.paste((0, 0, 255), (128, 0, 256, 32))
    image.save(tmp_path / "example.png")
    crop = stretched(tmp_path / "example.png", 64)
    assert crop.shape == (1, 64, 64, 3)
    assert crop[0, 32, 5].tolist() == [255, 0, 0]
    assert crop[0, 32, 58].tolist() == [0, 0, 255]


def test_a_file_that_is_not_an_image_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "example.png").write_text("not an image")
    with pytest.raises(ImageError, match=r"`image` .*example.png cannot be read"):
        check_example(predictor(), tmp_path / "example.png")


@pytest.mark.parametrize("size", [64, 256])
def test_the_built_in_image_has_contrast_and_the_asked_size(size: int) -> None:
    image = builtin_image(size)
    assert image.shape == (1, size, size, 3)
    assert image.std() > 20

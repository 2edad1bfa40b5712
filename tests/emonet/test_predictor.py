"""The predictor's outputs are bounded, batch-independent and tied to a device that exists."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from emopipe.emonet import checkpoint
from emopipe.emonet.labels import EMOTIONS_8, MIRRORED_LANDMARKS
from emopipe.emonet.predictor import (
    DeviceError,
    PredictionError,
    Predictions,
    Predictor,
    load_model,
    resolve_precision,
)

BUNDLED = Path(str(files("emopipe.pretrained"))) / "emonet-lite.safetensors"


def predictor(
    precision: str = "float32", faces_per_batch: int = 4, mirror: bool | None = None
) -> Predictor:
    model, described = checkpoint.load(BUNDLED)
    return Predictor(model, described, "cpu", precision, faces_per_batch, mirror=mirror)


def noise(n: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def test_outputs_are_probabilities_and_bounded_values_and_points_in_the_crop():
    out = predictor()(noise(6))
    assert out.probabilities.shape == (6, 8)
    assert np.allclose(out.probabilities.sum(axis=1), 1, atol=1e-5)
    assert (np.abs(out.valence) <= 1).all()
    assert (np.abs(out.arousal) <= 1).all()
    assert out.landmarks.shape == (6, 68, 2)
    assert ((out.landmarks >= 0) & (out.landmarks <= 64)).all()
    assert ((out.landmark_score >= 0) & (out.landmark_score <= 1)).all()


def test_predictions_for_a_face_do_not_depend_on_its_position_in_the_batch():
    crops = noise(6)
    whole = predictor()(crops)
    alone = predictor()(crops[5:])
    assert np.allclose(whole.probabilities[5], alone.probabilities[0], atol=1e-5)
    assert np.allclose(whole.landmarks[5], alone.landmarks[0], atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_number_of_threads_does_not_show_in_the_last_digit(precision):
    ready, threads = predictor(precision, faces_per_batch=32), torch.get_num_threads()
    found = []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            found.append([ready(noise(n)) for n in (1, 3, 6, 7, 12, 33)])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            for name, values in vars(one).items():
                assert np.array_equal(values, getattr(other, name)), name


def mirror_back(landmarks: np.ndarray, size: int = 64) -> np.ndarray:
    """Points of mirrored crops as those of the crops."""
    return landmarks[:, MIRRORED_LANDMARKS] * [-1, 1] + [size, 0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_crop_and_its_mirror_image_get_the_same_predictions(precision):
    ready, crops = predictor(precision, mirror=True), noise(6)
    one, other = ready(crops), ready(crops[:, :, ::-1])
    for name in ("probabilities", "valence", "arousal", "landmark_score"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(mirror_back(other.landmarks), one.landmarks, atol=1e-4)
    plain = ready.with_mirror(False)
    assert np.abs(plain(crops).valence - plain(crops[:, :, ::-1]).valence).min() > 1e-3


def test_averaged_predictions_lie_midway_between_those_for_both_images():
    plain, crops = predictor(mirror=False), noise(6)
    there, back, both = plain(crops), plain(crops[:, :, ::-1]), plain.with_mirror(True)(crops)
    for name in ("probabilities", "valence", "arousal", "landmark_score"):
        expected = (getattr(there, name) + getattr(back, name)) / 2
        np.testing.assert_array_equal(getattr(both, name), expected)
        assert getattr(both, name).dtype == np.float32
    expected = (there.landmarks + mirror_back(back.landmarks)) / 2
    np.testing.assert_allclose(both.landmarks, expected, atol=1e-4)


def assert_same(one: Predictions, other: Predictions) -> None:
    for name, values in vars(one).items():
        np.testing.assert_array_equal(getattr(other, name), values)


def test_a_checkpoint_says_whether_predictions_are_averaged_and_callers_may_differ():
    model, described = checkpoint.random_weights(0, EMOTIONS_8, width=16, input_size=64)
    crops = noise(3)
    plain, both = (
        Predictor(model, replace(described, mirror=mirror), "cpu", "float32")
        for mirror in (False, True)
    )
    assert_same(both.with_mirror(False)(crops), plain(crops))
    assert_same(plain.with_mirror(True)(crops), both(crops))
    assert (plain(crops).valence != both(crops).valence).all()
    assert not Predictor(model, both.checkpoint, "cpu", mirror=False).mirror
    assert load_model("emonet-lite", device="cpu").mirror
    assert not load_model("emonet-lite", device="cpu", mirror=False).mirror


def test_mirror_images_do_not_enlarge_the_batch():
    model, described = checkpoint.load(BUNDLED)
    sizes: list[int] = []
    model.get_submodule("conv1").register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    Predictor(model, described, "cpu", "float32", faces_per_batch=16, mirror=True)(noise(33))
    assert sizes == [16] * 5  # 66 crops, the last batch padded


def test_outputs_that_are_not_finite_are_an_error():
    model, described = checkpoint.load(BUNDLED)
    torch.nn.init.constant_(model.get_submodule("emo_fc_2.3").weight, torch.inf)
    with pytest.raises(PredictionError, match="not finite in float32: use another model"):
        Predictor(model, described, "cpu", "float32")(noise(1))


def test_no_crops_give_no_predictions():
    out = predictor()(noise(0))
    assert out.probabilities.shape == (0, 8)
    assert out.landmarks.shape == (0, 68, 2)


def test_half_precision_agrees_with_single(shared):
    from PIL import Image

    face = Image.open(shared / "data/images/single_face.jpg").convert("RGB").resize((64, 64))
    crops = np.asarray(face)[None]
    single, half = predictor("float32")(crops), predictor("bfloat16")(crops)
    assert np.abs(single.probabilities - half.probabilities).max() < 0.05


@pytest.mark.parametrize(
    "crops", [noise(1, 32), noise(1).astype(np.float32), noise(1)[0]], ids=["size", "type", "rank"]
)
def test_wrong_crops_are_refused(crops):
    with pytest.raises(ValueError, match="takes a uint8 array of crops"):
        predictor()(crops)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "nonsense:1"])
def test_a_missing_device_is_named(device):
    model, described = checkpoint.load(BUNDLED)
    with pytest.raises(DeviceError, match=f"`device` {device}"):
        Predictor(model, described, device)


def test_an_unknown_precision_is_named():
    with pytest.raises(DeviceError, match="`precision` int4"):
        resolve_precision("int4", torch.device("cpu"))


def test_cuda_agrees_with_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    crops = noise(300)
    model, described = checkpoint.load(BUNDLED)
    cuda = Predictor(model, described, "cuda", "float32")(crops)
    cpu = predictor(faces_per_batch=64)(crops)
    assert np.abs(cuda.probabilities - cpu.probabilities).max() < 1e-3
    assert np.median(np.abs(cuda.landmarks - cpu.landmarks)) < 1e-2

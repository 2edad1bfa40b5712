"""OpenVINO gives what PyTorch gives, the same bits for any threads and batch; it may be missing."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from emopipe.emonet import checkpoint
from emopipe.emonet.predictor import Predictions, Predictor
from emopipe.emonet.registry import cache_folder
from emopipe.emonet.runtime import RuntimeChoiceError, cpu_compute, resolve_runtime

pytest.importorskip("openvino", reason="has no wheel for this machine")

BUNDLED = Path(str(files("emopipe.pretrained"))) / "emonet-lite.safetensors"
CROPS = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of these tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMOPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def predictor(
    runtime: str, precision: str = "float32", batch: int = 16, threads: int = 1
) -> Predictor:
    model, described = checkpoint.load(BUNDLED)
    return Predictor(model, described, "cpu", precision, batch, runtime, threads)


def assert_close(one: Predictions, other: Predictions, tolerance: float) -> None:
    for name in ("probabilities", "valence", "arousal", "landmark_score"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=tolerance)


def test_openvino_gives_what_pytorch_gives() -> None:
    expected = predictor("torch")(CROPS)
    exact, short = predictor("openvino")(CROPS), predictor("openvino", "bfloat16")(CROPS)
    assert_close(exact, expected, 1e-4)
    np.testing.assert_allclose(exact.landmarks, expected.landmarks, atol=0.01)
    assert_close(short, expected, 0.05)
    # The last layers are not rounded to bfloat16, which has 1/256 near 1.
    assert len(np.unique(short.valence)) == len(CROPS)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_threads_and_batches_do_not_show_in_the_last_digit(precision: str) -> None:
    expected = predictor("openvino", precision)(CROPS)
    for batch, threads in ((40, 2), (7, 1), (1, 2)):
        found = predictor("openvino", precision, batch, threads)(CROPS)
        for name, values in vars(expected).items():
            np.testing.assert_array_equal(getattr(found, name), values)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_crop_and_its_mirror_image_get_the_same_predictions(precision: str) -> None:
    ready = predictor("openvino", precision).with_mirror(True)
    assert_close(ready(CROPS), ready(CROPS[:, :, ::-1]), 0)


def test_a_conversion_is_kept_and_made_anew_where_it_is_damaged() -> None:
    expected = predictor("openvino")(CROPS)
    (kept,) = (cache_folder() / "openvino").glob("*/*.xml")
    written = kept.stat().st_mtime_ns
    assert_close(predictor("openvino")(CROPS), expected, 0)
    assert kept.stat().st_mtime_ns == written
    kept.write_text("damaged")
    assert_close(predictor("openvino")(CROPS), expected, 0)


def test_without_openvino_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_runtime("auto") == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert resolve_runtime("auto") == "torch"
    assert cpu_compute().runtime == "torch"
    with pytest.raises(RuntimeChoiceError, match=r"`runtime` openvino: .* Install the package"):
        resolve_runtime("openvino")


def test_ctrl_c_after_two_networks_are_freed_does_not_crash_the_process() -> None:
    program = (
        "import gc, signal, emopipe\n"
        "load = lambda: emopipe.load_model('emonet-lite', device='cpu', runtime='openvino')\n"
        "first = load()\nsecond = load()\ndel first\ndel second\ngc.collect()\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "interrupted\n"

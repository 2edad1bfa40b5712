"""The committed calibrations are what the command measures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from emopipe.emonet.data.landmarks68 import Sample, read_samples
from emopipe.pipeline.faces.calibrate import CalibrationError, main, measure
from emopipe.pipeline.faces.detectors import load_detector

ROWS = 40


@pytest.fixture(scope="module")
def landmarks68(shared: Path) -> Path:
    return shared / "data" / "landmarks68" / "landmarks68.parquet"


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """BlazeFace's layers are so small that threads on a busy machine only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("name", ["centerface", "yunet", "blazeface"])
def test_the_calibration_in_use_is_the_measured_one(
    shared: Path, landmarks68: Path, name: str
) -> None:
    detector = load_detector(name, weights=None if name == "centerface" else shared / "weights")
    measured = measure(detector, read_samples(landmarks68, ROWS))
    assert len(measured.ratios) >= 0.98 * measured.n_images == 0.98 * 2 * ROWS
    np.testing.assert_allclose(measured.calibration.shift, detector.calibration.shift, atol=0.02)
    assert measured.calibration.scale == pytest.approx(detector.calibration.scale, abs=0.03)


def test_the_command_prints_what_it_measured(
    landmarks68: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(landmarks68), "--rows", "5"])
    printed = capsys.readouterr().out
    assert printed.startswith("centerface: 10 faces found on 10 images (100.0%)")
    for line in ("shift x", "shift y", "scale", "centre", "extent"):
        assert f"\n  {line}  " in printed


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "faces.parquet"
    with pytest.raises(SystemExit, match=r"calibrate: .*faces\.parquet cannot be read"):
        main([str(path)])
    path.write_text("no table")
    with pytest.raises(SystemExit, match=r"calibrate: .*faces\.parquet cannot be read"):
        main([str(path)])
    pd.DataFrame({"png": [b""]}).to_parquet(path)
    with pytest.raises(SystemExit, match=r"calibrate: .*faces\.parquet cannot be read"):
        main([str(path)])


def test_images_without_faces_give_no_calibration() -> None:
    points = np.random.default_rng(0).uniform(0, 80, (68, 2))
    grey = Sample("nobody", np.full((80, 80, 3), 128, np.uint8), points)
    with pytest.raises(CalibrationError, match="centerface found no face on 2 images"):
        measure(load_detector("centerface"), [grey])

"""The hidden share of a face grows with what covers it; a command learns to estimate it."""

from functools import cache
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_faces import face_picture
from made_landmarks import write_landmarks
from numpy.typing import NDArray
from safetensors.numpy import load, load_file

from emopipe.emonet.predictor import load_model
from emopipe.pipeline.faces import learn_visibility
from emopipe.pipeline.faces.align import crop_boxes, cut, grey_crops, to_frame
from emopipe.pipeline.faces.base import Faces
from emopipe.pipeline.faces.detectors import load_detector
from emopipe.pipeline.faces.visibility import FILE, hidden_shares


@cache
def made_face() -> tuple[NDArray[np.uint8], Faces, NDArray[np.float32], NDArray[np.float32]]:
    """A picture, its face, where the face's crop lies (1, 4) and its landmarks (1, 68, 2)."""
    picture = np.array(face_picture())
    detector, model = load_detector("centerface"), load_model()
    (faces,) = detector.detect([picture])
    boxes = crop_boxes(faces, detector.calibration, model.checkpoint.crop)
    landmarks = model(cut(picture, boxes, 64)).landmarks
    return picture, faces, boxes, to_frame(landmarks, boxes, 64)


def hidden_share(picture: NDArray[np.uint8], size: int = 64) -> float:
    """Of the face at its place in a changed picture, whatever the network would see there."""
    _, faces, boxes, landmarks = made_face()
    greys = grey_crops(cut(picture, boxes, size), boxes, faces.boxes)
    return float(hidden_shares(greys, boxes, landmarks).item())


def test_the_share_grows_with_a_cover_that_rises() -> None:
    picture, _, _, landmarks = made_face()
    low, high = landmarks[0, :, 1].min(), landmarks[0, :, 1].max()
    shares = []
    for part in (0, 0.25, 0.5, 0.75, 1):
        covered = picture.copy()
        covered[int(high - part * (high - low)) :] = 120
        shares.append(hidden_share(covered))
    assert shares == sorted(shares)
    assert shares[0] < 0.05
    assert 0.3 < shares[2] < 0.7
    assert shares[4] > 0.8


def test_the_share_depends_neither_on_light_nor_on_the_crops_size() -> None:
    picture = made_face()[0]
    for changed in (picture // 2, 255 - (255 - picture) // 2):
        assert hidden_share(changed) == pytest.approx(hidden_share(picture), abs=0.05)
    assert hidden_share(picture, 256) == pytest.approx(hidden_share(picture), abs=0.05)
    half = picture.copy()
    half[:, : int(made_face()[3][0, 30, 0])] = 0
    assert hidden_share(half, 256) == pytest.approx(hidden_share(half), abs=0.1)


def test_what_is_no_face_is_hidden() -> None:
    picture = made_face()[0]
    noise = np.random.default_rng(0).integers(0, 256, picture.shape, np.uint8)
    for other in (np.full_like(picture, 120), cv2.GaussianBlur(noise, (0, 0), 6), picture[::-1]):
        assert hidden_share(np.asarray(other, np.uint8)) > 0.5


def test_a_network_is_learnt_from_a_table_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learn_visibility, "REPEATS", 8)
    monkeypatch.setattr(learn_visibility, "_BATCH", 32)
    monkeypatch.setattr(learn_visibility, "EPOCHS", 1)
    samples = write_landmarks(tmp_path / "samples.parquet", people=10, images=1)
    learn_visibility.main([str(samples), str(tmp_path)])
    assert "learnt from 9 people" in capsys.readouterr().out
    made = {name: tensor.shape for name, tensor in load_file(tmp_path / FILE).items()}
    bundled = load((files("emopipe.pretrained") / FILE).read_bytes())
    assert made == {name: tensor.shape for name, tensor in bundled.items()}


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "samples.parquet").write_text("no table")
    with pytest.raises(SystemExit, match=r"samples\.parquet cannot be read"):
        learn_visibility.main([str(tmp_path / "samples.parquet"), str(tmp_path)])

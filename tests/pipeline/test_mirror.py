"""A clip and its mirror image get the same emotions, up to where the detector sees the face."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_clips import ffmpeg
from made_faces import face_clip

from emopipe.emonet.checkpoint import open_model, save
from emopipe.emonet.labels import MIRRORED_LANDMARKS
from emopipe.pipeline.inputs import find_inputs
from emopipe.pipeline.local import run
from emopipe.pipeline.settings import Settings
from emopipe.pipeline.table.in_memory import Results
from emopipe.pipeline.table.output import OutputError
from emopipe.pipeline.table.results import read_results

SPARSE = Settings(stride=5)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return face_clip(tmp_path_factory.mktemp("faces"))


def analyzed(clip: Path, out: Path, settings: Settings = SPARSE) -> Results:
    run(find_inputs([clip]), out, settings, overwrite=True)
    return read_results(out)


def differences(clip: Path, folder: Path, mirror: bool) -> tuple[float, float]:
    """How a clip and its mirror image differ, on average: valence, and landmarks in face widths."""
    flipped, settings = folder / "flipped.mkv", replace(SPARSE, mirror=mirror)
    ffmpeg("-i", clip, "-vf", "hflip", "-c:v", "libx264", "-qp", "0", "-an", flipped)
    one, other = (
        analyzed(video, folder / "results.parquet", settings) for video in (clip, flipped)
    )
    assert one.landmarks is not None and other.landmarks is not None
    points = other.landmarks[:, MIRRORED_LANDMARKS] * [-1, 1] + [one.videos.width[0], 0]
    off = np.linalg.norm(one.landmarks - points, axis=2).mean(axis=1)
    valence = np.abs(one.rows.valence - other.rows.valence)
    return float(valence.mean()), float((off / (one.rows.x2 - one.rows.x1)).mean())


def assert_mirror_images_differ_less(clip: Path, folder: Path) -> None:
    plain, averaged = (differences(clip, folder, mirror) for mirror in (False, True))
    assert averaged[0] < plain[0] / 2
    assert averaged[1] < plain[1] / 2


def test_a_mirrored_clip_differs_by_where_the_detector_sees_its_face(clip: Path, tmp_path: Path):
    assert_mirror_images_differ_less(clip, tmp_path)


def test_a_mirrored_real_clip_differs_as_little(clips: Path, tmp_path: Path):
    assert_mirror_images_differ_less(clips / "single_face.mp4", tmp_path)


def test_without_mirror_images_the_table_is_that_of_a_model_used_without(
    clip: Path, tmp_path: Path
):
    model, checkpoint = open_model("emonet-lite")
    save(model, replace(checkpoint, mirror=False), tmp_path / "plain.safetensors")
    used_without = replace(SPARSE, model=str(tmp_path / "plain.safetensors"))
    out = tmp_path / "results.parquet"
    expected = analyzed(clip, out, used_without)
    found = analyzed(clip, out, replace(SPARSE, mirror=False))
    assert found.rows.equals(expected.rows)
    np.testing.assert_array_equal(found.landmarks, expected.landmarks)
    averaged = analyzed(clip, out)
    assert (averaged.rows.valence != found.rows.valence).all()
    recorded = [one.settings["settings"]["mirror"] for one in (expected, found, averaged)]
    assert recorded == [False, False, True]


def test_an_output_is_not_continued_with_another_choice(clip: Path, tmp_path: Path):
    out = tmp_path / "results.parquet"
    analyzed(clip, out)
    run(find_inputs([clip]), out, replace(SPARSE, mirror=True))  # as the model is meant to be used
    with pytest.raises(OutputError, match="mirror was True and is False"):
        run(find_inputs([clip]), out, replace(SPARSE, mirror=False))

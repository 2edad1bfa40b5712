"""A run's estimate is close to the work that it then is."""

import pytest

from emopipe.pipeline.estimate import BYTES_PER_ROW, Estimate, estimate
from emopipe.pipeline.inputs import InputFile, find_inputs
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.settings import Settings

CLIPS = ("WolfgangLanger_Pexels.mp4", "face_noface.mov", "no_face.mp4", "single_face.mp4")


def estimated(files: list[InputFile], settings: Settings) -> Estimate:
    with Decoder() as decoder:
        return estimate(files, settings, decoder)


@pytest.mark.parametrize(
    ("settings", "frames", "seconds"),
    [
        (Settings(), 60, 2.4),
        (Settings(stride=4), 15, 2.4),
        (Settings(fps=5), 12, 2.4),
        (Settings(start=1, end=2), 25, 1),
        (Settings(start=1), 35, 1.4),
        (Settings(start=10), 0, 0),
    ],
)
def test_a_clip_is_estimated_from_its_header(made, settings, frames, seconds):
    work = estimated(list(find_inputs([str(made("h264.mp4"))]).files), settings)
    assert (work.inputs, work.unreadable) == (1, 0)
    assert work.frames == pytest.approx(frames, abs=1)
    assert work.seconds == pytest.approx(seconds, abs=0.05)
    assert work.bytes == work.frames * BYTES_PER_ROW["float32"]


@pytest.mark.parametrize(
    ("settings", "frames", "seconds"),
    [
        (Settings(), 472 + 169 + 95 + 72, 19.7 + 6.4 + 4.0 + 2.4),
        (Settings(stride=4), (472 + 169 + 95 + 72) / 4, 32.5),
        (Settings(fps=5), 5 * 32.5, 32.5),
        (Settings(start=1, end=2), 24 + 26 + 24 + 30, 4),
        (Settings(start=10), 472 - 240, 9.7),
    ],
)
def test_real_clips_add_up(clips, settings, frames, seconds):
    work = estimated(list(find_inputs([str(clips / name) for name in CLIPS]).files), settings)
    assert work.inputs == 4
    assert work.frames == pytest.approx(frames, rel=0.05)
    assert work.seconds == pytest.approx(seconds, rel=0.05)


def test_files_without_a_header_are_counted(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    work = estimated(list(find_inputs([str(tmp_path)]).files), Settings())
    assert (work.unreadable, work.frames) == (1, 0)
    assert "1 of them unreadable" in str(work)

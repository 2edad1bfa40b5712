"""Repeating a clip: the same pixels over and over, at steady times."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emopipe.pipeline.media.container import ReadError
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.media.repeat import repeat
from emopipe.pipeline.media.video import Video

COPIES = 3


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


def shown(decoder: Decoder, path: Path) -> tuple[Video, NDArray[np.uint8]]:
    video = decoder.probe(path, path.name)
    parts = [part.images.copy() for part in decoder.frames(video, np.arange(video.frames))]
    return video, np.concatenate(parts)


@pytest.mark.parametrize(
    "name",
    ["h264.mp4", "late.mkv", "hevc.mp4", "vp9.webm", "mpeg4.avi", "mpeg2.ts", "rotated.mp4"],
)
def test_it_shows_the_same_frames_again(
    made: Callable[[str], Path], decoder: Decoder, tmp_path: Path, name: str
) -> None:
    repeat(made(name), COPIES, tmp_path / "repeated.mkv")
    once, frames = shown(decoder, made(name))
    again, repeated = shown(decoder, tmp_path / "repeated.mkv")
    assert again.frames == COPIES * once.frames
    np.testing.assert_array_equal(repeated, np.concatenate([frames] * COPIES))
    assert again.fps == pytest.approx(once.fps, rel=0.01)
    # A Matroska file has whole milliseconds.
    steps = np.diff(again.times)
    assert steps.min() == pytest.approx(1 / once.fps, abs=1.1e-3)
    assert steps.max() == pytest.approx(1 / once.fps, abs=1.1e-3)


def test_what_has_no_times_is_refused_in_a_sentence(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ReadError, match=r"raw\.264 cannot be repeated \(.* without a time\)"):
        repeat(made("raw.264"), COPIES, tmp_path / "repeated.mkv")


def test_a_container_that_cannot_hold_the_codec_is_refused_in_a_sentence(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ReadError, match=r"vp8\.webm cannot be repeated"):
        repeat(made("vp8.webm"), COPIES, tmp_path / "repeated.mp4")

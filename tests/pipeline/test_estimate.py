"""A run's estimate is close to the work that it then is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_clips import ENCODERS, FPS, REMUXERS, ffmpeg, waves

from emopipe.pipeline.estimate import BYTES_PER_ROW, Estimate, estimate
from emopipe.pipeline.inputs import InputFile, find_inputs
from emopipe.pipeline.media import header
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.settings import Settings, sampler

Made = Callable[[str], Path]

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


@pytest.fixture(scope="module")
def odd_clips(made: Made, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Clips whose headers say little or mislead."""
    folder = tmp_path_factory.mktemp("odd")
    tone = ["-f", "lavfi", "-i", "sine=duration=5", "-map", "0:v", "-map", "1:a", "-c:v", "copy"]
    ffmpeg(*waves(720, 576, 22), "-target", "pal-dv", folder / "pal.dv")
    late = ["-c", "copy", "-output_ts_offset", "46220"]
    ffmpeg("-i", made("h264.mp4"), *late, folder / "late.ts")
    ffmpeg("-i", made("h264.mp4"), *tone, "-c:a", "mp2", folder / "longer_sound.avi")
    ffmpeg("-i", made("h264.mp4"), "-c", "copy", "-live", "1", folder / "live.mkv")
    ffmpeg("-i", made("hevc.mp4"), "-c", "copy", folder / "raw.265")
    twice = made("mpeg2.ts").read_bytes() * 2
    (folder / "twice.ts").write_bytes(twice)
    parts = [
        ffmpeg("-i", made("h264.mp4"), "-c", "copy", "-output_ts_offset", at, "-f", "mpegts", "-")
        for at in ("10", "0")
    ]
    (folder / "set_back.ts").write_bytes(b"".join(parts))
    for name in ("h264.mp4", "vp9.webm", "mpeg4.avi", "mpeg2.ts", "raw.264"):
        whole = made(name).read_bytes()
        (folder / f"cut_{name}").write_bytes(whole[: len(whole) * 6 // 10])
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    "settings", [Settings(), Settings(start=0.2, end=0.6), Settings(fps=4), Settings(start=3)]
)
def test_the_estimate_agrees_with_the_run(made: Made, odd_clips: list[Path], settings) -> None:
    names = [*ENCODERS, *REMUXERS]
    wrong = {}
    with Decoder() as decoder:
        for path in [*map(made, names), *odd_clips]:
            found = len(sampler(settings)(decoder.probe(path, path.name)))
            (file,) = find_inputs([str(path)]).files
            expected = estimate([file], settings, decoder).frames
            if abs(expected - found) > max(1, 0.05 * found):
                wrong[path.name] = (expected, found)
    assert not wrong


@pytest.mark.parametrize("name", ["vp9.webm", "mjpeg.avi", "mpeg2.ts", "raw.mjpeg", "pal.dv"])
def test_of_a_large_file_a_part_is_read(
    made: Made, odd_clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "raw.mjpeg":
        path = tmp_path / name
        ffmpeg("-i", made("mjpeg.avi"), "-c", "copy", path)
    else:
        path = next((one for one in odd_clips if one.name == name), None) or made(name)
    whole = header.read_header(path)
    monkeypatch.setattr(header, "MOST_BYTES", path.stat().st_size // 2)
    part = header.read_header(path)
    assert len(part.times) == pytest.approx(len(whole.times), rel=0.05)
    assert part.seconds == pytest.approx(whole.seconds, rel=0.05)
    assert np.diff(part.times).max() < 2 / FPS

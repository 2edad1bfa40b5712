"""The decoding child: all frames, correct and in any order, even if it crashes, hangs or leaks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_clips import BT709, X264, ffmpeg, shown_frames, waves, zero_packets
from numpy.typing import NDArray
from PIL import Image

from emopipe.pipeline.media.decoder import SLOT_BYTES, DecodeError, Decoder
from emopipe.pipeline.media.video import Video, VideoError

Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as decoder:
        yield decoder


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More frames than both slots hold: 90 of 2.8 MB."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    ffmpeg(*waves(1280, 720, 3), path.with_name("short.mp4"))
    loop = ["-stream_loop", "29", "-i", path.with_name("short.mp4")]
    ffmpeg(*loop, "-vf", "hue=h=n*7", *X264, "-preset", "ultrafast", *BT709, path)
    return path


def collect(
    decoder: Decoder, video: Video, frame_indices: NDArray[np.int64] | None = None
) -> dict[int, NDArray[np.uint8]]:
    """Decode frames and copy them, by index."""
    wanted = np.arange(video.frames) if frame_indices is None else frame_indices
    found = {}
    for frames in decoder.frames(video, wanted):
        np.testing.assert_array_equal(frames.times, video.times[frames.frame_indices])
        found.update(zip(frames.frame_indices.tolist(), frames.images.copy(), strict=True))
    return found


def assert_shown(
    found: dict[int, NDArray[np.uint8]], shown: NDArray[np.uint8], grey_levels: float = 2
) -> None:
    for index, image in found.items():
        difference = np.abs(image.astype(np.int16) - shown[index]).mean()
        assert difference < grey_levels, f"frame {index}"


@pytest.mark.parametrize("name", ["h264.mp4", "edit_list.mp4", "rotated.mp4", "raw.264"])
def test_all_frames_come_once_in_order(decoder: Decoder, made: Made, name: str) -> None:
    video = decoder.probe(made(name), name)
    found = collect(decoder, video)
    assert list(found) == list(range(video.frames))
    assert_shown(found, shown_frames(made(name), video.height, video.width))


def test_videos_larger_than_the_slots_come_whole(decoder: Decoder, long_clip: Path) -> None:
    video = decoder.probe(long_clip, "long")
    shown = shown_frames(long_clip, video.height, video.width)
    assert shown.nbytes > 4 * SLOT_BYTES
    found = collect(decoder, video)
    assert list(found) == list(range(video.frames))
    assert_shown(found, shown)


def test_an_image_larger_than_a_slot_comes_whole(decoder: Decoder, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8)
    assert image.nbytes > SLOT_BYTES
    Image.fromarray(image).save(tmp_path / "large.png", compress_level=0)
    found = collect(decoder, decoder.probe(tmp_path / "large.png", "large.png"))
    assert (found[0] == image).all()


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("h264.mp4", "decord"),
        ("vp9.webm", "decord"),
        ("h264.mp4", "pyav"),
        ("hevc.mp4", "pyav"),
        ("edit_list.mp4", "pyav"),
        ("mpeg4.avi", "pyav"),
        ("mpeg2.ts", "pyav"),
        ("h264.avi", "pyav"),
    ],
)
def test_random_access_equals_reading_in_order(
    decoder: Decoder, made: Made, name: str, backend: str, data: st.DataObject
) -> None:
    video = decoder.probe(made(name), name, backend)
    chosen = data.draw(st.sets(st.integers(0, video.frames - 1), min_size=1))
    frame_indices = np.array(sorted(chosen))
    for part in np.array_split(frame_indices, 3)[::-1]:  # backwards, too
        found = collect(decoder, video, part)
        assert list(found) == part.tolist()
        assert_shown(found, shown_frames(made(name), video.height, video.width))


def test_frame_indices_must_be_the_videos_and_ascend(decoder: Decoder, made: Made) -> None:
    video = decoder.probe(made("h264.mp4"), "h264.mp4")
    for frame_indices in ([60], [-1], [3, 2], [4, 4]):
        with pytest.raises(ValueError, match="`frame_indices` must"):
            decoder.frames(video, np.array(frame_indices))
    assert list(decoder.frames(video, np.array([], np.int64))) == []


def test_a_video_can_be_left_midway(decoder: Decoder, made: Made, long_clip: Path) -> None:
    long = decoder.probe(long_clip, "long")
    pid = decoder.pid
    abandoned = decoder.frames(long, np.arange(long.frames))
    next(abandoned)
    video = decoder.probe(made("h264.mp4"), "h264.mp4")
    assert len(collect(decoder, video)) == 60
    assert decoder.pid == pid  # without a new child
    with pytest.raises(RuntimeError, match="others were asked for"):
        next(abandoned)


def test_an_unreadable_file_is_a_video_error(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("text " * 100)
    with pytest.raises(VideoError, match="is not a video"):
        decoder.probe(tmp_path / "text.mp4", "text.mp4")


def test_a_killed_child_is_a_crash_and_the_next_video_works(made: Made, long_clip: Path) -> None:
    with Decoder() as decoder:
        video = decoder.probe(long_clip, "long")
        assert decoder.pid
        frames = decoder.frames(video, np.arange(video.frames))
        first = next(frames)
        os.kill(decoder.pid, signal.SIGKILL)
        with pytest.raises(DecodeError, match=r"crashed on .*long\.mp4 \(SIGKILL\)") as caught:
            for later in frames:
                assert later.frame_indices[0] > first.frame_indices[-1]
        assert caught.value.kind == "crash"
        assert len(collect(decoder, decoder.probe(made("h264.mp4"), "h264.mp4"))) == 60


def test_a_hung_child_is_killed_after_the_time_limit(made: Made) -> None:
    with Decoder(timeout_s=3) as decoder:
        video = decoder.probe(made("h264.mp4"), "h264.mp4")
        pid = decoder.pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(DecodeError, match=r"hung on .*h264\.mp4") as caught:
            collect(decoder, video)
        assert caught.value.kind == "hang"
        assert 3 < time.monotonic() - start < 8
        assert not psutil.pid_exists(pid)
        assert len(collect(decoder, video)) == 60


def test_a_child_that_outgrows_its_memory_is_replaced_between_frames(
    long_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "emopipe.pipeline.media.decoder.WATCH_S", 30
    )  # never while it waits for frames
    with Decoder(memory_bytes=1) as decoder:
        video = decoder.probe(long_clip, "long")
        pids = set()
        found = {}
        for frames in decoder.frames(video, np.arange(0, 40)):
            pids.add(decoder.pid)
            found.update(zip(frames.frame_indices.tolist(), frames.images.copy(), strict=True))
    assert len(pids) > 2
    assert list(found) == list(range(40))
    assert_shown(found, shown_frames(long_clip, video.height, video.width))


def test_a_child_over_its_memory_before_any_frame_is_an_error(made: Made) -> None:
    with Decoder(memory_bytes=1) as decoder:
        video = decoder.probe(made("h264.mp4"), "h264.mp4")
        assert decoder.pid
        os.kill(decoder.pid, signal.SIGSTOP)
        with pytest.raises(DecodeError, match="of memory") as caught:
            collect(decoder, video)
        assert caught.value.kind == "memory"


def test_a_file_that_vanishes_cannot_be_opened(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "gone.mp4"
    path.write_bytes(made("h264.mp4").read_bytes())
    with Decoder() as decoder:
        video = decoder.probe(path, "gone.mp4")
        path.unlink()
        with pytest.raises(DecodeError) as caught:
            collect(decoder, video)
        assert caught.value.kind == "open"


def test_decord_stops_at_damage_and_pyav_goes_on(
    decoder: Decoder, made: Made, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.mp4"
    path.write_bytes(made("h264.mp4").read_bytes())
    shown = shown_frames(made("h264.mp4"), 96, 160)
    by_decord = decoder.probe(path, "damaged.mp4", "decord")
    zero_packets(path, slice(46, 48))

    found: dict[int, NDArray[np.uint8]] = {}
    damaged = r"damaged frame in .*damaged\.mp4.*: use `backend` pyav for it"
    with pytest.raises(DecodeError, match=damaged) as caught:
        for frames in decoder.frames(by_decord, np.arange(60)):
            found.update(zip(frames.frame_indices.tolist(), frames.images.copy(), strict=True))
    assert caught.value.kind == "backend"
    assert_shown(found, shown)

    found = collect(decoder, decoder.probe(path, "damaged.mp4", "pyav"))
    missing = set(range(60)) - set(found)
    assert 2 <= len(missing) <= 14
    assert missing <= set(range(42, 56))  # the damaged group of pictures
    assert_shown(found, shown)


def test_what_a_truncated_file_still_holds_is_delivered(
    decoder: Decoder, made: Made, tmp_path: Path
) -> None:
    whole = made("h264.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    video = decoder.probe(tmp_path / "cut.mp4", "cut.mp4")
    assert video.frames - len(collect(decoder, video)) <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_even_a_hung_child_dies_with_its_parent(made: Made) -> None:
    code = (
        "import sys, os, signal, pathlib\n"
        "from emopipe.pipeline.media.decoder import Decoder\n"
        "decoder = Decoder()\n"
        "decoder.probe(pathlib.Path(sys.argv[1]), 'x')\n"
        "os.kill(decoder.pid, signal.SIGSTOP)\n"
        "print(decoder.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(made("h264.mp4"))]
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)
    deadline = time.monotonic() + 5
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running(pid)


def running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_an_interrupt_is_left_to_the_parent(made: Made) -> None:
    with Decoder() as decoder:
        video = decoder.probe(made("h264.mp4"), "h264.mp4")
        assert decoder.pid
        os.kill(decoder.pid, signal.SIGINT)
        assert len(collect(decoder, video)) == 60


def test_modules_of_the_users_do_not_stand_in_for_ours(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pipeline", "jobs", "emonet", "emopipe", "av", "numpy", "signal"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError")
    for name in ("media", "pipeline", "jobs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    with Decoder() as decoder:
        assert decoder.probe(made("h264.mp4"), "h264.mp4").frames == 60


def test_the_child_finds_the_package_where_it_is_not_installed(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child looks last in the folder in which the parent found the package."""
    project = Path(__file__).resolve().parents[3]
    package = tmp_path / "elsewhere" / "emopipe"
    package.mkdir(parents=True)
    for part in ("emopipe/__init__.py", "emonet", "pipeline"):
        (package / Path(part).name).symlink_to(project / part)
    (tmp_path / "numpy.py").write_text("raise RuntimeError")
    # -S keeps site-packages, and so the installed emopipe, out of both processes.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    code = (
        "import sys, pathlib\n"
        f"sys.path += {[*libraries, str(package.parent)]}\n"
        "import emopipe\n"
        f"assert emopipe.__file__.startswith({str(package)!r}), emopipe.__file__\n"
        "from emopipe.pipeline.media.decoder import Decoder\n"
        "with Decoder() as decoder:\n"
        "    print(decoder.probe(pathlib.Path(sys.argv[1]), 'x').frames)\n"
    )
    python = tmp_path / "python"  # what the parent starts its child with
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH={":".join(libraries)} exec {sys.executable} -S "$@"\n'
    )
    python.chmod(0o755)
    code = f"import sys; sys.executable = {str(python)!r}\n" + code
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code, made("h264.mp4")],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "60\n", ran.stderr


def test_closing_ends_the_child(made: Made) -> None:
    with Decoder() as decoder:
        decoder.probe(made("h264.mp4"), "h264.mp4")
        pid = decoder.pid
    assert pid
    assert not psutil.pid_exists(pid)
    assert decoder.pid is None

"""What a run says: what is ahead, where it stands, what it waits for."""

import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from emopipe.jobs.progress import PlanOnlyError, RunProgress
from emopipe.pipeline.estimate import Plan
from emopipe.pipeline.inputs import InputFile, Inputs, Skipped
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.table.results import VideoRecord

AHEAD = Plan(inputs=1, unreadable=0, seconds=4.0, frames=100, bytes=60_000)


@pytest.fixture
def clip(tmp_path) -> InputFile:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"x" * 1000)
    return InputFile(path, "clip.mp4")


def video(file: InputFile) -> Video:
    return Video(
        path=file.path,
        name=file.name,
        backend="pyav",
        width=64,
        height=48,
        rotation=0,
        times=np.arange(100) / 25,
        pts=np.arange(100),
        keyframe_pts=np.zeros(1, np.int64),
        fps=25.0,
        truncated_frames=0,
        size=1000,
        sha256="",
    )


def said(capture, **options) -> tuple[Console, RunProgress]:
    console = Console(file=capture, width=200)
    return console, RunProgress(console, **options)


def test_what_is_passed_over_ahead_and_wrong_is_said(clip, tmp_path):
    with (tmp_path / "log").open("w+") as log:
        _, progress = said(log)
        with progress:
            skipped = Skipped(Path("a.doc"), "a.doc was skipped: no type of video.")
            progress.begun(Inputs((clip,), (skipped,)), 0, AHEAD)
            progress.video_begun(video(clip), 100, 0)
            progress.span_done(video(clip), 60, 55)
            progress.video_done(clip, VideoRecord("clip.mp4", "partial", "it is cut"))
        log.seek(0)
        text = log.read()
    assert "a.doc was skipped" in text
    assert "0:00:04 long: about 100 frames" in text
    assert "partial: clip.mp4: it is cut" in text
    assert (progress.frames, progress.faces) == (60, 55)


def test_a_dry_run_ends_where_work_would_begin(clip, tmp_path):
    with (tmp_path / "log").open("w") as log:
        _, progress = said(log, dry_run=True)
        with progress, pytest.raises(PlanOnlyError):
            progress.begun(Inputs((clip,), ()), 0, AHEAD)


def test_the_watchdog_names_what_the_run_waits_for(clip, tmp_path):
    with (tmp_path / "log").open("w+") as log:
        _, progress = said(log, still_s=0.5)
        with progress:
            progress.begun(Inputs((clip,), ()), 0, AHEAD)
            progress.video_begun(video(clip), 100, 0)
            time.sleep(2.5)
        log.seek(0)
        assert "waiting for clip.mp4" in log.read()


def test_quiet_says_only_what_went_wrong(clip, tmp_path):
    with (tmp_path / "log").open("w+") as log:
        _, progress = said(log, quiet=True)
        with progress:
            progress.begun(Inputs((clip,), ()), 0, AHEAD)
            progress.video_begun(video(clip), 100, 0)
            progress.video_done(clip, VideoRecord("clip.mp4", "failed", "broken"))
        log.seek(0)
        assert log.read() == "failed: clip.mp4: broken\n"

"""What a run prints: the work ahead, how far it is, what it waits for."""

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from emopipe.jobs.progress import DryRunError, RunProgress
from emopipe.pipeline.estimate import Estimate
from emopipe.pipeline.inputs import InputFile, Inputs, Skipped
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.table.schema import VideoRecord

ESTIMATE = Estimate(inputs=1, unreadable=0, seconds=4.0, frames=100, bytes=60_000)


@pytest.fixture
def clip(tmp_path: Path) -> InputFile:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"x" * 1000)
    return InputFile(path, "clip.mp4")


@pytest.fixture
def printed() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def shown(printed: io.StringIO) -> Callable[..., RunProgress]:
    """Makes progress that prints plain lines into `printed`."""

    def make(**options: object) -> RunProgress:
        return RunProgress(Console(file=printed, width=200), **options)

    return make


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


def test_skipped_files_the_estimate_and_failures_are_printed(clip, shown, printed):
    with shown() as progress:
        skipped = Skipped(Path("a.doc"), "a.doc was skipped: no type of video.")
        progress.on_start(Inputs((clip,), (skipped,)), 0, ESTIMATE)
        progress.on_video_start(video(clip), 100, 0)
        progress.on_span(video(clip), 60, 55)
        progress.on_video_end(clip, VideoRecord("clip.mp4", "partial", "it is cut"))
    text = printed.getvalue()
    assert "a.doc was skipped" in text
    assert "0:00:04 long: about 100 frames" in text
    assert "partial: clip.mp4: it is cut" in text
    assert (progress.frames, progress.faces) == (60, 55)


@pytest.mark.parametrize(
    ("done", "inputs", "says"),
    [(1, 1, "the input was done"), (3, 3, "all 3 inputs were"), (1, 3, "1 of 3 inputs was")],
)
def test_what_an_earlier_run_did_is_said_in_a_sentence(clip, shown, printed, done, inputs, says):
    files = tuple(InputFile(clip.path, f"{n}.mp4") for n in range(inputs))
    with shown() as progress:
        progress.on_start(Inputs(files, ()), done, ESTIMATE)
    assert f"{says}" in printed.getvalue() and "done by an earlier run" in printed.getvalue()


def test_after_a_resume_the_counters_go_on_from_what_is_done(clip, printed):
    """Three inputs of one size: one done, one with 50 of its 100 frames, one to do."""
    files = tuple(InputFile(clip.path, name) for name in ("done.mp4", "half.mp4", "new.mp4"))
    console = Console(file=printed, width=200, force_terminal=True)
    with RunProgress(console) as progress:
        progress.on_video_kept(files[0], VideoRecord("done.mp4", "ok", frames=70))
        progress.on_start(Inputs(files, ()), 1, ESTIMATE)
        time.sleep(0.3)
        assert "33 %" not in printed.getvalue()
        progress.on_video_start(video(files[1]), 100, 50)
        time.sleep(0.3)
        assert "1/3 videos · 50 frames" in printed.getvalue()
        assert "50 %" in printed.getvalue()
        progress.on_span(video(files[1]), 50, 50)
        progress.on_video_end(files[1], VideoRecord("half.mp4", "ok", frames=100))
        time.sleep(0.3)
    assert "2/3 videos · 100 frames" in printed.getvalue()
    assert "67 %" in printed.getvalue()
    assert (progress.frames, progress.frames_before) == (50, 120)


def test_many_inputs_that_cannot_be_looked_at_are_counted(shown, printed):
    with shown() as progress:
        files = tuple(InputFile(Path(f"{n}.srt"), f"{n}.srt", "It is text.") for n in range(200))
        progress.on_start(Inputs(files, ()), 0, ESTIMATE)
        for file in files:
            progress.on_video_end(file, VideoRecord(file.name, "failed", file.problem))
        progress.on_end([])
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("failed: ")]
    assert len(lines) == 6
    assert lines[-1].startswith("failed: 195 more .srt inputs")


def test_names_that_no_terminal_takes_are_printed(shown, printed):
    with shown() as progress:
        progress.on_message("bad\udcff.mp4 is broken")
    assert printed.getvalue() == "bad\\xff.mp4 is broken\n"


def test_a_dry_run_ends_before_the_first_video(clip, shown):
    with shown(dry_run=True) as progress, pytest.raises(DryRunError) as stopped:
        progress.on_start(Inputs((clip,), ()), 0, ESTIMATE)
    assert stopped.value.estimate == ESTIMATE


def test_the_watchdog_names_what_the_run_waits_for(clip, shown, printed):
    with shown(stalled_s=0.5) as progress:
        progress.on_phase("starting Ray")
        time.sleep(2.5)
        assert "waiting for starting Ray" in printed.getvalue()
        progress.on_start(Inputs((clip,), ()), 0, ESTIMATE)
        progress.on_video_start(video(clip), 100, 0)
        time.sleep(2.5)
    assert "waiting for clip.mp4" in printed.getvalue()


def test_quiet_prints_failures_only(clip, shown, printed):
    with shown(quiet=True) as progress:
        progress.on_message("working in this process")
        progress.on_phase("starting Ray")
        progress.on_start(Inputs((clip,), ()), 0, ESTIMATE)
        progress.on_video_start(video(clip), 100, 0)
        progress.on_video_end(clip, VideoRecord("clip.mp4", "failed", "broken"))
    assert printed.getvalue() == "failed: clip.mp4: broken\n"


def test_a_phase_is_one_plain_line_and_a_message_is_a_line_each_time(shown, printed):
    with shown() as progress:
        for text in ("starting Ray", "starting workers", "starting Ray"):
            progress.on_phase(text)
        progress.on_message("working in this process")
    assert printed.getvalue() == "starting Ray\nstarting workers\nworking in this process\n"


def test_on_a_terminal_the_bar_names_the_phase_in_place_of_a_percentage(clip, printed):
    console = Console(file=printed, width=200, force_terminal=True)
    with RunProgress(console) as progress:
        progress.on_phase("starting Ray")
        time.sleep(0.3)
        bar = printed.getvalue()
        assert "starting Ray" in bar and "%" not in bar
        progress.on_start(Inputs((clip,), ()), 0, ESTIMATE)
        progress.on_video_start(video(clip), 100, 25)
        time.sleep(0.3)
    bar = printed.getvalue()
    assert "0/1 videos" in bar and "25 %" in bar


def test_seconds_are_wall_time_with_what_comes_before_the_first_frame(clip, shown):
    with shown() as progress:
        time.sleep(0.3)
        progress.on_start(Inputs((clip,), ()), 0, ESTIMATE)
        assert 0.3 <= progress.seconds < 2


def test_printed_lines_are_in_the_callers_wording(clip, shown, printed):
    with shown(wording=lambda text: text.replace("`backend`", "--backend")) as progress:
        progress.on_message("`backend` pyav decodes")
        progress.on_start(Inputs((clip,), ()), 0, ESTIMATE)
        progress.on_video_end(clip, VideoRecord("clip.mp4", "failed", "say `backend` pyav"))
    lines = printed.getvalue().splitlines()
    assert lines[0] == "--backend pyav decodes"
    assert lines[-1] == "failed: clip.mp4: say --backend pyav"

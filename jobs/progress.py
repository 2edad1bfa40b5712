"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import threading
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from emopipe.pipeline.estimate import Plan
from emopipe.pipeline.inputs import InputFile, Inputs
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import Observer
from emopipe.pipeline.table.results import VideoRecord

STILL_S = 60.0
"""After so long without a finished span the watchdog says what the run waits for."""

LINE_INTERVAL_S = 10.0
"""How often a plain line is printed at most, where there is no terminal."""


class PlanOnlyError(Exception):
    """A dry run has said what it would do.

    Attributes:
        ahead: that.
    """

    def __init__(self, ahead: Plan) -> None:
        super().__init__(str(ahead))
        self.ahead = ahead


class RunProgress(Observer):
    """Shows videos, frames, faces a second and the time left. A context manager.

    The share done goes by the inputs' bytes: their frames are known only once each is opened.

    Args:
        console: where to; a terminal gets a bar, anything else lines.
        quiet: count, but show only what goes wrong.
        dry_run: end the run with `PlanOnlyError` where it would begin.
        still_s: after so long without a finished span say what the run waits for.
    """

    def __init__(
        self,
        console: Console,
        quiet: bool = False,
        dry_run: bool = False,
        still_s: float = STILL_S,
    ) -> None:
        self.frames = 0
        self.faces = 0
        self._console = console
        self._quiet = quiet
        self._dry_run = dry_run
        self._still_s = still_s
        self._began = self._line_at = time.monotonic()
        self._videos = self._done = 0
        self._bytes: dict[str, int] = {}
        self._bytes_all = 0
        self._bytes_done = 0.0
        self._shares: dict[str, float] = {}
        self._wanted: dict[str, int] = {}
        self._moved = self._began
        self._ended = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, daemon=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0)

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        self._watchdog.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._watchdog.join()
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """How long the run has gone on."""
        return time.monotonic() - self._began

    def begun(self, inputs: Inputs, done: int, ahead: Plan) -> None:
        """Name the inputs passed over, and say what there is to do."""
        self._bytes = {file.name: file.bytes for file in inputs.files}
        self._bytes_all = sum(self._bytes.values())
        self._videos, self._done = len(inputs.files), done
        for skipped in inputs.skipped:
            self.say(skipped.reason)
        if done:
            self.say(f"{done} of {self._videos} inputs were done by an earlier run")
        if ahead.inputs:
            self.say(str(ahead))
        if self._dry_run:
            raise PlanOnlyError(ahead)
        self._began = self._line_at = self._moved = time.monotonic()

    def video_begun(self, video: Video, frames: int, done: int) -> None:
        """Take the video's number of sampled frames."""
        self._wanted[video.name] = max(1, frames)
        self._credit(video.name, done / self._wanted[video.name])

    def span_done(self, video: Video, frames: int, faces: int) -> None:
        """Count."""
        self.frames += frames
        self.faces += faces
        self._credit(video.name, self._shares[video.name] + frames / self._wanted[video.name])

    def video_done(self, file: InputFile, record: VideoRecord) -> None:
        """Count, and say what went wrong if anything did."""
        self._done += 1
        if record.status != "ok":
            self.warn(f"{record.status}: {file.name}: {record.error}")
        self._credit(file.name, 1.0)

    def say(self, line: str) -> None:
        """Print a line above the bar, unless quiet."""
        if not self._quiet:
            self.warn(line)

    def warn(self, line: str) -> None:
        """Print a line above the bar even if quiet: something went wrong."""
        self._console.print(escape(line), highlight=False, soft_wrap=True)

    def _credit(self, name: str, share: float) -> None:
        """Take a video as done to that share, and show where the run stands."""
        self._moved = time.monotonic()
        self._bytes_done += self._bytes[name] * (share - self._shares.get(name, 0.0))
        self._shares[name] = share
        done = self._bytes_done / max(1, self._bytes_all)
        state = (
            f"{self._done}/{self._videos} videos · {self.frames:,} frames · "
            f"{self.faces / max(self.seconds, 1e-9):.0f} faces/s"
        )
        self._bar.update(self._task, completed=done, description=state)
        due = time.monotonic() - self._line_at >= LINE_INTERVAL_S
        if due and not self._console.is_terminal:
            self._line_at = time.monotonic()
            self.say(f"{state} · {100 * done:.0f} %")

    def _watch(self) -> None:
        """Say so when nothing has moved for a while, and what the run waits for."""
        said = self._moved
        while not self._ended.wait(1.0):
            now = time.monotonic()
            if now - max(said, self._moved) >= self._still_s:
                said = now
                waiting = [name for name, share in list(self._shares.items()) if share < 1]
                self.say(
                    f"nothing has moved for {now - self._moved:.0f} s; waiting for "
                    f"{', '.join(waiting) or 'the first frames'}"
                )

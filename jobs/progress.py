"""What a run shows while it works: a bar on a terminal, plain lines elsewhere."""

import threading
import time
from collections import Counter
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from emopipe.pipeline.estimate import Estimate
from emopipe.pipeline.inputs import MAX_LINES, InputFile, Inputs, summed_up
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import ProgressCallback
from emopipe.pipeline.storage import printable
from emopipe.pipeline.table.schema import VideoRecord

STALLED_S = 60.0
"""After this long without a finished span the watchdog names what the run waits for."""

LINE_INTERVAL_S = 10.0
"""Least time between plain lines where there is no terminal."""


class DryRunError(Exception):
    """Ends a dry run once its work is estimated.

    Attributes:
        estimate: the estimate.
    """

    def __init__(self, estimate: Estimate) -> None:
        super().__init__(str(estimate))
        self.estimate = estimate


class RunProgress(ProgressCallback):
    """Shows videos, frames, faces per second and the time left. A context manager.

    Progress is measured in bytes of the inputs: their frames are known only once they are opened.
    What an earlier run has done counts as done; the frames counted are those of the inputs left,
    which the estimate before the run promises.

    Args:
        console: a terminal shows a bar, anything else plain lines.
        quiet: print errors only.
        dry_run: end the run with `DryRunError` before the first video.
        stalled_s: after this long without a finished span, print what the run waits for.
        wording: rewrites every printed message; the command line names its options so.

    Attributes:
        frames: frames finished by this run.
        faces: faces found by this run.
        frames_before: frames of the same inputs that earlier runs had finished.
        others: inputs that the output holds and this run did not name, once it has ended.
        wording: see above.
    """

    def __init__(
        self,
        console: Console,
        quiet: bool = False,
        dry_run: bool = False,
        stalled_s: float = STALLED_S,
        wording: Callable[[str], str] = str,
    ) -> None:
        self.frames = 0
        self.faces = 0
        self.frames_before = 0
        self.others: list[VideoRecord] = []
        self.wording = wording
        self._console = console
        self._quiet = quiet
        self._dry_run = dry_run
        self._stalled_s = stalled_s
        self._started = self._line_at = self._moved_at = time.monotonic()
        self._phases: list[str] = []
        self._videos = self._done = 0
        self._bytes: dict[str, int] = {}
        self._bytes_all = 0
        self._bytes_done = 0.0
        self._shares: dict[str, float] = {}
        self._sampled: dict[str, int] = {}
        self._resumed = 0
        self._kept: set[str] = set()
        self._unread: Counter[str] = Counter()
        self._ended = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, daemon=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[percent]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, percent="")

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
        """Wall time of the run so far, loading of models and the start of Ray included."""
        return time.monotonic() - self._started

    @property
    def _share(self) -> float:
        """How much of all inputs is done."""
        return self._bytes_done / max(1, self._bytes_all)

    def on_phase(self, text: str) -> None:
        """Show a phase before the first frame: in the bar, or once as a plain line."""
        self._moved_at = time.monotonic()
        known = text in self._phases
        self._phases.append(text)
        self._bar.update(self._task, description=text)
        if not known and not self._console.is_terminal:
            self.say(text)

    def on_message(self, text: str) -> None:
        """Print a line."""
        self.say(text)

    def on_new_output(self, model: str) -> None:
        """Print the model, which stays an output's only one."""
        self.say(model)

    def on_video_kept(self, file: InputFile, record: VideoRecord) -> None:
        """Count what is done already."""
        self._kept.add(file.name)
        self.frames_before += record.frames

    def on_start(self, inputs: Inputs, done: int, estimate: Estimate) -> None:
        """Print which files are skipped, what is done already and what is left to do."""
        self._bytes = {file.name: file.bytes for file in inputs.files}
        self._bytes_all = sum(self._bytes.values())
        self._bytes_done = float(sum(self._bytes[name] for name in self._kept))
        self._videos, self._done = len(inputs.files), done
        self._moved_at = time.monotonic()
        for line in summed_up(inputs.skipped):
            self.say(line)
        if done:
            self.say(_done_in_words(done, self._videos))
        # Anew, or the time left would be reckoned as if this run had done it all.
        self._bar.reset(self._task, total=1.0, percent="")
        self._bar.update(self._task, completed=self._share)
        if estimate.inputs:
            self.say(str(estimate))
        if self._dry_run:
            raise DryRunError(estimate)

    def on_video_start(self, video: Video, frames: int, done: int) -> None:
        """Note the video's number of sampled frames."""
        self._sampled[video.name] = max(1, frames)
        self._resumed += done
        self.frames_before += done
        self._advance(video.name, done / self._sampled[video.name])

    def on_span(self, video: Video, frames: int, faces: int) -> None:
        """Count."""
        self.frames += frames
        self.faces += faces
        self._advance(video.name, self._shares[video.name] + frames / self._sampled[video.name])

    def on_video_end(self, file: InputFile, record: VideoRecord) -> None:
        """Count, and print what went wrong; of many inputs of a kind not read, the first few."""
        self._done += 1
        kind = file.path.suffix.lower()
        self._unread[kind] += file.problem is not None
        if record.status != "ok" and (not file.problem or self._unread[kind] <= MAX_LINES):
            self.warn(f"{record.status}: {file.name}: {record.error}")
        self._advance(file.name, 1.0)

    def on_end(self, others: list[VideoRecord]) -> None:
        """Note what else the output holds, and count failures that were not printed."""
        self.others = others
        for kind, n in self._unread.items():
            if n > MAX_LINES:
                self.warn(f"failed: {n - MAX_LINES:,} more {kind} inputs, see the videos table")

    def say(self, line: str) -> None:
        """Print a line above the bar, unless quiet."""
        if not self._quiet:
            self.warn(line)

    def warn(self, line: str) -> None:
        """Print a line above the bar, even if quiet."""
        line = printable(self.wording(line))
        self._console.print(escape(line), highlight=False, soft_wrap=True)

    def _advance(self, name: str, share: float) -> None:
        """Set the share of a video that is done, and show the run's progress."""
        self._moved_at = time.monotonic()
        self._bytes_done += self._bytes[name] * (share - self._shares.get(name, 0.0))
        self._shares[name] = share
        done = self._share
        state = (
            f"{self._done}/{self._videos} videos · {self._resumed + self.frames:,} frames · "
            f"{self.faces / max(self.seconds, 1e-9):.0f} faces/s"
        )
        percent = f"{100 * done:.0f} %"
        self._bar.update(
            self._task, completed=done, total=1.0, description=state, percent=f"{percent:>5}"
        )
        due = time.monotonic() - self._line_at >= LINE_INTERVAL_S
        if due and not self._console.is_terminal:
            self._line_at = time.monotonic()
            self.say(f"{state} · {percent}")

    def _watch(self) -> None:
        """Print what the run waits for, whenever nothing has moved for a while."""
        printed_at = self._moved_at
        while not self._ended.wait(1.0):
            now = time.monotonic()
            if now - max(printed_at, self._moved_at) >= self._stalled_s:
                printed_at = now
                self.say(
                    f"no progress for {now - self._moved_at:.0f} s; waiting for {self._pending()}"
                )

    def _pending(self) -> str:
        """Name the videos begun and not finished; before the first, the phase."""
        videos = [name for name, share in list(self._shares.items()) if share < 1]
        return ", ".join(videos or self._phases[-1:]) or "the first frames"


def _done_in_words(done: int, inputs: int) -> str:
    if done == inputs:
        which = "the input was" if inputs == 1 else f"all {inputs:,} inputs were"
    else:
        which = f"{done:,} of {inputs:,} inputs {'was' if done == 1 else 'were'}"
    return f"{which} done by an earlier run"

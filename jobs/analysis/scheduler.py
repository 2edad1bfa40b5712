"""The driver's books: which spans are here, which are missing, which are suspect."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emopipe.emonet.errors import EmopipeError
from emopipe.jobs.analysis.messages import (
    Failed,
    Lost,
    Message,
    Planned,
    Redo,
    Rows,
    Segment,
    Task,
    segments,
)
from emopipe.pipeline.inputs import InputFile
from emopipe.pipeline.media.video import Video, spans_of
from emopipe.pipeline.run import TRIES, Observer
from emopipe.pipeline.table.results import VideoRecord
from emopipe.pipeline.table.store import Store, part_key

Done = tuple[InputFile, VideoRecord]
"""An input that is committed, with its record."""


class WorkersError(EmopipeError):
    """Workers die one after the other, whatever they do."""


@dataclass
class _Open:
    """An input that is not committed."""

    file: InputFile
    backend: str
    video: Video | None = None
    key: str = ""
    wanted: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    spans: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)


class Bookkeeper:
    """Takes in what workers say, in any order, and knows what is to be done.

    A span during which a worker died is suspect: it is done when nothing else is left, and alone,
    so that nothing else falls with it; the third time it is given up.

    Args:
        store: the output; only this writes it.
        tasks: the inputs to be done.
        sampling: gives a video's frame numbers to look at.
        segment_spans: most spans of a segment.
        observer: is told how it goes on.
    """

    def __init__(
        self,
        store: Store,
        tasks: list[Task],
        sampling: Callable[[Video], NDArray[np.int64]],
        segment_spans: int,
        observer: Observer,
    ) -> None:
        self._store = store
        self._sampling = sampling
        self._segment_spans = segment_spans
        self._observer = observer
        self._open = {task.file.name: _Open(task.file, task.backend) for task in tasks}
        self._here = store.begun()
        self._suspects: set[tuple[str, int]] = set()
        self._alone: tuple[str, int] | None = None
        self._fruitless = 0

    @property
    def here(self) -> dict[str, set[int]]:
        """The spans that are here of videos that are not committed, by `part_key`."""
        return self._here

    def todo(self) -> list[Task | Segment]:
        """Return what the next pass is to do: all that is missing, or one suspect span alone."""
        self._alone = None
        work: list[Task | Segment] = []
        for one in self._open.values():
            if one.video is None:
                work.append(Task(one.file, one.backend))
                continue
            sound = {k: one.spans[k] for k in sorted(one.missing) if not self._suspect(one.key, k)}
            work += segments(one.video, sound, self._segment_spans)
        return work or self._one_suspect()

    def take(self, message: Message) -> Done | None:
        """Take in what a worker says; return the input that this completes, if it does.

        Raises:
            OutputError: the disk does not take it.
        """
        self._fruitless = 0
        match message:
            case Failed(file, reason):
                if self._open.pop(file.name, None):
                    return file, self._store.fail(file.name, file.path, reason)
            case Planned(file, video):
                return self._plan(file.name, video)
            case Redo(name):
                one = self._open.get(name)
                if one and one.backend != "pyav":
                    self._open[name] = _Open(one.file, backend="pyav")
            case Rows(name, key, span, stream):
                rows = pa.ipc.open_stream(stream).read_all()
                self._store.write(key, span, rows)
                return self._arrived(name, key, span, rows.num_rows - rows["face"].null_count)
            case Lost(name, key, span, reason):
                self._store.lose(key, span, reason)
                return self._arrived(name, key, span, 0)
        return None

    def died(
        self, begun: dict[str, tuple[str, int]], actor: str | None, reason: str
    ) -> Done | None:
        """Take in that a worker died; return the input that this completes, if it does.

        Args:
            begun: what each worker began last, by its actor: a span (key, index).
            actor: the one that died, if that is known.
            reason: why, in words.

        Raises:
            WorkersError: workers die again and again before they begin anything.
            OutputError: the disk does not take it.
        """
        culprit = self._alone or (begun.get(actor) if actor else None)
        suspects = {culprit} if culprit else set() if actor else set(begun.values())
        suspects = {(key, span) for key, span in suspects if span not in self._here.get(key, ())}
        self._suspects |= suspects
        self._fruitless = 0 if suspects else self._fruitless + 1
        if self._fruitless == TRIES:
            raise WorkersError(
                f"Ray's workers die before they do anything ({reason}); --local works without Ray"
            )
        if culprit in suspects and culprit and self._store.strike(*culprit) >= TRIES:
            names = [one.file.name for one in self._open.values() if one.key == culprit[0]]
            return self.take(Lost(names[0] if names else "", *culprit, reason))
        return None

    def _suspect(self, key: str, span: int) -> bool:
        return (key, span) in self._suspects

    def _one_suspect(self) -> list[Task | Segment]:
        for one in self._open.values():
            if one.video and one.missing:
                span = min(one.missing)
                self._alone = one.key, span
                return [Segment(one.video, {span: one.spans[span]})]
        return []

    def _plan(self, name: str, video: Video) -> Done | None:
        one = self._open.get(name)
        if one is None or one.video:
            return None
        if (one.backend, video.backend) == ("pyav", "decord"):  # of before its Redo
            return None
        one.video, one.key = video, part_key(video)
        one.wanted = self._sampling(video)
        one.spans = spans_of(one.wanted)
        here = self._here.get(one.key, set())
        one.missing = one.spans.keys() - here
        done = sum(len(one.spans[span]) for span in here)
        self._observer.video_begun(video, len(one.wanted), done)
        return self._completed(one)

    def _arrived(self, name: str, key: str, span: int, faces: int) -> Done | None:
        self._here.setdefault(key, set()).add(span)
        one = self._open.get(name)
        if one is None or one.video is None or one.key != key or span not in one.missing:
            return None
        one.missing.remove(span)
        self._observer.span_done(one.video, len(one.spans[span]), faces)
        return self._completed(one)

    def _completed(self, one: _Open) -> Done | None:
        if one.video is None or one.missing:
            return None
        del self._open[one.file.name]
        self._here.pop(one.key, None)
        return one.file, self._store.commit(one.video, one.wanted)

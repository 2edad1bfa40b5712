"""Which spans are done, in flight, pending or quarantined. Pure: it knows no Ray.

A span on which a worker died is quarantined: it is tried again after all others, in a task of its
own. Before it is given up it is tried once isolated, with nothing else in flight, so that no span
is lost because of another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emopipe.emonet.errors import EmopipeError
from emopipe.jobs.analysis.messages import FailedVideo, SegmentTask, SpanRows
from emopipe.pipeline.inputs import InputFile
from emopipe.pipeline.media.sampling import spans_of
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import MAX_ATTEMPTS, FailedSpan, Finished, ProgressCallback
from emopipe.pipeline.table.store import Store, part_key

Span = tuple[str, int]
"""A video's name and the index of one of its spans."""

PROBE = -1
"""Stands for the span in the record of attempts to probe an input."""

SEGMENTS_BEFORE_PROBE = 2
"""The next input is probed when at most this many segments of the others are left to hand out."""


class WorkersError(EmopipeError):
    """Workers die one after the other, whatever they do."""


@dataclass(frozen=True)
class _OpenVideo:
    """A probed video that is not committed; `missing` are the spans that the store lacks."""

    file: InputFile
    video: Video
    key: str
    frame_indices: NDArray[np.int64]
    spans: dict[int, NDArray[np.int64]]
    missing: set[int]


class Scheduler:
    """Hands out tasks and takes in what workers answer, in any order.

    Args:
        store: the output; only the scheduler writes it.
        files: the inputs to be analyzed.
        sampling: gives a video's sampled frame indices, (n,) int64, ascending.
        segment_spans: most spans of a segment.
        progress: follows the run.
    """

    def __init__(
        self,
        store: Store,
        files: Iterable[InputFile],
        sampling: Callable[[Video], NDArray[np.int64]],
        segment_spans: int,
        progress: ProgressCallback,
    ) -> None:
        self._store = store
        self._sampling = sampling
        self._segment_spans = segment_spans
        self._progress = progress
        self._open: dict[str, _OpenVideo] = {}
        self._probing: dict[str, InputFile] = {}
        self.unprobed = deque(files)
        self.pending: deque[Span] = deque()
        self.in_flight: set[Span] = set()
        self.quarantined: deque[Span] = deque()
        self.isolated: deque[Span] = deque()

    @property
    def done(self) -> bool:
        """Whether every input is committed."""
        return not (self.unprobed or self._probing or self._open)

    def next_task(self) -> InputFile | SegmentTask | None:
        """Return what a free worker is to probe or analyze, or None if nothing is left for it now.

        The next input is probed shortly before the spans of those before it run out: no worker
        waits for it, and no more indexes are held than there is work for.
        """
        few = len(self.pending) <= SEGMENTS_BEFORE_PROBE * self._segment_spans
        if self.unprobed and (not self.pending or (few and not self._probing)):
            return self.next_probe()
        if self.pending:
            return self._segment()
        if self.quarantined:
            return self._task([self.quarantined.popleft()])
        if self.isolated and not self.in_flight and not self._probing:
            return self._task([self.isolated.popleft()])
        return None

    def next_probe(self) -> InputFile:
        """Hand out the first of the unprobed inputs."""
        file = self.unprobed.popleft()
        self._probing[file.name] = file
        return file

    def handle(self, message: Video | FailedVideo | SpanRows | FailedSpan) -> Finished | None:
        """Take in a worker's answer; return the input that it completes, if it does.

        Raises:
            OutputError: the disk does not take it.
        """
        match message:
            case Video():
                return self._start(message)
            case FailedVideo(name, reason):
                return self._fail(name, reason)
            case SpanRows(name, span, part, faces) if opened := self._wanted(name, span):
                self._store.write_part(opened.key, span, part)
                self._progress.on_span(opened.video, len(opened.spans[span]), faces)
                return self._finish(opened, span)
            case FailedSpan(name, span, reason) if opened := self._wanted(name, span):
                self._store.write_failed(opened.key, span, reason)
                return self._finish(opened, span)
        return None

    def on_worker_death(self, work: InputFile | Sequence[Span], reason: str) -> Finished | None:
        """Take in that a worker died; return the input that this completes, if it does.

        Args:
            work: the input it was probing, or the spans that it had not delivered, in order: it
                died on the first.
            reason: why, in words.

        Raises:
            OutputError: the disk does not take it.
        """
        if isinstance(work, InputFile):
            return self._on_probe_death(work, reason)
        return self._on_span_death(work, reason)

    def _segment(self) -> SegmentTask:
        """The next spans of one video; fewer towards the end, so that workers end together."""
        name = self.pending[0][0]
        most = self._segment_spans
        # Without key frames decoding begins at the file's start each time: as few times as can be.
        least = max(1, most // 4) if len(self._open[name].video.keyframe_pts) else most
        size = max(least, min(most, -(-len(self.pending) // 2)))
        spans: list[Span] = []
        while self.pending and self.pending[0][0] == name and len(spans) < size:
            spans.append(self.pending.popleft())
        return self._task(spans)

    def _task(self, spans: list[Span]) -> SegmentTask:
        self.in_flight.update(spans)
        opened = self._open[spans[0][0]]
        return SegmentTask.of(opened.video, {span: opened.spans[span] for _, span in spans})

    def _start(self, video: Video) -> Finished | None:
        file = self._probing.pop(video.name)
        frame_indices, key = self._sampling(video), part_key(video)
        spans = spans_of(frame_indices)
        done = self._store.spans(key)
        opened = _OpenVideo(file, video, key, frame_indices, spans, spans.keys() - done)
        self._open[file.name] = opened
        self.pending += ((file.name, span) for span in sorted(opened.missing))
        already = sum(len(spans[span]) for span in done)
        self._progress.on_video_start(video, len(frame_indices), already)
        return self._finish(opened)

    def _wanted(self, name: str, span: int) -> _OpenVideo | None:
        """The span's video, if the span is still missing."""
        opened = self._open.get(name)
        return opened if opened and span in opened.missing else None

    def _finish(self, opened: _OpenVideo, span: int | None = None) -> Finished | None:
        """Note that a span is in the store; commit its video if none is missing any more."""
        if span is not None:
            opened.missing.remove(span)
            self.in_flight.discard((opened.file.name, span))
        if opened.missing:
            return None
        del self._open[opened.file.name]
        return opened.file, self._store.commit(opened.video, opened.frame_indices)

    def _fail(self, name: str, reason: str) -> Finished | None:
        """Commit an input as failed, and forget all of its spans."""
        opened = self._open.pop(name, None)
        file = opened.file if opened else self._probing.pop(name, None)
        if file is None:
            return None
        self.in_flight = {span for span in self.in_flight if span[0] != name}
        for queue in (self.pending, self.quarantined, self.isolated):
            kept = [span for span in queue if span[0] != name]
            queue.clear()
            queue += kept
        return file, self._store.fail(file.name, file.path, reason)

    def _on_probe_death(self, file: InputFile, reason: str) -> Finished | None:
        if self._store.record_attempt(file.name, PROBE) >= MAX_ATTEMPTS:
            return self._fail(file.name, reason)
        self.unprobed.append(self._probing.pop(file.name))
        return None

    def _on_span_death(self, unfinished: Sequence[Span], reason: str) -> Finished | None:
        """Quarantine the span that the worker died on, and hand out the others again."""
        alone = self.in_flight == {unfinished[0]}
        self.in_flight.difference_update(unfinished)
        first, *others = unfinished
        self.pending.extendleft(span for span in reversed(others) if self._wanted(*span))
        opened = self._wanted(*first)
        if opened is None:
            return None
        attempts = self._store.record_attempt(opened.key, first[1])
        if attempts >= MAX_ATTEMPTS and alone:
            return self.handle(FailedSpan(*first, reason))
        (self.isolated if attempts >= MAX_ATTEMPTS - 1 else self.quarantined).append(first)
        return None

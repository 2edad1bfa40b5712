"""The workers of a run on Ray: what each is busy with, and a new one for each that dies."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from emopipe.emonet.errors import EmopipeError
from emopipe.jobs.analysis.messages import FailedVideo, SegmentTask, SpanDetected
from emopipe.jobs.analysis.resources import ResourcePlan
from emopipe.jobs.analysis.scheduler import Scheduler, Span, WorkersError
from emopipe.jobs.analysis.worker import EmotionWorker, FaceWorker, WorkerConfig, probe
from emopipe.jobs.cluster import WITHOUT_RAY
from emopipe.pipeline.inputs import InputFile
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.media.video import Video
from emopipe.pipeline.run import MAX_ATTEMPTS, Finished

PROBED_HERE_BYTES = 2**28
"""While workers start, the driver probes inputs up to this size itself: reading and hashing one
should take no longer than a worker's start (2 s), from a local disk."""

MAX_CROPS_BYTES = 2**28
"""Crops that wait for an emotion worker: beyond this size, face workers wait too."""

CALLS_AHEAD = 2
"""Spans that an emotion worker is given at once, so that crops travel while the network runs."""

Kind = type[FaceWorker] | type[EmotionWorker]


@dataclass(eq=False)
class _Call:
    """What a worker was asked for: the input it probes, or the spans it has not delivered yet."""

    probe: InputFile | None = None
    spans: deque[Span] = field(default_factory=deque)


@dataclass(eq=False)
class _Worker:
    """An actor and its unanswered calls, by what to wait for: a stream, or a start's reference."""

    actor: ray.actor.ActorHandle
    kind: Kind
    started: bool = False
    calls: dict[Any, _Call] = field(default_factory=dict)


class WorkerPool:
    """Keeps the workers busy with what the scheduler hands out.

    Args:
        scheduler: knows what there is to do.
        config: what workers are made from.
        plan: how many there are, and what they reserve.
    """

    def __init__(self, scheduler: Scheduler, config: WorkerConfig, plan: ResourcePlan) -> None:
        self._scheduler = scheduler
        self._settings = config.settings
        self._config = ray.put(config)
        self._plan = plan
        self._workers: list[_Worker] = []
        self._consecutive_failures: Counter[Kind] = Counter()  # of starts
        self._detected: deque[tuple[SpanDetected, ray.ObjectRef]] = deque()
        for kind in _starts(plan):
            self._start_worker(kind)

    def probe_while_starting(self, decoder: Decoder) -> Iterator[Finished]:
        """Probe small inputs in this process until the first worker is ready.

        Raises:
            OutputError: the disk does not take a record.
        """
        starting = [call for worker in self._workers for call in worker.calls]
        unprobed = self._scheduler.unprobed
        while unprobed and unprobed[0].bytes <= PROBED_HERE_BYTES:
            if ray.wait(starting, num_returns=1, timeout=0)[0]:
                return
            answer = probe(self._scheduler.next_probe(), decoder, self._settings)
            if finished := self._scheduler.handle(answer):
                yield finished

    def step(self) -> Iterator[Finished]:
        """Give free workers tasks, wait for the next answer, and take it in.

        Raises:
            EmopipeError: a worker says what is wrong for all of them.
            WorkersError: workers die before they do anything.
            OutputError: the disk does not take a part.
        """
        self._give_tasks()
        full = sum(detected.bytes for detected, _ in self._detected) > MAX_CROPS_BYTES
        awaited = {
            answered: worker
            for worker in self._workers
            for answered in worker.calls
            if not (full and worker.kind is FaceWorker and worker.started)
        }
        if not awaited:
            raise RuntimeError("the scheduler is not done, and no worker has anything to do")
        for answered in ray.wait(list(awaited), num_returns=1)[0]:
            worker = awaited[answered]
            try:
                finished = self._take(answered, worker)
            except RayError as error:
                finished = self._on_error(answered, worker, error)
            if finished:
                yield finished

    def shutdown(self) -> None:
        """End all workers."""
        for worker in self._workers:
            ray.kill(worker.actor)

    def _start_worker(self, kind: Kind) -> None:
        plan, faces = self._plan, kind is FaceWorker
        make = ray.remote(
            num_cpus=plan.cpus_each if faces else 0,
            num_gpus=plan.face_gpus if faces else plan.emotion_gpus,
            # Ray would restart and retry without end; the scheduler counts attempts.
            max_restarts=0,
            max_task_retries=0,
        )(kind)
        actor = make.remote(self._config, *([not plan.emotion_workers] if faces else []))
        self._workers.append(_Worker(actor, kind, calls={actor.start.remote(): _Call()}))

    def _give_tasks(self) -> None:
        for worker in list(self._workers):
            if not worker.started:
                continue
            if worker.kind is EmotionWorker:
                if not worker.calls and not (self._detected and self._is_alive(worker)):
                    continue
                while self._detected and len(worker.calls) < CALLS_AHEAD:
                    detected, crops = self._detected.popleft()
                    call = _Call(spans=deque([(detected.video, detected.span)]))
                    worker.calls[self._stream(worker.actor.predict, crops)] = call
            elif not worker.calls and self._is_alive(worker):
                task = self._scheduler.next_task()
                if isinstance(task, SegmentTask):
                    spans = deque((task.video.name, span) for span in task.span_ids.tolist())
                    stream = self._stream(worker.actor.analyze, task)
                    worker.calls[stream] = _Call(spans=spans)
                elif task:
                    worker.calls[self._stream(worker.actor.probe, task)] = _Call(probe=task)

    def _stream(self, method: Any, argument: Any) -> Any:
        options: dict[str, Any] = {"num_returns": "streaming"}
        if self._plan.emotion_workers:
            # One span ahead of the driver: a detected span is two objects, see `SpanDetected`.
            options["_generator_backpressure_num_objects"] = 2
        return method.options(**options).remote(argument)

    def _is_alive(self, worker: _Worker) -> bool:
        """Whether an idle worker lives; one that died is replaced, and no span is blamed for it."""
        try:
            ray.get(worker.actor.ping.remote())
        except RayError:
            self._replace(worker)
            return False
        return True

    def _take(self, answered: Any, worker: _Worker) -> Finished | None:
        """Take in one answer.

        Raises:
            RayError: the worker died, or failed at the call.
        """
        call = worker.calls[answered]
        if not worker.started:
            ray.get(answered)
            del worker.calls[answered]
            worker.started = True
            self._consecutive_failures[worker.kind] = 0
            return None
        try:
            message = ray.get(next(answered))
        except StopIteration:
            del worker.calls[answered]
            return None
        if isinstance(message, SpanDetected):
            crops = next(answered)
            if crops == answered.completed():  # the worker died in between: this raises why
                ray.get(crops)
            self._detected.append((message, crops))
            call.spans.popleft()
            return None
        call.probe = None
        if isinstance(message, FailedVideo):
            call.spans.clear()
        elif not isinstance(message, Video):
            call.spans.popleft()
        return self._scheduler.handle(message)

    def _on_error(self, answered: Any, worker: _Worker, error: RayError) -> Finished | None:
        """Take in that a worker died, or failed at a call.

        Raises:
            EmopipeError: the worker says what is wrong for all of them, or none of its kind starts.
            OutputError: the disk does not take a record.
        """
        # A failed dependency comes as a RayTaskError that is a RayActorError too: of another actor.
        failed = isinstance(error, RayTaskError)
        if failed and isinstance(error.cause, EmopipeError):
            raise error.cause from None
        reason = _last_line(error)
        if not worker.started:
            self._on_failed_start(worker, reason)
            return None
        # The oldest call ran; those behind it only waited, and are handed out again.
        calls = [worker.calls.pop(answered)] if failed else list(worker.calls.values())
        if not failed:
            self._replace(worker)
        work = calls[0].probe or [span for call in calls for span in call.spans]
        return self._scheduler.on_worker_death(work, reason) if work else None

    def _on_failed_start(self, worker: _Worker, reason: str) -> None:
        """Start another worker, up to a number of failures in a row.

        Raises:
            WorkersError: there were as many, and no worker of that kind is left.
        """
        kind = worker.kind
        self._workers.remove(worker)
        ray.kill(worker.actor)
        planned = self._plan.face_workers if kind is FaceWorker else self._plan.emotion_workers
        self._consecutive_failures[kind] += 1
        if self._consecutive_failures[kind] < MAX_ATTEMPTS * planned:
            self._start_worker(kind)
        elif all(other.kind is not kind for other in self._workers):
            raise WorkersError(
                f"Ray's workers die before they do anything ({reason}); {WITHOUT_RAY}"
            )

    def _replace(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        ray.kill(worker.actor)
        self._start_worker(worker.kind)


def _starts(plan: ResourcePlan) -> list[Kind]:
    """The workers to start, both kinds evenly mixed.

    Ray fills one GPU after another, in the order of the starts: of each kind, each GPU is to get
    its share.
    """
    counts: list[tuple[Kind, int]] = [
        (EmotionWorker, plan.emotion_workers),
        (FaceWorker, plan.face_workers),
    ]
    places = [(i / count, kind) for kind, count in counts for i in range(count)]
    return [kind for _, kind in sorted(places, key=itemgetter(0))]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]

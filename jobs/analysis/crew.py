"""The workers of a run on Ray: what each is busy with, and a new one for each that dies."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from emopipe.emonet.errors import EmopipeError
from emopipe.jobs.analysis.messages import SegmentTask, SpanDetected, SpanRows
from emopipe.jobs.analysis.resources import ResourcePlan
from emopipe.jobs.analysis.scheduler import Scheduler, Span
from emopipe.jobs.analysis.worker import EmotionWorker, FaceWorker, WorkerConfig, probe
from emopipe.pipeline.inputs import InputFile
from emopipe.pipeline.media.decoder import Decoder
from emopipe.pipeline.run import FailedSpan, Finished

PROBED_HERE_BYTES = 2**28
"""While workers start, the driver probes inputs of so many bytes or fewer itself: reading and
hashing one should take no longer than a worker's start (2 s), from a local disk."""

CROPS_AHEAD = 4
"""Detected spans that each face worker may have waiting: more would only fill the object store."""

CALLS_AHEAD = 2
"""Spans that an emotion worker is given at once, so that crops travel while the network runs."""


@dataclass(eq=False)
class _Worker:
    """An actor, and how many calls it has to answer."""

    actor: ray.actor.ActorHandle
    kind: type[EmotionWorker]
    calls: int = 0
    started: bool = False


@dataclass(eq=False)
class _Call:
    """What a worker was asked for: the input it probes, or the spans it has not delivered yet."""

    worker: _Worker
    work: InputFile | deque[Span] | None = None


class Crew:
    """Keeps the workers busy with what the scheduler hands out.

    Args:
        scheduler: knows what there is to do.
        config: what workers are made from.
        plan: how many there are, and what they reserve.
    """

    def __init__(self, scheduler: Scheduler, config: WorkerConfig, plan: ResourcePlan) -> None:
        self._scheduler = scheduler
        self._backend = config.settings.backend
        self._config = ray.put(config)
        self._plan = plan
        self._workers: list[_Worker] = []
        self._calls: dict[Any, _Call] = {}  # by what to wait for: a stream, or a start's reference
        self._detected: deque[tuple[Span, ray.ObjectRef]] = deque()
        for _ in range(plan.face_workers):
            self._hire(FaceWorker)
        for _ in range(plan.emotion_workers):
            self._hire(EmotionWorker)

    def probe_while_starting(self, decoder: Decoder) -> Iterator[Finished]:
        """Probe small inputs in this process until the first worker is ready."""
        starting, unprobed = list(self._calls), self._scheduler.unprobed
        while unprobed and unprobed[0].bytes <= PROBED_HERE_BYTES:
            if ray.wait(starting, num_returns=1, timeout=0)[0]:
                return
            answer = probe(self._scheduler.next_probe(), decoder, self._backend)
            if finished := self._scheduler.handle(answer):
                yield finished

    def step(self) -> Iterator[Finished]:
        """Give free workers tasks, wait for the next answer, and take it in."""
        self._give_tasks()
        full = len(self._detected) >= CROPS_AHEAD * self._plan.face_workers
        awaited = [
            one
            for one, call in self._calls.items()
            if not (full and call.worker.kind is FaceWorker and call.worker.started)
        ]
        for answered in ray.wait(awaited, num_returns=1)[0]:
            call = self._calls[answered]
            try:
                finished = self._take(answered, call)
            except RayError as error:
                finished = self._on_error(answered, call, error)
            if finished:
                yield finished

    def dismiss(self) -> None:
        """End all workers."""
        for worker in self._workers:
            ray.kill(worker.actor)

    def _hire(self, kind: type[EmotionWorker]) -> None:
        """Start a worker."""
        plan, faces = self._plan, kind is FaceWorker
        make = ray.remote(
            num_cpus=plan.cpus_each if faces else 0,
            num_gpus=0 if faces else plan.gpus_each,
            # Ray would restart and retry without end; the scheduler counts attempts.
            max_restarts=0,
            max_task_retries=0,
        )(kind)
        actor = make.remote(self._config, *([not plan.emotion_workers] if faces else []))
        worker = _Worker(actor, kind)
        self._workers.append(worker)
        self._calls[actor.start.remote()] = _Call(worker)

    def _give_tasks(self) -> None:
        for worker in [one for one in self._workers if one.started]:
            actor = worker.actor
            if worker.kind is EmotionWorker:
                while self._detected and worker.calls < CALLS_AHEAD:
                    span, crops = self._detected.popleft()
                    self._ask(worker, actor.predict, crops, [span])
            elif not worker.calls and (task := self._scheduler.next_task()):
                if isinstance(task, SegmentTask):
                    spans = [(task.video.name, span) for span in task.span_ids.tolist()]
                    self._ask(worker, actor.analyze, task, spans)
                else:
                    self._ask(worker, actor.probe, task, task)

    def _ask(
        self, worker: _Worker, method: Any, argument: Any, work: InputFile | Sequence[Span]
    ) -> None:
        options: dict[str, Any] = {"num_returns": "streaming"}
        if self._plan.emotion_workers:
            # A detected span is two objects: its announcement and its crops.
            options["_generator_backpressure_num_objects"] = 2 * CROPS_AHEAD
        stream = method.options(**options).remote(argument)
        worker.calls += 1
        self._calls[stream] = _Call(worker, work if isinstance(work, InputFile) else deque(work))

    def _take(self, answered: Any, call: _Call) -> Finished | None:
        """Take in one answer.

        Raises:
            RayError: the worker died, or failed at it.
        """
        if not call.worker.started:
            ray.get(answered)
            del self._calls[answered]
            call.worker.started = True
            return None
        try:
            message = ray.get(next(answered))
        except StopIteration:
            del self._calls[answered]
            call.worker.calls -= 1
            return None
        if isinstance(message, SpanDetected):
            crops = next(answered)
            self._detected.append(((message.video, message.span), crops))
        if isinstance(call.work, deque) and isinstance(
            message, SpanDetected | SpanRows | FailedSpan
        ):
            call.work.popleft()
        else:
            call.work = None
        return None if isinstance(message, SpanDetected) else self._scheduler.handle(message)

    def _on_error(self, answered: Any, call: _Call, error: RayError) -> Finished | None:
        """Take in that a worker died or failed at a call, and replace it if it died.

        Raises:
            EmopipeError: the worker says what is wrong for all of them, or too many died.
        """
        del self._calls[answered]
        worker = call.worker
        if isinstance(error, RayTaskError) and isinstance(error.cause, EmopipeError):
            raise error.cause from None
        finished = self._scheduler.on_worker_death(call.work or None, _last_line(error))
        if isinstance(error, RayActorError) or not worker.started:
            self._replace(worker)
        else:
            worker.calls -= 1
        return finished

    def _replace(self, worker: _Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
            ray.kill(worker.actor)
            if not self._scheduler.done:
                self._hire(worker.kind)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]

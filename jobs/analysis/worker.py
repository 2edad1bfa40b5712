"""What runs on Ray's workers: the stages of the job.

PyTorch is loaded by the stages that need it, when they are made: the prober starts in half the time
without it.
"""

from __future__ import annotations

import atexit
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from emopipe.jobs.analysis.messages import (
    Failed,
    Found,
    Lost,
    Message,
    Planned,
    Redo,
    Rows,
    Segment,
    Task,
    segments,
)
from emopipe.pipeline.media.decoder import DecodeError, Decoder
from emopipe.pipeline.media.video import Video, VideoError, spans_of
from emopipe.pipeline.table.results import SpanFaces, rows_schema
from emopipe.pipeline.table.store import part_key

if TYPE_CHECKING:
    from emopipe.emonet.checkpoint import Checkpoint
    from emopipe.pipeline.settings import Settings


class Stage(Protocol):
    """Works off messages of one kind."""

    def answers(self, message: Message) -> Iterable[Message]:
        """Yield what is to be said in return; messages for others are passed on."""


class Worker:
    """An actor of Ray Data: takes each message through its stages, one after the other.

    Args:
        ledger: where it enters itself, to be dismissed at the end of the pass.
        stages: what makes each stage.
    """

    def __init__(self, ledger: Any, stages: Sequence[Callable[[], Stage]]) -> None:
        # On their way out the libraries that are loaded here may wait for each other forever. Ray
        # has let go of the worker by then: nobody would end it.
        atexit.register(os._exit, 0)
        this = ray.cloudpickle.dumps(ray.get_runtime_context().current_actor)
        ray.get(ledger.join.remote(this))
        self._stages = [make() for make in stages]

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield a batch of one message for each answer, as it comes."""
        for body in batch["message"]:
            for answer in _through(self._stages, pickle.loads(body)):
                yield {"message": np.array([pickle.dumps(answer)], dtype=object)}


def _through(stages: Sequence[Stage], message: Message) -> Iterator[Message]:
    if not stages:
        yield message
        return
    for answer in stages[0].answers(message):
        yield from _through(stages[1:], answer)


def probed(task: Task, decoder: Decoder) -> Planned | Failed:
    """Probe an input."""
    file = task.file
    try:
        return Planned(file, decoder.probe(file.path, file.name, task.backend))
    except (VideoError, DecodeError) as error:
        return Failed(file, str(error))


class Prober:
    """Task → Planned and Segments, or Failed.

    Args:
        sampling: gives a video's frame numbers to look at.
        here: spans that are not to be done again, by `part_key`.
        segment_spans: most spans of a segment.
    """

    def __init__(
        self,
        sampling: Callable[[Video], NDArray[np.int64]],
        here: dict[str, set[int]],
        segment_spans: int,
    ) -> None:
        self._sampling = sampling
        self._here = here
        self._segment_spans = segment_spans
        self._decoder = Decoder()

    def answers(self, message: Message) -> Iterable[Message]:
        """Probe, and divide what is to be done into segments."""
        if not isinstance(message, Task):
            yield message
            return
        found = probed(message, self._decoder)
        yield found
        if isinstance(found, Failed):
            return
        video = found.video
        here = self._here.get(part_key(video), set())
        spans = spans_of(self._sampling(video))
        missing = {span: numbers for span, numbers in spans.items() if span not in here}
        yield from segments(video, missing, self._segment_spans)


@dataclass(frozen=True)
class Recipe:
    """What face and network stages are made from; big things lie in Ray's object store.

    Attributes:
        settings: resolved, with the threads of a worker.
        checkpoint: of the network.
        model: reference to the network.
        detector_files: reference to the detector's weights, name to content.
        ledger: the ledger's actor.
    """

    settings: Settings
    checkpoint: Checkpoint
    model: ray.ObjectRef
    detector_files: ray.ObjectRef
    ledger: Any

    def begin(self, key: str, span: int) -> None:
        """Have the ledger note that this worker begins a span."""
        actor = ray.get_runtime_context().get_actor_id()
        ray.get(self.ledger.begin.remote(actor, key, span))


class FaceFinder:
    """Segment → Found, Lost or Redo.

    Args:
        recipe: what it is made from.
    """

    def __init__(self, recipe: Recipe) -> None:
        from emopipe.pipeline.local import use_threads
        from emopipe.pipeline.stages import FaceStage

        use_threads(recipe.settings.threads)
        self._recipe = recipe
        # Detectors read their files when they are made. Gone right after that, the files are not
        # left behind by a worker that is killed.
        with tempfile.TemporaryDirectory(prefix="emopipe-weights-") as folder:
            for name, content in ray.get(recipe.detector_files).items():
                Path(folder, name).write_bytes(content)
            self._stage = FaceStage(
                replace(recipe.settings, detector_weights=Path(folder)),
                recipe.checkpoint.crop,
                recipe.checkpoint.input_size,
            )

    def answers(self, message: Message) -> Iterable[Message]:
        """Decode, detect and align, telling the ledger what is begun."""
        if not isinstance(message, Segment):
            yield message
            return
        video, key = message.video, part_key(message.video)
        order = iter(message.spans)
        self._recipe.begin(key, next(order))
        try:
            for found in self._stage.spans(video, message.spans):
                if isinstance(found, SpanFaces):
                    yield Found(key, found)
                else:
                    yield Lost(video.name, key, found.span, found.reason)
                if (following := next(order, None)) is not None:
                    self._recipe.begin(key, following)
        except DecodeError:
            yield Redo(video.name)


class NetworkRunner:
    """Found → Rows or Lost.

    Args:
        recipe: what it is made from.
    """

    def __init__(self, recipe: Recipe) -> None:
        from emopipe.emonet.predictor import Predictor
        from emopipe.pipeline.local import use_threads
        from emopipe.pipeline.stages import EmotionStage

        settings, checkpoint = recipe.settings, recipe.checkpoint
        use_threads(settings.threads)
        self._recipe = recipe
        self._stage = EmotionStage(
            Predictor(
                ray.get(recipe.model),
                checkpoint,
                settings.device,
                settings.precision,
                settings.faces_per_batch,
            ),
            rows_schema(checkpoint.classes, settings.landmarks),
        )

    def answers(self, message: Message) -> Iterable[Message]:
        """Predict and lay out the rows, telling the ledger what is begun."""
        if not isinstance(message, Found):
            yield message
            return
        faces = message.faces
        self._recipe.begin(message.key, faces.span)
        rows = self._stage.rows(faces)
        if not isinstance(rows, pa.Table):
            yield Lost(faces.video, message.key, faces.span, rows.reason)
            return
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        yield Rows(faces.video, message.key, faces.span, sink.getvalue().to_pybytes())

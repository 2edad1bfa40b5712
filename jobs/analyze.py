"""The Ray Data job: inputs to an output, on one machine or a cluster.

Three pools of actors in a row. Probing turns an input into segments; the face stage turns a segment
into spans with their crops; the network turns a span into rows. What they say travels as messages,
one a row, and the driver alone writes.

A pass over the inputs ends early when a worker dies. The next pass takes up what is missing; spans
that were under way then are done last and alone, so that one that kills its worker is known by it:
the third time it is given up.
"""

import pickle
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError

from emonet.checkpoint import Checkpoint, open_model
from emonet.model import EmoNet
from emonet.predictor import Predictor
from jobs.cluster import ClusterError, ClusterOptions, ray_session
from pipeline.decoder import DecodeError, Decoder
from pipeline.faces import weights_files
from pipeline.inputs import InputFile, Inputs
from pipeline.local import Observer, conduct, use_threads
from pipeline.results import SpanFaces, VideoRecord, rows_schema
from pipeline.settings import Settings, resolved
from pipeline.stages import (
    TRIES,
    EmotionStage,
    FaceStage,
    LostSpan,
    sampler,
)
from pipeline.store import Store, part_key
from pipeline.video import Video, VideoError, spans_of

FACE_SECONDS = 0.045
"""CPU time to decode, detect and align a 640×360 frame with CenterFace, one core."""

NETWORK_SECONDS = 0.17
"""CPU time of the published network (width 256, 256 px) for a face in bfloat16, one core."""

SEGMENT_SPANS = 16
"""Spans of a segment: what one actor decodes in one go, from one seek."""

CPUS_IN_USE = 0.9
"""Share of a node's CPUs that the actors ask for: pools that hold all CPUs starve Ray Data's own
tasks (ray-project/ray#44687)."""

SCHEDULING_BYTES = 1
"""Ray Data joins rows into blocks up to this size: each row is passed on at once."""


@dataclass(frozen=True)
class Task:
    """An input to be done: by which backend, and which spans (None: all that are missing)."""

    file: InputFile
    backend: str
    only: frozenset[int] | None = None


@dataclass(frozen=True)
class Planned:
    """What probing found of an input."""

    file: InputFile
    video: Video


@dataclass(frozen=True)
class Failed:
    """An input that cannot be probed, and why."""

    file: InputFile
    reason: str


@dataclass(frozen=True)
class Segment:
    """Some spans of a video to be decoded in one go: span index to frame numbers."""

    video: Video
    spans: dict[int, NDArray[np.int64]]


@dataclass(frozen=True)
class Found:
    """A span's faces, on their way to the network."""

    key: str
    faces: SpanFaces


@dataclass(frozen=True)
class Rows:
    """A span's rows as an Arrow stream."""

    video: str
    key: str
    span: int
    stream: bytes


@dataclass(frozen=True)
class Lost:
    """A span that no try brought to its end."""

    key: str
    span: LostSpan


@dataclass(frozen=True)
class Redo:
    """A video that decord stumbled over: PyAV is to do the whole of it."""

    video: str


Message = Task | Planned | Failed | Segment | Found | Rows | Lost | Redo


def run(
    inputs: Inputs,
    out: Path,
    settings: Settings,
    overwrite: bool = False,
    observer: Observer | None = None,
    options: ClusterOptions | None = None,
) -> list[VideoRecord]:
    """Analyze inputs on Ray. Gives the table that `pipeline.local.run` gives.

    Args:
        inputs: what to analyze; on a cluster every node sees it under the same paths.
        out: results file (`*.parquet`) or folder; only this process writes it.
        settings: how.
        overwrite: start anew, replacing what lies there.
        observer: is told how it goes on.
        options: where, and with how many actors.

    Returns:
        One record for each input, in their order.

    Raises:
        EmopipeError: a checkpoint, a detector, the cluster or the output cannot be used.
    """
    options = options or ClusterOptions()
    observer = observer or Observer()
    model, checkpoint = open_model(settings.model, settings.classes)
    # Read here, so that no worker needs the files.
    files = weights_files(settings.detector, settings.detector_weights)
    detector_files = {name: path.read_bytes() for name, path in files.items()}
    with ray_session(options):
        pools = _pools(settings, checkpoint, options)
        settings = _resolved_there(settings, pools)
        stages = _Stages(settings, checkpoint, ray.put(model), ray.put(detector_files), pools)

        def work(store: Store, files: list[InputFile]) -> Iterator[tuple[InputFile, VideoRecord]]:
            return _passes(Bookkeeper(store, settings, files, observer), stages)

        return conduct(inputs, out, settings, checkpoint, overwrite, observer, work)


@dataclass
class _Open:
    """An input that is not committed."""

    file: InputFile
    backend: str = "auto"
    video: Video | None = None
    key: str = ""
    wanted: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    spans: frozenset[int] = frozenset()
    error: str | None = None


class Bookkeeper:
    """What the driver knows: which spans are here, which are missing, which are suspect.

    Args:
        store: the output; only this writes it.
        settings: the analysis's.
        files: the inputs to be done.
        observer: is told how it goes on.
    """

    def __init__(
        self, store: Store, settings: Settings, files: list[InputFile], observer: Observer
    ) -> None:
        self._store = store
        self._settings = settings
        self._observer = observer
        self._open = {file.name: _Open(file) for file in files}
        self._here = store.begun()
        self._aside: dict[str, set[int]] = {}
        self._alone: tuple[str, int] | None = None
        self._fruitless = 0

    def tasks(self) -> list[Task]:
        """Return what the next pass is to do: all that is missing, or one suspect span alone."""
        self._alone = None
        normal = [
            Task(one.file, one.backend)
            for one in self._open.values()
            if one.video is None or self._missing(one) - self._aside.get(one.key, set())
        ]
        if normal or not self._open:
            return normal
        one = next(iter(self._open.values()))
        span = min(self._missing(one))
        self._alone = one.key, span
        return [Task(one.file, one.backend, frozenset({span}))]

    def skipped(self) -> dict[str, set[int]]:
        """Return the spans that the next pass is not to do, by the key of their video."""
        if self._alone:
            return {}
        keys = self._here.keys() | self._aside.keys()
        return {k: self._here.get(k, set()) | self._aside.get(k, set()) for k in keys}

    def take(self, message: Message) -> tuple[InputFile, VideoRecord] | None:
        """Take in what a worker says; return an input that this completes, with its record.

        Raises:
            OutputError: the disk does not take it.
        """
        match message:
            case Failed(file, reason):
                if self._open.pop(file.name, None):
                    return file, self._store.fail(file.name, file.path, reason)
            case Planned(file, video):
                return self._plan(self._open[file.name], video)
            case Redo(name):
                one = self._open[name]
                if one.backend != "pyav":
                    self._open[name] = _Open(one.file, backend="pyav")
            case Rows(name, key, span, stream):
                rows = pa.ipc.open_stream(stream).read_all()
                self._store.write(key, span, rows)
                self._here.setdefault(key, set()).add(span)
                one = self._open[name]
                if one.key == key and one.video:
                    faces = rows.num_rows - rows["face"].null_count
                    self._observer.span_done(one.video, len(spans_of(one.wanted)[span]), faces)
                return self._complete(one)
            case Lost(key, lost):
                return self._lose(self._open[lost.video], key, lost.span, lost.reason)
        return None

    def died(
        self, begun: set[tuple[str, int]], reason: str
    ) -> tuple[InputFile, VideoRecord] | None:
        """Take in that a worker died while these spans (key, span) had been begun.

        Raises:
            ClusterError: workers die again and again before they begin anything.
        """
        if self._alone:
            key, span = self._alone
            one = next(one for one in self._open.values() if one.key == key)
            if self._store.strike(key, span) >= TRIES:
                return self._lose(one, key, span, reason)
            return None
        suspects = {(key, span) for key, span in begun if span not in self._here.get(key, ())}
        for key, span in suspects:
            self._aside.setdefault(key, set()).add(span)
        self._fruitless = 0 if suspects else self._fruitless + 1
        if self._fruitless == TRIES:
            raise ClusterError(
                f"Ray's workers die before they do anything ({reason}); --local works without Ray"
            )
        return None

    def _plan(self, one: _Open, video: Video) -> tuple[InputFile, VideoRecord] | None:
        if one.video is None:
            one.video, one.key = video, part_key(video)
            one.wanted = sampler(self._settings)(video)
            spans = spans_of(one.wanted)
            one.spans = frozenset(spans)
            done = sum(len(spans[span]) for span in self._here.get(one.key, ()))
            self._observer.video_begun(video, len(one.wanted), done)
        return self._complete(one)

    def _lose(
        self, one: _Open, key: str, span: int, reason: str
    ) -> tuple[InputFile, VideoRecord] | None:
        self._store.lose(key, span)
        self._here.setdefault(key, set()).add(span)
        one.error = reason
        return self._complete(one)

    def _missing(self, one: _Open) -> set[int]:
        return set(one.spans - self._here.get(one.key, set()))

    def _complete(self, one: _Open) -> tuple[InputFile, VideoRecord] | None:
        if one.video is None or self._missing(one):
            return None
        del self._open[one.file.name]
        self._here.pop(one.key, None)
        self._aside.pop(one.key, None)
        return one.file, self._store.commit(one.video, one.wanted, one.error)


@dataclass(frozen=True)
class Pools:
    """How many actors a stage has, and what each asks Ray for."""

    face_actors: int
    network_actors: int
    cpus_each: float
    gpus_each: float


@dataclass(frozen=True)
class _Stages:
    """What the actors are made from; big things as references into Ray's object store."""

    settings: Settings
    checkpoint: Checkpoint
    model: ray.ObjectRef
    detector_files: ray.ObjectRef
    pools: Pools


def _passes(book: Bookkeeper, stages: _Stages) -> Iterator[tuple[InputFile, VideoRecord]]:
    """Pass over what is missing until nothing is."""
    while tasks := book.tasks():
        ledger = ray.remote(num_cpus=0, max_restarts=0)(Ledger).remote()
        try:
            for message in _messages(tasks, book.skipped(), ledger, stages):
                if done := book.take(message):
                    yield done
        except RayError as error:
            begun = ray.get(ledger.begun.remote())
            if done := book.died(begun, _last_line(error)):
                yield done


def _messages(
    tasks: list[Task], skipped: dict[str, set[int]], ledger: Any, stages: _Stages
) -> Iterator[Message]:
    """Run the three stages over tasks and yield what they say, as it comes."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = SCHEDULING_BYTES
    context.max_errored_blocks = 0
    pools = stages.pools
    rows = ray.data.from_items(
        [{"message": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks)
    )
    for actor, size, gpus, arguments in (
        (Prober, 1, 0.0, (stages.settings, skipped)),
        (FaceFinder, pools.face_actors, 0.0, (stages, ledger)),
        (NetworkRunner, pools.network_actors, pools.gpus_each, (stages,)),
    ):
        rows = rows.map_batches(
            actor,
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(size=size),
            batch_size=1,
            batch_format="numpy",
            num_cpus=pools.cpus_each,
            num_gpus=gpus,
            # Ray would restart and retry forever; tries are counted here.
            max_restarts=0,
            max_task_retries=0,
        )
    for row in rows.iter_rows():
        yield pickle.loads(row["message"])


class _Actor:
    """Works off messages of one kind and passes the others on."""

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for body in batch["message"]:
            for answer in self.answers(pickle.loads(body)):
                yield {"message": np.array([pickle.dumps(answer)], dtype=object)}

    def answers(self, message: Message) -> Iterable[Message]:
        """Yield what is to be said in return."""
        raise NotImplementedError


class Prober(_Actor):
    """Task → Planned and Segments, or Failed."""

    def __init__(self, settings: Settings, skipped: dict[str, set[int]]) -> None:
        self._settings = settings
        self._skipped = skipped
        self._decoder = Decoder()

    def answers(self, message: Message) -> Iterable[Message]:
        """Probe, and divide what is to be done into segments."""
        if not isinstance(message, Task):
            yield message
            return
        file = message.file
        try:
            video = self._decoder.probe(file.path, file.name, message.backend)
        except (VideoError, DecodeError) as error:
            yield Failed(file, str(error))
            return
        yield Planned(file, video)
        skipped = self._skipped.get(part_key(video), set())
        pending = {
            span: numbers
            for span, numbers in spans_of(sampler(self._settings)(video)).items()
            if span not in skipped and (message.only is None or span in message.only)
        }
        order = list(pending)
        # Without keys every segment would be decoded from the file's start.
        length = SEGMENT_SPANS if len(video.keys) else max(1, len(order))
        for first in range(0, len(order), length):
            yield Segment(video, {k: pending[k] for k in order[first : first + length]})


class FaceFinder(_Actor):
    """Segment → Found, Lost or Redo."""

    def __init__(self, stages: _Stages, ledger: Any) -> None:
        use_threads(stages.settings.threads or 1)
        self._ledger = ledger
        self._folder = tempfile.TemporaryDirectory(prefix="emopipe-weights-")
        weights_folder = Path(self._folder.name)
        for name, content in ray.get(stages.detector_files).items():
            (weights_folder / name).write_bytes(content)
        self._stage = FaceStage(
            replace(stages.settings, detector_weights=weights_folder),
            stages.checkpoint.crop,
            stages.checkpoint.input_size,
        )

    def answers(self, message: Message) -> Iterable[Message]:
        """Decode, detect and align, telling the ledger what is begun."""
        if not isinstance(message, Segment):
            yield message
            return
        key = part_key(message.video)
        order = iter(message.spans)
        self._begin(key, next(order))
        try:
            for found in self._stage.spans(message.video, message.spans):
                yield Lost(key, found) if isinstance(found, LostSpan) else Found(key, found)
                if (following := next(order, None)) is not None:
                    self._begin(key, following)
        except DecodeError:
            yield Redo(message.video.name)

    def _begin(self, key: str, span: int) -> None:
        ray.get(self._ledger.begin.remote(key, span))


class NetworkRunner(_Actor):
    """Found → Rows or Lost."""

    def __init__(self, stages: _Stages) -> None:
        use_threads(stages.settings.threads or 1)
        settings, checkpoint = stages.settings, stages.checkpoint
        model: EmoNet = ray.get(stages.model)
        self._stage = EmotionStage(
            Predictor(
                model, checkpoint, settings.device, settings.precision, settings.faces_per_batch
            ),
            rows_schema(checkpoint.classes, settings.landmarks),
        )

    def answers(self, message: Message) -> Iterable[Message]:
        """Predict and lay out the rows."""
        if not isinstance(message, Found):
            yield message
            return
        faces = message.faces
        rows = self._stage.rows(faces)
        if isinstance(rows, LostSpan):
            yield Lost(message.key, rows)
            return
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        yield Rows(faces.video, message.key, faces.span, sink.getvalue().to_pybytes())


class Ledger:
    """Remembers which spans were begun, beyond the death of the worker that began them."""

    def __init__(self) -> None:
        self._begun: set[tuple[str, int]] = set()

    def begin(self, key: str, span: int) -> None:
        """Note that a span is begun."""
        self._begun.add((key, span))

    def begun(self) -> set[tuple[str, int]]:
        """Return all that was begun."""
        return self._begun


def _pools(settings: Settings, checkpoint: Checkpoint, options: ClusterOptions) -> Pools:
    """Share the cluster between the stages by what a frame costs each.

    Raises:
        ClusterError: it has fewer GPUs than asked for.
    """
    there = ray.cluster_resources()
    cpus, found = there.get("CPU", 1.0), int(there.get("GPU", 0))
    gpus = found if options.gpus is None else options.gpus
    if gpus > found:
        raise ClusterError(f"--gpus {gpus}: Ray finds {found}; ask for that many or fewer")
    if settings.device == "cpu":
        gpus = 0
    scale = (checkpoint.width / 256) ** 2 * (checkpoint.input_size / 256) ** 2
    share = 0.0 if gpus else NETWORK_SECONDS * scale / (NETWORK_SECONDS * scale + FACE_SECONDS)
    network = options.network_actors or (gpus or max(1, round(cpus * share)))
    face = options.face_actors or max(1, round(cpus * (1 - share)))
    return Pools(
        face_actors=face,
        network_actors=network,
        cpus_each=int(CPUS_IN_USE * cpus / (face + network + 1) * 1e4) / 1e4,
        gpus_each=min(1.0, gpus / network),
    )


def _resolved_there(settings: Settings, pools: Pools) -> Settings:
    """Resolve "auto" where the network will run, which may be another kind of machine."""
    resolve = ray.remote(num_cpus=0, num_gpus=pools.gpus_each)(resolved)
    there: Settings = ray.get(resolve.remote(settings))
    return there


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]

"""How fast an analysis is on this machine: each stage alone, the whole, and what bounds it.

All is measured on the same frames: those of a video, cut or repeated to a given number.
"""

import math
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import psutil

from emopipe.emonet.arguments import counted
from emopipe.emonet.checkpoint import Checkpoint, open_model
from emopipe.emonet.roofline import Roofline, measure_roofline
from emopipe.pipeline import bench_child
from emopipe.pipeline.agreement import Agreement, agreement
from emopipe.pipeline.bench_stages import (
    STAGES,
    BenchError,
    Speed,
    Stages,
    detector_runs,
    measure_plain_loop,
)
from emopipe.pipeline.inputs import InputFile, find_inputs
from emopipe.pipeline.local import use_threads
from emopipe.pipeline.media.container import ReadError
from emopipe.pipeline.media.decoder import DecodeError, Decoder
from emopipe.pipeline.media.repeat import repeat
from emopipe.pipeline.media.sampling import SPAN_FRAMES
from emopipe.pipeline.media.suffixes import IMAGE_SUFFIXES
from emopipe.pipeline.media.video import Video, VideoError
from emopipe.pipeline.settings import Settings, resolved, sampler
from emopipe.pipeline.stages import load_predictor
from emopipe.pipeline.table.results import read_records, read_results, videos_path

MEMORY = "PSS" if sys.platform == "linux" else "RSS"
"""What is summed over processes: the proportional set size, in which shared pages count once; where
the system does not tell it, the resident set size."""

MEMORY_EVERY_S = 0.5

LEAST_SPANS = 3
"""The first shows the start, the last the end, and those between the steady work."""

REPEATED_BYTES = 2**30
"""A repeated video takes no more of the temporary folder: it is repeated less often."""


@dataclass(frozen=True)
class Whole:
    """A whole analysis in a process of its own, from the video to the results.

    Attributes:
        startup_seconds: from the process's start, imports included, until the first span is done.
        steady: the spans after it but the last, beside which no other is detected.
        total_seconds: from the process's start to its end, with the results in place.
        frames: in the results.
        faces: in the results.
        peak_memory_bytes: most memory of all its processes together.
        memory: what that is, "PSS" or "RSS".
    """

    startup_seconds: float
    steady: Speed
    total_seconds: float
    frames: int
    faces: int
    peak_memory_bytes: int
    memory: str = MEMORY


@dataclass(frozen=True)
class EveryFrame:
    """The whole with faces detected on every frame.

    Attributes:
        whole: its figures.
        agreement: of what was measured, where faces are followed between detections, with it.
    """

    whole: Whole
    agreement: Agreement


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        settings: as they were resolved.
        checkpoint: the network's.
        video: what was analyzed; its name is that of the file it was made of.
        copies: how often it repeats that file.
        stages: each of `STAGES` alone; None for one that works on faces, where none are shown.
        whole: all of them, as `emopipe analyze --local` runs them.
        roofline: the network in whole batches, and a matrix product.
        detector_flop_per_frame: see `Stages`.
        plain_loop: see `measure_plain_loop`.
        every_frame: the other way, where faces are not detected on every frame.
    """

    settings: Settings
    checkpoint: Checkpoint
    video: Video
    copies: int
    stages: dict[str, Speed | None]
    whole: Whole
    roofline: Roofline
    detector_flop_per_frame: int | None
    plain_loop: Speed
    every_frame: EveryFrame | None

    @property
    def seconds_per_frame(self) -> float:
        """What a frame would take if the stages ran one after the other."""
        # Each span begins with a detection.
        detections = math.ceil(SPAN_FRAMES / self.settings.detect_every)
        share = {"detect": detections / SPAN_FRAMES}
        return sum(
            speed.seconds_per_frame * share.get(name, 1)
            for name, speed in self.stages.items()
            if speed
        )

    @property
    def times_stages_in_sequence(self) -> float:
        """The whole's speed over that of the stages one after the other: above 1, they overlap."""
        return self.whole.steady.frames_per_second * self.seconds_per_frame

    @property
    def detector_flop_per_second(self) -> float | None:
        """What the speed of detection alone amounts to."""
        detect = self.stages["detect"]
        if detect is None or self.detector_flop_per_frame is None:
            return None
        return detect.frames_per_second * self.detector_flop_per_frame

    @property
    def detector_share(self) -> float | None:
        """The same over the matrix product's; None where that is of another device or precision."""
        reached, network = self.detector_flop_per_second, self.settings
        if reached is None or detector_runs(network) != (network.device, network.precision):
            return None
        return reached / self.roofline.matrix_flop_per_second

    @property
    def times_plain_loop(self) -> float:
        """The whole's speed over the plain loop's."""
        return self.whole.steady.frames_per_second / self.plain_loop.frames_per_second


def measure(
    path: str | Path,
    settings: Settings,
    frames: int,
    seconds: float,
    on_phase: Callable[[str], None] = lambda _: None,
) -> Bench:
    """Measure an analysis of a video.

    Args:
        path: the video.
        settings: how to analyze it.
        frames: sampled frames to measure on; a shorter video is repeated, of a longer one the
            first are taken.
        seconds: how long to measure each stage, at least.
        on_phase: is told what is measured next.

    Raises:
        BenchError: `path` is not one video, or too short a one that cannot be repeated.
        EmopipeError: the video, a checkpoint or a detector cannot be used.
    """
    file = _only_video(path)
    with tempfile.TemporaryDirectory(prefix="emopipe-bench-") as scratch, Decoder() as decoder:
        on_phase("loading")
        folder = Path(scratch)
        use_threads(settings.threads)
        model, checkpoint = open_model(settings.model, settings.classes)
        settings = resolved(settings, checkpoint)
        video, copies = _long_enough(file, settings, frames, decoder, folder)
        wanted = sampler(settings)(video)[:frames]
        if len(wanted) <= (LEAST_SPANS - 1) * SPAN_FRAMES:
            raise BenchError(
                f"{path} has {counted(len(wanted), 'frame')} to measure on and cannot be repeated: "
                f"use a video of more than {(LEAST_SPANS - 1) * SPAN_FRAMES}"
            )
        predictor = load_predictor(settings, model, checkpoint)
        out = folder / "stage.parquet"
        stages = Stages(settings, predictor, decoder, video, wanted, out)
        speeds = {}
        for stage in STAGES:
            on_phase(stage)
            speeds[stage] = stages.measure(stage, seconds)
        on_phase("roofline")
        roofline = measure_roofline(predictor, seconds)
        detector_flop = stages.detector_flop_per_frame()
        on_phase("plain loop")
        plain_loop = measure_plain_loop(settings, video.path, seconds)
        on_phase("whole")
        limited, out = _until(settings, video, int(wanted[-1])), folder / "whole.parquet"
        whole = _whole(video.path, out, limited)
        every_frame = None
        if settings.detect_every > 1:
            on_phase("whole, with every frame detected")
            every_frame = _every_frame(video.path, out, limited)
    return Bench(
        settings=settings,
        checkpoint=checkpoint,
        video=video,
        copies=copies,
        stages=speeds,
        whole=whole,
        roofline=roofline,
        detector_flop_per_frame=detector_flop,
        plain_loop=plain_loop,
        every_frame=every_frame,
    )


def summed_memory(process: psutil.Process) -> int:
    """Memory of a process and all its descendants in bytes, see `MEMORY`."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += getattr(one.memory_full_info(), MEMORY.lower())
    return total


def _only_video(path: str | Path) -> InputFile:
    """The one video of a path.

    Raises:
        EmopipeError: there is none, or more.
    """
    files = find_inputs([path]).files
    if len(files) > 1:
        raise BenchError(f"`video` is one video, and {path} has {counted(len(files), 'input')}")
    [file] = files
    if file.problem:
        raise BenchError(file.problem)
    if file.path.suffix.lower() in IMAGE_SUFFIXES:
        raise BenchError(f"`video` is a video, and {path} an image")
    return file


def _long_enough(
    file: InputFile, settings: Settings, frames: int, decoder: Decoder, folder: Path
) -> tuple[Video, int]:
    """Probe a video, or one that repeats it if it has too few sampled frames, and how often."""
    video = decoder.probe(file.path, file.name, settings.backend, settings.deinterlace)
    sampled = len(sampler(settings)(video))
    copies = min(math.ceil(frames / max(1, sampled)), REPEATED_BYTES // video.size)
    if sampled and copies > 1:
        longer = folder / "repeated.mkv"
        with suppress(ReadError, VideoError, DecodeError):  # it is measured as it is
            repeat(file.path, copies, longer)
            again = decoder.probe(longer, file.name, settings.backend, settings.deinterlace)
            return again, copies
    return video, 1


def _until(settings: Settings, video: Video, last: int) -> Settings:
    """Settings with which the analysis ends at that frame of a video."""
    if last + 1 == video.frames:
        return settings
    return replace(settings, end=float(video.times[last + 1]))


def _whole(path: Path, out: Path, settings: Settings) -> Whole:
    """Run the engine of one process in a process of its own.

    Raises:
        BenchError: it fails.
    """
    spans, total_seconds, peak = _run_child((path, out, settings), out.with_suffix(".errors"))
    [record] = read_records(videos_path(out))
    if len(spans) < LEAST_SPANS:
        raise BenchError(f"the whole analysis fails: {record.error}")
    (startup_seconds, *_), (last_but_one, *_) = spans[0], spans[-2]
    return Whole(
        startup_seconds=startup_seconds,
        steady=Speed(
            frames=sum(frames for _, frames, _ in spans[1:-1]),
            faces=sum(faces for _, _, faces in spans[1:-1]),
            seconds=last_but_one - startup_seconds,
        ),
        total_seconds=total_seconds,
        frames=record.frames,
        faces=record.faces,
        peak_memory_bytes=peak,
    )


def _every_frame(path: Path, out: Path, settings: Settings) -> EveryFrame:
    """Run it with faces detected on every frame, and compare the results in `out` with these."""
    reference = out.with_stem("every_frame")
    whole = _whole(path, reference, replace(settings, detect_every=1))
    return EveryFrame(whole, agreement(read_results(reference), read_results(out)))


def _run_child(
    task: bench_child.Task, errors: Path
) -> tuple[list[tuple[float, int, int]], float, int]:
    """Run `bench_child`.

    Returns:
        Each span's seconds from the start until it was done, its frames and its faces; the seconds
        until the end; the most memory, in bytes.

    Raises:
        BenchError: it fails.
    """
    begun = time.perf_counter()
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-P", "-m", bench_child.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C ends this process, and this one the child
        ) as child,
        _MemoryWatch(child.pid) as memory,
    ):
        assert child.stdin and child.stdout
        try:
            with suppress(BrokenPipeError), child.stdin as stdin:
                pickle.dump(task, stdin)
            lines = (map(int, line.split()) for line in child.stdout)
            spans = [(time.perf_counter() - begun, frames, faces) for frames, faces in lines]
            child.wait()
        finally:
            child.kill()
    if child.returncode:
        reason = errors.read_text(errors="replace").strip().rpartition("\n")[2]
        raise BenchError(f"the whole analysis fails: {reason or f'status {child.returncode}'}")
    return spans, time.perf_counter() - begun, memory.peak


class _MemoryWatch:
    """Notes the most memory that a process and all its descendants take. A context manager.

    Attributes:
        peak: bytes.
    """

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(MEMORY_EVERY_S):
            self.peak = max(self.peak, summed_memory(self._process))

"""`emopipe bench`: how fast an analysis is on this machine, and what that compares with."""

import json
import platform
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.fields import check_settings, setting
from emopipe.emonet.runtime import available_cores
from emopipe.jobs.cli.base import Command, option, table_console
from emopipe.jobs.cli.options import build, options_of
from emopipe.pipeline.media.sampling import SPAN_FRAMES
from emopipe.pipeline.settings import Settings
from emopipe.pipeline.storage import printable

if TYPE_CHECKING:  # loaded by the run only: PyTorch takes seconds that --help need not wait
    from emopipe.pipeline.bench import Bench, EveryFrame, Whole
    from emopipe.pipeline.bench_stages import Speed

FIELDS = (
    *("backend", "detector", "detector_weights", "detect_every", "detect_size", "model", "mirror"),
    *("device", "precision", "runtime", "faces_per_batch", "threads"),
)
"""The fields of `Settings` that change how fast a frame is."""

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Effort:
    """How much is measured: each field is an option."""

    frames: int = setting(
        1000,
        "Frames to measure on: a shorter video is repeated, of a longer one the first are taken.",
        group="input",
        least=3 * SPAN_FRAMES,
    )
    seconds: float = setting(
        3.0, "How long to measure each stage, at least.", group="input", above=0
    )

    def __post_init__(self) -> None:
        check_settings(self, EmopipeError)


@click.command(cls=Command)
@click.argument("video", required=False)
@options_of(Effort())
@options_of(Settings(), only=FIELDS)
@option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(video: str | None, as_json: bool, **options: Any) -> None:
    """Measure how fast a video is analyzed on this machine. It takes a minute or two.

    Without VIDEO, on the sample that `make demo` makes. Each stage is measured alone, then the
    whole as `emopipe analyze --local` runs it, in a process of its own. Beside them: a plain loop
    (one frame, its largest face, float32, no batches) and the roofline, a large matrix product in
    the network's precision.
    """
    settings, effort = build(Settings, options), build(Effort, options)
    # Loaded here: PyTorch takes seconds that --help need not wait.
    from emopipe.pipeline.bench import measure

    status = Console(stderr=True).status("measuring")
    with tempfile.TemporaryDirectory(prefix="emopipe-bench-") as scratch, status:
        measured = measure(
            video or _sample(Path(scratch)),
            settings,
            effort.frames,
            effort.seconds,
            lambda phase: status.update(f"measuring: {phase}"),
        )
    if as_json:
        click.echo(json.dumps(_figures(measured), indent=2))
    else:
        _show(measured)


def _sample(folder: Path) -> Path:
    """Make the sample video."""
    try:
        from emopipe.jobs.demo import make_video
    except ImportError as error:
        raise EmopipeError(
            f"`video` is missing, and the sample cannot be made without scikit-image ({error}): "
            f"name a video, or pip install scikit-image"
        ) from error
    path = folder / "sample.mp4"
    make_video(path)
    return path


def _figures(bench: "Bench") -> dict[str, Any]:
    """All that was measured, with units in the names."""
    roofline, other = bench.roofline, bench.every_frame
    return {
        "machine": _machine(bench),
        "video": {
            "name": printable(bench.video.name),
            "width": bench.video.width,
            "height": bench.video.height,
            "copies": bench.copies,
        },
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(bench.settings).items()
            if name in FIELDS
        },
        "stages": {name: speed and _speed(speed) for name, speed in bench.stages.items()},
        "stages_in_sequence_ms_per_frame": bench.seconds_per_frame * 1e3,
        "whole": {
            **_whole(bench.whole),
            "times_stages_in_sequence": bench.times_stages_in_sequence,
            "times_plain_loop": bench.times_plain_loop,
        },
        "every_frame_detected": other
        and {**_whole(other.whole), "agreement": asdict(other.agreement)},
        "plain_loop": _speed(bench.plain_loop),
        "roofline": {
            "matrix_side": roofline.matrix_side,
            "matrix_gflop_per_second": roofline.matrix_flop_per_second / 1e9,
            "network_gflop_per_face": roofline.flop_per_face / 1e9,
            "network_faces_per_batch": roofline.faces_per_batch,
            "network_faces_per_second": roofline.faces_per_second,
            "network_gflop_per_second": roofline.network_flop_per_second / 1e9,
            "network_share": roofline.share,
            "detector_gflop_per_frame": _giga(bench.detector_flop_per_frame),
            "detector_gflop_per_second": _giga(bench.detector_flop_per_second),
            "detector_share": bench.detector_share,
        },
    }


def _giga(value: float | None) -> float | None:
    return None if value is None else value / 1e9


def _speed(speed: "Speed") -> dict[str, float]:
    return {
        "ms_per_frame": speed.seconds_per_frame * 1e3,
        "frames_per_second": speed.frames_per_second,
        "faces_per_second": speed.faces_per_second,
        "frames": speed.frames,
        "faces": speed.faces,
        "seconds": speed.seconds,
    }


def _whole(whole: "Whole") -> dict[str, Any]:
    return {
        **_speed(whole.steady),
        "startup_seconds": whole.startup_seconds,
        "total_seconds": whole.total_seconds,
        "total_frames": whole.frames,
        "total_faces": whole.faces,
        "peak_memory_mib": whole.peak_memory_bytes / MIB,
        "memory": whole.memory,
    }


def _machine(bench: "Bench") -> dict[str, Any]:
    """What the figures hold for: the processors, their memory, and the versions of what works."""
    import av
    import cv2
    import torch

    device = bench.settings.device
    return {
        "cpu": _cpu(),
        "cores": available_cores(),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "versions": {
            "emopipe": version("emopipe"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            **({"openvino": version("openvino")} if bench.settings.runtime == "openvino" else {}),
            "opencv": cv2.__version__,
            "av": av.__version__,
        },
    }


def _cpu() -> str:
    """The processor's model, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _show(bench: "Bench") -> None:
    """Print the figures for people."""
    console = table_console()
    for line in _header(bench):
        console.print(escape(line), highlight=False, soft_wrap=True)
    console.print("", _speeds(bench), "", sep="\n")
    for line in _conclusions(bench):
        console.print(escape(line), highlight=False, soft_wrap=True)


def _header(bench: "Bench") -> list[str]:
    """What was measured on."""
    machine, settings, video = _machine(bench), bench.settings, bench.video
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    repeated = f", repeated {bench.copies} times" if bench.copies > 1 else ""
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB{gpu}",
        ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
        f"{printable(video.name)}, {video.width}×{video.height}{repeated}: "
        f"{bench.whole.frames:,} frames, {bench.whole.faces:,} faces",
        f"model {bench.checkpoint.name} in {settings.precision} on {settings.device}"
        f"{', with mirror images' if settings.mirror else ''}; detector {settings.detector} at "
        f"{settings.detect_size} px; runtime {settings.runtime}",
    ]


def _speeds(bench: "Bench") -> Table:
    """A row for each stage, for the whole and for the plain loop."""
    table = Table("", box=None, pad_edge=False)
    for heading in ("ms/frame", "frames/s", "faces/s"):
        table.add_column(heading, justify="right")
    rows = {f"{name} alone": speed for name, speed in bench.stages.items()}
    rows |= {"whole, once it runs": bench.whole.steady, "plain loop": bench.plain_loop}
    for name, speed in rows.items():
        figures: tuple[float | None, ...] = (None,) * 3
        if speed:
            ms = speed.seconds_per_frame * 1e3
            figures = (ms, speed.frames_per_second, speed.faces_per_second)
        table.add_row(name, *map(_figure, figures))
    return table


def _conclusions(bench: "Bench") -> list[str]:
    """The figures that are no speeds of frames."""
    whole, missing = bench.whole, [name for name, speed in bench.stages.items() if not speed]
    lines = [
        f"Start-up: {whole.startup_seconds:.1f} s from the process's start until its first "
        f"{SPAN_FRAMES} frames are done; with the end {whole.total_seconds:.1f} s in all.",
        f"Memory: {whole.peak_memory_bytes / MIB:,.0f} MiB at most, the {whole.memory} of all "
        f"processes of the whole together.",
        f"The whole is {bench.times_stages_in_sequence:.2f} times as fast as its stages one after "
        f"the other, {bench.times_plain_loop:.1f} times as fast as the plain loop.",
        *_roofline(bench),
    ]
    if missing:
        lines.append(f"Not measured: {' and '.join(missing)}, as no face is found.")
    if bench.every_frame:
        lines.append(_agreement(bench, bench.every_frame))
    return lines


def _roofline(bench: "Bench") -> list[str]:
    """What the machine can do, and how much of it network and detector reach."""
    from emopipe.pipeline.bench_stages import detector_runs

    roofline = bench.roofline
    lines = [
        f"Roofline: {_figure(roofline.matrix_flop_per_second / 1e9)} GFLOP/s in a product of "
        f"{roofline.matrix_side}×{roofline.matrix_side} matrices in {bench.settings.precision}.",
        f"The network takes {_figure(roofline.flop_per_face / 1e9)} GFLOP a face: at "
        f"{_figure(roofline.faces_per_second)} faces/s in batches of {roofline.faces_per_batch} "
        f"it reaches {_figure(roofline.network_flop_per_second / 1e9)} GFLOP/s, "
        f"{roofline.share:.0%} of the roofline.",
    ]
    if bench.detector_flop_per_second:
        share, (device, precision) = bench.detector_share, detector_runs(bench.settings)
        compared = f", {share:.0%} of the roofline" if share else f" in {precision} on {device}"
        lines.append(
            f"The detector takes {_figure(_giga(bench.detector_flop_per_frame))} GFLOP a frame: it "
            f"reaches {_figure(_giga(bench.detector_flop_per_second))} GFLOP/s{compared}."
        )
    return lines


def _agreement(bench: "Bench", other: "EveryFrame") -> str:
    """What it gains to follow faces between detections, and how far the results are off."""
    gain = bench.whole.steady.frames_per_second / other.whole.steady.frames_per_second
    option, seen = f"--detect-every {bench.settings.detect_every}", other.agreement
    faster = f"With {option} the whole is {gain:.1f} times as fast as without"
    if not seen.faces_found:
        return f"{faster}; no face is found in both ways."
    landmarks = (
        ""
        if seen.landmark_distance is None
        else f"landmarks {seen.landmark_distance:.2%} of the outer eye corners' distance away, "
    )
    return (
        f"{faster}. Without, {seen.faces:,} faces are found: with it {seen.faces_found:.1%} of "
        f"them, and {seen.faces_added:.1%} more. {seen.same_emotion:.1%} have the same emotion, "
        f"{landmarks}valence {seen.valence_mean:.3f} away on average and {seen.valence_max:.3f} at "
        f"most."
    )


def _figure(value: float | None) -> str:
    """Three digits or more; a dash for what was not measured."""
    if value is None:
        return "—"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

"""The `emopipe` command."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from emopipe.emonet.errors import EmopipeError
from emopipe.jobs import EXIT_INTERRUPTED
from emopipe.jobs.cli.doctor import doctor
from emopipe.jobs.cli.evaluate import evaluate
from emopipe.jobs.cli.finetune import finetune
from emopipe.jobs.cli.models import models
from emopipe.jobs.cli.pretrain import pretrain
from emopipe.pipeline.faces.detectors import DETECTORS, LONG_SIDE
from emopipe.pipeline.media.video import BACKENDS, DEFAULT_BACKEND
from emopipe.pipeline.settings import CROPS, DEFAULT_DETECTOR, DEFAULT_MODEL, PRECISIONS, Settings
from emopipe.pipeline.table.results import LANDMARK_TYPES, VideoRecord, videos_path

EXIT_SOME_FAILED = 3


class _Sentences(click.Group):
    """A group that prints our own errors as one sentence instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EmopipeError as error:
            raise click.UsageError(str(error)) from error


@click.group(cls=_Sentences, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="emopipe")
def main() -> None:
    """Emotion, valence, arousal and 68 landmarks of every face in folders of videos.

    Exit status: 0 all is done; 2 the command cannot be carried out as given; 3 it is done, but
    some inputs failed in part or whole; 130 stopped by Ctrl-C.
    """


main.add_command(models)
main.add_command(doctor)
main.add_command(pretrain)
main.add_command(finetune)
main.add_command(evaluate)


def _analysis_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say how to analyze: fields of `Settings` and `Selection`."""
    for option in reversed(
        [
            click.option(
                "--model",
                default=DEFAULT_MODEL,
                envvar="EMOPIPE_MODEL",
                show_default=True,
                show_envvar=True,
                help="Name of a model (see `emopipe models list`) or path of a checkpoint.",
            ),
            click.option(
                "--classes",
                metavar="A,B,C",
                help="Names for the model's classes, in its order, instead of its own.",
            ),
            click.option(
                "--detector",
                type=click.Choice(list(DETECTORS)),
                default=DEFAULT_DETECTOR,
                show_default=True,
                help="What finds the faces.",
            ),
            click.option(
                "--detector-weights",
                type=click.Path(path_type=Path),
                help="File or folder of the detector's weights, instead of fetched ones.",
            ),
            click.option(
                "--detect-size",
                type=click.IntRange(1),
                default=LONG_SIDE,
                show_default=True,
                help="Larger frames are shrunk to this long side for detection, pixels.",
            ),
            click.option(
                "--min-score",
                type=click.FloatRange(0, 1),
                help="Least score of a face.  [default: the detector's own]",
            ),
            click.option(
                "--min-size",
                type=click.FloatRange(0),
                default=0.0,
                help="Smallest face: mean side of its box, pixels of the frame.",
            ),
            click.option(
                "--max-faces", type=click.IntRange(1), help="Most faces a frame, best scores first."
            ),
            click.option(
                "--faces",
                type=click.Choice(["all", "largest"]),
                default="all",
                show_default=True,
                help="All faces of a frame, or its largest.",
            ),
            click.option(
                "--roi",
                metavar="X1,Y1,X2,Y2",
                help="Only faces whose centre lies in this rectangle, pixels of the frame.",
            ),
            click.option(
                "--backend",
                type=click.Choice(BACKENDS),
                default=DEFAULT_BACKEND,
                show_default=True,
                help="What decodes; decord (slower) where it reads a video as PyAV does.",
            ),
            click.option(
                "--crop",
                type=click.Choice(CROPS),
                default=CROPS[0],
                show_default=True,
                help="The published evaluation's square around the landmarks, or the published "
                "demo's stretched box of the detector.",
            ),
            click.option(
                "--stride",
                type=click.IntRange(1),
                default=1,
                show_default=True,
                help="Look at every so many-th frame.",
            ),
            click.option(
                "--fps", type=float, help="Look at so many frames a second, instead of --stride."
            ),
            click.option("--start", type=float, help="Seconds from where on to look."),
            click.option("--end", type=float, help="Seconds up to where to look."),
            click.option(
                "--landmarks",
                type=click.Choice(LANDMARK_TYPES),
                default=LANDMARK_TYPES[0],
                show_default=True,
                help="Type of the landmarks' column; none leaves it out.",
            ),
            click.option(
                "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, mps."
            ),
            click.option(
                "--precision",
                type=click.Choice(PRECISIONS),
                default=PRECISIONS[0],
                show_default=True,
                help="Of the network; auto is the fastest that the device does natively.",
            ),
            click.option(
                "--faces-per-batch",
                type=click.IntRange(1),
                help="Crops a forward pass.  [default: by device]",
            ),
            click.option(
                "--threads",
                type=click.IntRange(1),
                help="CPU threads of detection and network.  [default: all cores]",
            ),
        ]
    ):
        command = option(command)
    return command


@main.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="results.parquet",
    show_default=True,
    help="One file (*.parquet), or a folder that gets one file a video.",
)
@click.option("--overwrite", is_flag=True, help="Start anew, replacing the results that are there.")
@_analysis_options
@click.option("--local", is_flag=True, help="Work in this process, one input after the other.")
@click.option(
    "--address", help="Work on a running Ray cluster: auto, HOST:6379 or ray://HOST:10001."
)
@click.option("--cpus", type=click.IntRange(1), help="CPUs for the run.  [default: all]")
@click.option("--gpus", type=click.IntRange(0), help="GPUs for the network.  [default: all]")
@click.option("--face-actors", type=click.IntRange(1), help="Workers that decode and detect.")
@click.option(
    "--network-actors",
    type=click.IntRange(1),
    help="Workers of their own for the network.  [default: one a GPU]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the closing summary, or a dry run's plan, as JSON.",
)
def analyze(
    inputs: tuple[str, ...],
    out: Path,
    overwrite: bool,
    local: bool,
    address: str | None,
    cpus: int | None,
    gpus: int | None,
    face_actors: int | None,
    network_actors: int | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Analyze videos and pictures into one Parquet table.

    INPUTS are files, folders (searched through), globs, or .txt files with a path on each line.
    A run that was stopped goes on where it was when it is started again.
    """
    from emopipe.jobs.progress import PlanOnlyError, RunProgress
    from emopipe.pipeline.inputs import find_inputs

    settings = _settings(options)
    found = find_inputs(inputs)
    spread = (address, cpus, gpus, face_actors, network_actors)
    if local and any(value is not None for value in spread):
        raise click.UsageError(
            "--local works in this process: --address, --cpus, --gpus and actors are Ray's"
        )
    if dry_run and overwrite:
        raise click.UsageError("--dry-run changes nothing and --overwrite does: leave one out")
    if local or dry_run:
        from emopipe.pipeline.local import run
    else:
        from emopipe.jobs.analysis.driver import run as run_on_ray
        from emopipe.jobs.cluster import ClusterOptions

        run = partial(run_on_ray, options=ClusterOptions(*spread))
    console = Console(stderr=True)
    with RunProgress(console, quiet and not dry_run, dry_run) as progress:
        if settings.model == DEFAULT_MODEL:
            progress.say(
                f"model {DEFAULT_MODEL} (bundled); for the published one: "
                f"emopipe models fetch emonet-8, then --model emonet-8"
            )
        try:
            records = run(found, out, settings, overwrite, progress)
        except PlanOnlyError as planned:
            if as_json:
                click.echo(json.dumps(asdict(planned.ahead), indent=2))
            return
        except KeyboardInterrupt:
            again = "the same command without --overwrite" if overwrite else "the same command"
            progress.say(f"stopped; {again} goes on from here")
            sys.exit(EXIT_INTERRUPTED)
        summary = _summary(records, progress, out)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    elif not quiet:
        click.echo(_in_words(summary))
    sys.exit(0 if summary["ok"] == summary["inputs"] else EXIT_SOME_FAILED)


def _settings(options: dict[str, Any]) -> Settings:
    from emopipe.pipeline.faces.selection import Selection, parse_roi

    roi, classes = options.pop("roi"), options.pop("classes")
    selection = Selection(
        roi=parse_roi(roi) if roi else None,
        **{name: options.pop(name) for name in ("min_score", "min_size", "max_faces", "faces")},
    )
    names = tuple(name.strip() for name in classes.split(",")) if classes else None
    return Settings(selection=selection, classes=names, **options)


def _summary(records: list[VideoRecord], progress: Any, out: Path) -> dict[str, Any]:
    counts = Counter(record.status for record in records)
    seconds = progress.seconds
    return {
        "inputs": len(records),
        **{status: counts[status] for status in ("ok", "partial", "failed")},
        "frames": sum(record.frames for record in records),
        "faces": sum(record.faces for record in records),
        "seconds": round(seconds, 2),
        "frames_per_second": round(progress.frames / seconds, 2),
        "results": str(out),
        "videos": str(videos_path(out)),
        "problems": {r.video: r.error for r in records if r.status != "ok"},
    }


def _in_words(summary: dict[str, Any]) -> str:
    return (
        f"{summary['ok']} ok, {summary['partial']} partial, {summary['failed']} failed: "
        f"{summary['frames']:,} frames, {summary['faces']:,} faces "
        f"in {summary['seconds']:.1f} s ({summary['frames_per_second']:.1f} frames/s)\n"
        f"{summary['results']}  (videos: {summary['videos']})"
    )


if __name__ == "__main__":
    main()

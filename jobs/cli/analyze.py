"""`emopipe analyze`: videos to one table, in this process or on Ray."""

import json
import sys
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from emopipe.emonet.arguments import counted
from emopipe.jobs.cli.base import Command, name_options, option
from emopipe.jobs.cli.options import build, given, options_of
from emopipe.jobs.cluster import ENGINES, ClusterOptions
from emopipe.jobs.interrupts import last_words
from emopipe.pipeline.faces.selection import Selection
from emopipe.pipeline.settings import Settings
from emopipe.pipeline.storage import printable

if TYPE_CHECKING:  # loaded by the run only: pandas takes half a second that --help need not wait
    from emopipe.jobs.progress import RunProgress
    from emopipe.pipeline.table.schema import VideoRecord

EXIT_SOME_FAILED = 3


@click.command(cls=Command)
@click.argument("inputs", nargs=-1, required=True)
@option(
    "--out",
    type=click.Path(path_type=Path),
    default="results.parquet",
    group="output",
    help="One file (*.parquet), or a folder for one file a video.  [default: results.parquet]",
)
@option(
    "--overwrite", is_flag=True, group="output", help="Replace existing results; start from zero."
)
@options_of(Settings(), Selection())
@option(
    "--engine",
    type=click.Choice(ENGINES),
    default=ENGINES[0],
    group="cluster",
    help="Run in this process or on Ray; auto takes what is done sooner.  [default: auto]",
)
@option("--local", is_flag=True, group="cluster", help="Short for --engine local.")
@options_of(ClusterOptions())
@option("--dry-run", is_flag=True, help="Print what would be done, and stop.")
@option("--quiet", is_flag=True, help="Print errors only.")
@option("--json", "as_json", is_flag=True, help="Print the summary, or the dry run's, as JSON.")
def analyze(
    inputs: tuple[str, ...],
    out: Path,
    overwrite: bool,
    engine: str,
    local: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Analyze videos and images into one Parquet table.

    INPUTS are files, folders (searched with their subfolders), globs, or .txt files with a path on
    each line. The same command resumes a run that was stopped.
    """
    settings = build(Settings, options, selection=build(Selection, options))
    cluster = build(ClusterOptions, options)
    if local and engine != "local" and given("engine"):
        raise click.UsageError(f"--local is --engine local: leave it or --engine {engine} out")
    if dry_run and overwrite:
        raise click.UsageError("--dry-run changes nothing and --overwrite does: leave one out")
    if local or dry_run:
        engine = "local"
    if dry_run:
        cluster = ClusterOptions()
    # Loaded here: PyTorch takes seconds that --help need not wait.
    from emopipe.jobs.engine import run
    from emopipe.jobs.progress import DryRunError, RunProgress
    from emopipe.pipeline.inputs import find_inputs

    found = find_inputs(inputs)
    wording = partial(name_options, command=click.get_current_context().command)
    console = Console(stderr=True)
    again = "the same command without --overwrite" if overwrite else "the same command"
    with (
        RunProgress(console, quiet and not dry_run, dry_run, wording=wording) as progress,
        last_words(lambda: progress.say(f"stopped; {again} resumes here")),
    ):
        try:
            records = run(found, out, settings, overwrite, progress, engine=engine, cluster=cluster)
        except DryRunError as stopped:
            if as_json:
                click.echo(json.dumps(asdict(stopped.estimate), indent=2))
            return
        summary = _summary(records, progress, out)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    elif not quiet:
        click.echo(printable(_in_words(summary)))
    sys.exit(0 if summary["ok"] == summary["inputs"] else EXIT_SOME_FAILED)


def _summary(records: "list[VideoRecord]", progress: "RunProgress", out: Path) -> dict[str, Any]:
    from emopipe.pipeline.table.records import is_gone
    from emopipe.pipeline.table.results import videos_path

    counts = Counter(record.status for record in records)
    seconds = progress.seconds
    return {
        "inputs": len(records),
        **{status: counts[status] for status in ("ok", "partial", "failed")},
        "frames": sum(record.frames for record in records),
        "faces": sum(record.faces for record in records),
        "frames_before": progress.frames_before,
        "seconds": round(seconds, 2),
        "frames_per_second": round(progress.frames / seconds, 2),
        "results": str(out),
        "videos": str(videos_path(out)),
        "others": {
            "inputs": len(progress.others),
            "gone": sum(map(is_gone, progress.others)),
            "frames": sum(record.frames for record in progress.others),
            "faces": sum(record.faces for record in progress.others),
        },
        "problems": {r.video: progress.wording(str(r.error)) for r in records if r.status != "ok"},
    }


def _in_words(summary: dict[str, Any]) -> str:
    rate = f"in {summary['seconds']:.1f} s ({summary['frames_per_second']:.1f} frames/s)"
    if not summary["frames_before"]:
        when = f" {rate}"
    elif summary["frames_before"] < summary["frames"]:
        when = f", {summary['frames_before']:,} of the frames by an earlier run, the others {rate}"
    else:
        when = ", all by an earlier run"
    return (
        f"{summary['ok']} ok, {summary['partial']} partial, {summary['failed']} failed: "
        f"{counted(summary['frames'], 'frame')}, {counted(summary['faces'], 'face')}{when}\n"
        f"{_others_in_words(summary['others'])}"
        f"{summary['results']}  (videos: {summary['videos']})"
    )


def _others_in_words(others: dict[str, int]) -> str:
    """What the output holds besides what was named, a line; empty for nothing."""
    if not others["inputs"]:
        return ""
    inputs, gone = others["inputs"], others["gone"]
    which = f"{counted(inputs, 'input')} of earlier runs not named here"
    files = "its file is" if inputs == 1 else "their files are" if gone == inputs else ""
    some = f"{gone:,} of their files {'is' if gone == 1 else 'are'}"
    missing = f" ({files or some} gone)" if gone else ""
    return (
        f"also in the results: {which}{missing}: {others['frames']:,} frames, "
        f"{others['faces']:,} faces; --overwrite leaves them out\n"
    )

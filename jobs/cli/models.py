"""`emopipe models`: list, describe, fetch and verify weights."""

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as Speed
from rich.table import Table

from emopipe.emonet import download, registry
from emopipe.emonet.download import ConsentError, FetchError
from emopipe.emonet.errors import EmopipeError
from emopipe.emonet.registry import ENTRIES, REGISTRY, MissingWeightsError, Status, WeightFile
from emopipe.jobs.cli.base import Group, name_options, table_console

ENTRY = click.Choice(ENTRIES)
FILE = click.Choice(list(REGISTRY))
PUBLISHED_OUTPUT_MODEL = "emonet-8"  # its authors publish its output for an example image


@click.group(cls=Group)
def models() -> None:
    """List, describe, fetch and verify models and face detectors."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(as_json: bool) -> None:
    """List models and detectors with their state on this machine."""
    facts = [_facts(name) for name in ENTRIES]
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    table = Table("name", "kind", "state", "size", "license", "classes", box=None, pad_edge=False)
    for row in facts:
        size = decimal(row["bytes"]) if row["bytes"] else "—"
        classes = str(len(row["classes"]) or "—")
        table.add_row(row["name"], row["kind"], row["state"], size, row["license"], classes)
    table_console().print(table)
    for row in facts:
        if row["note"]:
            click.echo(f"{row['name']}: {row['note']}")


@models.command()
@click.argument("name", type=ENTRY)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def info(name: str, as_json: bool) -> None:
    """Describe one model or detector: facts and, of a model, its card."""
    facts = _facts(name)
    if as_json:
        click.echo(json.dumps(facts | {"card": registry.card(name)}, indent=2))
        return
    for key, value in facts.items():
        if value:
            click.echo(f"{key + ':':17}{', '.join(value) if isinstance(value, list) else value}")
    if card := registry.card(name):
        from rich.markdown import Markdown

        click.echo()
        console = table_console()
        # A terminal hides a link's address behind its text, a file cannot.
        console.print(Markdown(card, hyperlinks=console.is_terminal))


@models.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=ENTRY)
@click.option(
    "--from",
    "source",
    metavar="PATH-or-URL",
    help="Where to fetch from: a path or http(s) URL of the file, or of a folder that holds it "
    "under its published name (such a URL ends in /).",
)
@click.option(
    "--accept-license",
    is_flag=True,
    help="Accept a non-commercial license without being asked; it is asked only once.",
)
def fetch(names: tuple[str, ...], source: str | None, accept_license: bool) -> None:
    """Download weights into the cache folder and check them.

    An interrupted download is resumed. The cache folder is EMOPIPE_CACHE, else emopipe in the
    user's cache folder. Exit status: 1 if one could not be fetched.
    """
    command = click.get_current_context().command
    failed = False
    for name in names:
        try:
            path = _fetch_consented(name, source, accept_license)
        except (FetchError, MissingWeightsError) as error:
            click.echo(f"Error: {name_options(str(error), command)}", err=True)
            failed = True
        else:
            click.echo(f"{name}: {path}")
    sys.exit(1 if failed else 0)


@models.command(short_help="Check the weights, and that models' outputs have not changed.")
@click.argument("names", metavar="[NAME]...", nargs=-1, type=ENTRY)
@click.option(
    "--picture",
    "image",
    type=click.Path(path_type=Path),
    help="The authors' images/example.png: emonet-8 must give the output they publish for it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def verify(names: tuple[str, ...], image: Path | None, as_json: bool) -> None:
    """Check the weights' size and SHA-256, and that models give the outputs they gave at first.

    Without NAME, checks all weights on this machine. Exit status: 1 if one is damaged, is named and
    missing, or gives other outputs.
    """
    if image and names and PUBLISHED_OUTPUT_MODEL not in names:
        raise click.UsageError(
            f"--picture checks {PUBLISHED_OUTPUT_MODEL}, the only model with a published output "
            f"for this image: name it too, or leave --picture out"
        )
    outcomes = [_verified(name, image, named=bool(names)) for name in names or ENTRIES]
    if as_json:
        click.echo(json.dumps(outcomes, indent=2))
    else:
        for outcome in outcomes:
            notes = "; ".join(outcome["notes"])
            verdict = "" if outcome["passed"] else "FAILED: "
            click.echo(f"{verdict}{outcome['name']}: {outcome['state']}{notes and f' ({notes})'}")
    sys.exit(0 if all(outcome["passed"] for outcome in outcomes) else 1)


@models.command()
@click.argument("name", type=FILE)
def path(name: str) -> None:
    """Print the path of a file of weights on this machine."""
    try:
        click.echo(registry.locate(name))
    except MissingWeightsError as error:
        raise click.ClickException(str(error)) from error


def _facts(name: str) -> dict[str, Any]:
    file = registry.lookup(name)
    status = registry.verify(name, content=False)
    return {
        "name": name,
        "kind": file.kind,
        "state": status.state,
        "reason": status.reason,
        "path": str(status.path),
        "bytes": sum(part.size for part in registry.parts(name)),
        "sha256": file.sha256,
        "url": file.url,
        "license": file.license,
        "non_commercial": file.non_commercial,
        "source": file.source,
        "classes": list(file.classes),
        "valence_arousal": file.valence_arousal,
        "mirror": file.mirror,
        "note": file.valence_arousal_note,
    }


def _fetch_consented(name: str, source: str | None, accept_license: bool) -> Path:
    """Fetch; on a terminal, ask for consent to a license that needs it."""
    try:
        return _fetch_shown(name, source, accept_license)
    except ConsentError:
        if not sys.stdin.isatty():
            raise
        terms = registry.lookup(name).license
        click.echo(f"{name} is for non-commercial use only: {registry.lookup(name).source}")
        click.confirm(f"Do you accept its license, {terms}?", abort=True)
        return _fetch_shown(name, source, True)


def _fetch_shown(name: str, source: str | None, accept_license: bool) -> Path:
    """Fetch with a progress bar on a terminal, silently elsewhere."""
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks = {part: bar.add_task(part.file, total=part.size) for part in registry.parts(name)}

        def show(part: WeightFile, done: int) -> None:
            bar.update(tasks[part], completed=done)

        return download.fetch(name, source, accept_license=accept_license, progress=show)


def _verified(name: str, image: Path | None, *, named: bool) -> dict[str, Any]:
    """Check an entry's files and, for a model whose files are intact, its outputs."""
    status = registry.verify(name)
    intact = status.state not in ("missing", "damaged")
    notes = [status.reason] if status.reason else []
    passed = intact or (status.state == "missing" and not named)
    if intact and registry.lookup(name).kind == "model":
        passed, findings = _outputs(status, image)
        notes += findings
    return {"name": name, "state": status.state, "passed": passed, "notes": notes}


def _outputs(status: Status, image: Path | None) -> tuple[bool, list[str]]:
    """Check a model's outputs: whether they are as recorded, and the findings."""
    # Loaded here: PyTorch takes seconds that the other commands need not wait.
    from emopipe.emonet import checkpoint, golden_outputs
    from emopipe.emonet.predictor import Predictor

    try:
        model, description = checkpoint.load(status.path, status.name)
        predictor = Predictor(model, description, device="cpu", precision="float32")
        checks = [golden_outputs.check_record(predictor)]
        if image and status.name == PUBLISHED_OUTPUT_MODEL:
            checks.append(golden_outputs.check_example(predictor, image))
    except EmopipeError as error:
        return False, [name_options(str(error), click.get_current_context().command)]
    return all(check.passed for check in checks), [check.finding for check in checks]

"""`emopipe evaluate`: scores of a checkpoint on labelled data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emopipe.emonet.errors import EvaluationError
from emopipe.jobs.cli.base import Command, option, table_console
from emopipe.jobs.cli.options import build, given, options_of, people_option
from emopipe.pipeline.settings import Settings

if TYPE_CHECKING:  # loaded by the run only: PyTorch takes seconds that --help need not wait
    from emopipe.emonet.predictor import Predictor
    from emopipe.jobs.training.report import Report

_NETWORK = ("model", "device", "precision")  # fields of `Settings`


@click.command(cls=Command)
@option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    group="data",
    help="FER2013 (CSV, also packed, or folder); a CSV of images with expression, valence, "
    "arousal; or, with --results, a CSV of video, time (s), valence, arousal, and, where several "
    "people are rated, person.",
)
@option(
    "--results",
    type=click.Path(path_type=Path, exists=True),
    group="data",
    help="What `emopipe analyze` made of the annotated videos: file or folder.",
)
@people_option
@option(
    "--root",
    type=click.Path(path_type=Path),
    group="data",
    help="Folder that images' paths are relative to.",
)
@option(
    "--ferplus",
    type=click.Path(path_type=Path),
    group="data",
    help="fer2013new.csv: FER+'s majority.",
)
@option(
    "--skip-bad", is_flag=True, group="data", help="Leave out FER2013 rows that cannot be read."
)
@options_of(Settings(), only=_NETWORK)
@option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
def evaluate(
    data: Path,
    results: Path | None,
    people: Path | None,
    root: Path | None,
    ferplus: Path | None,
    skip_bad: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Score a model on labelled images or results on annotated videos.

    Classes are matched by name, and those that one side lacks are named. Images are scored plain
    and averaged with their mirror images.
    """
    columns = _columns(data)
    images = not results and not data.is_dir() and "pixels" not in columns
    for applies, unused in (
        (results, (*_NETWORK, "ferplus", "skip_bad")),
        (images, ("ferplus", "skip_bad")),
        (not images, ("root",)),
        (not results, ("people",)),
    ):
        if applies and (named := given(*unused)):
            raise click.UsageError(
                f"--{named[0].replace('_', '-')} does not apply to scoring {data}: leave it out"
            )
    if results:
        report = _score_results(data, results, people)
    elif {"video", "time"} <= columns:
        raise EvaluationError(
            f"{data} annotates videos: analyze them first, and give the results as `results`"
        )
    else:
        from emopipe.emonet.checkpoint import open_model
        from emopipe.emonet.predictor import Predictor

        network = build(Settings, options)
        predictor = Predictor(*open_model(network.model), network.device, network.precision)
        if images:
            report = _score_images(predictor, data, root)
        else:
            report = _score_fer2013(predictor, data, ferplus, skip_bad)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        from emopipe.jobs.training.report import show

        show(report, table_console())


def _columns(data: Path) -> set[str]:
    """The columns of a CSV file, in lower case; none of a folder."""
    from emopipe.emonet.data.csv_files import column_names
    from emopipe.emonet.data.fer2013 import FILE_NAMES

    return set() if data.is_dir() else set(column_names(data, EvaluationError, FILE_NAMES))


def _score_fer2013(
    predictor: "Predictor", data: Path, ferplus: Path | None, skip_bad: bool
) -> "Report":
    from emopipe.emonet.data import fer2013
    from emopipe.emonet.evaluation import evaluate_fer2013

    return evaluate_fer2013(predictor, fer2013.read(data, ferplus=ferplus, skip_bad=skip_bad))


def _score_images(predictor: "Predictor", data: Path, root: Path | None) -> "Report":
    from emopipe.pipeline.annotations import read_images
    from emopipe.pipeline.evaluation import evaluate_images

    return evaluate_images(predictor, read_images(data, root))


def _score_results(data: Path, results: Path, people: Path | None) -> "Report":
    from emopipe.pipeline.annotations import read_continuous
    from emopipe.pipeline.evaluation import evaluate_continuous
    from emopipe.pipeline.table.results import read_results

    return evaluate_continuous(
        read_results(results, people=people, landmarks=False), read_continuous(data)
    )

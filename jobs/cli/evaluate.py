"""`emopipe evaluate`: how good a checkpoint is on labelled data."""

import csv
import gzip
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from emopipe.emonet.errors import EvaluationError
from emopipe.jobs.cli.training_options import given
from emopipe.pipeline.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from emopipe.emonet.predictor import Predictor


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="FER2013 (CSV, .gz, or folder); a CSV of pictures with expression, valence, arousal; or, "
    "with --results, a CSV of video, time, valence, arousal.",
)
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    envvar="EMOPIPE_MODEL",
    show_default=True,
    show_envvar=True,
    help="Name of a model or path of a checkpoint.",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, exists=True),
    help="What `analyze` made of the annotated videos: file or folder.",
)
@click.option(
    "--root", type=click.Path(path_type=Path), help="Folder that pictures' paths begin in."
)
@click.option("--ferplus", type=click.Path(path_type=Path), help="fer2013new.csv: FER+'s majority.")
@click.option("--skip-bad", is_flag=True, help="Leave out FER2013 rows that cannot be read.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, mps.")
@click.option("--precision", default="auto", show_default=True, help="Of the network.")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
def evaluate(
    data: Path,
    model: str,
    results: Path | None,
    root: Path | None,
    ferplus: Path | None,
    skip_bad: bool,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Score a checkpoint on labelled pictures, or results on annotated videos.

    Classes are matched by name, and those that one side lacks are named. Pictures are scored plain
    and averaged with their mirror images.
    """
    # As wide as the terminal; wide enough for every table when piped.
    console = Console(width=None if sys.stdout.isatty() else 120, quiet=as_json)
    columns = _columns(data)
    pictures = not results and not data.is_dir() and "pixels" not in columns
    for why, needless in (
        (results, ("model", "ferplus", "skip_bad", "device", "precision")),
        (pictures, ("ferplus", "skip_bad")),
        (not pictures, ("root",)),
    ):
        if why and (named := given(*needless)):
            raise click.UsageError(f"--{named[0].replace('_', '-')} has no part in scoring {data}")
    if results:
        scores = _videos(data, results, console)
    elif {"video", "time"} <= columns:
        raise EvaluationError(
            f"{data} annotates videos: analyze them first, and name the outcome with --results"
        )
    else:
        # Loaded here: PyTorch takes seconds that --help need not wait.
        from emopipe.emonet.checkpoint import open_model
        from emopipe.emonet.predictor import Predictor

        predictor = Predictor(*open_model(model), device, precision)
        if pictures:
            scores = _pictures(predictor, data, root, console)
        else:
            scores = _fer2013(predictor, data, ferplus, skip_bad, console)
    if as_json:
        click.echo(json.dumps(scores, indent=2))


def _columns(data: Path) -> set[str]:
    """The columns of a CSV file; none of a folder."""
    if data.is_dir():
        return set()
    opener: Any = gzip.open if data.suffix == ".gz" else open
    try:
        with opener(data, "rt", encoding="utf-8-sig", newline="") as stream:
            return {name.strip().lower() for name in next(csv.reader(stream), [])}
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{data} cannot be read as CSV: {error}") from error


def _fer2013(
    predictor: "Predictor", data: Path, ferplus: Path | None, skip_bad: bool, console: Console
) -> dict[str, Any]:
    import numpy as np

    from emopipe.emonet.data import fer2013
    from emopipe.emonet.evaluation import judge, matched, remembered
    from emopipe.jobs.training.report import (
        about_bad,
        class_table,
        confusion_table,
        judged_as_json,
        summary_table,
    )

    faces = fer2013.read(data, ferplus=ferplus, skip_bad=skip_bad)
    tests = {
        name: np.flatnonzero(faces.usage == i)
        for i, name in enumerate(fer2013.USAGES)
        if (faces.usage == i).any()
    }
    if len(tests) > 1:
        tests.pop(fer2013.USAGES[0], None)
    known = fer2013.standing_in_training(faces, tests)
    classes = predictor.checkpoint.classes
    _, unmatched = matched(np.zeros((0, len(classes))), classes, faces.classes)
    notes = [*unmatched, *about_bad(faces), *remembered(predictor.checkpoint, faces, tests)]
    judged = judge(predictor, faces, tests, known)
    for note in notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    console.print(summary_table(judged))
    for test in tests:
        plain, mirrored = [one for one in judged if one.test == test][-2:]
        console.print(f"\n{test}{', copies left out' if plain.without_copies else ''}:")
        console.print(class_table(plain.scores, plain.classes, mirrored.scores))
        console.print(confusion_table(mirrored.scores.confusion, plain.classes))
    return {"notes": notes, "judged": judged_as_json(judged)}


def _pictures(
    predictor: "Predictor", data: Path, root: Path | None, console: Console
) -> dict[str, Any]:
    import numpy as np

    from emopipe.emonet.evaluation import matched
    from emopipe.emonet.labels import EMOTIONS_8
    from emopipe.emonet.metrics import score_dimension, score_expressions
    from emopipe.jobs.training.report import as_json, class_table, confusion_table, dimension_table
    from emopipe.pipeline.annotations import NO_EXPRESSION, predict_pictures, read_pictures

    pictures = read_pictures(data, root)
    occurring = {EMOTIONS_8[i] for i in pictures.expression if i != NO_EXPRESSION}
    # Not only what occurs: of happy faces alone, any other answer is wrong.
    known = occurring.union(predictor.checkpoint.classes)
    classes = tuple(name for name in EMOTIONS_8 if name in known)
    expressions, dimensions = {}, {}
    notes: tuple[str, ...] = ()
    for view, mirror in (("plain", False), ("mirror", True)):
        done, said, problems = predict_pictures(predictor, pictures, mirror=mirror)
        truth = pictures.expression[done]
        labelled = truth != NO_EXPRESSION
        notes = problems
        if labelled.any():
            told, unmatched = matched(said.probabilities, predictor.checkpoint.classes, classes)
            notes = (*problems, *unmatched)
            index = [classes.index(EMOTIONS_8[i]) for i in truth[labelled]]
            expressions[view] = score_expressions(told[labelled], np.array(index))
        for i, name in enumerate(("valence", "arousal")):
            annotated = pictures.dimensions[done, i]
            rated = np.isfinite(annotated)
            if rated.any():
                predicted = getattr(said, name)[rated]
                dimensions[f"{name}, {view}"] = score_dimension(predicted, annotated[rated])
    for note in notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    console.print(f"{len(done):,} of {len(pictures.paths):,} pictures")
    if expressions:
        accuracies = ", ".join(f"{v} {s.accuracy:.3f}" for v, s in expressions.items())
        console.print(f"accuracy: {accuracies}", highlight=False)
        console.print(class_table(expressions["plain"], classes, expressions["mirror"]))
        console.print(confusion_table(expressions["mirror"].confusion, classes))
    if dimensions:
        console.print(dimension_table(dimensions))
    return {
        "pictures": len(done),
        "classes": list(classes),
        "notes": list(notes),
        **{f"expression, {view}": as_json(score) for view, score in expressions.items()},
        **{name: as_json(score) for name, score in dimensions.items()},
    }


def _videos(data: Path, results: Path, console: Console) -> dict[str, Any]:
    from emopipe.emonet.metrics import score_dimension
    from emopipe.jobs.training.report import as_json, dimension_table
    from emopipe.pipeline.annotations import join_continuous, read_continuous
    from emopipe.pipeline.table.results import read_results

    joined, notes = join_continuous(read_results(results), read_continuous(data))
    for note in notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    videos = {str(video): rows for video, rows in joined.groupby("video")}
    scores = {
        f"{video}: {name}": score_dimension(
            rows[name].to_numpy(float), rows[f"{name}_annotated"].to_numpy(float)
        )
        for video, rows in {**videos, "all videos": joined}.items()
        for name in ("valence", "arousal")
    }
    console.print(dimension_table(scores))
    return {"notes": list(notes), **{name: as_json(score) for name, score in scores.items()}}

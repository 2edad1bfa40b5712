"""Tables of scores for the terminal."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from emopipe.emonet.evaluation import Evaluation, FER2013Report, ImageReport, VideoReport
from emopipe.emonet.metrics import DimensionScores, ExpressionScores

Report = FER2013Report | ImageReport | VideoReport
Part = str | Table


def show(report: Report, console: Console) -> None:
    """Print a report's notes and tables."""
    for note in report.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    print_parts(report_tables(report), console)


def print_parts(parts: Iterable[Part], console: Console) -> None:
    """Print tables and the lines between them."""
    for part in parts:
        console.print(part, highlight=False)


def report_tables(report: Report) -> list[Part]:
    """A report's tables and the lines between them."""
    if isinstance(report, FER2013Report):
        return score_tables(report.evaluations, confusion=True)
    if isinstance(report, VideoReport):
        return [dimension_table(report.dimensions)]
    parts: list[Part] = [f"{report.images:,} of {report.given:,} images"]
    if scores := report.expressions:
        accuracies = ", ".join(f"{view} {one.accuracy:.3f}" for view, one in scores.items())
        parts += [
            f"accuracy: {accuracies}",
            class_table(scores["plain"], report.classes, scores["mirror"]),
            confusion_table(scores["mirror"].confusion, report.classes),
        ]
    if report.dimensions:
        parts.append(dimension_table(report.dimensions))
    return parts


def score_tables(evaluations: Sequence[Evaluation], *, confusion: bool = False) -> list[Part]:
    """Tables of evaluations on FER2013, and the lines between them.

    Args:
        evaluations: of one or several tests.
        confusion: whether to add each test's confusion matrix.
    """
    parts: list[Part] = [summary_table(evaluations)]
    for test in dict.fromkeys(one.test for one in evaluations):
        # The last two are without copies, where there are any.
        plain, mirrored = [one for one in evaluations if one.test == test][-2:]
        parts.append(f"\n{test}{', copies left out' if plain.without_copies else ''}:")
        parts.append(class_table(plain.scores, plain.classes, mirrored.scores))
        if confusion:
            parts.append(confusion_table(mirrored.scores.confusion, plain.classes))
    return parts


def summary_table(evaluations: Sequence[Evaluation]) -> Table:
    """One row per evaluation."""
    table = Table(
        *("test", "images", "mirror", "accuracy", "macro F1", "weighted F1", "ECE"),
        box=None,
        pad_edge=False,
    )
    for one in evaluations:
        s = one.scores
        figures = (s.accuracy, s.macro_f1, s.weighted_f1, s.calibration_error)
        table.add_row(
            f"{one.test}{', copies left out' if one.without_copies else ''}",
            f"{s.samples:,}",
            "averaged" if one.mirror else "—",
            *(f"{figure:.3f}" for figure in figures),
        )
    return table


def class_table(
    plain: ExpressionScores, classes: tuple[str, ...], mirrored: ExpressionScores
) -> Table:
    """One row per class, with the scores of both views."""
    names = ("precision", "recall", "F1")
    headings = [*names, *(f"{name}, mirror" for name in names)]
    table = Table("class", "images", *headings, box=None, pad_edge=False)
    for i, name in enumerate(classes):
        figures = [f[i] for s in (plain, mirrored) for f in (s.precision, s.recall, s.f1)]
        table.add_row(name, f"{plain.confusion[i].sum():,}", *map(_figure, figures))
    return table


def confusion_table(counts: NDArray[np.int64], classes: tuple[str, ...]) -> Table:
    """Counts, one row per true class and one column per predicted class.

    Args:
        counts: (classes, classes) int64, true class by predicted class.
        classes: their names.
    """
    table = Table("truth \\ predicted", *classes, box=None, pad_edge=False)
    for name, row in zip(classes, counts, strict=True):
        table.add_row(name, *(f"{count:,}" for count in row))
    return table


def dimension_table(scores: dict[str, DimensionScores]) -> Table:
    """One row per dimension, with the names given by the caller."""
    table = Table("", "samples", "CCC", "PCC", "RMSE", "SAGR", box=None, pad_edge=False)
    for name, s in scores.items():
        figures = (s.ccc, s.pcc, s.rmse, s.sagr)
        table.add_row(name, f"{s.samples:,}", *map(_figure, figures))
    return table


def _figure(value: float) -> str:
    return "—" if np.isnan(value) else f"{value:.3f}"

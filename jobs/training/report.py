"""Scores as a person reads them and as a program does."""

from typing import Any

import numpy as np
from rich.table import Table

from emopipe.emonet.data.fer2013 import FaceSet
from emopipe.emonet.evaluation import Judged
from emopipe.emonet.metrics import DimensionScores, ExpressionScores


def about_bad(faces: FaceSet) -> list[str]:
    """Say how many rows were left out, if any."""
    return [f"{len(faces.skipped)} bad rows left out"] if faces.skipped else []


def summary_table(judged: list[Judged]) -> Table:
    """One row a way of judging."""
    table = Table(
        *("test", "pictures", "mirror", "accuracy", "macro F1", "weighted F1", "ECE"),
        box=None,
        pad_edge=False,
    )
    for one in judged:
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
    plain: ExpressionScores, classes: tuple[str, ...], mirrored: ExpressionScores | None = None
) -> Table:
    """One row a class; with mirror averaging in further columns."""
    shown = [plain] if mirrored is None else [plain, mirrored]
    names = ("precision", "recall", "F1")
    headings = [*names, *(f"{name}, mirror" for name in names)][: 3 * len(shown)]
    table = Table("class", "pictures", *headings, box=None, pad_edge=False)
    for i, name in enumerate(classes):
        figures = [figure[i] for s in shown for figure in (s.precision, s.recall, s.f1)]
        table.add_row(name, f"{plain.confusion[i].sum():,}", *map(_figure, figures))
    return table


def confusion_table(counts: np.ndarray, classes: tuple[str, ...]) -> Table:
    """Counts, truth in rows and answers in columns."""
    table = Table("truth \\ said", *classes, box=None, pad_edge=False)
    for name, row in zip(classes, counts, strict=True):
        table.add_row(name, *(f"{count:,}" for count in row))
    return table


def dimension_table(scores: dict[str, DimensionScores]) -> Table:
    """One row a dimension, named by the caller."""
    table = Table("", "samples", "CCC", "PCC", "RMSE", "SAGR", box=None, pad_edge=False)
    for name, s in scores.items():
        figures = (s.ccc, s.pcc, s.rmse, s.sagr)
        table.add_row(name, f"{s.samples:,}", *map(_figure, figures))
    return table


def as_json(scores: ExpressionScores | DimensionScores) -> dict[str, Any]:
    """Plain lists and numbers; what is undefined is null."""
    return {name: _plain(value) for name, value in vars(scores).items()}


def judged_as_json(judged: list[Judged]) -> list[dict[str, Any]]:
    """All ways of judging."""
    return [
        {
            "test": one.test,
            "without_copies": one.without_copies,
            "mirror": one.mirror,
            "classes": list(one.classes),
            **as_json(one.scores),
        }
        for one in judged
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value.tolist()]
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if value != value else value


def _figure(value: float) -> str:
    return "—" if np.isnan(value) else f"{value:.3f}"

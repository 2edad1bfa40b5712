"""Plots of a training run: its course, confusion matrices, precision and recall, worst mistakes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from emopipe.emonet.training.trainer import Epoch

DPI = 120
WORST = 32  # mistakes shown


def curves(history: list[Epoch], path: Path) -> None:
    """Draw loss, scores and learning rate over the epochs.

    Args:
        history: the epochs, at least one.
        path: the image to write.

    Raises:
        OSError: it cannot be written; so for all plots here.
    """
    numbers = [epoch.number for epoch in history]
    with _figure(path, 3, (13, 3.8)) as (_, (loss, scores, rate)):
        loss.plot(numbers, [e.loss for e in history], marker="o", label="training")
        loss.set(title="loss", xlabel="epoch")
        loss.legend()
        for name in history[0].scores:
            values = [e.scores[name] for e in history]
            scores.plot(numbers, values, marker="o", label=name.replace("_", " "))
        best = max((e for e in history if e.best), key=lambda e: e.score, default=None)
        if best:
            scores.axvline(best.number, color="grey", linestyle=":", label="selected")
        scores.set(title="validation, averaged weights", xlabel="epoch")
        scores.legend()
        rate.plot(numbers, [e.learning_rate for e in history], marker="o")
        rate.set(title="learning rate at the epoch's end", xlabel="epoch")
        for axes in (loss, scores, rate):
            axes.grid(alpha=0.3)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def confusion(counts: NDArray[np.int64], classes: tuple[str, ...], title: str, path: Path) -> None:
    """Draw the confusion matrix in counts and in shares of each true class.

    Args:
        counts: (classes, classes) int64, true class by predicted class.
        classes: their names.
        title: heading of the figure.
        path: the image to write.
    """
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    with _figure(path, 2, (13, 6)) as (figure, panels):
        figure.suptitle(title)
        for axes, values, kind in zip(
            panels, (counts, shares), ("counts", "shares of the true class"), strict=True
        ):
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            axes.set(title=kind, xlabel="predicted", ylabel="truth")
            axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
            axes.set_yticks(range(len(classes)), classes)
            for (row, column), value in np.ndenumerate(values):
                text = f"{value:,}" if kind == "counts" else f"{value:.2f}"
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)


def precision_recall(
    probabilities: NDArray[np.floating],
    truth: NDArray[np.integer],
    classes: tuple[str, ...],
    title: str,
    path: Path,
) -> None:
    """Draw precision over recall for each class, for all thresholds on its probability.

    Args:
        probabilities: (n, classes) floats, each row sums to 1.
        truth: (n,) integers, index of the true class.
        classes: their names.
        title: heading of the figure.
        path: the image to write.
    """
    with _figure(path, 1, (7, 6)) as (_, (axes,)):
        for index, name in enumerate(classes):
            right = (truth == index)[np.argsort(-probabilities[:, index], kind="stable")]
            if not right.any():
                continue
            hits = right.cumsum()
            precision, recall = hits / np.arange(1, len(hits) + 1), hits / hits[-1]
            average = precision[right].mean()
            axes.plot(recall, precision, label=f"{name} (average precision {average:.2f})")
        axes.set(title=title, xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)


def mistakes(
    images: NDArray[np.uint8],
    probabilities: NDArray[np.floating],
    truth: NDArray[np.integer],
    classes: tuple[str, ...],
    title: str,
    path: Path,
) -> None:
    """Show the wrongly classified images whose true class has the lowest probability.

    Args:
        images: (n, height, width) uint8 grey.
        probabilities: (n, classes) floats, each row sums to 1.
        truth: (n,) integers, index of the true class.
        classes: their names.
        title: heading of the figure.
        path: the image to write.
    """
    of_truth = probabilities[np.arange(len(truth)), truth]
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != truth)
    worst = wrong[np.argsort(of_truth[wrong], kind="stable")][:WORST]
    columns = 8
    rows = max(1, -(-len(worst) // columns))
    with _figure(path, columns, (1.6 * columns, 2.05 * rows + 0.6), rows) as (figure, panels):
        figure.suptitle(title)
        for axes in panels:
            axes.axis("off")
        for axes, index in zip(panels, worst, strict=False):
            predicted = probabilities[index].argmax()
            axes.imshow(images[index], cmap="gray", vmin=0, vmax=255)
            axes.set_title(
                f"predicted {classes[predicted]} {probabilities[index, predicted]:.2f}\n"
                f"truth {classes[truth[index]]} {of_truth[index]:.2f}",
                fontsize=8,
            )


@contextmanager
def _figure(
    path: Path, columns: int, size: tuple[float, float], rows: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure and its panels, row by row; write the figure at the end of the block."""
    # Not pyplot's figure: that is global state and may need a window system.
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    yield figure, list(panels.ravel())
    figure.savefig(path, dpi=DPI)

"""The folder of a training run: what decides it, how it goes on, what it leaves."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from emopipe.emonet import checkpoint as checkpoints
from emopipe.emonet.checkpoint import Checkpoint
from emopipe.emonet.data.fer2013 import FaceSet, Split
from emopipe.emonet.evaluation import Judged, judge, of_fer2013
from emopipe.emonet.files import appearing_whole
from emopipe.emonet.metrics import confusion
from emopipe.emonet.model import EmoNet
from emopipe.emonet.predictor import Predictor, resolve_device, resolve_precision
from emopipe.emonet.training import calibration
from emopipe.emonet.training.config import TrainingError, TrainingSettings
from emopipe.emonet.training.trainer import Epoch
from emopipe.jobs.training import plots
from emopipe.jobs.training.launch import MakeTrainer, Place, train
from emopipe.jobs.training.report import about_bad, class_table, judged_as_json, summary_table

BEST = "best.safetensors"
METRICS = "metrics.csv"
SCORES = "scores.json"
SETTINGS = "settings.json"
PLOTS = "plots"


def prepare(folder: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make the run's folder, or check that the run in it is this one.

    Raises:
        TrainingError: it holds another run, or one that is neither to be resumed nor replaced, or
            cannot be written.
    """
    try:
        _prepare(folder, settings, resume=resume, overwrite=overwrite)
    except OSError as error:
        raise TrainingError(
            f"{folder} cannot be the run's folder ({error.strerror}): name another --out"
        ) from error


def _prepare(folder: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    path = folder / SETTINGS
    if path.exists() and overwrite:
        shutil.rmtree(folder)
    if not path.exists():
        if resume:
            raise TrainingError(f"--resume: there is no run in {folder}")
        if folder.exists() and any(folder.iterdir()):
            raise TrainingError(f"{folder} holds something else than a run: name another --out")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        return
    if not resume:
        raise TrainingError(
            f"{folder} holds a run: --resume goes on with it, --overwrite replaces it"
        )
    begun = json.loads(path.read_text(encoding="utf-8"))
    every = {**begun, **settings}
    if differing := [key for key in every if begun.get(key) != settings.get(key)]:
        raise TrainingError(
            f"the run in {folder} was begun with another {' and another '.join(differing)} "
            f"(see {path}): go on with the same, or begin anew with --overwrite"
        )


def refuse_to_replace(start: str, folder: Path, *, overwrite: bool) -> None:
    """See that a run does not remove the weights that it is to begin with.

    Raises:
        TrainingError: it would.
    """
    if overwrite and Path(start).resolve().is_relative_to(folder.resolve()):
        raise TrainingError(
            f"--from {start} lies in the run's folder, which --overwrite replaces: name another "
            f"--out"
        )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is whole or not there."""
    with appearing_whole(path) as growing:
        growing.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def training_precision(precision: str, *, gpu: bool) -> str:
    """Turn "auto" into what is fast and safe to train in where the network will be."""
    if precision != "auto":
        return precision
    # GPUs that train are of the last years; float16 would need its loss scaled.
    native = "bfloat16" if gpu else resolve_precision("auto", resolve_device("cpu"))
    return native if native == "bfloat16" else "float32"


class Shown:
    """Shows a training on a terminal as a bar, elsewhere as a line an epoch; keeps metrics.csv.

    A context manager and a `jobs.training.launch.Watcher`.
    """

    def __init__(self, console: Console, training: TrainingSettings, metrics: Path) -> None:
        self._console = console
        self._metrics = metrics
        self._epochs = training.epochs
        self._history: list[Epoch] = []
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._said = ""

    def __enter__(self) -> "Shown":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def resumed(self, history: list[Epoch]) -> None:
        """Take the epochs that an earlier run did."""
        self._history = list(history)

    def stepped(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Move the bar."""
        self._bar.update(
            self._task,
            total=self._epochs * steps,
            completed=(epoch - 1) * steps + step,
            description=f"epoch {epoch}/{self._epochs} · loss {loss:.3f}{self._said}",
        )

    def epoch_done(self, epoch: Epoch) -> None:
        """Keep its metrics and say how it went."""
        self._history.append(epoch)
        _write_metrics(self._history, self._metrics)
        self._said = f" · accuracy {epoch.scores['accuracy']:.3f}"
        figures = ", ".join(f"{n.replace('_', ' ')} {v:.3f}" for n, v in epoch.scores.items())
        self._console.print(
            f"epoch {epoch.number}/{self._epochs}: loss {epoch.loss:.3f}, {figures}"
            f"{' (best)' if epoch.best else ''}, "
            f"{epoch.samples_per_second:.0f} images/s, data {epoch.data_share:.1%}",
            highlight=False,
            soft_wrap=True,
        )


@dataclass(frozen=True)
class Run:
    """A training run, ready to begin.

    Attributes:
        make: makes the trainer where it will run, given what to tell of each step.
        goal: describes the network that comes of it; its `made` is all that decides the result.
        faces: the pictures.
        split: what each is for.
        training: how.
        place: where.
        about: what is trained, and on what else, in sentences.
        class_weights: (classes,) float32 that the loss is weighted with, or None.
        further: gives further scores of the network, and shows them.
    """

    make: MakeTrainer
    goal: Checkpoint
    faces: FaceSet
    split: Split
    training: TrainingSettings
    place: Place
    about: tuple[str, ...]
    class_weights: NDArray[np.float32] | None = None
    further: Callable[[EmoNet, Predictor, Console], dict[str, Any]] | None = None


def settings_of(
    faces: FaceSet, training: TrainingSettings, place: Place, **particular: Any
) -> dict[str, Any]:
    """All that is chosen of a run, as JSON has it.

    The number of CPUs and the device are not: they change a result in its last digits alone.
    """
    decisive = {
        "emopipe": version("emopipe"),
        "data": {
            "source": faces.source,
            "sha256": faces.sha256,
            "pictures": len(faces),
            "left_out": len(faces.skipped),
        },
        **particular,
        "training": asdict(training),
        "workers": place.workers,
        "local": place.local,
    }
    plain: dict[str, Any] = json.loads(json.dumps(decisive))
    return plain


def carry_out(run: Run, folder: Path, *, resume: bool, overwrite: bool, console: Console) -> None:
    """Train, keep the best weights, judge them and draw what happened.

    Args:
        run: what to do.
        folder: the run's; made if need be.
        resume: go on with the run that is there.
        overwrite: replace it.
        console: where to show how it goes on, and the closing tables.

    Raises:
        EmopipeError: the folder cannot be used, or training failed.
    """
    prepare(folder, run.goal.made, resume=resume, overwrite=overwrite)
    tests = ", ".join(f"{name} {len(rows):,}" for name, rows in run.split.tests.items())
    notes = [*run.split.notes, *about_bad(run.faces)]
    lines = (
        f"{run.faces.source}: {len(run.split.train):,} pictures to learn from, "
        f"{len(run.split.validation):,} to select by; judged by {tests}",
        *(f"note: {note}" for note in notes),
        *run.about,
        f"width {run.goal.width}, {run.goal.input_size} px, {run.training.precision}, "
        f"{run.place.workers} × {run.training.batch_size} a step",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    with Shown(console, run.training, folder / METRICS) as shown:
        state = train(run.make, folder, run.place, shown)
    _finish(run, state, notes, folder, console)


def _finish(
    run: Run, state: dict[str, Any], notes: list[str], folder: Path, console: Console
) -> None:
    """Calibrate the best weights, keep them, judge them, draw what happened, and show it."""
    if not state["best"]:
        raise TrainingError(f"no epoch of the run in {folder} had a score that is a number")
    goal, faces, split = run.goal, run.faces, run.split
    network = EmoNet(len(goal.classes), goal.width)
    network.load_state_dict(state["best"])
    selecting = of_fer2013(
        Predictor(copy.deepcopy(network), goal, "auto", "float32"),
        faces.images[split.validation],
        mirror=False,
    ).probabilities
    fitted = calibration.fit(selecting, faces.labels[split.validation], run.class_weights)
    calibration.fold(fitted, network)
    # Judged is what will be loaded, in half precision.
    checkpoints.save(network, goal, folder / BEST)
    network, _ = checkpoints.load(folder / BEST)
    predictor = Predictor(network, goal, "auto", "float32")
    judged = judge(predictor, faces, split.tests, split.known)
    history = [Epoch(**epoch) for epoch in state["history"]]
    kept = max((e for e in history if e.best), key=lambda e: e.score)
    scores = {
        "kept_epoch": kept.number,
        "validation": kept.scores,
        "temperature": fitted.temperature,
        "offsets": dict(zip(goal.classes, fitted.offsets.tolist(), strict=True)),
        "notes": notes,
        **(run.further(network, predictor, console) if run.further else {}),
        "judged": judged_as_json(judged),
    }
    short = {**scores, "judged": [_short(one) for one in judged]}
    checkpoints.save(network, replace(goal, made={**goal.made, "scores": short}), folder / BEST)
    write_json(folder / SCORES, scores)
    _write_metrics(history, folder / METRICS)
    _draw(folder / PLOTS, history, predictor, faces, split)
    _show(console, folder, judged, kept)


def _short(one: Judged) -> dict[str, Any]:
    """The scores that go into the checkpoint."""
    return {
        "test": one.test,
        "pictures": one.scores.samples,
        "without_copies": one.without_copies,
        "mirror": one.mirror,
        "accuracy": one.scores.accuracy,
        "macro_f1": one.scores.macro_f1,
        "weighted_f1": one.scores.weighted_f1,
        "calibration_error": one.scores.calibration_error,
    }


def _draw(
    drawn: Path, history: list[Epoch], predictor: Predictor, faces: FaceSet, split: Split
) -> None:
    """Draw the course of the training, and the answers to each test without copies, mirrored."""
    drawn.mkdir(exist_ok=True)
    plots.curves(history, drawn / "curves.png")
    classes = faces.classes
    for test, every in split.tests.items():
        rows = every[~split.known[test]]
        if not len(rows):
            continue
        truth = faces.labels[rows]
        said = of_fer2013(predictor, faces.images[rows], mirror=True).probabilities
        title = f"{test}, {len(rows):,} pictures, mirror averaging"
        name = test.replace(" ", "_")
        counts = confusion(truth, said.argmax(axis=1), len(classes))
        plots.confusion(counts, classes, title, drawn / f"confusion_{name}.png")
        plots.precision_recall(said, truth, classes, title, drawn / f"precision_recall_{name}.png")
        images, path = faces.images[rows], drawn / f"mistakes_{name}.png"
        plots.mistakes(images, said, truth, classes, title, path)


def _show(console: Console, folder: Path, judged: list[Judged], kept: Epoch) -> None:
    console.print(f"kept: epoch {kept.number}")
    console.print(summary_table(judged))
    for test in dict.fromkeys(one.test for one in judged):
        plain, mirrored = [one for one in judged if one.test == test][-2:]
        console.print(f"\n{test}{', copies left out' if plain.without_copies else ''}:")
        console.print(class_table(plain.scores, plain.classes, mirrored.scores))
    console.print(
        f"\n{folder / BEST} is ready: emopipe analyze VIDEOS --model {folder / BEST}",
        highlight=False,
        soft_wrap=True,
    )


def _write_metrics(history: list[Epoch], path: Path) -> None:
    rows = [
        {
            "epoch": epoch.number,
            "loss": epoch.loss,
            **epoch.scores,
            "learning_rate": epoch.learning_rate,
            "images_per_second": epoch.samples_per_second,
            "data_share": epoch.data_share,
            "best": epoch.best,
        }
        for epoch in history
    ]
    with appearing_whole(path) as growing:
        pd.DataFrame(rows).to_csv(growing, index=False)

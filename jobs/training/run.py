"""A training run and its folder: settings, progress, checkpoint, scores and plots."""

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
from emopipe.emonet.data.fer2013 import FaceSet
from emopipe.emonet.data.splits import Split
from emopipe.emonet.errors import TrainingError
from emopipe.emonet.evaluation import Evaluation, evaluate
from emopipe.emonet.files import atomic_write
from emopipe.emonet.inference import predict_fer2013
from emopipe.emonet.metrics import confusion
from emopipe.emonet.model import EmoNet
from emopipe.emonet.predictor import Predictor
from emopipe.emonet.training.calibration import Calibration, fit, fold
from emopipe.emonet.training.config import TrainingConfig
from emopipe.emonet.training.trainer import Epoch
from emopipe.jobs.training import plots
from emopipe.jobs.training.compute import ComputeConfig
from emopipe.jobs.training.launch import MakeTrainer, train
from emopipe.jobs.training.report import print_parts, score_tables

BEST = "best.safetensors"
METRICS = "metrics.csv"
SCORES = "scores.json"
SETTINGS = "settings.json"
PLOTS = "plots"


def prepare(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make the run's folder, or check that the run in it is this one.

    Args:
        out: the folder.
        settings: all that determines the result, see `settings_of`; kept in the folder.
        resume: whether to continue the run in the folder.
        overwrite: whether to delete it.

    Raises:
        TrainingError: it holds another run, or one that is neither resumed nor overwritten, or it
            cannot be written.
    """
    try:
        _prepare(out, settings, resume=resume, overwrite=overwrite)
    except OSError as error:
        raise TrainingError(
            f"{out} cannot be the run's folder ({error.strerror}): name another `out`"
        ) from error


def _prepare(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    path = out / SETTINGS
    if path.exists() and overwrite:
        shutil.rmtree(out)
    if not path.exists():
        if resume:
            raise TrainingError(f"`resume`: there is no run in {out}")
        if out.exists() and any(out.iterdir()):
            raise TrainingError(f"{out} is not empty and holds no run: name another `out`")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        return
    if not resume:
        raise TrainingError(f"{out} holds a run: `resume` continues it, `overwrite` replaces it")
    begun = json.loads(path.read_text(encoding="utf-8"))
    every = {**begun, **settings}
    if differing := [key for key in every if begun.get(key) != settings.get(key)]:
        raise TrainingError(
            f"the run in {out} was begun with another {' and another '.join(differing)} "
            f"(see {path}): continue with the same, or begin again with `overwrite`"
        )


def check_choices(start_model: str | None, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that a run is not both resumed and overwritten, and does not delete its start model.

    Raises:
        TrainingError: it would.
    """
    if resume and overwrite:
        raise TrainingError("`resume` continues a run, `overwrite` replaces it: choose one")
    if overwrite and start_model and Path(start_model).resolve().is_relative_to(out.resolve()):
        raise TrainingError(
            f"`start_model` {start_model} lies in the run's folder, which `overwrite` replaces: "
            f"name another `out`"
        )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is complete or not there.

    Args:
        path: the file.
        content: what `json.dumps` takes.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class TrainingProgress:
    """Shows progress, as a bar on a terminal, else as a line per epoch, and writes metrics.csv.

    A context manager and a `jobs.training.launch.TrainingCallback`.

    Args:
        console: where to show it.
        epochs: of the training at most.
        metrics: the CSV file, written anew after each epoch.

    Raises:
        OSError: by `on_epoch_end`, if the file cannot be written.
    """

    def __init__(self, console: Console, epochs: int, metrics: Path) -> None:
        self._console = console
        self._metrics = metrics
        self._epochs = epochs
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
        self._accuracy = ""

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def on_resume(self, history: list[Epoch]) -> None:
        """Take over the epochs of an earlier run."""
        self._history = list(history)

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Move the bar."""
        self._bar.update(
            self._task,
            total=self._epochs * steps,
            completed=(epoch - 1) * steps + step,
            description=f"epoch {epoch}/{self._epochs} · loss {loss:.3f}{self._accuracy}",
        )

    def on_epoch_end(self, epoch: Epoch) -> None:
        """Write the metrics and print a line."""
        self._history.append(epoch)
        _write_metrics(self._history, self._metrics)
        self._accuracy = f" · accuracy {epoch.scores['accuracy']:.3f}"
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
        make_trainer: makes the trainer where it will run, given its `on_step`.
        output_checkpoint: describes the resulting network; its `provenance` is all settings that
            determine the result.
        faces: the images.
        split: their use.
        training: how to train.
        compute: where to train.
        about: what is trained, and on what further data, in sentences.
        class_weights: (classes,) float32, weights of the classes in the loss, or None.
        further_scores: evaluates the network further, prints the scores and returns them.
    """

    make_trainer: MakeTrainer
    output_checkpoint: Checkpoint
    faces: FaceSet
    split: Split
    training: TrainingConfig
    compute: ComputeConfig
    about: tuple[str, ...]
    class_weights: NDArray[np.float32] | None = None
    further_scores: Callable[[EmoNet, Predictor, Console], dict[str, Any]] | None = None


def settings_of(
    faces: FaceSet, training: TrainingConfig, compute: ComputeConfig, **particular: Any
) -> dict[str, Any]:
    """All settings of a run that determine its result, as JSON has them.

    The number of CPUs and the device are left out: they only change the last digits.
    """
    settings = {
        "emopipe": version("emopipe"),
        "data": {
            "source": faces.source,
            "sha256": faces.sha256,
            "pictures": len(faces),
            "left_out": len(faces.skipped),
        },
        **particular,
        "training": asdict(training),
        "workers": compute.workers,
        "local": compute.local,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def run_training(run: Run, out: Path, *, resume: bool, overwrite: bool, console: Console) -> None:
    """Train, save the best weights, evaluate them and draw plots.

    Args:
        run: what to do.
        out: the run's folder; made if missing.
        resume: continue the run in the folder.
        overwrite: replace it.
        console: for the progress and the final tables.

    Raises:
        EmopipeError: the folder cannot be used, or training failed.
    """
    output = run.output_checkpoint
    prepare(out, output.provenance, resume=resume, overwrite=overwrite)
    tests = " and ".join(f"{test} ({len(rows):,})" for test, rows in run.split.tests.items())
    notes = [*run.split.notes, *run.faces.notes]
    lines = (
        f"{run.faces.source}: {len(run.split.train):,} images to train on, "
        f"{len(run.split.validation):,} to select by; tested on {tests}",
        *(f"note: {note}" for note in notes),
        *run.about,
        f"width {output.width}, {output.input_size} px, {run.training.precision}, "
        f"{run.compute.workers} × {run.training.batch_size} per step",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    with TrainingProgress(console, run.training.epochs, out / METRICS) as progress:
        state = train(run.make_trainer, out, run.compute, progress)
    _finish(run, state, notes, out, console)


def _finish(run: Run, state: dict[str, Any], notes: list[str], out: Path, console: Console) -> None:
    """Calibrate the best weights, save and evaluate them, draw plots, print the scores."""
    if not state["best"]:
        raise TrainingError(f"no epoch of the run in {out} had a finite score")
    output, faces, split = run.output_checkpoint, run.faces, run.split
    network = EmoNet(len(output.classes), output.width)
    network.load_state_dict(state["best"])
    calibration = _calibrate(network, run)
    # The evaluated weights are those that will be loaded, in half precision.
    checkpoints.save(network, output, out / BEST)
    network, _ = checkpoints.load(out / BEST)
    predictor = Predictor(network, output, "auto", "float32", mirror=False)
    evaluations = evaluate(predictor, faces, split.tests, split.in_training)
    history = [Epoch(**epoch) for epoch in state["history"]]
    best = max((e for e in history if e.best), key=lambda e: e.score)
    scores = {
        "kept_epoch": best.number,
        "validation": best.scores,
        "temperature": calibration.temperature,
        "offsets": dict(zip(output.classes, calibration.offsets.tolist(), strict=True)),
        "notes": notes,
        **(run.further_scores(network, predictor, console) if run.further_scores else {}),
        "judged": [one.as_json() for one in evaluations],
    }
    summary = {**scores, "judged": [_summary(one) for one in evaluations]}
    provenance = {**output.provenance, "scores": summary}
    checkpoints.save(network, replace(output, provenance=provenance), out / BEST)
    write_json(out / SCORES, scores)
    _write_metrics(history, out / METRICS)
    _draw(out / PLOTS, history, predictor, faces, split)
    _show(console, out, evaluations, best)


def _calibrate(network: EmoNet, run: Run) -> Calibration:
    """Calibrate a network, in place, by its predictions for the validation images."""
    rows = run.split.validation
    network_copy = copy.deepcopy(network)  # the predictor converts its network in place
    predictor = Predictor(network_copy, run.output_checkpoint, "auto", "float32", mirror=False)
    predicted = predict_fer2013(predictor, run.faces.images[rows])
    calibration = fit(predicted.probabilities, run.faces.labels[rows], run.class_weights)
    fold(calibration, network)
    return calibration


def _summary(one: Evaluation) -> dict[str, Any]:
    """The scores of an evaluation that the checkpoint records."""
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
    folder: Path, history: list[Epoch], predictor: Predictor, faces: FaceSet, split: Split
) -> None:
    """Draw the training's course, and the mirrored predictions for each test without copies."""
    folder.mkdir(exist_ok=True)
    plots.curves(history, folder / "curves.png")
    classes = faces.classes
    for test, all_rows in split.tests.items():
        rows = all_rows[~split.in_training[test]]
        if not len(rows):
            continue
        images, truth = faces.images[rows], faces.labels[rows]
        predicted = predict_fer2013(predictor.with_mirror(True), images).probabilities
        title = f"{test}, {len(rows):,} images, mirror averaging"
        counts = confusion(truth, predicted.argmax(axis=1), len(classes))
        confusions, curves, mistakes = (
            folder / f"{kind}_{test.replace(' ', '_')}.png"
            for kind in ("confusion", "precision_recall", "mistakes")
        )
        plots.confusion(counts, classes, title, confusions)
        plots.precision_recall(predicted, truth, classes, title, curves)
        plots.mistakes(images, predicted, truth, classes, title, mistakes)


def _show(console: Console, out: Path, evaluations: list[Evaluation], best: Epoch) -> None:
    console.print(f"selected: epoch {best.number}")
    print_parts(score_tables(evaluations), console)
    console.print(
        f"\n{out / BEST} is ready: emopipe analyze VIDEOS --model {out / BEST}",
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
    with atomic_write(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)

"""A fine-tuning run: from FER2013 to a folder with weights, scores and plots."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from emonet import checkpoint as checkpoints
from emonet import fer2013
from emonet.checkpoint import Checkpoint, open_model, random_weights
from emonet.evaluation import Judged, judge, of_fer2013
from emonet.fer2013 import FaceSet, Split
from emonet.files import appearing_whole
from emonet.finetuning import FineTuningTask, begin
from emonet.metrics import confusion
from emonet.model import EmoNet
from emonet.predictor import Predictor, resolve_device, resolve_precision
from emonet.recipe import FineTuning, TrainingError, TrainingSettings
from emonet.training import Epoch, Trainer
from jobs import plots
from jobs.scorecard import class_table, judged_as_json, summary_table
from jobs.train import OnStep, Place, train
from pipeline.settings import DEFAULT_MODEL

BEST = "best.safetensors"
METRICS = "metrics.csv"
SCORES = "scores.json"
SETTINGS = "settings.json"
PLOTS = "plots"


@dataclass(frozen=True)
class Job:
    """A run as it is asked for.

    Attributes:
        data: FER2013, see `emonet.fer2013.read`.
        ferplus: FER+'s votes, or None for FER2013's own labels.
        skip_bad: leave out bad rows.
        validation: what the model is selected by: "PublicTest" or "Training" (a part of it).
        start: name or path of the checkpoint to begin with; None for random weights of the
            bundled model's dimensions.
        tuning: what to learn.
        training: how; precision "float32", "bfloat16" or "auto".
        place: where.
    """

    data: Path
    ferplus: Path | None
    skip_bad: bool
    validation: str
    start: str | None
    tuning: FineTuning
    training: TrainingSettings
    place: Place


def run(job: Job, folder: Path, *, resume: bool, overwrite: bool, console: Console) -> None:
    """Train, keep the best weights, judge them and draw what happened.

    Args:
        job: what to do.
        folder: the run's; made if need be.
        resume: go on with the run that is there.
        overwrite: replace it.
        console: where to show how it goes on, and the closing tables.

    Raises:
        EmopipeError: data, checkpoint or folder cannot be used, or training failed.
    """
    faces = fer2013.read(job.data, ferplus=job.ferplus, skip_bad=job.skip_bad)
    split = fer2013.split(faces, job.training.seed, job.validation)
    start, described = _start(job, faces.classes)
    settings = _settings(job, faces, described)
    _prepare(folder, settings, resume=resume, overwrite=overwrite)
    for line in _opening(faces, split, described, job):
        console.print(line, highlight=False, soft_wrap=True)

    goal = replace(described, classes=faces.classes, sha256="", made=settings)
    make = partial(
        make_trainer,
        job=job,
        faces=faces,
        split=split,
        start=start,
        known=described.classes,
        goal=goal,
    )
    with _Shown(console, job.training, folder / METRICS) as shown:
        state = train(make, folder, job.place, shown)

    network = EmoNet(len(faces.classes), described.width)
    network.load_state_dict(state["best"])
    goal = _described(goal, described, job)
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
        "notes": [*split.notes, *_about_bad(faces)],
        "judged": judged_as_json(judged),
    }
    goal = replace(goal, made={**settings, "scores": _short(scores, judged)})
    checkpoints.save(network, goal, folder / BEST)
    _write(folder / SCORES, json.dumps(scores, indent=2))
    _write_metrics(history, folder / METRICS)
    _draw(folder / PLOTS, history, predictor, faces, split)
    _close(console, folder, judged, scores)


def make_trainer(
    on_step: OnStep,
    *,
    job: Job,
    faces: FaceSet,
    split: Split,
    start: EmoNet,
    known: tuple[str, ...],
    goal: Checkpoint,
) -> Trainer:
    """Make the trainer, on the machine where it will run.

    Args:
        on_step: told of each step.
        job: what to do.
        faces: the pictures.
        split: what each is for.
        start: the start model.
        known: its classes.
        goal: describes the network to be trained.
    """
    device = resolve_device("cuda" if job.place.gpu else "cpu")
    # First of all: the task moves the start model to the device.
    network = begin(start, known, faces.classes, job.tuning.trained, job.training.seed)
    task = FineTuningTask(
        faces,
        split,
        job.tuning,
        start if job.start else None,
        goal,
        job.training.batch_size,
        job.training.seed,
        device,
        job.training.precision,
    )
    return Trainer(network, task, job.training, device, on_step)


def training_precision(precision: str, *, gpu: bool) -> str:
    """Turn "auto" into what is fast and safe to train in where the network will be."""
    if precision != "auto":
        return precision
    # GPUs that train are of the last years; float16 would need its loss scaled.
    native = "bfloat16" if gpu else resolve_precision("auto", resolve_device("cpu"))
    return native if native == "bfloat16" else "float32"


def _start(job: Job, classes: tuple[str, ...]) -> tuple[EmoNet, Checkpoint]:
    model, described = open_model(job.start or DEFAULT_MODEL)
    if job.start:
        return model, described
    model, random = random_weights(
        job.training.seed, classes, described.width, described.input_size
    )
    return model, replace(random, crop=described.crop)


def _settings(job: Job, faces: FaceSet, start: Checkpoint) -> dict[str, Any]:
    """All that decides the result, as JSON has it."""
    decisive = {
        "emopipe": version("emopipe"),
        "start": {"name": start.name, "sha256": start.sha256, "licence": start.licence},
        "data": {
            "source": faces.source,
            "sha256": faces.sha256,
            "pictures": len(faces),
            "left_out": len(faces.skipped),
            "validation": job.validation,
        },
        "tuning": asdict(job.tuning),
        "training": asdict(job.training),
        "workers": job.place.workers,
        "local": job.place.local,
    }
    plain: dict[str, Any] = json.loads(json.dumps(decisive))
    return plain


def _prepare(folder: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make the run's folder, or check that the run in it is this one.

    Raises:
        TrainingError: it holds another run, or one that is neither to be resumed nor replaced.
    """
    path = folder / SETTINGS
    if path.exists() and overwrite:
        shutil.rmtree(folder)
    if not path.exists():
        if resume:
            raise TrainingError(f"--resume: there is no run in {folder}")
        if folder.exists() and any(folder.iterdir()):
            raise TrainingError(f"{folder} holds something else than a run: name another --out")
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(settings, indent=2))
        return
    if not resume:
        raise TrainingError(
            f"{folder} holds a run: --resume goes on with it, --overwrite replaces it"
        )
    begun = json.loads(path.read_text(encoding="utf-8"))
    if differing := [key for key in settings if begun.get(key) != settings[key]]:
        raise TrainingError(
            f"the run in {folder} was begun with another {' and another '.join(differing)} "
            f"(see {path}): go on with the same, or begin anew with --overwrite"
        )


def _opening(faces: FaceSet, split: Split, start: Checkpoint, job: Job) -> Iterator[str]:
    tests = ", ".join(f"{name} {len(rows):,}" for name, rows in split.tests.items())
    yield (
        f"{faces.source}: {len(split.train):,} pictures to learn from, "
        f"{len(split.validation):,} to select by; judged by {tests}"
    )
    yield from (f"note: {note}" for note in (*split.notes, *_about_bad(faces)))
    what = f"{job.tuning.trained} of {start.name}" if job.start else "from scratch"
    yield (
        f"training {what}: width {start.width}, {start.input_size} px, "
        f"{job.training.precision}, {job.place.workers} × {job.training.batch_size} a step"
    )


def _about_bad(faces: FaceSet) -> list[str]:
    return [f"{len(faces.skipped)} bad rows left out"] if faces.skipped else []


def _described(goal: Checkpoint, start: Checkpoint, job: Job) -> Checkpoint:
    """Say what became of the start model's promises and terms."""
    if not job.start:
        return replace(
            goal,
            valence_arousal="nothing: trained from scratch on expressions alone",
            licence="research use, as FER2013 which it was trained on",
            source="emopipe finetune --from-scratch",
        )
    held = {
        "head": "unchanged",
        "emotion": "held by a penalty while the emotion branch was trained",
        "all": "held by a penalty while the whole network was trained",
    }[job.tuning.trained]
    bound = any(term in start.licence.upper() for term in ("-NC", "-ND", "NON-COMMERCIAL"))
    return replace(
        goal,
        valence_arousal=f"{start.valence_arousal} ({held})",
        licence=start.licence + ("; made from it: do not redistribute" if bound else ""),
        source=f"emopipe finetune from {start.name} (SHA-256 {start.sha256}) on {job.data.name}",
    )


def _short(scores: dict[str, Any], judged: list[Judged]) -> dict[str, Any]:
    """The scores that go into the checkpoint."""
    return {
        "validation": scores["validation"],
        "judged": [
            {
                "test": one.test,
                "pictures": one.scores.samples,
                "without_copies": one.without_copies,
                "mirror": one.mirror,
                "accuracy": one.scores.accuracy,
                "macro_f1": one.scores.macro_f1,
                "weighted_f1": one.scores.weighted_f1,
            }
            for one in judged
        ],
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


def _close(console: Console, folder: Path, judged: list[Judged], scores: dict[str, Any]) -> None:
    console.print(f"kept: epoch {scores['kept_epoch']}")
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


class _Shown:
    """Shows a training on a terminal as a bar, elsewhere as a line an epoch; keeps metrics.csv.

    A context manager and a `jobs.train.Watcher`.
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

    def __enter__(self) -> "_Shown":
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
        self._console.print(
            f"epoch {epoch.number}/{self._epochs}: loss {epoch.loss:.3f}, "
            f"accuracy {epoch.scores['accuracy']:.3f}, "
            f"weighted F1 {epoch.scores['weighted_f1']:.3f}, "
            f"macro F1 {epoch.scores['macro_f1']:.3f}{' (best)' if epoch.best else ''}, "
            f"{epoch.samples_per_second:.0f} images/s, data {epoch.data_share:.1%}",
            highlight=False,
            soft_wrap=True,
        )


def _write(path: Path, text: str) -> None:
    with appearing_whole(path) as growing:
        growing.write_text(text + "\n", encoding="utf-8")

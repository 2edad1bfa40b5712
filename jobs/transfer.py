"""A fine-tuning run: from FER2013 to a folder with weights, scores and plots."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from emonet import fer2013
from emonet.checkpoint import Checkpoint, open_model, random_weights
from emonet.fer2013 import FaceSet, Split
from emonet.finetuning import FineTuningTask, begin
from emonet.model import EmoNet
from emonet.predictor import resolve_device
from emonet.recipe import FineTuning, TrainingSettings
from emonet.training import Trainer
from jobs.runs import METRICS, Finished, Shown, about_bad, finish, prepare
from jobs.train import OnStep, Place, train
from pipeline.settings import DEFAULT_MODEL


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
    prepare(folder, settings, resume=resume, overwrite=overwrite)
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
    with Shown(console, job.training, folder / METRICS) as shown:
        state = train(make, folder, job.place, shown)

    finished = Finished(
        state=state,
        goal=_described(goal, described, job),
        faces=faces,
        split=split,
        notes=[*split.notes, *about_bad(faces)],
    )
    finish(finished, folder, console)


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


def _opening(faces: FaceSet, split: Split, start: Checkpoint, job: Job) -> Iterator[str]:
    tests = ", ".join(f"{name} {len(rows):,}" for name, rows in split.tests.items())
    yield (
        f"{faces.source}: {len(split.train):,} pictures to learn from, "
        f"{len(split.validation):,} to select by; judged by {tests}"
    )
    yield from (f"note: {note}" for note in (*split.notes, *about_bad(faces)))
    what = f"{job.tuning.trained} of {start.name}" if job.start else "from scratch"
    yield (
        f"training {what}: width {start.width}, {start.input_size} px, "
        f"{job.training.precision}, {job.place.workers} × {job.training.batch_size} a step"
    )


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

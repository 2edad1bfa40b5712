"""A fine-tuning run: from FER2013 to a folder with weights, scores and plots."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from emopipe.emonet.checkpoint import Checkpoint, inherited_licence, open_model, random_weights
from emopipe.emonet.data import fer2013
from emopipe.emonet.data.fer2013 import FaceSet, Split
from emopipe.emonet.model import EmoNet
from emopipe.emonet.training.config import FineTuning, TrainingSettings
from emopipe.emonet.training.finetune import FineTuningTask, begin
from emopipe.emonet.training.trainer import Trainer
from emopipe.jobs.training.launch import OnStep, Place
from emopipe.jobs.training.run import Run, carry_out, refuse_to_replace, settings_of
from emopipe.pipeline.settings import DEFAULT_MODEL


@dataclass(frozen=True)
class Job:
    """A run as it is asked for.

    Attributes:
        data: FER2013, see `emonet.data.fer2013.read`.
        ferplus: FER+'s votes, or None for FER2013's own labels.
        skip_bad: leave out bad rows.
        validation: what the model is selected by: "PublicTest" or "Training" (a part of it).
        start: name or path of the checkpoint to begin with; None for random weights of the
            bundled model's dimensions.
        tuning: what to learn.
        training: how.
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


def fine_tune(job: Job, folder: Path, *, resume: bool, overwrite: bool, console: Console) -> None:
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
    if job.start:
        refuse_to_replace(job.start, folder, overwrite=overwrite)
    faces = fer2013.read(job.data, ferplus=job.ferplus, skip_bad=job.skip_bad)
    split = fer2013.split(faces, job.training.seed, job.validation)
    start, described = _start(job, faces.classes)
    goal = _described(job, faces, described)
    make = partial(
        make_trainer,
        job=job,
        faces=faces,
        split=split,
        start=start,
        known=described.classes,
        goal=goal,
    )
    what = f"{job.tuning.trained} of {described.name}" if job.start else "from scratch"
    about = (f"training {what}", *(_about_start(described, goal, split) if job.start else ()))
    run = Run(make, goal, faces, split, job.training, job.place, about)
    carry_out(run, folder, resume=resume, overwrite=overwrite, console=console)


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
        job.place.device,
        job.training.precision,
    )
    return Trainer(network, task, job.training, job.place.device, on_step)


def _start(job: Job, classes: tuple[str, ...]) -> tuple[EmoNet, Checkpoint]:
    model, described = open_model(job.start or DEFAULT_MODEL, option="--from")
    if job.start:
        return model, described
    model, random = random_weights(
        job.training.seed, classes, described.width, described.input_size
    )
    return model, random


def _about_start(start: Checkpoint, goal: Checkpoint, split: Split) -> list[str]:
    """Say what of the start model a user would not expect."""
    notes = []
    if split.drawn:
        notes.append(
            f"note: {start.name} may have learnt from the {' and '.join(split.drawn)} pictures, "
            "drawn from Training"
        )
    if start.crop != goal.crop:
        notes.append(
            f"note: FER2013's pictures show less around the face than the crops of {start.name}: "
            "the new model's crops will be FER2013's"
        )
    return notes


def _described(job: Job, faces: FaceSet, start: Checkpoint) -> Checkpoint:
    """Describe the network that will come of it, and what of the start model's terms goes on."""
    settings = settings_of(
        faces,
        job.training,
        job.place,
        start={"name": start.name, "sha256": start.sha256, "licence": start.licence},
        validation=job.validation,
        tuning=asdict(job.tuning),
    )
    goal = replace(start, classes=faces.classes, crop=fer2013.CROP, sha256="", made=settings)
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
    return replace(
        goal,
        valence_arousal=f"{start.valence_arousal} ({held})",
        licence=inherited_licence(start.licence),
        source=f"emopipe finetune from {start.name} (SHA-256 {start.sha256}) on {job.data.name}",
    )

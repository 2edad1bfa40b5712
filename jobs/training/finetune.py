"""Fine-tuning runs: from FER2013 to a folder with checkpoint, scores and plots."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from emopipe.emonet.checkpoint import Checkpoint, inherited_license, open_model, random_weights
from emopipe.emonet.data import fer2013, splits
from emopipe.emonet.data.fer2013 import FaceSet
from emopipe.emonet.data.splits import Split
from emopipe.emonet.model import EmoNet
from emopipe.emonet.registry import LEARNT_FROM_NOTHING
from emopipe.emonet.training.config import FineTuning
from emopipe.emonet.training.finetune import FineTuningTask, initial_network
from emopipe.emonet.training.trainer import Trainer
from emopipe.jobs.training.compute import Job
from emopipe.jobs.training.launch import OnStep
from emopipe.jobs.training.run import Run, check_choices, run_training, settings_of
from emopipe.pipeline.settings import DEFAULT_MODEL

_PRESERVED_BY = {
    "head": "unchanged",
    "emotion": "preserved by distillation while the emotion branch was trained",
    "all": "preserved by distillation while the whole network was trained",
}
"""How fine-tuning treats the start model's valence and arousal, by `FineTuning.trained`."""


@dataclass(frozen=True, kw_only=True)
class FineTuneJob(Job):
    """A fine-tuning run.

    Random weights to start from have the bundled model's dimensions. The seed of `training` also
    decides which images are held out, where the data do not.

    Attributes:
        ferplus: FER+'s votes, or None for FER2013's own labels.
        validation: subset to select the model by: "PublicTest" or "Training" (a part of it).
        tuning: what to learn.
    """

    ferplus: Path | None
    validation: str
    tuning: FineTuning


def fine_tune(
    job: FineTuneJob, out: Path, *, resume: bool, overwrite: bool, console: Console
) -> None:
    """Train, save the best weights, evaluate them and draw plots.

    Args:
        job: what to do.
        out: the run's folder; made if missing.
        resume: continue the run in the folder.
        overwrite: replace it.
        console: for the progress and the final tables.

    Raises:
        EmopipeError: data, checkpoint or folder cannot be used, or training failed.
    """
    check_choices(job.start_model, out, resume=resume, overwrite=overwrite)
    job = job.resolved()
    faces = fer2013.read(job.data, ferplus=job.ferplus, skip_bad=job.skip_bad)
    split = splits.split(faces, job.training.seed, job.validation)
    network, start = _start(job, faces.classes)
    output = _output_checkpoint(job, faces, start)
    run = Run(
        make_trainer=partial(
            make_trainer,
            job=job,
            faces=faces,
            split=split,
            start=network,
            start_classes=start.classes,
            output_checkpoint=output,
        ),
        output_checkpoint=output,
        faces=faces,
        split=split,
        training=job.training,
        compute=job.compute,
        about=_about(job, start, output, split),
    )
    run_training(run, out, resume=resume, overwrite=overwrite, console=console)


def make_trainer(
    on_step: OnStep,
    *,
    job: FineTuneJob,
    faces: FaceSet,
    split: Split,
    start: EmoNet,
    start_classes: tuple[str, ...],
    output_checkpoint: Checkpoint,
) -> Trainer:
    """Make the trainer, on the machine where it will run.

    Args:
        on_step: called after each step.
        job: what to do.
        faces: the images.
        split: their use.
        start: the start model.
        start_classes: its classes.
        output_checkpoint: describes the network to be trained.
    """
    training, device = job.training, job.compute.device
    # Before the task, which moves the start model to the device.
    network = initial_network(
        start, start_classes, faces.classes, job.tuning.trained, training.seed
    )
    task = FineTuningTask(
        faces,
        split,
        job.tuning,
        start if job.start_model else None,
        output_checkpoint,
        training.batch_size,
        training.seed,
        device,
        training.precision,
    )
    return Trainer(network, task, training, device, on_step)


def _start(job: FineTuneJob, classes: tuple[str, ...]) -> tuple[EmoNet, Checkpoint]:
    model, checkpoint = open_model(job.start_model or DEFAULT_MODEL, argument="start_model")
    if job.start_model:
        return model, checkpoint
    return random_weights(job.training.seed, classes, checkpoint.width, checkpoint.input_size)


def _about(
    job: FineTuneJob, start: Checkpoint, output: Checkpoint, split: Split
) -> tuple[str, ...]:
    """What is trained, and what about the start model may be unexpected."""
    if not job.start_model:
        return ("training from scratch",)
    notes = [f"training {job.tuning.trained} of {start.name}"]
    if split.drawn:
        notes.append(
            f"note: {start.name} may have learnt from the {' and '.join(split.drawn)} images, "
            "which were drawn from Training"
        )
    if start.crop != output.crop:
        notes.append(
            f"note: FER2013's images show less around the face than the crops of {start.name}: "
            "the new model's crops will be FER2013's"
        )
    return tuple(notes)


def _output_checkpoint(job: FineTuneJob, faces: FaceSet, start: Checkpoint) -> Checkpoint:
    """Describe the resulting network; its license follows from the start model's."""
    settings = settings_of(
        faces,
        job.training,
        job.compute,
        start={"name": start.name, "sha256": start.sha256, "license": start.license},
        validation=job.validation,
        tuning=asdict(job.tuning),
    )
    output = replace(
        start, classes=faces.classes, crop=fer2013.CROP, sha256="", provenance=settings
    )
    if not job.start_model:
        return replace(
            output,
            valence_arousal=f"{LEARNT_FROM_NOTHING}: trained from scratch on expressions alone",
            license="research use, as FER2013 which it was trained on",
            source="emopipe finetune --from-scratch",
        )
    return replace(
        output,
        valence_arousal=f"{start.valence_arousal} ({_PRESERVED_BY[job.tuning.trained]})",
        license=inherited_license(start.license),
        source=f"emopipe finetune from {start.name} (SHA-256 {start.sha256}) on {job.data.name}",
    )

"""A pretraining run: from FER2013 with votes and faces with landmarks to a folder with weights."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from emopipe.emonet.checkpoint import Checkpoint, inherited_licence, open_model, random_weights
from emopipe.emonet.data import fer2013, landmarks68
from emopipe.emonet.data.fer2013 import FaceSet, Split
from emopipe.emonet.data.landmarks68 import LandmarkSet
from emopipe.emonet.evaluation import extremes, landmark_errors_of, of_fer2013
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.metrics import score_dimension
from emopipe.emonet.model import EmoNet
from emopipe.emonet.predictor import Predictor
from emopipe.emonet.training.config import (
    INPUT_SIZE,
    WIDTH,
    Pretraining,
    TrainingError,
    TrainingSettings,
)
from emopipe.emonet.training.pretrain import (
    PICTURE_SIDE,
    PretrainingTask,
    class_weights,
    dimensions,
)
from emopipe.emonet.training.trainer import Trainer
from emopipe.jobs.training.launch import OnStep, Place
from emopipe.jobs.training.report import as_json, dimension_table
from emopipe.jobs.training.run import Run, carry_out, refuse_to_replace, settings_of

TERMS = "research use, as FER2013 and the landmark pictures that it was trained on"

SPLIT_SEED = 0
"""What is held out is the same in every run: one that begins with another's weights must not be
selected by what that one learnt from."""


@dataclass(frozen=True)
class Job:
    """A run as it is asked for.

    Attributes:
        data: FER2013, see `emonet.data.fer2013.read`.
        ferplus: FER+'s votes.
        landmarks: see `emonet.data.landmarks68.read_samples`.
        skip_bad: leave out bad rows of FER2013.
        start: name or path of the checkpoint to begin with; None for random weights.
        width: channels of the hourglasses; None for the start's, or WIDTH.
        input_size: side of the crops, pixels; None for the start's, or INPUT_SIZE.
        recipe: what to learn.
        training: how.
        place: where.
    """

    data: Path
    ferplus: Path
    landmarks: Path
    skip_bad: bool
    start: str | None
    width: int | None
    input_size: int | None
    recipe: Pretraining
    training: TrainingSettings
    place: Place


@dataclass(frozen=True)
class Material:
    """What is learnt from, read and divided.

    Attributes:
        faces: pictures with votes.
        split: what each of them is for.
        landmarked: pictures with landmarks.
        landmark_split: rows of them to learn from, and rows of other people to select by.
    """

    faces: FaceSet
    split: Split
    landmarked: LandmarkSet
    landmark_split: tuple[NDArray[np.int64], NDArray[np.int64]]


def pretrain(job: Job, folder: Path, *, resume: bool, overwrite: bool, console: Console) -> None:
    """Train, keep the best weights, judge them and draw what happened.

    Args:
        job: what to do.
        folder: the run's; made if need be.
        resume: go on with the run that is there.
        overwrite: replace it.
        console: where to show how it goes on, and the closing tables.

    Raises:
        EmopipeError: data or folder cannot be used, or training failed.
    """
    if job.start:
        refuse_to_replace(job.start, folder, overwrite=overwrite)
    network, start = _start(job)
    goal = _goal(job, start)
    material = _read(job, goal.input_size)
    faces, split, marked = material.faces, material.split, material.landmarked
    settings = settings_of(
        faces,
        job.training,
        job.place,
        landmarks={"source": marked.source, "sha256": marked.sha256, "pictures": len(marked)},
        network={"width": goal.width, "input_size": goal.input_size},
        start={"name": start.name, "sha256": start.sha256, "licence": start.licence},
        split_seed=SPLIT_SEED,
        recipe=asdict(job.recipe),
    )
    goal = replace(goal, made=settings)
    learning, selecting = material.landmark_split
    run = Run(
        make=partial(make_trainer, job=job, material=material, network=network, goal=goal),
        goal=goal,
        faces=faces,
        split=split,
        training=job.training,
        place=job.place,
        about=(
            f"training all of {start.name}",
            *_contaminated(start, settings),
            f"{marked.source}: {len(learning):,} pictures to learn from, {len(selecting):,} of "
            f"other people to select by",
        ),
        class_weights=class_weights(faces.targets[split.train], job.recipe.balance),
        further=partial(_further, material),
    )
    carry_out(run, folder, resume=resume, overwrite=overwrite, console=console)


def make_trainer(
    on_step: OnStep, *, job: Job, material: Material, network: EmoNet, goal: Checkpoint
) -> Trainer:
    """Make the trainer, on the machine where it will run.

    Args:
        on_step: told of each step.
        job: what to do.
        material: what to learn from.
        network: to be trained.
        goal: describes it.
    """
    task = PretrainingTask(
        material.faces,
        material.split,
        material.landmarked,
        material.landmark_split,
        job.recipe,
        goal,
        job.training.batch_size,
        job.training.seed,
        job.place.device,
        job.training.precision,
    )
    return Trainer(network, task, job.training, job.place.device, on_step)


def _read(job: Job, input_size: int) -> Material:
    faces = fer2013.read(job.data, ferplus=job.ferplus, skip_bad=job.skip_bad)
    marked = landmarks68.read(job.landmarks, round(PICTURE_SIDE * input_size))
    return Material(
        faces,
        fer2013.split(faces, SPLIT_SEED, "Training"),
        marked,
        landmarks68.split(marked, SPLIT_SEED),
    )


def _start(job: Job) -> tuple[EmoNet, Checkpoint]:
    """Return what is to be trained: the weights of --from, or random ones."""
    if not job.start:
        width = WIDTH if job.width is None else job.width
        size = INPUT_SIZE if job.input_size is None else job.input_size
        try:
            return random_weights(job.training.seed, EMOTIONS_8, width, size)
        except ValueError as error:
            raise TrainingError(f"--width or --input-size: {error}") from error
    network, start = open_model(job.start, option="--from")
    if start.classes != EMOTIONS_8:
        raise TrainingError(
            f"--from {job.start} tells {', '.join(start.classes)}: begin with a model of the "
            f"classes {', '.join(EMOTIONS_8)}, in this order"
        )
    for option, asked, its in (
        ("--width", job.width, start.width),
        ("--input-size", job.input_size, start.input_size),
    ):
        if asked not in (None, its):
            raise TrainingError(f"{option} {asked} is not {its}, that of --from: leave it out")
    return network, start


def _goal(job: Job, start: Checkpoint) -> Checkpoint:
    """Describe the network that will come of it."""
    licence, source = TERMS, "emopipe pretrain"
    if job.start:
        source += f" from {start.name} (SHA-256 {start.sha256})"
        inherited = inherited_licence(start.licence)
        licence = inherited if TERMS in inherited else f"{inherited}; {TERMS}"
    return replace(
        start,
        name="pretrained",
        crop=fer2013.CROP,
        valence_arousal="derived from expression votes, not annotated",
        licence=licence,
        source=source,
        sha256="",
    )


def _contaminated(start: Checkpoint, settings: dict[str, Any]) -> list[str]:
    """Say that the start model may have learnt from what this run selects by, where it may."""
    if not start.sha256:
        return []
    held_out = ("data", "landmarks", "split_seed")
    if all(start.made.get(name) == settings[name] for name in held_out):
        return []
    return [
        f"note: {start.name} may have learnt from the pictures that this run selects and "
        f"calibrates by"
    ]


def _further(
    material: Material, network: EmoNet, predictor: Predictor, console: Console
) -> dict[str, Any]:
    """Judge valence, arousal and landmarks, and show that."""
    faces, split = material.faces, material.split
    scores = {}
    for test, every in split.tests.items():
        rows = every[~split.known[test]]
        if not len(rows):
            continue
        truth = dimensions(faces.targets[rows])
        for view, mirror in (("plain", False), ("mirror", True)):
            said = of_fer2013(predictor, faces.images[rows], mirror=mirror)
            for i, name in enumerate(("valence", "arousal")):
                scores[f"{test}, {name}, {view}"] = score_dimension(
                    getattr(said, name), truth[:, i]
                )
    judged = np.concatenate(list(split.tests.values()))
    low, high = extremes(network, faces.images[judged], predictor.checkpoint.input_size)
    errors = landmark_errors_of(predictor, material.landmarked, material.landmark_split[1])
    console.print("\nvalence and arousal against what the votes stand for, copies left out:")
    console.print(dimension_table(scores))
    console.print(
        f"before clamping they lie in [{low:.2f}, {high:.2f}]\n"
        f"landmarks of {len(errors)} pictures of held-out people: mean error {errors.mean():.2%} "
        f"of the distance between the outer eye corners, 95th percentile "
        f"{np.percentile(errors, 95):.2%}",
        highlight=False,
        soft_wrap=True,
    )
    return {
        "dimensions": {name: as_json(score) for name, score in scores.items()},
        "before_clamping": [low, high],
        "landmark_error": float(errors.mean()),
    }

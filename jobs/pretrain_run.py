"""A pretraining run: from FER2013 with votes and faces with landmarks to a folder with weights."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from emonet import fer2013, landmarks68
from emonet.checkpoint import Checkpoint, CropSpec, random_weights
from emonet.evaluation import extremes, landmark_errors_of, of_fer2013
from emonet.fer2013 import FaceSet, Split
from emonet.labels import EMOTIONS_8
from emonet.landmarks68 import LandmarkSet
from emonet.metrics import score_dimension
from emonet.model import EmoNet
from emonet.predictor import Predictor
from emonet.pretraining import PICTURE_SIDE, PretrainingTask, class_weights, dimensions
from emonet.recipe import Pretraining, TrainingError, TrainingSettings
from emonet.training import Trainer
from jobs.runs import Run, carry_out, settings_of
from jobs.scorecard import as_json, dimension_table
from jobs.train import OnStep, Place

FER2013_CROP = CropSpec(scale=1.39, shift=(0.0, -0.13))
"""Where FER2013's pictures lie on the face, relative to the landmarks (the median of what a network
trained on them finds)."""


@dataclass(frozen=True)
class Job:
    """A run as it is asked for.

    Attributes:
        data: FER2013, see `emonet.fer2013.read`.
        ferplus: FER+'s votes.
        landmarks: see `emonet.landmarks68.read_samples`.
        skip_bad: leave out bad rows of FER2013.
        width: channels of the hourglasses.
        input_size: side of the crops, pixels.
        recipe: what to learn.
        training: how.
        place: where.
    """

    data: Path
    ferplus: Path
    landmarks: Path
    skip_bad: bool
    width: int
    input_size: int
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
    goal = _goal(job)
    material = _read(job)
    faces, split, marked = material.faces, material.split, material.landmarked
    settings = settings_of(
        faces,
        job.training,
        job.place,
        landmarks={"source": marked.source, "sha256": marked.sha256, "pictures": len(marked)},
        network={"width": job.width, "input_size": job.input_size},
        recipe=asdict(job.recipe),
    )
    goal = replace(goal, made=settings)
    learning, selecting = material.landmark_split
    run = Run(
        make=partial(make_trainer, job=job, material=material, goal=goal),
        goal=goal,
        faces=faces,
        split=split,
        training=job.training,
        place=job.place,
        about=(
            f"{marked.source}: {len(learning):,} pictures to learn from, {len(selecting):,} of "
            f"other people to select by",
        ),
        class_weights=class_weights(faces.targets[split.train], job.recipe.balance),
        further=partial(_further, material),
    )
    carry_out(run, folder, resume=resume, overwrite=overwrite, console=console)


def make_trainer(on_step: OnStep, *, job: Job, material: Material, goal: Checkpoint) -> Trainer:
    """Make the trainer, on the machine where it will run.

    Args:
        on_step: told of each step.
        job: what to do.
        material: what to learn from.
        goal: describes the network to be trained.
    """
    network, _ = random_weights(job.training.seed, EMOTIONS_8, job.width, job.input_size)
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


def _read(job: Job) -> Material:
    faces = fer2013.read(job.data, ferplus=job.ferplus, skip_bad=job.skip_bad)
    marked = landmarks68.read(job.landmarks, round(PICTURE_SIDE * job.input_size))
    seed = job.training.seed
    return Material(
        faces, fer2013.split(faces, seed, "Training"), marked, landmarks68.split(marked, seed)
    )


def _goal(job: Job) -> Checkpoint:
    try:
        return Checkpoint(
            name="pretrained",
            classes=EMOTIONS_8,
            width=job.width,
            input_size=job.input_size,
            crop=FER2013_CROP,
            valence_arousal="derived from expression votes, not annotated",
            licence="research use, as FER2013 and the landmark pictures that it was trained on",
            source="emopipe pretrain",
        )
    except ValueError as error:
        raise TrainingError(f"--width or --input-size: {error}") from error


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

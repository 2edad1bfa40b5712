"""A pretraining run: from FER2013 with votes and faces with landmarks to a folder with weights."""

import json
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from emonet import fer2013, landmarked
from emonet.checkpoint import Checkpoint, CropSpec, random_weights
from emonet.evaluation import extremes, of_fer2013, of_landmarked
from emonet.fer2013 import FaceSet, Split
from emonet.labels import EMOTIONS_8
from emonet.landmarked import LandmarkSet
from emonet.metrics import score_dimension
from emonet.model import EmoNet
from emonet.predictor import Predictor, resolve_device
from emonet.pretraining import (
    PICTURE_SIDE,
    PretrainingTask,
    balancing,
    dimensions,
    without_outliers,
)
from emonet.recipe import Pretraining, TrainingError, TrainingSettings
from emonet.training import Trainer
from jobs.runs import METRICS, Finished, Shown, about_bad, finish, prepare
from jobs.scorecard import as_json, dimension_table
from jobs.train import OnStep, Place, train

FER2013_CROP = CropSpec(scale=1.39, shift=(0.0, -0.13))
"""Where FER2013's pictures lie on the face, relative to the landmarks (the median of what a network
trained on them finds)."""


@dataclass(frozen=True)
class Job:
    """A run as it is asked for.

    Attributes:
        data: FER2013, see `emonet.fer2013.read`.
        ferplus: FER+'s votes.
        landmarks: see `emonet.landmarked.read_samples`.
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


def run(job: Job, folder: Path, *, resume: bool, overwrite: bool, console: Console) -> None:
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
    material = _read(job)
    faces, split = material.faces, material.split
    settings = _settings(job, material)
    goal = _goal(job, settings)
    prepare(folder, settings, resume=resume, overwrite=overwrite)
    learning, selecting = material.landmark_split
    console.print(
        f"{faces.source}: {len(split.train):,} pictures to learn from, "
        f"{len(split.validation):,} to select by\n"
        f"{material.landmarked.source}: {len(learning):,} to learn from, {len(selecting):,} of "
        f"other people to select by",
        highlight=False,
        soft_wrap=True,
    )
    make = partial(make_trainer, job=job, material=material, goal=goal)
    with Shown(console, job.training, folder / METRICS) as shown:
        state = train(make, folder, job.place, shown)
    finished = Finished(
        state=state,
        goal=goal,
        faces=faces,
        split=split,
        notes=[*split.notes, *about_bad(faces)],
        class_weights=balancing(without_outliers(faces.targets[split.train]), job.recipe.balance),
    )
    finish(finished, folder, console, partial(_further, material=material, console=console))


def make_trainer(on_step: OnStep, *, job: Job, material: Material, goal: Checkpoint) -> Trainer:
    """Make the trainer, on the machine where it will run.

    Args:
        on_step: told of each step.
        job: what to do.
        material: what to learn from.
        goal: describes the network to be trained.
    """
    device = resolve_device("cuda" if job.place.gpu else "cpu")
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
        device,
        job.training.precision,
    )
    return Trainer(network, task, job.training, device, on_step)


def _read(job: Job) -> Material:
    faces = fer2013.read(job.data, ferplus=job.ferplus, skip_bad=job.skip_bad)
    marked = landmarked.read(job.landmarks, round(PICTURE_SIDE * job.input_size))
    seed = job.training.seed
    return Material(
        faces, fer2013.split(faces, seed, "Training"), marked, landmarked.split(marked, seed)
    )


def _settings(job: Job, material: Material) -> dict[str, Any]:
    """All that decides the result, as JSON has it."""
    faces, marked = material.faces, material.landmarked
    decisive = {
        "emopipe": version("emopipe"),
        "data": {"source": faces.source, "sha256": faces.sha256, "pictures": len(faces)},
        "landmarks": {"source": marked.source, "sha256": marked.sha256, "pictures": len(marked)},
        "network": {"width": job.width, "input_size": job.input_size},
        "recipe": asdict(job.recipe),
        "training": asdict(job.training),
        "workers": job.place.workers,
        "local": job.place.local,
    }
    plain: dict[str, Any] = json.loads(json.dumps(decisive))
    return plain


def _goal(job: Job, settings: dict[str, Any]) -> Checkpoint:
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
            made=settings,
        )
    except ValueError as error:
        raise TrainingError(f"--width or --input-size: {error}") from error


def _further(
    network: EmoNet, predictor: Predictor, *, material: Material, console: Console
) -> dict[str, Any]:
    """Judge valence, arousal and landmarks, and show that."""
    faces, split = material.faces, material.split
    scores = {}
    for test, every in split.tests.items():
        rows = every[~split.known[test]]
        truth = dimensions(faces.targets[rows])
        for view, mirror in (("plain", False), ("mirror", True)):
            said = of_fer2013(predictor, faces.images[rows], mirror=mirror)
            for i, name in enumerate(("valence", "arousal")):
                scores[f"{test}, {name}, {view}"] = score_dimension(
                    getattr(said, name), truth[:, i]
                )
    judged = np.concatenate(list(split.tests.values()))
    low, high = extremes(network, faces.images[judged], predictor.checkpoint.input_size)
    errors = of_landmarked(predictor, material.landmarked, material.landmark_split[1])
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

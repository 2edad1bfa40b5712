"""Pretraining runs: from faces with votes and faces with landmarks to a folder with checkpoint."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from emopipe.emonet.checkpoint import Checkpoint, inherited_license, open_model, random_weights
from emopipe.emonet.data import fer2013, landmarks68, splits
from emopipe.emonet.data.fer2013 import FaceSet
from emopipe.emonet.data.landmarks68 import LandmarkSet
from emopipe.emonet.data.splits import Split
from emopipe.emonet.errors import TrainingError
from emopipe.emonet.evaluation import VIEWS
from emopipe.emonet.inference import landmark_errors_of, output_range, predict_fer2013
from emopipe.emonet.labels import EMOTIONS_8
from emopipe.emonet.metrics import as_json, score_dimension
from emopipe.emonet.model import SIZE_MULTIPLE, WIDTH_MULTIPLE, EmoNet
from emopipe.emonet.predictor import Predictor
from emopipe.emonet.registry import DERIVED_FROM_VOTES, REGISTRY
from emopipe.emonet.training.config import INPUT_SIZE, WIDTH, NetworkSize, Pretraining
from emopipe.emonet.training.pretrain import (
    IMAGE_SCALE,
    PretrainingTask,
    class_weights,
    dimensions,
)
from emopipe.emonet.training.trainer import Trainer
from emopipe.jobs.training.compute import Job
from emopipe.jobs.training.launch import OnStep
from emopipe.jobs.training.report import dimension_table
from emopipe.jobs.training.run import Run, check_choices, run_training, settings_of

LICENSE = REGISTRY["emonet-lite"].license
"""Of weights that are pretrained from random ones, as the bundled model's were."""

SPLIT_SEED = 0
"""The same images are held out in every run: a run that starts from the weights of another must not
be selected by images that the other was trained on."""


@dataclass(frozen=True, kw_only=True)
class PretrainJob(Job):
    """A pretraining run.

    Attributes:
        ferplus: FER+'s votes.
        landmarks: see `emonet.data.landmarks68.read_samples`.
        size: dimensions of the network; None for the start model's, or WIDTH and INPUT_SIZE.
        pretraining: what to learn.
    """

    ferplus: Path
    landmarks: Path
    size: NetworkSize
    pretraining: Pretraining


@dataclass(frozen=True)
class TrainingData:
    """The data of a run, read and divided.

    Attributes:
        faces: images with votes.
        split: their use.
        landmarked: images with landmarks.
        landmark_split: their rows to train on, and rows of other people to select by.
    """

    faces: FaceSet
    split: Split
    landmarked: LandmarkSet
    landmark_split: tuple[NDArray[np.int64], NDArray[np.int64]]


def pretrain(
    job: PretrainJob, out: Path, *, resume: bool, overwrite: bool, console: Console
) -> None:
    """Train, save the best weights, evaluate them and draw plots.

    Args:
        job: what to do.
        out: the run's folder; made if missing.
        resume: continue the run in the folder.
        overwrite: replace it.
        console: for the progress and the final tables.

    Raises:
        EmopipeError: data or folder cannot be used, or training failed.
    """
    check_choices(job.start_model, out, resume=resume, overwrite=overwrite)
    job = job.resolved()
    network, start = _start(job)
    output = _output_checkpoint(job, start)
    data = read_data(job, output.input_size)
    faces, split, landmarked = data.faces, data.split, data.landmarked
    settings = settings_of(
        faces,
        job.training,
        job.compute,
        landmarks={
            "source": landmarked.source,
            "sha256": landmarked.sha256,
            "pictures": len(landmarked),
        },
        network={"width": output.width, "input_size": output.input_size},
        start={"name": start.name, "sha256": start.sha256, "license": start.license},
        split_seed=SPLIT_SEED,
        pretraining=asdict(job.pretraining),
    )
    output = replace(output, provenance=settings)
    training, selecting = data.landmark_split
    run = Run(
        make_trainer=partial(
            make_trainer, job=job, data=data, network=network, output_checkpoint=output
        ),
        output_checkpoint=output,
        faces=faces,
        split=split,
        training=job.training,
        compute=job.compute,
        about=(
            f"training all of {start.name}",
            *_contamination(start, settings),
            f"{landmarked.source}: {len(training):,} images to train on, {len(selecting):,} of "
            f"other people to select by",
        ),
        class_weights=class_weights(faces.targets[split.train], job.pretraining.balance),
        further_scores=partial(_further_scores, data),
    )
    run_training(run, out, resume=resume, overwrite=overwrite, console=console)


def make_trainer(
    on_step: OnStep,
    *,
    job: PretrainJob,
    data: TrainingData,
    network: EmoNet,
    output_checkpoint: Checkpoint,
) -> Trainer:
    """Make the trainer, on the machine where it will run.

    Args:
        on_step: called after each step.
        job: what to do.
        data: what to train on.
        network: to be trained.
        output_checkpoint: describes it.
    """
    training, device = job.training, job.compute.device
    task = PretrainingTask(
        data.faces,
        data.split,
        data.landmarked,
        data.landmark_split,
        job.pretraining,
        output_checkpoint,
        training.batch_size,
        training.seed,
        device,
        training.precision,
    )
    return Trainer(network, task, training, device, on_step)


def read_data(job: PretrainJob, input_size: int) -> TrainingData:
    """Read and divide the data; `input_size` is the side of the network's crops, pixels.

    Raises:
        DataError: a file cannot be read, or holds too little.
    """
    faces = fer2013.read(job.data, ferplus=job.ferplus, skip_bad=job.skip_bad)
    landmarked = landmarks68.read(job.landmarks, round(IMAGE_SCALE * input_size))
    return TrainingData(
        faces,
        splits.split(faces, SPLIT_SEED, "Training"),
        landmarked,
        landmarks68.split(landmarked, SPLIT_SEED),
    )


def _start(job: PretrainJob) -> tuple[EmoNet, Checkpoint]:
    """The network to be trained: the start model, or one with random weights.

    Raises:
        CheckpointError: the start model cannot be loaded.
        TrainingError: it has other classes or other dimensions, or no network has these dimensions.
    """
    if not job.start_model:
        width, input_size = job.size.width or WIDTH, job.size.input_size or INPUT_SIZE
        for argument, value, multiple in (
            ("width", width, WIDTH_MULTIPLE),
            ("input_size", input_size, SIZE_MULTIPLE),
        ):
            if value % multiple:
                raise TrainingError(f"`{argument}` is a multiple of {multiple}, not {value}")
        return random_weights(job.training.seed, EMOTIONS_8, width, input_size)
    network, start = open_model(job.start_model, argument="start_model")
    if start.classes != EMOTIONS_8:
        raise TrainingError(
            f"`start_model` {job.start_model} has the classes {', '.join(start.classes)}: start "
            f"from a model with the classes {', '.join(EMOTIONS_8)}, in this order"
        )
    for argument, asked, its in (
        ("width", job.size.width, start.width),
        ("input_size", job.size.input_size, start.input_size),
    ):
        if asked not in (None, its):
            raise TrainingError(
                f"`{argument}` {asked} is not {its}, that of `start_model`: leave it out"
            )
    return network, start


def _output_checkpoint(job: PretrainJob, start: Checkpoint) -> Checkpoint:
    """Describe the resulting network, without its provenance."""
    terms, source = LICENSE, "emopipe pretrain"
    if job.start_model:
        source += f" from {start.name} (SHA-256 {start.sha256})"
        inherited = inherited_license(start.license)
        terms = inherited if LICENSE in inherited else f"{inherited}; {LICENSE}"
    return replace(
        start,
        name="pretrained",
        crop=fer2013.CROP,
        valence_arousal=DERIVED_FROM_VOTES,
        license=terms,
        source=source,
        sha256="",
    )


def _contamination(start: Checkpoint, settings: dict[str, Any]) -> list[str]:
    """A note if the start model may have been trained on images that this run selects by."""
    if not start.sha256:
        return []
    held_out = ("data", "landmarks", "split_seed")
    if all(start.provenance.get(name) == settings[name] for name in held_out):
        return []
    return [
        f"note: {start.name} may have learnt from the images that this run selects and "
        f"calibrates by"
    ]


def _further_scores(
    data: TrainingData, network: EmoNet, predictor: Predictor, console: Console
) -> dict[str, Any]:
    """Evaluate valence, arousal and landmarks; print and return the scores."""
    faces, split = data.faces, data.split
    scores = {}
    for test, all_rows in split.tests.items():
        rows = all_rows[~split.in_training[test]]
        if not len(rows):
            continue
        truth = dimensions(faces.targets[rows])
        for view, mirror in VIEWS.items():
            prediction = predict_fer2013(predictor.with_mirror(mirror), faces.images[rows])
            for i, name in enumerate(("valence", "arousal")):
                scores[f"{test}, {name}, {view}"] = score_dimension(
                    getattr(prediction, name), truth[:, i]
                )
    tested = np.concatenate(list(split.tests.values()))
    low, high = output_range(network, faces.images[tested], predictor.checkpoint.input_size)
    errors = landmark_errors_of(predictor, data.landmarked, data.landmark_split[1])
    console.print("\nvalence and arousal against those derived from the votes, copies left out:")
    console.print(dimension_table(scores))
    console.print(
        f"before clamping they lie in [{low:.2f}, {high:.2f}]\n"
        f"landmarks of {len(errors)} images of held-out people: mean error {errors.mean():.2%} "
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

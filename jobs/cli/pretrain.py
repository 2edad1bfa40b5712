"""`emopipe pretrain`: all outputs of a small EmoNet at once, as the bundled one was trained."""

from pathlib import Path
from typing import Any

import click

from emopipe.emonet.training.config import (
    PRETRAIN_DEFAULTS,
    NetworkSize,
    Pretraining,
    TrainingConfig,
)
from emopipe.jobs.cli.base import Command, option
from emopipe.jobs.cli.options import build, options_of
from emopipe.jobs.cli.training_options import (
    ferplus_option,
    folder_options,
    run_in_folder,
    skip_bad_option,
    start_option,
)
from emopipe.jobs.training.compute import ComputeConfig


@click.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@ferplus_option("FER+'s votes over 8 classes", required=True)
@option(
    "--landmarks",
    type=click.Path(path_type=Path),
    required=True,
    group="data",
    help="Parquet table of face images with 68 landmarks: name, jpg, landmarks.",
)
@skip_bad_option
@start_option("Model with these 8 classes", default=None)
@options_of(NetworkSize(), Pretraining(), PRETRAIN_DEFAULTS, ComputeConfig())
@folder_options
def pretrain(
    data: Path,
    ferplus: Path,
    landmarks: Path,
    skip_bad: bool,
    start_model: str | None,
    **options: Any,
) -> None:
    """Train a small EmoNet: expressions, valence, arousal, landmarks.

    DATA is fer2013.csv or icml_face_data.csv (plain, compressed or in an archive). A tenth of its
    Training images and of the people with landmarks are held out to select by. Leaves
    best.safetensors, which `emopipe analyze --model` takes, metrics.csv, scores.json and plots in
    the run's folder.
    """
    size = build(NetworkSize, options)
    pretraining = build(Pretraining, options)
    training = build(TrainingConfig, options)
    compute = build(ComputeConfig, options)
    # Loaded here: PyTorch takes seconds that --help need not wait.
    from emopipe.jobs.training import pretrain as pretrain_run

    job = pretrain_run.PretrainJob(
        data=data,
        ferplus=ferplus,
        landmarks=landmarks,
        skip_bad=skip_bad,
        start_model=start_model,
        size=size,
        pretraining=pretraining,
        training=training,
        compute=compute,
    )
    run_in_folder(pretrain_run.pretrain, job, "pretrain", data, options)

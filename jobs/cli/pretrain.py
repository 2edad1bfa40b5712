"""`emopipe pretrain`: all outputs of a small EmoNet at once, as the bundled one was trained."""

from pathlib import Path
from typing import Any

import click

from emopipe.emonet.training.config import (
    INPUT_SIZE,
    PRETRAIN_DEFAULTS,
    WIDTH,
    Pretraining,
    TrainingConfig,
)
from emopipe.jobs.cli.base import Command, option
from emopipe.jobs.cli.options import build, options_of
from emopipe.jobs.cli.training_options import folder_options, run_in_folder
from emopipe.jobs.training.compute import ComputeConfig


@click.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@option(
    "--ferplus",
    type=click.Path(path_type=Path),
    required=True,
    group="data",
    help="fer2013new.csv: FER+'s votes over 8 classes.",
)
@option(
    "--landmarks",
    type=click.Path(path_type=Path),
    required=True,
    group="data",
    help="Parquet table of face images with 68 landmarks: name, jpg, landmarks.",
)
@option("--skip-bad", is_flag=True, group="data", help="Leave out rows that cannot be read.")
@option(
    "--from",
    "start_model",
    group="model",
    help="Model with these 8 classes to start from: a name (see `emopipe models list`) or a "
    "checkpoint's path.  [default: random weights]",
)
@option(
    "--width",
    type=int,
    group="model",
    help="Channels of the hourglasses, a multiple of 16; the published network's: 256.  "
    f"[default: {WIDTH}, or those of --from]",
)
@option(
    "--input-size",
    type=int,
    group="model",
    help="Side of the crops, pixels, a multiple of 64.  "
    f"[default: {INPUT_SIZE}, or that of --from]",
)
@options_of(Pretraining(), PRETRAIN_DEFAULTS, ComputeConfig())
@folder_options
def pretrain(
    data: Path,
    ferplus: Path,
    landmarks: Path,
    skip_bad: bool,
    start_model: str | None,
    width: int | None,
    input_size: int | None,
    **options: Any,
) -> None:
    """Train a small EmoNet: expressions, valence, arousal, landmarks.

    DATA is fer2013.csv or icml_face_data.csv (or .gz of them). A tenth of its Training images
    and of the people with landmarks are held out to select by. Leaves best.safetensors, which
    `emopipe analyze --model` takes, metrics.csv, scores.json and plots in the run's folder.
    """
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
        width=width,
        input_size=input_size,
        pretraining=pretraining,
        training=training,
        compute=compute,
    )
    run_in_folder(pretrain_run.pretrain, job, "pretrain", data, options)

"""`emopipe pretrain`: all outputs of a small EmoNet at once, as the bundled one was made."""

from pathlib import Path
from typing import Any

import click

from emopipe.emonet.training.config import INPUT_SIZE, WIDTH, Pretraining, TrainingSettings
from emopipe.jobs.cli.training_options import (
    number,
    place_and_training,
    run_in_folder,
    training_options,
)

_PRETRAINING = Pretraining()


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--ferplus",
    type=click.Path(path_type=Path),
    required=True,
    help="fer2013new.csv: FER+'s votes over 8 classes.",
)
@click.option(
    "--landmarks",
    type=click.Path(path_type=Path),
    required=True,
    help="Parquet table of face pictures with 68 landmarks: name, jpg, landmarks.",
)
@click.option(
    "--from",
    "start",
    help="Model with these 8 classes to begin with: a name (see `emopipe models list`) or a "
    "checkpoint's path.  [default: random weights]",
)
@click.option(
    "--width",
    type=int,
    help="Channels of the hourglasses, a multiple of 16; the published network's: 256.  "
    f"[default: {WIDTH}, or those of --from]",
)
@click.option(
    "--input-size",
    type=int,
    help="Side of the crops, pixels, a multiple of 64.  "
    f"[default: {INPUT_SIZE}, or that of --from]",
)
@number("landmark_share", _PRETRAINING.landmark_share, "Faces with landmarks for each with votes.")
@number("balance", _PRETRAINING.balance, "How much more rare classes weigh: 0 none, 1 in full.")
@training_options(
    TrainingSettings(epochs=16, learning_rate=2e-3, weight_decay=0.05, ema=0.998, patience=16)
)
def pretrain(
    data: Path,
    ferplus: Path,
    landmarks: Path,
    start: str | None,
    width: int | None,
    input_size: int | None,
    landmark_share: float,
    balance: float,
    **options: Any,
) -> None:
    """Train a small EmoNet: 8 expressions, valence, arousal, 68 landmarks.

    DATA is fer2013.csv or icml_face_data.csv (or .gz of them). A tenth of its Training pictures
    and of the people with landmarks are held out to select by. Leaves best.safetensors, which
    `emopipe analyze --model` takes, metrics.csv, scores.json and plots in the run's folder.
    """
    # Loaded here: PyTorch takes seconds that --help need not wait.
    from emopipe.jobs.training import pretrain as pretrain_run

    place, training = place_and_training(options)
    job = pretrain_run.Job(
        data=data,
        ferplus=ferplus,
        landmarks=landmarks,
        skip_bad=options["skip_bad"],
        start=start,
        width=width,
        input_size=input_size,
        recipe=Pretraining(landmark_share, balance),
        training=training,
        place=place,
    )
    run_in_folder(pretrain_run.pretrain, job, "pretrain", data, options)

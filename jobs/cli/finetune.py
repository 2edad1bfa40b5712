"""`emopipe finetune`: transfer learning on FER2013."""

from pathlib import Path
from typing import Any

import click

from emopipe.emonet.training.config import BALANCES, PARTS, FineTuning, TrainingSettings
from emopipe.jobs.cli.training_options import (
    given,
    number,
    place_and_training,
    run_in_folder,
    training_options,
)
from emopipe.pipeline.settings import DEFAULT_MODEL

_TUNING = FineTuning()


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "start",
    default=DEFAULT_MODEL,
    show_default=True,
    help="Model to begin with: a name (see `emopipe models list`) or a checkpoint's path.",
)
@click.option(
    "--from-scratch", is_flag=True, help="Begin with random weights instead; trains all of them."
)
@click.option(
    "--ferplus",
    type=click.Path(path_type=Path),
    help="fer2013new.csv: learn the distribution of FER+'s votes over 8 classes.",
)
@click.option(
    "--validation",
    type=click.Choice(["PublicTest", "Training"]),
    default="PublicTest",
    show_default=True,
    help="What the model is selected by; Training: a tenth of it, and PublicTest is a test too.",
)
@click.option(
    "--train",
    "trained",
    type=click.Choice(PARTS),
    default=_TUNING.trained,
    show_default=True,
    help="What is trained: the last layer, the emotion branch, or everything.",
)
@click.option(
    "--balance",
    type=click.Choice(BALANCES),
    default=_TUNING.balance,
    show_default=True,
    help="Make up for rare classes in the loss or by drawing them more often.",
)
@number("smoothing", _TUNING.smoothing, "Share of each target that is spread over all classes.")
@number("keep", _TUNING.keep, "Weight of holding valence, arousal, landmarks to the start model's.")
@training_options(TrainingSettings(epochs=14, ema=0.998, patience=8))
def finetune(
    data: Path,
    start: str,
    from_scratch: bool,
    ferplus: Path | None,
    validation: str,
    trained: str,
    balance: str,
    smoothing: float,
    keep: float,
    **options: Any,
) -> None:
    """Teach a model the expressions of FER2013.

    DATA is fer2013.csv or icml_face_data.csv (or .gz of them), or a folder of class folders.
    Leaves best.safetensors, which `emopipe analyze --model` takes, metrics.csv, scores.json and
    plots in the run's folder.
    """
    if from_scratch and given("start", "trained"):
        raise click.UsageError("--from-scratch trains all of random weights: no --from, no --train")
    # Loaded here: PyTorch takes seconds that --help need not wait.
    from emopipe.jobs.training.finetune import Job, fine_tune

    place, training = place_and_training(options)
    job = Job(
        data=data,
        ferplus=ferplus,
        skip_bad=options["skip_bad"],
        validation=validation,
        start=None if from_scratch else start,
        tuning=FineTuning("all" if from_scratch else trained, balance, smoothing, keep),
        training=training,
        place=place,
    )
    run_in_folder(fine_tune, job, "finetune", data, options)

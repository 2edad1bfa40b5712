"""`emopipe finetune`: transfer learning on FER2013."""

from pathlib import Path
from typing import Any

import click

from emopipe.emonet.training.config import FINETUNE_DEFAULTS, FineTuning, TrainingConfig
from emopipe.jobs.cli.base import Command, option
from emopipe.jobs.cli.options import build, given, options_of
from emopipe.jobs.cli.training_options import (
    ferplus_option,
    folder_options,
    run_in_folder,
    skip_bad_option,
    start_option,
)
from emopipe.jobs.training.compute import ComputeConfig
from emopipe.pipeline.settings import DEFAULT_MODEL


@click.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@start_option("Model", default=DEFAULT_MODEL)
@option(
    "--from-scratch",
    is_flag=True,
    group="model",
    help="Start from random weights instead; trains all of them.",
)
@ferplus_option("learn the distribution of FER+'s votes over 8 classes", required=False)
@option(
    "--validation",
    type=click.Choice(["PublicTest", "Training"]),
    default="PublicTest",
    group="data",
    help="What the model is selected by; Training: a tenth of it, and PublicTest is a test too.  "
    "[default: PublicTest]",
)
@skip_bad_option
@options_of(FineTuning(), FINETUNE_DEFAULTS, ComputeConfig())
@folder_options
def finetune(
    data: Path,
    start_model: str,
    from_scratch: bool,
    ferplus: Path | None,
    validation: str,
    skip_bad: bool,
    **options: Any,
) -> None:
    """Teach a model the expressions of FER2013.

    DATA is fer2013.csv or icml_face_data.csv (plain, compressed or in an archive), or a folder of
    class folders. Leaves best.safetensors, which `emopipe analyze --model` takes, metrics.csv,
    scores.json and plots in the run's folder.
    """
    if from_scratch:
        if given("start_model", "trained"):
            raise click.UsageError(
                "--from-scratch trains all weights, from random ones: leave out --from and --train"
            )
        options["trained"] = "all"
    tuning = build(FineTuning, options)
    training = build(TrainingConfig, options)
    compute = build(ComputeConfig, options)
    # Loaded here: PyTorch takes seconds that --help need not wait.
    from emopipe.jobs.training.finetune import FineTuneJob, fine_tune

    job = FineTuneJob(
        data=data,
        ferplus=ferplus,
        skip_bad=skip_bad,
        validation=validation,
        start_model=None if from_scratch else start_model,
        tuning=tuning,
        training=training,
        compute=compute,
    )
    run_in_folder(fine_tune, job, "finetune", data, options)

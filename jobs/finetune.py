"""`emopipe finetune`: transfer learning on FER2013."""

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from emonet.recipe import BALANCES, BATCH_NORMS, PARTS, PRECISIONS, FineTuning, TrainingSettings
from jobs import EXIT_INTERRUPTED
from pipeline.settings import DEFAULT_MODEL

_TRAINING = {field.name: field.default for field in fields(TrainingSettings)}
_TUNING = {field.name: field.default for field in fields(FineTuning)}


def _number(
    name: str, kind: type, text: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option for a number of `TrainingSettings` or `FineTuning`; these check its range."""
    default = {**_TRAINING, **_TUNING}[name]
    return click.option(
        f"--{name.replace('_', '-')}", type=kind, default=default, show_default=True, help=text
    )


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The run's folder.  [default: runs/ and the data's name]",
)
@click.option("--resume", is_flag=True, help="Go on with the run that is in the folder.")
@click.option("--overwrite", is_flag=True, help="Replace the run that is in the folder.")
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
@click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be read.")
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
    default=_TUNING["trained"],
    show_default=True,
    help="What is trained: the last layer, the emotion branch, or everything.",
)
@click.option(
    "--balance",
    type=click.Choice(BALANCES),
    default=_TUNING["balance"],
    show_default=True,
    help="Make up for rare classes in the loss or by drawing them more often.",
)
@_number("smoothing", float, "Share of each target that is spread over all classes.")
@_number("keep", float, "Weight of holding valence, arousal and landmarks to the start model's.")
@_number("epochs", int, "Passes over the data at most.")
@_number("batch_size", int, "Pictures a step and worker.")
@_number("learning_rate", float, "AdamW's, at its highest.")
@_number("weight_decay", float, "AdamW's.")
@_number("warmup", float, "Share of the steps over which the learning rate rises.")
@_number("cycles", int, "Half cosines by which it falls; more than 1: warm restarts.")
@_number("clip", float, "Largest norm of the gradient.")
@_number("ema", float, "Decay a step of the averaged weights, which are kept.")
@_number("patience", int, "Epochs without a better score after which training ends.")
@_number("seed", int, "Of everything random.")
@click.option(
    "--precision",
    type=click.Choice(["auto", *PRECISIONS]),
    default="auto",
    show_default=True,
    help="bfloat16 is mixed precision; auto takes it where it is native.",
)
@click.option(
    "--batch-norm",
    type=click.Choice(BATCH_NORMS),
    default=_TRAINING["batch_norm"],
    show_default=True,
    help="Statistics of each batch, or those of the start model.",
)
@click.option("--local", is_flag=True, help="Train in this process, without Ray.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Ray Train's processes that share each step.",
)
@click.option(
    "--gpus/--no-gpus", "gpu", default=None, help="A GPU for each worker.  [default: if there is]"
)
@click.option("--cpus", type=click.IntRange(1), help="CPUs for the run.  [default: all]")
@click.option(
    "--address",
    help="Train on a running Ray cluster: auto, HOST:6379; all its nodes must see --out.",
)
def finetune(
    data: Path,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    start: str,
    from_scratch: bool,
    ferplus: Path | None,
    skip_bad: bool,
    validation: str,
    precision: str,
    local: bool,
    workers: int,
    gpu: bool | None,
    cpus: int | None,
    address: str | None,
    **options: Any,
) -> None:
    """Teach a model the expressions of FER2013.

    DATA is fer2013.csv or icml_face_data.csv (or .gz of them), or a folder of class folders.
    Leaves best.safetensors, which `emopipe analyze --model` takes, metrics.csv, scores.json and
    plots in the run's folder.
    """
    # Loaded here: PyTorch takes seconds that --help need not wait.
    import torch

    from jobs.train import Place
    from jobs.transfer import Job, run, training_precision

    if local and (workers > 1 or address):
        raise click.UsageError("--local trains in this process: --workers and --address are Ray's")
    if resume and overwrite:
        raise click.UsageError("--resume goes on with a run, --overwrite replaces it: choose one")
    if from_scratch:
        options["trained"] = "all"
    gpu = torch.cuda.is_available() if gpu is None else gpu
    tuning = FineTuning(**{name: options.pop(name) for name in _TUNING if name in options})
    training = TrainingSettings(precision=training_precision(precision, gpu=gpu), **options)
    job = Job(
        data=data,
        ferplus=ferplus,
        skip_bad=skip_bad,
        validation=validation,
        start=None if from_scratch else start,
        tuning=tuning,
        training=training,
        place=Place(local, workers, gpu, cpus, address),
    )
    folder = out or Path("runs") / data.name.removesuffix(".gz").removesuffix(".csv")
    # As wide as the terminal; wide enough for every table when piped.
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        run(job, folder, resume=resume, overwrite=overwrite, console=console)
    except KeyboardInterrupt:
        console.print("stopped; --resume goes on from the last epoch")
        sys.exit(EXIT_INTERRUPTED)

"""Options that all training commands share."""

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from emopipe.emonet.training.config import BATCH_NORMS, PRECISIONS, TrainingSettings
from emopipe.jobs import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from emopipe.jobs.training.launch import Place

SETTLE = 3
"""Epochs that settle what was learnt, unless there are few."""

Command = Callable[..., None]
Decorator = Callable[[Command], Command]

_RUN: list[Decorator] = [
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="The run's folder.  [default: runs/COMMAND-DATA]",
    ),
    click.option("--resume", is_flag=True, help="Go on with the run that is in the folder."),
    click.option("--overwrite", is_flag=True, help="Replace the run that is in the folder."),
    click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be read."),
]
_PLACE: list[Decorator] = [
    click.option(
        "--precision",
        type=click.Choice(["auto", *PRECISIONS]),
        default="auto",
        show_default=True,
        help="bfloat16 is mixed precision; auto takes it where it is native.",
    ),
    click.option("--local", is_flag=True, help="Train in this process, without Ray."),
    click.option(
        "--workers",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Ray Train's processes that share each step.",
    ),
    click.option(
        "--gpus/--no-gpus",
        "gpu",
        default=None,
        help="A GPU for each worker.  [default: if there is]",
    ),
    click.option("--cpus", type=click.IntRange(1), help="CPUs for the run.  [default: all]"),
    click.option(
        "--address",
        help="Train on a running Ray cluster: auto, HOST:6379; all its nodes must see --out.",
    ),
]


def number(name: str, default: float, text: str) -> Decorator:
    """An option for a number of a recipe, which checks its range."""
    return click.option(
        f"--{name.replace('_', '-')}",
        type=type(default),
        default=default,
        show_default=True,
        help=text,
    )


def given(*names: str) -> list[str]:
    """Those of the running command's parameters that the user named on the command line."""
    context = click.get_current_context()
    named = click.core.ParameterSource.COMMANDLINE
    return [name for name in names if context.get_parameter_source(name) is named]


def training_options(defaults: TrainingSettings) -> Decorator:
    """Add the options for `TrainingSettings`, the run's folder and `jobs.training.launch.Place`."""
    numbers = {
        "epochs": "Passes over the data at most.",
        "batch_size": "Pictures a step and worker.",
        "learning_rate": "AdamW's, at its highest.",
        "weight_decay": "AdamW's.",
        "warmup": "Share of the steps over which the learning rate rises.",
        "cycles": "Half cosines by which it falls; more than 1: warm restarts.",
        "clip": "Largest norm of the gradient.",
        "ema": "Decay a step of the averaged weights, which are kept.",
        "patience": "Epochs without a better score after which training ends.",
        "seed": "Of what is random in training, and of what `finetune` holds out.",
    }
    batch_norm = click.option(
        "--batch-norm",
        type=click.Choice(BATCH_NORMS),
        default=defaults.batch_norm,
        show_default=True,
        help="Statistics of each batch, or those of the start.",
    )
    settle = click.option(
        "--settle",
        type=int,
        help="Last epochs, in which batch norm keeps its statistics and pictures change less.  "
        f"[default: {SETTLE}, of few epochs a quarter]",
    )
    options: list[Decorator] = [
        *_RUN,
        *(number(name, getattr(defaults, name), text) for name, text in numbers.items()),
        settle,
        batch_norm,
        *_PLACE,
    ]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def place_and_training(options: dict[str, Any]) -> tuple["Place", TrainingSettings]:
    """Take where and how to train out of a command's options.

    Raises:
        click.UsageError: options that do not go together.
    """
    # Loaded here: PyTorch takes seconds that --help need not wait.
    import torch

    from emopipe.jobs.training.launch import Place
    from emopipe.jobs.training.run import training_precision

    local, workers, gpu, cpus, address = (
        options.pop(name) for name in ("local", "workers", "gpu", "cpus", "address")
    )
    if local and (workers > 1 or address):
        raise click.UsageError("--local trains in this process: --workers and --address are Ray's")
    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume goes on with a run, --overwrite replaces it: choose one")
    found = torch.cuda.is_available()
    if local and gpu and not found:
        raise click.UsageError("--gpus: PyTorch finds no GPU here; say --no-gpus")
    gpu = found if gpu is None else gpu
    names = {field.name for field in fields(TrainingSettings)} & set(options)
    chosen = {name: options.pop(name) for name in names}
    if chosen["settle"] is None:
        chosen["settle"] = min(SETTLE, chosen["epochs"] // 4)
    chosen["precision"] = training_precision(chosen["precision"], gpu=gpu)
    return Place(local, workers, gpu, cpus, address), TrainingSettings(**chosen)


def run_in_folder(
    run: Callable[..., None], job: Any, command: str, data: Path, options: dict[str, Any]
) -> None:
    """Run a training in its folder; Ctrl-C ends it with a sentence.

    Args:
        run: takes a job, a folder, resume, overwrite and a console.
        job: what to do.
        command: its name.
        data: what it learns from; with the command it names the folder that is not named.
        options: out, resume and overwrite.
    """
    stem = data.name.removesuffix(".gz").removesuffix(".csv")
    folder = options["out"] or Path("runs") / f"{command}-{stem}"
    # As wide as the terminal; wide enough for every table when piped.
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        run(
            job,
            folder,
            resume=options["resume"],
            overwrite=options["overwrite"],
            console=console,
        )
    except KeyboardInterrupt:
        console.print("stopped; --resume goes on from the last epoch")
        sys.exit(EXIT_INTERRUPTED)

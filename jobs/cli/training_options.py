"""What the training commands share: options of data, start model and folder; running in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from emopipe.jobs.cli.base import option, table_console
from emopipe.jobs.cli.options import Decorator, Function
from emopipe.jobs.interrupts import last_words

skip_bad_option = option(
    "--skip-bad", is_flag=True, group="data", help="Leave out rows that cannot be read."
)


def ferplus_option(learnt: str, *, required: bool) -> Decorator:
    """The option of FER+'s votes.

    Args:
        learnt: what they are used for, for the help.
        required: whether the command needs them.
    """
    return option(
        "--ferplus",
        type=click.Path(path_type=Path),
        required=required,
        group="data",
        help=f"fer2013new.csv: {learnt}.",
    )


def start_option(model: str, default: str | None) -> Decorator:
    """The option of the model to start from.

    Args:
        model: which models it takes, for the help.
        default: the option's value where none is given; None for random weights.
    """
    return option(
        "--from",
        "start_model",
        default=default,
        group="model",
        help=f"{model} to start from: a name (see `emopipe models list`) or a checkpoint's path.  "
        f"[default: {default or 'random weights'}]",
    )


def folder_options(command: Function) -> Function:
    """Add the options of the run's folder."""
    added: list[Decorator] = [
        option(
            "--out",
            type=click.Path(path_type=Path),
            group="output",
            help="The run's folder.  [default: runs/COMMAND-DATA]",
        ),
        option(
            "--resume", is_flag=True, group="output", help="Continue the run that is in the folder."
        ),
        option(
            "--overwrite",
            is_flag=True,
            group="output",
            help="Replace the run that is in the folder.",
        ),
    ]
    for add in reversed(added):
        command = add(command)
    return command


def run_in_folder(
    run: Callable[..., None], job: Any, command: str, data: Path, options: dict[str, Any]
) -> None:
    """Run a training in its folder; Ctrl-C ends it with a sentence.

    Args:
        run: takes a job, a folder, resume, overwrite and a console.
        job: what to do.
        command: name of the command.
        data: what is trained on; with the command it names the folder where none is given.
        options: out, resume and overwrite.
    """
    stem = data.name
    for suffix in (".gz", ".zip", ".tar", ".csv"):
        stem = stem.removesuffix(suffix)
    out = options["out"] or Path("runs") / f"{command}-{stem}"
    console = table_console()
    with last_words(lambda: console.print("stopped; --resume continues from the last epoch")):
        run(
            job,
            out,
            resume=options["resume"],
            overwrite=options["overwrite"],
            console=console,
        )

"""The `emopipe` command. Each subcommand is a file of its name, loaded when it is used."""

import gc
import os
import sys
from importlib import import_module

import click

from emopipe.jobs.cli.base import Group
from emopipe.jobs.cli.streams import StandardStreams
from emopipe.jobs.interrupts import end_on_signals

COMMANDS = ("analyze", "evaluate", "finetune", "pretrain", "models", "bench", "doctor")

EXIT_OUTPUT_LOST = 1
"""Exit status where a command succeeded and what it printed did not arrive."""

_GC_THRESHOLD = 50_000
"""Objects allocated between two garbage collections: at Python's own 700 they take a tenth of the
second in which PyTorch is imported."""


class _Commands(Group):
    """The commands of this package's files."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the help's order."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="emopipe")
def main() -> None:
    """Emotion, valence, arousal and 68 landmarks of every face in folders of videos.

    Exit status: 0 everything succeeded; 2 the command is refused as given; 3 it finished, but some
    inputs failed in part or whole; 1 standard output could not be written; 130 stopped by Ctrl-C,
    143 by SIGTERM.
    """


def program() -> None:
    """Run the command, then end without the interpreter's clean-up: with PyTorch it takes 0.5 s."""
    gc.set_threshold(_GC_THRESHOLD)
    streams = StandardStreams()
    end_on_signals()
    status = 0
    try:
        main(prog_name="emopipe")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    lost = streams.lost()
    if lost:
        print(f"Error: standard output cannot be written: {lost}", file=sys.stderr, flush=True)
    os._exit(status or (0 if lost is None else EXIT_OUTPUT_LOST))

"""Classes of all commands: errors as one sentence, help in groups of options."""

import os
import re
import sys
from functools import partial
from typing import Any

import click
from rich.console import Console

from emopipe.emonet.errors import EmopipeError
from emopipe.jobs.interrupts import EXIT_INTERRUPTED
from emopipe.pipeline.storage import printable

GROUPS = ("data", "input", "faces", "model", "training", "speed", "cluster", "output")
"""Groups of options, in the help's order; options without a group come last."""

PIPED_WIDTH = 120
"""Columns of a command's tables where there is no terminal: wide enough for each of them."""

_COLUMN = 26  # width of the help's first column; the text of longer options starts a line below


class Option(click.Option):
    """An option that the help lists under a heading.

    Args:
        group: one of `GROUPS`; empty for none.
    """

    def __init__(self, *args: Any, group: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


option = partial(click.option, cls=Option)


class Command(click.Command):
    """A command that reports an `EmopipeError` as one sentence, with exit status 2.

    Ctrl-C ends it with exit status 130.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line; `~` is the home folder in `--out=~/x` too, which shells leave."""
        return super().parse_args(ctx, list(map(_expanded, args)))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except EmopipeError as error:
            raise click.UsageError(printable(name_options(str(error), self))) from error
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in groups, in the order of `GROUPS`."""
        grouped: dict[str, list[tuple[str, str]]] = {group: [] for group in (*GROUPS, "")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                flag, text = record
                line = (flag.ljust(_COLUMN), name_options(text, self))
                grouped[getattr(parameter, "group", "")].append(line)
        used = {group: records for group, records in grouped.items() if records}
        for group, records in used.items():
            heading = group.capitalize() or ("Other options" if len(used) > 1 else "Options")
            with formatter.section(heading):
                formatter.write_dl(records, col_max=_COLUMN)


class Group(click.Group):
    """A group whose commands are of the class `Command`."""

    command_class = Command
    group_class = type


def name_options(text: str, command: click.Command) -> str:
    """Replace the names of a command's parameters by what the user types.

    The libraries name a parameter `` `fps` ``; for a command that has it as an option, it becomes
    "--fps", for one that has it as an argument, the argument's name in the help. Other names stay.

    Args:
        text: a message of a library, or a field's help.
        command: the running command.
    """
    typed = {parameter.name: _typed(parameter) for parameter in command.params}
    return re.sub(r"`(\w+)`", lambda found: typed.get(found[1], found[0]), text)


def table_console() -> Console:
    """A console for tables on stdout, as wide as the terminal."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)


def _expanded(argument: str) -> str:
    option, equals, value = argument.partition("=")
    if option.startswith("--") and equals:
        return f"{option}={os.path.expanduser(value)}"  # noqa: PTH111 -- Path drops a last "/"
    return os.path.expanduser(argument)  # noqa: PTH111


def _typed(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Argument):
        return parameter.human_readable_name.strip("[].")
    return max(parameter.opts, key=len)

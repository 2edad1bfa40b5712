"""Click options made from the fields of settings dataclasses, which declare and check them."""

import types
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import click

from emopipe.emonet.fields import Rule, rules_of, types_of
from emopipe.jobs.cli.base import option
from emopipe.pipeline.faces.selection import parse_roi

T = TypeVar("T")
Function = Callable[..., None]
Decorator = Callable[[Function], Function]


@dataclass(frozen=True)
class Form:
    """What a field's option has beyond the field's name and type.

    Attributes:
        flag: the option, where it is not the field's name.
        metavar: stands for the value in the help; None for the type's name.
        parse: turns the option's text into the field's value; None where click does.
        envvar: environment variable that sets the option; None for none.
    """

    flag: str = ""
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    envvar: str | None = None


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _parse_smooth(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


FORMS = {
    "classes": Form(metavar="A,B,C", parse=_parse_names),
    "gpu": Form("--gpus"),
    "model": Form(envvar="EMOPIPE_MODEL"),
    "roi": Form(metavar="X1,Y1,X2,Y2", parse=parse_roi),
    "smooth": Form(metavar="emonet|SECONDS", parse=_parse_smooth),
    "trained": Form("--train"),
}
"""By field; the others need none."""


class _Choices(click.Choice[str]):
    """Choices for the help and for shell completion: the settings dataclass checks the value."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002
        ctx: click.Context | None,  # noqa: ARG002
    ) -> Any:
        return value


people_option = option(
    "--people",
    type=click.Path(path_type=Path),
    group="data",
    help="CSV of video, track, person: whose tracks they are; two with one name are one person.",
)
"""For commands that read results: `read_results` takes its value."""


def options_of(*settings: Any, only: Collection[str] = ()) -> Decorator:
    """Add an option for each field of settings that is declared with `emonet.fields.setting`.

    Args:
        settings: instances of settings dataclasses; their values are the options' defaults.
        only: the fields to add; empty for all.
    """
    added = [
        _option(name, rule, types_of(type(one))[name], getattr(one, name))
        for one in settings
        for name, rule in rules_of(type(one)).items()
        if not only or name in only
    ]

    def decorate(command: Function) -> Function:
        for add in reversed(added):
            command = add(command)
        return command

    return decorate


def build(settings: type[T], options: dict[str, Any], **others: Any) -> T:
    """Make settings from the options that `options_of` added for them.

    Args:
        settings: the dataclass.
        options: values by parameter; those of the dataclass's fields are taken out.
        others: values of fields without an option.

    Raises:
        EmopipeError: the dataclass refuses a value.
    """
    values = {name: options.pop(name) for name in rules_of(settings) if name in options}
    for name, value in values.items():
        parse = FORMS[name].parse if name in FORMS else None
        if parse is not None and value is not None:
            values[name] = parse(value)
    return settings(**values, **others)


def given(*names: str) -> list[str]:
    """Those of the running command's parameters that the command line sets."""
    context = click.get_current_context()
    named = click.core.ParameterSource.COMMANDLINE
    return [name for name in names if context.get_parameter_source(name) is named]


def _option(name: str, rule: Rule, hint: Any, default: Any) -> Decorator:
    form = FORMS.get(name, Form())
    flag = form.flag or f"--{name.replace('_', '-')}"
    optional = get_origin(hint) in (Union, types.UnionType)
    kind = next(one for one in get_args(hint) if one is not type(None)) if optional else hint
    return option(
        f"{flag}/--no-{flag[2:]}" if kind is bool and (optional or default) else flag,
        name,
        group=rule.group,
        type=_type_of(kind, rule),
        is_flag=kind is bool or None,
        default=default,
        metavar=form.metavar,
        envvar=form.envvar,
        help=f"{rule.help}  {_notes(rule, form, default)}",
    )


def _type_of(kind: Any, rule: Rule) -> Any:
    """The option's click type; a field that is a tuple is read from text, see `FORMS`."""
    if rule.choices:
        return _Choices(rule.choices)
    if kind is Path:
        return click.Path(path_type=Path)
    return kind if kind in (bool, int, float) else str


def _notes(rule: Rule, form: Form, default: Any) -> str:
    """What follows the help: "[env var: X; from 0 to 1; default: 0.5]"."""
    default = rule.unset if default is None else default
    shown = f"{default:g}" if isinstance(default, float) else default
    notes = [
        f"env var: {form.envvar}" if form.envvar else "",
        rule.range,
        "" if shown == "" or isinstance(shown, bool) else f"default: {shown}",
    ]
    return f"[{'; '.join(filter(None, notes))}]" if any(notes) else ""

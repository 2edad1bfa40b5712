"""Fields of settings: what each takes, its range and its help, in one place.

A settings dataclass declares its fields with `setting`, wears `documented`, and calls
`check_settings` in `__post_init__`. The command line makes its options from the same fields.
Errors name a field in backquotes, `` `fps` ``; the command line shows that as its option, --fps.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from emopipe.emonet.errors import EmopipeError

_KEY = "setting"
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """What is known of a field.

    Attributes:
        help: a sentence for the user: what it does, in which unit.
        group: heading under which the command line's help lists it; empty for none.
        choices: the values it takes; empty where the type alone decides.
        least: smallest value; None for no bound.
        most: largest value; None for no bound.
        above: bound below, itself excluded; None for no bound.
        below: bound above, itself excluded; None for no bound.
        unset: what is done where the value is None, for the help's "[default: …]".
    """

    help: str
    group: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    unset: str = ""

    @property
    def range(self) -> str:
        """The bounds in words, such as "0 or more and below 1"; empty without bounds."""
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:g}"
        low = f"{self.least:g} or more" if self.least is not None else ""
        low = f"more than {self.above:g}" if self.above is not None else low
        high = f"at most {self.most:g}" if self.most is not None else ""
        high = f"below {self.below:g}" if self.below is not None else high
        return " and ".join(filter(None, (low, high)))

    def holds(self, value: float) -> bool:
        """Whether a number is finite and within the bounds."""
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def setting(default: Any, help: str, **rule: Any) -> Any:  # noqa: A002 -- dataclasses' own style
    """Declare a field of a settings dataclass.

    Args:
        default: its default.
        help: see `Rule`.
        rule: further fields of `Rule`.
    """
    return field(default=default, metadata={_KEY: Rule(help, **rule)})


def rules_of(settings: type) -> dict[str, Rule]:
    """The rules of a settings dataclass, by field."""
    return {f.name: f.metadata[_KEY] for f in fields(settings) if _KEY in f.metadata}


def types_of(settings: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by field."""
    return get_type_hints(settings)


class ArgumentError(EmopipeError, TypeError):
    """A call of a public function with an argument that it does not have, lacks or cannot use."""


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Make calls of a public function that do not fit its signature fail with a sentence.

    Raises:
        ArgumentError: an unknown or a missing argument.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        name = function.__name__
        for unknown in kwargs.keys() - signature.parameters.keys():
            guess = did_you_mean(unknown, signature.parameters)
            raise ArgumentError(f"{name} has no argument `{unknown}`{guess}")
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{name}: {error}; see help(emopipe.{name})") from None
        return function(*args, **kwargs)

    return call


def documented(settings: type[T]) -> type[T]:
    """Add the fields and their help to a settings dataclass's docstring."""
    described = inspect.cleandoc(settings.__doc__ or "")
    settings.__doc__ = f"{described}\n\nAttributes:\n{help_lines(settings)}"
    return settings


def help_lines(settings: type) -> str:
    """The fields of a settings dataclass with their help and what they take, a line each."""
    lines = []
    for name, rule in rules_of(settings).items():
        takes = rule.range or ", ".join(rule.choices)
        lines.append(f"    {name}: {rule.help}{f' [{takes}]' if takes else ''}")
    return "\n".join(lines)


def check_settings(settings: Any, error: type[EmopipeError]) -> None:
    """Hold a settings dataclass to its fields' types and rules; called where it is made.

    A whole number becomes a float where the field is one, text a path, a list a tuple.

    Args:
        settings: the dataclass's instance; it may be frozen.
        error: what to raise.

    Raises:
        EmopipeError: of that kind, naming the first field that is wrong.
    """
    hints = types_of(type(settings))
    for name, rule in rules_of(type(settings)).items():
        given = getattr(settings, name)
        try:
            value = _converted(given, hints[name])
        except TypeError:
            what = _one_of(rule.choices) if rule.choices else _in_words(hints[name], rule)
            raise error(f"`{name}` is {what}, not {given!r}") from None
        if rule.choices and value is not None and value not in rule.choices:
            guess = did_you_mean(str(value), rule.choices)
            raise error(f"`{name}` is {_one_of(rule.choices)}, not {value!r}{guess}")
        if isinstance(value, int | float) and not isinstance(value, bool) and not rule.holds(value):
            raise error(f"`{name}` is {rule.range or 'a finite number'}, not {value:g}")
        object.__setattr__(settings, name, value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion such as ": did you mean fps?", or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ""


def _converted(value: Any, hint: Any) -> Any:
    """The value as the type has it.

    Raises:
        TypeError: it is of another type.
    """
    if get_origin(hint) in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        return _converted(value, next(one for one in options if one is not type(None)))
    if get_origin(hint) is tuple:
        return _converted_tuple(value, get_args(hint))
    if isinstance(value, bool) and hint is not bool:
        raise TypeError  # Python takes True for 1
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, Integral):
        return int(value)
    if hint is float and isinstance(value, Real):
        return float(value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if (hint is str or get_origin(hint) is Literal) and isinstance(value, str):
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, hint):
        return value
    raise TypeError


def _converted_tuple(value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise TypeError
    values = tuple(value)
    hints = [parts[0]] * len(values) if parts[-1] is Ellipsis else list(parts)
    if len(hints) != len(values):
        raise TypeError
    return tuple(_converted(one, hint) for one, hint in zip(values, hints, strict=True))


def _one_of(choices: Iterable[str]) -> str:
    return f"one of {', '.join(choices)}"


def _in_words(hint: Any, rule: Rule) -> str:
    """What a field takes, such as "a number (more than 0)"."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(one for one in get_args(hint) if one is not type(None))
    kinds = {int: "a whole number", float: "a number", str: "text", Path: "a path"}
    kinds[bool] = "True or False"
    if get_origin(hint) is tuple:
        first, *rest = get_args(hint)
        kind = "numbers" if first in (int, float) else "texts"
        what = f"a tuple of {kind}" if rest == [Ellipsis] else f"a tuple of {1 + len(rest)} {kind}"
    else:
        what = kinds.get(hint) or f"a {getattr(hint, '__name__', hint)}"
    return f"{what} ({rule.range})" if rule.range else what

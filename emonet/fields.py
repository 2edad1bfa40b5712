"""Fields of settings: what each takes, its range and its help, in one place.

A settings dataclass declares its fields with `setting`, wears `documented`, and calls
`check_settings` in `__post_init__`. The command line makes its options from the same fields.
Errors name a field in backquotes, `` `fps` ``; the command line shows that as its option, --fps.
"""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

from emopipe.emonet.arguments import bind, converted, did_you_mean, in_words, one_of
from emopipe.emonet.errors import EmopipeError

_KEY = "setting"
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
            (isinstance(value, int) or math.isfinite(value))
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


def documented(settings: type[T]) -> type[T]:
    """Add the fields' help to a settings dataclass's docstring, and sentences for wrong calls."""
    described = inspect.cleandoc(settings.__doc__ or "")
    settings.__doc__ = f"{described}\n\nAttributes:\n{help_lines(settings)}"
    initialize: Any = settings.__init__
    signature = inspect.signature(settings)

    @functools.wraps(initialize)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        bind(settings.__name__, signature, *args, **kwargs)
        initialize(self, *args, **kwargs)

    settings.__init__ = checked  # type: ignore[method-assign]
    return settings


def help_lines(settings: type) -> str:
    """The fields of a settings dataclass with their help and what they take, a line each."""
    lines = []
    for name, rule in rules_of(settings).items():
        unset = f"None: {rule.unset}" if rule.unset else ""
        notes = "; ".join(filter(None, (rule.range or ", ".join(rule.choices), unset)))
        lines.append(f"    {name}: {rule.help}{f' [{notes}]' if notes else ''}")
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
            value = converted(given, hints[name])
        except TypeError:
            wanted = one_of(rule.choices) if rule.choices else in_words(hints[name])
            bounds = f" ({rule.range})" if rule.range else ""
            guess = did_you_mean(str(given), rule.choices)
            raise error(f"`{name}` is {wanted}{bounds}, not {given!r}{guess}") from None
        if rule.choices and value is not None and value not in rule.choices:
            guess = did_you_mean(str(value), rule.choices)
            raise error(f"`{name}` is {one_of(rule.choices)}, not {value!r}{guess}")
        if isinstance(value, int | float) and not isinstance(value, bool) and not rule.holds(value):
            shown = f"{value:g}" if isinstance(value, float) else value
            raise error(f"`{name}` is {rule.range or 'a finite number'}, not {shown}")
        object.__setattr__(settings, name, value)

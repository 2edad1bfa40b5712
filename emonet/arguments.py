"""What callers pass, held to type hints: what does not fit is refused with a sentence."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from emopipe.emonet.errors import EmopipeError

P = ParamSpec("P")
R = TypeVar("R")

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    os.PathLike: "a path",
    bool: "True or False",
    type(None): "None",
}


class ArgumentError(EmopipeError, TypeError):
    """A call of a public function with an argument that it does not have, lacks or cannot use."""


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Make calls of a public function that do not fit its signature fail with a sentence.

    Arguments are converted as `converted` does.

    Raises:
        ArgumentError: an argument is unknown, missing or of another type.
    """
    signature = inspect.signature(function)
    name = function.__name__

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = bind(name, signature, *args, **kwargs)
        hints = get_type_hints(function)
        for argument, value in bound.arguments.items():
            try:
                bound.arguments[argument] = converted(value, hints[argument])
            except TypeError:
                wanted = in_words(hints[argument])
                raise ArgumentError(f"`{argument}` is {wanted}, not {value!r}") from None
        return function(*bound.args, **bound.kwargs)

    return call


def bind(
    name: str, signature: inspect.Signature, /, *args: Any, **kwargs: Any
) -> inspect.BoundArguments:
    """Match a call's arguments with a signature.

    Args:
        name: what is called, as users find it in emopipe.
        signature: what it takes.
        args: the call's arguments.
        kwargs: its keywords.

    Raises:
        ArgumentError: one is unknown (the text says what was probably meant), missing or too many.
    """
    for keyword in kwargs:
        if keyword not in signature.parameters:
            guess = did_you_mean(keyword, signature.parameters)
            raise ArgumentError(f"{name} has no argument `{keyword}`{guess}")
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(f"{name}: {error}; see help(emopipe.{name})") from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion such as ": did you mean fps?", or nothing where no known word is near."""
    by_lower_case = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower(), list(by_lower_case), n=1)
    return f": did you mean {by_lower_case[near[0]]}?" if near else ""


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 frame" or "2,000 frames"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_few(values: Sequence[object], most: int = 5) -> str:
    """The first values in words, such as "a, b and 7 more"; "none" where there are none."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return (", ".join(map(str, values[:most])) or "none") + more


def one_of(choices: Iterable[str]) -> str:
    """The choices in words."""
    known = tuple(choices)
    return f"one of {', '.join(known)}" if len(known) > 1 else known[0]


def converted(value: Any, hint: Any) -> Any:
    """Convert a value to what a type hint asks for, where nothing is lost by it.

    A whole number becomes a float, text a path, a list a tuple, NumPy's scalars Python's.

    Raises:
        TypeError: the value is of another type.
    """
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _converted_to_one(value, get_args(hint))
    if origin is Literal:
        if value in get_args(hint):
            return value
        raise TypeError
    if origin is tuple or origin is Sequence:
        return _converted_items(value, get_args(hint))
    if origin is Iterable:
        if isinstance(value, Iterable) and not isinstance(value, str):
            return value
        raise TypeError
    return _converted_plain(value, origin or hint)


def in_words(hint: Any) -> str:
    """What a type hint asks for, such as "a number or None"."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = [one for one in get_args(hint) if one is not type(None)]
        if Path in options and str in options:
            options.remove(str)
        return " or ".join(dict.fromkeys(map(in_words, options)))
    if origin is Literal:
        return one_of(get_args(hint))
    if origin is tuple or origin is Sequence:
        first, *rest = get_args(hint)
        kind = "numbers" if first in (int, float) else "texts"
        return (
            f"a tuple of {1 + len(rest)} {kind}" if rest and rest != [...] else f"a list of {kind}"
        )
    if origin is Iterable:
        return "a list of paths"
    plain = origin or hint
    return _WORDS.get(plain) or f"a {getattr(plain, '__name__', plain)}"


def _converted_to_one(value: Any, options: tuple[Any, ...]) -> Any:
    for option in options:
        try:
            return converted(value, option)
        except TypeError:
            continue
    raise TypeError


def _converted_items(value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    without_order = isinstance(value, Set | Mapping)
    if isinstance(value, str) or without_order or not hasattr(value, "__iter__"):
        raise TypeError
    values = tuple(value)
    # tuple[float, ...] and Sequence[float] take any number of items.
    any_number = len(parts) == 1 or parts[-1] is Ellipsis
    hints = [parts[0]] * len(values) if any_number else list(parts)
    if len(hints) != len(values):
        raise TypeError
    return tuple(converted(one, hint) for one, hint in zip(values, hints, strict=True))


def _converted_plain(value: Any, kind: Any) -> Any:
    if isinstance(value, np.bool_):
        value = bool(value)
    if isinstance(value, bool) and kind is not bool:
        raise TypeError  # Python takes True for 1
    if kind is int and isinstance(value, Integral):
        return int(value)
    if kind is float and isinstance(value, Real):
        return float(value)
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    raise TypeError

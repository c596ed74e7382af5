"""Fields: the arguments of a frozen dataclass, checked and made plain.

A rule is a function that returns the argument as a plain value, or raises a ValueError with the
end of a sentence that begins with the argument's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, nan
from numbers import Integral, Real
from typing import Any, TypeAlias

from sparkdist.errors import InvalidCall

__all__ = [
    "Rule",
    "below_1",
    "checked",
    "collect",
    "flag",
    "not_negative",
    "number",
    "optional",
    "plain",
    "positive",
    "read_fields",
    "settle",
    "share",
    "whole",
]

Rule: TypeAlias = Callable[[Any], Any]


def checked(name: str, value: Any, rule: Rule, problems: list[str]) -> Any:
    """Return what the rule makes of a value; what is wrong with it is added to ``problems``."""
    try:
        return rule(value)
    except ValueError as error:
        problems.append(f"{name} {error}")
        return value


def read_fields(member: Any, **rules: Rule) -> list[str]:
    """Put what the rules return into the fields; say what is wrong with them."""
    problems: list[str] = []
    for name, rule in rules.items():
        object.__setattr__(member, name, checked(name, getattr(member, name), rule, problems))
    return problems


def settle(member: Any, **rules: Rule) -> None:
    """Do the same, and refuse what is wrong.

    Raises
    ------
    InvalidCall
        With all problems of the call.
    """
    if problems := read_fields(member, **rules):
        raise InvalidCall(type(member).__name__, problems)


@contextmanager
def collect(problems: list[str]) -> Iterator[None]:
    """Add what an InvalidCall inside says to ``problems``, instead of raising it."""
    try:
        yield
    except InvalidCall as error:
        problems += error.problems


def plain(value: object) -> float:
    """Return a number as Python's float, and NaN, which no rule allows, for anything else.

    A float64 of NumPy, float though it is, would make float32 arrays float64.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        return nan
    try:
        return float(value)
    except OverflowError:  # an int above 1.8e308
        return inf


def number(what: str, allows: Callable[[float], bool]) -> Callable[[object], float]:
    """Make the rule of a number; ``what`` says which ones are allowed."""

    def rule(value: object) -> float:
        if not allows(found := plain(value)):
            raise ValueError(f"must be {what}; it is {value!r}")
        return found

    return rule


positive = number("a finite number > 0", lambda x: 0 < x < inf)
not_negative = number("a finite number >= 0", lambda x: 0 <= x < inf)
below_1 = number("a number >= 0 and < 1", lambda x: 0 <= x < 1)
share = number("a number > 0 and <= 1", lambda x: 0 < x <= 1)


def whole(least: int, most: int | None = None) -> Callable[[object], int]:
    """Make the rule of a whole number, of Python or of NumPy; True is none."""
    what = f">= {least}" if most is None else f"from {least} to {most}"

    def rule(value: object) -> int:
        fits = isinstance(value, Integral) and not isinstance(value, bool)
        if not (fits and least <= value and (most is None or value <= most)):  # type: ignore[operator]
            raise ValueError(f"must be a whole number {what}; it is {value!r}")
        return int(value)  # type: ignore[call-overload]

    return rule


def flag(value: object) -> bool:
    """Check True or False."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):  # NumPy's
        raise ValueError(f"must be True or False; it is {value!r}")
    return bool(value)


def optional(rule: Rule) -> Rule:
    """Make the rule that allows None, too."""
    return lambda value: None if value is None else rule(value)

"""Fields: the arguments of a frozen dataclass, checked and made plain.

A rule is a function that returns the argument as a plain value, or raises a ValueError with the
end of a sentence that begins with the argument's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparkdist.errors import InvalidCall

__all__ = ["integer", "read_fields", "settle"]


def read_fields(member: Any, **rules: Callable[[Any], Any]) -> list[str]:
    """Put what the rules return into the fields; say what is wrong with them."""
    problems = []
    for name, rule in rules.items():
        try:
            object.__setattr__(member, name, rule(getattr(member, name)))
        except ValueError as error:
            problems.append(f"{name} {error}")
    return problems


def settle(member: Any, **rules: Callable[[Any], Any]) -> None:
    """Do the same, and refuse what is wrong.

    Raises
    ------
    InvalidCall
        With all problems of the call.
    """
    if problems := read_fields(member, **rules):
        raise InvalidCall(type(member).__name__, problems)


def integer(least: int) -> Callable[[object], int]:
    """Make the rule of an int of at least ``least``; True is none."""

    def rule(value: object) -> int:
        if type(value) is not int or value < least:
            raise ValueError(f"must be an integer >= {least}; it is {value!r}")
        return value

    return rule

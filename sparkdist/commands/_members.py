"""Members of families as one writes them on a command line: ssp:4, adam:rate=0.1,beta1=0.8."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["make", "make_member", "read"]


def read(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name, positional and named arguments; a value is a literal of Python's or else a word."""
    name, colon, rest = text.partition(":")
    plain, named = [], {}
    for piece in rest.split(",") if colon else ():
        key, equals, word = piece.rpartition("=")
        try:
            value = ast.literal_eval(word)
        except (ValueError, SyntaxError):
            value = word
        if equals:
            named[key] = value
        else:
            plain.append(value)
    return name, plain, named


def make_member(family: str, text: str | None) -> Any:
    """Make ``ssp(4)`` of ``ssp:4``, ``adam(rate=0.1)`` of ``adam:rate=0.1``, None of nothing."""
    from sparkdist import registry

    if text is None:
        return None
    name, plain, named = read(text)
    kind = registry.get(importlib.import_module(f"sparkdist.{family}"), name)
    return make(text, kind, plain, named, family)[0]


def make(
    text: str, kind: Callable[..., Any], plain: list[Any], named: dict[str, Any], family: str
) -> tuple[Any, dict[str, Any]]:
    """Return what ``kind`` makes of the arguments, and these by name.

    A word that names a member of ``family`` is that member: ``error_feedback:top_k:0.1``.

    Raises
    ------
    InvalidCall
        If they are not the arguments of ``kind``, of another type, or have wrong values.
    """
    from sparkdist.errors import InvalidCall

    signature = inspect.signature(kind)
    try:
        found = signature.bind(*plain, **named).arguments
        arguments = {name: _resolve(family, value) for name, value in found.items()}
        return kind(**arguments), arguments
    except TypeError as error:
        has = ", ".join(signature.parameters) or "no arguments"
        problem = f"{text!r} cannot be read: {error}; it takes {has}"
        raise InvalidCall("train", [problem]) from None


def _resolve(family: str, value: Any) -> Any:
    """Make a member of the word that names it."""
    from sparkdist import registry

    members = registry.names(importlib.import_module(f"sparkdist.{family}"))
    is_one = isinstance(value, str) and value.partition(":")[0] in members
    return make_member(family, value) if is_one else value

"""The folder is the registry: a family is a package, a member is a file in it."""

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from sparkdist.errors import InvalidCall

__all__ = ["get", "meant", "names", "unknown"]


def names(family: ModuleType) -> list[str]:
    """Names of the family's members, sorted: its files that do not start with an underscore."""
    found = (module.name for module in pkgutil.iter_modules(family.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def get(family: ModuleType, name: str) -> Any:
    """Return the one public object of the member's file.

    Raises
    ------
    InvalidCall
        If the family has no such member; the message lists those that it has.
    """
    known = names(family)
    if name not in known:
        raise InvalidCall(family.__name__.rpartition(".")[2], [unknown(name, known)])
    module = importlib.import_module(f"{family.__name__}.{name}")
    (public,) = module.__all__
    return getattr(module, public)


def unknown(name: Any, known: Sequence[str], kind: str = "") -> str:
    """Say that there is no such name, which there are, and what may have been meant."""
    what = f"{kind} {name!r}" if kind else repr(name)
    return f"there is no {what}; there are {', '.join(known)}{meant(name, known)}"


def meant(name: Any, known: Sequence[str]) -> str:
    """Ask for the known name that is close to another one; nothing where none is."""
    close = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else []
    return f". Did you mean {close[0]!r}?" if close else ""

"""What the doctor says."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FIX", "NOTE", "OK", "Finding"]

OK, NOTE, FIX = "ok", "note", "FIX"


class Finding(NamedTuple):
    """One line of the report, and below it what to do."""

    level: str
    about: str
    found: str
    todo: str = ""

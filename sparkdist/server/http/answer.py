"""Answer: what the application says, as the bytes that are sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Any, TypeAlias

__all__ = ["Application", "Parts", "answer_of", "refusal"]

Application: TypeAlias = Callable[[dict[str, Any], Any], Iterable[Any]]
#: What is to be sent, one behind the other.
Parts: TypeAlias = "list[memoryview[Any]]"


def answer_of(app: Application, environ: dict[str, Any]) -> Callable[[bool], Parts]:
    """Ask the application; returns what is sent if the connection is kept, or is not.

    It is sent when all of it is there: an answer of the application may have no length.

    Raises
    ------
    ValueError
        For a header that would be more than one line.
    """
    started: list[Any] = []
    parts: Parts = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[Any], None]:
        started[:] = [status, headers]
        return lambda data: parts.append(memoryview(data))

    given = app(environ, start_response)
    try:
        parts.extend(map(memoryview, given))
    finally:
        if close := getattr(given, "close", None):
            close()
    status, headers = started
    lines = [f"{name}: {value}" for name, value in headers]
    # RFC 9110, 8.6 and 9.3.2; 15.3.5 and 15.4.5.
    empty = status.startswith(("204", "304"))
    if not empty and not any(name.lower() == "content-length" for name, _ in headers):
        lines.append(f"Content-Length: {sum(part.nbytes for part in parts)}")
    if empty or environ["REQUEST_METHOD"] == "HEAD":
        parts = []
    return lambda keeps: [_head(status, lines, keeps), *_bytes(parts)]


def refusal(status: str) -> Parts:
    """Answer with a status alone, the last one on its connection."""
    return [_head(status, ["Content-Length: 0"], keeps=False)]


def _bytes(parts: Parts) -> Parts:
    return [part.cast("B") for part in parts if part.nbytes]  # Python casts no empty view


def _head(status: str, lines: list[str], keeps: bool) -> memoryview:
    lines = [f"HTTP/1.1 {status}", f"Date: {_date()}", *lines]
    if not keeps:
        lines.append("Connection: close")
    text = "\r\n".join([*lines, "", ""])
    if text.count("\n") != len(lines) + 1 or text.count("\r") != len(lines) + 1:
        raise ValueError("a header of the answer has the end of a line in it")
    return memoryview(text.encode("latin-1"))


_today = (0, "")


def _date() -> str:
    """The time as HTTP writes it, made once a second."""
    global _today
    second, text = _today
    if second != int(time.time()):
        second = int(time.time())
        _today = second, (text := formatdate(second, usegmt=True))
    return text

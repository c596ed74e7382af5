"""A live line on the driver: objective, gradient, seconds a pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Progress", "TrainingProgress"]

B = TypeVar("B", bound="_Bar")


class _Bar:
    """A tqdm bar that ends with its ``with``; none where nobody looks."""

    _bar: Any = None

    def _show_itself(self, **options: Any) -> None:
        """Begin a bar, on a terminal or in a notebook."""
        if sys.stderr.isatty() or _in_kernel():
            from tqdm import tqdm

            self._bar = tqdm(file=_output(), **options)

    def __enter__(self: B) -> B:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


class Progress(_Bar):
    """A tqdm bar that counts passes; silent where nobody looks.

    Parameters
    ----------
    shown
        False silences it.  Otherwise it shows itself on a terminal and in a notebook.
    name
        What stands before the numbers.
    """

    def __init__(self, shown: bool, name: str):
        if shown:
            self._show_itself(desc=name, unit="pass", bar_format="{desc}: {n} passes{postfix}")

    def show(self, passes: int, fun: float, grad_norm: float, seconds: float) -> None:
        """Show the newest evaluation, and how many passes there were with it."""
        if self._bar is not None:
            text = f"objective {fun:.8g}, |gradient| {grad_norm:.2e}, {seconds:.3f} s/pass"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(passes - self._bar.n)


class TrainingProgress(_Bar):
    """A tqdm bar of the rows that the model server has seen; silent where nobody looks.

    Parameters
    ----------
    shown
        False silences it.  Otherwise it shows itself on a terminal and in a notebook.
    total
        Rows in all epochs; None where nobody knows.
    page
        Gives the address of the server's live page, which is shown above the bar, or None.
    """

    def __init__(
        self, shown: bool, total: int | None, page: Callable[[], str | None] = lambda: None
    ):
        if shown:
            self._show_itself(desc="sparkdist", total=total, unit=" examples", unit_scale=True)
            if self._bar is not None and (address := page()):
                # Where the bar is: standard output may be a file that others read.
                file = sys.stderr if sys.stderr.isatty() else sys.stdout
                self._bar.write(f"sparkdist: live page {address}", file=file)

    def show(self, status: dict[str, Any]) -> None:
        """Show the server's books: loss, staleness, and how fast examples come in."""
        if self._bar is None:
            return
        told, staleness = [], status["staleness"]
        if status["weight"] and status["loss"]:
            told.append(f"loss {status['loss'] / status['weight']:.6g}")
        if applied := sum(count for _, count in staleness):
            told.append(f"staleness {sum(s * count for s, count in staleness) / applied:.2f}")
        told.append(f"version {status['version']:,}")
        self._bar.set_postfix_str(", ".join(told), refresh=False)
        self._bar.update(status["examples"] - self._bar.n)


class _Cell:
    """The output of a notebook's cell as a file for tqdm: one line, changed in place.

    Unlike the widget of ``tqdm.auto`` it needs no ipywidgets, and a notebook that is saved and
    opened elsewhere shows the last line, where of the widget it shows the first.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        from IPython import display

        show: Any = display.display  # IPython has types, but not here
        self._shown = show({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        """Show a line that begins anew; tqdm's moves of the cursor mean nothing here."""
        if text.startswith("\r"):
            self._shown.update({"text/plain": text.strip()}, raw=True)

    def flush(self) -> None:
        """Nothing is kept back."""


def _output() -> Any:
    """Where a bar is drawn: in the cell of a notebook, else on standard error."""
    return _Cell() if _in_kernel() else sys.stderr


def _in_kernel() -> bool:
    """Whether this is a notebook's kernel; that its library is loaded says nothing."""
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")

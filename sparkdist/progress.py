"""A live line on the driver: objective, gradient, seconds a pass."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["Progress", "TrainingProgress"]

B = TypeVar("B", bound="_Bar")


class _Bar:
    """A tqdm bar that ends with its ``with``; None where nobody looks."""

    _bar: Any = None

    def __enter__(self: B) -> B:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        if shown and _somebody_looks():
            from tqdm.auto import tqdm

            self._bar = tqdm(desc=name, unit="pass", bar_format="{desc}: {n} passes{postfix}")

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
    """

    def __init__(self, shown: bool, total: int | None):
        if shown and _somebody_looks():
            from tqdm.auto import tqdm

            self._bar = tqdm(desc="sparkdist", total=total, unit=" examples", unit_scale=True)

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


def _somebody_looks() -> bool:
    """Whether standard error is a terminal, or the kernel of a notebook runs us."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules

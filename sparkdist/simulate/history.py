"""History: how a simulated run went."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sparkdist.result import TrainingHistory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SimulatedHistory"]


@dataclass
class SimulatedHistory(TrainingHistory):
    """Of a :class:`TrainingHistory` all, with ``seconds`` simulated; in equally long lists.

    What it takes to compute an entry is not in the seconds.
    """

    #: The objective at the server's parameters, over all rows: mean loss and penalty.
    fun: list[float] = field(default_factory=list)
    #: Bytes of all requests and answers so far.
    bytes: list[int] = field(default_factory=list)

    def add(self, seconds: float, status: dict[str, Any], fun: float, n_bytes: int) -> None:
        """Add an entry."""
        self.append(seconds, status)
        self.fun.append(fun)
        self.bytes.append(n_bytes)

    def plot(self, title: str = "") -> Figure:
        """Draw the objective against simulated seconds, examples and bytes, and the staleness.

        Raises
        ------
        ImportError
            Without matplotlib; ``pip install sparkdist[plot]``.
        """
        return _plotting().plot_simulation(self, title)


def _plotting() -> ModuleType:
    try:
        return importlib.import_module("sparkdist.simulate._plot")
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'sparkdist[plot]'") from error

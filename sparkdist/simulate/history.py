"""History: how a simulated run went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparkdist.result import TrainingHistory, plotting

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
        """Draw the objective, and the staleness, in simulated seconds, in examples and in bytes.

        Raises
        ------
        ImportError
            Without matplotlib; ``pip install sparkdist[plot]``.
        """
        draw = plotting()
        across = (
            draw.Scale("simulated seconds", self.seconds),
            draw.Scale("examples", self.examples),
            draw.Scale("megabytes through the server", [n / 1e6 for n in self.bytes]),
        )
        stale = draw.Scale("mean staleness", self.staleness, bottom=0.0)
        return draw.plot_run(across, (draw.Scale("objective", self.fun), stale), title)

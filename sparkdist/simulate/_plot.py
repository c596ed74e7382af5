"""The picture of a simulated run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from sparkdist.simulate.history import SimulatedHistory

__all__ = ["plot_simulation"]

_INK, _FAINT, _LINE = "#1f2933", "#9aa5b1", "#2563a8"


def plot_simulation(history: SimulatedHistory, title: str) -> Figure:
    """Draw the objective in time, in rows and in bytes, and how stale the gradients were."""
    figure = Figure(figsize=(9, 5.4), dpi=120, layout="constrained")
    axes = figure.subplots(2, 2)
    megabytes = np.asarray(history.bytes) / 1e6
    _draw(axes[0, 0], history.seconds, history.fun, "simulated seconds", "objective")
    _draw(axes[0, 1], history.examples, history.fun, "examples", "objective")
    _draw(axes[1, 0], history.seconds, history.staleness, "simulated seconds", "mean staleness")
    _draw(axes[1, 1], megabytes, history.fun, "megabytes through the server", "objective")
    axes[1, 0].set_ylim(bottom=0)
    figure.suptitle(title, color=_INK, fontsize=11, x=0.01, ha="left")
    return figure


def _draw(axes: Axes, x: object, y: object, across: str, up: str) -> None:
    at = np.asarray(x, dtype=float)
    axes.plot(at, np.asarray(y, dtype=float), color=_LINE, lw=1.6, marker="o", ms=2.5, mew=0)
    axes.set_xlim(0, at.max(initial=0.0) * 1.02 or 1.0)
    axes.set_xlabel(across, color=_INK)
    axes.set_ylabel(up, color=_INK)
    axes.grid(color=_FAINT, alpha=0.3, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, length=0)

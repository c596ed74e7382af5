"""The picture of a simulated run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparkdist._plot import INK, Picture, draw

if TYPE_CHECKING:
    from sparkdist.simulate.history import SimulatedHistory

__all__ = ["plot_simulation"]


def plot_simulation(history: SimulatedHistory, title: str) -> Figure:
    """Draw the objective in time, in rows and in bytes, and how stale the gradients were."""
    figure = Picture(figsize=(9, 5.4), dpi=120, layout="constrained")
    axes = figure.subplots(2, 2)
    megabytes = np.asarray(history.bytes) / 1e6
    _draw(axes[0, 0], history.seconds, history.fun, "simulated seconds", "objective")
    _draw(axes[0, 1], history.examples, history.fun, "examples", "objective")
    _draw(axes[1, 0], history.seconds, history.staleness, "simulated seconds", "mean staleness")
    _draw(axes[1, 1], megabytes, history.fun, "megabytes through the server", "objective")
    axes[1, 0].set_ylim(bottom=0)
    figure.suptitle(title, color=INK, fontsize=11, x=0.01, ha="left")
    return figure


def _draw(axes: Axes, x: object, y: object, across: str, up: str) -> None:
    at = np.asarray(x, dtype=float)
    draw(axes, at, np.asarray(y, dtype=float))
    axes.set_xlim(0, at.max(initial=0.0) * 1.02 or 1.0)
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)

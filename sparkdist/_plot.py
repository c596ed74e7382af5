"""The picture of a run."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparkdist.blocks import Array

if TYPE_CHECKING:
    from sparkdist.comparison import Curve
    from sparkdist.result import History, TrainingHistory

__all__ = ["INK", "Picture", "draw", "plot_comparison", "plot_history", "plot_training"]


class Picture(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()


INK, _FAINT, _LINE = "#1f2933", "#9aa5b1", "#2563a8"


def plot_history(history: History, title: str) -> Figure:
    """Draw the objective, and how far it is above the run's best, against seconds and passes.

    The distance is on a logarithmic axis: it shows the rate of convergence, which the objective
    itself hides as soon as it looks flat.  The best point, whose distance is 0, is left out.
    """
    figure = Picture(figsize=(9, 5.4), dpi=120, layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    fun = np.asarray(history.fun)
    gap = fun - fun.min()
    across = ((history.seconds, "seconds"), (history.passes, "passes over the data"))
    for column, (values, label) in enumerate(across):
        at = np.asarray(values, dtype=float)
        draw(axes[0, column], at, fun)
        draw(axes[1, column], at[gap > 0], gap[gap > 0])
        axes[1, column].set_xlabel(label, color=INK)
        axes[1, column].set_xlim(0, at.max() * 1.02 or 1.0)
    if (gap > 0).any():
        axes[1, 0].set_yscale("log")
    axes[0, 0].set_ylabel("objective", color=INK)
    axes[1, 0].set_ylabel("objective − best", color=INK)
    figure.suptitle(title, color=INK, fontsize=11, x=0.01, ha="left")
    return figure


def plot_training(history: TrainingHistory, title: str) -> Figure:
    """Draw the loss of the batches, and how stale their parameters were, in time and in rows."""
    figure = Picture(figsize=(9, 5.4), dpi=120, layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    across = ((history.seconds, "seconds"), (history.examples, "examples"))
    for column, (values, label) in enumerate(across):
        at = np.asarray(values, dtype=float)
        draw(axes[0, column], at, np.asarray(history.loss))
        draw(axes[1, column], at, np.asarray(history.staleness))
        axes[1, column].set_xlabel(label, color=INK)
        axes[1, column].set_xlim(0, at.max(initial=0.0) * 1.02 or 1.0)
    axes[0, 0].set_ylabel("mean loss of the batches", color=INK)
    axes[1, 0].set_ylabel("mean staleness", color=INK)
    axes[1, 0].set_ylim(bottom=0)
    figure.suptitle(title, color=INK, fontsize=11, x=0.01, ha="left")
    return figure


#: Told apart by eye, also by those who do not see red and green as different.
_COLOURS = ("#2563a8", "#c2410c", "#0f766e", "#7c3aed", "#a16207", "#be185d", "#334155")


def plot_comparison(curves: Sequence[Curve], best: float, target: float) -> Figure:
    """Draw how far each method is above the best, against seconds, passes and bytes."""
    figure = Picture(figsize=(11, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    panels = (("seconds", "seconds"), ("passes", "passes over the data"), ("n_bytes", "bytes"))
    for one, (what, label) in zip(axes, panels, strict=True):
        for curve, colour in zip(curves, itertools.cycle(_COLOURS)):
            x, gap = np.asarray(getattr(curve, what)), np.asarray(curve.fun) - best
            there = (gap > 0) & (x > 0)
            one.plot(x[there], gap[there], color=colour, lw=1.6, label=curve.name)
        if target > best:
            one.axhline(target - best, color=_FAINT, lw=1, ls=(0, (4, 3)))
        one.set(xscale="log", yscale="log")
        one.set_xlabel(label, color=INK)
        _plain(one)
    axes[0].set_ylabel("objective − best", color=INK)
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=6, frameon=False)
    return figure


def draw(axes: Axes, x: Array, y: Array) -> None:
    """Draw a curve, and nothing around it that says nothing."""
    axes.plot(x, y, color=_LINE, lw=1.6, marker="o", ms=2.5, mew=0)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.grid(color=_FAINT, alpha=0.3, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=INK, length=0)

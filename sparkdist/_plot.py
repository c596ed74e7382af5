"""Pictures of curves; what they mean, those know whose they are."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["Curve", "Scale", "plot_comparison", "plot_run"]

_INK, _FAINT, _LINE = "#1f2933", "#9aa5b1", "#2563a8"
#: Told apart by eye, also by those who do not see red and green as different.
_COLOURS = ("#2563a8", "#c2410c", "#0f766e", "#7c3aed", "#a16207", "#be185d", "#334155")


class Picture(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()


class Scale(NamedTuple):
    """What is along an axis."""

    label: str
    values: Sequence[float]
    #: Where the axis begins; None leaves that to matplotlib.
    bottom: float | None = None
    #: Values that are not above 0 are left out.
    log: bool = False


def plot_run(across: Sequence[Scale], down: Sequence[Scale], title: str) -> Figure:
    """Draw each of ``down`` against each of ``across``: a run, in a grid of curves.

    All values are of the same moments, one behind the other.
    """
    width = 0.6 + 4.2 * len(across)
    figure = Picture(figsize=(width, 5.4), dpi=120, layout="constrained")
    grid = figure.subplots(len(down), len(across), sharex="col", sharey="row", squeeze=False)
    for (row, y), (column, x) in itertools.product(enumerate(down), enumerate(across)):
        axes, at, up = grid[row, column], np.asarray(x.values, float), np.asarray(y.values, float)
        shown = up > 0 if y.log else np.ones(len(up), bool)
        axes.plot(at[shown], up[shown], color=_LINE, lw=1.6, marker="o", ms=2.5, mew=0)
        if y.log and shown.any():
            axes.set_yscale("log")
        axes.set_xlim(0, at.max(initial=0.0) * 1.02 or 1.0)
        axes.set_ylim(bottom=y.bottom)
        _plain(axes)
    for axes, x in zip(grid[-1], across, strict=True):
        axes.set_xlabel(x.label, color=_INK)
    for axes, y in zip(grid[:, 0], down, strict=True):
        axes.set_ylabel(y.label, color=_INK)
    figure.suptitle(title, color=_INK, fontsize=11, x=0.01, ha="left")
    return figure


class Curve(NamedTuple):
    """One of several that are compared."""

    name: str
    #: Against what it is drawn, a panel each.
    across: Sequence[Sequence[float]]
    #: How far it is above the best.
    gap: Sequence[float]


def plot_comparison(labels: Sequence[str], curves: Sequence[Curve], target: float) -> Figure:
    """Draw how far each curve is above the best, in a panel for each label; 0 is left out.

    A ``target`` above 0 is a dashed line.
    """
    figure = Picture(figsize=(11, 4.2), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(labels), sharey=True)
    for n, (axes, label) in enumerate(zip(panels, labels, strict=True)):
        for curve, colour in zip(curves, itertools.cycle(_COLOURS)):
            x, gap = np.asarray(curve.across[n]), np.asarray(curve.gap)
            there = (gap > 0) & (x > 0)
            axes.plot(x[there], gap[there], color=colour, lw=1.6, label=curve.name)
        if target > 0:
            axes.axhline(target, color=_FAINT, lw=1, ls=(0, (4, 3)))
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel(label, color=_INK)
        _plain(axes)
    panels[0].set_ylabel("objective − best", color=_INK)
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=6, frameon=False)
    return figure


def _plain(axes: Axes) -> None:
    """Take away what says nothing."""
    axes.grid(color=_FAINT, alpha=0.3, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(which="both", colors=_INK, length=0)

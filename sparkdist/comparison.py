"""Comparison: several methods on the same data, by time to accuracy and its two factors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sparkdist.result import Result, plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Curve"]


@dataclass
class Curve:
    """How the objective of one method went down, in equally long lists that never fall but fun."""

    name: str
    #: Wall time since the call without evaluations, in seconds.
    seconds: list[float] = field(default_factory=list)
    #: Passes over the data; for methods with batches, rows seen divided by rows.
    passes: list[float] = field(default_factory=list)
    #: Bytes that went to workers and came from them; of the exact methods what d numbers take
    #: each way, for each partition and pass.
    n_bytes: list[float] = field(default_factory=list)
    #: Updates of the parameters: iterations.
    updates: list[int] = field(default_factory=list)
    #: The objective on all rows, always worked out in the same way.
    fun: list[float] = field(default_factory=list)
    #: Mean staleness of the applied pushes; 0 where nothing is stale.
    staleness: float = 0.0

    def append(
        self, seconds: float, passes: float, n_bytes: float, updates: int, fun: float
    ) -> None:
        """Add a point."""
        self.seconds.append(seconds)
        self.passes.append(passes)
        self.n_bytes.append(n_bytes)
        self.updates.append(updates)
        self.fun.append(fun)

    def first_at(self, target: float) -> int | None:
        """Return the first point at or below a value of the objective."""
        return next((i for i, fun in enumerate(self.fun) if fun <= target), None)


@dataclass
class Comparison:
    """What :func:`sparkdist.compare` found.

    ::

        time to accuracy = passes to accuracy (statistical efficiency)
                           x seconds a pass (hardware efficiency)

    Neither factor says anything alone.  A method that did not reach the target has no time to it,
    and is listed as such with what it reached; its seconds are those that it had.
    """

    target: float
    curves: list[Curve]
    results: dict[str, Result] = field(repr=False)

    def rows(self) -> list[dict[str, Any]]:
        """One row a method, the fastest to the target first, then by what was reached."""
        found = [self._row(curve) for curve in self.curves]
        return sorted(found, key=lambda row: (not row["reached"], row["seconds"], row["fun"]))

    def _row(self, curve: Curve) -> dict[str, Any]:
        at = curve.first_at(self.target)
        end = len(curve.fun) - 1 if at is None else at
        passes = curve.passes[end]
        return {
            "method": curve.name,
            "reached": at is not None,
            "seconds": curve.seconds[end],
            "passes": passes,
            "seconds_per_pass": curve.seconds[end] / passes if passes else math.nan,
            "updates": curve.updates[end],
            "megabytes": curve.n_bytes[end] / 1e6,
            "staleness": curve.staleness,
            "fun": curve.fun[end],
        }

    def __str__(self) -> str:
        head = ["method", "seconds", "passes", "s/pass", "updates", "MB", "staleness", "objective"]
        lines = [head, *map(_cells, self.rows())]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(_aligned(line, widths)) for line in lines]
        return "\n".join([f"to an objective of {self.target:.8g}", *text])

    def to_dict(self) -> dict[str, Any]:
        """Target, rows and curves, for JSON."""
        return {
            "target": self.target,
            "rows": self.rows(),
            "curves": [asdict(curve) for curve in self.curves],
        }

    def to_json(self) -> str:
        """The same as text; what is no number is null."""
        return json.dumps(_without_nan(self.to_dict()), indent=1)

    def plot(self, optimum: float | None = None) -> Figure:
        """Draw the objective above ``optimum`` against seconds, passes and bytes.

        Without one the lowest objective of all methods stands for it.

        Raises
        ------
        ImportError
            Without matplotlib; ``pip install sparkdist[plot]``.
        """
        best = min(min(curve.fun) for curve in self.curves) if optimum is None else optimum
        draw = plotting()
        shown = [
            draw.Curve(
                curve.name,
                (curve.seconds, curve.passes, curve.n_bytes),
                [fun - best for fun in curve.fun],
            )
            for curve in self.curves
        ]
        labels = ("seconds", "passes over the data", "bytes")
        return draw.plot_comparison(labels, shown, self.target - best)


def thinned(n: int, most: int) -> list[int]:
    """Return at most so many of 0 ... n - 1, both ends among them, closer at the start."""
    if n <= most:
        return list(range(n))
    steps = [round((n - 1) ** (i / (most - 1))) for i in range(most)]
    return sorted({0, *steps, n - 1})[: n if n < most else None]


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = f"{row['seconds']:.2f}"
    return [
        row["method"],
        seconds if row["reached"] else f"not reached in {seconds}",
        f"{row['passes']:.1f}",
        f"{row['seconds_per_pass']:.3f}",
        f"{row['updates']:,}",
        f"{row['megabytes']:.1f}",
        f"{row['staleness']:.1f}",
        f"{row['fun']:.8g}",
    ]


def _aligned(line: list[str], widths: list[int]) -> Iterator[str]:
    yield line[0].ljust(widths[0])
    for cell, width in zip(line[1:], widths[1:], strict=True):
        yield cell.rjust(width)


def _without_nan(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _without_nan(value) for name, value in found.items()}
    if isinstance(found, list):
        return [_without_nan(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found

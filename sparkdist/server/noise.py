"""Noise: the gradient noise scale, which says how large a batch is useful."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

from sparkdist.blocks import Array
from sparkdist.wire import Sparse

__all__ = ["NoiseScale", "Window"]

#: The first windows are all looked at, then one of so many: a push costs some five passes over
#: the parameters, a window three.
FIRST, EVERY = 16, 32
#: Weight of the past in the averages, by windows.
_DECAY = 0.95


class Window(NamedTuple):
    """What is measured of a few gradients of independent batches at about the same parameters."""

    #: Of each batch: sum of the rows' weights, and |mean gradient|^2.
    sizes: Sequence[float]
    squares: Sequence[float]
    #: |mean gradient|^2 of all of them as one batch.
    whole: float

    def estimate(self) -> tuple[float, float]:
        """Return unbiased estimates of |G|^2 and S.

        ::

            E |g_B|^2 = |G|^2 + S / B        of a batch of size B

        Solved for the batches' mean, and for the whole; equal sizes make it equations (A.2) and
        (A.3) of the paper.
        """
        size, n = sum(self.sizes), len(self.sizes)
        small, inverse = sum(self.squares) / n, sum(1.0 / b for b in self.sizes) / n
        noise = (small - self.whole) / (inverse - 1.0 / size)
        return self.whole - noise / size, noise


class NoiseScale:
    """Average of the windows of a run: |G|^2, S, and their quotient B_simple = S / |G|^2.

    G is the gradient over all rows, and S the trace of the covariance of the gradients of single
    rows.  A batch much smaller than B_simple is all noise, so that twice the batch allows about
    twice the rate; one much larger wastes rows.  Both averages fade with the windows, as the
    gradient gets smaller on the way, and are divided by the weight that they have.

    A window is a round, or where pushes are applied one by one, two that follow one another: that
    they were computed on parameters a few versions apart is left out of account.  Nothing of it
    is in checkpoints.

    Source: McCandlish, Kaplan, Amodei et al., An Empirical Model of Large-Batch Training,
    arXiv:1812.06162, section 2.2 and appendix A.1.
    """

    def __init__(self) -> None:
        self._seen = self._alone = self._windows = 0
        self._weight = self._gradient = self._noise = 0.0
        self._first: tuple[Array, float] | None = None

    def see(self, mean: Array, size: float) -> None:
        """Take the mean gradient of a push that is applied alone, a batch of that size."""
        self._alone += 1
        if self._alone % 2:
            self._first = (mean.copy(), size) if self._is_due() else None
        elif self._first is not None:
            first, other = self._first
            squares = (float(first @ first), float(mean @ mean))
            a, b = other / (other + size), size / (other + size)
            whole = a * a * squares[0] + b * b * squares[1] + 2 * a * b * float(first @ mean)
            self.add(Window((other, size), squares, whole))

    def see_round(self, sums: Sequence[tuple[Any, float]], mean: Array) -> None:
        """Take what the pushes of a round carry, with their sizes, and the mean of all."""
        if self._is_due():
            filled = [(gradient, size) for gradient, size in sums if size > 0]
            squares = [_square(gradient) / size**2 for gradient, size in filled]
            self.add(Window([size for _, size in filled], squares, _square(mean)))

    def add(self, window: Window) -> None:
        """Take a window; one of a single batch, or whose squares overflow, is left out."""
        if len(window.sizes) < 2 or not all(map(isfinite, (*window.squares, window.whole))):
            return
        self._windows += 1
        gradient, noise = window.estimate()
        self._weight += (1.0 - _DECAY) * (1.0 - self._weight)
        self._gradient += (1.0 - _DECAY) * (gradient - self._gradient)
        self._noise += (1.0 - _DECAY) * (noise - self._noise)

    def status(self) -> dict[str, Any]:
        """The averages for JSON; None where there is none yet, or noise has made |G|^2 negative."""
        weight, gradient, noise = self._weight, self._gradient, self._noise
        if not weight:
            return {"windows": 0, "gradient_squared": None, "noise": None, "batch_size": None}
        return {
            "windows": self._windows,
            "gradient_squared": gradient / weight,
            "noise": noise / weight,
            "batch_size": noise / gradient if gradient > 0 and noise > 0 else None,
        }

    def _is_due(self) -> bool:
        """Count a window, and say whether it is one to be looked at."""
        self._seen += 1
        return self._seen <= FIRST or self._seen % EVERY == 0


def _square(gradient: Array | dict[str, Array | Sparse]) -> float:
    """Return |gradient|^2 of what a push carries, dense or sparse."""
    parts = gradient.values() if isinstance(gradient, dict) else [gradient]
    flat = (part.values if isinstance(part, Sparse) else part.ravel() for part in parts)
    return sum(float(values @ values) for values in flat)

"""CoCoA+: each worker improves the dual variables of its own rows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sparkdist.blocks import Array, Block, Matrix
from sparkdist.client import Gradient
from sparkdist.consistency import bsp
from sparkdist.errors import InvalidCall
from sparkdist.fields import optional, positive, settle, share, whole
from sparkdist.objectives import Hinge
from sparkdist.updaters import sgd
from sparkdist.workers._base import Cuts, UnitWorker, Whole

__all__ = ["cocoa"]


@dataclass(frozen=True)
class cocoa(UnitWorker):
    """Dual coordinate ascent for the support vector machine, on all partitions at once.

    The dual of mean hinge loss + (l2 / 2) ||w||^2, with n the sum of the weights c, s = +1 or -1
    the class of a row, and a variable a in [0, 1] for each row::

        D(a) = (1/n) sum c a - (l2/2) ||w(a)||^2,      w(a) = sum c a s x / (l2 n)

    In a round each of the K workers goes through some of its rows, from dw = 0::

        a' <- a + (1 - s x.(w + sigma dw)) l2 n / (sigma c ||x||^2),  clipped to [0, 1]
        dw <- dw + c (a' - a) s x / (l2 n)

    and then w <- w + gamma sum_k dw, a <- a + gamma (a' - a).  With sigma = gamma K the dual
    never falls, however alike the partitions are.  The variables of a partition are its
    worker's state, and go with the push: w = w(a) holds on the server after every round.

    Parameters
    ----------
    rounds
        In an epoch: a worker goes through so many parts of its rows.
    gamma
        1 to add what the workers found, 1 / K to average it.
    sigma
        How much each worker fears the others' steps; None for gamma K, which is safe.

    Source: Ma et al., Adding vs. Averaging in Distributed Primal-Dual Optimization, ICML 2015,
    arXiv:1502.03508, Algorithm 1; the coordinate step, Shalev-Shwartz and Zhang, Stochastic Dual
    Coordinate Ascent Methods for Regularized Loss Minimization, JMLR 14 (2013), section 6.2.
    """

    rounds: int = 1
    gamma: float = 1.0
    sigma: float | None = None
    #: What the run is; see :meth:`part_of`.
    whole: Whole | None = dataclasses.field(default=None, repr=False, compare=False)

    own_penalty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle(self, rounds=whole(1), gamma=share, sigma=optional(positive))

    def part_of(self, whole: Whole) -> cocoa:
        """Return the loop that knows strength of the penalty, weight of all rows and workers."""
        problems = []
        if whole.objective != Hinge():
            problems.append(f"the loss must be Hinge(); it is {whole.objective!r}")
        if whole.l1 or not whole.l2 or not whole.mask.all():
            rule = "the penalty must be L2, on every parameter"
            problems.append(f"{rule}: no intercept, but a column of ones does as well")
        if (whole.consistency, whole.updater, whole.plain) != (bsp(), sgd(1.0), True):
            rule = "consistency must be bsp() and updater sgd(1.0), without a codec or clipping"
            problems.append(f"{rule}; they are {whole.consistency!r} and {whole.updater!r}")
        if problems:
            raise InvalidCall("cocoa", problems)
        return dataclasses.replace(self, whole=whole._replace(objective=None))

    def cuts(self, per_epoch: int, epochs: int) -> Cuts:
        """Return as many units for every worker, however many batches it has."""
        return _Rounds(per_epoch, epochs, self.rounds)

    def state_size(self, size: int) -> int:
        """As many numbers as there are rows, of all workers: one may have them all."""
        return 0 if self.whole is None else self.whole.n_rows

    def unit(self, units: Any, clock: int, w: Array, state: Array | None) -> Gradient:
        """Go through the rows of a unit, and say what it does to w."""
        assert self.whole is not None, "cocoa was not told which run it is a part of"
        if state is None:
            if w.any():
                raise InvalidCall("cocoa", ["w must start at 0, where all dual variables are 0"])
            state = np.zeros(units.n_rows)
        n, sigma = self.whole.weight, self.sigma or self.gamma * self.whole.n_workers
        a, ascent = state.copy(), _Ascent(w, self.whole.l2 * n, sigma)
        for step in range(units.steps(clock)):
            rows, block = units.rows(clock, step)
            order = np.random.default_rng([clock, step]).permutation(len(rows))
            a[rows] = ascent.through(block, a[rows], order)
        # The server divides by the sum of all workers' weights, which is n.
        value = (-n * self.gamma) * ascent.dw
        loss = ascent.loss * units.weight / ascent.weight if ascent.weight else None
        a = state + self.gamma * (a - state)
        return Gradient(value.astype(w.dtype, copy=False), units.weight, ascent.rows, loss, a)


class _Rounds(Cuts):
    """``n_push`` units an epoch, of as many batches as there are for each, or none."""

    @property
    def total(self) -> int:
        """How many units there are in all."""
        return self.epochs * self.n_push if self.per_epoch else 0

    def first(self, clock: int) -> int:
        """Return the number of a unit's first batch, counted from the start of the run."""
        return clock * self.per_epoch // self.n_push

    def steps(self, clock: int) -> int:
        """How many batches a unit has."""
        return self.first(clock + 1) - self.first(clock)


class _Ascent:
    """One round of a worker: dw, and the sums of what it saw at w."""

    def __init__(self, w: Array, scale: float, sigma: float):
        self._w, self._scale, self._sigma = w, scale, sigma
        self.dw = np.zeros(w.size)
        self.loss, self.weight, self.rows = 0.0, 0.0, 0

    def through(self, block: Block, a: Array, order: NDArray[np.intp]) -> Array:
        """Take the step of one variable after the other; return the new ones."""
        X, y, weight = block
        sign, row = np.where(y > 0, 1.0, -1.0), _row_of(X)
        margin = sign * (X @ self._w)
        self.loss += float(weight @ np.maximum(1.0 - margin, 0.0))
        self.weight, self.rows = self.weight + float(weight.sum()), self.rows + len(y)
        # c ||x||^2 sigma / (l2 n): the curvature of D in a, times n / c.
        curvature = weight * _squares(X) * (self._sigma / self._scale)
        new = np.ones(len(y))  # the best where the row is 0
        for i in order[curvature[order] > 0].tolist():
            at, x = row(i)
            m = margin[i] + self._sigma * sign[i] * (x @ self.dw[at])
            new[i] = min(max(a[i] + (1.0 - m) / curvature[i], 0.0), 1.0)
            self.dw[at] += (weight[i] * sign[i] * (new[i] - a[i]) / self._scale) * x
        return new


def _row_of(X: Matrix) -> Any:
    """Return a function that gives columns and values of a row."""
    if isinstance(X, np.ndarray):
        return lambda i: (slice(None), X[i])
    starts, columns, values = X.indptr.tolist(), X.indices, X.data

    def row(i: int) -> Any:
        part = slice(starts[i], starts[i + 1])
        return columns[part], values[part]

    return row


def _squares(X: Matrix) -> Array:
    """Squared Euclidean norms of the rows."""
    if isinstance(X, np.ndarray):
        return np.einsum("ij,ij->i", X, X)
    return np.asarray(X.multiply(X).sum(axis=1)).ravel()

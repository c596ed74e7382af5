"""What all solvers share: the points they visit, the books of a run, and how it may end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import OptimizeResult

from sparkdist.blocks import Array
from sparkdist.errors import InvalidCall

__all__ = [
    "PATIENCE",
    "Callback",
    "End",
    "Point",
    "Run",
    "ValueAndGrad",
    "l1_weights",
    "pseudo_gradient",
]

#: One call is one pass over the data: w of shape (d,) to the value and the gradient.
ValueAndGrad: TypeAlias = Callable[[Array], tuple[float, Array]]
#: Sees the state after each iteration; raises StopIteration to end the run.
Callback: TypeAlias = Callable[[OptimizeResult], object]

#: A relative change of the objective that may be rounding alone, unless ``fun.noise`` says more.
NOISE = 10 * float(np.finfo(np.float64).eps)
#: So many iterations within NOISE and without a smaller gradient are the end.
PATIENCE = 10
#: So many trials are remembered, two vectors each.
RECENT = 4


class End(Enum):
    """How a run ends: SciPy's status code, and a sentence for the user."""

    CONVERGED = 0, "converged"
    NOISE_FLOOR = 0, "converged to working precision: steps change the objective by rounding only"
    MAX_ITER = 1, "max_iter was reached first: raise it, loosen tol, or try another solver"
    NO_PROGRESS = (
        2,
        "no step along a descent direction lowers the objective: check the gradient against "
        "differences of the value, and bring the parameters to similar scales",
    )
    NOT_FINITE = (
        3,
        "the objective or its gradient is not finite at the start: look for NaN and infinity in "
        "the data, or start nearer to zero",
    )
    DIVERGED = 3, "the objective became infinite or NaN: use a shorter step, or a line search"
    STOPPED = 99, "the callback stopped the run"


class Point(NamedTuple):
    """A place at which ``fun`` was called, and what is known there."""

    w: Array  # (d,), never written to
    f: float  # the smooth part: what fun returned
    g: Array  # (d,), its gradient
    F: float  # the objective f + sum(l1 * |w|); inf where anything is not finite
    slope: Array  # (d,), the gradient of F, or the pseudo-gradient


class Run:
    """The books of one run: a solver loops ``while run.goes_on`` and calls ``accept``.

    Conventions
    -----------
    A run converges where ``max |slope| <= tol``; with bounds, of the projected slope.  That the
    objective changes by no more than rounding, ``noise * |F|``, says nothing by itself: a short
    step does that far from any optimum, and near it the gradient goes on shrinking when F has
    stopped.  It counts where the solver scales its steps by curvature, so that a full step has
    been tried, and only after ``patience`` iterations that left the gradient as it was.
    """

    def __init__(
        self,
        caller: str,
        fun: ValueAndGrad,
        w0: ArrayLike,
        *,
        tol: float,
        max_iter: int,
        callback: Callback | None,
        problems: list[str],
        l1: Array | None = None,
        project: Callable[[Array, Array], Array] | None = None,
        patience: float = PATIENCE,
    ):
        self._fun, self._callback, self._project = fun, callback, project
        self._tol, self._max_iter, self._patience = tol, max_iter, patience
        self._noise = getattr(fun, "noise", NOISE)
        self.nfev = self.nit = self._stalled = 0
        self._smallest = np.inf
        w = np.array(w0, dtype=np.float64)
        if w.ndim != 1:
            problems = [*problems, f"w0 has shape {w.shape}; it must be one vector"]
        if not tol >= 0:
            problems = [*problems, f"tol is {tol!r}; it must be 0 or more"]
        if not max_iter >= 0:
            problems = [*problems, f"max_iter is {max_iter!r}; it must be 0 or more"]
        if problems:
            raise InvalidCall(caller, problems)
        self.l1 = np.zeros_like(w) if l1 is None else l1
        self.point, self._recent = self._call(w), deque[Point](maxlen=RECENT)
        self.end = self._verdict()

    @property
    def goes_on(self) -> bool:
        """Whether there is no reason yet to end."""
        return self.end is None

    @property
    def noise(self) -> float:
        """A change of the objective that may be rounding alone."""
        return self._noise * abs(self.point.F)

    def slack(self, promised: float) -> float:
        """By how much a trial may miss the decrease asked of it: nothing, or rounding.

        Where the full step promises little more than rounding, F cannot tell a good step from
        a bad one, and the gradient is trusted.
        """
        return self.noise if promised <= 100 * self.noise else 0.0

    def evaluate(self, w: Array) -> Point:
        """Call ``fun`` at w, a new array; but not again at the iterate or a recent trial.

        Steps that are cut off at zero or at a bound meet the same corner more than once.
        """
        for known in (self.point, *self._recent):
            if np.array_equal(w, known.w):
                return known
        self._recent.append(self._call(w))
        return self._recent[-1]

    def accept(self, point: Point) -> None:
        """Make ``point`` the iterate, show it to the callback, and see whether the run ends."""
        if not np.isfinite(point.F):
            self.end = End.DIVERGED  # and the iterate stays the last finite one
            return
        rounding = abs(point.F - self.point.F) <= self._noise * abs(point.F)
        self.point = point
        self.nit += 1
        size = self._size()
        stalls = rounding and size > 0.9 * self._smallest
        self._stalled = self._stalled + 1 if stalls else 0
        self._smallest = min(self._smallest, size)
        self.end = End.STOPPED if self._callback_stops() else self._verdict()

    def give_up(self, promised: float) -> None:
        """End the run because there is no step, although the full one promised a decrease."""
        self.end = End.NOISE_FLOOR if self.slack(promised) else End.NO_PROGRESS

    def result(self, **extra: int) -> OptimizeResult:
        """Return where the run ended and why."""
        assert self.end is not None
        status, sentence = self.end.value
        message = (
            f"{sentence}; max |gradient| is {self._size():.3g} (tol={self._tol:g}) after "
            f"{self.nit} iterations and {self.nfev} evaluations"
        )
        return OptimizeResult(
            **self._state(), **extra, status=status, success=status == 0, message=message
        )

    def _call(self, w: Array) -> Point:
        self.nfev += 1
        value, gradient = self._fun(w)
        f, g = float(value), np.array(gradient, dtype=np.float64)
        if g.shape != w.shape:
            problem = f"the gradient has shape {g.shape}; the parameters have {w.shape}"
            raise InvalidCall("fun(w) -> (value, gradient)", [problem])
        # NaN becomes inf, which every comparison in a line search refuses.
        F = f + float(self.l1 @ np.abs(w)) if np.isfinite(f) and np.isfinite(g).all() else np.inf
        return Point(w, f, g, F, pseudo_gradient(w, g, self.l1))

    def _state(self) -> dict[str, Any]:
        w, _, _, F, slope = self.point
        return {"x": w.copy(), "fun": F, "jac": slope.copy(), "nit": self.nit, "nfev": self.nfev}

    def _size(self) -> float:
        w, slope = self.point.w, self.point.slope
        projected = slope if self._project is None else self._project(w, slope)
        return float(np.abs(projected).max(initial=0.0))

    def _verdict(self) -> End | None:
        if not np.isfinite(self.point.F):
            return End.NOT_FINITE
        if self._size() <= self._tol:
            return End.CONVERGED
        if self._stalled >= self._patience:
            return End.NOISE_FLOOR
        return End.MAX_ITER if self.nit >= self._max_iter else None

    def _callback_stops(self) -> bool:
        if self._callback is None:
            return False
        try:
            self._callback(OptimizeResult(self._state()))
        except StopIteration:
            return True
        return False


def pseudo_gradient(w: Array, g: Array, l1: Array) -> Array:
    """Gradient of f + sum(l1 * |w|), where it has several the shortest; all of shape (d,).

    Source: Andrew and Gao, Scalable Training of L1-Regularized Log-Linear Models, ICML 2007,
    equation (4).
    """
    at_zero = np.sign(g) * np.maximum(np.abs(g) - l1, 0.0)
    return np.where(w == 0, at_zero, g + l1 * np.sign(w))


def l1_weights(l1: ArrayLike, w0: ArrayLike, problems: list[str]) -> Array:
    """Return one weight a coordinate; what is wrong with them is added to ``problems``."""
    weights, shape = np.array(l1, dtype=np.float64), np.shape(w0)
    if weights.shape not in ((), shape):
        problems.append(f"l1 has shape {weights.shape}; it must be one number or {shape}")
        return np.zeros(shape)
    if not np.all((weights >= 0) & (weights < np.inf)):
        problems.append("l1 is negative, infinite or NaN; each weight must be 0 or more")
    return np.broadcast_to(weights, shape)

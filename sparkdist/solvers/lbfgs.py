"""L-BFGS with bounds: SciPy's L-BFGS-B, fed one pass at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import Bounds, OptimizeResult

from sparkdist.blocks import Array
from sparkdist.solvers._feed import Feed, take_steps
from sparkdist.solvers._run import Callback, Run, ValueAndGrad

__all__ = ["lbfgs"]

BoundsLike: TypeAlias = "Bounds | Sequence[tuple[float | None, float | None]]"


def lbfgs(
    fun: ValueAndGrad,
    w0: ArrayLike,
    *,
    bounds: BoundsLike | None = None,
    memory: int = 10,
    tol: float = 1e-6,
    max_iter: int = 1000,
    callback: Callback | None = None,
) -> OptimizeResult:
    """Minimise f(w), within bounds if there are any: the default, and rarely the wrong choice.

    ::

        minimise f(w) for low <= w <= high, until max |clip(g, w - high, w - low)| <= tol

    The steps are SciPy's.  Value and gradient come from one call of ``fun``, and the run ends by
    the rules of all solvers here: SciPy's own defaults stop 1e-7 too early.

    Parameters
    ----------
    fun
        w of shape (d,) to (f, gradient); each call is one pass over the data.
    w0
        Where to start, shape (d,); moved into the bounds if it is outside.
    bounds
        ``scipy.optimize.Bounds``, or one pair (low, high) a coordinate, None for no bound.
    memory
        Number of curvature pairs that are kept.  Where a pass is dear more of them pay: a9a with
        L2 1e-5 needs some 530 passes to max |g| 1e-7 with 10, 265 with 50 and 190 with 100
        (benchmarks/bench_products.py).
    tol
        Stop where max |projected gradient| is at most this.
    max_iter
        Stop after so many iterations, with success False.
    callback
        Called after each iteration with an OptimizeResult (x, fun, jac, nit, nfev); raising
        StopIteration ends the run.

    Returns
    -------
    OptimizeResult
        x, fun, jac, nit, nfev, status, success, message.

    Raises
    ------
    InvalidCall
        With all problems of the call; also if ``fun`` gives a gradient that has not w's shape.

    Source: Byrd, Lu, Nocedal and Zhu, A Limited Memory Algorithm for Bound Constrained
    Optimization, SIAM Journal on Scientific Computing 16 (1995); without bounds, Liu and Nocedal,
    On the Limited Memory BFGS Method for Large Scale Optimization, Mathematical Programming 45
    (1989).
    """
    problems = [] if memory >= 1 else [f"memory is {memory!r}; it must be 1 or more"]
    low, high = _box(bounds, np.shape(w0), problems)

    def project(w: Array, g: Array) -> Array:
        """Cut -g off where it leaves the box: zero at a bound that holds w back."""
        return np.clip(g, w - high, w - low)

    run = Run(
        "lbfgs",
        fun,
        np.clip(w0, low, high),
        tol=tol,
        max_iter=max_iter,
        callback=callback,
        problems=problems,
        project=project,
    )
    if run.goes_on:
        take_steps(run, Feed(run), run.point.w, memory, Bounds(low, high))
    return run.result()


def _box(
    bounds: BoundsLike | None, shape: tuple[int, ...], problems: list[str]
) -> tuple[Array, Array]:
    """Return lower and upper bounds of w's shape; what is wrong is added to ``problems``."""
    free = np.full(shape, -np.inf), np.full(shape, np.inf)
    if bounds is None:
        return free
    if isinstance(bounds, Bounds):
        low, high = (np.array(side, dtype=np.float64) for side in (bounds.lb, bounds.ub))
    else:
        low = np.array([-np.inf if pair[0] is None else pair[0] for pair in bounds], np.float64)
        high = np.array([np.inf if pair[1] is None else pair[1] for pair in bounds], np.float64)
    if not all(side.shape in ((), (1,), shape) for side in (low, high)):
        problems.append(f"bounds have shapes {low.shape} and {high.shape}; w0 has {shape}")
        return free
    low, high = np.broadcast_to(low, shape), np.broadcast_to(high, shape)
    if wrong := np.flatnonzero(~(low <= high)).tolist():
        where = f"first of coordinate {wrong[0]}: {low[wrong[0]]:g} to {high[wrong[0]]:g}"
        problems.append(f"{len(wrong)} bounds have lower > upper or are NaN, {where}")
    return low, high

"""L-BFGS in the metric of the start's curvature: few passes over the data where they are dear."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.optimize import OptimizeResult

from sparkdist.blocks import Array
from sparkdist.errors import InvalidCall
from sparkdist.solvers._feed import Feed, take_steps
from sparkdist.solvers._run import Callback, Run, ValueAndGrad

__all__ = ["preconditioned_lbfgs"]

logger = logging.getLogger(__name__)

#: w of shape (D k,) to a matrix (D, D), positive semidefinite: one pass over the data.
Metric: TypeAlias = Callable[[Array], Array]


def preconditioned_lbfgs(
    fun: ValueAndGrad,
    w0: ArrayLike,
    *,
    metric: Metric,
    memory: int = 10,
    tol: float = 1e-6,
    max_iter: int = 1000,
    callback: Callback | None = None,
) -> OptimizeResult:
    """Minimise f(w) with L-BFGS whose first guess of the Hessian is a real one.

    ::

        M = R'R  near the Hessian at w0,        w = w0 + R^-1 u,        L-BFGS on f in u

    In u the Hessian is near a multiple of the identity, however the features are scaled and
    correlated, and a few of L-BFGS's pairs repair what is left.  M costs one pass more, D^2
    numbers from each partition and D^3 / 3 operations on the driver, once: for D up to some
    thousand.  a9a with L2 1e-5 needs 27 passes to max |g| 1e-7, and lbfgs 535
    (benchmarks/bench_products.py).

    Parameters
    ----------
    fun
        w of shape (d,) to (f, gradient); each call is one pass over the data.
    w0
        Where to start, shape (d,) with d = D k: k columns that have the same metric, as the
        classes of a softmax.
    metric
        w to M; called once, at w0, unless that is the end already.  Where it is singular, its
        diagonal is enlarged by the smallest share, a power of ten from 1e-12 on, with which it
        is positive definite.
    memory
        Number of curvature pairs that are kept.
    tol
        Stop where max |gradient in w| is at most this.
    max_iter
        Stop after so many iterations, with success False.
    callback
        Called after each iteration with an OptimizeResult (x, fun, jac, nit, nfev); raising
        StopIteration ends the run.

    Returns
    -------
    OptimizeResult
        x, fun, jac, nit, nfev, nhev (the calls of ``metric``: 1 or 0), status, success, message.

    Raises
    ------
    InvalidCall
        With all problems of the call; also if ``fun`` gives a gradient that has not w's shape, or
        ``metric`` a matrix that does not fit it.

    Source: Liu and Nocedal, On the Limited Memory BFGS Method for Large Scale Optimization,
    Mathematical Programming 45 (1989), whose H_0 is here M^-1; for the logistic loss from w0 = 0
    that is the bound of Böhning and Lindsay, Monotonicity of Quadratic-Approximation Algorithms,
    Annals of the Institute of Statistical Mathematics 40 (1988).
    """
    problems = [] if memory >= 1 else [f"memory is {memory!r}; it must be 1 or more"]
    run = Run(
        "preconditioned_lbfgs",
        fun,
        w0,
        tol=tol,
        max_iter=max_iter,
        callback=callback,
        problems=problems,
    )
    nhev = int(run.goes_on)
    if run.goes_on:
        start, R = run.point.w, upper_factor(_checked(metric(run.point.w), run.point.w.size))

        def to_w(u: Array) -> Array:
            return np.asarray(start + solve_triangular(R, u.reshape(len(R), -1)).ravel())

        def from_gradient(g: Array) -> Array:
            return np.asarray(solve_triangular(R, g.reshape(len(R), -1), trans="T").ravel())

        take_steps(run, Feed(run, to_w, from_gradient), np.zeros_like(start), memory)
    return run.result(nhev=nhev)


def _checked(M: Array, d: int) -> Array:
    """Return M; raise InvalidCall if it is not (D, D) with D a divisor of d."""
    M = np.asarray(M, dtype=np.float64)
    if M.ndim != 2 or M.shape[0] != M.shape[1] or not len(M) or d % len(M):
        problem = f"the metric has shape {M.shape}; it must be square, for {d} parameters"
        raise InvalidCall("preconditioned_lbfgs", [problem])
    return M


def upper_factor(M: Array) -> Array:
    """R, upper triangular, with R'R = M plus what M needs on its diagonal to have one."""
    diagonal = M.diagonal()
    if np.isfinite(M).all() and (diagonal >= 0).all() and diagonal.any():
        units = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        correlations = M / np.outer(units, units)
        for share in (0.0, *10.0 ** np.arange(-12, 3)):
            try:
                return np.asarray(cholesky(correlations + share * np.eye(len(M))) * units)
            except LinAlgError:
                continue
    logger.warning("the metric is not positive semidefinite, or not finite: plain L-BFGS goes on")
    return np.eye(len(M))

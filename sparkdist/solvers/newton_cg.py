"""Newton's method with conjugate gradients in a trust region."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import OptimizeResult

from sparkdist.blocks import Array
from sparkdist.solvers._run import Callback, Run, ValueAndGrad
from sparkdist.solvers._search import MAX_TRIALS

__all__ = ["newton_cg"]

#: (w, v) to the Hessian at w times v: one pass over the data.
HessianProduct: TypeAlias = Callable[[Array, Array], Array]

# LIBLINEAR's tron.cpp: levels of actual / promised decrease, and factors of the radius.
ETA0, ETA1, ETA2 = 1e-4, 0.25, 0.75
SIGMA1, SIGMA2, SIGMA3 = 0.25, 0.5, 4.0
#: Newton's equation is solved until |residual| <= FORCING * |g|.
FORCING = 0.1


def newton_cg(
    fun: ValueAndGrad,
    w0: ArrayLike,
    *,
    hessp: HessianProduct,
    tol: float = 1e-6,
    max_iter: int = 100,
    callback: Callback | None = None,
) -> OptimizeResult:
    """Minimise f(w) by truncated Newton steps: for ill-conditioned problems.

    ::

        s  <- argmin g's + s'H s / 2  for |s| <= radius,  until |H s + g| <= max(|g| / 10, tol / 2)
        w  <- w + s  where f falls by 1e-4 of what the parabola promises, or more

    A step that is refused is shortened along itself, which costs one call of ``fun`` and no
    product; so ``hessp`` is only asked for at the w at which ``fun`` was called last.

    Parameters
    ----------
    fun
        w of shape (d,) to (f, gradient); each call is one pass over the data.
    w0
        Where to start, shape (d,).
    hessp
        (w, v) to the Hessian at w times v; each call is one pass over the data.
    tol
        Stop where max |gradient| is at most this.
    max_iter
        Stop after so many iterations, with success False.
    callback
        Called after each iteration with an OptimizeResult (x, fun, jac, nit, nfev); raising
        StopIteration ends the run.

    Returns
    -------
    OptimizeResult
        x, fun, jac, nit, nfev, nhev (the calls of ``hessp``), status, success, message.

    Raises
    ------
    InvalidCall
        With all problems of the call; also if ``fun`` gives a gradient that has not w's shape.

    Source: Lin, Weng and Keerthi, Trust Region Newton Method for Large-Scale Logistic Regression,
    JMLR 9 (2008), Algorithms 1 and 2 (TRON), with the constants of LIBLINEAR; the shortened step,
    Nocedal and Yuan, Combining Trust Region and Line Search Techniques (1998).
    """
    run = Run("newton_cg", fun, w0, tol=tol, max_iter=max_iter, callback=callback, problems=[])
    nhev = 0

    def hessian_times(v: Array) -> Array:
        nonlocal nhev
        nhev += 1
        return np.array(hessp(run.point.w, v), dtype=np.float64)

    radius = _norm(run.point.g)
    while run.goes_on:
        g = run.point.g
        # There is no use in a residual far below tol.
        accuracy = max(FORCING * _norm(g), 0.5 * tol)
        s, Hs = conjugate_gradients(hessian_times, g, radius, accuracy)
        radius = _take_step(run, s, Hs, radius)
    return run.result(nhev=nhev)


def conjugate_gradients(
    hessian_times: Callable[[Array], Array], g: Array, radius: float, accuracy: float
) -> tuple[Array, Array]:
    """Return s with H s = -g, nearly, within |s| <= radius, and H s; all of shape (d,).

    The path of CG ends at the boundary, and goes straight to it along a direction without
    positive curvature.

    Source: Steihaug, The Conjugate Gradient Method and Trust Regions in Large Scale Optimization,
    SIAM Journal on Numerical Analysis 20 (1983).
    """
    s, Hs, r, p = np.zeros_like(g), np.zeros_like(g), -g, -g
    for _ in range(g.size):
        if _norm(r) <= accuracy:
            break
        Hp = hessian_times(p)
        curvature = float(p @ Hp)
        alpha = float(r @ r) / curvature if curvature > 0 else np.inf
        to_boundary = _to_boundary(s, p, radius)
        if not alpha < to_boundary:
            return s + to_boundary * p, Hs + to_boundary * Hp
        s, Hs, r_new = s + alpha * p, Hs + alpha * Hp, r - alpha * Hp
        p = r_new + (r_new @ r_new) / (r @ r) * p
        r = r_new
    return s, Hs


def _to_boundary(s: Array, p: Array, radius: float) -> float:
    """Return the tau >= 0 with |s + tau p| = radius."""
    sp, pp, room = float(s @ p), float(p @ p), max(radius**2 - float(s @ s), 0.0)
    root = sqrt(sp**2 + pp * room)
    return room / (sp + root) if sp > 0 else (root - sp) / pp  # neither cancels


def _take_step(run: Run, s: Array, Hs: Array, radius: float) -> float:
    """Shorten s until the objective falls as promised; accept it and return the next radius."""
    here = run.point
    full = _decrease(here.g, s, Hs)
    slack = run.slack(full)
    for _ in range(MAX_TRIALS):
        promised, slope, length = _decrease(here.g, s, Hs), float(here.g @ s), _norm(s)
        if not promised > 0:  # rounding, or a Hessian of NaN
            break
        trial = run.evaluate(here.w + s)
        if run.nit == 0:
            radius = min(radius, length)
        actual = here.F - trial.F
        radius = _next_radius(radius, length, slope, actual, promised)
        if actual > ETA0 * promised - slack:
            run.accept(trial)
            return radius
        s, Hs = radius / length * s, radius / length * Hs
    run.give_up(full)
    return radius


def _decrease(g: Array, s: Array, Hs: Array) -> float:
    """Return -q(s), the decrease that the quadratic model promises."""
    return -float(g @ s + 0.5 * s @ Hs)


def _next_radius(
    radius: float, length: float, slope: float, actual: float, promised: float
) -> float:
    """Return the radius that tron.cpp sets after a step of this length.

    alpha * length is where the parabola through both values and the slope has its minimum.
    """
    bend = -actual - slope
    alpha = max(SIGMA1, -0.5 * slope / bend) if bend > 0 else SIGMA3
    if actual < ETA0 * promised:
        return min(alpha * length, SIGMA2 * radius)
    if actual < ETA1 * promised:
        return max(SIGMA1 * radius, min(alpha * length, SIGMA2 * radius))
    if actual < ETA2 * promised:
        return max(SIGMA1 * radius, min(alpha * length, SIGMA3 * radius))
    return max(radius, min(alpha * length, SIGMA3 * radius))


def _norm(v: Array) -> float:
    return float(np.linalg.norm(v))

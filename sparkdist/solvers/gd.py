"""Full-batch gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import OptimizeResult

from sparkdist.solvers import _steps
from sparkdist.solvers._run import PATIENCE, Callback, Run, ValueAndGrad, l1_weights

__all__ = ["gd"]

_RULES: dict[str, Callable[[Run, Any], None]] = {
    "backtracking": _steps.backtracking,
    "barzilai_borwein": _steps.barzilai_borwein,
    "constant": _steps.constant,
    "nesterov": _steps.nesterov,
}


def gd(
    fun: ValueAndGrad,
    w0: ArrayLike,
    *,
    step_rule: str = "barzilai_borwein",
    step: float | None = None,
    l1: ArrayLike | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    callback: Callback | None = None,
) -> OptimizeResult:
    """Minimise f(w) + sum(l1 * |w|) by gradient steps, proximal ones where l1 is given.

    ::

        w+ = prox(w - t g),  prox(v)_j = sign(v_j) max(|v_j| - t l1_j, 0)

    Parameters
    ----------
    fun
        w of shape (d,) to (f, gradient of f), f the smooth part alone; each call is one pass
        over the data.
    w0
        Where to start, shape (d,).
    step_rule
        ``barzilai_borwein``, by far the fewest passes: 168 on logistic regression over a9a
        with L2 1e-3 to a gradient of 1e-8, against 543 with ``nesterov`` and 3,138 with
        ``backtracking``.  ``constant`` takes ``step`` and nothing else: the textbook's method.
    step
        t of ``constant``, and of ``nesterov`` if given; elsewhere the first that is tried.
    l1
        Weight of the l1 norm, one number or one a coordinate (0 for an intercept).
    tol
        Stop where max |gradient| is at most this: with l1, of the shortest subgradient.
    max_iter
        Stop after so many iterations, with success False.
    callback
        Called after each iteration with an OptimizeResult (x, fun, jac, nit, nfev); raising
        StopIteration ends the run.

    Returns
    -------
    OptimizeResult
        x, fun (with the l1 norm), jac, nit, nfev, status, success, message.

    Raises
    ------
    InvalidCall
        With all problems of the call; also if ``fun`` gives a gradient that has not w's shape.

    Source: Parikh and Boyd, Proximal Algorithms (2014), section 4.2; of the step rules, see
    ``_steps.py``: Barzilai and Borwein (1988), Beck and Teboulle (2009), Bertsekas (1999).
    """
    problems = _problems(step_rule, step)
    # Of these, only Barzilai-Borwein steps follow the curvature: see Run.
    patience = PATIENCE if step_rule == "barzilai_borwein" else np.inf
    run = Run(
        "gd",
        fun,
        w0,
        tol=tol,
        max_iter=max_iter,
        callback=callback,
        l1=None if l1 is None else l1_weights(l1, w0, problems),
        problems=problems,
        patience=patience,
    )
    if run.goes_on:
        _RULES[step_rule](run, step)
    return run.result()


def _problems(step_rule: str, step: float | None) -> list[str]:
    problems = []
    if step_rule not in _RULES:
        known = ", ".join(_RULES)
        problems.append(f"there is no step_rule {step_rule!r}; there are {known}")
    if step_rule == "constant" and step is None:
        problems.append("step_rule='constant' needs a step, below 2 / (largest curvature)")
    if step is not None and not 0 < step < np.inf:
        problems.append(f"step is {step!r}; it must be a positive number")
    return problems

"""The backtracking line search of gd and owlqn."""

from __future__ import annotations

from collections.abc import Callable

from sparkdist.blocks import Array
from sparkdist.solvers._run import Point, Run

__all__ = ["ARMIJO", "MAX_TRIALS", "backtrack", "linear_model"]

#: Of the decrease that the model promises, the share that a step has to bring.
ARMIJO = 1e-4
#: After so many there is no step: shortened 1e9 times at least.
MAX_TRIALS = 30


def backtrack(
    run: Run,
    path: Callable[[float], Array],
    model: Callable[[Array], float],
    t: float,
    *,
    ceiling: float | None = None,
    may_fail: bool = False,
) -> tuple[Point | None, float]:
    """Shorten t until F(path(t)) <= ceiling + 1e-4 * model(path(t)); return the point and t.

    ``model(w)`` is the change of F from the iterate to w, negative, in the solver's model;
    ``ceiling`` is F at the iterate unless given.  A trial that is not finite is refused like
    any other.  Where no step will do, the point is None and the run has ended, unless it
    ``may_fail``, because the caller has another direction to try.
    """
    start = run.point.F
    ceiling = start if ceiling is None else ceiling
    promised = -model(path(t))
    slack = run.slack(promised)
    for _ in range(MAX_TRIALS):
        trial = run.evaluate(path(t))
        change = model(trial.w)
        if not slack and -change <= run.noise:  # shortened until F can no longer tell
            break
        if trial.F <= ceiling + ARMIJO * change + slack:
            return trial, t
        # The parabola's minimum: Nocedal and Wright, Numerical Optimization, 2nd ed., (3.58).
        t *= min(max(-0.5 * change / (trial.F - start - change), 0.1), 0.5)
    if slack or not may_fail:
        run.give_up(promised)
    return None, t


def linear_model(slope: Array, w: Array) -> Callable[[Array], float]:
    """Return v -> slope.(v - w)."""
    return lambda v: float(slope @ (v - w))

"""SciPy's L-BFGS-B, fed one pass at a time: what the solvers that take its steps share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import Bounds, minimize

from sparkdist.blocks import Array
from sparkdist.solvers._run import Run

__all__ = ["Feed", "take_steps"]


def _itself(g: Array) -> Array:
    return g


class Feed:
    """Stands between SciPy and the run.

    Parameters
    ----------
    run
        Evaluates, and keeps the books.
    to_w
        SciPy's coordinates to a new array, w; both of shape (d,).
    from_gradient
        A gradient in w to one in SciPy's coordinates.
    """

    def __init__(
        self,
        run: Run,
        to_w: Callable[[Array], Array] = np.copy,
        from_gradient: Callable[[Array], Array] = _itself,
    ):
        self._run, self._last = run, run.point
        self._to_w, self._from_gradient = to_w, from_gradient
        self._full_step_is_next = True
        self.promised = 0.0

    def __call__(self, u: Array) -> tuple[float, Array]:
        """Evaluate a trial point; one that is not finite is shown to SciPy as a parabola.

        SciPy's line search interpolates, and would make NaN of an infinite value.  The parabola
        has the iterate's value and slope, and its minimum a quarter of the way to the trial.
        """
        run, here, w = self._run, self._run.point, self._to_w(u)
        trial = run.evaluate(w)
        slope = float(here.g @ (w - here.w))
        if self._full_step_is_next and trial is not here:
            self._full_step_is_next, self.promised = False, -slope
        self._last = trial
        if np.isfinite(trial.F):
            return trial.F, self._from_gradient(trial.g)
        return here.F - slope, -3.0 * self._from_gradient(here.g)

    def accept(self, _u: Array) -> None:
        """Book the point that SciPy accepted, which is the one it has evaluated last."""
        self._run.accept(self._last)
        self._full_step_is_next = True
        if not self._run.goes_on:
            raise StopIteration


def take_steps(
    run: Run, feed: Feed, start: Array, memory: int, bounds: Bounds | None = None
) -> None:
    """Take SciPy's steps from ``start``, in its coordinates, until the run ends."""
    # Only the steps are SciPy's: ftol=0 ends where a step changes nothing at all.
    options = {"maxcor": memory, "ftol": 0.0, "gtol": 0.0, "maxfun": 10**9, "maxiter": 10**9}
    minimize(
        feed,
        start,
        method="L-BFGS-B",
        jac=True,
        bounds=bounds,
        callback=feed.accept,
        options=options,
    )
    if run.goes_on:  # SciPy found no further step
        run.give_up(feed.promised)

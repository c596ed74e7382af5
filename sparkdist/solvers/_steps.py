"""The step rules of gd: each drives a run to its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import sqrt

import numpy as np

from sparkdist.blocks import Array
from sparkdist.solvers._run import Point, Run
from sparkdist.solvers._search import MAX_TRIALS, backtrack

__all__ = ["backtracking", "barzilai_borwein", "constant", "nesterov"]

#: A Barzilai-Borwein step must improve on the worst of so many objectives: M of the paper.
RECENT = 10


def constant(run: Run, step: float) -> None:
    """w+ = prox(w - step * g): one pass an iteration; converges for step < 2 / lambda_max."""
    while run.goes_on:
        run.accept(run.evaluate(_prox_step(run.point, step, run.l1)))


def backtracking(run: Run, step: float | None) -> None:
    """Armijo's rule on the proximal arc; a step that is taken at once is doubled for the next.

    Source: Bertsekas, Nonlinear Programming, 2nd ed. (1999), sections 1.2 and 2.3.
    """
    t = step or _first_step(run.point)
    while run.goes_on:
        point, accepted = backtrack(run, _arc(run), _model(run), t)
        if point is not None:
            run.accept(point)
            t = 2.0 * t if accepted == t else accepted


def barzilai_borwein(run: Run, step: float | None) -> None:
    """Two-point steps, the long and the short one in turn, with a non-monotone safeguard.

    Source: Barzilai and Borwein, IMA J. Numer. Anal. 8 (1988), equations (5) and (6); safeguard
    of Grippo, Lampariello and Lucidi as in Raydan, SIAM J. Optim. 7 (1997).  With l1 this is
    SpaRSA: Wright, Nowak and Figueiredo, IEEE Trans. Signal Process. 57 (2009).
    """
    t = step or _first_step(run.point)
    recent = deque([run.point.F], maxlen=RECENT)
    while run.goes_on:
        w, g = run.point.w, run.point.g
        point, t = backtrack(run, _arc(run), _model(run), t, ceiling=max(recent))
        if point is not None:
            run.accept(point)
            recent.append(point.F)
            t = _two_point_step(point.w - w, point.g - g, t, long=run.nit % 2 == 1)


def nesterov(run: Run, step: float | None) -> None:
    """FISTA, restarted where the momentum points uphill; constant step if one is given.

    f and g are evaluated at the extrapolated points y alone, one pass an iteration, so y is
    the iterate that is shown and returned.  Without a given step, the majorisation that t
    must satisfy is checked from one y to the next: with no momentum, as at the start and after
    a restart, that is the paper's own test.  There t is also doubled, which it may survive.

    Source: Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009), equations (4.1) to (4.3); restart
    by the gradient scheme of O'Donoghue and Candes, Found. Comput. Math. 15 (2015).
    """
    searches, grows, refused = step is None, step is None, 0
    y, w, theta, t = run.point, run.point.w, 1.0, step or _first_step(run.point)
    while run.goes_on:
        w_new = _prox_step(y, t, run.l1)  # (4.1)
        if (y.w - w_new) @ (w_new - w) > 0:
            theta, t = 1.0, 2.0 * t if searches else t
            w_new = _prox_step(y, t, run.l1)
        theta_new = (1 + sqrt(1 + 4 * theta**2)) / 2  # (4.2)
        y_new = run.evaluate(w_new + (theta - 1) / theta_new * (w_new - w))  # (4.3)
        if searches and not _is_majorised(y, y_new, t, run.noise):
            t, theta, w, grows, refused = 0.5 * t, 1.0, y.w, False, refused + 1
            if refused == MAX_TRIALS:
                run.give_up(np.inf)
            continue
        run.accept(y_new)
        y, w, refused = y_new, w_new, 0
        theta, t = (1.0, 2.0 * t) if grows else (theta_new, t)


def _prox_step(here: Point, t: float, l1: Array) -> Array:
    """Minimise g.(w - here) + |w - here|^2 / (2 t) + sum(l1 * |w|): a soft threshold."""
    w = here.w - t * here.g
    return np.sign(w) * np.maximum(np.abs(w) - t * l1, 0.0)


def _arc(run: Run) -> Callable[[float], Array]:
    here, l1 = run.point, run.l1
    return lambda t: _prox_step(here, t, l1)


def _model(run: Run) -> Callable[[Array], float]:
    """Change of the objective with f linearised: g.(w+ - w) + h(w+) - h(w)."""
    here, l1 = run.point, run.l1
    return lambda w: float(here.g @ (w - here.w) + l1 @ (np.abs(w) - np.abs(here.w)))


def _first_step(here: Point) -> float:
    """A step of length 1, if nothing is known of the curvature."""
    return 1.0 / float(np.linalg.norm(here.slope))


def _two_point_step(s: Array, y: Array, t: float, long: bool) -> float:
    """1 / step is a secant approximation of the curvature along s, or along y."""
    ss, sy, yy = float(s @ s), float(s @ y), float(y @ y)
    if sy <= 0:  # no curvature to go by
        return 2.0 * t
    return min(ss / sy if long else sy / yy, 1e10 * t)


def _is_majorised(y: Point, y_new: Point, t: float, noise: float) -> bool:
    """Whether f(y_new) <= f(y) + g(y).d + |d|^2 / (2 t), and not only because of rounding.

    Near the optimum the values cancel, so the curvature from y to y_new, which the gradients
    show, must be at most 1 / t too: Becker, Candes and Grant, Math. Program. Comput. 3 (2011),
    section 5.3.
    """
    if not np.isfinite(y_new.F):
        return False
    d = y_new.w - y.w
    bound = y.f + y.g @ d + d @ d / (2 * t)
    return bool(y_new.f <= bound + noise and (y_new.g - y.g) @ d <= d @ d / t)

"""Solving: one solver on one problem, with its history."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult

from sparkdist import registry, solvers
from sparkdist.blocks import Array
from sparkdist.problem import Engine, MeanLoss, Problem
from sparkdist.result import History, Result
from sparkdist.solvers import pseudo_gradient

__all__ = ["Solving"]


class Solving:
    """Solves a problem with the sums of an engine, and books what happens.

    Parameters
    ----------
    engine, problem
        Where the sums come from, and what is minimised.
    began
        ``time.perf_counter()`` at the call: the history's seconds count from there.
    show
        Told (passes so far, objective, max |gradient|, seconds) of each evaluation.
    callback
        The user's, told of each iteration in the shape of the model.
    """

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        began: float,
        show: Callable[[int, float, float, float], None],
        callback: Callable[[OptimizeResult], object] | None,
    ):
        self._problem, self._began = problem, began
        self._show, self._callback = show, callback
        self._fun = MeanLoss(engine, problem, self._observe)
        self._l1 = problem.l1 * problem.mask
        self._history = History()

    def solve(self, method: str, options: dict[str, Any]) -> Result:
        """Run the solver, giving it of l1, bounds, hessp and metric what its signature asks for."""
        problem, solver = self._problem, registry.get(solvers, method)
        offered = {
            "l1": self._l1,
            "bounds": problem.bounds,
            "hessp": self._fun.hessp,
            "metric": self._fun.metric,
        }
        wanted = inspect.signature(solver).parameters
        given = {name: value for name, value in offered.items() if name in wanted}
        found = solver(self._fun, problem.w0, callback=self._record, **given, **options)
        shaped = {name: problem.layout.unflatten(found[name]) for name in ("x", "jac")}
        return Result(
            {**found, **shaped},
            method=method,
            passes=self._fun.passes,
            seconds=time.perf_counter() - self._began,
            history=self._history,
        )

    def _observe(self, w: Array, f: float, g: Array, seconds: float) -> None:
        """See each evaluation; the first one, the start, opens the history."""
        objective = f + float(self._l1 @ np.abs(w))
        size = float(np.abs(pseudo_gradient(w, g, self._l1)).max(initial=0.0))
        self._show(self._fun.passes, objective, size, seconds)
        if not len(self._history):
            self._append(objective, size)

    def _record(self, state: OptimizeResult) -> None:
        """See each iteration, and let the user's callback see it in the model's shape."""
        self._append(float(state.fun), float(np.abs(state.jac).max(initial=0.0)))
        if self._callback is not None:
            unflatten = self._problem.layout.unflatten
            shaped = {name: unflatten(state[name]) for name in ("x", "jac")}
            self._callback(OptimizeResult({**state, **shaped}))

    def _append(self, objective: float, size: float) -> None:
        seconds = time.perf_counter() - self._began
        self._history.append(seconds, self._fun.passes, objective, size)

"""What can be said of a call of minimize before its data is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparkdist.checks import find_problems, problems_of_callback
from sparkdist.errors import InvalidCall
from sparkdist.fields import checked, flag
from sparkdist.objectives import Objective
from sparkdist.problem import as_objective
from sparkdist.spark.engines.resident import ResidentEngine
from sparkdist.spark.failures import cannot_travel
from sparkdist.spark.training.stochastic import NAMES, find_problems_of_options

__all__ = ["MAX_ITER", "TOL", "problems_of_call"]

TOL, MAX_ITER = 1e-6, 1000


def problems_of_call(
    objective: Any,
    w0: Any = None,
    *,
    data: Any = None,
    method: str = "lbfgs",
    penalty: Any = None,
    bounds: Any = None,
    intercept: Any = False,
    engine: Any = "aggregate",
    deterministic: Any = False,
    tol: float = TOL,
    max_iter: int = MAX_ITER,
    callback: Callable[..., Any] | None = None,
    **options: Any,
) -> tuple[Objective | None, list[str]]:
    """Return the objective, None if there is none, and a sentence for each problem."""
    loss, problems = _objective_or_problems(objective, w0)
    for name, value in (("intercept", intercept), ("deterministic", deterministic)):
        checked(name, value, flag, problems)
    problems += problems_of_callback(callback) + find_problems(
        loss, method, penalty, bounds, options, tol=tol, max_iter=max_iter, on_server=NAMES
    )
    if method in NAMES:
        exact = _given(tol, max_iter, bounds, deterministic and method != "sgd")
        problems += find_problems_of_options(method, options, exact)
    return loss, problems + _problems_of_engine(engine, data)


def _objective_or_problems(objective: Any, w0: Any) -> tuple[Objective | None, list[str]]:
    try:
        loss = as_objective(objective, w0)
    except InvalidCall as error:
        return None, list(error.problems)
    return loss, cannot_travel("the objective", loss)


def _given(tol: float, max_iter: int, bounds: Any, deterministic: bool) -> list[str]:
    """Name the arguments that only exact methods know, and that were given."""
    given = {
        "tol": tol != TOL,
        "max_iter": max_iter != MAX_ITER,
        "bounds": bounds is not None,
        "deterministic": deterministic,
    }
    return [name for name, is_given in given.items() if is_given]


def _problems_of_engine(engine: Any, data: Any) -> list[str]:
    if isinstance(engine, ResidentEngine):
        return [] if engine.dataset is data else ["the engine is one of another dataset"]
    known = ("aggregate", "resident", "auto")
    if isinstance(engine, str) and engine in known:
        return []
    return [f"there is no engine {engine!r}; there are {', '.join(known)}"]

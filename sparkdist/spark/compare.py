"""compare: the same problem by several methods, each with its time to accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import isnan
from typing import Any, TypeAlias

import numpy as np
from pyspark import RDD
from pyspark.sql import DataFrame
from scipy.optimize import OptimizeResult

from sparkdist.comparison import Comparison, Curve, thinned
from sparkdist.errors import InvalidCall
from sparkdist.fields import plain
from sparkdist.problem import MeanLoss, as_objective, pose
from sparkdist.result import Result
from sparkdist.spark.asked import problems_of_call
from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.data.given import as_dataset, problems_of_data
from sparkdist.spark.data.sources import refuse_connect
from sparkdist.spark.engines.aggregate import AggregateEngine
from sparkdist.spark.minimize import minimize
from sparkdist.spark.training.stochastic import NAMES

__all__ = ["compare"]

#: Points of a stochastic run at which the objective is worked out afterwards: a pass each.
_POINTS = 25
_COLUMNS = ("features", "label", "weight")
Call: TypeAlias = dict[str, Any]


def compare(
    objective: Any,
    data: Dataset | DataFrame | RDD[Any],
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    target: float,
    w0: Any = None,
    **options: Any,
) -> Comparison:
    """Run several methods on the same data, and say how long each took to reach a target.

    Parameters
    ----------
    objective, data, w0
        As those of :func:`minimize`; data is ingested once, before any clock runs.
    methods
        Names, ``["lbfgs", "downpour"]``; or a dict of options by a name of your own, whose
        ``method`` is the name itself unless it is there: ``{"lbfgs": {}, "fast sgd": {"method":
        "sgd", "epochs": 20}}``.  Tune each one's rate, and say how: an untuned method proves
        nothing.
    target
        A value of the objective, penalty included.
    **options
        For all methods: penalty, intercept ...; and of a DataFrame the columns ``features``,
        ``label`` and ``weight``.

    Returns
    -------
    Comparison
        ``print`` it, ``plot()`` it, or take ``rows()``, ``to_json()`` and ``results``.

    Conventions
    -----------
    The clock of a method is that of its own call.  The objective along a stochastic run is worked
    out on all rows when the run is over, at copies of its parameters, and is not on its clock.

    Raises
    ------
    InvalidCall
        As :func:`minimize`; and for a dict of options that says no method that there is.
    """
    refuse_connect(data)
    columns = {name: options.pop(name) for name in _COLUMNS if name in options}
    options = dict(_listed(options))
    named, problems = _named(methods)
    calls = {
        name: {"method": name, "progress": False, **options, **_listed(own)}
        for name, own in named.items()
    }
    problems += problems_of_data(data, columns) + _problems_of_calls(objective, data, w0, calls)
    if isnan(plain(target)):
        problems.append(f"target is {target!r}; it must be a value of the objective")
    if problems:
        raise InvalidCall("compare", problems)
    curves, results = [], {}
    with ExitStack() as stack:
        dataset = as_dataset(data, stack, columns)
        for name, call in calls.items():
            run = _stochastic if call["method"] in NAMES else _exact
            curve, results[name] = run(name, objective, dataset, w0, call)
            curves.append(curve)
    return Comparison(target, curves, results)


def _named(methods: Any) -> tuple[Mapping[str, Mapping[str, Any]], list[str]]:
    """Return the options of each method by its name, and what is wrong with them."""
    is_list = isinstance(methods, Sequence) and not isinstance(methods, str)
    names = list(methods) if is_list or isinstance(methods, Mapping) else [None]
    if not all(isinstance(name, str) for name in names):
        rule = 'it must be a list of names, ["lbfgs", "downpour"], or a dict of options by name'
        return {}, [f"methods is {methods!r}; {rule}"]
    if len({*names}) < len(names):
        return {}, [f"methods is {methods!r}, with a name twice; a dict has names of your own"]
    named = methods if isinstance(methods, Mapping) else {name: {} for name in names}
    if not named:
        return {}, ["there is no method to compare"]
    wrong = {name: own for name, own in named.items() if not isinstance(own, Mapping)}
    problems = [f"methods[{name!r}] is {own!r}; it must be a dict" for name, own in wrong.items()]
    return {name: own for name, own in named.items() if name not in wrong}, problems


def _listed(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a list of names that could be gone through once only: more than one call wants them."""
    names = options.get("unpenalized", ())
    once = isinstance(names, Iterator)
    return {**options, "unpenalized": list(names)} if once else options


def _problems_of_calls(objective: Any, data: Any, w0: Any, calls: Mapping[str, Call]) -> list[str]:
    """Say what is wrong with any of the calls: the first ones may take an hour."""
    problems = []
    for name, call in calls.items():
        shared = sorted({"objective", "data", "w0", *_COLUMNS} & call.keys())
        found = [f"{role} is the same for all methods" for role in shared]
        apart = (*shared, "progress", "unpenalized")
        asked = {option: value for option, value in call.items() if option not in apart}
        _, more = problems_of_call(objective, w0, data=data, **asked)
        problems += [f"{name}: {problem}" for problem in [*found, *more]]
    return problems


def _exact(name: str, objective: Any, data: Dataset, w0: Any, call: Call) -> tuple[Curve, Result]:
    """Run a solver: its history says all."""
    result = minimize(objective, data, w0, **call)
    curve, history = Curve(name), result.history
    model = result.x.values() if isinstance(result.x, dict) else [result.x]
    both_ways = 2 * 8 * sum(part.size for part in model) * data.n_partitions
    for i, fun in enumerate(history.fun):
        passes = history.passes[i]
        curve.append(history.seconds[i], passes, both_ways * passes, i, fun)
    return curve, result


def _stochastic(
    name: str, objective: Any, data: Dataset, w0: Any, call: Call
) -> tuple[Curve, Result]:
    """Run a method with a server; copies of its parameters are looked at afterwards."""
    seen: list[tuple[float, OptimizeResult]] = []
    began, own = time.perf_counter(), call.get("callback")

    def see(state: OptimizeResult) -> None:
        seen.append((time.perf_counter() - began, state))
        if own is not None:
            own(state)

    result = minimize(objective, data, w0, **{**call, "callback": see})
    objective_at, start = _evaluation(objective, data, w0, call)
    curve = Curve(name, staleness=_mean(result.staleness))
    curve.append(0.0, 0.0, 0.0, 0, objective_at(start))
    for i in thinned(len(seen), _POINTS):
        seconds, state = seen[i]
        passes, fun = state.examples / data.n_rows, objective_at(state.x)
        curve.append(seconds, passes, state.n_bytes, state.nit, fun)
    return curve, result


def _evaluation(
    objective: Any, data: Dataset, w0: Any, call: Call
) -> tuple[Callable[[Any], float], Any]:
    """Return the objective on all rows, and the model to start from, of a call of minimize."""
    loss = as_objective(objective, w0)
    problem = pose(
        loss,
        data.n_features,
        loss.initial(call.get("seed", 0)) if w0 is None else w0,
        penalty=call.get("penalty"),
        bounds=None,
        intercept=call.get("intercept", False),
        unpenalized=call.get("unpenalized", ()),
        problems=[],
    )
    mean, l1 = MeanLoss(AggregateEngine(data), problem, lambda *_: None), problem.l1 * problem.mask

    def objective_at(x: Any) -> float:
        w = problem.layout.flatten(x)
        return mean(w)[0] + float(l1 @ np.abs(w))

    return objective_at, problem.layout.unflatten(problem.w0)


def _mean(counts: Mapping[int, int]) -> float:
    applied = sum(counts.values())
    return sum(age * count for age, count in counts.items()) / applied if applied else 0.0

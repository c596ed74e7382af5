"""Outcome: the result of a run with the model server."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from pyspark import RDD

from sparkdist.blocks import Array, Partial
from sparkdist.layout import Layout
from sparkdist.model import ensemble_of
from sparkdist.problem import MeanLoss, Problem
from sparkdist.result import Result
from sparkdist.solvers import pseudo_gradient
from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.engines.aggregate import AggregateEngine
from sparkdist.spark.failures import told_plainly
from sparkdist.spark.scoring import model_of
from sparkdist.spark.training.serving import Serving, Watch
from sparkdist.spark.training.units import RowWork
from sparkdist.workers import local_sgd

__all__ = ["of_objective", "of_rows", "of_server"]


def of_server(serving: Serving, watch: Watch, **found: Any) -> Result:
    """What the server knows: counts, staleness, restarts."""
    status = serving.status()
    message = "every row has been seen in every epoch"
    if watch.stopped:
        message = "the callback ended the run"
    finite = found.pop("finite", True)
    return Result(
        method="model server",
        success=finite and not watch.stopped,
        nit=status["version"],
        nfev=status["counts"].get("applied", 0),
        status=99 if watch.stopped else 0,
        message=message,
        counts=status["counts"],
        staleness=dict(status["staleness"]),
        noise_scale=status["noise_scale"],
        restarts=serving.supervisor.restarts,
        memories_lost=watch.memories_lost,
        seconds=watch.seconds,
        history=watch.history,
        **found,
    )


def of_objective(
    serving: Serving, problem: Problem, data: Dataset, watch: Watch, ensemble: bool
) -> Result:
    """The result with objective and gradient at the final parameters: one pass over the data.

    Its model has those parameters, or makes an ensemble of the workers' own.
    """
    w = serving.parameters()[1].astype(np.float64)
    smooth = MeanLoss(AggregateEngine(data), problem, lambda *_: None)
    f, g = smooth(w)
    found = _with_penalty(problem.layout, w, f, g, problem.l1 * problem.mask)
    result = of_server(serving, watch, passes=smooth.passes, **found)
    states = serving.states() if ensemble else {}
    x, shares = ensemble_of(*local_sgd.models_of(states), problem.layout, w)
    result.model = model_of(problem.objective, x, data, shares)
    return result


def of_rows(
    serving: Serving,
    work: RowWork,
    rows: RDD[Any],
    layout: Layout,
    penalty: tuple[float, float, Array],
    watch: Watch,
) -> Result:
    """The result for the user's own rows: with an objective if their gradient gives losses."""
    w = serving.parameters()[1].astype(np.float64)
    if not serving.status()["weight"]:  # no push had a loss
        return of_server(serving, watch, x=layout.unflatten(w), fun=float("nan"))
    total = _sum(work, rows, w)
    l1, l2, mask = penalty
    f = total.loss / total.weight + 0.5 * l2 * float((mask * w) @ w)
    found = _with_penalty(layout, w, f, total.grad / total.weight + l2 * mask * w, l1 * mask)
    return of_server(serving, watch, passes=1, **found)


def _with_penalty(layout: Layout, w: Array, f: float, g: Array, l1: Array) -> dict[str, Any]:
    fun = f + float(l1 @ np.abs(w))
    return {
        "x": layout.unflatten(w),
        "fun": fun,
        "jac": layout.unflatten(pseudo_gradient(w, g, l1)),
        "finite": bool(np.isfinite(fun)),
    }


def _sum(work: RowWork, rows: RDD[Any], w: Array) -> Partial:
    """Sum losses and gradients over all rows: one pass."""
    shared = rows.context.broadcast(w.astype(work.dtype))

    def of_partition(elements: Iterable[Any]) -> Iterator[Partial]:
        total, elements = Partial.nothing(), iter(elements)
        while batch := list(itertools.islice(elements, work.epochs.batch_size)):
            found = work.sums(batch, shared.value)
            total += Partial(found.loss or 0.0, found.value.astype(float), found.weight)
        yield total

    try:
        with told_plainly("a pass"):
            found = rows.mapPartitions(of_partition).collect()
        return functools.reduce(operator.add, found)
    finally:
        shared.destroy()

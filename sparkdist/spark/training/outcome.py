"""Outcome: the result of a run with the model server."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from pyspark import RDD

from sparkdist.blocks import Array, Partial
from sparkdist.errors import BadData
from sparkdist.layout import Layout
from sparkdist.model import ensemble_of
from sparkdist.problem import MeanLoss, Problem
from sparkdist.result import SEEN, Result, end_of_epochs
from sparkdist.solvers import pseudo_gradient
from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.engines.aggregate import AggregateEngine
from sparkdist.spark.failures import told_plainly
from sparkdist.spark.scoring import model_of
from sparkdist.spark.training.serving import Serving, Watch
from sparkdist.spark.training.units import RowWork
from sparkdist.workers import local_sgd

__all__ = ["of_objective", "of_rows", "of_server", "refuse_no_rows"]


def of_server(serving: Serving, watch: Watch, end: tuple[int, str], **found: Any) -> Result:
    """What the server knows: counts, staleness, restarts; ``end`` is status and message."""
    books = serving.status()
    status, message = (99, "the callback ended the run") if watch.stopped else end
    return Result(
        method="model server",
        success=status == 0,
        nit=books["version"],
        nfev=books["counts"].get("applied", 0),
        status=status,
        message=message,
        counts=books["counts"],
        staleness=dict(books["staleness"]),
        noise_scale=books["noise_scale"],
        restarts=serving.supervisor.restarts,
        memories_lost=watch.memories_lost,
        seconds=watch.seconds,
        history=watch.history,
        **found,
    )


def of_objective(
    serving: Serving, problem: Problem, data: Dataset, watch: Watch, ensemble: bool
) -> Result:
    """The result with objective and gradient at the final parameters: a pass, and one at the start.

    Its model has those parameters, or makes an ensemble of the workers' own.
    """
    w, smooth = _now(serving), MeanLoss(AggregateEngine(data), problem, lambda *_: None)
    l1 = problem.l1 * problem.mask
    start = smooth(problem.w0)[0] + float(l1 @ np.abs(problem.w0))
    found = _with_penalty(problem.layout, w, *smooth(w), l1)
    end = end_of_epochs(found["fun"], start)
    result = of_server(serving, watch, end, passes=smooth.passes, **found)
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
    start: Array,
    watch: Watch,
) -> Result:
    """The result for the user's own rows: with an objective if their gradient gives losses."""
    refuse_no_rows(serving, watch)
    w = _now(serving)
    if not serving.status()["weight"]:  # no push had a loss
        return of_server(serving, watch, SEEN, x=layout.unflatten(w), fun=float("nan"))
    l1, l2, mask = penalty
    before, now = (
        _with_penalty(
            layout,
            point,
            total.loss / total.weight + 0.5 * l2 * float((mask * point) @ point),
            total.grad / total.weight + l2 * mask * point,
            l1 * mask,
        )
        for point, total in zip((start, w), _sums(work, rows, (start, w)), strict=True)
    )
    end = end_of_epochs(now["fun"], before["fun"])
    return of_server(serving, watch, end, passes=2, **now)


def refuse_no_rows(serving: Serving, watch: Watch) -> None:
    """Raise BadData where a run on the user's own rows has met none: it is over at once."""
    if watch.ran and not watch.stopped and not serving.status()["counts"].get("received"):
        raise BadData("the data has no rows")


def _now(serving: Serving) -> Array:
    return serving.parameters()[1].astype(np.float64)


def _with_penalty(layout: Layout, w: Array, f: float, g: Array, l1: Array) -> dict[str, Any]:
    return {
        "x": layout.unflatten(w),
        "fun": f + float(l1 @ np.abs(w)),
        "jac": layout.unflatten(pseudo_gradient(w, g, l1)),
    }


def _sums(work: RowWork, rows: RDD[Any], points: Sequence[Array]) -> list[Partial]:
    """Sum losses and gradients over all rows, at each point: one job."""
    shared = rows.context.broadcast([w.astype(work.dtype) for w in points])

    def of_partition(elements: Iterable[Any]) -> Iterator[list[Partial]]:
        totals, elements = [Partial.nothing() for _ in shared.value], iter(elements)
        while batch := list(itertools.islice(elements, work.epochs.batch_size)):
            for n, w in enumerate(shared.value):
                found = work.sums(batch, w)
                totals[n] += Partial(found.loss or 0.0, found.value.astype(float), found.weight)
        yield totals

    try:
        with told_plainly("a pass"):
            found = rows.mapPartitions(of_partition).collect()
        return [functools.reduce(operator.add, each) for each in zip(*found, strict=True)]
    finally:
        shared.destroy()

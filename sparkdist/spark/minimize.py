"""minimize: the front door of the exact path."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from numbers import Integral
from typing import Any

from numpy.typing import ArrayLike
from pyspark import RDD
from pyspark.sql import DataFrame
from scipy.optimize import OptimizeResult

from sparkdist import registry, solvers
from sparkdist.checks import parameters_of
from sparkdist.errors import InvalidCall
from sparkdist.objectives import Objective, UserLoss
from sparkdist.problem import (
    BoundsLike,
    Engine,
    Penalty,
    Problem,
    pose,
    problems_of_metric,
)
from sparkdist.progress import Progress
from sparkdist.result import Result
from sparkdist.solving import Solving
from sparkdist.spark.asked import MAX_ITER, TOL, problems_of_call
from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.data.given import as_dataset, named_columns, problems_of_data
from sparkdist.spark.data.sources import refuse_connect
from sparkdist.spark.engines.aggregate import AggregateEngine
from sparkdist.spark.engines.resident import IDLE, ResidentEngine, what_speaks_against
from sparkdist.spark.engines.seat import Seat
from sparkdist.spark.network import context_of
from sparkdist.spark.scoring import model_of
from sparkdist.spark.training.stochastic import NAMES, descend

__all__ = ["minimize"]

logger = logging.getLogger(__name__)


def minimize(
    objective: Any,
    data: Dataset | DataFrame | RDD[Any],
    w0: ArrayLike | Mapping[str, ArrayLike] | None = None,
    *,
    features: str | Sequence[str] | None = None,
    label: str | None = None,
    weight: str | None = None,
    method: str = "lbfgs",
    penalty: Penalty | None = None,
    bounds: BoundsLike | None = None,
    intercept: bool = False,
    unpenalized: Sequence[str] = (),
    engine: str | ResidentEngine = "aggregate",
    deterministic: bool = False,
    tol: float = TOL,
    max_iter: int = MAX_ITER,
    callback: Callable[[OptimizeResult], object] | None = None,
    progress: bool = True,
    **options: Any,
) -> Result:
    """Minimise the mean of a loss over distributed rows, plus a penalty.

    ::

        F(w) = sum_i weight_i loss(w, x_i, y_i) / sum_i weight_i  +  penalty(w)

    Parameters
    ----------
    objective
        An objective of :mod:`sparkdist.objectives`, its class or its name; or any function
        ``f(w, X, y) -> (loss_sum, grad_sum)`` of NumPy arrays, which gets X of shape (n, d), dense
        or CSR, y of shape (n,), and returns sums over these rows.  A function of four parameters
        gets the rows' weights too.
    data
        A :class:`Dataset`; or a DataFrame, or an RDD of ``(x, y)``, which is then ingested for
        this call alone.
    features, label, weight
        Columns of a DataFrame, as :meth:`Dataset.from_dataframe` takes them: ``features`` and
        ``label`` by default, and no weights.
    w0
        Where to start: an array or a dict of named arrays, ``result.x`` of an earlier run for
        a warm start.  Zeros by default, for :class:`MLP` its ``initial()``; required for a
        function, whose parameters it shapes.
    method
        ``lbfgs`` (the only one with bounds), ``preconditioned_lbfgs`` (often a tenth of its passes,
        on linear models of up to 2,000 features), ``owlqn`` (for L1), ``newton_cg`` or ``gd``.  Or,
        with a :class:`ModelServer` of its own, one of :mod:`sparkdist.methods`: ``sgd``,
        synchronous mini-batch descent, ``downpour``, asynchronous AdaGrad, ``local_sgd``,
        ``easgd`` ...
    penalty
        :class:`L2`, :class:`L1` or :class:`ElasticNet`.  It never touches the intercept, nor
        the arrays that ``unpenalized`` names.
    bounds
        ``scipy.optimize.Bounds`` or a sequence of (low, high), for the weights or for all
        parameters; or a dict of (low, high) for the model's named arrays.
    intercept
        Fit one (``Softmax``: one a class); ``x`` is then ``{"weights": ..., "intercept": ...}``.
    engine
        ``aggregate``: one Spark job a pass.  ``resident``: one job whose workers stay, so that a
        pass costs a message to each and one back; they hold their task slots meanwhile.
        ``auto``: resident where nothing speaks against it, else the log says what.  Or a
        :class:`ResidentEngine` of this dataset, with options of its own.
    deterministic
        Sum in partition order: the same bits whatever the scheduling.
    tol
        Stop when max |gradient| is at most this (projected on the bounds; with L1 the shortest
        subgradient).
    max_iter
        Stop after so many iterations, with ``success`` False.
    callback
        Called after each iteration with an ``OptimizeResult`` (x, fun, jac, nit, nfev); raising
        StopIteration ends the run.
    progress
        Show a live line on a terminal or in a notebook.
    **options
        Of the solver: see :mod:`sparkdist.solvers`.  On a model server those of the method, and
        of :class:`ModelServer` and its ``train``: batch_size, epochs, seed, updater ...

    Returns
    -------
    Result
        x, fun, jac, nit, nfev, success, status, message, history, model ...

    Raises
    ------
    InvalidCall
        With all problems of the call; before a job starts where the arguments alone show them.
    BadData
        For rows that cannot be used, or labels that the objective does not know.
    PassFailed
        If the loss raises on the executors.
    UnsupportedSession
        On Spark Connect.
    """
    began = time.perf_counter()
    refuse_connect(data)
    columns = named_columns(features=features, label=label, weight=weight)
    loss, problems = problems_of_call(
        objective, w0, data=data, method=method, penalty=penalty, bounds=bounds,
        intercept=intercept, engine=engine, deterministic=deterministic, tol=tol,
        max_iter=max_iter, callback=callback, **options,
    )  # fmt: skip
    problems += problems_of_data(data, columns)
    if loss is None or (problems and not isinstance(data, Dataset)):
        raise InvalidCall("minimize", problems)
    with ExitStack() as stack:
        seat = _early_seat(engine, method, data, stack)
        dataset = as_dataset(data, stack, columns)
        problems += _weight_problems(loss, dataset)
        problem = pose(
            loss,
            dataset.n_features,
            _start(loss, options) if w0 is None else w0,
            penalty=penalty,
            bounds=bounds,
            intercept=intercept,
            unpenalized=unpenalized,
            problems=problems,
        )
        problems += _metric_problems(method, problem)
        if problems:
            raise InvalidCall("minimize", problems)
        if method in NAMES:
            return descend(method, problem, dataset, w0, callback, options, progress)
        dataset.refuse_labels(loss)
        sums = _make_engine(engine, dataset, deterministic, seat)
        with Progress(progress, f"sparkdist {method}") as bar:
            solving = Solving(sums, problem, began, bar.show, callback)
            result = solving.solve(method, {"tol": tol, "max_iter": max_iter, **options})
    result.model = model_of(loss, result.x, dataset)
    return result


def _start(loss: Objective, options: Mapping[str, Any]) -> Any:
    """Where a loss starts by itself; a seed that is none has been told already."""
    seed = options.get("seed", 0)
    return loss.initial(int(seed) if isinstance(seed, Integral) and int(seed) >= 0 else 0)


def _early_seat(engine: Any, method: str, data: Any, stack: ExitStack) -> Seat | None:
    """Have the resident engine's server start while the data is ingested."""
    if engine != "resident" or method in NAMES or isinstance(data, Dataset):
        return None
    return stack.enter_context(Seat(context_of(data), IDLE))


def _make_engine(
    engine: str | ResidentEngine, dataset: Dataset, deterministic: bool, seat: Seat | None
) -> Engine:
    if isinstance(engine, ResidentEngine):
        engine.look_again()
        return engine
    if engine == "auto":
        against = what_speaks_against(dataset)
        engine = "aggregate" if against else "resident"
        logger.info("engine: %s%s", engine, f", because {against}" if against else "")
    if engine == "resident":
        return ResidentEngine(dataset, deterministic=deterministic, seat=seat)
    return AggregateEngine(dataset, deterministic=deterministic)


def _metric_problems(method: str, problem: Problem) -> list[str]:
    wanted = method in registry.names(solvers) and "metric" in parameters_of(method)
    return problems_of_metric(problem) if wanted else []


def _weight_problems(loss: Objective, dataset: Dataset) -> list[str]:
    if isinstance(loss, UserLoss) and not loss.takes_weight and not dataset.unit_weights:
        return ["the data has weights, and your function takes none: f(w, X, y, weight) would"]
    return []

"""ModelServer: parameters on a server beside the driver, descent there, gradients from Spark."""

from __future__ import annotations

import functools
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pyspark import SparkContext
from pyspark.cloudpickle import dumps

from sparkdist.client import Address
from sparkdist.consistency import Consistency, asp
from sparkdist.errors import InvalidCall, PassFailed, WorkersMissing
from sparkdist.layout import Layout, Model
from sparkdist.penalties import Penalty
from sparkdist.problem import as_objective
from sparkdist.result import Result, TrainingHistory
from sparkdist.server.process import Setup
from sparkdist.server.rules import MeanGradient, model_entries
from sparkdist.server.supervisor import Supervisor, reserve_port
from sparkdist.spark.aggregate import AggregateEngine
from sparkdist.spark.dataset import Dataset
from sparkdist.spark.train import Plan, refuse_unreachable, run_job, work
from sparkdist.updaters import Descent, Updater, adagrad

__all__ = ["ModelServer"]

_CHECKPOINTS = ("none", "interval", "every")


class ModelServer:
    """A parameter server for one Spark application; a context manager.

    ::

        with ModelServer(np.zeros(123), updater=adagrad(0.1), consistency=asp()) as server:
            result = server.train(data, Logistic(), batch_size=64, epochs=3)

    The server is a process beside the driver.  Spark's tasks fetch the parameters, compute
    gradients of batches and push them; the server descends.  A batch counts exactly once, however
    often Spark runs its task, and when the server dies it is started again from its last
    checkpoint.

    Parameters
    ----------
    model
        The parameters to start from: an array or a dict of named arrays.  Float32 arrays make
        a model in float32, everything else one in float64.
    updater
        How the server descends: a member of :mod:`sparkdist.updaters`.
    consistency
        Who waits for whom: ``asp()``, ``bsp()``, ``ssp(bound)`` or ``backup(extra)``.
    penalty
        ``L2``, ``L1`` (proximal) or ``ElasticNet``, added to the mean loss on the server.
    clip
        Largest Euclidean norm of a mean gradient.
    checkpoint
        ``none``: the server's death ends the run.  ``interval``: every ``seconds``; what
        came after is computed again.  ``every``: before a push is acknowledged.
    folder
        Where checkpoints go, and stay; a temporary folder by default.
    seconds
        Between two checkpoints.
    restarts
        How many times the server may be started again.
    skip_not_finite
        Leave out gradients that are not finite instead of failing their task.

    Raises
    ------
    InvalidCall
        With all problems of the call.
    """

    def __init__(
        self,
        model: ArrayLike | Mapping[str, ArrayLike],
        *,
        updater: Updater | None = None,
        consistency: Consistency | None = None,
        penalty: Penalty | None = None,
        clip: float | None = None,
        checkpoint: str = "interval",
        folder: str | Path | None = None,
        seconds: float = 10.0,
        restarts: int = 3,
        skip_not_finite: bool = False,
    ):
        updater = adagrad(0.1) if updater is None else updater
        consistency = asp() if consistency is None else consistency
        problems = _problems(updater, consistency, penalty, checkpoint, seconds, restarts)
        if problems:
            raise InvalidCall("ModelServer", problems)
        self._layout, self._dtype = Layout.of(model), _type_of(model)
        w = self._layout.flatten(model).astype(self._dtype)
        if not np.isfinite(w).all():
            raise InvalidCall("ModelServer", ["the model has values that are NaN or infinite"])
        l1, l2 = (0.0, 0.0) if penalty is None else (penalty.l1, penalty.l2)
        self._l1, self._l2, self._consistency = l1, l2, consistency
        rule = MeanGradient(Descent(updater, l1, l2, clip=clip), self._layout, self._dtype)
        self._options = {
            "every_update": checkpoint == "every",
            "seconds": float(seconds) if checkpoint == "interval" else None,
            "skip_not_finite": skip_not_finite,
        }
        self._given = (w, rule, restarts, None if checkpoint == "none" else folder or "")
        self._stack: ExitStack | None = None

    def __enter__(self) -> ModelServer:
        context = SparkContext._active_spark_context
        if context is None:
            problem = "there is no Spark session; make one first: it says where the driver is"
            raise InvalidCall("ModelServer", [problem])
        self._context = context
        w, rule, restarts, folder = self._given
        with ExitStack() as stack:
            if folder == "":
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sparkdist-"))
            elif folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
            host = _host(context)
            held = stack.enter_context(reserve_port(_bind_host(context, host)))
            port = held.getsockname()[1]
            self._token = secrets.token_urlsafe(32)
            setup = Setup(
                w,
                self._layout,
                rule,
                self._consistency,
                held.getsockname()[0],
                port,
                frozenset({f"{host}:{port}", f"{held.getsockname()[0]}:{port}"}),
                self._token,
                folder=None if folder is None else Path(folder),
                **self._options,  # type: ignore[arg-type]
            )
            self._where = (host, port)
            self._supervisor = stack.enter_context(Supervisor(setup, dumps, restarts))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stack is not None:
            stack, self._stack = self._stack, None
            stack.close()

    @property
    def model(self) -> Model:
        """The parameters as they are now, in the shape of the model; a copy."""
        _, w = self._running().ask("model")
        return self._layout.unflatten(w)

    def status(self) -> dict[str, Any]:
        """The server's books: version, counts of pushes by fate, staleness, workers."""
        return self._running().ask("status")

    def train(
        self,
        data: Dataset,
        objective: Any,
        *,
        batch_size: int = 64,
        epochs: int = 1,
        seed: int = 0,
        n_fetch: int = 1,
        n_push: int = 1,
        local_rate: float = 0.0,
        patience: float = 300.0,
        callback: Callable[[dict[str, Any]], object] | None = None,
    ) -> Result:
        """Run workers over a dataset until every row has been seen ``epochs`` times.

        Parameters
        ----------
        data
            Its partitions are the workers; where some wait for others (all but ``asp``) there are
            at most as many as Spark has task slots.
        objective
            As in :func:`minimize`.
        batch_size, epochs, seed
            Each epoch of a worker is a permutation of its rows, cut into batches.
        n_fetch, n_push, local_rate
            Batches between fetches and pushes, and the step of local descent between fetches.
        patience
            Seconds that a worker waits for the server, or for others.
        callback
            Called on the driver several times a second with :meth:`status`.

        Returns
        -------
        Result
            ``fun`` and ``jac`` are those of one more pass over all rows, at the server's final
            parameters; ``counts`` says what became of the pushes.

        Raises
        ------
        InvalidCall, BadData, PassFailed, ServerDied, ServerUnavailable, WorkersMissing
        """
        began, supervisor = time.perf_counter(), self._running()
        loss = as_objective(objective, self._layout.unflatten(self._given[0]))
        _refuse_bad_plan(data, batch_size, epochs, n_fetch, n_push, local_rate, patience)
        data.refuse_labels(loss)
        run = secrets.token_hex(8)
        address = Address(*self._where, self._token, run)
        refuse_unreachable(self._context, address)
        handles = data.handles
        if self._consistency.waits:
            handles = handles.coalesce(self._context.defaultParallelism)
        n_workers = handles.getNumPartitions()
        entries = model_entries(self._layout, self._dtype)
        plan = Plan(
            address, entries, loss, self._dtype, batch_size, epochs, seed,
            n_fetch, n_push, local_rate, patience,
        )  # fmt: skip
        supervisor.begin(run, n_workers)
        history = TrainingHistory()
        job = handles.mapPartitionsWithIndex(functools.partial(work, plan))
        look = functools.partial(self._look, began, history, callback, patience, n_workers)
        try:
            run_job(self._context, job.collect, look)
        except PassFailed as error:
            fault = supervisor.ask("fault") if supervisor.died is None else None
            raise supervisor.died or (
                PassFailed(f"{error}\n{fault}") if fault else error
            ) from error
        look()
        return self._result(data, loss, history, began)

    def _look(
        self,
        began: float,
        history: TrainingHistory,
        callback: Callable[[dict[str, Any]], object] | None,
        patience: float,
        n_workers: int,
    ) -> BaseException | None:
        """See how the run is going; return what must end it."""
        if self._supervisor.died is not None:
            return self._supervisor.died
        status = self._supervisor.ask("status")
        seconds = time.perf_counter() - began
        history.append(seconds, status)
        if callback is not None:
            callback(status)
        joined = len(status["workers"])
        if self._consistency.waits and joined < n_workers and seconds > patience:
            return WorkersMissing(
                f"{n_workers} workers must run at the same time, and {joined} came within"
                f" {patience:g} s: Spark has too few free task slots"
            )
        return None

    def _result(self, data: Dataset, loss: Any, history: TrainingHistory, began: float) -> Result:
        status = self._supervisor.ask("status")
        version, w = self._supervisor.ask("model")
        w = w.astype(np.float64)
        total = AggregateEngine(data).value_and_grad(loss, w)
        fun = total.loss / total.weight + 0.5 * self._l2 * float(w @ w) + self._l1 * np.abs(w).sum()
        jac = total.grad / total.weight + self._l2 * w
        return Result(
            x=self._layout.unflatten(w),
            fun=float(fun),
            jac=self._layout.unflatten(jac),
            nit=version,
            nfev=sum(count for name, count in status["counts"].items() if name == "applied"),
            success=bool(np.isfinite(fun)),
            status=0,
            message="every row has been seen in every epoch",
            counts=status["counts"],
            staleness=dict(status["staleness"]),
            restarts=self._supervisor.restarts,
            seconds=time.perf_counter() - began,
            history=history,
        )

    def _running(self) -> Supervisor:
        if self._stack is None:
            raise InvalidCall("ModelServer", ["it is not running; use it in a `with`"])
        return self._supervisor


def _type_of(model: Any) -> str:
    arrays = model.values() if isinstance(model, Mapping) else [model]
    single = all(np.asarray(array).dtype == np.float32 for array in arrays)
    return "<f4" if single else "<f8"


def _host(context: SparkContext) -> str:
    """Return the address that Spark advertises for the driver; in local mode loopback."""
    if str(context.master).startswith("local[") or context.master == "local":
        return "127.0.0.1"
    return str(context.getConf().get("spark.driver.host", "127.0.0.1"))


def _bind_host(context: SparkContext, host: str) -> str:
    """Return the address to listen at, which is another one behind network translation."""
    bind = host
    if host != "127.0.0.1":
        bind = str(context.getConf().get("spark.driver.bindAddress", host))
    return socket.gethostbyname(bind)


def _problems(
    updater: Any, consistency: Any, penalty: Any, checkpoint: Any, seconds: Any, restarts: Any
) -> list[str]:
    problems = []
    if not isinstance(updater, Updater):
        problems.append(f"updater is {updater!r}; it must be one of sparkdist.updaters")
    if not isinstance(consistency, Consistency):
        problems.append(f"consistency is {consistency!r}; it must be one of sparkdist.consistency")
    if penalty is not None and not isinstance(penalty, Penalty):
        problems.append(f"penalty is {penalty!r}; it must be L2(...), L1(...) or ElasticNet(...)")
    if checkpoint not in _CHECKPOINTS:
        problems.append(f"checkpoint is {checkpoint!r}; it must be one of {_CHECKPOINTS}")
    if not (isinstance(seconds, int | float) and seconds > 0):
        problems.append(f"seconds is {seconds!r}; it must be more than 0")
    if type(restarts) is not int or restarts < 0:
        problems.append(f"restarts is {restarts!r}; it must be an integer >= 0")
    return problems


def _refuse_bad_plan(
    data: Any, batch_size: Any, epochs: Any, n_fetch: Any, n_push: Any, rate: Any, patience: Any
) -> None:
    whole = {"batch_size": batch_size, "epochs": epochs, "n_fetch": n_fetch, "n_push": n_push}
    problems = [
        f"{name} is {value!r}; it must be an integer >= 1"
        for name, value in whole.items()
        if type(value) is not int or value < 1
    ]
    if not isinstance(data, Dataset):
        problems.append(f"data is a {type(data).__name__}; it must be a Dataset")
    if not (isinstance(rate, int | float) and rate >= 0):
        problems.append(f"local_rate is {rate!r}; it must be 0 or more")
    if not (isinstance(patience, int | float) and patience > 0):
        problems.append(f"patience is {patience!r}; it must be more than 0")
    if problems:
        raise InvalidCall("train", problems)

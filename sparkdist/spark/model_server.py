"""ModelServer: parameters on a server beside the driver, descent there, gradients from Spark."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pyspark import RDD
from pyspark.sql import DataFrame

from sparkdist.blocks import Array
from sparkdist.consistency import Consistency, asp
from sparkdist.errors import InvalidCall
from sparkdist.layout import Layout, Model
from sparkdist.objectives import Objective
from sparkdist.penalties import Penalty
from sparkdist.problem import Problem, as_objective
from sparkdist.progress import TrainingProgress
from sparkdist.result import Result
from sparkdist.server.rules import MeanGradient
from sparkdist.spark.dataset import Dataset, as_dataset
from sparkdist.spark.outcome import of_objective, of_rows
from sparkdist.spark.server_options import ServerOptions
from sparkdist.spark.serving import Face, Serving, Watch
from sparkdist.spark.sources import describe, refuse_connect
from sparkdist.spark.train import Loop
from sparkdist.spark.units import BlockWork, Epochs, RowWork
from sparkdist.updaters import Damping, Descent, Updater, adagrad
from sparkdist.workers import Worker, downpour

__all__ = ["ModelServer", "type_of"]


class ModelServer(Face):
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
        How the server descends: a member of :mod:`sparkdist.updaters`; ``adagrad(0.1)``.
    consistency
        Who waits for whom: a member of :mod:`sparkdist.consistency`; ``asp()``.
    penalty
        ``L2``, ``L1`` (proximal) or ``ElasticNet``, added to the mean loss on the server.
    unpenalized
        Names of arrays that the penalty does not touch.  It never touches the array
        ``intercept``, nor the biases of an :class:`MLP`.
    clip
        Largest Euclidean norm of a mean gradient.
    damping
        The age of a gradient, in versions, to a factor of its rate: ``delay_adaptive(8)``.
    checkpoint
        ``none``: the server's death ends the run.  ``interval``: every ``seconds``; what
        came after is computed again.  ``every``: before a push is acknowledged.
    folder
        Where checkpoints of a new run go, and stay; a temporary folder by default.
    resume
        Folder of the checkpoints of a run whose driver died: the same call of ``train`` goes on
        where they end.
    seconds
        Between two checkpoints.
    restarts
        How many times the server may be started again.
    skip_not_finite
        Leave out gradients that are not finite instead of failing their task.
    certificate, key
        PEM files for TLS; executors trust this certificate and no other.
    plaintext
        Run without TLS although Spark is set to encrypt, with a warning.

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
        unpenalized: Sequence[str] = (),
        clip: float | None = None,
        damping: Damping | None = None,
        checkpoint: str = "interval",
        folder: str | Path | None = None,
        resume: str | Path | None = None,
        seconds: float = 10.0,
        restarts: int = 3,
        skip_not_finite: bool = False,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        plaintext: bool = False,
    ):
        options = ServerOptions(
            checkpoint, folder, resume, seconds, restarts, skip_not_finite,
            certificate, key, plaintext,
        )  # fmt: skip
        self._updater = adagrad(0.1) if updater is None else updater
        self._consistency = asp() if consistency is None else consistency
        self._layout, self._free = Layout.of(model), {*unpenalized, "intercept"}
        problems = _problems(self._updater, self._consistency, penalty) + options.problems()
        if unknown := sorted(set(unpenalized) - set(self._layout.names)):
            problems.append(f"unpenalized names {unknown}; the model has {self._layout.names}")
        w = self._layout.flatten(model).astype(type_of(model))
        if not np.isfinite(w).all():
            problems.append("the model has values that are NaN or infinite")
        if problems:
            raise InvalidCall("ModelServer", problems)
        self._w, self._clip, self._damping = w, clip, damping
        self._l1, self._l2 = (0.0, 0.0) if penalty is None else (penalty.l1, penalty.l2)
        self._mask = self._mask_without(())
        self._penalised = bool(self._l1 or self._l2) or self._updater.penalises
        by_server = self._updater.takes_gradients and self._penalised
        self._on_server = self._mask if by_server else None
        rule = self._rule(self._on_server)
        self._serving = Serving(w, self._layout, rule, self._consistency, options)

    @property
    def model(self) -> Model:
        """The parameters as they are now, in the shape of the model; a copy."""
        return self._layout.unflatten(self._serving.parameters()[1])

    def train(
        self,
        data: Dataset | DataFrame | RDD[Any],
        objective: Any,
        *,
        batch_size: int = 64,
        epochs: int = 1,
        seed: int = 0,
        n_fetch: int = 1,
        n_push: int = 1,
        local_rate: float = 0.0,
        worker: Worker | None = None,
        patience: float = 300.0,
        callback: Callable[[dict[str, Any]], object] | None = None,
        progress: bool = True,
    ) -> Result:
        """Run workers over the data until every row has been seen ``epochs`` times.

        Parameters
        ----------
        data
            A dataset, or what :func:`minimize` takes; its partitions are the workers.  With your
            own ``gradient``, any RDD of anything: the rows of a partition are kept in a list.
            Where some workers wait for others (all but ``asp``) there are at most as many as
            Spark has task slots.
        objective
            An objective, its class or its name, or ``f(w, X, y) -> (loss_sum, grad_sum)``, as in
            :func:`minimize`.  Or, with two parameters, ``gradient(model, rows)``, which returns
            the sum of the gradients of a list of rows, in the shape of the model, or the pair
            (loss_sum, grad_sum).
        batch_size, epochs, seed
            Each epoch of a worker is a permutation of its rows, cut into batches.
        n_fetch, n_push, local_rate
            Batches between fetches and pushes, and the step of local descent between fetches: of
            ``downpour``, the worker loop unless ``worker`` names one.
        worker
            A member of :mod:`sparkdist.workers`: what a worker does between fetches and pushes.
        patience
            Seconds that a worker waits for the server, or for others.
        callback
            Called on the driver several times a second with :meth:`status`.
        progress
            Show a live line on a terminal or in a notebook.

        Returns
        -------
        Result
            ``fun`` and ``jac`` are those of one more pass over all rows, at the server's final
            parameters (of a ``gradient`` only if it returns losses); ``counts`` says what
            became of the pushes, ``staleness`` how old the parameters of each had been.

        Raises
        ------
        InvalidCall, BadData, PassFailed, ServerDied, ServerUnavailable, WorkersMissing
        """
        self._serving.supervisor  # noqa: B018  # is it running?
        refuse_connect(data)
        worker, problems = _worker(worker, n_fetch, n_push, local_rate)
        problems += _several_reads(self._updater, worker)
        plan = TrainingPlan(Epochs(batch_size, epochs, seed, worker), patience)
        if problems := plan.problems() + problems + _problems_of_data(data, objective):
            raise InvalidCall("train", problems)
        own_rows = isinstance(data, RDD) and _takes_rows(objective)
        with ExitStack() as stack:
            dataset = None if own_rows else as_dataset(data, stack)
            total = None if dataset is None else dataset.n_rows * epochs
            bar = stack.enter_context(TrainingProgress(progress, total, self._serving.page_once))
            watch = Watch(bar, callback)
            if dataset is None:
                assert isinstance(data, RDD)
                return self._train_on_rows(data, objective, plan, watch)
            loss = as_objective(objective, self._layout.unflatten(self._w))
            return self._train_on_blocks(dataset, loss, plan, watch)

    def _train_on_blocks(
        self, data: Dataset, loss: Objective, plan: TrainingPlan, watch: Watch
    ) -> Result:
        if problems := _misfits(loss, data, self._layout):
            raise InvalidCall("train", problems)
        data.refuse_labels(loss)
        loop = plan.loop(self._agree_on_penalty(plan.epochs.worker, loss.biases), self._w.size)
        handles = self._serving.fit_to_slots(data.handles)
        make_units = BlockWork(loss, self._w.dtype.str, plan.epochs)
        self._serving.run(handles, make_units, loop, plan.named(data.n_rows), watch)
        problem = Problem(loss, self._layout, self._w, self._mask, self._l1, self._l2)
        return of_objective(self._serving, problem, data, watch)

    def _train_on_rows(
        self, rows: RDD[Any], gradient: Any, plan: TrainingPlan, watch: Watch
    ) -> Result:
        loop = plan.loop(self._agree_on_penalty(plan.epochs.worker, ()), self._w.size)
        rows = self._serving.fit_to_slots(rows)
        make_units = RowWork(gradient, self._layout, self._w.dtype.str, plan.epochs)
        self._serving.run(rows, make_units, loop, plan.named(None), watch)
        penalty = (self._l1, self._l2, self._mask)
        return of_rows(self._serving, make_units, rows, self._layout, penalty, watch)

    def _rule(self, mask: Array | None) -> MeanGradient:
        """Descend with the penalty where ``mask`` is 1; nowhere if it is None."""
        l1, l2 = (0.0, 0.0) if mask is None else (self._l1, self._l2)
        descent = Descent(self._updater, l1, l2, mask, self._clip, self._damping)
        return MeanGradient(descent, self._layout, self._w.dtype.str)

    def _mask_without(self, biases: Sequence[str]) -> Array:
        """1 where the penalty acts, 0 where it does not."""
        mask, slices = np.ones(self._layout.size), self._layout.slices()
        for name in {*self._free, *biases} & set(self._layout.names):
            mask[slices[name]] = 0.0
        return mask

    def _agree_on_penalty(self, worker: Worker, biases: Sequence[str]) -> Worker:
        """Let the server or the workers add the penalty, and keep it off an objective's biases."""
        mask, penalised = self._mask_without(biases), self._penalised
        on_server = None if worker.own_penalty or not penalised else mask
        if on_server is not None and not self._updater.takes_gradients:
            problem = f"{self._updater!r} takes differences, and {worker!r} pushes gradients"
            raise InvalidCall("train", [f"{problem}: nobody could add the penalty"])
        if penalised and not _same(on_server, self._on_server):
            self._serving.supervisor.use(self._rule(on_server))
        self._mask, self._on_server = mask, on_server
        return worker.penalised(self._l1, self._l2, mask) if penalised else worker


@dataclass(frozen=True)
class TrainingPlan:
    """The numbers of a call of ``train``."""

    epochs: Epochs
    patience: float

    def loop(self, worker: Worker, size: int) -> Loop:
        """Have a worker of a model of so many parameters on each partition."""
        return Loop(worker, self.patience, 8 * worker.state_size(size))

    def problems(self) -> list[str]:
        """Find what is wrong with them: a sentence for each problem."""
        whole = self.epochs._asdict()
        del whole["worker"]
        problems = [
            f"{name} is {value!r}; it must be an integer >= {least}"
            for name, value in whole.items()
            if type(value) is not int or value < (least := 0 if name == "seed" else 1)
        ]
        if not (isinstance(self.patience, int | float) and self.patience > 0):
            problems.append(f"patience is {self.patience!r}; it must be more than 0")
        return problems

    def named(self, n_rows: int | None) -> dict[str, Any]:
        """Return what decides which batch is which."""
        return {**self.epochs._asdict(), "worker": repr(self.epochs.worker), "rows": n_rows}


def _worker(worker: Any, *of_downpour: Any) -> tuple[Worker, list[str]]:
    """Return the worker loop, downpour where none is given, and what is wrong with it."""
    try:
        own = downpour(*of_downpour)
    except InvalidCall as error:
        return downpour(), list(error.problems)
    if worker is None:
        return own, []
    if not isinstance(worker, Worker):
        return own, [f"worker is {worker!r}; it must be one of sparkdist.workers"]
    problem = f"n_fetch, n_push and local_rate are downpour's; worker is {worker!r}"
    return worker, [problem] if own != downpour() else []


def _several_reads(updater: Updater, worker: Worker) -> list[str]:
    """Say why an updater that remembers reads cannot work with what a worker pushes."""
    if not updater.remembers_reads or worker == downpour(getattr(worker, "n_fetch", 1)):
        return []
    rule = "needs gradients of one batch at the server's own parameters"
    return [f"{updater!r} {rule}; the worker is {worker!r}"]


def _same(a: Array | None, b: Array | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def type_of(model: Any) -> str:
    """Type of a model's vector: float32 if all its arrays are, else float64."""
    arrays = model.values() if isinstance(model, Mapping) else [model]
    single = all(np.asarray(array).dtype == np.float32 for array in arrays)
    return "<f4" if single else "<f8"


def _problems(updater: Any, consistency: Any, penalty: Any) -> list[str]:
    problems = []
    if not isinstance(updater, Updater):
        problems.append(f"updater is {updater!r}; it must be one of sparkdist.updaters")
    if not isinstance(consistency, Consistency):
        problems.append(f"consistency is {consistency!r}; it must be one of sparkdist.consistency")
    elif consistency.in_rounds and getattr(updater, "remembers_reads", False):
        problems.append(f"{updater!r} needs pushes that are applied one by one; {consistency!r}")
    if penalty is not None and not isinstance(penalty, Penalty):
        problems.append(f"penalty is {penalty!r}; it must be L2(...), L1(...) or ElasticNet(...)")
    return problems


def _problems_of_data(data: Any, objective: Any) -> list[str]:
    if not isinstance(data, Dataset | DataFrame | RDD):
        return [f"data is {describe(data)}; it must be a Dataset, a DataFrame or an RDD"]
    if not isinstance(data, RDD) and _takes_rows(objective):
        return ["gradient(model, rows) is for an RDD; of a dataset f(w, X, y) gets arrays"]
    return []


def _takes_rows(objective: Any) -> bool:
    """Whether it is the user's ``gradient(model, rows)``: a function of two parameters."""
    if isinstance(objective, Objective | str | type) or not callable(objective):
        return False
    try:
        inspect.signature(objective).bind("model", "rows")
    except (TypeError, ValueError):
        return False
    return True


def _misfits(loss: Objective, data: Dataset, layout: Layout) -> list[str]:
    """Say where objective, data and model do not belong together."""
    name, n = type(loss).__name__, data.n_features
    if loss.n_features not in (None, n):
        return [f"{name} has {loss.n_features} inputs; the data {n} features"]
    if loss.own_layout is not None:
        sizes = {loss.own_layout.size}
    else:
        sizes = {loss.size(n), loss.size(n) + loss.n_intercepts}
    if layout.size not in sizes:
        wanted = " or ".join(f"{size:,}" for size in sorted(sizes))
        return [f"the model has {layout.size:,} parameters; {name} on this data has {wanted}"]
    return []

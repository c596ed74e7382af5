"""ModelServer: parameters on a server beside the driver, descent there, gradients from Spark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pyspark import RDD
from pyspark.sql import DataFrame

from sparkdist.blocks import Array
from sparkdist.checks import problems_of_callback
from sparkdist.codecs import Codec
from sparkdist.consistency import Consistency, asp
from sparkdist.errors import InvalidCall
from sparkdist.fields import collect
from sparkdist.layout import Layout, Model, type_of
from sparkdist.objectives import Objective
from sparkdist.penalties import Penalty
from sparkdist.problem import Problem, as_objective, names_unpenalized
from sparkdist.progress import TrainingProgress
from sparkdist.result import Result
from sparkdist.server.coded import rule_of
from sparkdist.server.rules import MeanGradient
from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.data.given import as_dataset, named_columns
from sparkdist.spark.data.sources import describe, refuse_connect
from sparkdist.spark.training.outcome import of_objective, of_rows
from sparkdist.spark.training.server_options import ServerOptions
from sparkdist.spark.training.serving import Face, Serving, Watch
from sparkdist.spark.training.train import Coding, Loop
from sparkdist.spark.training.training_plan import (
    TrainingPlan,
    misfits,
    problems_of_data,
    takes_rows,
    unrepeatable,
    worker_of,
)
from sparkdist.spark.training.units import BlockWork, RowWork
from sparkdist.updaters import Damping, Descent, Updater, adagrad
from sparkdist.workers import Whole, Worker, downpour, share_penalty

__all__ = ["ModelServer"]


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
    codec
        How gradients are compressed on their way: a member of :mod:`sparkdist.codecs`.
    memory
        Where error feedback keeps what it has not sent yet: ``host``, so that a task that is run
        again on the same host has it (what is lost with a host is counted in the result, as
        ``memories_lost``); or ``server``, where nothing is lost, and d numbers go with each push.
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
    port
        At which the server listens on ``spark.driver.host``, for a firewall that lets it through:
        a number, a pair (first, last) of which the first free one is taken, or 0, where the
        system chooses.
    record
        File for what the server does, in which order: :func:`sparkdist.simulate.replay` then
        computes the run again, bit for bit.  Of one run, in which the server did not die.

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
        codec: Codec | None = None,
        memory: str = "host",
        checkpoint: str = "interval",
        folder: str | Path | None = None,
        resume: str | Path | None = None,
        seconds: float = 10.0,
        restarts: int = 3,
        skip_not_finite: bool = False,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        plaintext: bool = False,
        port: int | tuple[int, int] = 0,
        record: str | Path | None = None,
    ):
        options = ServerOptions(
            checkpoint, folder, resume, seconds, restarts, skip_not_finite,
            certificate, key, plaintext, port, record,
        )  # fmt: skip
        self._updater = adagrad(0.1) if updater is None else updater
        self._consistency = asp() if consistency is None else consistency
        problems: list[str] = []
        self._layout, w = _start(model, problems)
        named = names_unpenalized(unpenalized, self._layout, problems)
        self._free = {*named, "intercept"}
        problems += _problems(self._updater, self._consistency, penalty) + options.problems()
        problems += _problems_of_codec(codec, memory)
        if problems:
            raise InvalidCall("ModelServer", problems)
        self._w, self._clip, self._damping = w, clip, damping
        self._l1, self._l2 = (0.0, 0.0) if penalty is None else (penalty.l1, penalty.l2)
        self._memory, self._stays = memory, not folder is resume is None
        self._codec = None if codec is None else codec.bind(self._layout)
        self._mask = self._mask_without(())
        penalised = bool(self._l1 or self._l2) or self._updater.penalises
        by_server = self._updater.takes_gradients and penalised
        self._on_server = self._mask if by_server else None
        rule = self._rule(self._on_server)
        most = None if self._codec is None else self._codec.max_bytes(w.size, w.dtype)
        self._serving = Serving(w, self._layout, rule, self._consistency, options, most)

    @property
    def model(self) -> Model:
        """The parameters as they are now, in the shape of the model; a copy."""
        return self._layout.unflatten(self._serving.parameters()[1])

    def train(
        self,
        data: Dataset | DataFrame | RDD[Any],
        objective: Any,
        *,
        features: str | Sequence[str] | None = None,
        label: str | None = None,
        weight: str | None = None,
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
        features, label, weight
            Columns of a DataFrame, as in :func:`minimize`.
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
            ``fun`` and ``jac`` are those of a pass over all rows at the server's final parameters
            (of a ``gradient`` only if it returns losses).  Another one, at those of the start,
            tells whether the run has diverged: ``success`` is False, with status 3, where ``fun``
            is not finite, or above the start's by more than a tenth of it.  ``counts`` says what
            became of the pushes, ``staleness`` how old the parameters of each had been.

        Raises
        ------
        InvalidCall, BadData, PassFailed, ServerDied, ServerUnavailable, WorkersMissing
        """
        self._serving.supervisor  # noqa: B018  # is it running?
        refuse_connect(data)
        worker, problems = worker_of(worker, n_fetch, n_push, local_rate)
        problems += worker.misfits(
            in_rounds=self._consistency.in_rounds, takes_gradients=self._updater.takes_gradients
        )
        problems += _several_reads(self._updater, worker)
        problems += unrepeatable(worker) if self._stays else []
        problems += problems_of_callback(callback)
        with collect(problems):
            plan = TrainingPlan(batch_size, epochs, seed, worker, patience)
        columns = named_columns(features=features, label=label, weight=weight)
        if problems := problems + problems_of_data(data, objective, columns):
            raise InvalidCall("train", problems)
        own_rows = isinstance(data, RDD) and takes_rows(objective)
        with ExitStack() as stack:
            stack.enter_context(self._serving.alone())
            dataset = None if own_rows else as_dataset(data, stack, columns)
            total = None if dataset is None else dataset.n_rows * plan.epochs
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
        if problems := misfits(loss, data, self._layout):
            raise InvalidCall("train", problems)
        data.refuse_labels(loss)
        handles = self._serving.fit_to_slots(data.handles)
        of_all = {"n_workers": handles.getNumPartitions(), "n_rows": data.n_rows}
        loop = self._loop(plan, loss.biases, objective=loss, weight=data.weight_sum, **of_all)
        make_units = BlockWork(loss, self._w.dtype.str, plan)
        start = self._serving.parameters()[1].astype(np.float64)
        self._serving.run(handles, make_units, loop, plan.named(data.n_rows), watch)
        problem = Problem(loss, self._layout, start, self._mask, self._l1, self._l2)
        return of_objective(self._serving, problem, data, watch, loop.worker.ensemble)

    def _train_on_rows(
        self, rows: RDD[Any], gradient: Any, plan: TrainingPlan, watch: Watch
    ) -> Result:
        rows = self._serving.fit_to_slots(rows)
        of_all = {"n_workers": rows.getNumPartitions(), "n_rows": 0}
        loop = self._loop(plan, (), objective=gradient, weight=0.0, **of_all)
        make_units = RowWork(gradient, self._layout, self._w.dtype.str, plan)
        start = self._serving.parameters()[1].astype(np.float64)
        self._serving.run(rows, make_units, loop, plan.named(None), watch)
        penalty = (self._l1, self._l2, self._mask)
        return of_rows(self._serving, make_units, rows, self._layout, penalty, start, watch)

    def _loop(self, plan: TrainingPlan, biases: Sequence[str], **of_data: Any) -> Loop:
        """What each worker does, with its part of the penalty, and what it has to remember."""
        worker = self._agree_on_penalty(plan.worker, biases)
        whole = Whole(
            **of_data,
            consistency=self._consistency,
            updater=self._updater,
            plain=self._clip is None and self._codec is None and not self._damping,
            l1=self._l1,
            l2=self._l2,
            mask=self._mask,
        )
        worker = worker.part_of(whole)
        size, dtype, coding = self._w.size, self._w.dtype.str, None
        numbers = worker.state_size(size)
        if self._codec is not None:
            on_host = self._memory == "host" and not self._codec.rebuildable
            coding = Coding(self._codec, size, dtype, plan.seed, on_host)
            if not on_host:
                numbers += sum(part.size for part in self._codec.init(size, dtype))
        return Loop(worker, plan.patience, 8 * numbers, coding)

    def _rule(self, mask: Array | None) -> MeanGradient:
        """Descend with the penalty where ``mask`` is 1; nowhere if it is None."""
        l1, l2 = (0.0, 0.0) if mask is None else (self._l1, self._l2)
        descent = Descent(self._updater, l1, l2, mask, self._clip, self._damping)
        return rule_of(descent, self._layout, self._w.dtype.str, self._codec)

    def _mask_without(self, biases: Sequence[str]) -> Array:
        """1 where the penalty acts, 0 where it does not."""
        mask, slices = np.ones(self._layout.size), self._layout.slices()
        for name in {*self._free, *biases} & set(self._layout.names):
            mask[slices[name]] = 0.0
        return mask

    def _agree_on_penalty(self, worker: Worker, biases: Sequence[str]) -> Worker:
        """Let the server or the workers add the penalty, and keep it off an objective's biases."""
        mask = self._mask_without(biases)
        shared = share_penalty("train", worker, self._updater, self._l1, self._l2, mask)
        worker, on_server = shared[0], mask if shared[1] else None
        if not _same(on_server, self._on_server):
            self._serving.use(self._rule(on_server))
        self._mask, self._on_server = mask, on_server
        return worker


def _start(model: Any, problems: list[str]) -> tuple[Layout, Array]:
    """Return layout and vector of the model; what is none is added to ``problems``."""
    try:
        layout = Layout.of(model)
        # Of None NumPy would make a NaN.
        w = layout.flatten("None" if model is None else model).astype(type_of(model))
    except (TypeError, ValueError):
        rule = "it must be an array of numbers, or a dict of named ones"
        problems.append(f"the model is {describe(model)}; {rule}")
        return Layout.of(np.zeros(0)), np.zeros(0)
    if not np.isfinite(w).all():
        problems.append("the model has values that are NaN or infinite")
    return layout, w


def _several_reads(updater: Updater, worker: Worker) -> list[str]:
    """Say why an updater that remembers reads cannot work with what a worker pushes."""
    if not updater.remembers_reads or worker == downpour(getattr(worker, "n_fetch", 1)):
        return []
    rule = "needs gradients of one batch at the server's own parameters"
    return [f"{updater!r} {rule}; the worker is {worker!r}"]


def _same(a: Array | None, b: Array | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def _problems(updater: Any, consistency: Any, penalty: Any) -> list[str]:
    problems = []
    if not isinstance(updater, Updater):
        problems.append(f"updater is {updater!r}; it must be one of sparkdist.updaters")
    if not isinstance(consistency, Consistency):
        problems.append(f"consistency is {consistency!r}; it must be one of sparkdist.consistency")
    elif consistency.in_rounds and getattr(updater, "remembers_reads", False):
        rule = "needs pushes that are applied one by one"
        problems.append(f"{updater!r} {rule}; {consistency!r} sums them")
    if penalty is not None and not isinstance(penalty, Penalty):
        problems.append(f"penalty is {penalty!r}; it must be L2(...), L1(...) or ElasticNet(...)")
    return problems


def _problems_of_codec(codec: Any, memory: Any) -> list[str]:
    problems = []
    if codec is not None and not isinstance(codec, Codec):
        problems.append(f"codec is {codec!r}; it must be one of sparkdist.codecs, or None")
    if memory not in ("host", "server"):
        problems.append(f"memory is {memory!r}; it must be 'host' or 'server'")
    return problems

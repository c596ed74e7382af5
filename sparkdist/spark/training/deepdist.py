"""DeepDist: the user's own gradient and descent, on a model of any type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyspark import RDD
from pyspark.cloudpickle import CloudPickler

from sparkdist.blocks import Array
from sparkdist.checks import problems_of_callback
from sparkdist.client import Gradient
from sparkdist.consistency import asp
from sparkdist.errors import BadGradient, InvalidCall
from sparkdist.progress import TrainingProgress
from sparkdist.result import SEEN, Result
from sparkdist.server.user_descent import UserDescent
from sparkdist.skeleton import Skeleton, arrays_of
from sparkdist.spark.data.sources import describe
from sparkdist.spark.failures import cannot_travel
from sparkdist.spark.network import has_stopped
from sparkdist.spark.training.outcome import of_server, refuse_no_rows
from sparkdist.spark.training.server_options import ServerOptions
from sparkdist.spark.training.serving import Face, Serving, Watch
from sparkdist.spark.training.train import Loop

__all__ = ["DeepDist"]


class DeepDist(Face):
    """A model of any type on a server; a context manager.

    ::

        with DeepDist(model) as dd:
            dd.train(rdd, gradient, descent)
            print(dd.model)

        def gradient(model, rows):    # on the workers: a copy of the model, an iterator
            ...
            return {"w": ..., "b": ...}

        def descent(model, update):   # on the server: the model, and one worker's update
            model.w += update["w"]
            model.b += update["b"]

    The model's parameters are the NumPy arrays in float32 or float64 that are in it, at any
    depth: these the workers fetch and the descent changes, in place, by putting others there, or
    by returning a new model.  All else in the model is, on the workers, after a restart of the
    server and in :attr:`model`, as it was at the start.  What the descent wants to remember is
    therefore an array of the model, of its shape from the start: ``model.memory = np.zeros(n)``.

    Updates are applied one by one, each exactly once, whatever Spark does to the tasks.

    Parameters
    ----------
    model
        The model to start from.
    checkpoint, folder, resume, seconds, restarts, certificate, key, plaintext, port
        As in :class:`ModelServer`.

    Raises
    ------
    InvalidCall
        With all problems of the call.

    Source: Neumann, DeepDist, https://github.com/dirkneumann/deepdist; the server there served
    the model of the start of a pass for as long as workers overlapped, and counted the update of
    a task that ran again twice.
    """

    def __init__(
        self,
        model: Any,
        *,
        checkpoint: str = "interval",
        folder: str | Path | None = None,
        resume: str | Path | None = None,
        seconds: float = 10.0,
        restarts: int = 3,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        plaintext: bool = False,
        port: int | tuple[int, int] = 0,
    ):
        options = ServerOptions(
            checkpoint, folder, resume, seconds, restarts, False, certificate, key, plaintext, port
        )
        problems = options.problems()
        try:
            self._skeleton = Skeleton.of(model, CloudPickler)
        except Exception as error:  # pickling runs code of the model's own
            what = f"the model is {describe(model)}, which cannot travel to the workers: {error}"
            raise InvalidCall("DeepDist", [what, *problems]) from error
        w = np.empty(self._skeleton.layout.size, self._skeleton.dtype)
        self._skeleton.read(model, w)
        if not w.size:
            kinds = "no NumPy arrays in float32 or float64, which would be its parameters"
            problems.append(f"the model, a {type(model).__name__}, has {kinds}")
        if not np.isfinite(w).all():
            problems.append("the model has values that are NaN or infinite")
        if problems:
            raise InvalidCall("DeepDist", problems)
        rule = UserDescent(self._skeleton, _no_descent)
        # An update may be larger than the model: statistics come with it.
        room = 4 * w.nbytes + (1 << 20)
        self._serving = Serving(w, self._skeleton.layout, rule, asp(), options, room)

    @property
    def model(self) -> Any:
        """The model as it is now; a copy."""
        return self._skeleton.build(self._serving.parameters()[1])

    def train(
        self,
        rdd: RDD[Any],
        gradient: Callable[[Any, Iterator[Any]], Any],
        descent: Callable[[Any, Any], Any],
        *,
        patience: float = 300.0,
        callback: Callable[[dict[str, Any]], object] | None = None,
        progress: bool = True,
    ) -> Result:
        """Compute one update of each partition, on the model as it then is, and descend by it.

        Parameters
        ----------
        rdd
            Rows of anything; those of a partition are kept in a list while it is worked at.
        gradient
            ``gradient(model, rows)``, on a worker, with a copy of the model and an iterator over
            a partition.  It returns an update: an array or a number, or a dict or a list of these;
            or None where there is nothing to apply.  Partitions without rows are left out.
        descent
            ``descent(model, update)``, on the server.  It gets there from the driver, never over
            the network.
        patience
            Seconds that a worker waits for the server.
        callback
            Called on the driver several times a second with :meth:`status`.
        progress
            Show a live line on a terminal or in a notebook.

        Returns
        -------
        Result
            ``x`` is the model; ``counts`` says what became of the updates, ``staleness`` how many
            others had been applied while each was computed.

        Raises
        ------
        InvalidCall, PassFailed, ServerDied, ServerUnavailable, WorkersMissing
        """
        supervisor = self._serving.supervisor
        problems = _problems(rdd, gradient, descent, patience) + problems_of_callback(callback)
        if problems:
            raise InvalidCall("train", problems)
        make_units = _PartitionWork(self._skeleton, gradient)
        told = TrainingProgress(progress, None, self._serving.page_once)
        with self._serving.alone(), told as bar:
            supervisor.use(UserDescent(self._skeleton, descent))
            watch = Watch(bar, callback)
            self._serving.run(rdd, make_units, Loop(patience=patience), {}, watch)
            refuse_no_rows(self._serving, watch)
        return of_server(self._serving, watch, SEEN, x=self.model, fun=float("nan"))


@dataclass(frozen=True)
class _PartitionWork:
    """Makes the one unit of a partition."""

    skeleton: Skeleton
    function: Callable[[Any, Iterator[Any]], Any]

    @contextmanager
    def __call__(self, partition: int, rows: Iterable[Any]) -> Iterator[_PartitionUnit]:
        """Keep the rows: the server may ask for the update again, on other parameters."""
        yield _PartitionUnit(self, partition, list(rows))


class _PartitionUnit:
    def __init__(self, work: _PartitionWork, partition: int, rows: list[Any]):
        self._work, self._partition, self._rows = work, partition, rows
        self.total = 1 if rows else 0

    def steps(self, clock: int) -> int:
        """All rows at once."""
        return 1

    def first(self, clock: int) -> int:
        """Return 0: there is one batch."""
        return 0

    def gradient(self, clock: int, step: int, w: Array) -> Gradient:
        """Have the user compute the update."""
        update = self._work.function(self._work.skeleton.build(w), iter(self._rows))
        try:
            arrays = {} if update is None else arrays_of(update)
        except TypeError as error:
            raise BadGradient(f"gradient, on partition {self._partition}: {error}") from error
        return Gradient(arrays or None, examples=len(self._rows))


def _problems(rdd: Any, gradient: Any, descent: Any, patience: Any) -> list[str]:
    problems = []
    if not isinstance(rdd, RDD):
        problems.append(f"rdd is {describe(rdd)}; it must be an RDD, df.rdd for instance")
    elif has_stopped(rdd.context):
        problems.append("the session of the data was stopped")
    for name, function in (("gradient", gradient), ("descent", descent)):
        if not callable(function):
            problems.append(f"{name} is a {type(function).__name__}; it must be a function")
        problems += cannot_travel(name, function)
    if not (isinstance(patience, int | float) and patience > 0):
        problems.append(f"patience is {patience!r}; it must be more than 0")
    return problems


def _no_descent(model: Any, update: Any) -> None:
    raise RuntimeError("no run has begun")

"""The resident engine: one long Spark job whose workers keep their blocks open.

A pass is then a message to each worker and one back, where a Spark job costs 75 ms and more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from pyspark.cloudpickle import dumps

from sparkdist.blocks import Array, Partial
from sparkdist.errors import InvalidCall
from sparkdist.objectives import Objective
from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.data.sources import describe, find_dtype
from sparkdist.spark.engines.aggregate import AggregateEngine
from sparkdist.spark.engines.crew import Crew, Options
from sparkdist.spark.engines.seat import Seat
from sparkdist.spark.network import driver_host, encryption_of, ports_of

__all__ = ["IDLE", "ResidentEngine", "what_speaks_against"]

logger = logging.getLogger(__name__)

#: Seconds without a pass after which workers go home.
IDLE = 5.0
_dumps: Callable[[Any], bytes] = dumps


class ResidentEngine:
    """Sums over all blocks of a dataset, by workers that stay between passes.

    The result is the same bit for bit whatever the schedule, and that of the aggregate engine with
    ``deterministic=True``.  Spark may run a worker's task again, or twice: a portion counts once.
    The workers hold task slots until they have had nothing to do for ``idle`` seconds, until the
    dataset is used by another job, or until it is unpersisted.

    Parameters
    ----------
    dataset
        The blocks.
    deterministic
        There for symmetry: this engine always is.
    idle
        Seconds without a pass after which the workers go home.
    patience
        Seconds after which a pass does not wait any longer for workers without a task slot.
    messages
        ``float64``, or ``float32`` for half the bytes a pass: parameters and each portion's
        gradient are rounded to 6e-8 relative, while sums, loss and weight stay float64.
    port
        Of the server that the workers talk to: a number, a pair (first, last) of which the first
        free one is taken, or 0, where the system chooses.
    seat
        A server that was started while the data was ingested, with these options.

    Raises
    ------
    WorkersMissing
        From a pass: there were too few task slots for too long.
    PassFailed, ServerDied
        From a pass.

    Source: Dean et al., Large Scale Distributed Deep Networks, NIPS 2012, section 4.2.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        deterministic: bool = True,
        idle: float = IDLE,
        patience: float = 120.0,
        messages: DTypeLike = "float64",
        port: int | tuple[int, int] = 0,
        seat: Seat | None = None,
    ):
        if not isinstance(dataset, Dataset):
            problem = f"dataset is {describe(dataset)}; it must be a Dataset"
            raise InvalidCall("ResidentEngine", [problem])
        options = Options(idle, patience)
        problems = options.problems()
        kind = find_dtype(messages, problems, "messages")
        ports = ports_of(port, problems)
        if problems:
            raise InvalidCall("ResidentEngine", problems)
        self.dataset = dataset
        if not isinstance(dataset.crew, Crew):
            dataset.crew = Crew(dataset)
        self._crew: Crew = dataset.crew
        self._options = options._replace(messages=kind.str, ports=ports)
        if seat is not None:
            self._crew.take(seat, self._options)
        self._sent: tuple[Objective, bytes] | None = None

    @property
    def single_precision(self) -> bool:
        """Whether features or messages are float32."""
        return np.float32 in (self.dataset.dtype, np.dtype(self._options.messages))

    def look_again(self) -> None:
        """Send the objective anew with the next pass: it may have been changed in place."""
        self._sent = None

    def value_and_grad(self, objective: Objective, w: Array) -> Partial:
        """Sum loss, gradient and weight over the dataset: one pass."""
        return self._pass(objective, "value_and_grad", w)

    def hessp(self, objective: Objective, w: Array, v: Array) -> Partial:
        """Sum Hessian times v, as the ``grad`` of the result, and weight: one pass."""
        return self._pass(objective, "hessp", w, v)

    def metric(self, objective: Objective, w: Array) -> Partial:
        """Sum the matrices that stand for the Hessian, as ``grad``, and weight: one pass.

        Large ones are a Spark job of its own, for which the workers go home; and they merge in a
        tree, as they come, because the driver could not hold all of them.
        """
        rows = w.size // objective.n_scores
        width = self._crew.width_of_metric(objective, rows)
        if not width:
            return AggregateEngine(self.dataset).metric(objective, w)
        found = self._pass(objective, "metric", w, width=width)
        return Partial(found.loss, found.grad.reshape(rows, rows), found.weight)

    def _pass(self, objective: Objective, kind: str, *vectors: Array, width: int = 0) -> Partial:
        if self._sent is None or self._sent[0] is not objective:
            self._sent = objective, _dumps(objective)
        with self._crew.turn:
            try:
                found = self._crew.evaluate(self._options, *self._sent, kind, vectors, width)
            except BaseException:
                self._crew.release(cancel=True)
                raise
        if found is not None:
            return found
        # Spark runs the tasks elsewhere than where the blocks are: they are ingested there.
        logger.warning("blocks are not where the workers are: this pass is a Spark job of its own")
        self._crew.release()
        return getattr(AggregateEngine(self.dataset, deterministic=True), kind)(objective, *vectors)


def what_speaks_against(dataset: Dataset) -> str | None:
    """Say why workers that stay are not wise here, or None."""
    context = dataset.context
    conf = context.getConf()
    if found := encryption_of(conf, driver_host(context)):
        return f"{found[0]} is set, which does not cover the workers' port"
    if str(conf.get("spark.dynamicAllocation.enabled", "false")).lower() in ("true", "1"):
        return "executors come and go under dynamic allocation, and workers would hold them"
    own = dataset.crew.jobs() if isinstance(dataset.crew, Crew) else ()
    if set(context.statusTracker().getActiveJobsIds()) - set(own):
        return "other jobs are running, for whose task slots the workers would wait"
    return None

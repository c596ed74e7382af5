"""The aggregate engine: one Spark job a pass, by treeAggregate."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from sparkdist.blocks import Array, Block, Partial
from sparkdist.objectives import Objective
from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.data.ingest import PORTION, Handle
from sparkdist.spark.data.visit import Missing, visit
from sparkdist.spark.failures import told_plainly
from sparkdist.spark.jobs import run_job

if TYPE_CHECKING:
    from pyspark import Broadcast

__all__ = ["AggregateEngine"]

#: Work on one block with the vectors of this pass: (w,) or (w, v).
Step: TypeAlias = "Callable[[tuple[Array, ...], Block], Partial]"


#: Sum over the blocks of a partition.
Work: TypeAlias = "Callable[[int, Iterator[Block]], Partial]"


@dataclass(frozen=True, slots=True)
class _Tally:
    """The sums of some partitions, and the partitions whose blocks were not there."""

    partial: Partial = field(default_factory=Partial.nothing)
    missing: tuple[int, ...] = ()

    def __add__(self, other: _Tally) -> _Tally:
        return _Tally(self.partial + other.partial, self.missing + other.missing)


class AggregateEngine:
    """Sums over all blocks of a dataset: broadcast w, treeAggregate, destroy the broadcast.

    Spark retries, speculates and recomputes as it likes: a result travels in the task's own
    result, so a partition counts once.

    Parameters
    ----------
    dataset
        The blocks.
    deterministic
        Sum in partition order, on the driver: the result is the same bit for bit whatever the
        scheduling.  Otherwise partial sums merge in a tree as they come, when there are many.
    depth
        Depth of the tree; the driver merges about ``n_partitions ** (1 / depth)`` gradients.
    """

    def __init__(self, dataset: Dataset, *, deterministic: bool = False, depth: int = 2):
        self._dataset, self._deterministic, self._depth = dataset, deterministic, depth

    @property
    def single_precision(self) -> bool:
        """Whether the features are kept in float32."""
        return bool(self._dataset.dtype == np.float32)

    def value_and_grad(self, objective: Objective, w: Array) -> Partial:
        """Sum loss, gradient and weight over the dataset: one pass."""

        def step(vectors: tuple[Array, ...], block: Block) -> Partial:
            return objective.value_and_grad(vectors[0], block)

        return self._pass(step, w)

    def hessp(self, objective: Objective, w: Array, v: Array) -> Partial:
        """Sum Hessian times v, as the ``grad`` of the result, and weight: one pass."""

        def step(vectors: tuple[Array, ...], block: Block) -> Partial:
            return Partial(
                0.0, objective.hessp(vectors[0], vectors[1], block), float(block.weight.sum())
            )

        return self._pass(step, w, v)

    def metric(self, objective: Objective, w: Array) -> Partial:
        """Sum the matrices that stand for the Hessian, as ``grad``, and weight: one pass."""

        def step(vectors: tuple[Array, ...], block: Block) -> Partial:
            return Partial(0.0, objective.metric(vectors[0], block), float(block.weight.sum()))

        return self._pass(step, w)

    def _pass(self, step: Step, *vectors: Array) -> Partial:
        context = self._dataset.handles.context

        def job() -> Partial:
            shared = context.broadcast(vectors)
            work = functools.partial(_sum_blocks, step, shared)
            try:
                return self._in_order(work) if self._deterministic else self._as_a_tree(work)
            finally:
                shared.destroy()

        return run_job(context, job)

    def _in_order(self, work: Work) -> Partial:
        return functools.reduce(operator.add, self._dataset.visit(work))

    def _as_a_tree(self, work: Work) -> Partial:
        self._dataset.free_slots()
        tallies = self._dataset.handles.mapPartitions(functools.partial(_tally, work))
        # The zero travels in the closure of every task: it must not be a vector.
        with told_plainly("a pass"):
            found = tallies.treeAggregate(_Tally(), operator.add, operator.add, self._depth)
        again = self._dataset.rebuild(work, found.missing)
        return functools.reduce(operator.add, again, found.partial)


def _sum_blocks(
    step: Step, shared: Broadcast[tuple[Array, ...]], partition: int, blocks: Iterator[Block]
) -> Partial:
    """Sum over the blocks of one partition: in portions, as the resident engine does."""
    vectors, portions = shared.value, iter(lambda: tuple(itertools.islice(blocks, PORTION)), ())
    # One after the other: of a metric a sum takes up to 32 MB.
    sums = (functools.reduce(operator.add, (step(vectors, b) for b in some)) for some in portions)
    return functools.reduce(operator.add, sums)


def _tally(work: Work, handles: Iterable[Handle]) -> Iterator[_Tally]:
    for answer in visit(work, handles):
        if isinstance(answer, Missing):
            yield _Tally(missing=(answer.partition,))
        else:
            yield _Tally(answer)

"""Units: the work of one worker, of rows in memory; the same batches as on Spark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparkdist.blocks import Array, Block
from sparkdist.client import Gradient
from sparkdist.objectives import Objective
from sparkdist.workers import Batches, Worker

__all__ = ["BlockUnits", "Epochs"]


class Epochs(NamedTuple):
    """How rows are cut into batches, and by which worker batches are cut into units."""

    batch_size: int
    epochs: int
    seed: int
    worker: Worker


class BlockUnits:
    """The batches of some blocks, in a worker's units."""

    def __init__(
        self,
        objective: Objective,
        blocks: Sequence[Block],
        partition: int,
        epochs: Epochs,
        dtype: str,
    ):
        size, seed = epochs.batch_size, epochs.seed
        self._objective, self._dtype = objective, dtype
        self._batches = Batches(blocks, size, seed=seed, partition=partition)
        self._cuts = epochs.worker.cuts(self._batches.per_epoch, epochs.epochs)
        self.total = self._cuts.total
        self.n_rows, self.weight = self._batches.n_rows, self._batches.weight

    def steps(self, clock: int) -> int:
        """How many batches a unit has."""
        return self._cuts.steps(clock)

    def first(self, clock: int) -> int:
        """Return the number of a unit's first batch, counted from the start of the run."""
        return self._cuts.first(clock)

    def gradient(self, clock: int, step: int, w: Array) -> Gradient:
        """Sum loss and gradient over a batch."""
        block = self._batches.get(*self._place(clock, step))
        partial = self._objective.value_and_grad(w, block)
        grad = partial.grad.astype(self._dtype, copy=False)
        return Gradient(grad, partial.weight, len(block.y), partial.loss)

    def rows(self, clock: int, step: int) -> tuple[NDArray[np.intp], Block]:
        """Return a batch, and which rows of the partition these are."""
        place = self._place(clock, step)
        return self._batches.rows(*place), self._batches.get(*place)

    def _place(self, clock: int, step: int) -> tuple[int, int]:
        """Epoch, and number of the batch in it."""
        return divmod(self._cuts.first(clock) + step, self._cuts.per_epoch)

"""Units of rows: the batches of a worker, cut into what one push carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sparkdist.blocks import Array, Block
from sparkdist.client import Gradient
from sparkdist.fields import Rule, settle, whole
from sparkdist.objectives import Objective
from sparkdist.workers._base import Worker
from sparkdist.workers._batches import Batches
from sparkdist.workers.downpour import downpour

__all__ = ["BlockUnits", "CutUnits", "Epochs"]


@dataclass(frozen=True)
class Epochs:
    """How rows are cut into batches, and by which worker batches are cut into units.

    Raises
    ------
    InvalidCall
        With what is wrong with the numbers.
    """

    batch_size: int
    epochs: int
    seed: int
    worker: Worker = downpour()

    rules: ClassVar[Mapping[str, Rule]] = {
        "batch_size": whole(1), "epochs": whole(1), "seed": whole(0),
    }  # fmt: skip

    def __post_init__(self) -> None:
        settle(self, **self.rules)


class CutUnits:
    """The batches of a worker, in its units."""

    def __init__(self, epochs: Epochs, batches_per_epoch: int):
        self._cuts = epochs.worker.cuts(batches_per_epoch, epochs.epochs)
        self.total = self._cuts.total
        self.steps, self.first = self._cuts.steps, self._cuts.first

    def _place(self, clock: int, step: int) -> tuple[int, int]:
        """Epoch, and number of the batch in it."""
        return divmod(self._cuts.first(clock) + step, self._cuts.per_epoch)


class BlockUnits(CutUnits):
    """Batches of some blocks, and the sums of an objective's loss over them."""

    def __init__(
        self,
        objective: Objective,
        blocks: Sequence[Block],
        partition: int,
        epochs: Epochs,
        dtype: str,
    ):
        size, seed = epochs.batch_size, epochs.seed
        self._batches = Batches(blocks, size, seed=seed, partition=partition)
        super().__init__(epochs, self._batches.per_epoch)
        self._objective, self._dtype = objective, dtype
        self.n_rows, self.weight = self._batches.n_rows, self._batches.weight

    def rows(self, clock: int, step: int) -> tuple[NDArray[np.intp], Block]:
        """Return a batch, and which rows of the partition these are."""
        place = self._place(clock, step)
        return self._batches.rows(*place), self._batches.get(*place)

    def gradient(self, clock: int, step: int, w: Array) -> Gradient:
        """Sum loss and gradient over a batch."""
        block = self._batches.get(*self._place(clock, step))
        partial = self._objective.value_and_grad(w, block)
        grad = partial.grad.astype(self._dtype, copy=False)
        return Gradient(grad, partial.weight, len(block.y), partial.loss)

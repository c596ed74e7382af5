"""Units: what the workers of a run do, cut into what one push carries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sparkdist.blocks import Array, Block
from sparkdist.client import Gradient
from sparkdist.errors import BadData, BadGradient
from sparkdist.layout import Layout
from sparkdist.objectives import Objective
from sparkdist.spark.data.ingest import Handle
from sparkdist.spark.data.residency import open_blocks
from sparkdist.workers import BlockUnits, CutUnits, Epochs, Order

__all__ = ["BlockWork", "RowWork"]


@dataclass(frozen=True)
class BlockWork:
    """Makes the units of a dataset's partition: batches of an objective's loss."""

    objective: Objective
    dtype: str
    epochs: Epochs

    @contextmanager
    def __call__(self, partition: int, handles: Iterable[Handle]) -> Iterator[BlockUnits]:
        """Open the blocks of the partition while the units are worked at."""
        with ExitStack() as stack:
            blocks: list[Block] = []
            for handle in handles:
                if handle.problem:
                    raise BadData(f"the source has changed since it was ingested: {handle.problem}")
                if handle.n_rows:
                    blocks += stack.enter_context(open_blocks(handle.place))
            yield BlockUnits(self.objective, blocks, partition, self.epochs, self.dtype)


class _RowUnits(CutUnits):
    def __init__(self, work: RowWork, rows: list[Any], order: Order):
        super().__init__(work.epochs, order.per_epoch)
        self._work, self._rows, self._order = work, rows, order

    def gradient(self, clock: int, step: int, w: Array) -> Gradient:
        """Have the user sum the gradient over a batch."""
        chosen = self._order.rows(*self._place(clock, step))
        return self._work.sums([self._rows[row] for row in chosen], w)


@dataclass(frozen=True)
class RowWork:
    """Makes the units of an RDD's partition: batches of the user's own rows.

    ``gradient(model, rows)`` returns the sum of the rows' gradients in the shape of the model, or
    the pair (sum of losses, sum of gradients).  The rows of a partition are kept in a list, so
    that a batch can be computed again.
    """

    function: Callable[[Any, list[Any]], Any]
    layout: Layout
    dtype: str
    epochs: Epochs

    @contextmanager
    def __call__(self, partition: int, rows: Iterable[Any]) -> Iterator[_RowUnits]:
        """Keep the rows of the partition while the units are worked at."""
        kept, size, seed = list(rows), self.epochs.batch_size, self.epochs.seed
        yield _RowUnits(self, kept, Order(len(kept), size, seed=seed, partition=partition))

    def sums(self, rows: list[Any], w: Array) -> Gradient:
        """Call the function on some rows, and check what it returns.

        Raises
        ------
        BadGradient
            If that is not of the shape of the model.
        """
        flat = w.view()
        flat.flags.writeable = False  # the next batch may be computed on the same parameters
        found = self.function(self.layout.unflatten(flat), rows)
        loss, grad = found if isinstance(found, tuple) and len(found) == 2 else (None, found)
        try:
            fits = dict(Layout.of(grad).shapes) == dict(self.layout.shapes)
            value = self.layout.flatten(grad).astype(self.dtype, copy=False) if fits else None
            loss = None if loss is None else float(loss)
        except (TypeError, ValueError):
            value = None
        if value is None:
            raise BadGradient(
                "gradient(model, rows) must return the model's arrays, summed over the rows, or"
                f" (loss_sum, those); the model is {self.layout}, it returned"
                f" {_describe_found(found)}"
            )
        return Gradient(value, float(len(rows)), len(rows), loss)


def _describe_found(found: Any) -> str:
    try:
        if not isinstance(found, tuple | list):
            return str(Layout.of(found))
    except ValueError:
        pass
    names = f" with the names {list(found)}" if isinstance(found, Mapping) else ""
    return f"a {type(found).__name__}{names}"

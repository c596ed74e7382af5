"""Batches of a partition's blocks: a function of (seed, epoch, partition, number)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import vstack

from sparkdist.blocks import Block

__all__ = ["Batches", "Order"]


class Order:
    """Which rows of one worker are in which batch of an epoch.

    Each epoch is a permutation of the worker's own rows, drawn from
    ``SeedSequence([seed, epoch, partition])``: sampling without replacement inside a partition,
    and none across partitions (ALGORITHMS: block shuffle).  The last batch may be shorter.

    A batch that is asked for again, by a retried task for instance, is the same batch.
    """

    def __init__(self, n_rows: int, batch_size: int, *, seed: int, partition: int):
        self.n_rows, self._size = n_rows, batch_size
        self._seed, self._partition = seed, partition
        self.per_epoch = -(-n_rows // batch_size)
        self._epoch, self._order = -1, np.empty(0, dtype=np.intp)

    def rows(self, epoch: int, number: int) -> NDArray[np.intp]:
        """Return the rows of batch ``number`` of an epoch, sorted: so they are read as they lie."""
        if epoch != self._epoch:
            stream = np.random.SeedSequence([self._seed, epoch, self._partition])
            self._order = np.random.default_rng(stream).permutation(self.n_rows)
            self._epoch = epoch
        return np.sort(self._order[number * self._size : (number + 1) * self._size])


class Batches:
    """The batches of a partition's blocks, in the order of :class:`Order`."""

    def __init__(self, blocks: Sequence[Block], batch_size: int, *, seed: int, partition: int):
        self._blocks = blocks
        self._starts = np.cumsum([0, *(len(block.y) for block in blocks)])
        n_rows = int(self._starts[-1])
        self._order = Order(n_rows, batch_size, seed=seed, partition=partition)
        self.n_rows, self.per_epoch = n_rows, self._order.per_epoch

    def get(self, epoch: int, number: int) -> Block:
        """Return batch ``number`` of an epoch."""
        return self._gather(self._order.rows(epoch, number))

    def _gather(self, rows: NDArray[np.intp]) -> Block:
        cuts = np.searchsorted(rows, self._starts)
        parts = [
            (block, rows[first:last] - start)
            for block, start, first, last in zip(
                self._blocks, self._starts, cuts[:-1], cuts[1:], strict=False
            )
            if last > first
        ]
        y = np.concatenate([block.y[of] for block, of in parts])
        weight = np.concatenate([block.weight[of] for block, of in parts])
        if not isinstance(parts[0][0].X, np.ndarray):
            return Block(vstack([block.X[of] for block, of in parts], format="csr"), y, weight)
        X = np.empty((len(rows), parts[0][0].X.shape[1]), parts[0][0].X.dtype)
        filled = 0
        for block, of in parts:
            np.take(block.X, of, axis=0, out=X[filled : filled + len(of)])
            filled += len(of)
        return Block(X, y, weight)

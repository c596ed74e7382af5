"""Ingest: from a partition's rows, however they come, to blocks on the executor.

This runs in Spark's Python workers.  Each converter gives chunks of rows as blocks, and
:func:`keep` checks them, cuts them to size and writes them.  Bad rows do not fail the task, which
Spark would repeat three times in vain: they are noted in the partition's handle, and the
driver raises one :class:`~sparkdist.errors.BadData` for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from sparkdist.blocks import Block, Matrix
from sparkdist.spark.data.residency import BlockFile, Place

__all__ = ["BLOCK_BYTES", "MAX_LABELS", "PORTION", "BadRow", "Handle", "keep"]

#: Size of a block: its second product with X finds X in the processor's cache, and the calls
#: cost little.  Measured on 0.25 to 16 MiB, at d = 100 and d = 784: 2 MiB is best, 1.5 to 4
#: within 2 %, 16 a fifth slower.
BLOCK_BYTES = 2 << 20
#: Blocks in a portion, whose sums are one result of a resident worker: some milliseconds of work.
PORTION = 8
#: At most so many rows a block, so that the vectors of a loss stay below the 128 KiB from which
#: on malloc maps fresh pages for each: 8-18 against 56-63 ns a row.
_BLOCK_ROWS = 16_000
#: A partition with more distinct labels than this is taken to have real-valued ones.
MAX_LABELS = 64


class BadRow(Exception):
    """Row ``row`` of the current chunk cannot be used; ``what`` says why."""

    def __init__(self, row: int, what: str):
        super().__init__(row, what)
        self.row, self.what = int(row), what


class Handle(NamedTuple):
    """What Spark caches for a partition in place of its rows: a few hundred bytes."""

    place: Place
    n_blocks: int
    n_rows: int
    n_features: int | None
    weight_sum: float
    unit_weights: bool
    labels: tuple[float, ...] | None
    problem: str | None


@dataclass
class _Tally:
    n_rows: int = 0
    n_features: int | None = None
    weight_sum: float = 0.0
    unit_weights: bool = True
    labels: frozenset[float] | None = frozenset()

    def add(self, block: Block) -> None:
        self.n_rows += len(block.y)
        self.n_features = block.X.shape[1]
        self.weight_sum += float(block.weight.sum())
        self.unit_weights = self.unit_weights and bool((block.weight == 1.0).all())
        if self.labels is not None:
            merged = self.labels.union(np.unique(block.y).tolist())
            self.labels = merged if len(merged) <= MAX_LABELS else None


def keep(
    chunks: Iterable[Block], dataset: str, partition: int, dtype: DTypeLike = np.float64
) -> Handle:
    """Check the chunks of a partition and write them as blocks of about ``BLOCK_BYTES``.

    The features are written in ``dtype``, labels and weights as they are: in float64.
    """
    tally, problem, rest = _Tally(), None, iter(chunks)
    file = BlockFile(dataset, partition)
    try:
        with file:
            for chunk in rest:
                _check(chunk, tally.n_features)
                for block in _cut(chunk, np.dtype(dtype)):
                    file.append(block)
                    tally.add(block)
    except BadRow as bad:
        problem = f"partition {partition}, row {tally.n_rows + bad.row}: {bad.what}"
    labels = None if tally.labels is None else tuple(sorted(tally.labels))
    return Handle(
        file.place,
        file.n_blocks,
        tally.n_rows,
        tally.n_features,
        tally.weight_sum,
        tally.unit_weights,
        labels,
        problem,
    )


def _check(chunk: Block, n_features: int | None) -> None:
    """Raise BadRow for the first row that no objective could use."""
    X, y, weight = chunk
    if n_features is not None and X.shape[1] != n_features:
        raise BadRow(0, f"has {X.shape[1]} features, the rows before it have {n_features}")
    for name, values in (("feature", X), ("label", y), ("weight", weight)):
        row = _first_not_finite(values)
        if row is not None:
            raise BadRow(row, f"a {name} is NaN or infinite")
    if (weight < 0).any():
        row = int(np.argmax(weight < 0))
        raise BadRow(row, f"the weight is negative: {weight[row]:g}")


def _first_not_finite(values: Matrix) -> int | None:
    """Return the row of the first value that is NaN or infinite, or None."""
    flat = values if isinstance(values, np.ndarray) else values.data
    # A sum shows in one fast pass that all is well; only a bad or an overflowing one looks twice.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(flat.sum()):
            return None
    bad = np.flatnonzero(~np.isfinite(flat.ravel()))
    if not bad.size:
        return None
    if isinstance(values, np.ndarray):
        return int(bad[0]) // (values.shape[1] if values.ndim == 2 else 1)
    return int(np.searchsorted(values.indptr, bad[0], side="right")) - 1


def _cut(chunk: Block, dtype: np.dtype[Any]) -> Iterator[Block]:
    """Cut rows into equal blocks of at most about ``BLOCK_BYTES``, with features of a dtype."""
    X, y, weight = chunk
    n_rows = len(y)
    n_values, n_bytes = (X.size, 0) if isinstance(X, np.ndarray) else (X.nnz, X.indices.nbytes)
    n_bytes += n_values * dtype.itemsize
    # Each sparse block adds a dense gradient of d: with d = 5 million, small ones took 0.7 s, and
    # one of as many bytes as the gradient 0.06 s.
    d = 0 if isinstance(X, np.ndarray) else X.shape[1]
    by_bytes, by_rows = max(BLOCK_BYTES, 8 * d), max(_BLOCK_ROWS, d)
    n_blocks = min(n_rows, max(1, -(-n_bytes // by_bytes), -(-n_rows // by_rows)))
    edges = np.linspace(0, n_rows, n_blocks + 1).astype(int) if n_rows else [0]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        yield Block(_converted(X[start:stop], dtype), y[start:stop], weight[start:stop])


def _converted(X: Matrix, dtype: np.dtype[Any]) -> Matrix:
    """Features in a dtype; BadRow, counted in these rows, for the first that it cannot hold."""
    with np.errstate(over="ignore"):
        found = X.astype(dtype, copy=False)
    row = _first_not_finite(found) if found.dtype.itemsize < X.dtype.itemsize else None
    if row is not None:
        raise BadRow(row, f"a feature is too large for {dtype}: above 3.4e38 in magnitude")
    return found

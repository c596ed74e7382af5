"""From Arrow record batches to blocks, without a Python object a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from sparkdist.blocks import Array, Block, Matrix
from sparkdist.spark.data.ingest import BadRow

__all__ = ["Columns", "feature_matrix"]

_DENSE = 1  # the type field of Spark's VectorUDT: 0 is sparse, 1 is dense


@dataclass(frozen=True)
class Columns:
    """How features, label and weight lie in a batch: the features first, then the others.

    ``kind`` of the features is ``vector`` (type, size, indices and values of Spark's vectors),
    ``array`` (one list column) or ``columns`` (``n_features`` numeric columns).
    """

    kind: str
    n_columns: int
    has_weight: bool = False

    def blocks(self, batches: Iterable[pa.RecordBatch]) -> Iterator[Block]:
        """Turn batches into blocks, each as large as its batch."""
        for batch in batches:
            if batch.num_rows:
                yield self._block(batch)

    def _block(self, batch: pa.RecordBatch) -> Block:
        arrays = batch.columns
        X = feature_matrix(self.kind, arrays[: self.n_columns])
        y = _numbers(arrays[self.n_columns], "the label")
        weight = _numbers(arrays[-1], "the weight") if self.has_weight else np.ones(len(y))
        return Block(X, y, weight)


def feature_matrix(kind: str, arrays: list[pa.Array]) -> Matrix:
    """Stack feature columns into X of shape (n, d), CSR where a vector is sparse.

    Raises
    ------
    BadRow
        For nulls and rows of different length.
    """
    if kind == "columns":
        return np.column_stack([_numbers(array, "a feature") for array in arrays])
    if kind == "array":
        offsets, values = _lists(arrays[0], "the features")
        return values.reshape(len(offsets) - 1, _common_length(np.diff(offsets)))
    types, sizes, indices, values = arrays
    _refuse_nulls(types, "the features")
    dense = types.to_numpy() == _DENSE
    return _dense(values) if dense.all() else _sparse(dense, sizes, indices, values)


def _dense(values: pa.Array) -> Array:
    offsets, flat = _lists(values, "the features")
    return flat.reshape(len(offsets) - 1, _common_length(np.diff(offsets)))


def _sparse(dense: Any, sizes: pa.Array, indices: pa.Array, values: pa.Array) -> csr_array:
    """CSR from a column that has sparse vectors, and perhaps dense ones among them."""
    indptr, data = _lists(values, "the features")
    if dense.any():
        # A dense row has no indices; in Spark's Parquet files their list is null.
        indices = pc.if_else(dense, pa.scalar([], indices.type), indices)
    positions, columns = _lists(indices, "the features", dtype=np.int32)
    n_values, n_indices = np.diff(indptr), np.diff(positions)
    d = _common_length(np.where(dense, n_values, sizes.fill_null(0).to_numpy()))
    if (wrong := ~dense & (n_indices != n_values)).any():
        row = int(np.argmax(wrong))
        raise BadRow(row, f"has {n_indices[row]} indices for {n_values[row]} values")
    if dense.any():
        parts = np.split(columns, positions[1:-1])
        columns = np.concatenate(
            [np.arange(d) if full else c for full, c in zip(dense, parts, strict=True)]
        )
    if (outside := (columns < 0) | (columns >= d)).any():
        first = int(np.argmax(outside))
        raise BadRow(_row_of(first, indptr), f"has an index {columns[first]} of {d} features")
    return csr_array(
        (data, columns.astype(np.int32), indptr.astype(np.int32)), shape=(len(dense), d)
    )


def _common_length(lengths: Array) -> int:
    different = np.flatnonzero(lengths != lengths[0])
    if different.size:
        row = different[0]
        raise BadRow(row, f"has {lengths[row]} features, the rows before it have {lengths[0]}")
    return int(lengths[0])


def _lists(array: pa.Array, what: str, dtype: type = np.float64) -> tuple[Any, Any]:
    """Offsets, from 0, and flat values of a list column."""
    _refuse_nulls(array, what)
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    offsets = array.offsets.to_numpy()
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    offsets = offsets - offsets[0]
    if values.null_count:
        first = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise BadRow(_row_of(first, offsets), f"a null in {what}")
    return offsets, values.to_numpy(zero_copy_only=False).astype(dtype, copy=False)


def _row_of(value: int, offsets: Array) -> int:
    """Return the row whose list holds a flat value."""
    return int(np.searchsorted(offsets, value, side="right")) - 1


def _numbers(array: pa.Array, what: str) -> Array:
    _refuse_nulls(array, what)
    if not pa.types.is_float64(array.type):
        # As Spark casts: whole numbers above 2^53 are rounded, not refused.
        array = pc.cast(array, pa.float64(), safe=False)
    return array.to_numpy()


def _refuse_nulls(array: pa.Array, what: str) -> None:
    if array.null_count:
        row = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise BadRow(row, f"{what} {'are' if what.endswith('s') else 'is'} null")

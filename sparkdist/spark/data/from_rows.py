"""From the elements of an RDD, rows or ready blocks, to blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike
from scipy.sparse import csr_array, issparse

from sparkdist.blocks import Array, Block, Matrix, reals
from sparkdist.spark.data.ingest import BLOCK_BYTES, BadRow

__all__ = ["blocks_of_elements"]


class _Row(NamedTuple):
    """One row: ``indices`` is None where it is dense."""

    indices: Array | None
    values: Array
    size: int
    y: float
    weight: float


def blocks_of_elements(elements: Iterable[Any], dtype: DTypeLike = np.float64) -> Iterator[Block]:
    """Give blocks for elements that are rows or ready blocks.

    A row is ``(x, y)``, ``(x, y, weight)``, a ``LabeledPoint`` or a DataFrame's Row of two fields,
    or of features, label and weight; x is a sequence of numbers, a
    Spark vector or a sparse row of SciPy.  A ready block is ``(X, y)`` or ``(X, y, weight)``
    with X of shape (n, d), an array or any SciPy sparse matrix.  Rows become blocks that are
    about as large as they should be in ``dtype``, but of float64; a block keeps its float32.

    Raises
    ------
    BadRow
        For an element that is none of these, and for rows of different length.
    """
    pending: list[_Row] = []
    n_bytes, enough = 0, BLOCK_BYTES * 8 // np.dtype(dtype).itemsize
    for element in elements:
        x, y, weight = _parts(element, len(pending))
        ready = np.ndim(y) == 1
        if ready or n_bytes >= enough:
            yield from _flush(pending)
            pending, n_bytes = [], 0
        if ready:
            yield _ready(x, y, weight)
        else:
            pending.append(_row(x, y, weight, len(pending)))
            n_bytes += pending[-1].values.nbytes + 16  # of label and weight
    yield from _flush(pending)


def _parts(element: Any, row: int) -> tuple[Any, Any, Any]:
    """Take an element apart into features, label and weight."""
    if names := getattr(element, "__fields__", None):  # a Row of a DataFrame
        _refuse_other_names(names, row)
    if hasattr(element, "features") and hasattr(element, "label"):
        return element.features, element.label, getattr(element, "weight", 1.0)
    if isinstance(element, tuple | list) and len(element) == 2:
        return element[0], element[1], 1.0
    if isinstance(element, tuple | list) and len(element) == 3:
        return element[0], element[1], element[2]
    raise BadRow(
        row,
        f"is a {type(element).__name__}; an element of the RDD must be (x, y), (x, y, weight),"
        " a LabeledPoint, or a block (X, y) or (X, y, weight) of arrays",
    )


def _refuse_other_names(names: Sequence[str], row: int) -> None:
    """Refuse a Row whose third number nobody said to be a weight, or not to be one."""
    roles = {"features", "label", "weight"}
    if len(names) > 2 and not roles <= set(names):
        raise BadRow(
            row,
            f"has the fields {list(names)}, of which one may be the weight: give the DataFrame"
            " itself, with features=..., label=... and weight=..., or tuples (x, y) or"
            " (x, y, weight)",
        )


def _ready(X: Any, y: Any, weight: Any) -> Block:
    # A pandas DataFrame has no dtype of its own.
    kind = np.float32 if getattr(X, "dtype", None) == np.float32 else np.float64
    try:
        X = csr_array(X, dtype=kind) if issparse(X) else reals(X, kind)
        y, weight = reals(y), reals(weight)
    except (TypeError, ValueError) as error:
        raise BadRow(0, f"a block has arrays that are not numbers ({error})") from None
    if X.ndim != 2 or X.shape[0] != len(y) or weight.shape not in ((), y.shape):
        raise BadRow(0, f"a block has X of shape {X.shape}, y {y.shape} and weight {weight.shape}")
    return Block(X, y, np.broadcast_to(weight, y.shape))


def _row(x: Any, y: Any, weight: Any, row: int) -> _Row:
    numbers = _number(y, "label", row), _number(weight, "weight", row)
    if issparse(x):
        if x.ndim == 2 and 1 not in x.shape:
            raise BadRow(row, f"the features have shape {x.shape}, and the label is one number")
        x = csr_array(x.reshape(1, -1), dtype=np.float64)
        return _Row(x.indices, x.data, x.shape[1], *numbers)
    if hasattr(x, "indices") and hasattr(x, "values"):  # Spark's SparseVector
        return _Row(x.indices, x.values, x.size, *numbers)
    if x is None:
        raise BadRow(row, "the features are null")
    try:
        values = reals(x.toArray() if hasattr(x, "toArray") else x)
    except (TypeError, ValueError) as error:
        raise BadRow(row, f"the features are not numbers ({error})") from None
    if values.ndim != 1:
        raise BadRow(row, f"the features have shape {values.shape}, and the label is one number")
    return _Row(None, values, len(values), *numbers)


def _number(value: Any, what: str, row: int) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadRow(row, f"the {what} is {value!r}, not a number") from None


def _flush(rows: Sequence[_Row]) -> Iterator[Block]:
    """One block of the pending rows; none of no rows."""
    for i, row in enumerate(rows):
        if row.size != rows[0].size:
            raise BadRow(i, f"has {row.size} features, the rows before it have {rows[0].size}")
    if rows:
        y, weight = np.array([row.y for row in rows]), np.array([row.weight for row in rows])
        yield Block(_stack(rows), y, weight)


def _stack(rows: Sequence[_Row]) -> Matrix:
    """X of shape (n, d), dense when every row is."""
    d = rows[0].size
    if all(row.indices is None for row in rows):
        return np.stack([row.values for row in rows])
    indices = [np.arange(d) if row.indices is None else row.indices for row in rows]
    indptr = np.cumsum([0, *(len(i) for i in indices)], dtype=np.int32)
    columns = np.concatenate(indices).astype(np.int32)
    data = np.concatenate([row.values for row in rows])
    return csr_array((data, columns, indptr), shape=(len(rows), d))

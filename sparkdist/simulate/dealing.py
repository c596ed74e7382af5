"""Dealing: which rows each worker has, as on Spark."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array, issparse

from sparkdist.blocks import Block
from sparkdist.fields import whole

__all__ = ["deal"]


def deal(
    data: Any, workers: int | None, problems: list[str]
) -> tuple[list[Block], list[list[Block]]]:
    """Return all rows, and those of each worker: dealt out in order, as on Spark."""
    if isinstance(data, list) and data and all(isinstance(part, Block) for part in data):
        if workers not in (None, len(data)):
            problems.append(f"workers is {workers!r}; there is a block for each of {len(data)}")
        return data, [[part] for part in data]
    try:
        n_workers = whole(1)(workers)
    except ValueError as error:
        problems.append(f"workers {error}")
    if not isinstance(data, tuple) or len(data) not in (2, 3):
        problems.append("data must be (X, y) or (X, y, weight), or a list of a Block a worker")
    if problems:
        return [], []
    X, y, weight = _as_block(*data)
    if X.ndim != 2 or y.ndim != 1 or X.shape[0] != len(y) or weight.shape != y.shape:
        shapes = f"they are {X.shape}, {y.shape} and {weight.shape}"
        problems.append(f"X must be (n, d), y and weight (n,); {shapes}")
        return [], []
    if not len(y):
        problems.append("there are no rows")
    edges = np.linspace(0, len(y), n_workers + 1).astype(int)
    cuts = [slice(start, stop) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    return [Block(X, y, weight)], [[Block(X[cut], y[cut], weight[cut])] for cut in cuts]


def _as_block(X: Any, y: ArrayLike, weight: ArrayLike | None = None) -> Block:
    kind = np.float32 if getattr(X, "dtype", None) == np.float32 else np.float64
    X = csr_array(X, dtype=kind) if issparse(X) else np.asarray(X, dtype=kind)
    y = np.asarray(y, dtype=np.float64)
    return Block(X, y, np.ones(y.shape) if weight is None else np.asarray(weight, np.float64))

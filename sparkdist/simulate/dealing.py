"""Dealing: which rows each worker has, as on Spark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse

from sparkdist.blocks import Block, all_finite, reals
from sparkdist.fields import checked, whole

__all__ = ["deal"]


def deal(
    data: Any, workers: int | None, problems: list[str]
) -> tuple[list[Block], list[list[Block]]]:
    """Return all rows, and those of each worker: dealt out in order, as on Spark."""
    if isinstance(data, list) and data and all(isinstance(part, Block) for part in data):
        if workers not in (None, len(data)):
            problems.append(f"workers is {workers!r}; there is a block for each of {len(data)}")
        if not _fit(data, problems):
            return [], []
        return data, [[part] for part in data]
    n_workers = checked("workers", workers, whole(1), problems)
    if not isinstance(data, tuple) or len(data) not in (2, 3):
        problems.append("data must be (X, y) or (X, y, weight), or a list of a Block a worker")
    if problems:
        return [], []
    rows = _as_block(*data, problems=problems)
    if rows is None or not _fit([rows], problems):
        return [], []
    edges = np.linspace(0, len(rows.y), n_workers + 1).astype(int)
    cuts = [slice(start, stop) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    return [rows], [[Block(*(part[cut] for part in rows))] for cut in cuts]


def _as_block(X: Any, y: Any, weight: Any = None, *, problems: list[str]) -> Block | None:
    kind = np.float32 if getattr(X, "dtype", None) == np.float32 else np.float64
    try:
        X = csr_array(X, dtype=kind) if issparse(X) else reals(X, kind)
        y = reals(y)
        return Block(X, y, np.ones(y.shape) if weight is None else reals(weight))
    except (TypeError, ValueError) as error:
        problems.append(f"X, y and weight must be arrays of numbers: {error}")
        return None


def _fit(blocks: Sequence[Block], problems: list[str]) -> bool:
    """Whether these are rows, as a dataset would say; what is wrong is added to ``problems``."""
    found = [_misshapen(block) for block in blocks if _misshapen(block)][:1]
    found = found or _wrong_values(blocks)
    problems += found
    return not found


def _misshapen(block: Block) -> str:
    X, y, weight = block
    if X.ndim == 2 and y.ndim == 1 and X.shape[0] == len(y) and weight.shape == y.shape:
        return ""
    shapes = f"they are {X.shape}, {y.shape} and {weight.shape}"
    return f"X must be (n, d), y and weight (n,); {shapes}"


def _wrong_values(blocks: Sequence[Block]) -> list[str]:
    found = []
    if len(widths := {block.X.shape[1] for block in blocks}) > 1:
        found.append(f"the blocks have {sorted(widths)} features")
    for name in Block._fields:
        values = [getattr(block, name) for block in blocks]
        if not all(all_finite(v.data if issparse(v) else v.ravel()) for v in values):
            found.append(f"{name} has values that are NaN or infinite")
    if any((block.weight < 0).any() for block in blocks):
        found.append("there are negative weights")
    if not any(len(block.y) for block in blocks):
        found.append("there are no rows")
    elif not any(block.weight.any() for block in blocks):
        found.append("all weights are 0")
    return found

"""What a pass is made of: X w by rows and by BLAS; and how many passes L-BFGS needs by memory."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from common import in_turns, median_ratio, report
from threadpoolctl import threadpool_limits

from sparkdist import Logistic, datasets
from sparkdist.blocks import Block
from sparkdist.objectives._precision import times_vector
from sparkdist.solvers import lbfgs, preconditioned_lbfgs

COLUMNS = (16, 32, 64, 100, 200, 400, 800, 1600)
#: Blocks are as large as those of a data set, and together larger than any cache.
BLOCK_BYTES, ALL_BYTES, ROUNDS = 2 << 20, 256 << 20, 9
MEMORIES = (5, 10, 20, 50, 100)
L2, TOL = 1e-5, 1e-7


def main() -> None:
    """Measure, print and write both tables."""
    with threadpool_limits(1):
        products()
        passes()


def products() -> None:
    """Time X w over all blocks by both ways, in turns."""
    rows = []
    for d in COLUMNS:
        n = BLOCK_BYTES // (8 * d)
        whole = np.random.default_rng(0).normal(size=(ALL_BYTES // BLOCK_BYTES, n, d))
        w = np.full(d, 0.01)
        ways = {
            "BLAS": lambda whole=whole, w=w: [X @ w for X in whole],
            "by rows": lambda whole=whole, w=w: [np.einsum("ij,j->i", X, w) for X in whole],
            "as chosen": lambda whole=whole, w=w: [times_vector(X, w) for X in whole],
        }
        times = in_turns(ways, ROUNDS)
        row: dict[str, Any] = {"X w, columns": d}
        for name, found in times.items():
            row[f"{name}, GB/s"] = round(whole.nbytes / 1e9 / statistics.median(found), 1)
        row["by rows against BLAS"] = round(median_ratio(times["BLAS"], times["by rows"]), 2)
        rows.append(row)
    how = (
        f"Blocks of {BLOCK_BYTES >> 20} MiB of float64, {ALL_BYTES >> 20} MiB in all, so that X"
        f" comes from memory; one thread; medians of {ROUNDS} turns."
    )
    report("products", "Products with the features", rows, [how])


def passes() -> None:
    """Count the passes of L-BFGS over a9a for some numbers of curvature pairs."""
    X, y = datasets.load("a9a")
    block = Block(X, (y > 0).astype(float), np.ones(len(y)))

    def mean(w: Any) -> tuple[float, Any]:
        total = Logistic().value_and_grad(w, block)
        value = total.loss / total.weight + L2 / 2 * float(w @ w)
        return value, total.grad / total.weight + L2 * w

    def metric(w: Any) -> Any:
        return Logistic().metric(w, block) / len(y) + L2 * np.eye(w.size)

    rows = []
    for memory in MEMORIES:
        result = lbfgs(mean, np.zeros(X.shape[1]), memory=memory, tol=TOL, max_iter=2000)
        assert result.success, result.message
        rows.append(
            {"solver": f"lbfgs, memory={memory}", "passes": result.nfev, "iterations": result.nit}
        )
    result = preconditioned_lbfgs(mean, np.zeros(X.shape[1]), metric=metric, tol=TOL)
    assert result.success, result.message
    rows.append(
        {
            "solver": "preconditioned_lbfgs",
            "passes": result.nfev + 1,  # the metric's
            "iterations": result.nit,
        }
    )
    how = f"a9a without an intercept, L2 {L2:g}, to max |gradient| {TOL:g}, in one process."
    report("lbfgs_memory", "Passes of L-BFGS by curvature pairs, and with a metric", rows, [how])


if __name__ == "__main__":
    main()

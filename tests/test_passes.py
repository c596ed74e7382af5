"""A pass: one Spark job, whose sums do not depend on partitions, scheduling or order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark import TaskContext
from pyspark.sql import SparkSession
from scipy.sparse import csr_array

from sparkdist import L2, Dataset, Logistic, Result, Squared, minimize
from sparkdist.blocks import Array, Block, Partial
from sparkdist.spark.engines.aggregate import AggregateEngine
from tests.conftest import random_block
from tests.job_count import counted_jobs

pytestmark = pytest.mark.spark

MODES = pytest.mark.parametrize("deterministic", [True, False])
TABLE = random_block(n=40, d=5, seed=2)
W, V = np.linspace(-1, 1, 5), np.array([1.0, 0.0, -2.0, 3.0, 0.5])


def by_hand(block: Block) -> tuple[float, Array, Array]:
    """Loss, gradient and Hessian times V of the weighted rows at W, from the formulas."""
    X, y, weight = block
    p = 1 / (1 + np.exp(-X @ W))
    loss = -np.sum(weight * (y * np.log(p) + (1 - y) * np.log(1 - p)))
    return loss, X.T @ (weight * (p - y)), X.T @ (weight * p * (1 - p) * (X @ V))


# --- A1 and R26: partitions of any size --------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 7, 64])
def test_the_sums_of_a_pass_are_those_of_numpy(n, spark):
    # 40 rows in 64 partitions: 24 are empty, 40 have one row.
    X = csr_array(TABLE.X) if n == 3 else TABLE.X
    loss, grad, Hv = by_hand(TABLE)
    with Dataset.from_arrays(spark, X, TABLE.y, TABLE.weight, n_partitions=n) as data:
        ordered, tree = (AggregateEngine(data, deterministic=mode) for mode in (True, False))
        for found in (engine.value_and_grad(Logistic(), W) for engine in (ordered, tree)):
            assert_allclose([found.loss, found.weight], [loss, TABLE.weight.sum()], rtol=1e-12)
            assert_allclose(found.grad, grad, rtol=1e-12, atol=1e-12 * np.abs(grad).max())
        curved = tree.hessp(Logistic(), W, V)
        metric = tree.metric(Squared(), W)
    assert_allclose(curved.grad, Hv, rtol=1e-12, atol=1e-12 * np.abs(Hv).max())
    gram = TABLE.X.T @ (TABLE.weight[:, None] * TABLE.X)
    assert_allclose(metric.grad, gram, rtol=1e-12, atol=1e-12 * gram.max())
    assert_allclose(curved.weight, TABLE.weight.sum(), rtol=1e-12)


@MODES
def test_partitions_of_no_one_two_and_997_rows_weigh_by_their_rows(deterministic, spark):
    block = random_block(n=1000, d=5, seed=3)
    cuts = [(0, 0), (0, 1), (1, 3), (3, 1000)]
    parts = [[Block(*(array[i:j] for array in block))] if j > i else [] for i, j in cuts]
    rdd = spark.sparkContext.parallelize(parts, 4).flatMap(lambda blocks: blocks)
    with Dataset.from_rdd(rdd) as data:
        assert (data.n_partitions, data.n_rows) == (4, 1000)
        found = AggregateEngine(data, deterministic=deterministic).value_and_grad(Logistic(), W)
    loss, grad, _ = by_hand(block)
    assert_allclose([found.loss, *found.grad], [loss, *grad], rtol=1e-12, atol=1e-12 * loss)


def test_a_row_of_weight_three_is_three_rows_and_of_weight_zero_none(spark):
    times = np.random.default_rng(0).integers(0, 4, 40)
    repeated = [np.repeat(array, times, axis=0) for array in TABLE[:2]]
    options = {"penalty": L2(0.1), "intercept": True, "tol": 1e-10, "method": "newton_cg"}
    with (
        Dataset.from_arrays(spark, TABLE.X, TABLE.y, times, n_partitions=3) as weighted,
        Dataset.from_arrays(spark, *repeated, n_partitions=2) as plain,
    ):
        assert weighted.weight_sum == plain.n_rows == times.sum()
        a, b = (minimize("logistic", data, **options) for data in (weighted, plain))
    assert_allclose(a.fun, b.fun, rtol=1e-12)
    assert_allclose(a.x["weights"], b.x["weights"], atol=1e-9)
    assert_allclose(a.x["intercept"], b.x["intercept"], atol=1e-9)


# --- B3: jobs ----------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("method", ["lbfgs", "newton_cg"])
def test_a_pass_is_one_job(method, deterministic, spark):
    with Dataset.from_arrays(spark, *TABLE, n_partitions=7) as data:
        with counted_jobs(spark.sparkContext) as jobs:
            options = {"penalty": L2(0.1), "deterministic": deterministic, "tol": 1e-3}
            found = minimize("logistic", data, method=method, **options)
        assert len(jobs) == found.passes > found.nit > 1


def test_an_ingest_is_one_job(spark):
    with counted_jobs(spark.sparkContext) as jobs:
        data = Dataset.from_arrays(spark, *TABLE, n_partitions=3)
    data.unpersist()
    assert len(jobs) == 1


# --- scheduling ----------------------------------------------------------------------------------


class Late(Logistic):
    """Logistic loss that is late on partitions of one parity, and books who ends when."""

    def __init__(self, parity: int, book: Path):
        self.parity, self.book = parity, book

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        context = TaskContext.get()
        assert context is not None
        until = time.perf_counter() + 0.02 * (context.partitionId() % 2 == self.parity)
        while time.perf_counter() < until:
            pass
        with open(self.book, "a") as book:
            book.write(f"{context.partitionId()}\n")
        return super().value_and_grad(w, block)


@pytest.fixture(scope="module", params=[7, 20])
def wide(request, spark: SparkSession) -> Iterator[Dataset]:
    """Rows whose sums depend on the order of the additions."""
    with Dataset.from_arrays(spark, *random_block(1000, 8, 4), n_partitions=request.param) as data:
        yield data


@pytest.fixture
def solve(wide: Dataset, tmp_path: Path) -> Callable[..., tuple[Result, list[str]]]:
    """A short run with delays: its result, and the order in which partitions ended."""

    def run(parity: int, deterministic: bool) -> tuple[Result, list[str]]:
        book = tmp_path / f"{parity}-{deterministic}"
        options = {"penalty": L2(1e-3), "max_iter": 2, "deterministic": deterministic}
        return minimize(Late(parity, book), wide, **options), book.read_text().split()

    return run


def test_runs_are_equal_bit_by_bit_if_asked_and_else_but_for_rounding(solve):
    (a, order_a), (b, order_b), (c, _) = solve(0, True), solve(1, True), solve(1, False)
    assert order_a != order_b
    assert sorted(order_a) == sorted(order_b)
    assert_array_equal(a.x, b.x)
    assert_array_equal(a.jac, b.jac)
    assert_array_equal(a.history.fun, b.history.fun)
    assert_allclose(c.fun, a.fun, rtol=1e-13)
    assert_allclose(c.x, a.x, rtol=1e-10)

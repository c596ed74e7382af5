"""minimize reaches the known optima of a9a, from every source, however the rows lie."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.linear_model import LogisticRegression

from sparkdist import L1, L2, Dataset, datasets, minimize
from sparkdist.blocks import Array, Block
from tests.conftest import random_block

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark(spark_alone: SparkSession) -> SparkSession:
    """A session whose blocks are in ``folder``."""
    return spark_alone


# Mean logistic loss over the 32,561 rows of a9a, no intercept, plus a penalty.  Established with
# solvers that share no code with ours: A-L2 by scikit-learn's newton-cg and SciPy's L-BFGS-B,
# which agree to 1e-14; A-L2s by SciPy; A-L1 and A-L1b with liblinear; A-NN by SciPy with bounds.
# The tolerance is what the optimum to 1e-10 takes.
PROBLEMS: dict[str, dict[str, Any]] = {
    "A-L2": {"penalty": L2(1e-3), "tol": 1e-8},
    "A-L2s": {"penalty": L2(1e-5), "tol": 1e-7},
    "A-L1": {"penalty": L1(1e-3), "tol": 1e-7},
    "A-L1b": {"penalty": L1(1e-2), "tol": 1e-7},
    "A-NN": {"penalty": L2(1e-3), "tol": 1e-8, "bounds": [(0, None)] * 123},
}
OPTIMA = {
    "A-L2": 0.33334075206872,
    "A-L2s": 0.32293307671398,
    "A-L1": 0.3470350693730,
    "A-L1b": 0.4375184633370,
    "A-NN": 0.688462065722,
}
NON_ZEROS = {"A-L1": 39, "A-L1b": 14, "A-NN": 5}


# --- layouts: every source in 1, 2, 3 and 7 partitions, some of which are empty ---------------


def a9a_frame(spark: SparkSession) -> DataFrame:
    path = str(files(datasets) / "a9a" / "train.libsvm.gz")
    return spark.read.format("libsvm").option("numFeatures", 123).load(path)


def from_dataframe(spark: SparkSession, folder: Path, n: int) -> Dataset:
    # Rows with n - 1 different keys cannot fill n partitions.
    keyed = a9a_frame(spark).withColumn("key", F.monotonically_increasing_id() % max(n - 1, 1))
    return Dataset.from_dataframe(keyed.repartition(n, "key"))


def from_rdd(spark: SparkSession, folder: Path, n: int) -> Dataset:
    X, y = datasets.load("a9a")
    edges = np.linspace(0, len(y), max(n, 2)).astype(int)
    blocks = [(X[i:j], y[i:j]) for i, j in zip(edges[:-1], edges[1:], strict=True)]
    return Dataset.from_rdd(spark.sparkContext.parallelize(blocks, n))


def from_parquet(spark: SparkSession, folder: Path, n: int) -> Dataset:
    path = str(folder / f"a9a-{n}")
    a9a_frame(spark).repartition(max(n - 1, 1)).write.parquet(path)  # a row group each
    return Dataset.from_parquet(spark, path, n_partitions=n)


MAKERS = {"dataframe": from_dataframe, "rdd": from_rdd, "parquet": from_parquet}


@pytest.fixture(scope="module")
def layout(spark: SparkSession, folder: Path) -> Iterator[Callable[[str, int], Dataset]]:
    """Give a9a from a source in so many partitions."""
    with ExitStack() as stack:

        @functools.cache
        def make(source: str, n: int) -> Dataset:
            return stack.enter_context(MAKERS[source](spark, folder, n))

        yield make


# --- the optima -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sklearn_answer(a9a: Block) -> Array:
    """The weights of A-L2 by scikit-learn, whose C is 1 / (n lambda)."""
    C = 1 / (len(a9a.y) * 1e-3)
    solver = LogisticRegression(C=C, fit_intercept=False, solver="newton-cg", tol=1e-10)
    return solver.fit(a9a.X, a9a.y).coef_[0]


@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow), 3, 7])
@pytest.mark.parametrize("source", MAKERS)
def test_the_answer_of_another_solver_is_the_optimum_of_every_layout(
    source, n, layout, sklearn_answer
):
    data = layout(source, n)
    filled = data.visit(lambda partition, blocks: partition)
    assert (data.n_rows, data.n_features, data.n_partitions) == (32561, 123, n)
    # Row groups of Parquet that are too few are cut.
    all_filled = n == 1 or source == "parquet"
    assert len(filled) == n if all_filled else 0 < len(filled) < n
    found = minimize("logistic", data, sklearn_answer, penalty=L2(1e-3), tol=1e-8)
    assert_allclose(found.fun, OPTIMA["A-L2"], rtol=1e-12)
    assert (found.passes, found.nit) == (1, 0), found.message


RUNS = [
    ("A-L2", "newton_cg", "dataframe", 3, "aggregate"),
    ("A-L1b", "owlqn", "dataframe", 1, "aggregate"),
    ("A-NN", "lbfgs", "dataframe", 3, "aggregate"),
    # Of many passes, 600 for A-L2s: as many Spark jobs take most of a minute.
    ("A-L2s", "newton_cg", "rdd", 3, "resident"),
    ("A-L1b", "gd", "parquet", 3, "resident"),
]
#: The same by jobs, on other layouts; A-L1 is also among the tests of the resident engine.
BY_JOBS = [
    pytest.param(*run, "aggregate", marks=pytest.mark.slow)
    for run in [
        ("A-L2", "newton_cg", "rdd", 1),
        ("A-L2s", "newton_cg", "rdd", 2),
        ("A-L1", "owlqn", "parquet", 3),
        ("A-L1b", "gd", "parquet", 2),
        ("A-NN", "lbfgs", "parquet", 7),
    ]
]


@pytest.mark.parametrize(("problem", "method", "source", "n", "engine"), [*RUNS, *BY_JOBS])
def test_the_known_optimum_is_reached(problem, method, source, n, engine, layout):
    data = layout(source, n)
    found = minimize("logistic", data, method=method, engine=engine, **PROBLEMS[problem])
    data.free_slots()
    assert found.success, found.message
    assert_allclose(found.fun, OPTIMA[problem], rtol=1e-10)
    assert np.count_nonzero(found.x) == NON_ZEROS.get(problem, 123)


def mean_error_on_test_set(w: Array) -> float:
    X, y = datasets.load("a9a", "test")
    return float(np.mean(np.sign(X @ w) != y))


def my_loss(w, X, y):
    """Logistic loss in five lines."""
    z = y * (X @ w)
    odds = np.exp(-np.abs(z))
    loss = np.log1p(odds) + np.maximum(-z, 0)
    slope = -y * np.where(z > 0, odds, 1) / (1 + odds)
    return loss.sum(), X.T @ slope


def test_a_loss_of_ones_own_reaches_the_same_optimum(layout):
    data = layout("rdd", 3)
    found = minimize(my_loss, data, np.zeros(123), engine="resident", **PROBLEMS["A-L2"])
    data.free_slots()
    assert_allclose(found.fun, OPTIMA["A-L2"], rtol=1e-10)
    assert_allclose(mean_error_on_test_set(found.x), 0.14882, atol=5e-6)


# --- what surrounds a run, on small data ------------------------------------------------------

SMALL = random_block(n=200, d=3, seed=5)


@pytest.fixture(scope="module")
def small(spark: SparkSession) -> Iterator[Dataset]:
    with Dataset.from_arrays(spark, *SMALL, n_partitions=3) as data:
        yield data


def my_loss_with_intercept(model, X, y, weight):
    m = X @ model["w"] + model["b"]
    slope = weight * (1 / (1 + np.exp(-m)) - y)
    return weight @ (np.log1p(np.exp(m)) - y * m), {"w": X.T @ slope, "b": slope.sum()}


def test_a_model_of_named_arrays_equals_an_intercept(small):
    start = {"w": np.zeros(3), "b": 0.0}
    options = {"penalty": L2(0.1), "tol": 1e-9}
    mine = minimize(my_loss_with_intercept, small, start, unpenalized=("b",), **options)
    builtin = minimize("logistic", small, intercept=True, **options)
    assert_allclose(mine.fun, builtin.fun, rtol=1e-12)
    assert_allclose(mine.x["w"], builtin.x["weights"], atol=1e-8)
    assert_allclose(mine.x["b"], builtin.x["intercept"], atol=1e-8)
    assert mine.x["b"].shape == ()
    penalized = minimize(my_loss_with_intercept, small, start, **options)
    assert penalized.fun > mine.fun + 1e-6


@pytest.mark.parametrize("intercept", [False, True])
def test_a_warm_start_is_at_the_optimum_at_once(intercept, small):
    first = minimize("logistic", small, penalty=L2(0.1), intercept=intercept)
    again = minimize("logistic", small, first.x, penalty=L2(0.1), intercept=intercept)
    assert isinstance(first.x, dict) is intercept
    assert (again.nit, again.passes) == (0, 1)
    assert again.fun == first.fun


@pytest.mark.parametrize("form", ["frame", "rdd"])
def test_a_frame_and_an_rdd_are_ingested_for_the_call_alone(form, small, spark, folder):
    before = set(folder.rglob("sparkdist-*"))
    rows = list(zip(SMALL.X.tolist(), SMALL.y.tolist(), strict=True))
    schema = "features array<double>, label double"
    rdd = spark.sparkContext.parallelize(rows, 2)
    data = rdd if form == "rdd" else spark.createDataFrame(rdd, schema)
    found = minimize("logistic", data, penalty=L2(0.1), tol=1e-9)
    with Dataset.from_arrays(spark, SMALL.X, SMALL.y) as arrays:
        expected = minimize("logistic", arrays, penalty=L2(0.1), tol=1e-9)
    assert_allclose(found.fun, expected.fun, rtol=1e-12)
    assert found.model.features == "features"
    assert set(folder.rglob("sparkdist-*")) == before


def test_a_callback_sees_each_iteration_in_the_models_shape_and_may_stop(small):
    seen = []

    def stop_at_the_second(state):
        seen.append(state)
        if state.nit == 2:
            raise StopIteration

    found = minimize(
        "logistic", small, penalty=L2(0.1), intercept=True, tol=0, callback=stop_at_the_second
    )
    assert [state.nit for state in seen] == [1, 2]
    assert seen[0].x["weights"].shape == seen[0].jac["weights"].shape == (3,)
    assert not found.success
    assert (found.status, found.nit) == (99, 2)
    assert "the callback stopped the run" in found.message
    assert found.fun == seen[-1].fun < seen[0].fun


def test_too_few_iterations_are_no_success(small):
    found = minimize("logistic", small, penalty=L2(0.1), tol=1e-12, max_iter=1)
    assert (found.success, found.status, found.nit) == (False, 1, 1)


@pytest.mark.parametrize("method", ["lbfgs", "newton_cg", "owlqn", "gd"])
def test_the_history_agrees_with_the_books(method, small):
    penalty = L1(0.01) if method == "owlqn" else L2(0.1)
    found = minimize("logistic", small, method=method, penalty=penalty, tol=1e-6)
    history = found.history
    assert len(history) == found.nit + 1
    assert found.passes == found.nfev + found.get("nhev", 0)
    assert history.passes[0] == 1
    assert history.passes[-1] <= found.passes
    assert np.all(np.diff(history.passes) >= 1)
    assert np.all(np.diff(history.seconds) > 0)
    assert 0 < history.seconds[-1] <= found.seconds
    assert_allclose(history.fun[0], np.log(2), rtol=1e-12)  # at w = 0, whatever the data
    assert history.fun[-1] == found.fun
    assert history.grad_norm[-1] == np.abs(found.jac).max() <= 1e-6

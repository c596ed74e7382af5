"""Features in float32: half the bytes, products in float32, sums and all else in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession
from scipy.sparse import csr_array, issparse
from sklearn.datasets import dump_svmlight_file
from sklearn.linear_model import LogisticRegression

from sparkdist import L2, Dataset, minimize
from sparkdist.blocks import Array, Block, Partial
from sparkdist.errors import BadData, InvalidCall
from sparkdist.layout import Layout
from sparkdist.model import Model
from sparkdist.objectives import Logistic, Poisson, Softmax, Squared, UserLoss
from sparkdist.spark.data import ingest, sources
from sparkdist.spark.data.from_rows import blocks_of_elements
from sparkdist.spark.data.ingest import Handle, keep
from sparkdist.spark.data.residency import open_blocks
from tests.conftest import random_block, stack
from tests.test_objectives import LINEAR, name_of, random_problem

LARGEST = float(np.finfo(np.float32).max)  # 3.4028e38
KINDS = pytest.mark.parametrize("to_matrix", [np.asarray, csr_array], ids=["dense", "csr"])


def single(block: Block) -> Block:
    return block._replace(X=block.X.astype(np.float32))


# --- objectives -----------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("linear", LINEAR, ids=name_of)
def test_float32_rows_give_the_sums_of_float64_to_its_precision(linear, intercept, to_matrix):
    w, block = random_problem(linear, n=300, intercept=intercept)
    narrow = single(block._replace(X=to_matrix(block.X)))
    # The same numbers in both, so that only the arithmetic differs.
    wide = narrow._replace(X=narrow.X.astype(np.float64))
    exact, found = linear.value_and_grad(w, wide), linear.value_and_grad(w, narrow)
    assert found.grad.dtype == np.float64
    assert_allclose(found.loss, exact.loss, rtol=1e-5)
    assert_allclose(found.grad, exact.grad, rtol=0, atol=1e-5 * np.abs(exact.grad).max())
    assert found.weight == exact.weight
    assert not np.array_equal(found.grad, exact.grad)  # no detour by float64
    assert linear.scores(w, narrow.X).dtype == np.float64
    if linear.twice:
        exact, found = linear.hessp(w, w, wide), linear.hessp(w, w, narrow)
        assert found.dtype == np.float64
        assert_allclose(found, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


@KINDS
def test_exact_products_make_exact_sums(to_matrix):
    # Multiples of 1/8 with few bits: float32 rounds nothing, and losses are of float64.
    random = np.random.default_rng(5)
    X, w = random.integers(-8, 8, (50, 4)) / 8, random.integers(-8, 8, 4) / 8
    block = Block(to_matrix(X), random.integers(-8, 8, 50) / 8, np.ones(50))
    a, b = (Squared().value_and_grad(w, rows) for rows in (block, single(block)))
    assert a.loss == b.loss
    assert_array_equal(a.grad, b.grad)
    labels = block._replace(y=(block.y > 0).astype(float))
    losses = [Logistic().value_and_grad(w, rows).loss for rows in (labels, single(labels))]
    assert losses[0] == losses[1]


@KINDS
@pytest.mark.parametrize(
    ("objective", "x", "w"),
    [
        (Squared(), 0.5, 1e39),  # w is beyond float32
        (Squared(), 1024.0, 2.0**120),  # only the margin is
        (Poisson(), 4.0, 100.0),  # exp(400) is 5e173: the slope is
        (Softmax(2), 1.0, np.array([[1e39, -1e39]])),
    ],
    ids=["w", "margin", "slope", "softmax"],
)
def test_numbers_beyond_float32_are_computed_with_in_float64(objective, x, w, to_matrix):
    block = Block(to_matrix(np.full((3, 1), x)), np.ones(3), np.ones(3))
    w = np.ravel(w)
    exact, found = (objective.value_and_grad(w, rows) for rows in (block, single(block)))
    assert np.abs(exact.grad).max() > 0
    assert (found.loss, found.weight) == (exact.loss, exact.weight)
    assert_array_equal(found.grad, exact.grad)
    hessp = [objective.hessp(w, w, rows) for rows in (block, single(block))]
    assert_array_equal(*hessp)


def test_an_infinite_parameter_gives_what_it_gives_in_float64():
    block = Block(np.ones((2, 1)), np.ones(2), np.ones(2))
    for rows in (block, single(block)):
        assert Squared().value_and_grad(np.array([np.inf]), rows).loss == np.inf


def test_a_user_loss_gets_the_features_as_they_are():
    seen = []

    def loss(w: Array, X: Array, y: Array) -> tuple[float, Array]:
        seen.append(X.dtype)
        r = X @ w.astype(X.dtype) - y
        return 0.5 * r @ r, X.T @ r

    block = single(random_block(10, 3, seed=0))
    UserLoss(loss, Layout.of(np.zeros(3))).value_and_grad(np.ones(3), block)
    assert set(seen) == {np.dtype(np.float32)}


@KINDS
def test_a_model_predicts_float32_rows_in_float64(to_matrix):
    X = random_block(20, 3, seed=1).X.astype(np.float32)
    w = np.array([0.1, 0.2, 0.3])  # none of them is a float32
    found = Model(Logistic(), w, 3).scores(to_matrix(X))
    assert_allclose(found, X.astype(np.float64) @ w, rtol=1e-14)


# --- blocks ---------------------------------------------------------------------------------


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for blocks, as an executor has one."""
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    return tmp_path


def kept(handle: Handle) -> list[Block]:
    with open_blocks(handle.place) as blocks:
        return list(blocks)


@KINDS
@pytest.mark.parametrize("given", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_features_are_written_in_the_dtype_and_nothing_else_is(executor, dtype, given, to_matrix):
    random = random_block(50, 6, seed=0)
    X = random.X.astype(np.float32)  # exact in both
    blocks = kept(keep([random._replace(X=to_matrix(X.astype(given)))], "data", 0, dtype))
    assert {block.X.dtype for block in blocks} == {np.dtype(dtype)}
    assert {array.dtype for block in blocks for array in block[1:]} == {np.dtype("float64")}
    assert {b.X.indices.dtype for b in blocks if issparse(b.X)} <= {np.dtype("int32")}
    for found, expected in zip(stack(blocks), (X, *random[1:]), strict=True):
        assert_array_equal(found, expected)


@KINDS
def test_float32_takes_half_the_bytes_in_blocks_of_the_same_size(executor, to_matrix):
    n, d = 6000, 100
    chunk = Block(to_matrix(np.ones((n, d))), np.ones(n), np.ones(n))
    handles = {dtype: keep([chunk], dtype, 0, dtype) for dtype in ("float64", "float32")}
    # Of n d values: 8 and 4 bytes each, with 4 more of the index where they are sparse; of each
    # row label and weight, and 4 bytes of where it begins in a sparse block.
    index, start = (0, 0) if to_matrix is np.asarray else (4, 4)
    for dtype, size in (("float64", 8), ("float32", 4)):
        path = executor / dtype / "0.blocks"
        n_bytes = n * d * (size + index)
        assert path.stat().st_size == pytest.approx(n_bytes + n * (16 + start), rel=2e-3)
        assert handles[dtype].n_blocks == -(-n_bytes // ingest.BLOCK_BYTES)


def test_rows_are_gathered_to_blocks_of_the_size_in_float32(executor):
    n, d = 4000, 256  # 3.9 MiB of float32
    rows = ((np.ones(d), 1.0) for _ in range(n))
    handle = keep(blocks_of_elements(rows, "float32"), "data", 0, "float32")
    assert (handle.n_blocks, handle.n_rows) == (2, n)


@KINDS
@pytest.mark.parametrize("value", [3.5e38, -1e300])
@pytest.mark.parametrize("row", [0, 3, 8])
def test_a_feature_too_large_for_float32_is_found(executor, monkeypatch, row, value, to_matrix):
    monkeypatch.setattr(ingest, "BLOCK_BYTES", 32)  # two rows of four
    X = np.ones((9, 4))
    X[row, 2] = value
    good, bad = (Block(to_matrix(A), np.ones(9), np.ones(9)) for A in (np.ones((9, 4)), X))
    handle = keep([good, bad], "data", 3, "float32")
    what = "a feature is too large for float32: above 3.4e38 in magnitude"
    assert handle.problem == f"partition 3, row {9 + row}: {what}"
    assert not any(path.is_file() for path in executor.rglob("*"))
    assert keep([good, bad], "data", 3).problem is None


@KINDS
def test_the_largest_and_the_smallest_numbers_are_accepted(executor, to_matrix):
    X = np.array([[LARGEST, LARGEST], [-LARGEST, 1e-300]])  # whose sum is no float32
    handle = keep([Block(to_matrix(X), np.ones(2), np.ones(2))], "data", 0, "float32")
    assert handle.problem is None
    assert_array_equal(stack(kept(handle))[0], [[LARGEST, LARGEST], [-LARGEST, 0.0]])


def test_a_float32_nan_is_still_a_nan(executor):
    X = np.array([[1.0], [np.nan]], np.float32)
    problem = keep([Block(X, np.ones(2), np.ones(2))], "data", 0, "float32").problem
    assert problem == "partition 0, row 1: a feature is NaN or infinite"


# --- the names of dtypes --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_dtype_is_given_by_name_or_as_that_of_numpy(name):
    for form in (name, np.dtype(name), getattr(np, name)):
        problems: list[str] = []
        assert sources.find_dtype(form, problems) == np.dtype(name)
        assert not problems


@pytest.mark.parametrize(
    "dtype", ["single", "f4", "float16", "", None, 32, float, np.int32, np.dtype("f2"), np.ones(2)]
)
def test_any_other_dtype_is_refused(dtype):
    problems: list[str] = []
    sources.find_dtype(dtype, problems)
    assert problems == [f"dtype must be 'float64' or 'float32'; it is {dtype!r}"]


# --- on Spark -------------------------------------------------------------------------------

N, D = 29, 5
RANDOM = np.random.default_rng(3)
#: Half of them 0, and all exact in single precision.
X = RANDOM.integers(-16, 16, (N, D)) / 8 * RANDOM.integers(0, 2, (N, D))
Y = RANDOM.integers(0, 2, N).astype(float)


def dataframe(spark: SparkSession, X: Array) -> Any:
    rows = list(zip(map(Vectors.dense, X.tolist()), Y.tolist(), strict=True))
    return spark.createDataFrame(spark.sparkContext.parallelize(rows, 2), ["features", "label"])


def from_dataframe(spark: SparkSession, folder: Path, X: Array, dtype: Any) -> Dataset:
    return Dataset.from_dataframe(dataframe(spark, X), dtype=dtype)


def from_rows(spark: SparkSession, folder: Path, X: Array, dtype: Any) -> Dataset:
    rows = list(zip(X.tolist(), Y.tolist(), strict=True))
    return Dataset.from_rdd(spark.sparkContext.parallelize(rows, 2), dtype=dtype)


def from_blocks(spark: SparkSession, folder: Path, X: Array, dtype: Any) -> Dataset:
    blocks = [(X[:9].astype(np.float32), Y[:9]), (csr_array(X[9:]), Y[9:])]
    return Dataset.from_rdd(spark.sparkContext.parallelize(blocks, 2), np.dtype(dtype))


def from_parquet(spark: SparkSession, folder: Path, X: Array, dtype: Any) -> Dataset:
    table = pa.table({"features": pa.array(X.tolist(), pa.list_(pa.float32())), "label": Y})
    pq.write_table(table, folder / "rows.parquet", row_group_size=7)
    return Dataset.from_parquet(spark, str(folder / "rows.parquet"), dtype=dtype)


def from_libsvm(spark: SparkSession, folder: Path, X: Array, dtype: Any) -> Dataset:
    dump_svmlight_file(X, Y, str(folder / "rows.libsvm"), zero_based=False)
    return Dataset.from_libsvm(spark, str(folder / "rows.libsvm"), X.shape[1], dtype=dtype)


def from_arrays(spark: SparkSession, folder: Path, X: Array, dtype: Any) -> Dataset:
    return Dataset.from_arrays(spark, X, Y, n_partitions=3, dtype=dtype)


SOURCES = [from_dataframe, from_rows, from_blocks, from_parquet, from_libsvm, from_arrays]


def copies(partition: int, blocks: Iterator[Block]) -> list[Block]:
    """Blocks that outlive the visit."""
    return [Block(*(array.copy() for array in block)) for block in blocks]


def collect(data: Dataset) -> list[Block]:
    return sum(data.visit(copies), [])


@pytest.mark.spark
@pytest.mark.parametrize("make", SOURCES)
def test_every_source_keeps_its_rows_in_float32(make, spark, tmp_path):
    with make(spark, tmp_path, X, "float32") as data:
        blocks, dtype = collect(data), data.dtype
    assert dtype == np.float32
    assert {block.X.dtype for block in blocks} == {np.dtype("float32")}
    assert {array.dtype for block in blocks for array in block[1:]} == {np.dtype("float64")}
    for found, expected in zip(stack(blocks), (X, Y, np.ones(N)), strict=True):
        assert_array_equal(found, expected)


@pytest.mark.spark
def test_r27_features_too_large_for_float32_are_bad_data(spark, tmp_path):
    big = X.copy()
    big[4, 1] = -1e39
    for make in (from_dataframe, from_rows, from_arrays):
        with pytest.raises(BadData, match=r"partition 0, row 4: a feature is too large for float"):
            make(spark, tmp_path, big, "float32")


@pytest.mark.spark
def test_float32_travels_as_such_and_becomes_float64_exactly(spark):
    wide = random_block(40, 3, seed=2)
    narrow = single(wide)
    for given, dtype in ((narrow, "float32"), (wide, "float64")):
        sent = list(sources.slices_of_arrays(given.X, given.y, None, 2))
        assert {block.X.dtype for block in sent} == {np.dtype(dtype)}
    with Dataset.from_arrays(spark, narrow.X, narrow.y, n_partitions=2) as data:
        blocks = collect(data)
        assert data.dtype == np.float64
    assert {block.X.dtype for block in blocks} == {np.dtype("float64")}
    assert_array_equal(stack(blocks)[0], narrow.X)


def from_no_rdd(spark: SparkSession, folder: Path) -> Dataset:
    return Dataset.from_rdd([1], dtype="half")  # type: ignore[arg-type]


def from_no_dataframe(spark: SparkSession, folder: Path) -> Dataset:
    return Dataset.from_dataframe([1], dtype="half")  # type: ignore[arg-type]


def from_no_column(spark: SparkSession, folder: Path) -> Dataset:
    return Dataset.from_dataframe(dataframe(spark, X), "x", "y", dtype="half")


def from_unequal_arrays(spark: SparkSession, folder: Path) -> Dataset:
    return Dataset.from_arrays(spark, X, Y[1:], n_partitions=-1, dtype="half")


def from_no_file(spark: SparkSession, folder: Path) -> Dataset:
    return Dataset.from_parquet(spark, str(folder / "none"), n_partitions=-1, dtype="half")


def from_no_parquet_column(spark: SparkSession, folder: Path) -> Dataset:
    pq.write_table(pa.table({"label": Y}), folder / "labels.parquet")
    return Dataset.from_parquet(spark, str(folder / "labels.parquet"), dtype="half")


def from_no_text(spark: SparkSession, folder: Path) -> Dataset:
    return Dataset.from_libsvm(spark, str(folder / "none"), dtype="half")


@pytest.mark.spark
@pytest.mark.parametrize(
    ("call", "others"),
    [
        (from_no_rdd, ["an RDD is needed, not a list"]),
        (from_no_dataframe, ["a DataFrame of Spark is needed, not a list"]),
        (from_no_column, ["there is no column 'x'", "there is no column 'y'"]),
        (
            from_unequal_arrays,
            ["X must be (n, d)", "n_partitions must be a whole number of at least 1"],
        ),
        (from_no_file, ["n_partitions must be a whole number of at least 1", "cannot read"]),
        (from_no_parquet_column, ["there is no column 'features'"]),
        (from_no_text, []),
    ],
)
def test_a_wrong_dtype_is_told_with_the_other_problems(call, others, spark, tmp_path):
    with pytest.raises(InvalidCall) as error:
        call(spark, tmp_path)
    expected = sorted([*others, "dtype must be 'float64' or 'float32'; it is 'half'"])
    pairs = zip(sorted(error.value.problems), expected, strict=True)
    assert [problem[: len(start)] for problem, start in pairs] == expected


@pytest.mark.spark
def test_the_optimum_of_a9a_is_reached_from_float32(spark, a9a):
    # A-L2 of DESIGN; 0 and 1 are exact.  The objective is strongly convex with constant l2, so
    # that it is at most |g|^2 / (2 l2) above its minimum: 123 tol^2 / 2e-3 = 2.5e-7.
    with Dataset.from_arrays(spark, a9a.X, a9a.y, n_partitions=2, dtype="float32") as data:
        found = minimize(
            "logistic", data, method="newton_cg", penalty=L2(1e-3), tol=2e-6, engine="resident"
        )
        score = found.model.evaluate(data)
    assert found.success
    assert_allclose(found.fun, 0.33334075206872, rtol=1e-6)
    # A row that float32 puts on the other side of 0 may be one of 32,561.
    predicted = found.model.predict(a9a.X)
    assert_allclose(score["error_rate"], np.mean(predicted != a9a.y), atol=1e-4)
    assert_array_equal(found.model.predict(a9a.X.astype(np.float32)), predicted)


@pytest.mark.spark
def test_the_optimum_of_dense_rows_is_reached_from_float32(spark):
    # The objective is strongly convex with constant l2, so that it is at most |g|^2 / (2 l2)
    # above its minimum.  Each of d coordinates of g is at most tol, and as much again for what
    # float32 does to the sums: d (2 tol)^2 / (2 l2) = 30 * 4e-10 / 0.1 = 1.2e-7.
    l2, tol, d = 0.05, 1e-5, 30
    block = random_block(3000, d, seed=4)
    y = (block.X @ np.linspace(-0.5, 0.5, d) > 0).astype(float)
    C = 1 / (l2 * block.weight.sum())
    with Dataset.from_arrays(
        spark, block.X, y, block.weight, n_partitions=2, dtype=np.float32
    ) as data:
        found = minimize("logistic", data, method="newton_cg", penalty=L2(l2), tol=tol)
    theirs = LogisticRegression(C=C, fit_intercept=False, solver="newton-cg", tol=1e-12)
    theirs.fit(block.X, y, block.weight)

    def objective(w: Array) -> float:
        """In float64, on the rows as they were before they became float32."""
        m = np.where(y > 0, 1.0, -1.0) * (block.X @ w)
        return block.weight @ np.logaddexp(0, -m) / block.weight.sum() + l2 / 2 * (w @ w)

    best = objective(theirs.coef_[0])
    assert found.success
    assert -1e-12 < objective(found.x) - best < 1e-6 * best
    assert_allclose(found.fun, best, rtol=1e-6)


@pytest.mark.spark
@pytest.mark.parametrize("objective", [Logistic(), Softmax(2)], ids=name_of)
def test_both_engines_give_the_same_bits_of_float32_rows(objective, spark):
    table = random_block(400, 6, seed=6)
    options: dict[str, Any] = {"penalty": L2(0.1), "tol": 1e-4, "max_iter": 3, "intercept": True}
    with Dataset.from_arrays(spark, *table, n_partitions=2, dtype="float32") as data:
        resident = minimize(objective, data, engine="resident", **options)
        aggregate = minimize(objective, data, deterministic=True, **options)
    assert resident.fun == aggregate.fun
    for name, values in resident.x.items():
        assert_array_equal(values, aggregate.x[name])


@pytest.mark.spark
def test_a_partial_of_float32_blocks_is_summed_in_float64(spark):
    # 2^24 + 1 is no float32: a sum in float32 would lose the last row.
    rows = np.array([[2.0**24], [1.0]])
    with Dataset.from_arrays(spark, rows, [-1.0, -1.0], n_partitions=2, dtype="float32") as data:

        def gradients(partition: int, blocks: Iterator[Block]) -> Partial:
            total = (Squared().value_and_grad(np.zeros(1), block) for block in blocks)
            return sum(total, Partial.nothing())

        total = sum(data.visit(gradients), Partial.nothing())
    assert total.grad.tolist() == [2.0**24 + 1]


@pytest.mark.spark
def test_at_the_optimum_of_float32_data_lbfgs_says_that_it_has_come_there(
    spark: SparkSession,
) -> None:
    # The objective carries some 1e-9 of noise: a line search in double precision would give up.
    random = np.random.default_rng(0)
    X = random.normal(size=(20_000, 50))
    y = (X @ random.normal(size=50) + random.logistic(size=20_000) > 0).astype(float)
    with Dataset.from_arrays(spark, X, y, dtype="float32", n_partitions=2) as data:
        result = minimize("logistic", data, penalty=L2(1e-2), progress=False)
    assert result.success, result.message

"""Dataset: every source gives its rows, in order, and nothing but its rows."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal
from pyspark.ml.linalg import DenseVector, SparseVector, Vectors
from pyspark.mllib.linalg import Vectors as OldVectors
from pyspark.mllib.regression import LabeledPoint
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from scipy.sparse import coo_array, csc_array, csr_array, csr_matrix, issparse
from sklearn.datasets import dump_svmlight_file

from sparkdist import Dataset
from sparkdist.blocks import Block
from sparkdist.errors import InvalidCall
from tests.conftest import stack

pytestmark = pytest.mark.spark

N, D = 29, 5


def make_table() -> Block:
    """Rows of which half the features are 0; every number is exact in single precision."""
    random = np.random.default_rng(3)
    X = random.integers(-16, 16, (N, D)) / 8 * random.integers(0, 2, (N, D))
    return Block(X, random.integers(0, 3, N).astype(float), random.integers(1, 9, N) / 4)


TABLE = make_table()


def dense(x: np.ndarray) -> DenseVector:
    return Vectors.dense(x.tolist())


def sparse(x: np.ndarray) -> SparseVector:
    at = np.flatnonzero(x)
    return Vectors.sparse(D, at.tolist(), x[at].tolist())


def rows(form: Callable[[np.ndarray], object]) -> list[tuple[object, float, float]]:
    """The table's rows with their features in some form."""
    X, y, weight = TABLE
    return list(zip(map(form, X), y.tolist(), weight.tolist(), strict=True))


def mixture() -> list[tuple[object, float, float]]:
    pairs = zip(rows(dense), rows(sparse), strict=True)
    return [pair[i % 3 != 0] for i, pair in enumerate(pairs)]


NAMES = [f"x{i}" for i in range(D)]


def frame(spark: SparkSession, kind: str) -> DataFrame:
    """The table as a DataFrame in three partitions."""
    vectors = {"dense": rows(dense), "sparse": rows(sparse), "mixture": mixture()}
    if kind in vectors:
        rdd = spark.sparkContext.parallelize(vectors[kind], 3)
        return spark.createDataFrame(rdd, ["features", "label", "weight"])
    rdd = spark.sparkContext.parallelize(rows(np.ndarray.tolist), 3)
    schema = f"features array<{kind}>, label double, weight double"
    return spark.createDataFrame(rdd, schema)


def column_frame(spark: SparkSession) -> DataFrame:
    """Features in columns of different types: what a CSV file or a table in Hive gives."""
    columns = [F.col("features")[i].alias(name) for i, name in enumerate(NAMES)]
    df = frame(spark, "double").select(*columns, "label", "weight")
    narrow = {"x0": F.col("x0").cast("float"), "x1": F.col("x1").cast("decimal(9,3)")}
    return df.withColumns({**narrow, "label": F.col("label").cast("int")})


def from_frame(kind: str) -> Callable[..., Dataset]:
    return lambda spark, folder: Dataset.from_dataframe(frame(spark, kind), weight="weight")


def from_columns(spark: SparkSession, folder: Path) -> Dataset:
    return Dataset.from_dataframe(column_frame(spark), NAMES, weight="weight")


def from_rows(elements: Callable[[], list]) -> Callable[..., Dataset]:
    return lambda spark, folder: Dataset.from_rdd(spark.sparkContext.parallelize(elements(), 3))


def mixed_rows() -> list:
    """Rows in all forms, one after the other."""
    forms = [np.asarray, dense, sparse, np.ndarray.tolist, tuple, csr_array, csr_matrix]
    forms = [*forms, lambda x: OldVectors.dense(x), lambda x: OldVectors.sparse(D, enumerate(x))]
    return [rows(forms[i % len(forms)])[i] for i in range(N)]


def ready(form: Callable) -> Callable[[], list]:
    """Blocks of unequal sizes."""
    X, y, weight = TABLE
    cuts = [(0, 3), (3, 4), (4, 20), (20, N)]
    return lambda: [(form(X[i:j]), y[i:j], weight[i:j]) for i, j in cuts]


def rows_around_a_block() -> list:
    X, y, weight = TABLE
    single = rows(dense)
    return [*single[:4], Block(X[4:6], y[4:6], weight[4:6]), *single[6:]]


def from_spark_parquet(kind: str) -> Callable[..., Dataset]:
    def read(spark: SparkSession, folder: Path) -> Dataset:
        frame(spark, kind).write.parquet(str(folder / "vectors"))
        return Dataset.from_parquet(spark, str(folder / "vectors"), weight="weight")

    return read


def from_arrow(list_type: pa.DataType) -> Callable[..., Dataset]:
    """Two files with row groups of four."""

    def read(spark: SparkSession, folder: Path) -> Dataset:
        table = pa.table(
            {
                "weight": TABLE.weight,
                "x": pa.array(TABLE.X.tolist(), list_type),
                "y": TABLE.y.astype(np.int32),
            }
        )
        paths = [str(folder / "b.parquet"), str(folder / "a.parquet")]
        pq.write_table(table[:9], paths[0], row_group_size=4)
        pq.write_table(table[9:], paths[1], row_group_size=4)
        return Dataset.from_parquet(spark, paths, "x", "y", "weight", n_partitions=3)

    return read


def from_arrow_columns(spark: SparkSession, folder: Path) -> Dataset:
    arrays = dict(zip(NAMES, TABLE.X.T, strict=True))
    arrays["x0"] = arrays["x0"].astype(np.float32)
    table = pa.table({"weight": TABLE.weight, **arrays, "label": TABLE.y.astype(np.int8)})
    pq.write_table(table, folder / "columns.parquet", row_group_size=7)
    path = str(folder / "columns.parquet")
    return Dataset.from_parquet(spark, path, NAMES, weight="weight", n_partitions=2)


def from_matrix(form: Callable) -> Callable[..., Dataset]:
    def read(spark: SparkSession, folder: Path) -> Dataset:
        return Dataset.from_arrays(spark, form(TABLE.X), TABLE.y, TABLE.weight, n_partitions=4)

    return read


SOURCES = {
    "dense vectors": (from_frame("dense"), "dense"),
    "sparse vectors": (from_frame("sparse"), "csr"),
    "a mixture of vectors": (from_frame("mixture"), "csr"),
    "array<double>": (from_frame("double"), "dense"),
    "array<float>": (from_frame("float"), "dense"),
    "columns": (from_columns, "dense"),
    "an RDD of tuples": (from_rows(lambda: rows(np.asarray)), "dense"),
    "an RDD of sparse tuples": (from_rows(lambda: rows(sparse)), "csr"),
    "an RDD of all kinds of rows": (from_rows(mixed_rows), "csr"),
    "dense blocks": (from_rows(ready(np.asarray)), "dense"),
    "sparse blocks": (from_rows(ready(coo_array)), "csr"),
    "rows around a block": (from_rows(rows_around_a_block), "dense"),
    "Parquet of dense vectors": (from_spark_parquet("dense"), "dense"),
    "Parquet of sparse vectors": (from_spark_parquet("sparse"), "csr"),
    "Parquet of a mixture": (from_spark_parquet("mixture"), "csr"),
    "Parquet of lists": (from_arrow(pa.list_(pa.float64())), "dense"),
    "Parquet of single-precision lists": (from_arrow(pa.large_list(pa.float32())), "dense"),
    "Parquet of fixed-size lists": (from_arrow(pa.list_(pa.float64(), D)), "dense"),
    "Parquet of columns": (from_arrow_columns, "dense"),
    "an array": (from_matrix(np.asarray), "dense"),
    "an array in Fortran's order": (from_matrix(np.asfortranarray), "dense"),
    "a CSR array": (from_matrix(csr_array), "csr"),
    "a CSC array": (from_matrix(csc_array), "csr"),
}


def copies(partition: int, blocks: Iterator[Block]) -> list[Block]:
    """Blocks that outlive the visit."""
    return [Block(*(array.copy() for array in block)) for block in blocks]


def collect(data: Dataset) -> list[Block]:
    return sum(data.visit(copies), [])


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_gives_its_rows_in_order(source, spark, tmp_path):
    make, kind = SOURCES[source]
    with make(spark, tmp_path) as data:
        blocks = collect(data)
    for found, expected in zip(stack(blocks), TABLE, strict=True):
        assert_array_equal(found, expected)
    assert {"csr" if issparse(block.X) else "dense" for block in blocks} == {kind}
    assert data.n_rows == N
    assert data.n_features == D
    assert data.weight_sum == TABLE.weight.sum()
    assert data.labels == (0.0, 1.0, 2.0)
    assert not data.unit_weights


def test_labeled_points_and_pairs_weigh_one(spark):
    X, y, _ = TABLE
    points = [LabeledPoint(label, x) for x, label in zip(X, y.tolist(), strict=True)]
    pairs = list(zip(X.tolist(), y.tolist(), strict=True))
    for elements in (points, pairs, [(X, y)]):
        with Dataset.from_rdd(spark.sparkContext.parallelize(elements, 2)) as data:
            found = stack(collect(data))
        assert_array_equal(found[0], X)
        assert_array_equal(found[1], y)
        assert_array_equal(found[2], np.ones(N))
        assert data.unit_weights


def write_libsvm(path: Path) -> str:
    text = io.BytesIO()
    dump_svmlight_file(TABLE.X, TABLE.y, text, zero_based=False)
    path.write_bytes(gzip.compress(text.getvalue()) if path.suffix == ".gz" else text.getvalue())
    return str(path)


@pytest.mark.parametrize("name", ["table.libsvm", "table.libsvm.gz"])
def test_libsvm_text_gives_its_rows_in_order(name, spark, tmp_path):
    with Dataset.from_libsvm(spark, write_libsvm(tmp_path / name)) as data:
        blocks = collect(data)
    X, y, weight = stack(blocks)
    assert all(issparse(block.X) for block in blocks)
    assert_array_equal(X, TABLE.X)
    assert_array_equal(y, TABLE.y)
    assert_array_equal(weight, np.ones(N))


def test_libsvm_text_is_spread_over_partitions_and_told_its_width(spark, tmp_path):
    path = write_libsvm(tmp_path / "table.libsvm.gz")
    with Dataset.from_libsvm(spark, path, n_features=9, n_partitions=4) as data:
        X, y, _ = stack(collect(data))
    assert (data.n_partitions, data.n_features) == (4, 9)
    wide = np.hstack([TABLE.X, np.zeros((N, 4))])
    # repartition deals the rows out in an order of its own.
    assert sorted(map(tuple, np.c_[y, X])) == sorted(map(tuple, np.c_[TABLE.y, wide]))


def test_partitions_are_those_of_the_source(spark, tmp_path):
    with Dataset.from_dataframe(frame(spark, "double")) as data:
        assert data.n_partitions == 3
        assert data.visit(lambda partition, blocks: partition) == [0, 1, 2]
    with Dataset.from_arrays(spark, TABLE.X, TABLE.y) as data:
        assert data.n_partitions == 2  # of local[2]


def test_arrays_are_dealt_out_to_more_partitions_than_there_are_rows(spark):
    X, y = TABLE.X[:3], TABLE.y[:3]
    with Dataset.from_arrays(spark, X, y, n_partitions=7) as data:
        found = stack(collect(data))
        assert (data.n_partitions, data.n_rows, data.n_features) == (7, 3, D)
    assert_array_equal(found[0], X)
    assert_array_equal(found[1], y)


def test_empty_partitions_are_counted_and_left_out(spark):
    # Three elements in five partitions: two of them are empty.
    rdd = spark.sparkContext.parallelize(rows(np.asarray)[:3], 5)
    schema = "features array<double>, label double, weight double"
    df = spark.createDataFrame(rdd.map(lambda row: (row[0].tolist(), *row[1:])), schema)
    for make in (lambda: Dataset.from_rdd(rdd), lambda: Dataset.from_dataframe(df)):
        with make() as data:
            assert (data.n_partitions, data.n_rows) == (5, 3)
            assert len(data.visit(lambda partition, blocks: partition)) == 3
            assert_array_equal(stack(collect(data))[0], TABLE.X[:3])


def test_parquet_with_fewer_row_groups_than_partitions(spark, tmp_path):
    pq.write_table(pa.table({"x": [1.0, 2.0], "label": [0.0, 1.0]}), tmp_path / "one.parquet")
    path = str(tmp_path / "one.parquet")
    with Dataset.from_parquet(spark, path, ["x"], n_partitions=3) as data:
        assert (data.n_partitions, data.n_rows) == (3, 2)
        assert_array_equal(stack(collect(data))[0], [[1.0], [2.0]])


def test_labels_are_listed_up_to_some_dozens(spark):
    X = np.ones((130, 1))
    # 65 labels in one partition, or 64 of 10 partitions and one more of another.
    for n_partitions in (1, 11):
        for n_labels, expected in ((64, tuple(map(float, range(64)))), (65, None)):
            y = np.arange(130.0) % n_labels
            with Dataset.from_arrays(spark, X, y, n_partitions=n_partitions) as data:
                assert data.labels == expected


def test_a_dataset_says_its_size_and_remembers_its_columns(spark):
    df = column_frame(spark)
    with Dataset.from_dataframe(df, NAMES, "label", "weight") as data:
        assert repr(data) == "Dataset(29 rows x 5 features in 3 partitions)"
        assert data.features == NAMES
    with Dataset.from_dataframe(frame(spark, "float")) as data:
        assert data.features == "features"


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (
            {"X": TABLE.X, "y": TABLE.y[1:], "weight": TABLE.weight, "n_partitions": 0},
            [
                "n_partitions must be a whole number of at least 1; it is 0",
                "X must be (n, d) and y (n,); they are (29, 5) and (28,)",
                "weight must have the shape of y, (28,); it is (29,)",
            ],
        ),
        ({"X": TABLE.y, "y": TABLE.y}, ["X must be (n, d) and y (n,); they are (29,) and (29,)"]),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_all_problems(arguments, problems, spark):
    with pytest.raises(InvalidCall) as error:
        Dataset.from_arrays(spark, **arguments)
    assert error.value.problems == tuple(problems)

"""R27: data that cannot be used is refused at once, with the place of the row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from sparkdist import Dataset, Logistic, Poisson, Softmax, SparkModel, SquaredHinge, minimize
from sparkdist.errors import BadData, InvalidCall, PassFailed, UnsupportedSession
from sparkdist.problem import as_objective

pytestmark = pytest.mark.spark

NAN, INF = float("nan"), float("inf")
HEAD = "rows that cannot be used (both counted from 0):\n  "

#: Twelve rows; every source below deals them out to three partitions, four to each.
GOOD = [([float(i), 1.0, -1.0], float(i % 2), 0.5) for i in range(12)]
#: Where a row is made bad: the third of the second partition.
BAD = 6


@pytest.fixture(scope="module")
def spark(spark_alone: SparkSession) -> SparkSession:
    """A session whose blocks are in ``folder``."""
    return spark_alone


@pytest.fixture(autouse=True)
def nothing_stays(folder: Path) -> Iterator[None]:
    """After each test the executors' directories hold nothing of ours."""
    yield
    assert list(folder.rglob("sparkdist-*")) == []


# --- sources --------------------------------------------------------------------------------


def from_rdd(spark: SparkSession, folder: Path, rows: list) -> Dataset:
    return Dataset.from_rdd(spark.sparkContext.parallelize(rows, 3))


def frame(spark: SparkSession, rows: list, schema: Any) -> DataFrame:
    return spark.createDataFrame(spark.sparkContext.parallelize(rows, 3), schema)


def from_arrays_column(spark: SparkSession, folder: Path, rows: list) -> Dataset:
    schema = "features array<double>, label double, weight double"
    return Dataset.from_dataframe(frame(spark, rows, schema), weight="weight")


def from_vectors(spark: SparkSession, folder: Path, rows: list) -> Dataset:
    """Dense and sparse ones by turns."""
    forms = [Vectors.dense, lambda x: Vectors.sparse(len(x), range(len(x)), x)]
    rows = [(None if x is None else forms[i % 2](x), *rest) for i, (x, *rest) in enumerate(rows)]
    df = frame(spark, rows, ["features", "label", "weight"])
    return Dataset.from_dataframe(df, weight="weight")


def from_columns(spark: SparkSession, folder: Path, rows: list) -> Dataset:
    flat = [(*x, *rest) for x, *rest in rows]
    df = frame(spark, flat, "a double, b double, c double, label double, weight double")
    return Dataset.from_dataframe(df, ["a", "b", "c"], weight="weight")


def from_parquet(spark: SparkSession, folder: Path, rows: list) -> Dataset:
    columns = dict(zip(("features", "label", "weight"), zip(*rows, strict=True), strict=True))
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    pq.write_table(table, folder / "bad.parquet", row_group_size=4)
    path = str(folder / "bad.parquet")
    return Dataset.from_parquet(spark, path, weight="weight", n_partitions=3)


def from_blocks(spark: SparkSession, folder: Path, rows: list) -> Dataset:
    """Ready blocks of two rows."""
    columns = [zip(*rows[i : i + 2], strict=True) for i in range(0, 12, 2)]
    blocks = [tuple(np.array(part) for part in column) for column in columns]
    return Dataset.from_rdd(spark.sparkContext.parallelize(blocks, 3))


def from_arrays(spark: SparkSession, folder: Path, rows: list) -> Dataset:
    X, y, weight = zip(*rows, strict=True)
    return Dataset.from_arrays(spark, X, y, weight, n_partitions=3)


ROWS = [from_rdd, from_arrays_column, from_vectors, from_columns, from_parquet]
ALL = [*ROWS, from_blocks, from_arrays]
QUICK = [from_rdd, from_parquet, from_blocks, from_arrays]
LISTS = [from_arrays_column, from_vectors, from_parquet]

#: What is wrong with the bad row, what is said of it, and the sources that are asked.
FAULTS: list[tuple[tuple, str, list]] = [
    (([1.0, NAN, 1.0], 1.0, 1.0), "a feature is NaN or infinite", ALL),
    (([1.0, 1.0, -INF], 1.0, 1.0), "a feature is NaN or infinite", QUICK),
    (([1.0, 1.0, 1.0], NAN, 1.0), "a label is NaN or infinite", ALL),
    (([1.0, 1.0, 1.0], 1.0, INF), "a weight is NaN or infinite", QUICK),
    (([1.0, 1.0, 1.0], 1.0, -2.0), "the weight is negative: -2", ALL),
    ((None, 1.0, 1.0), "the features are null", [from_rdd, *LISTS]),
    (([1.0, None, 1.0], 1.0, 1.0), "a null in the features", [LISTS[0], LISTS[2]]),
    (([1.0, None, 1.0], 1.0, 1.0), "a feature is null", [from_columns]),
    (([1.0, None, 1.0], 1.0, 1.0), "a feature is NaN or infinite", [from_rdd]),
    (([1.0, 1.0, 1.0], None, 1.0), "the label is null", [from_columns, *LISTS]),
    (([1.0, 1.0, 1.0], None, 1.0), "the label is None, not a number", [from_rdd]),
    (([1.0, 1.0, 1.0], 1.0, None), "the weight is null", [from_columns, *LISTS]),
    (
        ([1.0, 1.0], 1.0, 1.0),
        "has 2 features, the rows before it have 3",
        [from_rdd, *LISTS],
    ),
    (("text", 1.0, 1.0), "the features are not numbers", [from_rdd]),
]


def name_of(value: object) -> str | None:
    return value.__name__ if callable(value) else None


@pytest.mark.parametrize(
    ("row", "what", "make"),
    [(row, what, make) for row, what, makes in FAULTS for make in makes],
    ids=name_of,
)
def test_a_bad_row_is_named_with_partition_and_row(row, what, make, spark, tmp_path):
    rows = [*GOOD[:BAD], row, *GOOD[BAD + 1 :]]
    with pytest.raises(BadData) as error:
        make(spark, tmp_path, rows)
    assert str(error.value).startswith(f"{HEAD}partition 1, row 2: {what}")
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("make", ALL, ids=name_of)
def test_the_good_rows_are_taken_by_every_source(make, spark, tmp_path):
    with make(spark, tmp_path, GOOD) as data:
        assert (data.n_rows, data.n_partitions, data.weight_sum) == (12, 3, 6.0)


def test_an_element_that_is_no_row_is_named(spark):
    rdd = spark.sparkContext.parallelize([([1.0], 1.0), "a line of text"], 2)
    with pytest.raises(BadData, match=r"partition 1, row 0: is a str; an element of the RDD must"):
        Dataset.from_rdd(rdd)


def test_the_bad_rows_of_all_partitions_are_in_one_error(spark):
    rows = [([1.0, NAN if i % 3 == 2 else 1.0], 1.0) for i in range(21)]
    with pytest.raises(BadData) as error:
        Dataset.from_rdd(spark.sparkContext.parallelize(rows, 7))
    *places, more = str(error.value).splitlines()[1:]
    expected = [f"  partition {i}, row 2: a feature is NaN or infinite" for i in range(5)]
    assert [*places, more] == [*expected, "  and 2 more partitions"]


def test_partitions_of_different_length_are_named(spark):
    rows = [([1.0, 2.0], 1.0), ([1.0, 2.0], 1.0), ([1.0], 1.0)]
    expected = f"{HEAD}partition 2 has 1 features, partition 0 has 2"
    with pytest.raises(BadData, match=re.escape(expected)):
        Dataset.from_rdd(spark.sparkContext.parallelize(rows, 3))


def test_nan_in_libsvm_text_is_named(spark, tmp_path):
    path = tmp_path / "bad.libsvm"
    path.write_text("1 1:0.5\n0 2:1\n1 1:NaN 2:3\n")
    with pytest.raises(BadData, match="partition 0, row 2: a feature is NaN or infinite"):
        Dataset.from_libsvm(spark, str(path))


@pytest.mark.parametrize("n_features", [None, 2])  # with and without a pass that counts them
def test_text_that_is_not_libsvm_is_refused_without_javas_traceback(n_features, spark, tmp_path):
    path = tmp_path / "bad.libsvm"
    path.write_text("age,income\n39,1\n")
    with pytest.raises(PassFailed, match='NumberFormatException.*"age,income"') as error:
        Dataset.from_libsvm(spark, str(path), n_features)
    assert len(str(error.value).splitlines()) == 2


# --- no rows --------------------------------------------------------------------------------


def no_rows_in_parquet(spark: SparkSession, folder: Path) -> Dataset:
    nothing = pa.array([], pa.float64())
    pq.write_table(pa.table({"features": nothing, "label": nothing}), folder / "no.parquet")
    return Dataset.from_parquet(spark, str(folder / "no.parquet"))


def no_rows_in_a_frame(spark: SparkSession, folder: Path) -> Dataset:
    df = frame(spark, GOOD, "features array<double>, label double, weight double")
    return Dataset.from_dataframe(df.where("label > 1"))


NO_ROWS = [
    no_rows_in_parquet,
    no_rows_in_a_frame,
    lambda spark, folder: Dataset.from_rdd(spark.sparkContext.parallelize([], 2)),
    lambda spark, folder: Dataset.from_arrays(spark, np.ones((0, 3)), []),
]


@pytest.mark.parametrize("make", NO_ROWS)
def test_no_rows_at_all_are_refused(make, spark, tmp_path):
    with pytest.raises(BadData, match="the data has no rows"):
        make(spark, tmp_path)


def test_weights_that_are_all_zero_are_refused(spark, tmp_path):
    rows = [(x, y, 0.0) for x, y, _ in GOOD]
    with pytest.raises(BadData, match="the weights of all rows are 0"):
        from_rdd(spark, tmp_path, rows)
    with from_rdd(spark, tmp_path, [*rows[1:], GOOD[0]]) as data:
        assert data.weight_sum == 0.5


# --- labels ---------------------------------------------------------------------------------


ZERO_ONE = [y for _, y, _ in GOOD]
SIGNS = [2 * y - 1 for y in ZERO_ONE]

LABELS = [
    ("softmax", [*ZERO_ONE[:BAD], 7.0, *ZERO_ONE[BAD + 1 :]], "whole numbers 0 to 1", "7"),
    (Softmax(3), [*ZERO_ONE[:BAD], 1.5, *ZERO_ONE[BAD + 1 :]], "whole numbers 0 to 2", "1.5"),
    (Logistic(), [*ZERO_ONE[:BAD], 2.0, *ZERO_ONE[BAD + 1 :]], "{0, 1} or {-1, +1}", "2"),
    (SquaredHinge, [*SIGNS[:BAD], 0.0, *SIGNS[BAD + 1 :]], "{0, 1} or {-1, +1}", "0"),
    (Poisson(), [*ZERO_ONE[:BAD], -3.0, *ZERO_ONE[BAD + 1 :]], "finite numbers >= 0", "-3"),
]


@pytest.mark.parametrize(("objective", "labels", "rule", "value"), LABELS)
def test_a_label_that_the_objective_does_not_know_is_named(objective, labels, rule, value, spark):
    rows = [([1.0, y], y) for y in labels]
    with pytest.raises(BadData) as error:
        minimize(objective, spark.sparkContext.parallelize(rows, 3))
    name = type(as_objective(objective, None)).__name__
    place = "partition 1, row 2 (both counted from 0)"
    assert str(error.value) == f"{name} needs labels that are {rule}; {place} has {value}"


def test_a_bad_label_among_many_is_named(spark):
    # More labels than are listed in the handles: each partition is asked.
    y = np.arange(200.0)
    y[150] = -0.5
    with (
        Dataset.from_arrays(spark, np.ones((200, 1)), y, n_partitions=2) as data,
        pytest.raises(BadData, match=r"partition 1, row 50 .* has -0.5"),
    ):
        minimize("poisson", data)


# --- columns --------------------------------------------------------------------------------

PROBLEMS = (
    "there is no column 'nope'; there are a, text, label",
    "there is no column 'w'; there are a, text, label",
    "column 'label' is string; it must be numeric",
    "column 'text' is string; it must be numeric",
)


def test_all_columns_that_cannot_be_used_are_in_one_error(spark, tmp_path):
    path = str(tmp_path / "columns.parquet")
    pq.write_table(pa.table({"a": [1.0], "text": ["b"], "label": ["c"]}), path)
    df = spark.read.parquet(path)
    for make, source in ((Dataset.from_dataframe, df), (partial_parquet(spark), path)):
        with pytest.raises(InvalidCall) as error:
            make(source, ["a", "text", "nope"], "label", "w")
        found = [re.sub(r" \(.*\)$|^feature ", "", p) for p in error.value.problems]
        assert sorted(found) == sorted(PROBLEMS)


def partial_parquet(spark: SparkSession) -> Callable[..., Dataset]:
    return lambda *arguments: Dataset.from_parquet(spark, *arguments)


def test_features_of_a_type_that_holds_no_numbers_are_refused(spark, tmp_path):
    path = str(tmp_path / "columns.parquet")
    table = {"map": [{"k": 1.0}], "words": [["a"]], "label": [1.0]}
    types = pa.schema(
        {
            "map": pa.map_(pa.string(), pa.float64()),
            "words": pa.list_(pa.string()),
            "label": pa.float64(),
        }
    )
    pq.write_table(pa.table(table, types), path)
    df = spark.read.parquet(path)
    for name in ("map", "words"):
        expected = f"features column {name!r} is .*; it must be a"
        with pytest.raises(InvalidCall, match=expected):
            Dataset.from_dataframe(df, name)
        with pytest.raises(InvalidCall, match=expected):
            Dataset.from_parquet(spark, path, name)
    with pytest.raises(InvalidCall, match="the list of feature columns is empty"):
        Dataset.from_dataframe(df, [])
    with pytest.raises(InvalidCall, match="the list of feature columns is empty"):
        Dataset.from_parquet(spark, path, [])


def test_columns_may_have_dots_and_quotes_in_their_names(spark):
    df = spark.createDataFrame([(1.0, 2.0, 0.0), (3.0, 4.0, 1.0)], ["capital.gain", "a`b", "the y"])
    with Dataset.from_dataframe(df, ["capital.gain", "a`b"], "the y") as data:
        X = np.vstack(data.visit(lambda partition, blocks: next(blocks).X.copy()))
    assert X.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_paths_without_parquet_are_refused(spark, tmp_path):
    (tmp_path / "text.parquet").write_text("no")
    for path in (tmp_path / "nowhere", tmp_path / "text.parquet"):
        with pytest.raises(InvalidCall, match=re.escape(str(path))):
            Dataset.from_parquet(spark, str(path))


# --- sessions -------------------------------------------------------------------------------


def test_spark_connect_is_refused_by_every_door():
    class Foreign:
        """Stands for a DataFrame or a session of a Spark Connect client."""

    Foreign.__module__ = "pyspark.sql.connect.dataframe"
    model = SparkModel(Logistic(), np.ones(3), 3)
    doors: list[Callable[[Any], object]] = [
        Dataset.from_dataframe,
        Dataset.from_rdd,
        lambda it: Dataset.from_parquet(it, "path"),
        lambda it: Dataset.from_libsvm(it, "path"),
        lambda it: Dataset.from_arrays(it, np.ones((1, 1)), [1.0]),
        lambda it: minimize("logistic", it),
        model.predict,
    ]
    for door in doors:
        with pytest.raises(UnsupportedSession, match="this Foreign belongs to a Spark Connect"):
            door(Foreign())


def test_a_frame_is_no_rdd(spark):
    with pytest.raises(InvalidCall, match="an RDD is needed, not a DataFrame; for a DataFrame use"):
        Dataset.from_rdd(spark.range(3))

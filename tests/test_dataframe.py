"""How a DataFrame is ingested: by which workers, and with which settings of Spark SQL."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pyarrow as pa
import pytest
from numpy.testing import assert_array_equal
from pyspark.ml.functions import array_to_vector
from pyspark.sql import functions as F

from sparkdist import Dataset
from sparkdist.spark.data.dataframe import _settings

pytestmark = pytest.mark.spark

LIMIT = "spark.sql.execution.arrow.maxBytesPerBatch"
SHORT = "spark.sql.execution.pyspark.udf.simplifiedTraceback.enabled"


def parents_as_features(batches):
    """Rows whose features are the process that the worker was forked from."""
    for batch in batches:
        pids = [[float(os.getppid())]] * batch.num_rows
        yield pa.RecordBatch.from_pydict({"features": pids, "label": [0.0] * batch.num_rows})


def test_a_pass_runs_in_the_workers_that_ingested(spark):
    df = spark.range(4, numPartitions=2)
    rows = df.mapInArrow(parents_as_features, "features array<double>, label double")
    with Dataset.from_dataframe(rows) as data:
        found = data.visit(lambda _, blocks: (os.getppid(), next(blocks).X.tolist()))
    assert found == [(pid, [[float(pid)]] * 2) for pid, _ in found]


@pytest.mark.parametrize("value", [None, "true"])
def test_the_sessions_own_settings_stay_as_they_were(value, spark):
    if value is not None:
        spark.conf.set(SHORT, value)
    before = spark.conf.getAll
    df = spark.range(4).select(F.col("id").alias("x"), F.lit(1.0).alias("label"))
    with Dataset.from_dataframe(df, ["x"]):
        after = spark.conf.getAll
    spark.conf.unset(SHORT)
    assert after == before


@pytest.mark.parametrize(
    ("limit", "known", "rows_of_batches"),
    [
        # The numbers of 10,000 rows of a feature have at most 120,000 bytes: nobody looks.
        (120_000, {"ml_attr": {"num_attrs": 1}}, [40]),
        (120_000, {"numFeatures": 1}, [40]),  # what Spark's reader of LIBSVM text notes
        # 10,000 rows of two features could: Spark ends a batch with the row that is too much.
        (120_000, {"ml_attr": {"num_attrs": 2}}, [15, 15, 10]),
        (120_000, {}, [15, 15, 10]),
    ],
)
def test_sparks_limit_of_bytes_holds_where_rows_might_be_too_wide(
    limit, known, rows_of_batches, spark
):
    """The rows have 1,000 features, 8,000 bytes, whatever the schema says: it tells who looks."""
    wide = array_to_vector(F.array_repeat(F.lit(1.0), 1000)).alias("features", metadata=known)
    df = spark.range(40, numPartitions=1).select(wide, F.lit(1.0).alias("label"))
    spark.conf.set(LIMIT, str(limit))
    try:
        with Dataset.from_dataframe(df) as data:  # a block for each batch
            (found,) = data.visit(lambda _, blocks: [len(block.y) for block in blocks])
    finally:
        spark.conf.unset(LIMIT)
    assert_array_equal(found, rows_of_batches)


def as_they_come(batches):
    yield from batches


def test_the_limit_holds_for_a_query_in_which_python_has_a_part(spark):
    rows = spark.range(40, numPartitions=1)
    wide = F.array_repeat(F.lit(1.0), 1000).alias("features")
    through = rows.select(wide, F.lit(1.0).alias("label")).mapInArrow(
        as_they_come, "features array<double>, label double"
    )
    known = F.col("features").alias("features", metadata={"numFeatures": 1})
    spark.conf.set(LIMIT, "120000")
    try:
        with Dataset.from_dataframe(through.select(known, "label")) as data:
            (found,) = data.visit(lambda _, blocks: [len(block.y) for block in blocks])
    finally:
        spark.conf.unset(LIMIT)
    assert_array_equal(found, [15, 15, 10])


class Settings(dict):
    """Of a session."""

    set, unset = dict.__setitem__, dict.__delitem__


def test_threads_do_not_take_each_others_settings_for_the_sessions_own():
    session = SimpleNamespace(conf=Settings(a="1"))

    def ingest(number):
        for _ in range(20):
            with _settings(session, {"a": f"of {number}", "b": "2"}):
                assert session.conf == {"a": f"of {number}", "b": "2"}
                time.sleep(1e-4)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ingest, range(4)))
    assert session.conf == {"a": "1"}

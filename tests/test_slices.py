"""Arrays of the driver: what travels with a task, and what stays of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from pyspark import RDD
from pyspark.sql import SparkSession

from sparkdist import Dataset
from sparkdist.errors import BadData
from tests.conftest import LOCAL, random_block, stack
from tests.test_dataset import collect
from tests.test_dataset_life import block_files, total

pytestmark = pytest.mark.spark

TABLE = random_block(n=30, d=3, seed=4)


def carried(rdd: RDD) -> list[int]:
    """Bytes of each partition as Java writes it: of a task, all that can grow with the data.

    The rest is 3 to 4 kB; the function and the lineage are a broadcast of the stage.
    """
    jvm = rdd.context._jvm
    sizes = []
    for partition in rdd._jrdd.rdd().partitions():
        written = jvm.java.io.ByteArrayOutputStream()
        jvm.java.io.ObjectOutputStream(written).writeObject(partition)
        sizes.append(written.size())
    return sizes


def shared_files(spark: SparkSession) -> list[Path]:
    """The files in which PySpark keeps broadcasts on the driver."""
    return [path for path in Path(spark.sparkContext._temp_dir).iterdir() if path.is_file()]


def test_a_task_of_a_pass_does_not_carry_the_rows(spark):
    X, y = np.random.default_rng(0).normal(size=(12_500, 100)), np.zeros(12_500)  # 10 MB
    with Dataset.from_arrays(spark, X, y, n_partitions=2) as data:
        assert max(carried(data.handles)) < 100_000
    # The measure sees rows where there are some.
    slices = [X[:6250], X[6250:]]
    assert min(carried(spark.sparkContext.parallelize(slices, 2))) > 5_000_000


def test_nothing_of_the_arrays_stays_on_the_driver_after_unpersist(spark):
    before = shared_files(spark)
    with Dataset.from_arrays(spark, *TABLE):
        assert len(shared_files(spark)) > len(before)
    assert shared_files(spark) == before


def test_nothing_of_arrays_that_cannot_be_used_stays_on_the_driver(spark):
    before = shared_files(spark)
    with pytest.raises(BadData, match="NaN"):
        Dataset.from_arrays(spark, TABLE.X * np.nan, TABLE.y)
    assert shared_files(spark) == before


def lost_and_found(spark: SparkSession) -> None:
    """Remove the blocks twice: arrays are read again each time."""
    with Dataset.from_arrays(spark, *TABLE, n_partitions=3) as data:
        expected = total(data, deterministic=True)
        for _ in range(2):
            for path in block_files(data).values():
                path.unlink()
            assert_array_equal(total(data, deterministic=True), expected)
        for found, given in zip(stack(collect(data)), TABLE, strict=True):
            assert_array_equal(found, given)


def test_blocks_that_are_gone_are_made_of_the_arrays_again(spark):
    lost_and_found(spark)


# PySpark leaves the sockets over which it encrypts to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_arrays_travel_where_spark_encrypts_its_files(
    spark: SparkSession, start: Callable[..., SparkSession], folder: Path
) -> None:
    # `spark` comes first: what the JVM is launched with, it keeps for all later sessions.
    lost_and_found(start(LOCAL, folder, **{"spark.io.encryption.enabled": "true"}))

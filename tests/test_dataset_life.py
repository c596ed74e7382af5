"""What a dataset leaves on executors and disks, for how long, and how it comes back."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark import RDD
from pyspark.sql import SparkSession

from sparkdist import Dataset, Logistic
from sparkdist.blocks import Array
from sparkdist.errors import InvalidCall, PassFailed
from sparkdist.spark.engines.aggregate import AggregateEngine
from tests.conftest import random_block, stack
from tests.test_dataset import collect

pytestmark = pytest.mark.spark

TABLE = random_block(n=30, d=3, seed=1)
W = np.array([0.5, -1.0, 2.0])


@pytest.fixture(scope="module")
def spark(spark_alone: SparkSession) -> SparkSession:
    """A session whose blocks are in ``folder``."""
    return spark_alone


@pytest.fixture(autouse=True)
def nothing_stays(folder: Path) -> Iterator[None]:
    """After each test the executors' directories hold nothing of ours."""
    yield
    assert list(folder.rglob("sparkdist-*")) == []


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A file in which the source writes the number of each partition that is read."""
    path = tmp_path / "read"
    path.touch()
    return path


def read(log: Path) -> list[int]:
    return sorted(map(int, log.read_text().split()))


def note(log: Path, partition: int, elements: Iterator[Any]) -> Iterator[Any]:
    with open(log, "a") as file:
        file.write(f"{partition}\n")
    return elements


def noted_rdd(spark: SparkSession, log: Path) -> RDD:
    rows = list(zip(TABLE.X.tolist(), TABLE.y.tolist(), TABLE.weight.tolist(), strict=True))
    return spark.sparkContext.parallelize(rows, 3).mapPartitionsWithIndex(partial(note, log))


def from_rdd(spark: SparkSession, log: Path) -> Dataset:
    return Dataset.from_rdd(noted_rdd(spark, log))


def from_dataframe(spark: SparkSession, log: Path) -> Dataset:
    schema = "features array<double>, label double, weight double"
    return Dataset.from_dataframe(
        spark.createDataFrame(noted_rdd(spark, log), schema), weight="weight"
    )


SOURCES = [from_rdd, from_dataframe]


def block_files(data: Dataset) -> dict[int, Path]:
    """The file of each partition that has rows."""
    places = [handle.place for handle in data.handles.collect() if handle.n_rows]
    return {
        place.partition: Path(place.directory, data.name, f"{place.partition}.blocks")
        for place in places
    }


def total(data: Dataset, deterministic: bool) -> Array:
    """Loss and gradient of one pass."""
    found = AggregateEngine(data, deterministic=deterministic).value_and_grad(Logistic(), W)
    return np.array([found.loss, found.weight, *found.grad])


def by_hand() -> Array:
    """What ``total`` must be, from the formula."""
    X, y, weight = TABLE
    m = X @ W
    gradient = X.T @ (weight * (1 / (1 + np.exp(-m)) - y))
    return np.array([weight @ (np.log(1 + np.exp(m)) - y * m), weight.sum(), *gradient])


@pytest.mark.parametrize("make", SOURCES)
def test_passes_never_read_the_source_again(make, spark, log):
    with make(spark, log) as data:
        for deterministic in (False, True, False):
            assert_allclose(total(data, deterministic), by_hand(), rtol=1e-12)
        assert read(log) == [0, 1, 2]


def test_spark_keeps_a_small_handle_for_each_partition(spark):
    # As large as a handle gets: 64 labels are listed.
    block = random_block(n=6400, d=50, seed=0)
    y = np.arange(6400.0) % 64 + 0.1
    with Dataset.from_arrays(spark, block.X, y, block.weight, n_partitions=4) as data:
        handles = data.handles.collect()
        assert len(handles) == 4
        assert max(len(pickle.dumps(handle)) for handle in handles) < 2000
        assert sum(path.stat().st_size for path in block_files(data).values()) > 6400 * 50 * 8


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("make", SOURCES)
def test_blocks_that_are_gone_are_ingested_again(make, deterministic, spark, log, caplog):
    with make(spark, log) as data:
        before = total(data, deterministic)
        block_files(data)[1].unlink()
        with caplog.at_level(logging.WARNING, logger="sparkdist"):
            after = total(data, deterministic)
        assert "ingesting partitions [1] again" in caplog.text
        assert_allclose([after, total(data, deterministic)], [before, before], rtol=1e-12)
        if deterministic:
            assert_array_equal(after, before)
        assert read(log) == [0, 1, 1, 2]  # the others are left alone, and this once is enough


def test_a_visit_finds_the_blocks_of_all_partitions_again(spark, log):
    with from_rdd(spark, log) as data:
        for path in block_files(data).values():
            path.unlink()
        for found, expected in zip(stack(collect(data)), TABLE, strict=True):
            assert_array_equal(found, expected)
        assert read(log) == [0, 0, 1, 1, 2, 2]


def test_unpersist_removes_the_files_and_may_be_called_twice(spark, log, folder):
    data = from_rdd(spark, log)
    assert len(list(folder.rglob("sparkdist-*/*.blocks"))) == 3
    data.unpersist()
    assert list(folder.rglob("sparkdist-*")) == []
    data.unpersist()
    with pytest.raises(InvalidCall, match="unpersist, or leaving its `with`, has removed"):
        total(data, deterministic=True)
    assert read(log) == [0, 1, 2]


def test_leaving_with_removes_the_files_also_after_an_error(spark, log, folder):
    with pytest.raises(ZeroDivisionError), from_rdd(spark, log):
        assert list(folder.rglob("sparkdist-*")) != []
        raise ZeroDivisionError
    assert list(folder.rglob("sparkdist-*")) == []


def test_two_datasets_of_one_source_do_not_share_their_files(spark, log):
    with from_rdd(spark, log) as one, from_rdd(spark, log) as other:
        one.unpersist()
        assert_allclose(total(other, True), by_hand(), rtol=1e-12)


def fail_after_partition_0(partition: int, rows: Iterator[Any]) -> Iterator[Any]:
    """Fail in partition 1, when the blocks of partition 0 have been written."""
    yield from rows
    local, deadline = Path(os.environ["SPARK_LOCAL_DIRS"]), time.monotonic() + 60
    while partition == 1 and time.monotonic() < deadline:
        if list(local.rglob("0.blocks")):
            raise ZeroDivisionError("in the source")


def test_an_error_in_the_source_is_told_and_leaves_nothing_behind(spark, folder):
    rdd = spark.sparkContext.parallelize([([1.0], 1.0)] * 6, 2)
    with pytest.raises(PassFailed, match="ZeroDivisionError: in the source"):
        Dataset.from_rdd(rdd.mapPartitionsWithIndex(fail_after_partition_0))
    assert list(folder.rglob("sparkdist-*")) == []


SCRIPT = """
import sys
import numpy as np
import sparkdist
from pathlib import Path
from pyspark.sql import SparkSession

conf = {"spark.ui.enabled": "false", "spark.log.level": "OFF", "spark.local.dir": sys.argv[1]}
builder = SparkSession.builder.master("local[2]")
for key, value in conf.items():
    builder = builder.config(key, value)
data = sparkdist.Dataset.from_arrays(builder.getOrCreate(), np.eye(4), [0, 1, 0, 1])
print(len(list(Path(sys.argv[1]).rglob("sparkdist-*/*.blocks"))))
"""


def test_an_application_that_ends_without_unpersist_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    run = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["2"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list(tmp_path.rglob("sparkdist-*")) == []

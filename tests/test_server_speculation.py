"""Two copies of a task push side by side, and each batch counts once: requirement R4."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from pyspark.sql import SparkSession

from sparkdist import Dataset, Logistic
from sparkdist.consistency import Consistency, asp, bsp
from sparkdist.objectives import Objective
from sparkdist.result import Result
from sparkdist.spark.training.model_server import ModelServer
from sparkdist.updaters import sgd
from tests import test_speculation
from tests.conftest import random_block
from tests.faults import wait_for_executors
from tests.tally import Around, Tally, balanced, wait_for

pytestmark = [pytest.mark.spark, pytest.mark.cluster]

#: A standalone cluster of two hosts with one core each.
cluster = test_speculation.cluster
#: Rows of partition 0, which is soon done, so that its host is free, and of partition 1.
FEW, MANY = 5, 40
#: The batch at which the first task of partition 1 waits for its copy.
WAITS = 10


class Raced(Around):
    """Lets a copy of partition 1's task catch up with it, so that both push the rest.

    Both have their parameters before the tenth push, and push it whatever the other one does.
    """

    def __init__(self, objective: Objective, copied: Path):
        super().__init__(objective)
        self.copied, self.seen = copied, 0

    def before(self, partition: int, attempt: int) -> None:
        self.seen += 1
        if partition == 1 and attempt > 0:
            self.copied.touch()
        elif partition == 1 and self.seen == WAITS:
            wait_for(self.copied)


@pytest.fixture(scope="module")
def spark(start: Callable[..., SparkSession], cluster: str, folder: Path) -> Iterator[SparkSession]:
    session = start(cluster, folder, **test_speculation.SPECULATION)
    wait_for_executors(session, 2)
    yield session
    session.stop()  # before the cluster


def of_two_partitions(spark: SparkSession, rows: list[Any]) -> Dataset:
    rdd = spark.sparkContext.parallelize([rows[:FEW], rows[FEW:]], 2)
    return Dataset.from_rdd(rdd.flatMap(list))


def train(data: Dataset, objective: Objective, size: int, consistency: Consistency) -> Result:
    with ModelServer(np.zeros(size), updater=sgd(1.0), consistency=consistency) as server:
        return server.train(data, objective, batch_size=1)


def test_r4_a_copy_that_pushes_too_counts_no_row_twice(spark: SparkSession, tmp_path: Path) -> None:
    n = FEW + MANY
    with of_two_partitions(spark, [([float(row)], 0.0) for row in range(n)]) as data:
        result = train(data, Raced(Tally(n), tmp_path / "copied"), n, asp())
    assert_array_equal(result.x, np.ones(n))
    assert result.counts["duplicate"] >= 1
    assert result.counts["applied"] == n
    assert balanced(result)


def test_r4_a_copy_that_pushes_too_changes_no_bit_under_bsp(
    spark: SparkSession, tmp_path: Path
) -> None:
    block = random_block(n=FEW + MANY, d=5, seed=0)
    with of_two_partitions(spark, list(zip(*block, strict=True))) as data:
        undisturbed = train(data, Logistic(), 5, bsp())
        raced = train(data, Raced(Logistic(), tmp_path / "copied"), 5, bsp())
    assert_array_equal(raced.x, undisturbed.x)
    assert raced.counts["duplicate"] >= 1
    assert balanced(raced)

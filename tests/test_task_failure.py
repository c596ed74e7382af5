"""A task that Spark runs again counts once: requirement R55."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from sparkdist import Dataset
from sparkdist.blocks import Block
from tests.conftest import RETRYING
from tests.faults import Disturbed, assert_same, fail, solve

pytestmark = [
    pytest.mark.spark,
    pytest.mark.parametrize("deterministic", [True, False]),
]


@pytest.fixture(scope="module")
def data(start: Callable[..., SparkSession], folder: Path, a9a: Block) -> Iterator[Dataset]:
    spark = start(RETRYING, folder)
    with Dataset.from_arrays(spark, a9a.X, a9a.y, n_partitions=3) as data:
        yield data


def test_a_task_that_fails_once_counts_once(
    data: Dataset, tmp_path: Path, deterministic: bool
) -> None:
    expected = solve(data, deterministic=deterministic)
    objective = Disturbed(tmp_path / "flag", fail)
    found = solve(data, objective, deterministic=deterministic)
    assert objective.flag.exists()
    assert_same(found, expected, deterministic)


def test_an_ingest_that_fails_once_ingests_once(
    data: Dataset, a9a: Block, tmp_path: Path, deterministic: bool
) -> None:
    flag, context = tmp_path / "flag", data.context

    def once(partition: int, rows: Iterator[Any]) -> Iterator[Any]:
        for i, row in enumerate(rows):
            yield row
            if partition == 1 and i == 500 and not flag.exists():
                flag.touch()
                fail()

    X = a9a.X[:3000].toarray()
    rows = list(zip(X, a9a.y[:3000].tolist(), strict=True))
    rdd = context.parallelize(rows, 3)
    with (
        Dataset.from_rdd(rdd) as calm,
        Dataset.from_rdd(rdd.mapPartitionsWithIndex(once)) as disturbed,
    ):
        assert flag.exists()
        assert disturbed.n_rows == 3000
        expected = solve(calm, deterministic=deterministic)
        assert_same(solve(disturbed, deterministic=deterministic), expected, deterministic)

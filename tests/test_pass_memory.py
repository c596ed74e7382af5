"""Weights never travel in closures, and memory stays flat over many passes: requirement R56."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyspark.core.rdd
import pytest
from pyspark.sql import SparkSession
from scipy.sparse import random_array

from sparkdist import Dataset, Logistic
from sparkdist.spark.engines.aggregate import AggregateEngine
from tests.conftest import FULL

pytestmark = pytest.mark.spark

WEIGHTS = 200_000
WEIGHTS_MB = WEIGHTS * 8 / 1e6
PASSES = 200 if FULL else 40


@pytest.fixture(scope="module")
def data(spark: SparkSession) -> Iterator[Dataset]:
    """1,000 sparse rows of 200,000 features, in 6 partitions: enough for a level in the tree."""
    random = np.random.default_rng(0)
    X = random_array((1000, WEIGHTS), density=1e-4, rng=random, format="csr")
    with Dataset.from_arrays(spark, X, random.integers(0, 2, 1000), n_partitions=6) as data:
        yield data


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_is_shipped_with_a_task_is_small_whatever_the_weights(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    prepare = pyspark.core.rdd._prepare_for_python_RDD
    sizes = []

    def record(context: Any, command: Any) -> Any:
        prepared = prepare(context, command)
        sizes.append(len(prepared[0]))
        return prepared

    monkeypatch.setattr(pyspark.core.rdd, "_prepare_for_python_RDD", record)
    engine = AggregateEngine(data, deterministic=deterministic)
    engine.value_and_grad(Logistic(), np.ones(WEIGHTS))
    engine.hessp(Logistic(), np.ones(WEIGHTS), np.ones(WEIGHTS))
    assert sizes
    assert max(sizes) < 100_000


def test_memory_is_flat_over_many_passes(data: Dataset, spark: SparkSession) -> None:
    engines = [AggregateEngine(data, deterministic=each) for each in (True, False)]

    def run(passes: int) -> None:
        for i in range(passes):
            engines[i % 2].value_and_grad(Logistic(), np.full(WEIGHTS, 1e-3 * i))

    def growth() -> dict[str, float]:
        before = footprint(data, spark)
        run(PASSES)
        after = footprint(data, spark)
        assert after["broadcast files"] == before["broadcast files"]
        return {name: after[name] - before[name] for name in before}

    run(10)  # to a steady state
    # One vector kept in each pass of one engine would be 32 MB (160 MB at full strength), each
    # time; the allocator of a process in which other tests have been takes some once.
    allowed = 0.25 * PASSES * WEIGHTS_MB
    rounds = []
    while not rounds or (len(rounds) < 3 and max(rounds[-1].values()) >= allowed):
        rounds.append(growth())
    assert max(rounds[-1].values()) < allowed, rounds


def footprint(data: Dataset, spark: SparkSession) -> dict[str, float]:
    """Memory in MB: this process, the JVM's live objects, the largest worker; and files."""
    return {
        "driver": resident_mb(),
        "jvm": min(live_mb(spark) for _ in range(6)),  # Spark cleans up in threads of its own
        "worker": max(data.visit(lambda partition, blocks: resident_mb())),
        "broadcast files": len(os.listdir(str(spark.sparkContext._temp_dir))),
    }


def live_mb(spark: SparkSession) -> float:
    """Size of the objects that the JVM's collector leaves."""
    jvm = spark.sparkContext._jvm
    assert jvm is not None
    jvm.java.lang.System.gc()
    runtime = jvm.java.lang.Runtime.getRuntime()
    return (runtime.totalMemory() - runtime.freeMemory()) / 1e6


def resident_mb() -> float:
    """Resident memory of the process that asks."""
    status = Path("/proc/self/status").read_text()
    return next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmRSS")) / 1e3

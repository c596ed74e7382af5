"""DeepDist with real Spark: acceptance E1 to E4 of the algorithms, and what the original lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark import TaskContext
from pyspark.sql import SparkSession

from sparkdist import DeepDist, ModelServer
from sparkdist.errors import BadData, InvalidCall, PassFailed
from tests.conftest import RETRYING
from tests.job_count import counted_jobs

pytestmark = pytest.mark.spark

Rows = Iterator[float]


@pytest.fixture(scope="module")
def spark(start: Callable[..., SparkSession], folder: Path) -> SparkSession:
    return start(RETRYING, folder)


def gradient(model: Any, rows: Rows) -> dict[str, Any]:
    """A step of its own over a partition: what a worker does in the README of the original."""
    w = model["w"].copy()
    for row in rows:
        model["w"] += 0.1 * (row - model["w"])
    return {"w": model["w"] - w, "n": 1}


def descent(model: Any, update: dict[str, Any]) -> None:
    model["w"] += update["w"]
    model["seen"] += update["n"]


def fresh() -> dict[str, Any]:
    return {"w": np.zeros(3), "seen": np.zeros(1)}


def test_e1_one_partition_is_the_calls_one_after_the_other(spark: SparkSession) -> None:
    rows = [1.0, 2.0, 3.5, -1.0]
    by_hand = fresh()
    with DeepDist(fresh()) as dd:
        for _ in range(3):
            dd.train(spark.sparkContext.parallelize(rows, 1), gradient, descent)
            update = gradient({name: a.copy() for name, a in by_hand.items()}, iter(rows))
            descent(by_hand, update)
        found = dd.model
    assert_array_equal(found["w"], by_hand["w"])
    assert_array_equal(found["seen"], [3.0])


def test_e2_workers_fetch_the_current_model_and_not_that_of_the_start(spark: SparkSession) -> None:
    # 8 partitions on 2 slots: the staleness is 1 in a steady state.
    def slow(model: Any, rows: Rows) -> dict[str, Any]:
        time.sleep(0.1)
        return gradient(model, rows)

    with DeepDist(fresh()) as dd:
        result = dd.train(spark.sparkContext.parallelize(range(16), 8), slow, descent)
    staleness = np.repeat(list(result.staleness), list(result.staleness.values()))
    assert staleness.size == 8
    assert staleness.mean() < 2
    # The original served a new model only when received >= served, so that with a fetch always
    # outstanding every update was computed on the model of the start: the k-th is k old.
    assert staleness.max() < np.arange(8).max()


def test_e3_a_linear_descent_gives_the_same_in_any_order(spark: SparkSession) -> None:
    def constant(model: Any, rows: Rows) -> dict[str, Any]:
        return {"w": np.full(3, sum(rows)), "n": 1}

    rows = np.random.default_rng(5).normal(size=40)
    with DeepDist(fresh()) as dd:
        dd.train(spark.sparkContext.parallelize(rows.tolist(), 7), constant, descent)
        found = dd.model
    assert_allclose(found["w"], np.full(3, rows.sum()), rtol=1e-13)
    assert found["seen"] == 7


class Net:
    """A model of a class of one's own, with arrays of two types at two depths."""

    def __init__(self) -> None:
        self.layers = [np.ones((2, 3), np.float32), np.zeros(3)]
        self.rest = SimpleNamespace(names=["a", "b"], bias=np.zeros(1))


def test_e4_a_model_of_any_type_goes_there_and_back(spark: SparkSession) -> None:
    def grow(model: Net, rows: Rows) -> list[Any]:
        assert model.rest.names == ["a", "b"]
        return [model.layers[0] * sum(rows), np.arange(3.0)]

    def add(model: Net, update: list[Any]) -> Net:
        model.layers = [model.layers[0] + update[0], model.layers[1] + update[1]]
        model.rest.bias += 1
        return model

    with DeepDist(Net()) as dd:
        result = dd.train(spark.sparkContext.parallelize([1.0, 2.0], 1), grow, add)
    model = result.x
    assert_array_equal(model.layers[0], np.full((2, 3), 4.0))
    assert model.layers[0].dtype == np.float32
    assert_array_equal(model.layers[1], [0, 1, 2])
    assert_array_equal(model.rest.bias, [1.0])


def test_updates_that_are_none_and_partitions_without_rows_change_nothing(
    spark: SparkSession,
) -> None:
    def only_large(model: Any, rows: Rows) -> dict[str, Any] | None:
        total = sum(rows)
        return {"w": np.full(3, total), "n": 1} if total > 2 else None

    with DeepDist(fresh()) as dd:
        result = dd.train(spark.sparkContext.parallelize([1.0, 2.0, 3.0], 6), only_large, descent)
    assert_array_equal(result.x["w"], [3.0] * 3)
    assert result.x["seen"] == 1
    assert result.counts["applied"] == 3  # three partitions have a row; two gave None


def test_r2_tasks_that_run_again_count_once(spark: SparkSession, tmp_path: Path) -> None:
    def constant(model: Any, rows: Rows) -> dict[str, Any]:
        context = TaskContext.get()
        assert context is not None
        flag = tmp_path / str(context.partitionId())
        if not flag.exists():
            flag.touch()
            raise RuntimeError("disturbed")
        return {"w": np.full(3, sum(rows)), "n": 1}

    with DeepDist(fresh()) as dd:
        result = dd.train(spark.sparkContext.parallelize(range(4), 4), constant, descent)
    assert_array_equal(result.x["w"], [6.0] * 3)
    assert result.x["seen"] == 4


def test_r25_a_descent_that_raises_is_told_with_its_traceback_and_changes_nothing(
    spark: SparkSession,
) -> None:
    def spoil(model: Any, update: dict[str, Any]) -> None:
        model["w"] += 7
        raise KeyError("no such thing")

    with DeepDist(fresh()) as dd:
        with pytest.raises(PassFailed, match="no such thing"):
            dd.train(spark.sparkContext.parallelize([1.0], 1), gradient, spoil)
        assert_array_equal(dd.model["w"], [0.0] * 3)
        dd.train(spark.sparkContext.parallelize([1.0], 1), gradient, descent)
        assert_allclose(dd.model["w"], [0.1] * 3)


def test_r11_a_server_that_is_killed_between_two_updates_forgets_none(spark: SparkSession) -> None:
    with DeepDist(fresh(), checkpoint="every") as dd:
        for round_ in range(3):
            if round_:
                os.kill(dd._serving.supervisor.pid, signal.SIGKILL)
            dd.train(spark.sparkContext.parallelize([1.0] * 4, 4), gradient, descent)
        assert dd.model["seen"] == 12


def test_a_model_that_grows_is_told_what_to_do(spark: SparkSession) -> None:
    def remember(model: Any, update: dict[str, Any]) -> None:
        model["memory"] = update["w"] ** 2

    with DeepDist(fresh()) as dd, pytest.raises(PassFailed, match=r"give it np.zeros"):
        dd.train(spark.sparkContext.parallelize([1.0], 1), gradient, remember)


def test_what_cannot_be_an_update_is_told_with_its_partition(spark: SparkSession) -> None:
    with DeepDist(fresh()) as dd, pytest.raises(PassFailed, match="on partition 0"):
        dd.train(spark.sparkContext.parallelize([1.0], 1), lambda model, rows: "text", descent)


def test_all_problems_of_a_call_come_together(spark: SparkSession) -> None:
    with pytest.raises(InvalidCall, match="no NumPy arrays"):
        DeepDist({"words": ["a"]})
    with DeepDist(fresh()) as dd, pytest.raises(InvalidCall) as caught:
        dd.train([1, 2], None, "descent", patience=0)
    assert len(caught.value.problems) == 4
    with pytest.raises(InvalidCall, match="not running"):
        dd.train(spark.sparkContext.parallelize([1.0], 1), gradient, descent)


def test_functions_that_cannot_travel_are_told_before_anything_runs(spark: SparkSession) -> None:
    context = spark.sparkContext
    rows = context.parallelize([1.0], 1)

    def held(model: Any, other: Any) -> Any:
        return context.parallelize([1.0]).sum()

    with DeepDist(fresh()) as dd, counted_jobs(context) as jobs:
        with pytest.raises(InvalidCall) as error:
            dd.train(rows, held, held)
    first, second = error.value.problems
    assert first.startswith("gradient cannot travel to the workers: ")
    assert second.startswith("descent cannot travel to the workers: ")
    with ModelServer(np.zeros(3)) as server:
        with pytest.raises(InvalidCall, match="the objective cannot travel to the workers: "):
            server.train(rows, held)
    assert jobs == []


def fails_once(model: Any, update: dict[str, Any]) -> None:
    raise KeyError("the first mistake")


def test_r51_a_fault_of_the_server_is_told_with_the_run_that_it_belongs_to(
    spark: SparkSession,
) -> None:
    rows = spark.sparkContext.parallelize([1.0, 2.0], 1)
    with DeepDist(fresh()) as dd:
        with pytest.raises(PassFailed, match="the first mistake"):
            dd.train(rows, gradient, fails_once)
        with pytest.raises(PassFailed, match="division by zero") as second:
            dd.train(rows, lambda model, rows: {"w": 1 / 0}, descent)
    assert "the first mistake" not in str(second.value)


def test_a_server_that_runs_is_not_started_twice(spark: SparkSession) -> None:
    """The first one had no owner any more, and lived on beside the driver."""
    with DeepDist(fresh()) as dd:
        pid = dd._serving.supervisor.pid
        with pytest.raises(InvalidCall, match="it runs already"):
            dd.__enter__()
        dd.train(spark.sparkContext.parallelize([1.0], 1), gradient, descent)
        assert dd._serving.supervisor.pid == pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_run_in_a_run_is_refused_and_does_not_end_it(spark: SparkSession) -> None:
    rows, refused = spark.sparkContext.parallelize([1.0, 2.0], 2), []

    def again(status: dict[str, Any]) -> None:
        with pytest.raises(InvalidCall, match="a run of its server goes on") as error:
            dd.train(rows, gradient, fails_once)
        refused.append(error)

    with DeepDist(fresh()) as dd:
        result = dd.train(rows, gradient, descent, callback=again)
        assert refused and result.counts["applied"] == 2
        dd.train(rows, gradient, descent)
        assert_array_equal(dd.model["seen"], [4.0])


@pytest.mark.parametrize("n_partitions", [0, 3])
def test_data_without_rows_is_told(n_partitions: int, spark: SparkSession) -> None:
    context = spark.sparkContext
    rows = context.parallelize([], 3) if n_partitions else context.emptyRDD()
    with DeepDist(fresh()) as dd, pytest.raises(BadData, match="the data has no rows"):
        dd.train(rows, gradient, descent)
    server = ModelServer(np.zeros(3))
    with server, pytest.raises(BadData, match="the data has no rows"):
        server.train(rows, lambda model, batch: model)

"""The model server with real Spark: optima, faults, errors."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark import TaskContext
from pyspark.sql import SparkSession

from sparkdist import L2, Dataset, Logistic
from sparkdist.blocks import Array, Block, Partial
from sparkdist.consistency import asp, bsp
from sparkdist.errors import InvalidCall, PassFailed, ServerDied, WorkersMissing
from sparkdist.result import Result
from sparkdist.spark.training.model_server import ModelServer
from sparkdist.updaters import adagrad, sgd
from sparkdist.workers import Batches
from tests.conftest import CLUSTER, RETRYING
from tests.faults import Disturbed, fail, kill_executor, wait_for_executors

D = 123


@pytest.fixture(scope="module")
def spark(start: Callable[..., SparkSession], folder: Path) -> SparkSession:
    # The daemon has imported sparkdist already: a task that runs again starts at once.
    return start(RETRYING, folder)


@pytest.fixture(scope="module")
def data(spark: SparkSession, a9a: Block) -> Dataset:
    return Dataset.from_arrays(spark, a9a.X, a9a.y, n_partitions=2)


def train_bsp(data: Dataset, objective: object = None, **options: object) -> Result:
    with ModelServer(np.zeros(D), updater=sgd(0.5), consistency=bsp(), penalty=L2(1e-3)) as server:
        return server.train(data, objective or Logistic(), batch_size=512, epochs=2, **options)


def balanced(result: Result) -> bool:
    counts = dict(result.counts)
    return counts.pop("received") == sum(counts.values())


@pytest.mark.spark
def test_downpour_with_adagrad_comes_within_half_a_percent_of_the_optimum(data: Dataset) -> None:
    # A-L2 of the design: 0.33334075206872, by newton-cg and L-BFGS-B of SciPy.
    with ModelServer(
        np.zeros(D), updater=adagrad(0.1), consistency=asp(), penalty=L2(1e-3)
    ) as server:
        result = server.train(data, "logistic", batch_size=256, epochs=20)
    assert 0.33334075206872 <= result.fun <= 1.005 * 0.33334075206872
    assert result.history.examples[-1] == 20 * 32_561
    assert balanced(result)


@pytest.mark.spark
def test_synchronous_sgd_is_one_process_on_the_same_batches(data: Dataset, a9a: Block) -> None:
    result = train_bsp(data)
    half = len(a9a.y) // 2
    # parallelize deals 32,561 rows out as the first 16,280 and the other 16,281.
    parts = [
        Block(a9a.X[cut], a9a.y[cut], a9a.weight[cut]) for cut in (slice(half), slice(half, None))
    ]
    workers = [Batches([part], 512, seed=0, partition=p) for p, part in enumerate(parts)]
    w = np.zeros(D)
    for epoch in range(2):
        for number in range(workers[0].per_epoch):
            sums = [Logistic().value_and_grad(w, b.get(epoch, number)) for b in workers]
            mean = (sums[0].grad + sums[1].grad) / (sums[0].weight + sums[1].weight)
            w = w - 0.5 * (mean + 1e-3 * w)
    assert_allclose(result.x, w, rtol=1e-12, atol=1e-15)
    assert set(result.staleness) == {0}


@pytest.mark.spark
def test_r2_a_task_that_fails_and_runs_again_changes_no_bit(data: Dataset, tmp_path: Path) -> None:
    undisturbed = train_bsp(data)
    flag = tmp_path / "flag"
    disturbed = train_bsp(data, FailsLate(flag, fail))
    assert flag.exists()
    assert_array_equal(disturbed.x, undisturbed.x)
    assert balanced(disturbed)


class FailsLate(Disturbed):
    """Disturbed in the middle of its work: at its tenth batch."""

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls < 10:
            return Logistic().value_and_grad(w, block)
        return super().value_and_grad(w, block)


@pytest.mark.spark
def test_r11_a_server_that_is_killed_in_the_middle_changes_no_bit(data: Dataset) -> None:
    undisturbed = train_bsp(data)
    with ModelServer(
        np.zeros(D), updater=sgd(0.5), consistency=bsp(), penalty=L2(1e-3), seconds=0.05
    ) as server:
        killed = threading.Event()

        def kill(status: dict[str, object]) -> None:
            if status["version"] > 5 and not killed.is_set():
                killed.set()
                os.kill(server._serving.supervisor.pid, signal.SIGKILL)

        slow = Slow()
        result = server.train(data, slow, batch_size=512, epochs=2, callback=kill)
    assert killed.is_set()
    assert result.restarts == 1
    assert_array_equal(result.x, undisturbed.x)


class Slow(Logistic):
    """Takes its time, so that the driver can look several times."""

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        if TaskContext.get() is not None:
            threading.Event().wait(0.02)
        return super().value_and_grad(w, block)


@pytest.mark.spark
def test_r16_without_checkpoints_a_dead_server_ends_the_run_and_not_the_session(
    data: Dataset, spark: SparkSession
) -> None:
    with ModelServer(np.zeros(D), checkpoint="none") as server:

        def kill(status: dict[str, object]) -> None:
            if status["version"] > 2:
                os.kill(server._serving.supervisor.pid, signal.SIGKILL)

        with pytest.raises(ServerDied, match="no checkpoints"):
            server.train(data, Slow(), epochs=5, callback=kill, patience=20.0)
    assert spark.range(3).count() == 3


@pytest.mark.spark
def test_r22_a_gradient_that_is_not_finite_is_told_with_its_partition(data: Dataset) -> None:
    with ModelServer(np.zeros(D)) as server, pytest.raises(PassFailed, match="partition 1, push 0"):
        server.train(data, Broken())


class Broken(Logistic):
    """Gives a NaN on partition 1."""

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        found = super().value_and_grad(w, block)
        context = TaskContext.get()
        if context is not None and context.partitionId() == 1:
            found.grad[3] = np.nan
        return found


@pytest.mark.spark
def test_more_partitions_than_slots_work_under_bsp(spark: SparkSession, a9a: Block) -> None:
    with Dataset.from_arrays(spark, a9a.X, a9a.y, n_partitions=5) as five:
        result = train_bsp(five)
    assert balanced(result)
    assert result.fun < 0.36


@pytest.mark.spark
def test_all_problems_of_a_call_come_together(data: Dataset) -> None:
    with pytest.raises(InvalidCall) as caught:
        ModelServer(np.zeros(D), updater="sgd", consistency="bsp", checkpoint="often", restarts=-1)
    assert len(caught.value.problems) == 4
    with ModelServer(np.zeros(D)) as server, pytest.raises(InvalidCall) as caught:
        server.train(None, Logistic(), batch_size=0, epochs="3")
    assert len(caught.value.problems) == 3


@pytest.mark.spark
def test_r28_workers_for_whom_there_is_no_free_slot_are_told_with_their_number(
    spark: SparkSession, tmp_path: Path
) -> None:
    taken, free = tmp_path / "taken", tmp_path / "free"

    def take_a_slot(_: int) -> int:
        taken.touch()
        deadline = time.monotonic() + 60
        while not free.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return 1

    rows = spark.sparkContext.parallelize([1.0] * 8, 2)
    one = spark.sparkContext.parallelize([0], 1).map(take_a_slot)
    other = threading.Thread(target=one.collect)
    other.start()
    try:
        while not taken.exists():
            time.sleep(0.05)
        with (
            ModelServer(np.zeros(1), consistency=bsp()) as server,
            pytest.raises(WorkersMissing, match="2 workers .* and 1 came within 2 s"),
        ):
            server.train(rows, lambda model, rows: np.ones(1), patience=2.0)
    finally:
        free.touch()
        other.join()
    assert spark.sparkContext.parallelize(range(4), 4).sum() == 6  # law 4: the session lives


@pytest.mark.cluster
def test_r3_an_executor_that_is_killed_changes_no_bit(
    start: Callable[..., SparkSession], folder: Path, a9a: Block, tmp_path: Path
) -> None:
    session = start(CLUSTER, folder)
    wait_for_executors(session, 2)
    with Dataset.from_arrays(session, a9a.X, a9a.y, n_partitions=2) as data:
        undisturbed = train_bsp(data)
        flag = tmp_path / "flag"
        disturbed = train_bsp(data, FailsLate(flag, kill_executor))
    assert flag.exists()
    assert_array_equal(disturbed.x, undisturbed.x)
    assert balanced(disturbed)

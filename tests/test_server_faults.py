"""Faults in runs with the model server and real Spark: nothing is lost, nothing counts twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark.sql import SparkSession

from sparkdist import Dataset, Logistic, Squared
from sparkdist.blocks import Array, Block, Partial
from sparkdist.consistency import Consistency, asp, bsp
from sparkdist.errors import BadData, PassFailed, ServerDied
from sparkdist.layout import Layout
from sparkdist.objectives import Objective
from sparkdist.result import Result
from sparkdist.spark.training.model_server import ModelServer
from sparkdist.updaters import sgd
from sparkdist.workers import Batches
from tests.conftest import CLUSTER, FULL, random_block
from tests.faults import fail, kill_executor, wait_for_executors
from tests.tally import (
    AfterPush,
    Around,
    From,
    Paced,
    Tally,
    balanced,
    lose_the_route,
    numbered,
    wait_for,
)

pytestmark = pytest.mark.spark

#: Four threads, as many as the widest test has workers that wait for each other; one retry.
FOUR = "local[4,2]"
#: Rows of a tally, in two partitions of 30.
N = 60


@pytest.fixture(scope="module")
def spark(start: Callable[..., SparkSession], folder: Path) -> SparkSession:
    return start(FOUR, folder)


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> Iterator[Dataset]:
    with numbered(spark, N) as rows:
        yield rows


@pytest.fixture(scope="module")
def labelled() -> Block:
    return random_block(n=320, d=5, seed=0)


@pytest.fixture(scope="module")
def data(spark: SparkSession, labelled: Block) -> Iterator[Dataset]:
    with Dataset.from_arrays(spark, *labelled, n_partitions=2) as data:
        yield data


def counting(n_rows: int = N, consistency: Consistency | None = None, **options: Any):
    return ModelServer(
        np.zeros(n_rows), updater=sgd(1.0), consistency=consistency or asp(), **options
    )


def descend(data: Dataset, objective: Objective, epochs: int = 1) -> Result:
    """Take 40 synchronous steps an epoch, whose last bit depends on every gradient."""
    with ModelServer(np.zeros(5), updater=sgd(0.5), consistency=bsp()) as server:
        return server.train(data, objective, batch_size=4, epochs=epochs)


@pytest.fixture(scope="module")
def server(spark: SparkSession) -> Iterator[ModelServer]:
    """A server for those who do not look at its parameters."""
    with counting() as server:
        yield server


def refuse_dead(spark: SparkSession) -> None:
    """Law 4: a failure ends a run, and not the session."""
    assert spark.sparkContext.parallelize(range(4), 4).sum() == 6


# --- tasks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("consistency", "share"), [(asp(), 1.0), (bsp(), 0.5)], ids=repr)
def test_r2_a_task_that_fails_after_its_first_a_middle_or_its_last_push_counts_rows_once(
    rows: Dataset, tmp_path: Path, consistency: Consistency, share: float
) -> None:
    with counting(N, consistency) as server:
        for runs, clock in enumerate((0, 14, 29), start=1):
            flag = tmp_path / f"{clock}"
            result = server.train(rows, AfterPush(Tally(N), clock, flag, fail), batch_size=1)
            assert flag.exists()
            assert_array_equal(result.x, np.full(N, runs * share))
            assert result.counts["applied"] == N
            assert balanced(result)


def test_r26_partitions_of_0_1_2_and_997_rows_are_one_process_under_bsp(
    spark: SparkSession,
) -> None:
    whole, cuts = random_block(n=1000, d=5, seed=1), [0, 0, 1, 3, 1000]
    parts = [
        Block(*(of[first:last] for of in whole))
        for first, last in zip(cuts[:-1], cuts[1:], strict=True)
    ]
    with (
        uneven(spark, [list(zip(*part, strict=True)) for part in parts]) as data,
        ModelServer(np.zeros(5), updater=sgd(0.1), consistency=bsp()) as server,
    ):
        result = server.train(data, "squared", batch_size=16, epochs=2)
    # Law: round r is the r-th batch of every worker that still has one; 997 rows make 63 batches.
    workers = [Batches([part], 16, seed=0, partition=p) for p, part in enumerate(parts)]
    w = np.zeros(5)
    for number in range(2 * 63):
        at = [(b, *divmod(number, b.per_epoch)) for b in workers if number < 2 * b.per_epoch]
        sums = [Squared().value_and_grad(w, b.get(epoch, batch)) for b, epoch, batch in at]
        w = w - 0.1 * sum(s.grad for s in sums) / sum(s.weight for s in sums)
    assert_allclose(result.x, w, rtol=1e-12, atol=1e-15)
    assert result.nit == 126
    assert result.counts["applied"] == 130
    assert balanced(result)


def test_r26_every_row_of_partitions_of_0_1_2_and_997_counts_once_under_asp(
    spark: SparkSession,
) -> None:
    numbers = [[], [0], [1, 2], range(3, 1000)]
    with (
        uneven(spark, [[([float(n)], 0.0, 1.0) for n in part] for part in numbers]) as data,
        counting(1000) as server,
    ):
        result = server.train(data, Tally(1000), batch_size=1)
    assert_array_equal(result.x, np.ones(1000))
    assert balanced(result)


def uneven(spark: SparkSession, partitions: list[list[Any]]) -> Dataset:
    """Rows in the partitions that are given."""
    rdd = spark.sparkContext.parallelize(partitions, len(partitions))
    return Dataset.from_rdd(rdd.flatMap(list))


# --- the server -------------------------------------------------------------------------------


KILLS = 10 if FULL else 3
#: Batches of a worker between two kills; more than it takes while the server is being killed.
BETWEEN = 20


class Killer:
    """A callback that kills the server while the workers of a Held objective push."""

    def __init__(self, server: ModelServer, folder: Path, times: int = KILLS):
        self.server, self.folder, self.times = server, folder, times
        self.kills = self.version = 0

    def __call__(self, status: dict[str, Any]) -> None:
        # It has to have come further since the last time: only then a death can cost anything.
        if self.kills < self.times and status["version"] > self.version:
            self.kills, self.version = self.kills + 1, status["version"]
            (self.folder / f"{self.kills}").touch()
            # The workers look every 10 ms, and a push that is made durable takes some 5 ms.
            time.sleep(0.015 + 0.002 * self.kills)
            os.kill(self.server._serving.supervisor.pid, signal.SIGKILL)


class Held(Around):
    """Waits for the next kill after every ``BETWEEN`` batches."""

    def __init__(self, objective: Objective, folder: Path):
        super().__init__(objective)
        self.folder, self.seen = folder, 0

    def before(self, partition: int, attempt: int) -> None:
        self.seen += 1
        kill, rest = divmod(self.seen, BETWEEN)
        if rest == 0 and kill <= KILLS:
            wait_for(self.folder / f"{kill}")


def test_r11_a_server_that_is_killed_again_and_again_counts_every_row_once(
    rows: Dataset, tmp_path: Path
) -> None:
    with counting(checkpoint="every", restarts=20) as server:
        kill = Killer(server, tmp_path)
        held = Held(Tally(N), tmp_path)
        result = server.train(rows, held, batch_size=1, epochs=KILLS, callback=kill)
    assert result.restarts == kill.kills == KILLS
    assert_array_equal(result.x, np.full(N, float(KILLS)))
    assert result.counts["applied"] == KILLS * N
    assert balanced(result)


def test_r11_a_server_that_is_killed_again_and_again_changes_no_bit_under_bsp(
    data: Dataset, tmp_path: Path
) -> None:
    undisturbed = descend(data, Logistic(), epochs=KILLS)
    with ModelServer(
        np.zeros(5), updater=sgd(0.5), consistency=bsp(), checkpoint="every", restarts=20
    ) as server:
        kill = Killer(server, tmp_path)
        held = Held(Logistic(), tmp_path)
        result = server.train(data, held, batch_size=4, epochs=KILLS, callback=kill)
    assert result.restarts == kill.kills == KILLS
    assert_array_equal(result.x, undisturbed.x)
    assert balanced(result)


# --- runs -------------------------------------------------------------------------------------


class Stop(Exception):
    """What a user's callback raises."""


def test_r6_a_run_that_was_stopped_adds_nothing_to_the_next_one(
    spark: SparkSession, rows: Dataset
) -> None:
    def stop(status: dict[str, Any]) -> None:
        if status["version"] > 5:
            raise Stop

    with counting(2 * N) as server, numbered(spark, N, first=N) as others:
        with pytest.raises(Stop):
            server.train(rows, Paced(Tally(2 * N), 0.2), batch_size=1, callback=stop)
        refuse_dead(spark)
        result = server.train(others, Tally(2 * N), batch_size=1)
    assert_array_equal(result.x[N:], np.ones(N))
    assert set(result.x[:N]) == {0.0, 1.0}  # of the first run each row has counted once or not yet
    assert result.counts["applied"] == N
    assert balanced(result)


class AllEqual(Objective):
    """Moves every coordinate by exactly 1, and raises where it sees some moved and some not."""

    @property
    def own_layout(self) -> Layout:
        return Layout(((None, (20_000,)),))

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        if w.min() != w.max():
            raise AssertionError("half an update was seen")
        return Partial(0.0, np.full(w.size, -1.0), 1.0)


def test_r5_neither_workers_nor_the_driver_see_half_an_update(rows: Dataset) -> None:
    with counting(20_000) as server:
        seen = []
        result = server.train(
            rows, AllEqual(), batch_size=1, epochs=5, callback=lambda _: seen.append(server.model)
        )
    assert len(seen) > 1
    assert all(w.min() == w.max() for w in seen)
    assert_array_equal(result.x, np.full(20_000, 5.0 * N))


class Meets(Paced):
    """Lets the two workers begin together."""

    def __init__(self, objective: Objective, seconds: float, folder: Path):
        super().__init__(objective, seconds)
        self.folder = folder

    def before(self, partition: int, attempt: int) -> None:
        (self.folder / f"{partition}").touch()
        wait_for(self.folder / f"{1 - partition}")
        super().before(partition, attempt)


def test_d4_two_busy_workers_are_on_average_less_than_one_version_behind(
    server: ModelServer, rows: Dataset, tmp_path: Path
) -> None:
    busy = Meets(Tally(N), 0.005, tmp_path)
    result = server.train(rows, busy, batch_size=1, epochs=5)
    # Between a worker's fetch and its push, each push of the other one makes it a version older:
    # no push does so twice, so that the mean is at most P - 1 = 1, which busy workers come near to.
    pushes = sum(result.staleness.values())
    behind = sum(versions * count for versions, count in result.staleness.items())
    assert pushes == 5 * N
    assert 0.5 * pushes < behind <= pushes


# --- what the driver is told: R51 -------------------------------------------------------------


def broken() -> None:
    raise ZeroDivisionError("the user's loss is broken")


def test_r51_a_loss_that_raises_is_told_with_its_partition(
    spark: SparkSession, server: ModelServer, rows: Dataset
) -> None:
    with pytest.raises(PassFailed) as caught:
        server.train(rows, From(Tally(N), 3, broken), batch_size=1)
    assert "ZeroDivisionError: the user's loss is broken" in str(caught.value)
    assert "partition 1" in str(caught.value)
    refuse_dead(spark)


class NaN(Around):
    """Gives a NaN on partition 1."""

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        found = super().value_and_grad(w, block)
        return Partial(found.loss, np.where(block.X[:, 0].max() >= N // 2, np.nan, found.grad), 1.0)


def test_r51_a_gradient_that_is_not_finite_is_told_with_its_partition(
    spark: SparkSession, server: ModelServer, rows: Dataset
) -> None:
    with pytest.raises(PassFailed, match="BadGradient: partition 1, push 0"):
        server.train(rows, NaN(Tally(N)), batch_size=1)
    refuse_dead(spark)


def test_r51_a_route_that_is_lost_is_told_with_its_partition_and_address(
    spark: SparkSession, server: ModelServer, rows: Dataset
) -> None:
    with pytest.raises(PassFailed) as caught:
        server.train(rows, From(Tally(N), 3, lose_the_route), batch_size=1, patience=0.5)
    assert "ServerUnavailable: no push from the model server at 127.0.0.1:" in str(caught.value)
    assert "within 0.5 s; the last try: OSError: [Errno 101]" in str(caught.value)
    assert "partition 1" in str(caught.value)
    refuse_dead(spark)


def test_r51_a_server_that_is_dead_for_good_is_told_with_its_number_of_lives(
    spark: SparkSession, rows: Dataset
) -> None:
    def kill(status: dict[str, Any]) -> None:
        os.kill(mortal._serving.supervisor.pid, signal.SIGKILL)

    with counting(restarts=1) as mortal, pytest.raises(ServerDied, match="started again 1 time"):
        mortal.train(rows, Paced(Tally(N), 0.2), batch_size=1, callback=kill, patience=20.0)
    refuse_dead(spark)


def test_r51_a_label_that_the_loss_does_not_know_is_told_with_its_row(
    spark: SparkSession, server: ModelServer
) -> None:
    y = np.zeros(40)
    y[33] = 2.0
    with (
        Dataset.from_arrays(spark, np.ones((40, N)), y, n_partitions=2) as wrong,
        pytest.raises(BadData, match=r"partition 1, row 13 .* has 2"),
    ):
        server.train(wrong, Logistic())
    refuse_dead(spark)


# --- executors --------------------------------------------------------------------------------


#: Which push each killed executor dies after, and how the server takes pushes then.
ROUNDS = [(0, bsp()), (14, asp()), (29, bsp())]
if FULL:
    ROUNDS += [(0, asp()), (14, bsp()), (29, asp())]


@pytest.mark.cluster
def test_r3_executors_that_are_killed_after_a_push_cost_nothing_three_times_in_a_session(
    start: Callable[..., SparkSession], folder: Path, labelled: Block, tmp_path: Path
) -> None:
    session = start(CLUSTER, folder)
    wait_for_executors(session, 2)
    with (
        Dataset.from_arrays(session, *labelled, n_partitions=2) as data,
        numbered(session, N) as rows,
    ):
        undisturbed = descend(data, Logistic())
        for number, (clock, consistency) in enumerate(ROUNDS):
            wait_for_executors(session, 2)
            flag = tmp_path / f"{number}"
            if consistency == bsp():
                result = descend(data, AfterPush(Logistic(), clock, flag, kill_executor))
                assert_array_equal(result.x, undisturbed.x)
            else:
                tally = AfterPush(Tally(N), clock, flag, kill_executor)
                with counting() as server:
                    result = server.train(rows, tally, batch_size=1)
                assert_array_equal(result.x, np.ones(N))
            assert flag.exists()
            assert balanced(result)

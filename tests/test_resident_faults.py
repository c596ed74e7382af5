"""Faults leave the resident engine's bits as they are: requirement R55, and R16 for its server."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyspark import TaskContext
from pyspark.sql import SparkSession

from sparkdist import Dataset, Logistic, ResidentEngine, Result
from sparkdist.blocks import Array, Block, Partial
from sparkdist.errors import ServerDied
from sparkdist.spark.network import task_slots
from tests import faults, test_speculation
from tests.conftest import CLUSTER, RETRYING
from tests.faults import Disturbed, assert_same, fail, kill_executor, wait_for_executors
from tests.tally import wait_for
from tests.test_resident import is_gone, no_job, status, until

pytestmark = pytest.mark.spark

#: A standalone cluster of two hosts with one core each.
cluster = test_speculation.cluster
QUICK = {"spark.python.daemon.module": "tests.daemon", "spark.python.task.killTimeout": "200ms"}


def solve(data: Dataset, objective: Any = "logistic", engine: Any = "resident", **more: Any):
    return faults.solve(data, objective, engine=engine, deterministic=True, **more)


def same_bits(found: Result, expected: Result) -> bool:
    """Whether nothing can be told from the results."""
    assert_same(found, expected, True)
    return found.history.fun == expected.history.fun


# --- one process ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_data() -> Iterator[ExitStack]:
    """Holds a dataset that is to be closed before the next session begins."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def data(
    start: Callable[..., SparkSession], folder: Path, a9a: Block, open_data: ExitStack
) -> Dataset:
    spark = start(RETRYING, folder, **QUICK)
    return open_data.enter_context(Dataset.from_arrays(spark, a9a.X, a9a.y, n_partitions=3))


@pytest.fixture(scope="module")
def calm(data: Dataset) -> Result:
    """What a run that nobody disturbs gives."""
    return solve(data, engine="aggregate")


def test_a_task_that_fails_in_a_pass_counts_once(data, calm, tmp_path):
    objective = Disturbed(tmp_path / "flag", fail)
    assert same_bits(solve(data, objective), calm)
    assert objective.flag.exists()


def test_a_task_that_fails_between_others_portions_counts_once(data, calm, tmp_path):
    failures = [FailsAt(tmp_path / f"flag-{number}", number) for number in (2, 5)]
    for objective in failures:
        assert same_bits(solve(data, objective), calm)
        assert objective.flag.exists()


class FailsAt(Logistic):
    """Logistic loss that fails once, at an evaluation in the middle of a run."""

    def __init__(self, flag: Path, number: int):
        self.flag, self.number, self.seen = flag, number, 0

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        self.seen += 1
        if self.seen == self.number and not self.flag.exists():
            self.flag.touch()
            fail()
        return super().value_and_grad(w, block)


def kill_server(data: Dataset) -> None:
    os.kill(data.crew._server.pid, signal.SIGKILL)


def test_r16_a_server_that_is_killed_between_two_passes_is_started_again(data, calm):
    def kill_after_the_second(state: Any) -> None:
        if state.nit == 2:
            kill_server(data)

    assert same_bits(solve(data, callback=kill_after_the_second), calm)
    assert data.crew._server.restarts >= 1


def wait_in_pass(folder: Path) -> None:
    """Say that a pass is being worked at, and go on when the test has done its work."""
    (folder / "in a pass").touch()
    wait_for(folder / "go on")


def test_r16_a_server_that_is_killed_in_a_pass_is_started_again(data, calm, tmp_path):
    def kill() -> None:
        wait_for(tmp_path / "in a pass")
        kill_server(data)
        (tmp_path / "go on").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    found = solve(data, Disturbed(tmp_path / "flag", partial(wait_in_pass, tmp_path)))
    killer.join(60)
    assert same_bits(found, calm)
    assert data.crew._server.restarts >= 1


def test_r16_a_server_that_dies_too_often_is_told_and_the_next_call_works(data, calm, monkeypatch):
    data.free_slots()
    monkeypatch.setattr("sparkdist.spark.engines.seat._RESTARTS", 0)
    with pytest.raises(ServerDied):
        solve(data, callback=lambda state: kill_server(data))
    monkeypatch.undo()
    assert same_bits(solve(data), calm)


def stop_here(stopped: Path) -> None:
    """Stop this worker until somebody lets it go on."""
    stopped.write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)


@contextlib.contextmanager
def worker_that_stops(folder: Path) -> Iterator[Disturbed]:
    """Give an objective whose worker stops in its first pass; let it go on in the end."""
    stopped = folder / "stopped"
    try:
        yield Disturbed(folder / "flag", partial(stop_here, stopped))
    finally:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(int(stopped.read_text()), signal.SIGCONT)


def test_the_work_of_a_worker_that_stops_is_done_by_another_one(data, calm, tmp_path):
    with worker_that_stops(tmp_path) as objective:
        assert same_bits(solve(data, objective), calm)
        state = Path(f"/proc/{(tmp_path / 'stopped').read_text()}/stat").read_text()
        assert state.rpartition(")")[2].split()[0] == "T"
        assert status(data)["workers"] == 2
    assert same_bits(solve(data, objective), calm)  # what it brings late changes nothing


def test_blocks_that_a_helper_cannot_open_are_read_by_a_job(data, calm, tmp_path, caplog):
    data.free_slots()
    files = Path(data.blocks[0][0].directory, data.name)

    def hide_the_files() -> None:
        """Partition 1 of the tasks has opened its own: they are hidden from the others alone."""
        files.rename(tmp_path / "hidden")
        stop_here(tmp_path / "stopped")

    with worker_that_stops(tmp_path) as objective:
        objective.disturb = hide_the_files
        with caplog.at_level(logging.WARNING, logger="sparkdist"):
            found = solve(data, objective)
    assert "blocks are not where the workers are" in caplog.text
    assert same_bits(found, calm)


# --- executors as processes -----------------------------------------------------------------


@pytest.fixture(scope="module")
def executors(
    start: Callable[..., SparkSession], folder: Path, open_data: ExitStack
) -> SparkSession:
    open_data.close()
    return start(CLUSTER, folder, **QUICK)


def ports_of(spark: SparkSession) -> set[int]:
    """The ports of the driver and of the executors: one that is started anew has another."""
    tracker = spark.sparkContext._jsc.sc().statusTracker()
    return {info.port() for info in tracker.getExecutorInfos()}


@pytest.mark.cluster
def test_an_executor_that_is_killed_in_a_pass_is_replaced_twice(executors, a9a, tmp_path):
    wait_for_executors(executors, 2)
    with Dataset.from_arrays(executors, a9a.X, a9a.y, n_partitions=4) as data:
        expected = solve(data, engine="aggregate")
        assert same_bits(solve(data), expected)
        for number in range(2):
            until(lambda: task_slots(executors.sparkContext) == 2)
            before = ports_of(executors)
            objective = Disturbed(tmp_path / str(number), kill_executor)
            assert same_bits(solve(data, objective), expected)
            assert objective.flag.exists()
            # With the dead one still listed, or not yet replaced, there is one slot in truth.
            until(
                lambda before=before: (
                    len(ports_of(executors)) == 3 and ports_of(executors) != before
                )
            )
            until(lambda: task_slots(executors.sparkContext) == 2)
        pid = data.crew._server.pid
    assert is_gone(pid)
    until(lambda: no_job(executors.sparkContext))


class SlowFirst(Logistic):
    """Logistic loss in which a worker's first attempt and its copy wait for each other."""

    def __init__(self, folder: Path):
        self.slow, self.copied, self.seen = folder / "slow", folder / "copied", 0

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        context = TaskContext.get()
        self.seen += 1
        if context is not None and self.seen == 2:
            mine, other = self.slow, self.copied
            if context.attemptNumber() > 0:
                mine, other = other, mine
            mine.touch()
            wait_for(other)
        return super().value_and_grad(w, block)


@pytest.mark.cluster
def test_a_speculative_copy_and_its_original_count_once(
    start: Callable[..., SparkSession],
    cluster: str,
    folder: Path,
    tmp_path: Path,
    a9a: Block,
    open_data: ExitStack,
) -> None:
    open_data.close()
    spark = start(cluster, folder, **QUICK, **test_speculation.SPECULATION)
    wait_for_executors(spark, 2)
    # The worker of the empty partition goes home at once: Spark takes the other one for late.
    rows = [[], [(a9a.X[i : i + 2000], a9a.y[i : i + 2000]) for i in range(0, 32561, 2000)]]
    with Dataset.from_rdd(spark.sparkContext.parallelize(rows, 2).flatMap(list)) as data:
        expected = solve(data, engine="aggregate")
        objective = SlowFirst(tmp_path)
        found = solve(data, objective, ResidentEngine(data, idle=60.0))
        assert same_bits(found, expected)
        assert status(data)["workers"] == 2
    assert objective.slow.exists() and objective.copied.exists()
    spark.stop()

"""A job that gets no task slot: one warning that says what to do, and an end where one is asked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark import SparkContext
from pyspark.sql import SparkSession

from sparkdist import Dataset, DeepDist
from sparkdist.errors import WorkersMissing
from sparkdist.spark import first_task
from sparkdist.spark.jobs import run_job
from tests.conftest import LOCAL

pytestmark = pytest.mark.spark


def active_jobs(context: SparkContext) -> list[int]:
    context._jsc.sc().listenerBus().waitUntilEmpty()  # the tracker hears of jobs through a queue
    return context.statusTracker().getActiveJobsIds()


class Enough:
    """Ends a job after some warnings, or after a minute."""

    def __init__(self, caplog: pytest.LogCaptureFixture, count: int):
        self.caplog, self.count, self.began = caplog, count, time.monotonic()

    def __call__(self) -> BaseException | None:
        warned = len(self.caplog.messages) >= self.count
        return StopIteration() if warned or time.monotonic() > self.began + 60 else None


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Warn after a second, and every second from then on."""
    monkeypatch.setattr(first_task, "_FIRST", 1.0)
    monkeypatch.setattr(first_task, "_AGAIN", 1.0)
    monkeypatch.setattr(first_task, "_APART", 0.5)
    caplog.set_level(logging.WARNING, logger="sparkdist")


# --- a cluster whose one worker has fewer cores than an executor asks for ---------------------


@pytest.fixture(scope="module")
def starved(start: Callable[..., SparkSession], folder: Path) -> SparkSession:
    impossible = {"spark.executor.cores": "2", "spark.executor.memory": "900m"}
    return start("local-cluster[1,1,1024]", folder, **impossible)


@pytest.mark.cluster
def test_a_cluster_without_executors_is_warned_of_now_and_then(starved, soon, caplog):
    context = starved.sparkContext
    with pytest.raises(StopIteration):
        run_job(context, context.parallelize([1], 1).count, Enough(caplog, 2))
    conf = context.getConf()
    for message in caplog.messages:
        assert "live executors: 0, running tasks: 0;" in message
        assert f"The master is {context.master};" in message
        address = f"{conf.get('spark.driver.host')}:{conf.get('spark.driver.port')}"
        assert f"call the driver at {address} (spark.driver.host, spark.driver.port)" in message
        assert "set spark.driver.host to one that they can reach" in message
        assert "spark.executor.cores (2), spark.executor.memory (900m)" in message
    assert len(caplog.messages) == 2
    assert active_jobs(context) == []


@pytest.mark.cluster
def test_an_ingest_that_is_interrupted_while_it_waits_ends_at_once(starved, soon, monkeypatch):
    def interrupt(*message: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(first_task.logger, "warning", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Dataset.from_arrays(starved, np.eye(2), [0, 1])
    assert active_jobs(starved.sparkContext) == []


@pytest.mark.cluster
def test_training_does_not_wait_longer_for_a_first_executor_than_patience(starved):
    rdd = starved.sparkContext.parallelize([1.0, 2.0], 2)
    with DeepDist({"w": np.zeros(1)}) as dd:
        with pytest.raises(WorkersMissing, match="no task of this job for 1 s.* live executors: 0"):
            dd.train(rdd, lambda model, rows: None, lambda model, update: None, patience=1.0)


# --- slots that others have -------------------------------------------------------------------


@pytest.fixture
def local(start: Callable[..., SparkSession], folder: Path) -> SparkContext:
    # Spark's books are written at once, and not with the next heartbeat.
    return start(LOCAL, folder, **{"spark.ui.liveUpdate.period": "0ms"}).sparkContext


def wait_for(flag: Path) -> Callable[[int], int]:
    def wait(number: int) -> int:
        deadline = time.monotonic() + 60
        while not flag.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return number

    return wait


@pytest.fixture
def busy(local: SparkContext, tmp_path: Path) -> Iterator[Path]:
    """All slots have a task that ends when this file is there."""
    flag = tmp_path / "flag"
    job = local.parallelize([0, 1], 2).map(wait_for(flag)).count
    other = threading.Thread(target=job)
    other.start()
    deadline = time.monotonic() + 60
    while sum(info.numRunningTasks for info in local.statusTracker().getExecutorInfos()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield flag
    flag.touch()
    other.join()


def test_a_job_that_waits_for_others_is_told_so_and_runs_then(local, busy, soon, caplog):
    def release() -> None:
        if caplog.messages:
            busy.touch()

    assert run_job(local, local.parallelize([1, 2, 3], 1).count, release, patience=0.5) == 3
    assert "live executors: 1, running tasks: 2;" in caplog.messages[0]
    assert "It waits for slots that other jobs have." in caplog.messages[0]


def test_a_long_job_whose_tasks_run_is_not_warned_of(local, tmp_path, soon, caplog):
    flag, began = tmp_path / "flag", time.monotonic()

    def end() -> None:
        if time.monotonic() > began + 4:
            flag.touch()

    local.parallelize([1], 1).count()  # the first job of a session begins with its workers
    assert run_job(local, local.parallelize([1], 1).map(wait_for(flag)).count, end) == 1
    assert caplog.messages == []

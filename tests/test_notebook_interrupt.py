"""A cell that is stopped leaves no job, process, port or folder, and can be run again: R18.

A real kernel, and the interrupt that a notebook's stop button sends.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import psutil
import pytest

from tests.conftest import FULL
from tests.test_notebooks import start_kernel

pytestmark = pytest.mark.spark

#: The functions tell the test that a task has begun, and then take long.
PREPARED = """
import json, time
from pathlib import Path

import numpy as np
from pyspark.sql import SparkSession

import sparkdist

spark = (
    SparkSession.builder.master("local[2]")
    .config("spark.ui.enabled", "false")
    .config("spark.ui.showConsoleProgress", "false")
    .config("spark.log.level", "OFF")
    .config("spark.python.task.killTimeout", "300ms")  # 2 s by default, for a sleep to end
    .getOrCreate()
)
X, y = sparkdist.datasets.load("a9a")
data = sparkdist.Dataset.from_arrays(spark, X, y)
w0, began = np.zeros(123), Path({began!r})

def slow(w, X, y):
    began.touch()
    time.sleep(120)
    return float(len(y)), X.T @ y

def read(split):
    began.touch()
    time.sleep(120)
    return X[:5].toarray(), y[:5]

def jobs():
    return len(spark.sparkContext.statusTracker().getActiveJobsIds())
"""
STOPPED = {
    "a job a pass": "sparkdist.minimize(slow, data, w0, engine='aggregate')",
    "in order": "sparkdist.minimize(slow, data, w0, engine='aggregate', deterministic=True)",
    "resident": "sparkdist.minimize(slow, data, w0, engine='resident')",
    "downpour": "sparkdist.minimize(slow, data, w0, method='downpour')",
    "sgd": "sparkdist.minimize(slow, data, w0, method='sgd')",
    "server": "with sparkdist.ModelServer(w0) as server: server.train(data, slow)",
    "ingest": "sparkdist.Dataset.from_rdd(spark.sparkContext.parallelize([1, 2], 2).map(read))",
}
#: Two tasks: they wait for as long as one that was stopped holds a slot.
SLOTS = "spark.sparkContext.parallelize([1, 2], 2).map(abs).collect()"
#: A-L2, on which newton-cg and L-BFGS-B agree.
OPTIMUM = 0.33334075206872
AGAIN = """
found = sparkdist.minimize("logistic", data, penalty=sparkdist.L2(1e-3), tol=1e-8)
with sparkdist.ModelServer(w0) as server:
    trained = server.train(data, "logistic", batch_size=1000)
"""


class Kernel:
    """A notebook's kernel, as Jupyter sees it."""

    def __init__(self, folder: Path):
        self.folder, self.began = folder, folder / "began"
        self.manager, self.client = start_kernel(TMPDIR=str(folder))
        self.process = psutil.Process(self.manager.provisioner.pid)
        assert self.run(PREPARED.format(began=str(self.began)))[1] == ""

    def run(self, code: str, stop: bool = False, seconds: float = 240) -> tuple[str, str]:
        """Run a cell; press stop when a task of it has begun.  What it printed, and raised."""
        self.began.unlink(missing_ok=True)
        sent, printed, raised = self.client.execute(code), "", ""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if stop and self.began.exists():
                time.sleep(0.5)  # into the middle of what is waited for
                self.manager.interrupt_kernel()
                stop = False
            try:
                told = self.client.get_iopub_msg(timeout=0.1)
            except Empty:
                continue
            if told["parent_header"].get("msg_id") != sent:
                continue
            printed += told["content"].get("text", "")
            raised = told["content"].get("ename", raised)
            if told["content"].get("execution_state") == "idle":
                return printed, raised
        raise AssertionError(f"the cell did not end; it printed {printed}")

    def ask(self, expression: str) -> Any:
        """Give the value of an expression."""
        printed, raised = self.run(f"print(json.dumps({expression}))")
        assert raised == ""
        return json.loads(printed)

    def servers(self) -> list[psutil.Process]:
        """Processes of model servers."""
        children = self.process.children(recursive=True)
        return [child for child in children if "sparkdist.server.process" in command(child)]

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


def command(process: psutil.Process) -> list[str]:
    """Its arguments; none of a process that has ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def listening(process: psutil.Process) -> set[int]:
    """Ports of it and of its children."""
    found: set[int] = set()
    for one in (process, *process.children(recursive=True)):
        try:
            connections = one.net_connections("inet")
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        found |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def until(holds: Any) -> None:
    """Wait for something; the deadline only keeps a test from hanging."""
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    started = Kernel(tmp_path_factory.mktemp("kernel"))
    yield started
    started.close()


@pytest.mark.parametrize("name", STOPPED)
def test_r18_a_cell_that_is_stopped_leaves_no_job_process_port_or_folder(
    name: str, kernel: Kernel
) -> None:
    before = listening(kernel.process)
    for _ in range(2 if FULL else 1):  # the cell that is run again is stopped again
        printed, raised = kernel.run(STOPPED[name], stop=True)
        assert raised == "KeyboardInterrupt"
        assert "Traceback" not in printed  # nobody logs what the interrupt broke
        until(lambda: kernel.ask("jobs()") == 0)
        kernel.run(SLOTS, seconds=60)  # Spark kills a task soon; one that it left takes 120 s
        until(lambda: kernel.servers() == [])
        until(lambda: listening(kernel.process) <= before)
        assert list(kernel.folder.glob("sparkdist-*")) == []


def test_r18_after_all_of_that_the_session_works(kernel: Kernel) -> None:
    assert kernel.run(AGAIN)[1] == ""
    fun, counts = kernel.ask("[found.fun, trained.counts]")
    assert fun == pytest.approx(OPTIMUM, abs=1e-11)
    # 32,561 rows in two partitions are 17 batches of at most 1,000 in each.
    assert counts["applied"] == counts["received"] == 34


def test_what_a_server_leaves_while_it_runs_is_seen(kernel: Kernel) -> None:
    before = listening(kernel.process)
    kernel.run("server = sparkdist.ModelServer(w0).__enter__()")
    assert len(kernel.servers()) == 1 and len(listening(kernel.process) - before) == 1
    assert list(kernel.folder.glob("sparkdist-*")) != []
    kernel.run("server.__exit__(None, None, None)")
    until(lambda: kernel.servers() == [] and listening(kernel.process) == before)

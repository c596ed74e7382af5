"""Speculative copies leave the result as it is: requirement R55.

Spark starts a copy only on another host, so the cluster is a standalone one whose two workers
live on the loopback addresses 127.0.0.2 and 127.0.0.3.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark import TaskContext
from pyspark.sql import SparkSession

from sparkdist import Dataset, Logistic
from sparkdist.blocks import Array, Block, Partial
from tests.faults import assert_same, solve, wait_for_executors

pytestmark = [pytest.mark.spark, pytest.mark.cluster]

SPECULATION = {
    "spark.speculation": "true",
    "spark.speculation.interval": "50ms",
    "spark.speculation.quantile": "0.5",
    "spark.speculation.multiplier": "1.1",
    "spark.speculation.minTaskRuntime": "100ms",
}


class SlowOnce(Logistic):
    """Logistic loss whose first task on partition 1 hangs, until its copy has won."""

    def __init__(self, folder: Path):
        self.slow, self.copied = folder / "slow", folder / "copied"

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        context = TaskContext.get()
        if context is not None and context.partitionId() == 1:
            if context.attemptNumber() > 0:
                self.copied.touch()
            elif not self.slow.exists():
                self.slow.touch()
                time.sleep(60)
        return super().value_and_grad(w, block)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[str]:
    """Run a master and two workers; give the master's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    master = f"spark://127.0.0.1:{port}"
    roles = [("master.Master", ["--host", "127.0.0.1", "--port", str(port)])]
    for host in ("127.0.0.2", "127.0.0.3"):
        where = ["-h", host, "-c", "1", "-m", "1g", "-d", str(folder / host)]
        roles.append(("worker.Worker", [*where, master]))
    processes = [run(role, [*arguments, "--webui-port", "0"]) for role, arguments in roles]
    yield master
    for process in processes:
        process.kill()
        process.wait(timeout=30)


def run(role: str, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a process of a standalone cluster."""
    # exec: the process that is killed at the end is the JVM, not a shell around it.
    command = [f"{os.environ['SPARK_HOME']}/bin/spark-class", f"org.apache.spark.deploy.{role}"]
    return subprocess.Popen(
        [*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_speculative_copy_that_wins_counts_once(
    start: Callable[..., SparkSession],
    cluster: str,
    folder: Path,
    tmp_path: Path,
    a9a: Block,
    deterministic: bool,
) -> None:
    spark = start(cluster, folder, **SPECULATION)
    wait_for_executors(spark, 2)
    with Dataset.from_arrays(spark, a9a.X, a9a.y, n_partitions=4) as data:
        expected = solve(data, deterministic=deterministic)
        objective = SlowOnce(tmp_path)
        found = solve(data, objective, deterministic=deterministic)
    assert objective.slow.exists()
    assert objective.copied.exists()
    assert_same(found, expected, deterministic)
    spark.stop()

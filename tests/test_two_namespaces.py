"""A driver and executors in different networks, whose addresses differ: requirement R29.

The standalone cluster lives in one network namespace and the driver in another.  Executors call the
driver by an address that leads to it and that is not the one on the wire; it listens at 0.0.0.0.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from scipy.optimize import minimize as by_scipy

from sparkdist import L2, Dataset, Logistic, ModelServer, Result, minimize
from sparkdist.consistency import bsp
from sparkdist.errors import ServerUnavailable
from sparkdist.objectives import Objective
from sparkdist.updaters import sgd
from tests.conftest import FULL, random_block, start_session
from tests.faults import wait_for_executors
from tests.tally import Paced, balanced
from tests.test_server_network import Link, without_namespaces

pytestmark = [pytest.mark.spark, pytest.mark.cluster]

#: Ends of the wire: see Link, whose server side is the driver's here.
DRIVER, CLUSTER = "10.77.0.1", "10.77.0.2"
#: By this address, which is no end of the wire, executors know the driver.
ADVERTISED = "10.78.0.1"
MASTER = f"spark://{CLUSTER}:7077"
#: Spark's own ports on the driver, where nothing else is let through.
PORTS = {"spark.driver.port": "10001", "spark.driver.blockManager.port": "10002"}
#: Seconds that the link is down in a run, and that a driver may take before it is killed.
DOWN = 20.0 if FULL else 2.0
LIMIT = 180.0


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    if said := without_namespaces():
        pytest.skip(said)
    with Link() as link:
        link.ip("-n", link.server, "addr", "add", f"{ADVERTISED}/32", "dev", "lo")
        link.ip("-n", link.client, "route", "add", ADVERTISED, "via", DRIVER)
        yield link


@pytest.fixture(scope="module", autouse=True)
def cluster(link: Link, folder: Path) -> Iterator[None]:
    """A master and a worker with two task slots."""
    at = ["--host", CLUSTER, "--webui-port", "0"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(link, "master.Master", *at, "--port", "7077"))
        deadline = time.monotonic() + 60
        while not answers(link):
            assert time.monotonic() < deadline, "the master did not come"
            time.sleep(0.2)
        size = ["--cores", "2", "--memory", "1g", "--work-dir", str(folder)]
        stack.enter_context(running(link, "worker.Worker", *at, *size, MASTER))
        yield


@contextlib.contextmanager
def running(link: Link, role: str, *arguments: str) -> Iterator[None]:
    """A process of the cluster, on its side of the link."""
    spark_class = f"{os.environ['SPARK_HOME']}/bin/spark-class"
    command = ["ip", "netns", "exec", link.client, spark_class, f"org.apache.spark.deploy.{role}"]
    process = subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, "SPARK_LOCAL_IP": CLUSTER},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait(timeout=30)


def answers(link: Link) -> bool:
    """Whether the master listens."""
    knock = ["bash", "-c", f"</dev/tcp/{CLUSTER}/7077"]
    command = ["ip", "netns", "exec", link.client, *knock]
    return subprocess.run(command, capture_output=True, timeout=20).returncode == 0


class Driver:
    """A process on the driver's side that runs a function of this module, and what it says."""

    def __init__(self, link: Link, function: str, folder: Path):
        script = "import sys; from tests import test_two_namespaces as here;"
        self._run = link.run(link.server, f"{script} here.{function}(sys.argv[1])", str(folder))

    def __enter__(self) -> Driver:
        self._process = self._run.__enter__()
        self._limit = threading.Timer(LIMIT, self._process.kill)
        self._limit.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._run.__exit__(*error)
        self._limit.cancel()

    def hears(self, key: str) -> Any:
        """The value of the next line that has the key."""
        assert self._process.stdout
        for line in self._process.stdout:
            said = json.loads(line)
            if key in said:
                return said[key]
        raise AssertionError(f"the driver ended before it said {key}")


# --- the driver's side ------------------------------------------------------------------------


def say(**said: Any) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def session(folder: str, **conf: str) -> Iterator[SparkSession]:
    where = {"spark.driver.host": ADVERTISED, "spark.driver.bindAddress": "0.0.0.0"}
    spark = start_session(MASTER, Path(folder), **where, **conf)
    try:
        yield spark
    finally:
        spark.stop()


def rows() -> Any:
    return random_block(n=320, d=5, seed=0)


class Progress:
    """A callback that says how far a run is, and knows for how long it once stood still."""

    def __init__(self, key: str):
        self.key, self.seen, self.since, self.stood = key, 0, time.monotonic(), 0.0

    def __call__(self, now: Any) -> None:
        at = now["nit"] if self.key == "iteration" else now["version"]
        if at != self.seen:
            self.stood = max(self.stood, time.monotonic() - self.since)
            self.seen, self.since = at, time.monotonic()
            say(**{self.key: at})


def exactly(data: Dataset, objective: Objective, progress: Progress | None = None) -> Result:
    return minimize(
        objective, data, penalty=L2(1e-3), tol=1e-9, deterministic=True, callback=progress
    )


def on_the_server(data: Dataset, objective: Objective, progress: Progress | None = None) -> Result:
    """Synchronous descent, whose last bit depends on every gradient."""
    with ModelServer(np.zeros(5), updater=sgd(0.5), consistency=bsp()) as server:
        result = server.train(data, objective, batch_size=4, epochs=2, callback=progress)
    assert balanced(result)
    return result


def train_twice(folder: str) -> None:
    """By both paths: at once, then slowly enough for the link to go down in mid-run."""
    with session(folder) as spark:
        wait_for_executors(spark, 1)
        with Dataset.from_arrays(spark, *rows(), n_partitions=2) as data:
            for path, key in ((exactly, "iteration"), (on_the_server, "version")):
                expected, progress = path(data, Logistic()), Progress(key)
                found = path(data, Paced(Logistic(), 0.05), progress)
                same = bool(np.array_equal(found.x, expected.x))
                say(result={"fun": found.fun, "same_bits": same, "stood": progress.stood})


def train_behind_a_firewall(folder: str) -> None:
    with (
        session(folder, **PORTS) as spark,
        Dataset.from_arrays(spark, *rows(), n_partitions=2) as data,
        ModelServer(np.zeros(5)) as server,
    ):
        try:
            server.train(data, Logistic())
        except ServerUnavailable as error:
            say(error=[str(error), server.status()["counts"]])


# --- the tests --------------------------------------------------------------------------------


def test_r29_both_paths_outlive_a_link_that_goes_down_between_driver_and_executors(
    link: Link, folder: Path
) -> None:
    with Driver(link, "train_twice", folder) as driver:
        results = []
        for key, when in (("iteration", 3), ("version", 20)):
            while driver.hears(key) < when:
                continue
            link.cut(DOWN)
            results.append(driver.hears("result"))
    exact, stochastic = results
    assert exact["same_bits"] and stochastic["same_bits"]
    assert min(exact["stood"], stochastic["stood"]) > 0.9 * DOWN  # it was down, and they waited
    X, y, weight = rows()

    def loss(w: Any) -> float:
        mean = np.average(np.logaddexp(0, X @ w) - y * (X @ w), weights=weight)
        return float(mean + 0.5e-3 * w @ w)

    optimum = by_scipy(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-8}).fun
    assert exact["fun"] == pytest.approx(optimum, rel=1e-10)


def test_an_advertised_address_that_does_not_lead_to_the_server_is_told_before_training(
    link: Link, folder: Path
) -> None:
    hidden = ("to", ADVERTISED, "ipproto", "tcp", "dport", "10003-65534", "unreachable")
    link.ip("-n", link.client, "rule", "add", *hidden)
    try:
        with Driver(link, "train_behind_a_firewall", folder) as driver:
            said, counts = driver.hears("error")
    finally:
        link.ip("-n", link.client, "rule", "del", *hidden)
    assert re.search(rf"cannot reach the model server at {ADVERTISED}:\d+ ", said)
    assert "spark.driver.host" in said
    assert not any(counts.values())

"""The doctor in real sessions: local, on executor processes, and lied to.

Under spark-submit it is in test_jobs.py.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from sparkdist.commands import _facts, doctor
from sparkdist.commands._finding import FIX, NOTE, OK, Finding
from sparkdist.spark import network
from tests.conftest import CLUSTER, QUICK_JAVA
from tests.test_house import ROOT

pytestmark = pytest.mark.spark

OPTIONS = argparse.Namespace(master=None, conf=[], patience=120.0)


def examine(**changes: object) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in doctor.examine(argparse.Namespace(**{**vars(OPTIONS), **changes})):
        found.setdefault(finding.about, []).append(finding)
    return found


@pytest.fixture
def stays(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> Iterator[SparkSession]:
    """The module's session, which the doctor would stop; its workers' environment afterwards."""
    monkeypatch.setattr(SparkSession, "stop", lambda session: None)
    context = spark.sparkContext
    before = context.pythonExec, dict(context.environment)
    yield spark
    context.pythonExec, context.environment = before


def test_a_sound_session_has_nothing_to_fix(stays):
    found = examine()
    assert [line for line in sum(found.values(), []) if line.level == FIX] == []
    for about in ("Python", "Java", "Spark", "packages", "session", "executors", "versions"):
        assert found[about][0].level == OK
    assert found["network"][0].found == "every executor reaches the driver at 127.0.0.1"
    assert found["slots"][0].found == "2 task slots on 1 executor"
    assert "1 thread in a task" in found["BLAS"][0].found  # OMP_NUM_THREADS of conftest.py


def test_the_workers_packages_are_those_that_they_see(stays, tmp_path):
    fake = tmp_path / "scipy-1.0.0.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: scipy\nVersion: 1.0.0\n")
    stays.sparkContext.environment["PYTHONPATH"] = f"{tmp_path}:{os.environ['PYTHONPATH']}"
    (finding,) = examine()["scipy"]
    assert finding.level == FIX
    assert finding.found.startswith("1.0.0 on ")


def test_a_python_that_is_not_there_is_a_line(stays):
    stays.sparkContext.pythonExec = "/nowhere/python"
    (finding,) = examine()["executors"]
    assert finding.level == FIX
    assert "/nowhere/python" in finding.found and "\n" not in finding.found


def test_an_address_that_executors_cannot_reach_is_found(stays, monkeypatch):
    # The loopback network has 127.0.0.2 too, where nobody listens.
    monkeypatch.setattr(network, "driver_host", lambda context: "127.0.0.2")
    monkeypatch.setattr(network, "bind_host", lambda context, host: "127.0.0.1")
    (finding,) = examine()["network"]
    assert finding.level == FIX
    assert "cannot reach a port of the driver at 127.0.0.2:" in finding.found
    assert finding.todo.startswith("set spark.driver.host to an address")


def test_executors_that_do_not_answer_are_not_waited_for(stays):
    found = examine(patience=0.0)
    (finding,) = found["executors"]
    assert finding.level == FIX
    assert "no executor has answered within 0 s" in finding.found
    assert "network" not in found
    assert stays.sparkContext.statusTracker().getActiveJobsIds() == []


def test_settings_are_read_off_the_session(stays):
    context = stays.sparkContext
    cluster = _facts.ask_cluster(context, 120.0)
    assert cluster.local and cluster.slots == 2
    assert cluster.settings["spark.ui.enabled"] == "false"
    (machine,) = cluster.executors
    assert machine.folders and all(room > 0 for _, room, _ in machine.folders)


def test_a_master_that_spark_does_not_know_is_a_line_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "sparkdist", "doctor", "--master", "nonsense"],
        env=os.environ | QUICK_JAVA,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert "[JAVA_GATEWAY_EXITED]" in done.stdout  # why is in what the JVM itself has printed
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 to fix"


@pytest.mark.cluster
def test_every_executor_process_is_asked(
    start: Callable[..., SparkSession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(CLUSTER, tmp_path)
    monkeypatch.setattr(SparkSession, "stop", lambda session: None)
    found = examine()
    assert [line for line in sum(found.values(), []) if line.level == FIX] == []
    assert found["executors"][0].found.startswith("2 answered on ")
    assert found["slots"][0].found == "2 task slots on 2 executors"
    assert NOTE not in {line.level for line in found["network"]}

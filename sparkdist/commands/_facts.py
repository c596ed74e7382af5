"""What the doctor looks at: the installation, and the cluster of a session.

The first needs no package that could be missing, but packaging.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement

from sparkdist.commands import _probe
from sparkdist.commands._probe import Blas, Machine

__all__ = ["Cluster", "Installation", "Java", "ask_cluster", "find_installation", "find_java"]

#: Tasks at most, and seconds that each stays in its slot while the others find theirs.
_MOST, _STAY = 256, 0.5


class Java(NamedTuple):
    """The Java that Spark will run."""

    #: "" if there is none.
    path: str
    #: "17", or "1.8" of old ones; "" if it does not answer.
    version: str


class Installation(NamedTuple):
    """What is there before a session is."""

    python: str
    executable: str
    requires_python: str
    #: Environment variables, "" if not set.
    pyspark_python: str
    spark_home: str
    spark_remote: str
    #: The first python3 on the PATH, "" if there is none.
    python3: str
    #: What is imported, "" if nothing is; spark-submit brings one without metadata.
    pyspark: str
    #: The Spark in SPARK_HOME; "" if there is none.
    spark: str
    #: What sparkdist needs, and the version that is there: None if none, "" if it has none.
    packages: list[tuple[Requirement, str | None]]


class Cluster(NamedTuple):
    """A session, and what its driver and its executors say of themselves."""

    master: str
    #: The address of the driver that Spark advertises.
    host: str
    slots: int
    settings: Mapping[str, str]
    #: Settings by which Spark encrypts.
    encryption: list[str]
    driver: Machine
    #: One Python worker of each executor.
    executors: list[Machine]

    @property
    def local(self) -> bool:
        """Whether the executor is the driver's own JVM."""
        return self.master.split("[")[0] == "local"


def find_installation() -> Installation:
    """Look at the driver's Python and Spark."""
    home = os.environ.get("SPARK_HOME", "")
    needs = [Requirement(line) for line in metadata.requires("sparkdist") or ()]
    needs = [need for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return Installation(
        python=platform.python_version(),
        executable=sys.executable,
        requires_python=metadata.metadata("sparkdist")["Requires-Python"],
        pyspark_python=os.environ.get("PYSPARK_PYTHON", ""),
        spark_home=home,
        spark_remote=os.environ.get("SPARK_REMOTE", ""),
        python3=shutil.which("python3") or "",
        pyspark=_pyspark(),
        spark=_version_of_spark(home),
        packages=[
            (need, _pyspark() or None if need.name == "pyspark" else _probe.version_of(need.name))
            for need in needs
        ],
    )


def _pyspark() -> str:
    try:
        from pyspark.version import __version__
    except ImportError:
        return ""
    return __version__


def _version_of_spark(home: str) -> str:
    jars = Path(home, "jars").glob("spark-core_*.jar") if home else ()
    found = (re.fullmatch(r"spark-core_[\d.]+-(.+)\.jar", jar.name) for jar in jars)
    return next((match[1] for match in found if match), "")


def find_java() -> Java:
    """Ask the Java that Spark's scripts choose: JAVA_HOME's, else the first on the PATH."""
    home = os.environ.get("JAVA_HOME")
    path = str(Path(home, "bin", "java")) if home else shutil.which("java") or ""
    if not path:
        return Java("", "")
    try:
        told = subprocess.run(
            [path, "-XshowSettings:properties", "-version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return Java(path, "")
    found = re.search(r"java\.specification\.version = ([\d.]+)", told)
    return Java(path, found[1] if found else "")


def ask_cluster(context: Any, patience: float) -> Cluster:
    """Run a task in every slot, and look at the driver in the same way.

    Raises
    ------
    TimeoutError
        If no answer came within ``patience`` seconds.
    """
    from sparkdist.spark.network import bind_host, driver_host, encryption_of, task_slots

    conf, host = context.getConf(), driver_host(context)
    executors: dict[tuple[str, int], Machine] = {}
    asked = 0
    # The kernel takes the connections: nobody needs to accept them.
    with socket.create_server((bind_host(context, host), 0), backlog=_MOST) as listening:
        port = listening.getsockname()[1]
        # Executors may still be coming while the first ones answer.
        while (slots := min(task_slots(context), _MOST)) > asked:
            asked = slots
            for machine in _ask(context, host, port, asked, patience):
                executors[machine.host, machine.parent] = machine
    return Cluster(
        master=str(context.master),
        host=host,
        slots=task_slots(context),
        settings=dict(conf.getAll()),
        encryption=encryption_of(conf, host),
        driver=_machine(_probe.look([])),
        executors=list(executors.values()),
    )


def _ask(context: Any, host: str, port: int, n: int, patience: float) -> list[Machine]:
    """Visit n task slots."""
    from pyspark import cloudpickle

    from sparkdist.spark.training.train import run_job

    job = context.parallelize(range(n), n).mapPartitions(
        functools.partial(_probe.visit, host, port, _STAY)
    )
    deadline = time.monotonic() + patience

    def look() -> BaseException | None:
        if time.monotonic() < deadline:
            return None
        return TimeoutError(f"no executor has answered within {patience:g} s")

    cloudpickle.register_pickle_by_value(_probe)  # type: ignore[no-untyped-call]
    try:
        found = run_job(context, job.collect, look)
    finally:
        cloudpickle.unregister_pickle_by_value(_probe)  # type: ignore[no-untyped-call]
    return [_machine(answer) for answer in found]


def _machine(answer: dict[str, Any]) -> Machine:
    """Make a Machine of an answer."""
    blas = answer["blas"]
    named = None if blas is None else [Blas(*library) for library in blas]
    return Machine(**{**answer, "blas": named})

"""Fixtures that every test may ask for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before NumPy reads them
    os.environ.setdefault(name, "1")

import numpy as np
import pyspark
import pytest
from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from sparkdist import datasets
from sparkdist.blocks import Array, Block

# Before any JVM starts: local-cluster needs SPARK_HOME, and workers are to run this Python.
os.environ["SPARK_HOME"] = str(Path(pyspark.__file__).parent)
os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
os.environ["PYSPARK_PYTHON"] = sys.executable
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])

#: ``make test-all`` sets it: the long checks at full strength.
FULL = os.environ.get("SPARKDIST_FULL") == "1"

#: Two threads; two threads with retries; two executor processes, which Spark starts anew if lost.
LOCAL, RETRYING, CLUSTER = "local[2]", "local[2,4]", "local-cluster[2,1,1024]"

#: A JVM for short lives: a third less CPU.  ``java`` reads it where a test starts one by itself.
QUICK_JAVA = {"JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}

#: Task input without TCP's delays, for local sessions: clusters are tested as users have them.
_QUICK = {"spark.python.unix.domain.socket.enabled": "true"}


def start_session(master: str, folder: Path, **conf: str) -> SparkSession:
    """Start a quiet session whose blocks lie below ``folder``."""
    # What a JVM is started with is the default of all sessions that come after it in a process.
    of_all = SparkConf(loadDefaults=False)
    of_all.set("spark.driver.extraJavaOptions", QUICK_JAVA["JDK_JAVA_OPTIONS"])
    SparkContext._ensure_initialized(conf=of_all)
    builder = SparkSession.builder.master(master).appName("sparkdist tests")
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "OFF",
        "spark.sql.shuffle.partitions": "2",
        # Executors unpickle functions of the tests by name.
        "spark.executorEnv.PYTHONPATH": os.environ["PYTHONPATH"],
        "spark.local.dir": str(folder / "blocks"),
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        **(_QUICK if master.startswith("local[") else {}),
        **conf,
    }
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


#: Files whose few tests take a minute or more: begun last they would keep one process alone.
_LONG = ("notebooks", "readme", "notebook_interrupt", "jobs", "minimize", "resident", "deepdist",
         "speculation", "two_namespaces", "server_speculation")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; the order within a file stays."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in _LONG)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., SparkSession]]:
    """``start_session``, which stops the session before it: a process has one at a time."""
    # Executors of local-cluster write into $SPARK_HOME/work, below names that have the second
    # in which they were started: processes that test side by side need a Spark each.
    home = tmp_path_factory.mktemp("spark-home")
    for entry in Path(os.environ["SPARK_HOME"]).iterdir():
        if entry.name != "work":
            (home / entry.name).symlink_to(entry)
    os.environ["SPARK_HOME"] = str(home)

    def restart(master: str, folder: Path, **conf: str) -> SparkSession:
        _stop()
        return start_session(master, folder, **conf)

    yield restart
    _stop()
    shutil.rmtree(home / "work", ignore_errors=True)


def _stop() -> None:
    session = SparkSession.getActiveSession()
    if session is not None:
        session.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files of a module's tests."""
    return tmp_path_factory.mktemp("spark")


@pytest.fixture(scope="module")
def spark(start: Callable[..., SparkSession], folder: Path) -> SparkSession:
    """A session on ``local[2]`` for a module."""
    return start(LOCAL, folder)


@pytest.fixture(scope="session")
def a9a() -> Block:
    """The 32,561 training rows of a9a, in one block."""
    X, y = datasets.load("a9a")
    return Block(X, y, np.ones(len(y)))


def random_block(n: int, d: int, seed: int) -> Block:
    """Rows with normal features, labels 0 and 1, and weights between 0.5 and 1.5."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, n).astype(float)
    return Block(random.normal(size=(n, d)), y, random.uniform(0.5, 1.5, n))


def stack(blocks: list[Block]) -> tuple[Array, Array, Array]:
    """Rows of several blocks, dense."""
    dense = [b.X if isinstance(b.X, np.ndarray) else b.X.toarray() for b in blocks]
    return np.vstack(dense), np.hstack([b.y for b in blocks]), np.hstack([b.weight for b in blocks])

"""Fixtures that every test may ask for."""

from __future__ import annotations

import os
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
os.environ.pop("SPARK_CONF_DIR", None)  # an archive of classes allows no folder on the class path

#: ``make test-all`` sets it: the long checks at full strength.
FULL = os.environ.get("SPARKDIST_FULL") == "1"

#: Two threads; two threads with retries; two executor processes, which Spark starts anew if lost.
LOCAL, RETRYING, CLUSTER = "local[2]", "local[2,4]", "local-cluster[2,1,1024]"

#: Spark's classes as ``tests/class_archive.py`` has written them: a JVM starts in half the time.
ARCHIVE = Path(sys.prefix, f"spark-{pyspark.__version__}.jsa")

#: A JVM for short lives: a third less CPU.  Of an archive that it cannot use it would warn: no log.
QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xlog:disable"

#: What ``java`` reads, whoever starts it; the caller's own comes first.
QUICK_JAVA = {"JDK_JAVA_OPTIONS": f"{QUICK} -XX:SharedArchiveFile={ARCHIVE}"}
os.environ |= QUICK_JAVA | os.environ

#: Python workers that are born with what they import.
PRELOADED = {"spark.python.daemon.module": "tests.daemon"}

#: For local sessions: task input without TCP's delays.  Clusters are tested as users have them.
_LOCALLY = {"spark.python.unix.domain.socket.enabled": "true"}

#: Executors of local-cluster write into $SPARK_HOME/work, below names that have the second in
#: which they were started: processes that test side by side need names of their own.
_ON_CLUSTERS = {"spark.deploy.appIdPattern": f"app-%s-%04d-{os.getpid()}"}


def start_session(master: str, folder: Path, **conf: str) -> SparkSession:
    """Start a quiet session whose blocks lie below ``folder``."""
    # What a JVM is started with is the default of all sessions that come after it in a process.
    SparkContext._ensure_initialized(conf=SparkConf(loadDefaults=False))
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
        **PRELOADED,
        **(_LOCALLY if master.startswith("local[") else _ON_CLUSTERS),
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
def start() -> Iterator[Callable[..., SparkSession]]:
    """``start_session``; the session before it is stopped, or is given again if it is like that.

    A process has one at a time.  One that is to be ``alone`` has not been anybody else's, and has
    its blocks below the folder.
    """
    running: list[tuple[str, dict[str, str]]] = []

    def restart(master: str, folder: Path, *, alone: bool = False, **conf: str) -> SparkSession:
        session = SparkSession.getActiveSession()
        if session is not None and not alone and running == [(master, conf)] and _alive(session):
            return session
        _stop()
        running[:] = [] if alone else [(master, conf)]
        return start_session(master, folder, **conf)

    yield restart
    _stop()


def _alive(session: SparkSession) -> bool:
    return session.sparkContext._jsc is not None


def _stop() -> None:
    session = SparkSession.getActiveSession()
    if session is not None:
        session.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files of a module's tests."""
    return tmp_path_factory.mktemp("spark")


@pytest.fixture(scope="module")
def spark_alone(start: Callable[..., SparkSession], folder: Path) -> SparkSession:
    """A session for a module whose blocks, and nobody else's, lie in the module's folder."""
    return start(LOCAL, folder, alone=True)


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

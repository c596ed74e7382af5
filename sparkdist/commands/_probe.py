"""What a machine that works for sparkdist is like; asked on the driver and on every executor.

Spark sends this file by value, because executors may not have sparkdist: it needs the standard
library alone, and its answer is a dict of plain values, of which the driver makes a Machine.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib import metadata, util
from typing import Any, NamedTuple

__all__ = ["PACKAGES", "Blas", "Machine", "look", "version_of", "visit"]

#: Those of which driver and executors should have the same.
PACKAGES = ("sparkdist", "numpy", "scipy", "pyarrow", "pandas", "requests", "xxhash")


class Blas(NamedTuple):
    """A library that NumPy multiplies with."""

    name: str
    version: str
    threads: int


class Machine(NamedTuple):
    """What was found; sizes are in bytes."""

    host: str
    #: Of an executor: it starts the Python workers.
    parent: int
    python: str
    executable: str
    #: None of a package that is not there, "" of one without a version.
    versions: dict[str, str | None]
    cores: int
    #: Free for programs; None where nobody tells.
    memory: int | None
    #: The libraries; None where NumPy or threadpoolctl is missing.
    blas: list[Blas] | None
    #: For blocks: path, free bytes, and what is wrong with it or "".
    folders: list[tuple[str, int, str]]
    #: Why the driver cannot be reached from here; None if it was reached or not asked.
    unreachable: str | None = None


def visit(host: str, port: int, seconds: float, _: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Look around in a task, and stay so long that the other tasks need other slots."""
    folders = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")
    found = look([folder for folder in folders if folder])
    found["unreachable"] = _unreachable(host, port)
    time.sleep(seconds)
    yield found


def look(folders: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a Machine."""
    return {
        "host": socket.gethostname(),
        "parent": os.getppid(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": {name: version_of(name) for name in PACKAGES},
        "cores": _cores(),
        "memory": _memory(),
        "blas": _blas(),
        "folders": [_folder(path) for path in folders],
    }


def version_of(name: str) -> str | None:
    """Version of a package; None if it is not there, "" if nobody says."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # of a zip on the PYTHONPATH too
        return None if util.find_spec(name) is None else ""


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _memory() -> int | None:
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
    except OSError:  # not Linux
        return None
    return int(lines["MemAvailable"].split()[0]) << 10


def _blas() -> list[tuple[str, str, int]] | None:
    try:
        import numpy  # noqa: F401  # loads the library
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    return [
        (pool["internal_api"], pool["version"] or "", pool["num_threads"])
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]


def _folder(path: str) -> tuple[str, int, str]:
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"sparkdist")
        return path, shutil.disk_usage(path).free, ""
    except OSError as error:
        return path, 0, error.strerror or str(error)


def _unreachable(host: str, port: int) -> str | None:
    """Ask as a worker of the model server does before training, for the port alone."""
    try:
        from sparkdist.client import Address
        from sparkdist.client.reach import unreachable
    except ImportError:  # sparkdist or what it needs is missing, which the versions tell
        return None
    return unreachable(Address(host, port, token="", run="", certificate=""))

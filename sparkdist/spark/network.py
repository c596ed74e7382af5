"""Network: the driver's addresses, and how many tasks there is room for."""

from __future__ import annotations

import socket
from numbers import Integral
from typing import Any

from pyspark import RDD, SparkConf, SparkContext
from pyspark.sql import DataFrame

__all__ = [
    "ANY_PORT",
    "bind_host",
    "context_of",
    "driver_host",
    "encryption_of",
    "has_stopped",
    "hosts_of",
    "n_executors",
    "ports_of",
    "task_slots",
]

LOOPBACK = "127.0.0.1"
#: The range of ports from which the system chooses one.
ANY_PORT = (0, 0)
#: Spark encrypts what its own processes say to each other; a port of ours is not theirs.
_ENCRYPTION = (
    "spark.network.crypto.enabled",
    "spark.authenticate.enableSaslEncryption",
    "spark.ssl.enabled",
    "spark.ssl.rpc.enabled",
)
_YES = ("1", "true", "yes")


def context_of(data: DataFrame | RDD[Any]) -> SparkContext:
    """Return the SparkContext of some data."""
    return data.sparkSession.sparkContext if isinstance(data, DataFrame) else data.context


def driver_host(context: SparkContext) -> str:
    """Return the address that Spark advertises for the driver; in local mode loopback."""
    if str(context.master).startswith("local[") or context.master == "local":
        return LOOPBACK
    return str(context.getConf().get("spark.driver.host", LOOPBACK))


def bind_host(context: SparkContext, host: str) -> str:
    """Return the address to listen at, which is another one behind network translation."""
    bind = host
    if host != LOOPBACK:
        bind = str(context.getConf().get("spark.driver.bindAddress", host))
    return socket.gethostbyname(bind)


def ports_of(port: Any, problems: list[str]) -> tuple[int, int]:
    """Return the first and the last of a range of ports; what is none is added to ``problems``."""
    first, last = port if isinstance(port, tuple | list) and len(port) == 2 else (port, port)
    if all(isinstance(n, Integral) and not isinstance(n, bool) for n in (first, last)):
        first, last = int(first), int(last)
        if (first, last) == ANY_PORT or 1 <= first <= last <= 65535:
            return first, last
    rule = "it must be a number from 1 to 65535, a pair (first, last), or 0 for any that is free"
    problems.append(f"port is {port!r}; {rule}")
    return ANY_PORT


def hosts_of(host: str, bound: str, port: int) -> frozenset[str]:
    """Values of the Host header by which clients call a server."""
    return frozenset(
        f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in (host, bound)
    )


def encryption_of(conf: SparkConf, host: str) -> list[str]:
    """Name the settings by which Spark encrypts what leaves this machine."""
    found = [name for name in _ENCRYPTION if str(conf.get(name, "")).lower() in _YES]
    return [] if host == LOOPBACK else found


def has_stopped(context: SparkContext) -> bool:
    """Whether the context was stopped, and all that it had is gone."""
    return context._jsc is None


def n_executors(context: SparkContext) -> int:
    """How many executors there are now; in local mode the driver is the one."""
    n_known = len(context.statusTracker().getExecutorInfos())  # the driver is among them
    return n_known if context._jsc.sc().isLocal() else n_known - 1


def task_slots(context: SparkContext) -> int:
    """How many tasks can run at the same time now.

    ``defaultParallelism`` may be set to anything; the scheduler knows.
    """
    scheduler = context._jsc.sc()
    profile = scheduler.resourceProfileManager().defaultResourceProfile()
    return max(1, scheduler.maxNumConcurrentTasks(profile))

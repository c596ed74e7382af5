"""A real server process of a tally vector, for tests: real sockets on loopback, no JVM.

The tally: the parameters are zeros, and each logical push adds exactly 1 to a coordinate of its
own.  0 is a lost push, 2 is one that counted twice.  Whole numbers up to 2^53 add exactly in
any order, so that the check is ``==``.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from sparkdist.blocks import Array
from sparkdist.client import Address, Answer, Gradient, HttpClient
from sparkdist.consistency import Consistency, asp
from sparkdist.layout import Layout
from sparkdist.server.rules import MeanGradient, model_entries
from sparkdist.server.setup import Setup
from sparkdist.server.supervisor import Supervisor, reserve_port
from sparkdist.updaters import Descent, sgd

__all__ = ["RUN", "TOKEN", "D", "Served", "count_to", "tally"]

TOKEN, RUN, D = "secret-of-this-test", "run1", 40


class Served:
    """A server of a tally vector of ``size`` elements; ``more`` are fields of its Setup."""

    def __init__(
        self,
        folder: Path | None,
        restarts: int = 3,
        *,
        size: int = D,
        workers: int = 1,
        consistency: Consistency | None = None,
        host: str = "127.0.0.1",
        trusted: str | None = None,
        **more: Any,
    ):
        self.held = reserve_port(host)
        self.port = self.held.getsockname()[1]
        layout = Layout.of(np.zeros(size))
        rule = MeanGradient(Descent(sgd(1.0)), layout, "<f8")
        # Proxies of a test listen on the same port of 127.0.0.2: their Host header is answered too.
        hosts = frozenset(f"{name}:{self.port}" for name in (host, "127.0.0.2"))
        policy = consistency or asp()
        self.setup = Setup(
            np.zeros(size),
            layout,
            rule,
            policy,
            host,
            self.port,
            hosts,
            TOKEN,
            folder=folder,
            **more,
        )
        self.size, self.workers, self.runs = size, workers, 1
        self.address = Address(host, self.port, TOKEN, RUN, trusted)
        self.entries = model_entries(layout, "<f8")
        try:
            self.supervisor = Supervisor(self.setup, pickle.dumps, restarts)
        except BaseException:
            self.held.close()
            raise
        try:
            self.supervisor.begin(RUN, workers)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self.supervisor.pid

    def begin(self, workers: int | None = None) -> None:
        """Open the next run: run2, run3 and so on."""
        self.runs += 1
        self.address = Address(**{**vars(self.address), "run": f"run{self.runs}"})
        self.workers = workers or self.workers
        self.supervisor.begin(self.address.run, self.workers)

    def client(self, patience: float = 30.0, **other: Any) -> HttpClient:
        address = Address(**{**vars(self.address), **other})
        return HttpClient(address, self.entries, patience)

    def model(self) -> Array:
        return self.supervisor.ask("model")[1]

    def status(self) -> dict[str, Any]:
        return self.supervisor.ask("status")

    def counts(self) -> dict[str, int]:
        """The books of the open run, which must balance."""
        counts = self.status()["counts"]
        assert counts.get("received", 0) == sum(counts.values()) - counts.get("received", 0)
        return counts

    def close(self) -> None:
        self.supervisor.stop()
        self.held.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def tally(size: int, at: int) -> Gradient:
    """The gradient that adds 1 to one coordinate under sgd with a rate of 1."""
    value = np.zeros(size)
    value[at] = -1.0
    return Gradient(value)


def count_to(
    client: HttpClient, last: int, size: int = D, *, partition: int = 0, first: int = 0
) -> None:
    """Push to coordinates first, first + 1 ... until clock ``last``, going back when told to."""
    at: Answer = client.pull(partition)
    while at.next < last:
        push = tally(size, first + at.next)
        answer = client.push(partition, at.next, at, push, want=True)
        at = answer if answer.w is not None else client.pull(partition)

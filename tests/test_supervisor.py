"""The server process under its supervisor: real processes on loopback, no JVM."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparkdist.client import Address, Gradient, HttpClient, unreachable
from sparkdist.consistency import asp
from sparkdist.errors import ServerDied, StaleRun, WrongToken
from sparkdist.layout import Layout
from sparkdist.server.process import Setup
from sparkdist.server.rules import MeanGradient, model_entries
from sparkdist.server.supervisor import Supervisor, reserve_port
from sparkdist.updaters import Descent, sgd

pytestmark = pytest.mark.process

TOKEN, RUN, D = "secret-of-this-test", "run1", 40


class Served:
    """A server of a tally vector: each push adds exactly 1 to a coordinate of its own."""

    def __init__(self, folder: Path | None, restarts: int = 3, **policy: Any):
        self.held = reserve_port("127.0.0.1")
        port = self.held.getsockname()[1]
        layout = Layout.of(np.zeros(D))
        rule = MeanGradient(Descent(sgd(1.0)), layout, "<f8")
        hosts = frozenset([f"127.0.0.1:{port}"])
        setup = Setup(
            np.zeros(D),
            layout,
            rule,
            asp(),
            "127.0.0.1",
            port,
            hosts,
            TOKEN,
            folder=folder,
            **policy,
        )
        self.address = Address("127.0.0.1", port, TOKEN, RUN)
        self.entries = model_entries(layout, "<f8")
        self.supervisor = Supervisor(setup, pickle.dumps, restarts)
        self.supervisor.begin(RUN, 1)

    def client(self, patience: float = 30.0, **other: str) -> HttpClient:
        address = Address(**{**vars(self.address), **other})
        return HttpClient(address, self.entries, patience)

    def close(self) -> None:
        self.supervisor.stop()
        self.held.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path, every_update=True)
    yield one
    one.close()


def count_to(client: HttpClient, last: int) -> None:
    """Push -1 at coordinates next, next + 1 ... as a worker would, going back when told to."""
    at = client.pull(0)
    while at.next < last:
        gradient = np.zeros(D)
        gradient[at.next] = -1.0
        answer = client.push(0, at.next, at, Gradient(gradient), want=True)
        at = answer if answer.w is not None else client.pull(0)


def test_r11_kill_9_ten_times_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    served = Served(tmp_path, restarts=10, every_update=True)
    try:
        with served.client() as client:
            for kill in range(10):
                count_to(client, 4 * kill + 2)
                before = served.supervisor.restarts
                os.kill(served.supervisor.pid, signal.SIGKILL)
                began = time.monotonic()
                count_to(client, 4 * kill + 4)
                assert served.supervisor.restarts == before + 1
                assert time.monotonic() - began < 20  # R16 says 5 s on a quiet machine
            version, w = served.supervisor.ask("model")
        assert np.array_equal(w, np.ones(D))
        assert version == D
        counts = served.supervisor.ask("status")["counts"]
        assert counts["applied"] == D
    finally:
        served.close()


def test_r16_a_server_that_dies_once_too_often_is_one_clear_error() -> None:
    served = Served(None)
    try:
        os.kill(served.supervisor.pid, signal.SIGKILL)
        with pytest.raises(ServerDied, match="no checkpoints to start again from"):
            for _ in range(100):
                served.supervisor.ask("status")
                time.sleep(0.1)
    finally:
        served.close()


def test_r5_r6_r37_other_runs_and_tokens_are_told_at_once(served: Served) -> None:
    with served.client(token="wrong") as stranger, pytest.raises(WrongToken):
        stranger.join(0)
    with served.client(run="run0") as zombie, pytest.raises(StaleRun):
        zombie.pull(0)
    with served.client() as client:
        at = client.pull(0)
        gradient = Gradient(np.full(D, -1.0))
        first = client.push(0, 0, at, gradient, want=False)
        again = client.push(0, 0, at, gradient, want=False)
    assert (first.status, again.status) == ("ok", "duplicate")
    assert np.array_equal(served.supervisor.ask("model")[1], np.ones(D))


def test_r28_a_server_that_is_gone_is_named_with_host_and_port(served: Served) -> None:
    assert unreachable(served.address) is None
    served.close()
    said = unreachable(served.address)
    assert said is not None and f"127.0.0.1:{served.address.port}" in said


def test_r36_stop_leaves_every_acknowledged_push_in_the_checkpoint(tmp_path: Path) -> None:
    served = Served(tmp_path, seconds=3600.0)
    with served.client() as client:
        count_to(client, 7)
    served.close()
    again = Served(tmp_path, restore=True)
    try:
        assert again.supervisor.ask("model")[1].sum() == 7.0
    finally:
        again.close()


def test_r39_the_token_is_not_among_the_arguments_or_in_the_repr(served: Served) -> None:
    arguments = Path(f"/proc/{served.supervisor.pid}/cmdline").read_bytes()
    assert TOKEN.encode() not in arguments
    assert TOKEN not in repr(served.address)


DRIVER = """
import pickle, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_supervisor import Served
served = Served(Path({folder!r}))
print(served.supervisor.pid, flush=True)
time.sleep(60)
"""


def test_r18_when_the_driver_is_killed_the_server_ends(tmp_path: Path) -> None:
    script = DRIVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        pid = int(driver.stdout.readline())
    finally:
        driver.kill()
        driver.communicate()
    for _ in range(100):
        if (
            not Path(f"/proc/{pid}").exists()
            or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
        ):
            return
        time.sleep(0.1)
    pytest.fail(f"the server process {pid} outlives its driver")

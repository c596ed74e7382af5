"""The server process under its supervisor: real processes on loopback, no JVM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sparkdist.client import Gradient
from sparkdist.client.reach import unreachable
from sparkdist.errors import ServerDied, StaleRun, WrongToken
from tests.served import TOKEN, D, Served, count_to

pytestmark = pytest.mark.process


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path, every_update=True)
    yield one
    one.close()


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
import time
from pathlib import Path
from tests.served import Served
served = Served(Path({folder!r}))
print(served.supervisor.pid, flush=True)
time.sleep(60)
"""


def test_r18_when_the_driver_is_killed_the_server_ends(tmp_path: Path) -> None:
    script = DRIVER.format(folder=str(tmp_path))
    driver = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
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

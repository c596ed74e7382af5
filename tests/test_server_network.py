"""The real server process, real sockets and clients, and networks that break; no JVM.

What one process can show is in ``test_app.py``.  Every push adds 1 to a coordinate of its own:
see ``served.py``.  After each test on the common server its books must balance (R50).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import dropwhile
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import trustme
from pyspark import cloudpickle

from sparkdist import wire
from sparkdist.blocks import Array
from sparkdist.client import Address, Answer, Gradient, HttpClient
from sparkdist.client.reach import unreachable
from sparkdist.consistency import ssp
from sparkdist.errors import (
    BadGradient,
    ServerDied,
    ServerError,
    ServerUnavailable,
    StaleRun,
    WrongToken,
)
from sparkdist.server.checkpoint import read_newest
from tests.conftest import FULL
from tests.proxies import Answering, BreakingProxy, Wiretap, read_message
from tests.served import TOKEN, D, Served, count_to, tally

pytestmark = pytest.mark.process

#: Parameters of the common server, and its workers.
SIZE, WORKERS = 4096, 20


@pytest.fixture(scope="module")
def common() -> Iterator[Served]:
    with Served(None, size=SIZE, workers=WORKERS) as one:
        yield one
        assert one.supervisor.died is None


@pytest.fixture
def served(common: Served) -> Iterator[Served]:
    """The common server, with a run of its own for each test; the parameters go on."""
    common.begin()
    yield common
    common.counts()


class Unchanged:
    """The parameters when it was made, and what was added to them since."""

    def __init__(self, served: Served):
        self._served, self._w = served, served.model()

    def gained(self) -> Array:
        return self._served.model() - self._w

    def exactly(self, n: int) -> None:
        """The first n coordinates gained 1 each, the others nothing."""
        assert np.array_equal(self.gained(), np.arange(self._w.size) < n)


# --- raw requests -----------------------------------------------------------------------------


def head(
    served: Served, *lines: str, ask: str = "POST /v1/push HTTP/1.1", token: str = TOKEN
) -> bytes:
    """A head whose Host, token and type are right; ``lines`` come behind."""
    known = (
        f"Host: 127.0.0.1:{served.port}",
        f"Authorization: Bearer {token}",
        f"Content-Type: {wire.CONTENT_TYPE}",
    )
    return "\r\n".join([ask, *known, *lines, "", ""]).encode("latin-1")


def frame(served: Served, clock: int, partition: int = 0, **other: Any) -> bytes:
    """The bytes of a push to coordinate ``clock``: sparse, so that it is short."""
    sparse = wire.sparse_if_shorter(tally(served.size, clock).value)
    assert sparse is not None
    status = served.status()
    fields = {
        "run": served.address.run,
        "partition": partition,
        "clock": clock,
        "base": status["version"],
        "generation": status["generation"],
        "weight": 1.0,
        **other,
    }
    return wire.encode(fields, wire.entries_of({"": sparse}), sparse[:2])


def whole(served: Served, body: bytes, *lines: str) -> bytes:
    return head(served, *lines, f"Content-Length: {len(body)}") + body


def connect(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), 10.0)


def ask(served: Served, data: bytes) -> tuple[int, bytes]:
    """Send bytes; the status and the answer, or 0 if the connection ended without one."""
    with connect(served) as connection, connection.makefile("rb") as answers:
        with contextlib.suppress(OSError):  # it may refuse before all is sent
            connection.sendall(data)
        try:
            answer = read_message(answers)
        except ConnectionResetError:
            answer = b""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0, answer


def together(work: Callable[[Any], Any], items: Any) -> list[Any]:
    """What the work gives for each item, done in threads at the same time."""
    items = list(items)
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(work, items))


def of_process(pid: int, name: str) -> int:
    """A number of /proc/PID/status: VmRSS in KiB, Threads."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# --- lost answers, other runs -----------------------------------------------------------------


def test_r5_a_lost_answer_is_safe_to_retry(served: Served) -> None:
    each, dice, before = 2000 // WORKERS, random.Random(5), Unchanged(served)
    proxy = BreakingProxy("127.0.0.2", ("127.0.0.1", served.port), lambda: dice.random() < 0.3)

    def work(partition: int) -> None:
        with served.client(host="127.0.0.2") as client:
            count_to(client, each, SIZE, partition=partition, first=each * partition)

    with proxy:
        together(work, range(WORKERS))
    before.exactly(2000)
    counts = served.counts()
    assert counts["applied"] == 2000
    # An answer is lost 3 times in 10, and so is that to its repetition: 2,000 * 0.3 / 0.7 = 857.
    assert 700 < counts["duplicate"] < 1000
    pushes = [request for request in proxy.requests if request.startswith(b"POST /v1/push ")]
    assert counts["received"] == len(pushes)


def test_r45_pushes_of_a_run_that_is_over_cannot_be_replayed(served: Served) -> None:
    n, before = 200, Unchanged(served)
    proxy = BreakingProxy("127.0.0.2", ("127.0.0.1", served.port), lambda: False)
    with proxy, served.client(host="127.0.0.2") as client:
        at = client.pull(0)
        for clock in range(n):
            at = client.push(0, clock, at, tally(SIZE, clock), want=False)
    pushes = [request for request in proxy.requests if request.startswith(b"POST /v1/push ")]
    assert len(pushes) == n
    served.begin()
    with connect(served) as connection, connection.makefile("rb") as answers:
        for push in pushes:
            connection.sendall(push)
            assert read_message(answers).startswith(b"HTTP/1.1 409 ")
    before.exactly(n)
    assert served.counts() == {}


# --- bodies -----------------------------------------------------------------------------------


def test_r20_a_push_that_was_cut_anywhere_is_never_applied(served: Served) -> None:
    body, before = frame(served, 0), Unchanged(served)
    request = whole(served, body)
    for cut in range(len(request)):
        with connect(served) as connection:
            connection.sendall(request[:cut])
    for cut in range(len(body)):
        status, answer = ask(served, whole(served, body[:cut]))
        assert status == 400, answer
    before.exactly(0)
    assert served.counts() == {}
    assert ask(served, request)[0] == 200  # the server still answers, and this was no duplicate
    before.exactly(1)
    assert served.counts() == {"received": 1, "applied": 1}


def test_r24_a_huge_body_is_refused_and_takes_no_memory(served: Served) -> None:
    before = Unchanged(served)
    beginning = head(served, f"Content-Length: {2 << 30}") + bytes(1 << 20)
    assert ask(served, beginning)[0] == 413  # what the first refusal loads is not the body's
    memory = of_process(served.pid, "VmRSS")
    for _ in range(20):
        status, answer = ask(served, beginning)
        assert status == 413 and b"too_large" in answer
    assert of_process(served.pid, "VmRSS") - memory < 1024  # KiB
    before.exactly(0)


def test_r24_a_compressed_body_is_refused_and_takes_no_memory(served: Served) -> None:
    bomb = zlib.compress(bytes(64 << 20))  # 64 KiB
    assert len(bomb) < SIZE * 8 + wire.HEADER_LIMIT
    memory, before = of_process(served.pid, "VmRSS"), Unchanged(served)
    for encoding in ("deflate", "gzip", "br", "zstd"):
        status, answer = ask(served, whole(served, bomb, f"Content-Encoding: {encoding}"))
        assert status == 415 and b"encoding" in answer
    assert of_process(served.pid, "VmRSS") - memory < 1024
    before.exactly(0)


# --- nothing hangs ----------------------------------------------------------------------------


@contextlib.contextmanager
def closed_port(served: Served) -> Iterator[int]:
    with socket.socket() as unused:  # bound, not listening: refused
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@contextlib.contextmanager
def stopped_server(served: Served) -> Iterator[int]:
    os.kill(served.pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10  # until its last thread has stopped it may still answer
    while Path(f"/proc/{served.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield served.port
    finally:
        os.kill(served.pid, signal.SIGCONT)


@contextlib.contextmanager
def black_hole(served: Served) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # the kernel connects, nobody reads
        yield listening.getsockname()[1]


@contextlib.contextmanager
def always(answer: bytes, seconds: float = 0.0) -> Iterator[int]:
    with Answering(answer, seconds) as server:
        yield server.port
        assert server.asked


def busy_for_ever(served: Served) -> contextlib.AbstractContextManager[int]:
    return always(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")


def dripping_answer(served: Served) -> contextlib.AbstractContextManager[int]:
    return always(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + bytes(100), 0.02)


def dripping_head(served: Served) -> contextlib.AbstractContextManager[int]:
    return always(b"HTTP/1.1 200 OK\r\nX: " + 100 * b"x", 0.02)


def half_an_answer(served: Served) -> contextlib.AbstractContextManager[int]:
    return always(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-sparkdist\r\n\r\nSPKD")


AT = Answer("ok", 0, 0, "g")
CALLS: dict[str, Callable[[HttpClient], Answer]] = {
    "join": lambda client: client.join(0),
    "pull": lambda client: client.pull(0),
    "push": lambda client: client.push(0, 0, AT, tally(SIZE, 0), want=True),
    "leave": lambda client: client.leave(0),
}


@pytest.mark.parametrize(
    "trouble",
    [
        closed_port,
        stopped_server,
        black_hole,
        busy_for_ever,
        half_an_answer,
        dripping_answer,
        dripping_head,
    ],
)
def test_r28_every_call_ends_in_time_and_names_host_and_port(
    served: Served, trouble: Callable[[Served], contextlib.AbstractContextManager[int]]
) -> None:
    patience = 1.0

    def call(name: str, port: int) -> float:
        with served.client(patience, port=port) as client:
            began = time.monotonic()
            with pytest.raises(ServerUnavailable, match=f"no {name} .* at 127.0.0.1:{port} "):
                CALLS[name](client)
            return time.monotonic() - began

    with trouble(served) as port:
        seconds = together(lambda name: call(name, port), CALLS)
    assert min(seconds) >= patience
    assert max(seconds) <= 1.1 * patience + 0.4  # a tenth more, and what two busy cores take
    with served.client() as client:
        assert client.join(0).status == "ok"  # the real one is well


def test_r52_a_stopped_server_does_not_say_that_it_is_alive_or_ready(served: Served) -> None:
    with stopped_server(served):
        for path in ("/healthz", "/readyz"):
            with connect(served) as connection:
                connection.sendall(head(served, ask=f"GET {path} HTTP/1.1"))
                connection.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
    for path in ("/healthz", "/readyz"):
        assert ask(served, head(served, ask=f"GET {path} HTTP/1.1"))[0] == 200


def test_r52_a_server_that_drains_is_never_ready_again_and_ends(tmp_path: Path) -> None:
    with Served(tmp_path, restarts=0, seconds=3600.0) as one:
        with one.client() as client:
            count_to(client, 7)
        asked = head(one, ask="GET /readyz HTTP/1.1")
        assert ask(one, asked)[0] == 200
        os.kill(one.pid, signal.SIGTERM)
        seen = []
        for _ in range(1000):
            try:
                seen.append(ask(one, asked)[0])
            except ConnectionError:
                break
        # Ready until the signal arrives; then not, or gone in the middle of the answer.
        assert {*dropwhile(lambda status: status == 200, seen)} <= {503, 0}
        assert one.supervisor._process.wait(10) == 0  # R36
    assert np.array_equal(read_newest(tmp_path).w, np.arange(D) < 7)


# --- slow workers, slow networks, many of them ------------------------------------------------


@pytest.mark.parametrize("bound", [0, 2])
def test_r31_nobody_is_further_ahead_than_the_bound(bound: int) -> None:
    n, workers = 12, 3
    with Served(None, workers=workers, consistency=ssp(bound)) as one:
        sent_by_slow, done = [0], threading.Event()
        ahead: list[int] = []

        def work(partition: int) -> None:
            with one.client() as client:
                for clock in range(n):
                    at = client.pull(partition)
                    assert at.next == clock
                    # What the slow one has sent is at least what the server has of it.
                    ahead.append(clock - sent_by_slow[0])
                    if partition == 0:
                        time.sleep(0.05)
                        sent_by_slow[0] += 1
                    client.push(
                        partition, clock, at, tally(D, workers * clock + partition), want=False
                    )
                client.leave(partition)

        def look(_: int) -> list[int]:
            spreads = []
            while not done.wait(0.002):
                clocks = [worker["clock"] for worker in one.status()["workers"]]
                if len(clocks) == workers:
                    spreads.append(max(clocks) - min(clocks))
            return spreads

        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(look, 0)
            together(work, range(workers))
            done.set()
            spreads = looking.result()
        # Who waits for clock c has pushed c units: one more than the bound, of finished work.
        assert max(ahead) == bound and max(spreads) == bound + 1
        # Between a pull at clock c and its push another worker goes from at least c - bound to
        # at most c + bound + 1.
        staleness = dict(one.status()["staleness"])
        assert max(staleness) <= (workers - 1) * (2 * bound + 1)
        assert one.counts()["applied"] == n * workers
        assert np.array_equal(one.model(), np.arange(D) < n * workers)


def drip(served: Served, beginning: bytes, seconds: float, stop: threading.Event) -> bool:
    """Send a beginning, then a byte in each span until told to stop; whether it was heard out."""
    with connect(served) as connection:
        connection.sendall(beginning)
        while not stop.wait(seconds):
            connection.sendall(b"x")
        connection.setblocking(False)
        try:
            connection.recv(1)
        except BlockingIOError:
            return True  # neither answered nor closed
    return False


@contextlib.contextmanager
def dripping_worker(served: Served) -> Iterator[None]:
    """A worker, with its token, whose push of 20,000 bytes takes as long as the test."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(drip, served, head(served, "Content-Length: 20000"), 0.005, stop)
        try:
            yield
        finally:
            stop.set()
        assert heard.result()


def fast_workers(served: Served, n: int) -> float:
    """Three workers push n times each; pushes a second."""
    served.begin()
    before, began = Unchanged(served), time.monotonic()

    def work(partition: int) -> None:
        with served.client() as client:
            count_to(client, n, SIZE, partition=partition, first=n * partition)

    together(work, range(3))
    speed = 3 * n / (time.monotonic() - began)
    before.exactly(3 * n)
    return speed


def test_r32_a_worker_that_drips_its_push_stops_nobody(served: Served) -> None:
    with dripping_worker(served):
        fast_workers(served, 300)


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="compares speeds: only at full strength")
def test_r32_a_worker_that_drips_its_push_slows_nobody(served: Served) -> None:
    alone, beside = [], []
    for _ in range(9):
        alone.append(fast_workers(served, 300))
        with dripping_worker(served):
            beside.append(fast_workers(served, 300))
    assert statistics.median(beside) >= 0.8 * statistics.median(alone)


def test_r33_clients_that_drip_their_headers_are_closed_and_take_no_threads(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        fast_workers(served, 5)  # its threads are there
        before, threads = Unchanged(served), of_process(served.pid, "Threads")
        dripping = [stack.enter_context(connect(served)) for _ in range(300)]
        for connection in dripping:
            connection.sendall(b"POST /v1/push HTTP/1.1\r\nX: ")
        began = time.monotonic()
        with served.client(20.0) as client:
            at = client.pull(0)
            assert client.push(0, 5, at, tally(SIZE, 0), want=False).status == "ok"
        while dripping:
            assert time.monotonic() - began < 20
            # The supervisor's look may take one more.
            assert of_process(served.pid, "Threads") <= threads + 1
            dripping = [connection for connection in dripping if still_open(connection)]
            time.sleep(0.2)
        before.exactly(1)


def still_open(connection: socket.socket) -> bool:
    """Send one more byte, if the server has not said that it is enough."""
    connection.setblocking(False)
    try:
        connection.send(b"x")
        connection.recv(1000)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False  # it has answered, or closed


def test_r33_bodies_of_strangers_are_not_waited_for(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(connect(served)) for _ in range(300)]
        for connection in strangers:
            connection.sendall(head(served, "Content-Length: 500", token="wrong") + b"abc")
        fast_workers(served, 5)
        for connection in strangers:
            assert connection.recv(12) == b"HTTP/1.1 401"


@pytest.mark.slow
def test_r33_half_sent_pushes_on_all_threads_are_given_up(tmp_path: Path) -> None:
    """Workers that vanish in the middle of a push hold a thread each; there are 1,024."""
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(Served(tmp_path, restarts=1, every_update=True))
        for _ in range(1100):
            connection = stack.enter_context(connect(one))
            connection.sendall(head(one, "Content-Length: 500") + b"SPKD")
        with one.client(90.0) as client:
            count_to(client, 5)
        assert one.supervisor.restarts == 0
        assert np.array_equal(one.model(), np.arange(D) < 5)
        assert one.counts()["applied"] == 5


def test_r35_many_large_pushes_take_a_bounded_memory_and_all_land() -> None:
    clients, rounds, size = 64, 6, (8 if FULL else 1) << 17
    with Served(None, size=size, workers=clients) as one, ThreadPoolExecutor(1) as pool:

        def work(partition: int) -> None:
            with one.client(120.0) as client:
                at = client.pull(partition)
                for clock in range(rounds):
                    # By name: so it is sent dense.
                    gradient = Gradient({"": tally(size, rounds * partition + clock).value})
                    at = client.push(partition, clock, at, gradient, want=False)

        def look() -> int:
            most = 0
            while not done.wait(0.005):
                most = max(most, of_process(one.pid, "VmRSS"))
            return most

        memory, done = of_process(one.pid, "VmRSS"), threading.Event()
        looking = pool.submit(look)
        together(work, range(clients))
        done.set()
        assert np.array_equal(one.model(), np.arange(size) < clients * rounds)
        assert one.counts()["applied"] == clients * rounds
        # Per client the body, once: 1.2 to 1.3 were measured, with the threads.  A server that kept
        # only one copy of each push would hold 6.
        body = 8 * size // 1024
        assert looking.result() - memory <= 2 * clients * body


# --- a network that breaks --------------------------------------------------------------------

LINK_SERVER = """
import json, sys
from tests.served import Served
with Served(None, size={size}, host="10.77.0.1") as served:
    print(served.port, flush=True)
    sys.stdin.readline()
    print(json.dumps([served.model().tolist(), served.counts()]), flush=True)
"""
LINK_CLIENT = """
import sys, time
import numpy as np
from sparkdist.client import Address, HttpClient
from sparkdist.layout import Layout
from sparkdist.server.rules import model_entries
from tests.served import RUN, TOKEN, tally
entries = model_entries(Layout.of(np.zeros({size})), "<f8")
longest = 0.0
with HttpClient(Address("10.77.0.1", int(sys.argv[1]), TOKEN, RUN), entries, 120.0) as client:
    at = client.pull(0)
    while at.next < {size}:
        began = time.monotonic()
        at = client.push(0, at.next, at, tally({size}, at.next), want=False)
        longest = max(longest, time.monotonic() - began)
        if at.next % 200 == 0:
            print(at.next, flush=True)
print(longest, flush=True)
"""


class Link:
    """Two network namespaces and the one wire between them."""

    def __init__(self) -> None:
        self.server, self.client = f"sparkdist-{os.getpid()}-a", f"sparkdist-{os.getpid()}-b"

    def __enter__(self) -> Link:
        for name in (self.server, self.client):
            self.ip("netns", "add", name)
        wire_ends = ("name", "wa", "netns", self.server, "type", "veth")
        self.ip("link", "add", *wire_ends, "peer", "name", "wb", "netns", self.client)
        for name, end, host in ((self.server, "wa", "10.77.0.1"), (self.client, "wb", "10.77.0.2")):
            self.ip("-n", name, "addr", "add", f"{host}/24", "dev", end)
            self.ip("-n", name, "link", "set", end, "up")
            self.ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *error: object) -> None:
        for name in (self.server, self.client):
            self.ip("netns", "del", name)

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)

    def cut(self, seconds: float) -> None:
        self.ip("-n", self.server, "link", "set", "wa", "down")
        time.sleep(seconds)
        self.ip("-n", self.server, "link", "set", "wa", "up")

    @contextlib.contextmanager
    def run(self, side: str, script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        command = ["ip", "netns", "exec", side, sys.executable, "-c", script, *arguments]
        pipe = subprocess.PIPE
        here = Path(__file__).parents[1]
        with subprocess.Popen(command, cwd=here, stdin=pipe, stdout=pipe, text=True) as process:
            try:
                yield process
                assert process.wait(60) == 0
            finally:
                process.kill()


def without_namespaces() -> str | None:
    """Why this machine has no network namespaces for a test, or None."""
    if which("ip") is None:
        return "ip (iproute2) is not installed"
    try:
        with Link():
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted: {error.stderr.decode().strip()}"


def test_r29_a_link_that_goes_down_and_comes_back_loses_nothing() -> None:
    if said := without_namespaces():
        pytest.skip(said)
    cuts = [0.2, 2.0, 20.0] * 5 if FULL else [0.2, 0.5, 2.0]
    size = 200 * (len(cuts) + 2)
    with (
        Link() as link,
        link.run(link.server, LINK_SERVER.format(size=size)) as server,
    ):
        assert server.stdout and server.stdin
        port = server.stdout.readline().strip()
        with link.run(link.client, LINK_CLIENT.format(size=size), port) as client:
            assert client.stdout
            for seconds in cuts:
                client.stdout.readline()
                link.cut(seconds)
            longest = float(client.stdout.read().split()[-1])
        server.stdin.write("\n")
        server.stdin.flush()
        model, counts = json.loads(server.stdout.readline())
    assert model == [1.0] * size
    assert counts["applied"] == size
    assert longest >= max(cuts)  # it was down, and a push waited for it


# --- what others may send ---------------------------------------------------------------------


def until_closed(served: Served, data: bytes) -> bytes:
    """Send bytes; all that comes until the server closes, which it must."""
    with connect(served) as connection:
        received = b""
        try:
            connection.sendall(data)
            while more := connection.recv(1 << 16):
                received += more
        except (ConnectionResetError, BrokenPipeError):
            pass  # it closed with bytes of ours unread
        return received


def misframed(served: Served, body: bytes) -> dict[str, bytes]:
    """Requests of which nobody can say for sure where they end, or that are no HTTP/1.1."""
    n, crlf, chunked = len(body), b"\r\n", "Transfer-Encoding: chunked"
    length, pieces = f"Content-Length: {n}", b"%x\r\n%b\r\n0\r\n\r\n" % (n, body)
    right = head(served, length)

    def lengths(*values: object) -> bytes:
        return head(served, *(f"Content-Length: {value}" for value in values)) + body

    def line(*lines: str) -> bytes:
        return head(served, *lines, length) + body

    def begun(ask: str) -> bytes:
        return head(served, length, ask=ask) + body

    return {
        "two lengths, the first right": lengths(n, 5),
        "two lengths, the second right": lengths(5, n),
        "the same length twice": lengths(n, n),
        "a list of lengths": lengths(f"{n}, {n}"),
        **{f"length {bad!r}": lengths(bad) for bad in (-5, f"+{n}", hex(n), "", f"{n}.0", "5 5")},
        "a length beyond 64 bits": lengths((1 << 64) + n),
        "length and chunks": head(served, length, chunked) + pieces,
        "chunks and length": head(served, chunked, length) + pieces,
        "a chunk without a size": head(served, chunked) + b"zz\r\n" + pieces,
        "a chunk beyond 64 bits": head(served, chunked) + b"f" * 17 + b"\r\n" + pieces,
        "an encoding nobody knows": line("Transfer-Encoding: xchunked"),
        "identity encoding": line("Transfer-Encoding: identity"),
        "chunked is not the last": line("Transfer-Encoding: chunked, identity"),
        "a space before the colon": line("Transfer-Encoding : chunked"),
        "a space in a name": line("X A: a"),
        "no colon": line("XA"),
        "no name": line(": a"),
        "a line that is folded": line("X-A: a\r\n b"),
        "a token that is folded": right.replace(b"Bearer ", b"Bearer\r\n ") + body,
        "a NUL": line("X-A: a\0b"),
        "only line feeds": right.replace(crlf, b"\n") + body,
        "only carriage returns": right.replace(crlf, b"\r") + body,
        "a header of 1 MB": line("X-A: " + "a" * 1_000_000),
        "300 headers": line(*(f"X-{i}: a" for i in range(300))),
        "a path of 70 KB": begun(f"POST /v1/push?{'a' * 70_000} HTTP/1.1"),
        "HTTP/0.9": b"POST /v1/push\r\n" + body,
        **{f"{v}": begun(f"POST /v1/push {v}") for v in ("HTTP/1.2", "HTTP/2.0", "http/1.1")},
        "two spaces": begun("POST  /v1/push HTTP/1.1"),
        "tabs": begun("POST\t/v1/push\tHTTP/1.1"),
        "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "noise": random.Random(46).randbytes(2000),
    }


def test_r46_requests_that_are_not_framed_right_are_refused_with_all_behind(served: Served) -> None:
    body, before = frame(served, 0), Unchanged(served)
    for name, request in misframed(served, body).items():
        # What comes behind is a good push: one that was smuggled in would be applied.
        answer = until_closed(served, request + whole(served, body))
        assert answer.count(b"HTTP/1.1 ") <= 1, name
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), (name, answer)
        assert served.counts() == {}, name
    before.exactly(0)
    assert ask(served, whole(served, body))[0] == 200


def test_r46_requests_that_contradict_themselves_are_refused(served: Served) -> None:
    body, before = frame(served, 0), Unchanged(served)
    length, right = f"Content-Length: {len(body)}", whole(served, body)
    requests = {
        "no host": right.replace(b"Host:", b"X-Host:"),
        "another host behind": head(served, "Host: evil.example", length) + body,
        "another host before": right.replace(b"Host:", b"Host: evil.example\r\nHost:"),
        "another token behind": head(served, "Authorization: Bearer wrong", length) + body,
        "chunks": head(served, "Transfer-Encoding: chunked") + b"5\r\nabcde\r\n0\r\n\r\n",
        "no length": head(served) + body,
        "an upward path": head(served, length, ask="POST /v1/../v1/push HTTP/1.1") + body,
        "a NUL in the path": head(served, length, ask="POST /v1/push%00 HTTP/1.1") + body,
        "another method": head(served, length, ask="PUT /v1/push HTTP/1.1") + body,
        "a tunnel": head(served, length, ask="CONNECT 127.0.0.1:80 HTTP/1.1") + body,
        "every path": head(served, ask="OPTIONS * HTTP/1.1"),
    }
    for name, request in requests.items():
        status, answer = ask(served, request)
        assert 400 <= status < 500, (name, answer)
        assert served.counts() == {}, name
    before.exactly(0)
    assert ask(served, right)[0] == 200


def test_r46_what_rfc_9112_lets_a_server_read_counts_once(served: Served) -> None:
    body, before = frame(served, 0), Unchanged(served)
    right = whole(served, body)
    length = f"Content-Length: {len(body)}"
    requests = [
        b"\r\n\r\n" + right,  # 2.2: empty lines before
        head(served, length, ask="POST /v1/push HTTP/1.0") + body,
        right,
    ]
    assert [ask(served, request)[0] for request in requests] == [200] * 3
    before.exactly(1)
    assert served.counts() == {"received": 3, "applied": 1, "duplicate": 2}


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def pickles(marker: Path) -> list[bytes]:
    saved, zipped = io.BytesIO(), io.BytesIO()
    np.save(saved, np.array([Bomb(marker)], object), allow_pickle=True)
    np.savez(zipped, w=np.array([Bomb(marker)], object))
    bomb = pickle.dumps(Bomb(marker))
    by_value = cloudpickle.dumps(lambda: Path.touch(marker))
    return [bomb, pickle.dumps(Bomb(marker), 0), by_value, saved.getvalue(), zipped.getvalue()]


def test_r41_the_server_process_unpickles_nothing(served: Served, tmp_path: Path) -> None:
    marker, before = tmp_path / "marker", Unchanged(served)
    for bomb in pickles(marker):
        for body in (bomb, wire.encode({"run": served.address.run, "partition": 0}, [], [bomb])):
            for path in ("join", "pull", "push", "leave"):
                asked = f"POST /v1/{path} HTTP/1.1"
                request = head(served, f"Content-Length: {len(body)}", ask=asked) + body
                assert ask(served, request)[0] == 400
    assert not marker.exists()
    before.exactly(0)
    pickle.loads(pickles(marker)[0])
    assert marker.exists()  # the bomb is one


LIED_TO = """
import pickle, sys
found = []
sys.addaudithook(lambda event, args: found.append(args) if event == "pickle.find_class" else None)
from sparkdist.client import Address, HttpClient
from sparkdist.errors import ServerError
from tests.test_server_network import CALLS, SIZE
from sparkdist.wire import Entry
del found[:]  # what the imports did
for port in map(int, sys.argv[1:]):
    for call in CALLS.values():
        address = Address("127.0.0.1", port, "token", "run1")
        with HttpClient(address, (Entry("", "<f8", (SIZE,)),), 0.02) as client:
            try:
                call(client)
            except ServerError:
                continue
            raise AssertionError("a lie was believed")
assert not found, found
import fractions
pickle.loads(pickle.dumps(fractions.Fraction(1)))
assert found, "the hook sees nothing"
"""


def http(body: bytes, status: str = "200 OK", kind: str = wire.CONTENT_TYPE) -> bytes:
    lines = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return lines.encode() + body


def test_r41_the_client_unpickles_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    answers = [http(bomb) for bomb in pickles(marker)]
    for kind in ("application/python-pickle", "application/octet-stream", "application/json"):
        for status in ("200 OK", "409 Conflict", "422 No", "500 Fault"):
            answers.append(http(pickles(marker)[0], status, kind))
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Answering(answer)) for answer in answers]
        done = subprocess.run(
            [sys.executable, "-c", LIED_TO, *(str(server.port) for server in servers)],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert all(server.asked for server in servers)
    assert not marker.exists()


def answer_frame(*arrays: Array, **changed: Any) -> bytes:
    """What the server says to a push, but for what is changed; None leaves a field out."""
    fields = {"status": "ok", "next": 1, "version": 1, "generation": "g", "durable": -1, **changed}
    named = {f"{i}" if i else "": array for i, array in enumerate(arrays)}
    present = {name: value for name, value in fields.items() if value is not None}
    return wire.encode(present, wire.entries_of(named), list(arrays))


LIES = {
    "not a frame": http(b"not a frame"),
    "a frame that was cut": http(answer_frame()[:-1]),
    "more than it said": http(answer_frame())[:-1],
    "an HTML page": http(b"<html>", kind="text/html"),
    "a redirect": http(b"", "302 Found\r\nLocation: http://127.0.0.1:9/", "text/plain"),
    "JSON without its keys": http(b"[1]", "422 No", "application/json"),
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    "a length of 2^60": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 60),
    "JSON nested too deep": http(b"[" * 60_000, "422 No", "application/json"),
    "a frame without a status": http(answer_frame(status=None)),
    "a frame without a version": http(answer_frame(version=None)),
    "a clock that is a string": http(answer_frame(next="1")),
    "parameters of another size": http(answer_frame(np.zeros(SIZE - 1))),
    "parameters of another type": http(answer_frame(np.zeros(SIZE, np.float32))),
    "two arrays": http(answer_frame(np.zeros(SIZE), np.zeros(3))),
}


@pytest.mark.parametrize("lie", LIES)
def test_r51_an_answer_that_makes_no_sense_is_a_typed_error(lie: str) -> None:
    with Answering(LIES[lie]) as server:
        entries = (wire.Entry("", "<f8", (SIZE,)),)
        address = Address("127.0.0.1", server.port, TOKEN, "run1")
        with HttpClient(address, entries, 0.1) as client, pytest.raises(ServerError):
            CALLS["push"](client)


# --- secrets and files ------------------------------------------------------------------------


def refusals(served: Served) -> Iterator[tuple[type[Exception], Callable[[], object]]]:
    """Every typed error of the server's, and how to get it."""
    nan = Gradient(np.full(served.size, np.nan))
    too_long = Gradient({"": np.zeros(20_000)})

    def client(**other: Any) -> HttpClient:
        return served.client(0.2, **other)

    def call(what: Callable[[HttpClient], object], **other: Any) -> Callable[[], object]:
        def run() -> None:
            with client(**other) as asking:
                what(asking)

        return run

    yield WrongToken, call(lambda c: c.join(0), token=TOKEN[:-1])
    yield StaleRun, call(lambda c: c.join(0), run="another")
    yield BadGradient, call(lambda c: c.push(0, 0, AT, nan, want=False))
    yield ServerError, call(lambda c: c.push(0, 0, AT, too_long, want=False))
    yield ServerError, call(lambda c: c.join(10**6))
    yield ServerError, lambda: served.supervisor.ask("save", TOKEN)
    yield ServerUnavailable, call(lambda c: c.join(0), port=9)  # discard: nobody listens
    os.kill(served.pid, signal.SIGKILL)
    yield ServerUnavailable, call(lambda c: c.join(0))
    yield ServerDied, lambda: [served.supervisor.ask("status") for _ in range(3)]


def test_r39_the_token_is_told_to_nobody() -> None:
    told = []
    with Served(None) as one:
        told += [repr(one.address), repr(one.setup), str(one.setup), repr(one.supervisor)]
        told += [str(one.supervisor.__dict__)]
        told += command_lines()
        told.append(Path(f"/proc/{one.pid}/environ").read_text())
        for expected, run in refusals(one):
            with pytest.raises(expected) as caught:
                run()
            told += traceback.format_exception(caught.value)
        log = one.supervisor._log.read_text()
    assert "command save failed" in log  # it is the log
    assert [text for text in [*told, log] if TOKEN in text] == []


def command_lines() -> Iterator[str]:
    """The arguments of every process of this machine."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended since
                yield (folder / "cmdline").read_text(errors="replace")


#: Strings that would name a file, a module or an address where a field was used as one.
NAMES = [
    "../x",
    "../../etc/passwd",
    "/etc/passwd",
    "%2e%2e/x",
    "a\0b",
    "file:///etc/passwd",
    "os.system",
]


@contextlib.contextmanager
def traced(pid: int, log: Path) -> Iterator[None]:
    """strace of every call that a process makes with a file's name."""
    command = ["strace", "-f", "-e", "trace=%file", "-o", str(log), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            if "attached" not in said:
                pytest.skip(f"strace may not look at a process here: {said.strip()}")
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.communicate(timeout=20)


@pytest.mark.skipif(which("strace") is None, reason="strace is not installed")
def test_r43_no_field_of_a_request_is_taken_for_a_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with Served(data, every_update=True, size=SIZE) as one:
        fields = ("run", "generation")
        bodies = [frame(one, 1, **{field: name}) for field in fields for name in NAMES]
        bodies += [named(one, name) for name in NAMES]
        good = [whole(one, frame(one, clock, base=clock)) for clock in range(2)]
        # Before the trace: what the first of each kind loads.
        assert {ask(one, whole(one, body))[0] for body in bodies} == {400, 422}
        assert ask(one, good[0])[0] == 200
        log = tmp_path / "trace"
        with traced(one.pid, log):
            for body in bodies:
                assert ask(one, whole(one, body))[0] in (400, 422)
            for name in NAMES:
                asked = f"GET /{name.replace(chr(0), '%00')} HTTP/1.1"
                assert ask(one, head(one, ask=asked))[0] in (308, 404)
            assert ask(one, good[1])[0] == 200
        paths = [line.split('"')[1] for line in log.read_text().splitlines() if '"' in line]
        assert str(data / "checkpoint.draft") in paths  # of the good push: the trace sees
        # "" is a file that is open already.
        assert [path for path in paths if path and not path.startswith(str(data))] == []


def named(served: Served, name: str) -> bytes:
    """A push with an array of another name than the model's."""
    message = wire.decode(frame(served, 1))
    entry = message.entries[0]._replace(name=name)
    return wire.encode(message.fields, [entry], [message.payload])


# --- TLS --------------------------------------------------------------------------------------


class Authority:
    """A certificate authority, and a server's certificate of it in files."""

    def __init__(self, folder: Path):
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        folder.mkdir()
        self.certificate, self.key = folder / "certificate.pem", folder / "key.pem"
        self.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(self.key))
        self.pem = authority.cert_pem.bytes().decode()


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    folder = tmp_path_factory.mktemp("certificates")
    return Authority(folder / "ours"), Authority(folder / "another")


@pytest.fixture(scope="module")
def secured(authorities: tuple[Authority, Authority]) -> Iterator[Served]:
    ours, _ = authorities
    files = {"certificate": ours.certificate, "key": ours.key}
    with Served(None, size=SIZE, trusted=ours.pem, **files) as one:
        yield one


def test_r47_pushes_go_through_tls(secured: Served) -> None:
    secured.begin()
    before = Unchanged(secured)
    assert unreachable(secured.address) is None
    with secured.client() as client:
        count_to(client, 20, SIZE)
    before.exactly(20)
    assert secured.counts()["applied"] == 20


def test_r33_handshakes_that_do_not_go_on_take_no_threads(secured: Served) -> None:
    secured.begin()
    before, threads = Unchanged(secured), of_process(secured.pid, "Threads")
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            # The beginning of a record of TLS, of 512 bytes.
            stack.enter_context(connect(secured)).sendall(b"\x16\x03\x01\x02\x00\x01")
        with secured.client(20.0) as client:
            count_to(client, 5, SIZE)
        assert of_process(secured.pid, "Threads") <= threads + 1
    before.exactly(5)


def test_r47_nothing_is_read_in_the_clear(secured: Served) -> None:
    """The bytes on the wire hold neither the token nor the run."""
    secured.begin()
    proxy = Wiretap("127.0.0.2", ("127.0.0.1", secured.port))
    with proxy, connect(secured):
        context = ssl.create_default_context(cadata=secured.address.certificate)
        with (
            socket.create_connection((proxy.host, proxy.port), 5.0) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            tls.sendall(whole(secured, frame(secured, 0)))
            assert tls.recv(12) == b"HTTP/1.1 200"
    heard = bytes(proxy.heard)
    assert len(heard) > 500
    for secret in (TOKEN, secured.address.run, "SPKD", "Bearer"):
        assert secret.encode() not in heard


@pytest.mark.parametrize("trust", ["another authority", "nobody in particular", "no TLS"])
def test_r47_a_client_refuses_a_certificate_that_it_does_not_trust(
    secured: Served, authorities: tuple[Authority, Authority], trust: str
) -> None:
    secured.begin()
    _, another = authorities
    # "nobody in particular" is a certificate of the right authority for another name.
    certificate = {"another authority": another.pem, "no TLS": None}.get(
        trust, secured.address.certificate
    )
    host = "127.0.0.2" if trust == "nobody in particular" else "127.0.0.1"
    tunnel = Wiretap("127.0.0.2", ("127.0.0.1", secured.port))
    with tunnel, secured.client(0.5, certificate=certificate, host=host) as client:
        with pytest.raises(ServerError, match=f"at {host}:{secured.port}") as caught:
            client.join(0)
    if certificate is not None:
        assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value)
    assert secured.counts() == {} and secured.status()["workers"] == []


def test_r47_a_client_that_wants_tls_talks_to_no_plain_server(
    served: Served, authorities: tuple[Authority, Authority]
) -> None:
    pem = authorities[0].pem
    with served.client(0.5, certificate=pem) as client, pytest.raises(ServerUnavailable):
        client.join(0)
    assert served.status()["workers"] == []


def test_r47_a_wrong_certificate_is_told_at_once(
    secured: Served, authorities: tuple[Authority, Authority]
) -> None:
    with secured.client(3.0, certificate=authorities[1].pem) as client:
        began = time.monotonic()
        with pytest.raises(ServerError, match="CERTIFICATE_VERIFY_FAILED"):
            client.join(0)
        assert time.monotonic() - began < 2.0  # another try would end the same way

"""The server dies, its disk fails, its driver dies: what is left is what was promised.

Where the time of an event is random it is drawn from the seed that the test shows.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from numpy.testing import assert_array_equal

from sparkdist import wire
from sparkdist.client import Answer, HttpClient
from sparkdist.errors import ServerDied, ServerUnavailable
from sparkdist.server.checkpoint import Snapshot, read_newest, write
from sparkdist.updaters import adagrad
from tests.conftest import FULL
from tests.served import TOKEN, D, Served, count_to, tally
from tests.test_checkpoint import snapshot
from tests.test_store import (
    RUN,
    a_push,
    in_threads,
    make_rule,
    make_store,
    model,
    one_at,
    restored,
    state,
)

ROOT = Path(__file__).parents[1]
process = pytest.mark.process


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something; the deadline only keeps a test from hanging."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def assert_tally(found: Snapshot, clocks: int) -> None:
    """Each partition's pushes are in it up to its clock, once, and nothing else."""
    expected = np.zeros_like(found.w)
    for partition, clock in found.ledger["next"]:
        expected[partition * clocks : partition * clocks + clock] = 1.0
    assert_array_equal(found.w, expected)
    assert found.version == expected.sum()


# --- exactly once, in one process -----------------------------------------------------------


@pytest.mark.long
def test_r1_10_000_pushes_that_8_threads_repeat_count_once():
    n, threads, each = 10_000, 8, 5
    clocks = n // (threads * each)
    store, seen, counting = make_store(n, n=threads * each), Counter(), threading.Lock()
    copies = [deque() for _ in range(threads)]

    def send(partition, clock):
        gradient = one_at(n, partition * clocks + clock)
        return store.push(RUN, a_push(store, partition, clock, gradient, base=0)).status

    def work(thread):
        draw, mine = random.Random(thread), Counter()
        order = [thread * each + i for i in range(each)] * clocks
        draw.shuffle(order)
        next_of = Counter()
        for partition in order:
            clock = next_of[partition]
            next_of[partition] += 1
            # A copy may overtake the first one: it is in the other thread's hands before.
            for _ in range(draw.randint(0, 4)):
                copies[draw.randrange(threads)].append((partition, clock))
            mine[send(partition, clock)] += 1
            for _ in range(min(draw.randint(0, 5), len(copies[thread]))):
                mine[send(*copies[thread].popleft())] += 1
        with counting:
            seen.update(mine)

    in_threads(threads, work)
    left = [copy for queue in copies for copy in queue]
    random.Random(0).shuffle(left)
    seen.update(send(*copy) for copy in left)
    assert_array_equal(model(store), np.ones(n))
    sent = sum(seen.values())
    assert seen == {"ok": n, "duplicate": sent - n} and sent > 2 * n
    assert store.ledger.counts == {"received": sent, "applied": n, "duplicate": sent - n}
    assert store.version == n


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.long
def test_r7_a_long_run_takes_no_more_memory_than_a_short_one():
    n, partitions = 200_000 if FULL else 20_000, 8
    store, gradient = make_store(10, n=partitions), np.zeros(10)

    def push(i: int) -> None:
        base = max(0, store.version - i % 1500)  # every bin of the staleness is used
        store.push(RUN, a_push(store, i % partitions, i // partitions, gradient, base=base))

    for i in range(5000):
        push(i)
    gc.collect()
    before = resident()
    for i in range(5000, 5000 + n):
        push(i)
    gc.collect()
    assert resident() - before < 100 * n
    assert len(store.ledger.next) == len(store.ledger.last) == partitions
    assert store.ledger.counts["applied"] == 5000 + n


@pytest.mark.long
def test_r9_10_000_concurrent_pushes_are_10_000_versions_and_can_be_replayed():
    threads, clocks, size = 16, 625, 7
    gradients = np.random.default_rng(1).normal(size=(threads, clocks, size))

    def fresh():
        return make_store(size, n=threads, rule=make_rule(size, adagrad(0.1)))

    def push(to, partition, clock):
        gradient = gradients[partition, clock]
        return to.push(RUN, a_push(to, partition, clock, gradient, weight=3.0)).version

    store, replay = fresh(), fresh()
    history = in_threads(threads, lambda p: [(push(store, p, c), p, c) for c in range(clocks)])
    ordered = sorted(sum(history, []))
    assert [version for version, _, _ in ordered] == list(range(1, 10_001))
    for _, partition, clock in ordered:
        push(replay, partition, clock)
    assert state(replay)[:3] == state(store)[:3]


def test_r36_a_push_that_comes_after_the_last_checkpoint_is_not_acknowledged(tmp_path):
    store = make_store(2, folder=tmp_path, seconds=3600.0)
    store.push(RUN, a_push(store, 0, 0, one_at(2, 0)))
    store.drain()
    before = state(store)
    late = a_push(store, 0, 1, one_at(2, 1))
    assert store.push(RUN, late).status == "wait"
    assert state(store) == before and store.ledger.balanced
    again = restored(tmp_path, 2)
    assert again.push(RUN, late).status == "ok"
    assert_array_equal(model(again), np.ones(2))


# --- kill -9 of the server ------------------------------------------------------------------


class Watching(HttpClient):
    """Remembers what it was told is durable, and gives up when the server died for ever."""

    def __init__(self, served: Served):
        super().__init__(served.address, served.entries, 30.0)
        self._served, self.durable = served, -1

    def _understand(self, message: wire.Message):
        self.durable = max(self.durable, message.fields["durable"])
        return super()._understand(message)

    def _once(self, *arguments: Any):
        if self._served.supervisor.died is not None:
            raise ServerUnavailable("it is dead")
        return super()._once(*arguments)


def push_until_it_dies(
    client: Watching, partition: int, clocks: int, started: Callable[[Answer], None]
) -> int:
    """Push one coordinate after the other; return how many were acknowledged."""
    at, size = client.pull(partition), client._entries[0].shape[0]
    acknowledged = 0
    try:
        for clock in range(clocks):
            push = tally(size, partition * clocks + clock)
            at = client.push(partition, clock, at, push, want=False)
            acknowledged = at.next
            started(at)
    except ServerUnavailable:
        return acknowledged
    pytest.fail("it did not die before the last push")


@process
@pytest.mark.parametrize("seed", range(30 if FULL else 5))
def test_r10_what_was_told_to_be_durable_is_there_after_kill_9(tmp_path, seed):
    draw, clocks, every = random.Random(seed), 20_000, seed % 2 == 0
    policy = {"every_update": True} if every else {"seconds": 0.05}
    with Served(tmp_path, 0, size=clocks, **policy) as served, Watching(served) as client:
        after, kill = draw.uniform(0.0, 0.5), (served.pid, signal.SIGKILL)
        timer = threading.Timer(after, os.kill, kill)

        def start(at: Answer) -> None:
            if client.durable > 0 and timer.ident is None:
                timer.start()

        acknowledged = push_until_it_dies(client, 0, clocks, start)
        timer.join()
    found = read_newest(tmp_path)
    assert_tally(found, clocks)
    assert 0 < client.durable <= found.version
    if every:
        # The push that it died of may be in the file: its answer was on the way.
        assert client.durable == acknowledged <= found.version <= acknowledged + 1


@process
def test_r16_the_third_death_of_two_that_are_allowed_is_told_to_driver_and_worker(tmp_path):
    with Served(tmp_path, 2, every_update=True) as served, served.client() as client:
        for death in range(3):
            count_to(client, 2 * death + 2)
            os.kill(served.pid, signal.SIGKILL)
        with pytest.raises(ServerDied, match="started again 2 times"):
            until(lambda: served.status() is None)
        with served.client(patience=1.0) as worker:
            began = time.monotonic()
            with pytest.raises(ServerUnavailable, match=f"127.0.0.1:{served.port} within 1 s"):
                worker.pull(0)
            assert time.monotonic() - began < 10
    assert_array_equal(read_newest(tmp_path).w, [1.0] * 6 + [0.0] * (D - 6))


@process
@pytest.mark.parametrize("after", [0.0, 0.05])
def test_r18_a_stop_while_the_server_is_started_again_leaves_no_process(tmp_path, after):
    served = Served(tmp_path, every_update=True)
    first = served.pid
    os.kill(first, signal.SIGKILL)
    if after:
        until(lambda: served.pid != first)
    time.sleep(after)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(served.close).result(30)
    assert served.supervisor._process.poll() is not None
    assert not served.supervisor._watcher.is_alive()
    assert not served.supervisor._folder.exists()


DRIVER = """
import os, signal, sys, time
from pathlib import Path
from tests.served import Served, count_to

folder, way = Path(sys.argv[1]), sys.argv[2]
served = Served(folder, seconds=0.05, size=100_000)
first = served.pid
if way == "while it starts again":
    os.kill(first, signal.SIGKILL)
    while served.pid == first:
        time.sleep(0.001)
print(served.pid, served.port, flush=True)
if way == "under load":
    with served.client() as client:
        count_to(client, 100_000, 100_000)
time.sleep(60)
"""


def driver(folder: Path, way: str) -> subprocess.Popen[str]:
    """Start a driver whose temporary folders are in ``folder``."""
    (folder / "temporary").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    surroundings = {"TMPDIR": str(folder / "temporary"), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder / "checkpoints"), way],
        env=os.environ | surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_free(port: int) -> bool:
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past TIME_WAIT
        try:
            free.bind(("127.0.0.1", port))
            free.listen()
        except OSError:
            return False
    return True


@process
@pytest.mark.parametrize("again", range(7 if FULL else 1))
def test_r18_kill_9_of_the_driver_leaves_no_process_no_port_and_no_folder(tmp_path, again):
    ways = ["while it is quiet", "under load", "while it starts again"]
    drivers = [driver(tmp_path / way, way) for way in ways]
    try:
        told = [one.stdout.readline() for one in drivers]
        assert all(len(list((tmp_path / way / "temporary").iterdir())) == 1 for way in ways)
    finally:
        for one in drivers:
            one.kill()
            one.communicate()
    for line, way in zip(told, ways, strict=True):
        pid, port = map(int, line.split())
        until(lambda pid=pid: not is_running(pid), 20)  # R18 says 5 s, on a quiet machine
        until(lambda port=port: is_free(port), 20)  # one that was just starting ends too
        assert list((tmp_path / way / "temporary").iterdir()) == []
        assert_tally(read_newest(tmp_path / way / "checkpoints"), 100_000)


@process
def test_r36_sigterm_under_load_keeps_every_push_that_was_acknowledged(tmp_path):
    workers, clocks, enough = 4, 5000, threading.Event()
    with Served(tmp_path, 0, size=workers * clocks, workers=workers, seconds=3600.0) as served:

        def work(partition: int) -> int:
            with Watching(served) as client:
                return push_until_it_dies(
                    client, partition, clocks, lambda at: at.next < 100 or enough.set()
                )

        with ThreadPoolExecutor(workers) as pool:
            acknowledged = pool.map(work, range(workers))
            assert enough.wait(30)
            os.kill(served.pid, signal.SIGTERM)
            assert served.supervisor._process.wait(30) == 0  # R36: 10 s on a quiet machine
            acknowledged = dict(enumerate(acknowledged))
    found = read_newest(tmp_path)
    assert_tally(found, clocks)
    # One push of each that is in the file may have had no answer any more.
    there = {p: clock - acknowledged[p] for p, clock in found.ledger["next"]}
    assert set(there) == set(range(workers)) and set(there.values()) <= {0, 1}


# --- crashes and errors at a system call ----------------------------------------------------

WRITER = """
import os, sys
from pathlib import Path
from sparkdist.server.checkpoint import write
from tests.test_checkpoint import snapshot

for line in sys.stdin:
    child = os.fork()
    if not child:
        os.read(0, 1)  # until strace looks
        try:
            write(Path(line.strip()), snapshot(3))
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def writer() -> Iterator[subprocess.Popen[str]]:
    """A process that forks one that writes checkpoint 3: what they import is imported once."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    one = subprocess.Popen(
        [sys.executable, "-c", WRITER],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield one
    one.communicate(timeout=60)


def write_with(writer: subprocess.Popen[str], folder: Path, calls: str, fault: str) -> int:
    """Have 3 written over 1 and 2 while strace injects a fault; return how that process ended."""
    for version in (1, 2):
        write(folder, snapshot(version))
    print(folder, file=writer.stdin, flush=True)
    child = writer.stdout.readline().strip()
    # Only what touches these counts: an interpreter opens many files.
    paths = [folder, *(folder / name for name in (*os.listdir(folder), "checkpoint.draft"))]
    command = ["strace", "-p", child, *(f"-P{path}" for path in paths)]
    tracer = subprocess.Popen(
        [*command, "-e", f"trace={calls}", "-e", f"inject={calls}:{fault}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    said = tracer.stderr.readline()
    print("", file=writer.stdin, flush=True)
    status = int(writer.stdout.readline())
    tracer.communicate(timeout=30)
    if "attached" not in said:
        pytest.skip(f"strace may not look at another process here: {said.strip()}")
    return status


def assert_whole(folder: Path, versions: set[int]) -> None:
    found = read_newest(folder)
    assert found.version in versions
    assert_array_equal(found.w, np.full(3, found.version))
    assert dict(found.ledger["next"])[0] == found.version


#: Other names of the same call on other processors; those that are not there are passed over.
CALLS = {
    "openat": "?open,openat",
    "write": "write",
    "fsync": "fsync",
    "rename": "?rename,?renameat,?renameat2",
    "unlink": "?unlink,?unlinkat",
}


@process
@pytest.mark.parametrize("call", CALLS)
def test_r12_a_crash_at_any_system_call_leaves_the_old_one_or_the_new_one(tmp_path, writer, call):
    for n in range(1, 30):
        (folder := tmp_path / str(n)).mkdir()
        status = write_with(writer, folder, CALLS[call], f"signal=SIGKILL:when={n}")
        assert_whole(folder, {2, 3})
        if status == 0:
            break
        assert status == -signal.SIGKILL
    # Of each kind there is at least one, or nothing was tried.
    assert n > 1 and read_newest(folder).version == 3


@process
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["openat", "write", "fsync", "rename"])
def test_r13_an_error_of_the_disk_is_raised_and_leaves_the_old_one(tmp_path, writer, call, error):
    fault = f"error={errno.errorcode[error]}:when=1"
    assert write_with(writer, tmp_path, CALLS[call], fault) == error
    assert_whole(tmp_path, {2})


# --- a disk that is full --------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk, and not everywhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space left"), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    return filler


def readyz(served: Served) -> int:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"http://127.0.0.1:{served.port}/readyz"
    return requests.get(url, headers=headers, timeout=10).status_code


@process
def test_r13_every_update_a_full_disk_is_told_to_the_worker_and_loses_nothing(disk):
    with Served(disk, 0, every_update=True) as served, served.client() as client:
        count_to(client, 3)
        filler, at = fill(disk), client.pull(0)
        with served.client(patience=0.5) as worker:

            def refused() -> bool:
                with pytest.raises(ServerUnavailable, match="507 no checkpoint.*No space left"):
                    worker.push(0, 3, at, tally(D, 3), want=False)
                return readyz(served) == 503

            assert readyz(served) == 200
            until(refused)
        assert served.model().sum() == 3.0
        assert read_newest(disk).version == 3
        assert served.counts()["rejected_not_durable"] >= 3
        filler.unlink()
        count_to(client, 5)
        assert readyz(served) == 200
    assert_tally(read_newest(disk), D)
    assert read_newest(disk).version == 5


@process
def test_r13_interval_training_goes_on_past_a_full_disk_which_readyz_tells(disk):
    size = 4000
    with Served(disk, 0, size=size, seconds=0.01) as served, Watching(served) as client:
        count_to(client, 3, size)
        filler, there = fill(disk), read_newest(disk).version

        def push_on(status: int) -> bool:
            count_to(client, served.status()["version"] + 5, size)
            return readyz(served) == status

        assert readyz(served) == 200
        until(lambda: push_on(503))
        assert served.status()["checkpoint_failures"] >= 3
        # What was on its way when the disk became full may have come through.
        assert there <= (kept := read_newest(disk).version) < served.status()["version"]
        assert client.durable <= kept
        filler.unlink()
        until(lambda: push_on(200))
        assert (pushes := served.counts()["applied"]) == served.model().sum()
    assert_tally(read_newest(disk), size)
    assert read_newest(disk).version == pushes


@process
def test_r36_a_full_disk_does_not_hold_up_the_end(disk):
    with Served(disk, 0, seconds=3600.0) as served, served.client() as client:
        count_to(client, 3)
        fill(disk)
        os.kill(served.pid, signal.SIGTERM)
        assert served.supervisor._process.wait(30) == 1
    assert read_newest(disk).version == 0


# --- long runs ------------------------------------------------------------------------------


def held(pid: int) -> tuple[int, int, int]:
    """Bytes in memory, open files and threads of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    told = dict(line.split(":", 1) for line in status.splitlines())
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return int(told["VmRSS"].split()[0]) << 10, files, int(told["Threads"])


@process
@pytest.mark.slow
def test_r34_a_long_run_holds_no_more_than_a_short_one():
    """The 200,000 pushes of R34, cut to what a minute takes; memory comes in pages of 4 KiB."""
    size, workers, warm, pushes = 10_000, 4, 1500, 5000
    with Served(None, 0, size=size, workers=workers) as served:

        def work(partition: int, until_clock: int) -> None:
            with served.client() as client:
                at = client.pull(partition)
                while at.next < until_clock:
                    push = tally(size, at.next % size)
                    dense = push._replace(value=push.value + 1e-9)  # as long as it is
                    at = client.push(partition, at.next, at, dense, want=True)

        def all_work(until_clock: int) -> tuple[int, int, int]:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(work, range(workers), [until_clock] * workers))
            time.sleep(0.5)  # connections that were closed are let go
            return held(served.pid)

        before = all_work(warm)
        after = all_work(warm + pushes)
        assert served.counts()["applied"] == workers * (warm + pushes)
    assert after[0] - before[0] < 100 * workers * pushes
    assert after[1:] == before[1:]


def restless(served: Served, partition: int, clocks: int, draw: random.Random) -> None:
    """Work as a task that is slow, tried again, copied, and whose answers are lost."""
    size, client = served.size, served.client()
    at = client.join(partition)
    while at.next < clocks:
        if at.w is None or draw.random() < 0.1:
            client.close()
            client = served.client()  # as a task that is tried again
            at = client.pull(partition)
            continue
        clock, first = at.next, partition * clocks
        for _ in range(draw.choice([1, 1, 1, 2, 3])):  # all answers but the last were lost
            push = tally(size, first + clock)
            answer = client.push(partition, clock, at, push, want=True)
        if clock and draw.random() < 0.2:  # a copy of the task that is far behind
            old = draw.randrange(clock)
            client.push(partition, old, at, tally(size, first + old), want=False)
        time.sleep(draw.expovariate(20 if partition else 10))
        at = answer
    client.close()


def kill_now_and_then(served: Served, done: threading.Event, draw: random.Random) -> None:
    for _ in range(4):
        if done.wait(draw.uniform(0.5, 4.0)):
            return
        os.kill(served.pid, signal.SIGKILL)


@process
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20 if FULL else 2))
def test_r53_chaos_leaves_the_tally_exact(tmp_path, seed):
    workers, clocks, done = 4, 120, threading.Event()
    policy = {"every_update": True} if seed % 2 else {"seconds": 0.2}
    with (
        Served(tmp_path, 4, size=workers * clocks, workers=workers, **policy) as served,
        ThreadPoolExecutor(workers + 1) as pool,
    ):
        killer = pool.submit(kill_now_and_then, served, done, random.Random(seed))
        try:
            draws = [random.Random(f"{seed} {partition}") for partition in range(workers)]
            work = [pool.submit(restless, served, p, clocks, draw) for p, draw in enumerate(draws)]
            for one in work:
                one.result(120)
        finally:
            done.set()
        killer.result(10)
        assert_array_equal(served.model(), np.ones(workers * clocks))
        counts = served.counts()  # they balance
        assert counts["applied"] == workers * clocks and counts["duplicate"] > 0
        assert served.supervisor.restarts > 0

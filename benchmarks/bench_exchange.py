"""The model server's exchange, a push that returns the next model; checkpoints, recovery."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import statistics
import tempfile
import time
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from common import median_ratio, report

from sparkdist.client import Address, Answer, Entry, Gradient, HttpClient
from sparkdist.consistency import asp
from sparkdist.layout import Layout
from sparkdist.server.parameters import Parameters
from sparkdist.server.rules import MeanGradient, Push, model_entries
from sparkdist.server.setup import Setup
from sparkdist.server.supervisor import Supervisor, reserve_port
from sparkdist.updaters import Descent, sgd

SIZES = {"small": (1_000, "<f8"), "large": (1_000_000, "<f4")}
POLICIES: dict[str, dict[str, Any]] = {
    "none": {},
    "interval, 1 s": {"seconds": 1.0},
    "every": {"every_update": True},
}
TURN_SECONDS, ROUNDS, KILLS, RATE = 0.6, 6, 10, 0.01
#: Raw sockets whose other end takes the least step of SGD, or the server's own step.
RAW = ("raw", "raw, own step")


class Served:
    """A server process of zeros of one size, with plain SGD, under a checkpoint policy."""

    def __init__(self, size: str, policy: dict[str, Any], folder: Path, restarts: int = 0):
        d, dtype = SIZES[size]
        self.held = reserve_port("127.0.0.1")
        port = self.held.getsockname()[1]
        w = np.zeros(d, dtype)
        layout = Layout.of(w)
        rule = MeanGradient(Descent(sgd(RATE)), layout, dtype)
        hosts = frozenset([f"127.0.0.1:{port}"])
        place = folder if policy else None
        setup = Setup(
            *(w, layout, rule, asp(), "127.0.0.1", port, hosts, "token"), folder=place, **policy
        )
        self.supervisor = Supervisor(setup, pickle.dumps, restarts)
        self.supervisor.begin("run", 2)
        self.address = Address("127.0.0.1", port, "token", "run")
        self.entries = model_entries(layout, dtype)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.supervisor.stop()
        self.held.close()


class HttpExchange:
    """The worker's end of a model server."""

    def __init__(self, address: Address, entries: tuple[Entry, ...], size: str, partition: int):
        d, dtype = SIZES[size]
        self._client, self._partition = HttpClient(address, entries), partition
        self._gradient = Gradient(np.full(d, 1e-6, dtype))
        self._at: Answer = self._client.pull(partition)

    def once(self) -> None:
        """Push, and get the next model."""
        at = self._at
        self._at = self._client.push(self._partition, at.next, at, self._gradient, want=True)
        assert self._at.status == "ok" and self._at.w is not None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class RawExchange:
    """The worker's end of a raw socket: what is sent and received is the numbers alone."""

    def __init__(self, port: int):
        d, dtype = SIZES["large"]
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._gradient, self._w = np.full(d, 1e-6, dtype), memoryview(bytearray(d * 4))

    def once(self) -> None:
        """Send a gradient, receive a model."""
        self._socket.sendall(self._gradient)
        receive(self._socket, self._w)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def receive(connection: socket.socket, view: memoryview) -> bool:
    """Fill a buffer; False at the end of the connection."""
    while view:
        n = connection.recv_into(view)
        if not n:
            return False
        view = view[n:]
    return True


def raw_server(control: Connection, own_step: bool) -> None:
    """The other end of a raw socket: receive into one buffer, take a step, send a copy of w.

    The step is ``w -= rate g``; or the server's own, with its copies and its look for NaN.
    """
    d, dtype = SIZES["large"]
    w, step, body = np.zeros(d, dtype), np.empty(d, dtype), memoryview(bytearray(d * 4))
    gradient = np.frombuffer(body, dtype)
    own = Parameters(w, MeanGradient(Descent(sgd(RATE)), Layout.of(w), dtype))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        control.send(listening.getsockname()[1])
        connection, _ = listening.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while receive(connection, body):
            if own_step:
                own.prepare([Push(0, 0, 0, "", gradient, 0)])
                own.swap(+1)
                connection.sendall(own.payload())
            else:
                np.multiply(gradient, RATE, out=step)
                np.subtract(w, step, out=w)
                connection.sendall(w.tobytes())


def worker(control: Connection, places: dict[str, tuple[Any, ...]]) -> None:
    """Exchange with the place that is named, for so many seconds; tell how often a second."""
    ends = {
        name: RawExchange(*place) if name in RAW else HttpExchange(*place)
        for name, place in places.items()
    }
    control.send("ready")
    while message := control.recv():
        name, seconds = message
        n, start = 0, time.perf_counter()
        while (now := time.perf_counter()) - start < seconds:
            ends[name].once()
            n += 1
        control.send(n / (now - start))
    for end in ends.values():
        end.close()


def started(stack: ExitStack, target: Any, *arguments: Any) -> Connection:
    """Start a process; it ends with the stack."""
    context = get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()

    def end() -> None:
        if target is worker:
            mine.send(None)
        process.join(10)
        mine.close()

    stack.callback(end)
    return mine


def rates() -> dict[tuple[str, int], list[float]]:
    """Exchanges a second by place and number of clients, in turns: A B C ... A B C ..."""
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        served: dict[str, Served] = {}
        for size in SIZES:
            for policy, how in POLICIES.items():
                folder = base / f"{size}-{len(served)}"
                folder.mkdir()
                served[f"{size} {policy}"] = stack.enter_context(Served(size, how, folder))
        workers = [started(stack, worker, places(stack, served, n)) for n in range(2)]
        for control in workers:
            control.recv()
        both = ("small none", "large none", *RAW)
        turns = [(name, n) for n in (1, 2) for name in both]
        turns += [(name, 1) for name in served if name not in both]
        found: dict[tuple[str, int], list[float]] = {turn: [] for turn in turns}
        for turn in turns:
            exchange(workers[: turn[1]], turn[0], 0.2)
        for _ in range(ROUNDS):
            for name, n in turns:
                found[name, n].append(exchange(workers[:n], name, TURN_SECONDS))
        return found


def places(stack: ExitStack, served: dict[str, Served], partition: int) -> dict[str, Any]:
    """Where a worker exchanges: all the servers, and raw sockets of its own."""
    found: dict[str, tuple[Any, ...]] = {
        name: (one.address, one.entries, name.split()[0], partition) for name, one in served.items()
    }
    for name in RAW:
        found[name] = (started(stack, raw_server, name != "raw").recv(),)
    return found


def exchange(workers: list[Connection], name: str, seconds: float) -> float:
    """Let workers exchange with a place at the same time; exchanges a second, in sum."""
    for control in workers:
        control.send((name, seconds))
    return sum(control.recv() for control in workers)


def recovery() -> list[float]:
    """Seconds from kill -9 of the server to the next applied push, as a worker sees them."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        served = stack.enter_context(Served("small", POLICIES["every"], folder, KILLS))
        end = HttpExchange(served.address, served.entries, "small", 0)
        stack.callback(end.close)
        seconds = []
        for _ in range(KILLS):
            end.once()
            start = time.perf_counter()
            os.kill(served.supervisor.pid, signal.SIGKILL)
            end.once()
            seconds.append(time.perf_counter() - start)
        return seconds


def exchange_rows(found: dict[tuple[str, int], list[float]]) -> list[dict[str, Any]]:
    """The server without checkpoints, against raw sockets where the bytes count."""
    rows = []
    for size, n in (("small", 1), ("small", 2), ("large", 1), ("large", 2)):
        (d, dtype), times = SIZES[size], found[f"{size} none", n]
        row: dict[str, Any] = {
            "a push that returns the next model": described(size),
            "clients": n,
            "exchanges/s (median)": statistics.median(times),
            "best turn": max(times),
            "GB/s, both ways": 2e-9 * statistics.median(times) * d * int(dtype[2]),
        }
        for head, raw in zip(("of a raw socket", "with the server's step"), RAW, strict=True):
            share = round(median_ratio(times, found[raw, n]), 2)
            row[head] = share if size == "large" else ""
        rows.append(row)
    return rows


def policy_rows(found: dict[tuple[str, int], list[float]]) -> list[dict[str, Any]]:
    """What a checkpoint policy costs one client."""
    rows = []
    for policy in POLICIES:
        row: dict[str, Any] = {"checkpoints": policy}
        for size in SIZES:
            times, free = found[f"{size} {policy}", 1], found[f"{size} none", 1]
            row[f"{described(size)}: exchanges/s"] = statistics.median(times)
            row[f"{described(size)}: of none"] = round(median_ratio(times, free), 2)
        rows.append(row)
    return rows


def described(size: str) -> str:
    """Say how many numbers of what type."""
    d, dtype = SIZES[size]
    return f"{d:,} float{8 * int(dtype[2])}"


def main() -> None:
    """Measure, print and write both tables."""
    found, seconds = rates(), sorted(recovery())
    spreads = [np.subtract(*np.percentile(v, [75, 25])) / np.median(v) for v in found.values()]
    how = (
        f"Processes on loopback, {ROUNDS} turns of {TURN_SECONDS} s, one after the other; ratios"
        " are medians over neighbouring turns. The quartiles of a row are"
        f" {statistics.median(spreads):.0%} of its median apart."
    )
    raw = (
        "A raw socket: its other end, a process for each client, receives into one buffer, does"
        " w -= rate g and sends a copy of w: no HTTP, checksum, NaN check or books, and two clients"
        " have two models. With the server's step: the same, with the server's own update."
    )
    report("exchange", "The model server's exchange", exchange_rows(found), [how, raw])
    told = (
        f"From kill -9 of the server to the next applied push, {KILLS} times, with every update"
        f" kept, 1,000 float64: {statistics.median(seconds):.2f} s in the median,"
        f" {seconds[-1]:.2f} s at worst."
    )
    report("durability", "The price of durability", policy_rows(found), [told, how])


if __name__ == "__main__":
    main()

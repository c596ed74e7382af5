"""The client's connection against a server that answers by a script: sockets on loopback."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from sparkdist.client import Address, Answer, Entry, Gradient, HttpClient
from sparkdist.client.connection import Connection
from sparkdist.errors import DecodeError, WrongToken
from sparkdist.layout import Layout
from sparkdist.server.rules import model_entries
from sparkdist.wire import CONTENT_TYPE, encode

LONG = 1 << 20

Script = Callable[[socket.socket], None]


def asked(peer: socket.socket) -> bytes:
    """Read one request, of which the body is as long as it says; b"" at the end."""
    came = b""
    while b"\r\n\r\n" not in came:
        more = peer.recv(1 << 16)
        if not more:
            return b""
        came += more
    head, _, body = came.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += peer.recv(1 << 16)
    return head + b"\r\n\r\n" + body


def answer(body: bytes, *more: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {CONTENT_TYPE}", *more]
    return "\r\n".join([*lines, f"content-length: {len(body)}\r\n\r\n"]).encode() + body


def always(data: bytes) -> Script:
    """Answer every request on a connection with the same bytes."""

    def script(peer: socket.socket) -> None:
        while asked(peer):
            peer.sendall(data)

    return script


def once(data: bytes) -> Script:
    """Answer one request, and close."""

    def script(peer: socket.socket) -> None:
        asked(peer)
        peer.sendall(data)

    return script


@contextmanager
def served(*scripts: Script) -> Iterator[Address]:
    """A server that follows a script on each connection, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)

        def run() -> None:
            for script in scripts:
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                with peer:
                    peer.settimeout(20)
                    try:
                        script(peer)
                    except OSError:
                        pass  # the client has closed: the test knows why

        thread = threading.Thread(target=run)
        thread.start()
        yield Address("127.0.0.1", listening.getsockname()[1], "token", "run")
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def connected(*scripts: Script, limit: int = 2 * LONG, silence: float = 20) -> Iterator[Connection]:
    with served(*scripts) as address:
        connection = Connection(address, limit, silence)
        try:
            yield connection
        finally:
            connection.close()


def entries(size: int) -> tuple[Entry, ...]:
    return model_entries(Layout.of(np.zeros(size)), "<f8")


def idle(stop: threading.Event) -> Script:
    """Neither read nor answer until it is over."""

    def script(peer: socket.socket) -> None:
        stop.wait(20)

    return script


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def test_a_request_is_one_that_http_servers_understand():
    seen = []

    def script(peer: socket.socket) -> None:
        seen.append(asked(peer))
        peer.sendall(answer(b"right"))

    with connected(script) as connection:
        reply = connection.post("/v1/push", [b"ab", memoryview(b"cde")], soon())
    head, _, body = seen[0].partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    assert (line, body) == ("POST /v1/push HTTP/1.1", b"abcde")
    assert dict(header.split(": ") for header in headers) == {
        "Host": f"127.0.0.1:{connection._address.port}",
        "Authorization": "Bearer token",
        "Content-Type": CONTENT_TYPE,
        "Content-Length": "5",
    }
    assert (reply.status, reply.content_type, bytes(reply.body)) == (200, CONTENT_TYPE, b"right")


def test_a_long_frame_and_a_long_answer_come_whole():
    sent = np.random.default_rng(0).bytes(5 * LONG)  # beyond what the buffers of a socket take

    def script(peer: socket.socket) -> None:
        peer.sendall(answer(asked(peer).partition(b"\r\n\r\n")[2]))

    with connected(script, limit=6 * LONG) as connection:
        reply = connection.post("/v1/push", [sent[:7], memoryview(sent)[7:]], soon())
        assert reply.body == sent


def test_memory_is_used_again_only_when_no_view_of_it_is_left():
    with connected(always(answer(bytes(LONG)))) as connection:

        def numbers():
            return np.frombuffer(connection.post("/v1/pull", [], soon()).body, "<f8")

        def place(array):
            return array.__array_interface__["data"][0]

        first = numbers()
        held = first[5:]  # a view of a view, as a worker may keep one
        second = numbers()
        places = {place(first), place(second)}
        assert len(places) == 2
        del second
        third = numbers()
        assert place(third) in places - {place(first)}
        fourth = numbers()
        assert place(fourth) not in places
        assert place(held) == place(first) + 40
        del first, held, third, fourth


def test_r28_a_dripping_answer_ends_at_the_deadline():
    stop = threading.Event()

    def drip(peer: socket.socket) -> None:
        asked(peer)
        peer.sendall(answer(bytes(1000))[:-1000])
        while not stop.wait(0.02):
            peer.sendall(b"x")

    with connected(drip) as connection:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.post("/v1/pull", [], soon(0.3))
        stop.set()
    assert 0.3 <= time.monotonic() - start < 5


def test_r28_a_server_that_takes_nothing_ends_a_push_at_the_deadline():
    stop = threading.Event()
    with connected(idle(stop)) as connection:
        with pytest.raises(TimeoutError):
            connection.post("/v1/push", [bytes(64 * LONG)], soon(0.3))
        stop.set()


def test_r28_a_silent_server_is_given_up_before_the_deadline():
    stop = threading.Event()
    with connected(idle(stop), silence=0.2) as connection:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.post("/v1/pull", [], soon(60))
        stop.set()
    assert time.monotonic() - start < 30


def test_a_connection_that_was_closed_while_idle_is_opened_again():
    with connected(once(answer(b"one")), once(answer(b"two"))) as connection:
        assert connection.post("/v1/pull", [], soon()).body == b"one"
        assert select.select([connection._socket], [], [], 20)[0]  # its end has come
        assert connection.post("/v1/pull", [], soon()).body == b"two"


def test_a_server_that_says_close_is_left():
    first = answer(b"one", "connection: close")
    with connected(once(first), once(answer(b"two"))) as connection:
        assert connection.post("/v1/pull", [], soon()).body == b"one"
        assert connection.post("/v1/pull", [], soon()).body == b"two"


ODD = {
    "no http": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "http 1.0": answer(b"").replace(b"1.1", b"1.0"),
    "no status": b"HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
    "informational": answer(b"", status="100 Continue"),
    "no length": b"HTTP/1.1 200 OK\r\n\r\n",
    "two lengths": answer(b"", "content-length: 0"),
    "negative": b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    "chunked": answer(b"", "transfer-encoding: chunked"),
    "endless length": b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n",
    "over the limit": b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (2 * LONG + 1),
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"a" * (1 << 17),
    "no colon": answer(b"", "nonsense"),
    "cut": answer(bytes(100))[:-1],
    "more than it says": answer(b"right") + b"HTTP/1.1 200 OK\r\n",
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_r19_an_answer_that_is_none_is_refused_and_the_connection_left(data):
    with connected(once(data), once(answer(b"right"))) as connection:
        with pytest.raises(DecodeError):
            connection.post("/v1/pull", [], soon())
        assert connection.post("/v1/pull", [], soon()).body == b"right"


def test_a_connection_that_ends_without_an_answer_is_told():
    with connected(once(b"")) as connection, pytest.raises(ConnectionError):
        connection.post("/v1/pull", [], soon())


def test_a_refusal_that_comes_before_the_body_was_read_is_understood():
    said = b'{"error": "token", "message": "wrong token"}'
    plain = answer(said, status="401 Unauthorized").replace(
        CONTENT_TYPE.encode(), b"application/json"
    )

    def refuse(peer: socket.socket) -> None:
        peer.recv(1000)
        peer.sendall(plain)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(1 << 20):
            pass

    at = Answer("ok", 0, 0, "g")
    with served(refuse) as address, HttpClient(address, entries(LONG), 20.0) as client:
        with pytest.raises(WrongToken, match="wrong token"):
            client.push(0, 0, at, Gradient(np.ones(LONG)), want=True)


def test_a_damaged_answer_is_asked_for_again():
    fields = {"status": "ok", "next": 3, "version": 7, "generation": "g", "durable": 0}
    good = encode(fields)
    bad = good[:-1] + bytes([good[-1] ^ 1])
    with served(once(answer(bad)), once(answer(good))) as address:
        with HttpClient(address, entries(4), 20.0) as client:
            assert client.join(0).next == 3

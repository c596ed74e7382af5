"""The HTTP server's parts: one connection at a time, over a socket pair.

What h11, a library of its own, says of the same bytes is the outside opinion; rules are named by
their sections of RFC 9110 and 9112, and of PEP 3333.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, PROTOCOL_TLS_SERVER
from typing import Any

import h11
import numpy as np
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkdist.server.http import HttpServer
from sparkdist.server.http import connection as module
from sparkdist.server.http import server as server_module
from sparkdist.server.http.connection import Connection
from sparkdist.server.http.head import BadHead, end_of_head, read_head
from sparkdist.server.http.poller import Poller, PortablePoller
from sparkdist.server.supervisor import reserve_port
from tests.proxies import reset

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"


def post(body: bytes, *lines: str, target: str = "/v1/push") -> bytes:
    head = [f"POST {target} HTTP/1.1", "Host: h", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


class Echo:
    """An application that answers with the body, and keeps what it was asked."""

    def __init__(self, reads: bool = True):
        self.asked: list[dict[str, Any]] = []
        self._reads = reads

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.asked.append(environ)
        body = environ["wsgi.input"].read() if self._reads else b""
        start_response("200 OK", [("X-Path", environ["PATH_INFO"])])
        return [body]


class Pair:
    """A client's socket, and the server's connection, whose turns are taken here."""

    def __init__(self, app: Any):
        self.client, self.server = socket.socketpair()
        self.client.settimeout(10.0)
        self.app, self.connection = app, Connection(self.server, {"SERVER_NAME": "s"})

    def send(self, data: bytes) -> int:
        """Send what fits into a socket's buffer, and let the connection have its turns."""
        self.client.sendall(data)
        return self.turns()

    def turns(self) -> int:
        """Let the connection have turns as long as it wants to write and can."""
        while (event := self.connection.on_ready(self.app)) == select.POLLOUT:
            if not select.select([], [self.server], [], 0)[1]:
                break
        return event

    def wait(self, event: int) -> None:
        """Wait for what the connection waits for, as its server does."""
        poll = select.poll()
        poll.register(self.server, event)
        assert poll.poll(10_000)

    def answers(self, n: int, method: str = "GET") -> list[tuple[int, dict[str, str], bytes]]:
        """Read n answers, as h11 understands them."""
        found, ours = [], h11.Connection(h11.CLIENT)
        for _ in range(n):
            ours.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
            ours.send(h11.EndOfMessage())
            head = self._next(ours)
            assert isinstance(head, h11.Response), head
            body = b""
            while isinstance(event := self._next(ours), h11.Data):
                body += event.data
            headers = {name.decode(): value.decode() for name, value in head.headers}
            found.append((head.status_code, headers, body))
            if ours.their_state is h11.DONE and ours.our_state is h11.DONE:
                ours.start_next_cycle()
        return found

    def _next(self, ours: h11.Connection) -> Any:
        while (event := ours.next_event()) is h11.NEED_DATA:
            ours.receive_data(self.client.recv(1 << 16))
        return event

    def ended(self) -> bool:
        """Whether the server says that nothing more comes."""
        return self.client.recv(1) == b""


@pytest.fixture
def echo() -> Iterator[Pair]:
    pair = Pair(Echo())
    yield pair
    pair.client.close()
    pair.connection.close()


def of(app: Any) -> contextlib.AbstractContextManager[Pair]:
    @contextlib.contextmanager
    def made() -> Iterator[Pair]:
        pair = Pair(app)
        try:
            yield pair
        finally:
            pair.client.close()
            pair.connection.close()

    return made()


# --- heads ------------------------------------------------------------------------------------


def test_a_head_is_what_pep_3333_says_of_it():
    head = read_head(
        b"POST /a%20b%2Fc/%E2%82%AC?q=%41&r HTTP/1.1\r\nHost: h:1\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 12\r\nX-One:  spaced \r\nAccept: a\r\nAccept: b\r\nX_One: lie\r\n\r\n",
        {"SCRIPT_NAME": ""},
    )
    assert head.environ == {
        "SCRIPT_NAME": "",
        "REQUEST_METHOD": "POST",
        "SERVER_PROTOCOL": "HTTP/1.1",
        # Escapes are read, and bytes stand as Latin-1.
        "PATH_INFO": "/a b/c/" + "€".encode().decode("latin-1"),
        "QUERY_STRING": "q=%41&r",
        "HTTP_HOST": "h:1",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "12",
        "HTTP_X_ONE": "spaced",
        "HTTP_ACCEPT": "a, b",
    }
    assert (head.length, head.keep_alive, head.expects_continue) == (12, True, False)


def test_a_whole_address_says_the_host_too():
    """RFC 9112, 3.2.2: a server must take the absolute form, and pass over the header Host."""
    found = read_head(b"GET http://h:1/a?b HTTP/1.1\r\nHost: lie\r\n\r\n", {}).environ
    assert (found["PATH_INFO"], found["QUERY_STRING"]) == ("/a", "b")
    assert found["HTTP_HOST"] == "h:1"


def test_lines_are_as_long_and_as_many_as_is_said():
    most = b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 100 + b"\r\n"
    assert read_head(most, {}).environ["HTTP_X"] == ", ".join("a" * 100)
    long = b"GET / HTTP/1.1\r\nX: " + b"a" * ((32 << 10) - 23) + b"\r\n\r\n"
    assert len(long) == 32 << 10 and end_of_head(long) == len(long)
    with pytest.raises(BadHead):
        end_of_head(long.replace(b"aa", b"aaa", 1))


@pytest.mark.parametrize(
    ("line", "expects"),
    [
        (b"HTTP/1.1\r\nExpect: 100-continue", True),
        (b"HTTP/1.1\r\nExpect: 100-Continue", True),
        (b"HTTP/1.1\r\nExpect: something", False),
        (b"HTTP/1.0\r\nExpect: 100-continue", False),
    ],
)
def test_an_expectation_is_one_of_http_1_1(line, expects):
    """RFC 9110, 10.1.1."""
    head = b"POST / " + line + b"\r\nContent-Length: 5\r\n\r\n"
    assert read_head(head, {}).expects_continue is expects


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        # Nobody reads chunks here, so that the end of the body is not known.
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nConnection: keep-alive, Close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nConnection: x-close\r\n\r\n", True),
        # An offer to change the protocol may be passed over (RFC 9110, 7.8).
        (b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", True),
    ],
)
def test_a_connection_is_kept_where_both_sides_know_where_a_request_ends(head, keeps):
    assert read_head(head, {}).keep_alive is keeps


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nAuthorization: a\r\nauthorization: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Type: a\r\nContent-Type: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET /  HTTP/1.1\r\n\r\n",
        b"CONNECT h:80 HTTP/1.1\r\n\r\n",
        b"CONNECT /v1/push HTTP/1.1\r\n\r\n",
        b"GET ftp://h/a HTTP/1.1\r\n\r\n",
        b"GET http://me@h/a HTTP/1.1\r\n\r\n",
        b"GET /a#b HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: " + b"0" * 5000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: " + b"0" * 19 + b"5\r\n\r\n",
        b"GET h HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\n\n",
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 101 + b"\r\n",
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(head):
    with pytest.raises(BadHead):
        read_head(head, {})


def test_a_head_may_come_in_any_pieces():
    request = post(b"abc")
    for cut in range(1, len(request) - len(b"abc")):
        with of(Echo()) as pair:
            assert pair.send(request[:cut]) == select.POLLIN
            assert pair.send(request[cut:]) == select.POLLIN
            assert pair.answers(1, "POST")[0][2] == b"abc"


@pytest.mark.parametrize("filler", [b"GET / HTTP/1.1\r\nX: ", b"GET /"])
def test_a_head_without_an_end_is_refused_at_32_kib(echo, filler):
    """RFC 9110, 15.5: a client error, told before the connection is closed."""
    assert echo.send(filler + b"a" * (32 << 10)) == select.POLLIN
    assert echo.answers(1)[0][0] == 431 and echo.ended()


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=400) | st.from_regex(rb"[A-Z]{3,4} /[ -~\r\n:]{0,80}"))
def test_any_bytes_are_an_answer_or_a_refusal(noise):
    with of(Echo(reads=False)) as pair:
        pair.send(noise + b"\r\n\r\n")
        pair.client.shutdown(socket.SHUT_WR)
        while pair.connection.on_ready(pair.app):
            pass
        pair.connection.close()
        said = b""
        while more := pair.client.recv(1 << 16):
            said += more
        # One refusal at most, and then nothing.
        assert said.count(b"HTTP/1.1 4") <= 1
        assert b"HTTP/1.1 5" not in said
        assert not said or said.startswith((b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 4"))


token = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
value = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(token.map("x-{}".format), value, max_size=8), st.binary(max_size=200))
def test_what_h11_writes_is_read_as_it_was_meant(headers, body):
    theirs = h11.Connection(h11.CLIENT)
    length = {"Host": "h", "Content-Length": str(len(body))}
    sent = theirs.send(
        h11.Request(method="POST", target="/v1/push", headers=[*length.items(), *headers.items()])
    )
    with of(Echo()) as pair:
        pair.send(sent + theirs.send(h11.Data(data=body)) + theirs.send(h11.EndOfMessage()))
        assert pair.answers(1, "POST")[0][2] == body
        (environ,) = pair.app.asked
    for name, said in headers.items():
        assert environ["HTTP_" + name.upper().replace("-", "_")] == said


def test_every_request_has_an_environment_of_its_own():
    """PEP 3333: the application may change it."""
    found = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        found.append((environ.pop("PATH_INFO"), environ.pop("HTTP_HOST"), sorted(environ)))
        start_response("200 OK", [])
        return []

    with of(app) as pair:
        pair.send(GET + GET + GET.replace(b"/a", b"/b") + GET)
        pair.answers(4)
    assert found[0] == found[1] == found[3] and found[2] == ("/b", *found[0][1:])


# --- bodies -----------------------------------------------------------------------------------


def test_requests_that_come_together_are_answered_in_turn(echo):
    """RFC 9112, 9.3.2: pipelining."""
    requests = [post(b"a" * n, target=f"/{n}") for n in (0, 5, 3000)]
    assert echo.send(b"".join([*requests, b"\r\n", requests[1]])) == select.POLLIN
    answers = echo.answers(4, "POST")
    assert [len(body) for _, _, body in answers] == [0, 5, 3000, 5]
    assert [headers["x-path"] for _, headers, _ in answers] == ["/0", "/5", "/3000", "/5"]


def test_a_long_body_comes_into_the_memory_it_is_meant_for_and_nowhere_else():
    n = 4 << 20
    memory, sent = np.zeros(n, np.uint8), np.arange(n).astype(np.uint8).tobytes()
    peaks = []

    def app(environ: dict[str, Any], start_response: Any) -> list[Any]:
        view, came = memory.data, 0
        tracemalloc.start()
        while more := environ["wsgi.input"].readinto(view[came:]):
            came += more
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        start_response("200 OK", [])
        return [memory]  # anything with a buffer is an answer

    with of(app) as pair:
        request = post(sent)
        # 4 MB fit into no socket: one sends and one reads, while the connection has its turns.
        with ThreadPoolExecutor(2) as pool:
            pool.submit(pair.client.sendall, request)
            reading = pool.submit(pair.answers, 1, "POST")
            event = select.POLLIN
            while event == select.POLLOUT or not peaks:
                pair.wait(event)
                event = pair.connection.on_ready(app)
            ((status, headers, body),) = reading.result(10.0)
    assert (status, headers["content-length"], event) == (200, str(n), select.POLLIN)
    assert body == sent
    assert peaks[0] < n // 16  # the client's bites of 64 KiB are counted too


def test_a_body_that_ends_early_ends_and_is_not_waited_for(echo):
    echo.client.sendall(post(b"abcdef")[:-2])
    echo.client.shutdown(socket.SHUT_WR)
    assert echo.connection.on_ready(echo.app) == select.POLLIN
    ((_, headers, body),) = echo.answers(1, "POST")
    assert body == b"abcd" and headers["connection"] == "close"


def test_r28_a_body_that_stops_coming_ends(echo, monkeypatch):
    monkeypatch.setattr(module, "_SILENCE", 0.1)
    began = time.monotonic()
    echo.send(post(b"abcdef")[:-2])
    assert 0.1 <= time.monotonic() - began < 5
    assert echo.answers(1, "POST")[0][2] == b"abcd"


def test_r33_an_answer_that_nobody_takes_waits_without_a_thread(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    long = np.arange(1 << 20).tobytes()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X-Path", environ["PATH_INFO"])])
        return [long]

    with of(app) as pair:
        began = time.perf_counter()
        assert pair.send(GET + GET + GET.replace(b"/a", b"/b")) == select.POLLOUT
        assert time.perf_counter() - began < 5
        assert pair.connection.deadline == 1008.0
        now[0] += 5
        assert pair.connection.on_ready(app) == select.POLLOUT
        assert pair.connection.deadline == 1008.0  # it has taken nothing
        found: list[Any] = []
        reading = threading.Thread(target=lambda: found.extend(pair.answers(3)))
        reading.start()
        while (event := pair.turns()) == select.POLLOUT:
            assert pair.connection.deadline >= 1013.0
        reading.join(10.0)
        assert event == select.POLLIN and pair.connection.deadline == 1005.0 + 300.0
    assert [(status, headers["x-path"]) for status, headers, _ in found] == [
        (200, "/a"),
        (200, "/a"),
        (200, "/b"),
    ]
    assert all(body == long for _, _, body in found)


def test_an_answer_may_have_more_parts_than_the_kernel_takes_at_once():
    parts = [bytes([n % 256]) for n in range(5000)]

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return parts

    with of(app) as pair:
        pair.send(GET)
        assert pair.answers(1)[0][2] == b"".join(parts)


def test_r37_a_body_that_is_not_read_takes_all_behind_it_with_it():
    """What may be the rest of a body may not be taken for a request; the answer arrives."""
    app = Echo(reads=False)
    with of(app) as pair:
        inside = post(b"x", target="/smuggled")
        pair.send(post(inside + bytes(300_000))[:60_000])
        assert pair.connection.on_ready(app) == select.POLLIN  # passed over
        ((status, headers, _),) = pair.answers(1, "POST")
        assert (status, headers["connection"]) == (200, "close") and pair.ended()
        assert [environ["PATH_INFO"] for environ in app.asked] == ["/v1/push"]


def test_a_body_that_is_there_is_passed_over_where_it_is_not_read():
    app = Echo(reads=False)
    with of(app) as pair:
        pair.send(post(b"x" * 500) + GET)
        assert [status for status, _, _ in pair.answers(2)] == [200, 200]
        assert [environ["PATH_INFO"] for environ in app.asked] == ["/v1/push", "/a"]


def test_r37_what_comes_behind_the_last_answer_is_no_request_and_is_not_kept():
    app = Echo(reads=False)
    with of(app) as pair:
        inside = post(b"x", target="/smuggled")
        pair.send(post(inside + bytes(10 << 20), "X: a")[: -(10 << 20) - len(inside)])
        assert pair.answers(1, "POST")[0][1]["connection"] == "close"
        pair.send(inside)
        tracemalloc.start()
        for _ in range(100):
            assert pair.send(bytes(64 << 10)) == select.POLLIN
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [environ["PATH_INFO"] for environ in app.asked] == ["/v1/push"]
        assert peak < 1 << 20  # of 6.5 MB that came


def test_a_body_whose_connection_breaks_ends(caplog):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
    read = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        reset(client)
        read.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return []

    connection = Connection(server, {})
    client.sendall(post(b"abcdef")[:-2])
    with pytest.raises(OSError):  # there is nobody to be answered
        connection.on_ready(app)
    connection.close()
    assert read == [b"abcd"] and caplog.text == ""


def test_an_invitation_that_cannot_be_sent_comes_before_the_answer():
    class Full:
        """A socket whose buffer is full when the invitation is sent."""

        def __init__(self, real: socket.socket):
            self._real = real

        def send(self, data: Any) -> int:
            return self._real.send(data[:7])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    with of(Echo()) as pair:
        pair.connection._socket = Full(pair.connection._socket)
        pair.client.sendall(post(b"abc", "Expect: 100-continue")[:-3])
        turning = threading.Thread(target=pair.connection.on_ready, args=(pair.app,))
        turning.start()
        assert pair.client.recv(100) == b"HTTP/1."
        pair.client.sendall(b"abc")
        turning.join(10.0)
        assert pair.client.recv(18) == b"1 100 Continue\r\n\r\n"
        assert pair.answers(1, "POST")[0][2] == b"abc"


@pytest.mark.parametrize("reads", [True, False])
def test_a_client_that_asks_first_is_told_to_go_on_when_its_body_is_wanted(reads):
    """RFC 9110, 10.1.1."""
    with of(Echo(reads)) as pair:
        head, body = post(b"abc", "Expect: 100-continue")[:-3], b"abc"
        pair.client.sendall(head)
        turning = threading.Thread(target=pair.connection.on_ready, args=(pair.app,))
        turning.start()
        first = pair.client.recv(25)
        if reads:
            assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
            pair.client.sendall(body[:1])  # and it is not told again
            time.sleep(0.05)
            pair.client.sendall(body[1:])
            assert pair.answers(1, "POST")[0][2] == b"abc"
        else:
            assert first.startswith(b"HTTP/1.1 200 OK\r\n")
        turning.join(10.0)


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "status", "length"),
    [("HEAD", "200 OK", "5"), ("GET", "204 No Content", None), ("GET", "304 Not Modified", None)],
)
def test_answers_without_a_body_have_none(method, status, length):
    """RFC 9110, 9.3.2, 15.3.5 and 15.4.5; 8.6 on what may be said of their lengths."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, [])
        return [b"hello"]

    with of(app) as pair:
        pair.send(GET.replace(b"GET", method.encode()) + GET)
        ((_, headers, body),) = pair.answers(1, method)
        assert (headers.get("content-length"), body) == (length, b"")


def test_what_is_written_comes_before_what_is_returned():
    """PEP 3333, The write() Callable."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        write = start_response("200 OK", [])
        write(b"first ")
        write(b"second ")
        return iter([b"third"])

    with of(app) as pair:
        pair.send(GET)
        assert pair.answers(1)[0][2] == b"first second third"


@pytest.mark.parametrize("value", ["a\r\nX-B: b", "a\nb", "a\rb", "€"])
def test_a_header_that_is_none_is_an_error_of_the_application(value):
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X-A", value)])
        return [b""]

    with of(app) as pair:
        pair.send(GET)
        assert pair.answers(1)[0][0] == 500


def test_an_answer_is_all_that_wsgi_lets_an_application_give():
    class Given:
        closed = False

        def __iter__(self) -> Iterator[Any]:
            yield from (b"a", b"", memoryview(b"bc"), np.arange(2, dtype="<i4"))

        def close(self) -> None:
            self.closed = True

    given_, began = Given(), int(time.time())

    def app(environ: dict[str, Any], start_response: Any) -> Given:
        start_response("200 OK", [])
        return given_

    with of(app) as pair:
        pair.send(GET)
        ((_, headers, body),) = pair.answers(1)
    assert body == b"abc" + bytes(4) + b"\1\0\0\0" and given_.closed
    assert headers["content-length"] == "11"
    said = time.strptime(headers["date"], "%a, %d %b %Y %H:%M:%S GMT")  # RFC 9110, 5.6.7
    assert 0 <= time.mktime(said) - time.timezone - began <= 5


@pytest.mark.parametrize("error", [RuntimeError("secret"), SystemExit("secret")])
def test_r44_an_application_that_fails_is_an_error_without_a_word(caplog, error):
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise error

    with of(app) as pair, caplog.at_level(logging.ERROR):
        pair.send(GET + GET)
        ((status, headers, body),) = pair.answers(1)
        assert (status, headers["connection"], body) == (500, "close", b"") and pair.ended()
    assert "secret" in caplog.text


def test_strangers_write_nothing_into_the_log(caplog):
    """The process writes what is INFO or worse to a file: who may write there can fill the disk."""
    serving = Serving(Echo(), 2)
    with caplog.at_level(logging.INFO):
        assert serving.ask(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
        client = serving.connect()
        client.sendall(GET[:9])
        time.sleep(0.1)  # it is read before the reset comes
        reset(client)
        time.sleep(0.1)
        assert serving.ask(GET).startswith(b"HTTP/1.1 200")
    assert caplog.text == ""


def test_http_1_0_is_answered_once(echo):
    echo.send(GET.replace(b"1.1", b"1.0"))
    assert echo.answers(1)[0][1]["connection"] == "close" and echo.ended()


@pytest.fixture
def tls() -> Iterator[tuple[socket.socket, ssl.SSLContext, ssl.SSLContext, socket.socket]]:
    """A client's plain socket, our context and theirs, and the server's plain socket."""
    authority = trustme.CA()
    ours, theirs = (ssl.SSLContext(side) for side in (PROTOCOL_TLS_SERVER, PROTOCOL_TLS_CLIENT))
    authority.issue_cert("h").configure_cert(ours)
    authority.configure_trust(theirs)
    plain, server = socket.socketpair()
    plain.settimeout(10.0)
    with plain:
        yield plain, ours, theirs, server


def test_r47_what_tls_has_decrypted_already_is_answered_at_once(tls, monkeypatch):
    """No poll tells of it: the kernel has given it away."""
    monkeypatch.setattr(module, "_RECV_BYTES", 100)
    plain, ours, theirs, server = tls
    app = Echo()
    with ours.wrap_socket(server, server_side=True, do_handshake_on_connect=False) as end:
        connection = Connection(end, {})

        def ask() -> bytes:
            with theirs.wrap_socket(plain, server_hostname="h") as client:
                client.sendall(b"".join(post(b"x" * 150, target=f"/{n}") for n in range(3)))
                said = b""
                while said.count(b"x" * 150) < 3:
                    said += client.recv(1 << 16)
                return said

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            while len(app.asked) < 3:
                assert select.select([end], [], [], 10.0)[0]
                while connection.on_ready(app) == select.POLLOUT:
                    pass
                assert len(app.asked) in (0, 3)  # one record holds all three
            assert asking.result(10.0).count(b"HTTP/1.1 200 OK") == 3


def test_r47_the_end_of_a_tls_connection_is_told(tls):
    """RFC 8446, 6.1: a client that reads to the end knows that nothing was cut off."""
    plain, ours, theirs, server = tls
    with ours.wrap_socket(server, server_side=True, do_handshake_on_connect=False) as end:
        connection, app = Connection(end, {}), Echo()

        def ask() -> bytes:
            options = {"server_hostname": "h", "suppress_ragged_eofs": False}
            with theirs.wrap_socket(plain, **options) as client:
                client.sendall(GET.replace(b"1.1", b"1.0"))
                said = b""
                while more := client.recv(1 << 16):
                    said += more
                return said

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            while not asking.done():  # the server has not closed its socket
                if select.select([end], [], [], 0.1)[0]:
                    connection.on_ready(app)
            assert asking.result().startswith(b"HTTP/1.1 200 OK")


# --- many connections -------------------------------------------------------------------------


@pytest.fixture(params=[Poller, PortablePoller])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The poller of a server, which there is for Linux and for all systems."""
    monkeypatch.setattr(server_module, "Poller", request.param)
    return request.param


class Nested:
    """An application whose requests say that they are inside, and wait to be let out."""

    def __init__(self) -> None:
        self.inside, self.gate = threading.Semaphore(0), threading.Event()
        self.gate.set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.inside.release()
        assert self.gate.wait(10.0)
        start_response("200 OK", [])
        return [b""]


class Serving:
    """A server in threads of this process, which end with it."""

    def __init__(self, app: Any, threads: int, **files: Path):
        self.app = app
        with reserve_port("127.0.0.1") as held:
            self.place = held.getsockname()
            self.server = HttpServer(app, *self.place, threads=threads, **files)
        threading.Thread(target=self.server.serve, daemon=True).start()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.place, 10.0)

    def ask(self, request: bytes) -> bytes:
        with self.connect() as client:
            client.sendall(request)
            return client.recv(1 << 16)


def test_r33_beyond_the_limit_of_connections_new_ones_wait_until_late_ones_are_closed(monkeypatch):
    monkeypatch.setattr(server_module, "_most_connections", lambda: 5)
    monkeypatch.setattr(module, "_HEAD_SECONDS", 2.0)
    serving, began = Serving(Echo(), 4), time.monotonic()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(serving.connect()) for _ in range(5)]
        assert serving.ask(GET).startswith(b"HTTP/1.1 200 OK")
        assert time.monotonic() - began >= 2.0
        for connection in silent:
            assert connection.recv(1) == b""


def test_descriptors_are_asked_for_and_some_are_left_for_files(monkeypatch):
    limits, soft, hard = server_module.resource, 256, 4096
    asked = []

    def set_limit(what: int, wanted: tuple[int, int]) -> None:
        asked.append(wanted)
        if wanted[0] > hard:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(limits, "setrlimit", set_limit)
    monkeypatch.setattr(limits, "getrlimit", lambda what: (soft, hard))
    # Neither 65,536 nor 10,240 is permitted here; some are left for files.
    assert server_module._most_connections() == 256 - 64
    assert asked == [(65536, hard), (10240, hard)]


def test_a_thread_that_cannot_be_started_is_tried_again_with_the_next_request(monkeypatch, caplog):
    serving, fails, inside = Serving(Nested(), 4), [True], threading.Semaphore(0)
    start = threading.Thread.start

    def failing(thread: threading.Thread) -> None:
        if thread.name == "sparkdist http" and fails[0]:
            raise RuntimeError("can't start new thread")
        start(thread)

    assert serving.ask(GET).startswith(b"HTTP/1.1 200 OK")  # two threads are there
    monkeypatch.setattr(threading.Thread, "start", failing)
    serving.app.inside, serving.app.gate = inside, threading.Event()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(serving.connect()) for _ in range(4)]
        for client in clients[:2]:
            client.sendall(GET)
            assert inside.acquire(timeout=10.0)
        assert "no thread could be started beside 2" in caplog.text
        serving.app.gate.set()
        for client in clients[:2]:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        fails[0], serving.app.gate = False, threading.Event()
        for client in clients:
            client.sendall(GET)
            assert inside.acquire(timeout=10.0)
        serving.app.gate.set()
        for client in clients:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")


def test_r33_clients_that_ask_and_ask_hold_no_thread(kind):
    """A turn has one answer, so that others have theirs, and nobody waits with a stranger."""
    serving, done = Serving(Echo(), 2), threading.Event()

    def flood() -> None:
        with serving.connect() as client:
            client.sendall(GET * 500)
            while not done.is_set():
                client.sendall(GET * client.recv(1 << 16).count(b"HTTP/1.1 200"))

    with ThreadPoolExecutor(6) as pool:
        floods = [pool.submit(flood) for _ in range(6)]
        try:
            time.sleep(0.2)
            began = time.monotonic()
            for _ in range(5):
                assert serving.ask(GET.replace(b"/a", b"/b")).startswith(b"HTTP/1.1 200 OK")
            assert time.monotonic() - began < 5
        finally:
            done.set()
    assert all(flooding.exception() is None for flooding in floods)


@pytest.mark.parametrize(("reads", "waits"), [(True, 1), (False, 0)])
def test_r33_a_thread_stays_only_with_clients_whose_body_was_read(reads, waits):
    flags = []

    class Seen:
        """A socket that keeps how it is asked for what comes."""

        def __init__(self, real: socket.socket):
            self._real = real

        def recv(self, n: int, how: int) -> bytes:
            flags.append(how)
            return self._real.recv(n, how)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    with of(Echo(reads)) as pair:
        pair.connection._socket = Seen(pair.connection._socket)
        assert pair.send(post(b"abc")) == select.POLLIN
        assert flags == [socket.MSG_DONTWAIT, *[0] * waits]
        flags.clear()
        assert pair.send(GET) == select.POLLIN
        assert flags == [socket.MSG_DONTWAIT]


def test_r33_a_long_answer_is_sent_in_turns(monkeypatch):
    """A client that reads steadily, and slowly, holds no thread for as long as it reads."""
    monkeypatch.setattr(module, "_SEND_SECONDS", 0.0)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(1000)] * 20_000

    with of(app) as pair, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(pair.answers, 1)
        pair.client.sendall(GET)
        turns = 1
        while pair.connection.on_ready(app) == select.POLLOUT:
            turns += 1
            pair.wait(select.POLLOUT)
        ((_, _, body),) = reading.result(10.0)
        # 1,024 buffers a call at most, and 20,001 are to be sent.
        assert len(body) == 20_000_000 and turns >= 20


@pytest.mark.parametrize(("length", "kept"), [(500, True), (20_000, False)])
def test_r33_only_short_heads_are_remembered(echo, length, kept):
    """31 KB were 80 KB of memory for each silent connection, for 300 s."""
    assert echo.send(GET[:-2] + b"X: " + b"a" * length + b"\r\n\r\n") == select.POLLIN
    assert (f"{'a' * length}" in repr(vars(echo.connection))) is kept


def test_r33_a_connection_whose_time_is_over_has_no_turn(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with of(Echo()) as pair:
        pair.send(b"\r\n")
        now[0] += 10.1
        assert pair.send(GET) == 0 and not pair.app.asked


def test_r33_clients_that_read_nothing_hold_no_thread():
    """Neither by answers, nor by a refusal that is sent behind them."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(20_000)]

    serving = Serving(app, 2)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(serving.connect())
            client.sendall(GET * 1000 + b"nonsense\r\n\r\n")
        began = time.monotonic()
        for _ in range(10):
            assert serving.ask(GET.replace(b"/a", b"/b")).startswith(b"HTTP/1.1 200 OK")
        assert time.monotonic() - began < 4


def test_what_is_ready_is_told_once_until_it_is_asked_for_again(kind):
    poller = kind()
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        theirs.sendall(b"x")
        poller.add(ours.fileno())
        for _ in range(3):
            assert poller.wait() == ours.fileno()
            waiting = pool.submit(poller.wait)
            with pytest.raises(futures.TimeoutError):
                waiting.result(0.1)
            poller.rearm(ours.fileno(), select.POLLOUT)
            assert waiting.result(10.0) == ours.fileno()
            poller.rearm(ours.fileno(), select.POLLIN)


def told(poller: Any, n: int, times: int) -> list[bytes]:
    """What eight threads read of n sockets, a byte each time that they are told of one."""
    read: list[bytes] = []
    end, bell = socket.socketpair()
    pairs = [socket.socketpair() for _ in range(n)]
    ours = {pair[0].fileno(): pair[0] for pair in pairs}

    def work() -> None:
        while (descriptor := poller.wait()) != end.fileno():
            read.append(ours[descriptor].recv(1, socket.MSG_DONTWAIT))
            poller.rearm(descriptor, select.POLLIN)
        poller.rearm(descriptor, select.POLLIN)  # for the next thread to end

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        for one in (end, bell, *itertools.chain(*pairs)):
            stack.callback(one.close)
        working = [pool.submit(work) for _ in range(8)]
        for descriptor in (end.fileno(), *ours):
            poller.add(descriptor)
        for theirs in [theirs for _, theirs in pairs] * times:
            theirs.send(b"x")
        deadline = time.monotonic() + 10.0
        while len(read) < n * times and time.monotonic() < deadline:
            time.sleep(0.01)
        bell.send(b"x")
        for one in working:
            one.result(10.0)
    return read


def test_every_socket_is_told_each_time_that_it_is_asked_for_and_to_one_thread(kind):
    """None is lost, and none told to a second thread, which would find nothing to read."""
    assert told(kind(), 20, 50) == [b"x"] * 1000


def test_nobody_waits_busily(kind):
    poller, (ours, theirs) = kind(), socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        poller.add(ours.fileno())
        waiting = pool.submit(poller.wait)
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.5)
        busy = time.process_time() - before
        theirs.send(b"x")
        assert waiting.result(10.0) == ours.fileno() and busy < 0.2


def test_a_socket_that_is_closed_while_it_is_waited_for_stops_nobody(kind):
    poller = kind()
    gone, (ours, theirs) = socket.socketpair(), socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        poller.add(gone[0].fileno())
        poller.add(ours.fileno())
        number = gone[0].fileno()
        waiting = pool.submit(poller.wait)
        gone[0].close()
        gone[1].close()
        theirs.send(b"x")
        assert waiting.result(10.0) in (ours.fileno(), number)


@pytest.mark.parametrize("kind", [PortablePoller], indirect=True)
def test_a_server_without_epoll_serves(kind):
    serving = Serving(Nested(), 8)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            stack.enter_context(serving.connect())  # silent
        for _ in range(20):
            found = list(pool.map(serving.ask, [GET] * 8))
            assert all(answer.startswith(b"HTTP/1.1 200 OK") for answer in found)
        serving.app.inside, serving.app.gate = threading.Semaphore(0), threading.Event()
        asking = [pool.submit(serving.ask, GET) for _ in range(7)]
        for _ in asking:
            assert serving.app.inside.acquire(timeout=10.0)  # all at the same time
        serving.app.gate.set()
        assert all(one.result(10.0).startswith(b"HTTP/1.1 200 OK") for one in asking)


def test_requests_one_after_the_other_take_one_thread_and_leave_one_at_the_poll(kind):
    def threads() -> int:
        return sum(thread.name == "sparkdist http" for thread in threading.enumerate())

    before, serving = threads(), Serving(Echo(), 50)
    for _ in range(100):
        assert serving.ask(GET).startswith(b"HTTP/1.1 200 OK")
    # A thread stays with a connection for 5 ms: a few more than two.
    assert threads() - before <= 10


def test_an_application_is_told_who_asks_and_how(tmp_path):
    serving = Serving(Echo(), 4)
    serving.ask(GET)
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = {"certificate": tmp_path / "certificate.pem", "key": tmp_path / "key.pem"}
    issued.cert_chain_pems[0].write_to_path(str(files["certificate"]))
    issued.private_key_pem.write_to_path(str(files["key"]))
    secured, theirs = Serving(Echo(), 4, **files), ssl.SSLContext(PROTOCOL_TLS_CLIENT)
    authority.configure_trust(theirs)
    with theirs.wrap_socket(secured.connect(), server_hostname="127.0.0.1") as client:
        client.sendall(GET)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
    (plain,), (private,) = serving.app.asked, secured.app.asked
    assert (plain["wsgi.url_scheme"], private["wsgi.url_scheme"]) == ("http", "https")
    for environ, at in ((plain, serving), (private, secured)):
        host, port = at.place
        assert environ["REMOTE_ADDR"] == environ["SERVER_NAME"] == host
        assert environ["SERVER_PORT"] == str(port)


def test_a_client_that_has_gone_before_it_was_accepted_ends_nothing():
    """macOS gives such a client no address."""

    class Gone:
        def accept(self) -> tuple[socket.socket, None]:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                socket.create_connection(listening.getsockname()).close()
                return listening.accept()[0], None

    with reserve_port("127.0.0.1") as held:
        server = HttpServer(Echo(), *held.getsockname(), threads=1)
    server._listening.close()
    server._listening = Gone()
    server._accept()
    ((_, connection),) = server._waiting.items()
    assert connection.on_ready(Echo()) == 0  # it has gone
    connection.close()


def test_r33_a_connection_without_requests_is_closed_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.5)
    with Serving(Echo(), 4).connect() as client:
        for _ in range(3):
            client.sendall(GET)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
            time.sleep(0.2)
        assert client.recv(1) == b""


def test_as_many_requests_as_there_are_threads_may_wait_and_the_next_one_has_its_turn():
    app = Nested()
    app.inside, app.gate = inside, gate = threading.Semaphore(0), threading.Event()
    serving = Serving(app, 4)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(serving.connect()) for _ in range(6)]
        for client in clients:
            client.sendall(GET)
        for _ in range(4):
            assert inside.acquire(timeout=10.0)
        assert not inside.acquire(timeout=0.3)  # four at the same time, and not a fifth
        gate.set()
        for client in clients:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")


# --- deadlines --------------------------------------------------------------------------------


def test_r33_a_head_that_drips_gets_no_more_time(echo, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with of(Echo()) as pair:
        for byte in b"\r\n" + GET[:20]:
            assert pair.send(bytes([byte])) == select.POLLIN
            assert pair.connection.deadline == 1010.0
            now[0] += 0.1
        pair.send(GET[20:])
        answered = now[0]
        assert pair.connection.deadline == answered + 300.0  # for the next request's first byte
        now[0] += 200.0
        for byte in b"\r\n\r\n" + GET[:5]:
            pair.send(bytes([byte]))
            assert pair.connection.deadline == answered + 210.0
            now[0] += 0.1


def test_r33_a_head_that_began_behind_another_request_has_its_time_too(monkeypatch):
    monkeypatch.setattr(module.time, "monotonic", lambda: 1000.0)
    with of(Echo()) as pair:
        pair.send(GET + GET[:9])
        assert pair.connection.deadline == 1010.0


def test_an_answer_that_took_long_has_its_time_to_be_sent(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        now[0] += 20.0  # a worker may wait so long for the others
        start_response("200 OK", [])
        return [b"hello"]

    with of(app) as pair:
        filled = 0
        with contextlib.suppress(BlockingIOError):  # nothing of the answer can be sent
            while True:
                filled += pair.server.send(bytes(4096))
        assert pair.send(GET) == select.POLLOUT and pair.connection.deadline == 1028.0
        while filled > 0:
            filled -= len(pair.client.recv(min(filled, 1 << 16)))
        assert pair.turns() == select.POLLIN
        assert pair.answers(1)[0][2] == b"hello"


def test_a_refused_client_has_two_seconds_to_read_why(monkeypatch):
    monkeypatch.setattr(module.time, "monotonic", lambda: 1000.0)
    with of(Echo()) as pair:
        pair.send(b"nonsense\r\n\r\n")
        assert pair.connection.deadline == 1002.0
        for _ in range(3):
            assert pair.send(b"more") == select.POLLIN
        assert pair.connection.deadline == 1002.0
        pair.client.shutdown(socket.SHUT_WR)
        assert pair.connection.on_ready(pair.app) == 0

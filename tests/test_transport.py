"""The hint to acknowledge at once: set on TCP, harmless everywhere else."""

import os
import socket
from contextlib import ExitStack

import pytest

from sparkdist.spark import transport
from sparkdist.spark.transport import acknowledge_at_once

linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="Linux has /proc")


@pytest.fixture
def tcp_pair():
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=10))
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(10)
        yield client, server


@pytest.fixture
def hints(monkeypatch):
    """The inodes and options of the sockets on which an option is set."""
    seen = []

    class Watched(socket.socket):
        def setsockopt(self, *option):
            seen.append((os.fstat(self.fileno()).st_ino, option))
            super().setsockopt(*option)

    monkeypatch.setattr(transport.socket, "socket", Watched)
    return seen


def inode(connection):
    return os.fstat(connection.fileno()).st_ino


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


@linux
def test_every_tcp_socket_gets_the_hint(tcp_pair, hints):
    acknowledge_at_once()
    option = (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    for connection in tcp_pair:
        assert (inode(connection), option) in hints


@linux
def test_sockets_of_other_families_get_none(hints):
    left, right = socket.socketpair()  # AF_UNIX
    with left, right:
        acknowledge_at_once()
        assert not {inode(left), inode(right)} & {number for number, _ in hints}


@linux
def test_it_leaves_no_descriptor_open(tcp_pair):
    before = descriptors()
    acknowledge_at_once()
    assert descriptors() == before


@linux
def test_a_socket_that_refuses_the_hint_is_let_be(tcp_pair):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        before = descriptors()
        acknowledge_at_once()
        assert descriptors() == before
        assert udp.fileno() >= 0


def test_the_connection_works_as_before(tcp_pair):
    client, server = tcp_pair
    for _ in range(3):
        acknowledge_at_once()
        client.sendall(b"task")
        assert server.recv(4) == b"task"
        server.sendall(b"result")
        assert client.recv(6) == b"result"


@linux
def test_descriptors_that_are_closed_meanwhile_are_passed_over(tcp_pair, hints, monkeypatch):
    listed = os.listdir("/proc/self/fd")
    monkeypatch.setattr(transport.os, "listdir", lambda path: ["1000000", *listed, "1000001"])
    acknowledge_at_once()
    assert {inode(connection) for connection in tcp_pair} <= {number for number, _ in hints}


def test_without_proc_nothing_is_done(tcp_pair, hints, monkeypatch):
    monkeypatch.setattr(transport.os.path, "isdir", lambda path: False)
    acknowledge_at_once()
    assert hints == []


def test_a_system_without_the_hint_is_left_alone(tcp_pair, hints, monkeypatch):
    monkeypatch.setattr(transport, "_QUICKACK", None)
    acknowledge_at_once()
    assert hints == []

"""The port of a server beside the driver: one that is asked for, one of a range, or any."""

from __future__ import annotations

import socket
from argparse import ArgumentTypeError
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyspark.sql import SparkSession

from sparkdist import Dataset, DeepDist, Logistic, ModelServer, ResidentEngine, minimize
from sparkdist.commands import _call
from sparkdist.errors import InvalidCall
from sparkdist.server.supervisor import reserve_port
from sparkdist.spark.engines.aggregate import AggregateEngine
from sparkdist.spark.training.server_options import ServerOptions
from tests.conftest import random_block
from tests.served import Served

HOST = "127.0.0.1"


@pytest.fixture
def port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@pytest.fixture(params=["reserved", "listening", "listening to anybody"])
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port that a server of ours is about to use, or another program does."""
    if request.param == "reserved":
        other = reserve_port(HOST)
    else:
        other = socket.socket()
        if request.param == "listening to anybody":
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((HOST if request.param == "listening" else "0.0.0.0", 0))
        other.listen()
    with other:
        yield other.getsockname()[1]


def test_any_free_port_is_taken_by_default():
    with reserve_port(HOST) as one, reserve_port(HOST) as other:
        assert one.getsockname()[1] != other.getsockname()[1]


def test_a_port_that_is_asked_for_is_the_one(port):
    with reserve_port(HOST, (port, port)) as held:
        assert held.getsockname() == (HOST, port)


def test_a_port_that_is_taken_is_named_with_what_to_do(taken):
    with pytest.raises(
        InvalidCall, match=rf"port {taken} of {HOST} cannot be had .*: give another one, a range"
    ):
        reserve_port(HOST, (taken, taken))


def test_of_a_range_the_first_free_port_is_taken(taken):
    with reserve_port(HOST, (taken, taken + 20)) as held:
        assert taken < held.getsockname()[1] <= taken + 20


def test_a_range_that_is_taken_is_named_from_end_to_end(port):
    with reserve_port(HOST, (port, port)), socket.socket() as next_one:
        next_one.bind((HOST, port + 1))
        with pytest.raises(InvalidCall, match=f"every port of {HOST}:{port}-{port + 1} cannot"):
            reserve_port(HOST, (port, port + 1))


@pytest.mark.parametrize(
    "port", ["x", -1, 65536, None, 1.5, 0.0, True, (2, 1), (1, 2, 3), (0, 5), [1]]
)
def test_what_is_no_port_is_one_problem(port):
    (problem,) = ServerOptions(port=port).problems()
    assert problem.startswith(f"port is {port!r}; it must be a number from 1 to 65535")


@pytest.mark.parametrize("port", [0, 1, 65535, (40000, 40015), [40000, 40000]])
def test_what_is_a_port_is_no_problem(port):
    assert ServerOptions(port=port).problems() == []


def test_the_command_line_reads_a_port_or_a_range():
    assert _call._ports("40000") == 40000
    assert _call._ports("40000-40015") == (40000, 40015)
    for text in ("x", "-1", "1-2-3", "70000", ""):
        with pytest.raises(ArgumentTypeError, match="it must be like 40000 or 40000-40015"):
            _call._ports(text)


@pytest.mark.process
def test_the_port_of_a_server_that_has_ended_can_be_had_at_once() -> None:
    served = Served(None)
    request = f"GET /healthz HTTP/1.1\r\nHost: {HOST}:{served.port}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((HOST, served.port), timeout=10) as client:
        client.sendall(request.encode())
        while client.recv(4096):  # the server is the first to close: its end waits, TIME_WAIT
            pass
    served.close()
    with reserve_port(HOST, (served.port, served.port)) as held:
        assert held.getsockname()[1] == served.port


@pytest.mark.process
def test_the_port_of_a_server_that_runs_is_taken() -> None:
    served = Served(None)
    try:
        with pytest.raises(InvalidCall, match=f"port {served.port} of"):
            reserve_port(HOST, (served.port, served.port))
    finally:
        served.close()


# --- with Spark -------------------------------------------------------------------------------

TABLE = random_block(n=40, d=3, seed=6)


@pytest.mark.spark
@pytest.mark.parametrize("door", [ModelServer, DeepDist])
def test_a_server_listens_where_it_was_told(door, port: int, spark: SparkSession) -> None:
    with door(np.zeros(3), port=port) as server:
        assert f"//{HOST}:{port}/" in server.page
        with pytest.raises(InvalidCall, match=f"port {port} of {HOST} cannot be had"):
            door(np.zeros(3), port=port).__enter__()
        with door(np.zeros(3), port=(port, port + 20)) as other:
            assert other.page != server.page


@pytest.mark.spark
def test_minimize_trains_at_the_port(port: int, spark: SparkSession) -> None:
    pages = []
    with Dataset.from_arrays(spark, *TABLE) as data:
        with reserve_port(HOST, (port, port)):
            with pytest.raises(InvalidCall, match=f"port {port} of {HOST}"):
                minimize("logistic", data, method="sgd", port=port, progress=False)
        minimize("logistic", data, method="sgd", port=port, progress=False, callback=pages.append)
    assert pages


@pytest.mark.spark
def test_resident_workers_are_served_at_the_port(port: int, spark: SparkSession) -> None:
    w = np.ones(3)
    with Dataset.from_arrays(spark, *TABLE) as data:
        engine = ResidentEngine(data, port=port, idle=60.0)
        found = engine.value_and_grad(Logistic(), w)
        socket.create_connection((HOST, port), timeout=10).close()
        again = ResidentEngine(data, port=port)  # other options: its workers come anew
        assert again.value_and_grad(Logistic(), w).loss == found.loss
        data.free_slots()
        expected = AggregateEngine(data, deterministic=True).value_and_grad(Logistic(), w)
        assert_allclose(found.grad, expected.grad, rtol=1e-12)
        with reserve_port(HOST, (port, port)):
            with pytest.raises(InvalidCall, match=f"port {port} of {HOST}"):
                engine.value_and_grad(Logistic(), w)
        assert engine.value_and_grad(Logistic(), w).loss == found.loss
    with pytest.raises(InvalidCall, match="port is 'x'"):
        ResidentEngine(data, port="x")  # type: ignore[arg-type]

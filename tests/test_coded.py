"""Gradients through a codec: what the server makes of them, and whose memory it is."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sparkdist.blocks import Array
from sparkdist.client import Answer, Compressing, Gradient, Memory
from sparkdist.codecs import (
    Codec,
    ef21,
    error_feedback,
    float16,
    power_sgd,
    qsgd,
    random_k,
    sign,
    sparse,
    stream,
    top_k,
)
from sparkdist.consistency import Consistency, asp, backup, bsp
from sparkdist.errors import BadGradient, DecodeError
from sparkdist.layout import Layout
from sparkdist.server.checkpoint import Checkpointer, read_newest
from sparkdist.server.coded import CodedGradient
from sparkdist.server.rules import Push
from sparkdist.server.store import Store
from sparkdist.updaters import Descent, sgd
from sparkdist.wire import CODE, STATE, Entry, Message, decode, encode
from sparkdist.workers import downpour
from tests.conftest import random_block
from tests.test_workers import Work

pytestmark = pytest.mark.long

RUN, D, SEED = "run", 5, 7
MODEL = {"a": np.zeros(3), "b": np.zeros(2)}
EVERY = [
    float16(), qsgd(4), top_k(0.4), random_k(0.4), sparse(), error_feedback(top_k(0.2)),
    error_feedback(sign()), ef21(top_k(0.2)), power_sgd(1).bind(Layout.of(np.zeros(D))),
]  # fmt: skip


class Wired:
    """A client whose frames go through bytes, a rule and a store; it can lose its worker."""

    def __init__(self, store: Store, dies_at: tuple[int, ...] = ()):
        self.store, self.dies_at = store, list(dies_at)

    def _told(self, answer: Any) -> Answer:
        w = None if answer.w is None else np.frombuffer(answer.w)
        return Answer(
            answer.status, answer.next, answer.version, answer.generation, w, answer.state
        )

    def join(self, partition: int) -> Answer:
        return self._told(self.store.join(RUN, partition))

    def pull(self, partition: int) -> Answer:
        return self._told(self.store.pull(RUN, partition, 20.0))

    def push(
        self, partition: int, clock: int, at: Answer, gradient: Gradient, *, want: bool
    ) -> Answer:
        code, state = gradient.value, gradient.state
        message = decode(
            encode({"weight": gradient.weight}, [Entry(CODE, "|u1", (len(code),))], [code])
        )
        rule = self.store.rule
        push = Push(
            partition, clock, at.version, at.generation, rule.admit(message), hash(code),
            gradient.weight, gradient.examples, gradient.loss, state,
            bytes(message.payload) if rule.follows else None,
        )  # fmt: skip
        answer = self._told(self.store.push(RUN, push, want=want, timeout=20.0))
        if self.dies_at and clock == self.dies_at[0]:
            self.dies_at.pop(0)
            raise ConnectionError("the task is killed after the server has counted its push")
        return answer

    def leave(self, partition: int) -> Answer:
        return self._told(self.store.leave(RUN, partition))


def new_store(
    codec: Codec, policy: Consistency, n: int, model: Any = None, folder: Path | None = None
) -> Store:
    layout = Layout.of(np.zeros(D) if model is None else model)
    rule = CodedGradient(Descent(sgd(0.1)), layout, "<f8", codec.bind(layout))
    keeper = Checkpointer(folder, every_update=folder is not None)
    store = Store(np.zeros(D), rule, policy, keeper)
    store.begin(RUN, n, state_bytes=8 * 1000)
    return store


def work_through(
    store: Store, codec: Codec, n: int, dies_at: tuple[int, ...] = (), folder: Path | None = None
) -> list[Compressing]:
    """Have workers of three epochs; worker 0 is run again each time that it dies."""
    clients: list[Compressing] = []

    def live(partition: int) -> None:
        wired = Wired(store, dies_at if partition == 0 else ())
        units = Work([random_block(40, D, partition)], 8, 3, partition)
        while True:
            memory = None if folder is None else Memory(folder / f"{partition}.memory")
            client = Compressing(wired, codec, D, "<f8", SEED, memory)
            clients.append(client)
            try:
                return downpour()(client, partition, units)
            except ConnectionError:
                continue

    threads = [threading.Thread(target=live, args=(p,)) for p in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert store.ledger.balanced
    return clients


@pytest.mark.parametrize("codec", EVERY, ids=str)
def test_a_task_that_is_run_again_goes_on_with_the_memory_bit_for_bit(codec, tmp_path):
    calm = new_store(codec, bsp(), 2)
    work_through(calm, codec, 2)
    disturbed = new_store(codec, bsp(), 2)
    work_through(disturbed, codec, 2, dies_at=(0, 3, 4, 11))
    assert_array_equal(disturbed.parameters()[1], calm.parameters()[1])
    assert np.abs(calm.parameters()[1]).max() > 0


@pytest.mark.parametrize("codec", EVERY, ids=str)
def test_the_server_that_dies_goes_on_with_the_memories_bit_for_bit(codec, tmp_path):
    calm, saved = new_store(codec, bsp(), 1), new_store(codec, bsp(), 1, folder=tmp_path)
    work_through(calm, codec, 1)
    client = Compressing(Wired(saved), codec, D, "<f8", SEED)
    units = Work([random_block(40, D, 0)], 8, 3, 0)
    at = client.join(0)
    for clock in range(4):
        at = client.pull(0)
        client.push(0, clock, at, units.gradient(clock, 0, at.w), want=False)
    other = new_store(codec, bsp(), 1)
    other.restore(read_newest(tmp_path))
    assert other.version == 4
    work_through(other, codec, 1)
    assert_array_equal(other.parameters()[1], calm.parameters()[1])


def test_on_the_host_a_residual_is_there_again_and_a_lost_one_is_counted(tmp_path):
    codec = error_feedback(top_k(0.2))
    calm = new_store(codec, bsp(), 1)
    work_through(calm, codec, 1, folder=tmp_path / "calm")
    assert not list((tmp_path / "calm").iterdir())  # who is done leaves nothing behind

    again = new_store(codec, bsp(), 1)
    first = Compressing(Wired(again), codec, D, "<f8", SEED, Memory(tmp_path / "a"))
    units = Work([random_block(40, D, 0)], 8, 3, 0)
    first.join(0)
    for clock in range(4):
        at = first.pull(0)
        first.push(0, clock, at, units.gradient(clock, 0, at.w), want=False)
    second = Compressing(Wired(again), codec, D, "<f8", SEED, Memory(tmp_path / "a"))
    downpour()(second, 0, units)
    assert second.lost == 0
    assert_array_equal(again.parameters()[1], calm.parameters()[1])

    # Killed between the server's count and its answer.
    late = new_store(codec, bsp(), 1)
    *_, last = work_through(late, codec, 1, dies_at=(5, 6), folder=tmp_path / "late")
    assert last.lost == 0
    assert_array_equal(late.parameters()[1], calm.parameters()[1])

    # Run again on another host.
    lost = new_store(codec, bsp(), 1)
    first = Compressing(Wired(lost), codec, D, "<f8", SEED, Memory(tmp_path / "here"))
    first.join(0)
    for clock in range(4):
        at = first.pull(0)
        first.push(0, clock, at, units.gradient(clock, 0, at.w), want=False)
    second = Compressing(Wired(lost), codec, D, "<f8", SEED, Memory(tmp_path / "there"))
    downpour()(second, 0, units)
    assert second.lost == 1
    assert not np.array_equal(lost.parameters()[1], calm.parameters()[1])


def test_k5_what_is_late_is_late_and_not_lost(tmp_path):
    """w - rate e is where plain descent along the same gradients would be, for one worker."""
    codec, rate = error_feedback(top_k(0.2)), 0.1
    store = new_store(codec, asp(), 1)
    client = Compressing(Wired(store), codec, D, "<f8", SEED)
    units = Work([random_block(40, D, 0)], 8, 20, 0)
    client.join(0)
    plain = np.zeros(D)
    for clock in range(units.total):
        at = client.pull(0)
        gradient = units.gradient(clock, 0, at.w)
        plain -= rate * gradient.value / gradient.weight
        client.push(0, clock, at, gradient, want=False)
    (late,) = client._state
    assert_allclose(store.parameters()[1] - rate * late, plain, rtol=0, atol=1e-14)
    assert np.abs(late).max() > 1e-3


def test_ef21_descends_along_the_mean_of_what_the_server_knows():
    """By hand: g_k <- g_k + C(x_k - g_k), of two workers whose gradients are constant."""
    codec = ef21(top_k(0.2))
    store = new_store(codec, bsp(), 2)
    clients = [Compressing(Wired(store), codec, D, "<f8", SEED) for _ in range(2)]
    gradients = [np.array([4.0, 2.0, 1.0, 0.0, 0.0]), np.array([0.0, -8.0, 0.0, 0.0, 2.0])]
    for partition, client in enumerate(clients):
        client.join(partition)
    w = np.zeros(D)
    known = [
        ([4, 0, 0, 0, 0], [0, -8, 0, 0, 0]),
        ([4, 2, 0, 0, 0], [0, -8, 0, 0, 2]),
        ([4, 2, 1, 0, 0], [0, -8, 0, 0, 2]),
    ]
    for clock, pair in enumerate(known):
        threads = [
            threading.Thread(
                target=client.push,
                args=(p, clock, store_at(store), Gradient(3.0 * gradients[p], 3.0)),
                kwargs={"want": False},
            )
            for p, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        w = w - 0.1 * np.mean(pair, axis=0)
        assert_allclose(store.parameters()[1], w, rtol=1e-15)


def store_at(store: Store) -> Answer:
    version, _ = store.parameters()
    return Answer("ok", 0, version, store.generation)


def test_of_a_dropped_push_nothing_stays_in_the_memory():
    codec = error_feedback(top_k(0.2))
    store = new_store(codec, backup(1), 2)
    one, two = (Compressing(Wired(store), codec, D, "<f8", SEED) for _ in range(2))
    for partition, client in enumerate((one, two)):
        client.join(partition)
    start, gradient = store_at(store), Gradient(np.arange(5.0), 1.0)
    assert one.push(0, 0, start, gradient, want=False).status == "ok"
    assert two.push(1, 0, start, gradient, want=False).status == "dropped"
    assert np.any(one._state[0]) and not np.any(two._state[0])
    assert store.ledger.states.get(1) is None


@pytest.mark.parametrize(
    "codec", [top_k(0.4), random_k(0.6), sparse(), float16(), qsgd(4)], ids=str
)
def test_codes_are_applied_to_arrays_with_names_with_their_weight_and_sign(codec):
    store = new_store(codec, asp(), 1, MODEL)
    client = Compressing(Wired(store), codec, D, "<f8", SEED)
    client.join(0)
    x = np.array([0.0, 5.0, 0.0, -3.0, 0.0])
    client.push(0, 0, store_at(store), Gradient(2 * x, 2.0), want=False)
    code, _ = codec.encode(x, codec.init(D, "<f8"), stream(SEED, 0, 0))
    expected = -0.1 * codec.decode(code, D, "<f8")
    assert_allclose(store.parameters()[1], expected, rtol=1e-15)
    assert isinstance(store.rule.admit(of_code(code)), dict) == codec.sparse


def of_code(code: bytes, **fields: Any) -> Message:
    return decode(encode({"weight": 1.0} | fields, [Entry(CODE, "|u1", (len(code),))], [code]))


@pytest.mark.parametrize("codec", EVERY, ids=str)
def test_r24_what_is_no_code_of_this_run_is_refused(codec):
    rule = new_store(codec, asp(), 1).rule
    dense = decode(encode({"weight": 1.0}, [Entry("", "<f8", (D,))], [np.zeros(D)]))
    with pytest.raises(BadGradient):
        rule.admit(dense)
    other, _ = float16().encode(np.zeros(D + 1), (), stream(0, 0, 0))
    for code in (b"", b"\0" * 4, b"\0" * 10_000, other):
        with pytest.raises((DecodeError, BadGradient)):
            rule.admit(of_code(code))
    bad, _ = codec.encode(np.full(D, np.nan), codec.init(D, "<f8"), stream(0, 0, 0))
    with pytest.raises(BadGradient) as error:
        rule.admit(of_code(bad))
    assert error.value.reason == "not_finite"


def test_rows_without_weight_leave_both_ends_alike():
    for codec in (ef21(top_k(0.2)), error_feedback(top_k(0.2))):
        store = new_store(codec, asp(), 1)
        client = Compressing(Wired(store), codec, D, "<f8", SEED)
        client.join(0)
        client.push(0, 0, store_at(store), Gradient(np.arange(5.0), 1.0), want=False)
        before: Array = store.parameters()[1]
        client.push(0, 1, store_at(store), Gradient(np.zeros(D), 0.0), want=False)
        assert_array_equal(store.parameters()[1], before)
        kept = store.ledger.states[0]
        assert_array_equal(kept, np.concatenate([part.ravel() for part in client._state]))


def test_the_name_of_a_workers_state_is_no_name_of_a_code():
    assert CODE != STATE

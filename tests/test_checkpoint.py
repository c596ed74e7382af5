"""Checkpoints: whole or not at all, and what a restart finds in them."""

import errno
import hashlib
import io
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import save

from sparkdist.consistency import asp, bsp, ssp
from sparkdist.errors import CheckpointError
from sparkdist.server import checkpoint
from sparkdist.server.checkpoint import Snapshot, read, read_newest, write
from sparkdist.server.ledger import Ledger
from sparkdist.updaters import adagrad, adam, momentum, sgd
from tests.test_store import (
    RUN,
    a_push,
    make_rule,
    make_store,
    model,
    one_at,
    restored,
    state,
)


def snapshot(version, fill=None):
    """A small one, all of whose numbers are its version."""
    ledger = Ledger(RUN, 2, next={0: version, 1: 0}).to_dict()
    w = np.full(3, float(version if fill is None else fill))
    return Snapshot(version, w, (w + 1, w + 2), ledger)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def settle(store):
    """Wait for the thread that writes."""
    if store.checkpointer._writer is not None:
        store.checkpointer._writer.join()


# --- one file -------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    store = make_store(3, bsp(), 3, rule=make_rule(3, adam()), folder=tmp_path)
    for p in (2, 0):
        store.push(RUN, a_push(store, p, 0, [1.0, p, 0.1], loss=0.1, examples=7, digest=2**64 - 1))
    store.leave(RUN, 1)
    store.save()
    found = read_newest(tmp_path)
    assert Ledger.from_dict(found.ledger) == store.ledger and found.version == 1
    assert_array_equal(found.w, model(store))
    assert_array_equal(found.state, store._parameters.copy()[1])


def test_r14_no_damage_is_loaded_silently(tmp_path):
    path = write(tmp_path, snapshot(5))
    whole = path.read_bytes()
    assert len(whole) < 1000
    damaged = [whole[:n] for n in range(len(whole))]
    damaged += [whole + tail for tail in (b"\0", b"x", whole)]
    for i in range(len(whole)):
        for flip in (1, 0x80, 0xFF):
            damaged.append(whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=path.name):
            read(path)
    path.write_bytes(whole)
    assert read(path).version == 5


def test_r14_a_whole_file_that_holds_something_else_is_refused(tmp_path):
    path = tmp_path / "checkpoint-000000000001.spkd"
    for body in (b"", b"\2\0\0\0\0\0\0\0{}", checkpoint.save({"v": np.zeros(1)})):
        digest = checkpoint.hashlib.sha256(body).digest()
        path.write_bytes(checkpoint._ENVELOPE.pack(b"SPKDCKPT", 1, len(body), digest) + body)
        with pytest.raises(CheckpointError, match="holds something else"):
            read(path)


def test_r14_the_one_before_is_loaded_and_the_log_says_so(tmp_path, caplog):
    write(tmp_path, snapshot(1))
    newest = write(tmp_path, snapshot(2))
    newest.write_bytes(newest.read_bytes()[:-1])
    assert read_newest(tmp_path).version == 1
    assert newest.name in caplog.text and "falling back" in caplog.text
    (tmp_path / "checkpoint-000000000001.spkd").write_bytes(b"")
    with pytest.raises(CheckpointError, match="(?s)no checkpoint can be.*02.spkd.*01.spkd"):
        read_newest(tmp_path)


def test_r42_nothing_in_a_checkpoint_is_ever_executed(tmp_path):
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    bomb = pickle.dumps(Bomb())
    body = save({"w": np.zeros(1)}, metadata={"sparkdist": bomb.hex()})
    objects = io.BytesIO()
    np.save(objects, np.array([Bomb()], dtype=object), allow_pickle=True)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("w.npy", bytes(50 << 20))
    for content in (bomb, objects.getvalue(), zipped.getvalue(), body):
        path = tmp_path / "checkpoint-000000000001.spkd"
        for wrapped in (content, envelope_of(content)):
            path.write_bytes(wrapped)
            with pytest.raises(CheckpointError):
                read(path)
    assert not marker.exists()


def envelope_of(body):
    """The envelope as the format says it: magic, version, length, SHA-256."""
    digest = hashlib.sha256(body).digest()
    return struct.pack("<8sIQ32s", b"SPKDCKPT", 1, len(body), digest) + body


def test_r14_there_is_none(tmp_path):
    (tmp_path / "checkpoint.draft").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="there is none"):
        read_newest(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path / "no.spkd")


def test_r14_the_two_newest_are_kept(tmp_path):
    for version in range(9, 13):
        write(tmp_path, snapshot(version))
    assert names(tmp_path) == ["checkpoint-000000000011.spkd", "checkpoint-000000000012.spkd"]


def test_r14_what_followed_the_one_that_was_restored_is_gone(tmp_path):
    """Else a later restart finds updates that were lost, and not those that were acknowledged."""
    for version in (10, 20, 30):
        write(tmp_path, snapshot(version))
    write(tmp_path, snapshot(21))
    assert names(tmp_path) == ["checkpoint-000000000020.spkd", "checkpoint-000000000021.spkd"]
    write(tmp_path, snapshot(0))
    assert read_newest(tmp_path).version == 0


# --- crashes --------------------------------------------------------------------------------


class Crash(BaseException):
    """The end of the process, as far as code can see it."""


def crash_at(monkeypatch, k, late):
    """Crash before, or right after, the k-th call that touches the disk; return the calls."""
    calls = []

    def wrap(holder, name):
        real = getattr(holder, name)

        def step(*arguments, **keywords):
            calls.append(name)
            if len(calls) == k and not late:
                raise Crash
            result = real(*arguments, **keywords)
            if len(calls) == k:
                raise Crash
            return result

        monkeypatch.setattr(holder, name, step)

    for holder, name in [(os, "fsync"), (os, "replace"), (Path, "unlink")]:
        wrap(holder, name)
    return calls


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("k", range(1, 5))
def test_r12_a_crash_at_any_step_leaves_the_old_one_or_the_new_one(tmp_path, monkeypatch, k, late):
    write(tmp_path, snapshot(1))
    write(tmp_path, snapshot(2))
    with monkeypatch.context() as patch, pytest.raises(Crash):
        calls = crash_at(patch, k, late)
        write(tmp_path, snapshot(3))
    assert calls == ["fsync", "replace", "fsync", "unlink"][:k]
    found = read_newest(tmp_path)
    renamed = k > 2 or (k == 2 and late)
    assert found.version == (3 if renamed else 2)
    assert_array_equal(found.w, np.full(3, found.version))
    assert Ledger.from_dict(found.ledger).next[0] == found.version
    write(tmp_path, snapshot(4))
    assert len(names(tmp_path)) == 2


def test_r12_that_is_every_step(tmp_path, monkeypatch):
    write(tmp_path, snapshot(1))
    write(tmp_path, snapshot(2))
    calls = crash_at(monkeypatch, 5, False)
    write(tmp_path, snapshot(3))
    assert len(calls) == 4


# --- writes that fail -----------------------------------------------------------------------


@pytest.mark.parametrize("policy", [asp(), ssp(1), bsp()], ids=repr)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_r13_every_update_a_push_that_cannot_be_durable_is_not_applied(
    tmp_path, monkeypatch, policy, call
):
    rule = make_rule(2, adam())
    store = make_store(2, policy, 1, rule=rule, folder=tmp_path, every_update=True)
    assert store.push(RUN, a_push(store, 0, 0, [1.0, 2.0], loss=1.0)).durable == 1
    before, served = state(store), store.pull(RUN, 0, 0.0).w
    push = a_push(store, 0, 1, [3.0, 4.0], loss=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full_disk)
        for _ in range(4):
            with pytest.raises(CheckpointError, match="No space left"):
                store.push(RUN, push)
    after = state(store)
    if policy.in_rounds:  # the push before is no longer compared with what is repeated
        after[3]["last"] = before[3]["last"]
    assert after == before and store.pull(RUN, 0, 0.0).w == served
    assert store.ledger.counts["rejected_not_durable"] == 4 and store.ledger.balanced
    status = store.status()
    assert (status["durable_version"], status["checkpoint_failures"]) == (1, 4)
    assert not status["ready"] and read_newest(tmp_path).version == 1
    answer = store.push(RUN, push)
    assert (answer.status, answer.version, answer.durable, answer.next) == ("ok", 2, 2, 2)
    assert store.status()["ready"]
    assert_array_equal(read_newest(tmp_path).w, model(store))
    whole = make_store(2, policy, 1, rule=make_rule(2, adam()))
    for clock, gradient in enumerate(([1.0, 2.0], [3.0, 4.0])):
        whole.push(RUN, a_push(whole, 0, clock, gradient))
    assert_array_equal(model(whole), model(store))


def test_r13_a_push_that_was_written_and_not_acknowledged_counts_once_after_a_restart(
    tmp_path, monkeypatch
):
    store = make_store(1, folder=tmp_path, every_update=True)
    push = a_push(store, 0, 0, -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sync_folder", full_disk)  # after the rename
        with pytest.raises(CheckpointError):
            store.push(RUN, push)
    again = restored(tmp_path, 1, every_update=True)
    assert again.push(RUN, push).status == "duplicate" and model(again) == [1.0]


def test_r13_interval_training_goes_on_and_the_server_says_that_it_is_not_ready(
    tmp_path, monkeypatch, caplog
):
    store = make_store(1, folder=tmp_path, seconds=0.0)
    healthy = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        for clock in range(4):
            assert store.push(RUN, a_push(store, 0, clock, -1.0)).durable == 0
            settle(store)
            healthy.append(store.checkpointer.healthy)
    assert healthy == [True, True, False, False] and not store.status()["ready"]
    assert model(store) == [4.0] and "training goes on" in caplog.text
    assert read_newest(tmp_path).version == 0
    assert len(names(tmp_path)) == 2  # one draft, however many failed
    store.push(RUN, a_push(store, 0, 4, -1.0))
    settle(store)
    assert store.checkpointer.durable_version == 5 and store.status()["ready"]
    assert store.checkpointer.failures == 4


def test_an_interval_that_is_not_over_writes_nothing(tmp_path):
    store = make_store(1, folder=tmp_path, seconds=1000.0)
    answer = store.push(RUN, a_push(store, 0, 0, -1.0))
    settle(store)
    assert answer.durable == 0 and read_newest(tmp_path).version == 0
    store.drain()
    assert store.checkpointer.durable_version == 1 == read_newest(tmp_path).version


def test_without_a_folder_nothing_is_durable():
    store = make_store(1)
    assert store.push(RUN, a_push(store, 0, 0, -1.0)).durable == -1
    store.save()
    store.drain()
    assert store.status()["durable_version"] == -1


# --- restarts -------------------------------------------------------------------------------


def train_with_deaths(folder, *, every_update, n=120):
    """Send pushes to a server that dies at random; a worker repeats what was not answered."""
    rng, size, deaths = random.Random(3), n, 0
    store = make_store(size, folder=folder, every_update=every_update)
    clock = 0
    while clock < n:
        push = a_push(store, 0, clock, one_at(size, clock))
        for _ in range(20):
            if deaths < 10 and rng.random() < 0.15:
                if rng.random() < 0.6:
                    store.push(RUN, push)  # applied, and the answer is lost
                store = restored(folder, size, every_update=every_update)
                deaths += 1
                continue
            answer = store.push(RUN, push)
            if answer.status != "stale":
                break
            push = push._replace(base=answer.version, generation=answer.generation)
        if not every_update and rng.random() < 0.2:
            store.save()
        clock = answer.next
    assert deaths == 10 and store.ledger.balanced
    return store


@pytest.mark.parametrize("every_update", [True, False])
def test_r11_a_restart_neither_doubles_nor_loses_a_push(tmp_path, every_update):
    store = train_with_deaths(tmp_path, every_update=every_update)
    assert_array_equal(model(store), np.ones(120))
    assert store.version == store.ledger.counts["applied"] == 120


def test_r11_control_without_the_ledger_it_would_double(tmp_path):
    store = make_store(2, folder=tmp_path, every_update=True)
    push = a_push(store, 0, 0, one_at(2, 0))
    store.push(RUN, push)
    assert restored(tmp_path, 2).push(RUN, push).status == "duplicate"
    empty = Ledger(RUN, 1).to_dict()
    again = restored(tmp_path, 2, change=lambda found: found._replace(ledger=empty))
    assert again.push(RUN, push).status == "ok"
    assert model(again).tolist() == [2.0, 0.0]


def test_restoring_another_model_or_another_updater_is_refused(tmp_path):
    make_store(2, rule=make_rule(2, momentum()), folder=tmp_path)
    for size, updater in [(3, momentum()), (2, sgd()), (2, adam())]:
        with pytest.raises(CheckpointError, match="another model or another updater"):
            restored(tmp_path, size, rule=make_rule(size, updater))
    assert restored(tmp_path, 2, rule=make_rule(2, momentum())).version == 0


@pytest.mark.parametrize("last", ["save", "drain"])
def test_r11_a_snapshot_never_holds_an_open_round(tmp_path, last):
    store = make_store(1, bsp(), 2, folder=tmp_path)
    for p in (0, 1):
        store.push(RUN, a_push(store, p, 0, -1.0, base=0))
    kept = a_push(store, 0, 1, -3.0)
    store.push(RUN, kept)
    getattr(store, last)()
    books = Ledger.from_dict(read_newest(tmp_path).ledger)
    assert books.next == {0: 1, 1: 1} and books.counts["kept"] == 0 and books.balanced
    assert store.ledger.next == {0: 2, 1: 1} and store.ledger.counts["kept"] == 1
    again = restored(tmp_path, 1, bsp(), 2)
    assert again.pull(RUN, 0, 0.0).next == 1  # the worker that had pushed does it again
    for push in (kept, a_push(again, 1, 1, -1.0)):
        assert again.push(RUN, push).status == "ok"
    assert model(again) == [3.0] and again.ledger.balanced


@pytest.mark.parametrize("policy", [asp(), ssp(0), bsp()], ids=repr)
@pytest.mark.parametrize("updater", [sgd(0.1), momentum(0.1), adagrad(0.1), adam(0.1)], ids=str)
@pytest.mark.parametrize("k", [1, 5])
def test_r17_to_go_on_after_a_restart_is_never_to_have_stopped(tmp_path, policy, updater, k):
    n, clocks, size = 2, 9, 6
    gradients = np.random.default_rng(0).normal(size=(clocks, n, size))

    def train(store, some):
        for clock in some:
            for p in range(n):
                answer = store.push(RUN, a_push(store, p, clock, gradients[clock, p]))
                assert answer.status == "ok"
        return store

    whole = train(make_store(size, policy, n, rule=make_rule(size, updater)), range(clocks))
    disk = {"folder": tmp_path, "every_update": True}
    train(make_store(size, policy, n, rule=make_rule(size, updater), **disk), range(k))
    again = restored(tmp_path, size, policy, n, rule=make_rule(size, updater), every_update=True)
    train(again, range(k, clocks))
    assert state(again) == state(whole)
    assert again.ledger.counts == +whole.ledger.counts

"""A worker's own state: it goes with a push, is kept with the ledger, and comes back with join."""

import contextlib
import os
import signal

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sparkdist import wire
from sparkdist.client import Gradient, HttpClient
from sparkdist.consistency import asp, backup, bsp
from sparkdist.errors import BadGradient, CheckpointError
from sparkdist.server.checkpoint import read_newest
from sparkdist.updaters import adam, average, momentum, sgd
from sparkdist.wire import Entry, Sparse, decode, entries_of
from sparkdist.workers import downpour, elastic, local_sgd
from tests.served import RUN as SERVED_RUN
from tests.served import D, Served, tally
from tests.test_app import call, push_of, serve, state_of
from tests.test_checkpoint import full_disk
from tests.test_store import (
    RUN,
    a_push,
    every_policy,
    in_threads,
    make_rule,
    make_store,
    model,
    restored,
)
from tests.test_workers import Direct, Work, new_store, random_block


def stated(store, partition, clock, *numbers, gradient=0.0, **fields):
    """A push with a state."""
    return a_push(store, partition, clock, gradient, state=np.array(numbers, float), **fields)


def known(store, partition=0):
    """What somebody who joins is told: the clock, and the state as a list."""
    answer = store.join(RUN, partition)
    return answer.next, None if answer.state is None else answer.state.tolist()


# --- in the store ---------------------------------------------------------------------------


@every_policy
def test_who_joins_gets_the_state_that_came_with_the_push_before(policy):
    store = make_store(1, policy, 1)
    assert known(store) == (0, None)
    for clock in range(3):
        assert store.push(RUN, stated(store, 0, clock, 10.0 + clock, 7.0)).status == "ok"
        assert known(store) == (clock + 1, [10.0 + clock, 7.0])


def test_each_partition_has_a_state_of_its_own():
    store = make_store(1, n=3)
    store.push(RUN, stated(store, 0, 0, 1.0))
    store.push(RUN, stated(store, 2, 0, 3.0))
    assert [known(store, p) for p in range(3)] == [(1, [1.0]), (0, None), (1, [3.0])]


def test_the_state_of_a_push_that_waits_in_the_open_round_belongs_to_the_clock_after_it():
    store = make_store(1, bsp(), 2)
    for partition, number in ((0, 1.0), (1, 2.0)):
        store.push(RUN, stated(store, partition, 0, number))
    store.push(RUN, stated(store, 0, 1, 11.0))
    assert (store.version, known(store, 0), known(store, 1)) == (1, (2, [11.0]), (1, [2.0]))
    store.push(RUN, stated(store, 1, 1, 12.0))
    assert (store.version, known(store, 0), known(store, 1)) == (2, (2, [11.0]), (2, [12.0]))


def test_what_the_store_keeps_is_no_view_of_the_request():
    store, sent = make_store(1), np.array([1.0, 2.0])
    store.push(RUN, a_push(store, 0, 0, 0.0, state=sent))
    sent[:] = 9.0
    assert known(store) == (1, [1.0, 2.0])


@every_policy
def test_a_duplicate_one_that_is_ahead_and_one_of_another_server_leave_no_state(policy):
    store = make_store(1, policy, 1)
    store.push(RUN, stated(store, 0, 0, 1.0))
    for other, status in [
        (stated(store, 0, 0, 2.0), "duplicate"),
        (stated(store, 0, 5, 3.0), "ahead"),
        (stated(store, 0, 1, 4.0, generation="another", base=9), "stale"),
    ]:
        assert store.push(RUN, other).status == status
        assert known(store) == (1, [1.0])


def test_a_push_whose_round_had_closed_is_dropped_with_its_state():
    store = make_store(1, backup(1), 2)
    late = stated(store, 1, 0, 5.0)
    store.push(RUN, stated(store, 0, 0, 1.0))
    assert store.push(RUN, late).status == "dropped"
    assert known(store, 1) == (1, None)


@every_policy
def test_a_push_that_is_refused_leaves_no_state(policy):
    store = make_store(1, policy, 1)
    store.push(RUN, stated(store, 0, 0, 1.0, gradient=-1e308))
    with pytest.raises(BadGradient):
        store.push(RUN, stated(store, 0, 1, 2.0, gradient=-1e308))
    assert known(store) == (1, [1.0])


def test_a_round_that_is_refused_takes_the_states_of_all_its_pushes_with_it():
    store = make_store(1, bsp(), 2)
    for partition in (0, 1):
        store.push(RUN, stated(store, partition, 0, 1.0))
    store.push(RUN, stated(store, 0, 1, 2.0, gradient=-1e308))
    assert known(store, 0) == (2, [2.0])
    with pytest.raises(BadGradient):
        store.push(RUN, stated(store, 1, 1, 2.0, gradient=-1e308))
    assert known(store, 0) == known(store, 1) == (1, [1.0])


def test_a_push_that_is_skipped_as_it_comes_leaves_no_state():
    store = make_store(1, asp(), 1, skip=True)
    store.push(RUN, stated(store, 0, 0, 1.0, gradient=-1e308))
    assert store.push(RUN, stated(store, 0, 1, 2.0, gradient=-1e308)).status == "skipped"
    assert known(store) == (2, [1.0])


def test_of_a_round_that_is_skipped_everybody_goes_on_from_where_the_first_was_told_to():
    store = make_store(1, bsp(), 2, skip=True)
    for partition in (0, 1):
        store.push(RUN, stated(store, partition, 0, 1.0))
    first = store.push(RUN, stated(store, 0, 1, 2.0, gradient=-1e308))
    assert (first.status, first.next) == ("ok", 2)
    assert store.push(RUN, stated(store, 1, 1, 3.0, gradient=-1e308)).status == "ok"
    assert store.ledger.counts["skipped"] == 2 and store.version == 2
    assert (known(store, 0), known(store, 1)) == ((2, [2.0]), (2, [3.0]))
    assert store.ledger.balanced


def test_another_run_begins_without_states():
    store = make_store(1)
    store.push(RUN, stated(store, 0, 0, 1.0))
    store.begin("second", 1)
    assert store.join("second", 0).state is None


# --- in a checkpoint ------------------------------------------------------------------------


@every_policy
def test_a_state_is_restored_together_with_its_clock(tmp_path, policy):
    store = make_store(1, policy, 2, folder=tmp_path)
    for clock in range(2):
        for partition in (0, 1):
            store.push(RUN, stated(store, partition, clock, clock + 0.5 * partition))
    store.save()
    store.push(RUN, stated(store, 0, 2, 77.0))  # in the open round, or applied: it is lost
    again = restored(tmp_path, 1, policy, 2)
    assert [known(again, p) for p in (0, 1)] == [(2, [1.0]), (2, [1.5])]
    assert again.push(RUN, stated(again, 0, 2, 78.0)).status == "ok"
    assert known(again, 0) == (3, [78.0])


def test_a_checkpoint_that_is_written_while_a_round_is_open_has_the_states_before_it(tmp_path):
    store = make_store(1, bsp(), 2, folder=tmp_path)
    for partition in (0, 1):
        store.push(RUN, stated(store, partition, 0, 1.0 + partition))
    store.push(RUN, stated(store, 0, 1, 99.0))
    store.save()
    saved = read_newest(tmp_path)
    assert saved.ledger["next"] == [[0, 1], [1, 1]]
    assert {p: a.tolist() for p, a in saved.workers.items()} == {0: [1.0], 1: [2.0]}


@every_policy
def test_a_write_that_fails_takes_the_state_back(tmp_path, monkeypatch, policy):
    store = make_store(1, policy, 1, folder=tmp_path, every_update=True)
    store.push(RUN, stated(store, 0, 0, 1.0))
    push = stated(store, 0, 1, 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(CheckpointError):
            store.push(RUN, push)
    assert known(store) == (1, [1.0])
    assert store.push(RUN, push).status == "ok"
    assert known(store) == known(restored(tmp_path, 1, policy)) == (2, [2.0])


@pytest.mark.parametrize("keep", [False, True])
def test_a_run_that_is_resumed_may_keep_the_state_of_its_updater_when_its_rule_changes(
    tmp_path, keep
):
    store = make_store(1, rule=make_rule(1, adam(0.5)), folder=tmp_path)
    for clock in range(3):
        store.push(RUN, a_push(store, 0, clock, -1.0))
    store.save()
    again = restored(tmp_path, 1, rule=make_rule(1, adam(0.5)))
    again.use(make_rule(1, adam(0.5)), keep)
    for each in (store, again):
        each.push(RUN, a_push(each, 0, 3, 1.0))
    assert (model(again) == model(store)) == keep


# --- over the wire --------------------------------------------------------------------------

#: Three numbers.
MOST = 24


def serve_states(most=MOST, **options):
    server = serve(**options)
    server.store.begin("run1", 2, "", most)
    return server


def push_with(state, clock=0, *, server, arrays=None, name=wire.STATE, **more):
    """A push of the model's arrays, and of something behind them as the state."""
    arrays = arrays or {"W": np.ones((2, 2)), "b": np.ones(2)}
    return push_of(0, clock, arrays={**arrays, name: state}, server=server, **more)


def test_join_answers_with_the_state_as_the_array_that_was_pushed():
    server, sent = serve_states(), np.array([0.1, -2.0, 3e300])
    first = decode(server.ask("POST", "/v1/join", call()).data)
    assert first.entries == ()
    assert server.ask("POST", "/v1/push", push_with(sent, server=server)).status_code == 200
    message = decode(server.ask("POST", "/v1/join", call()).data)
    assert message.entries == (Entry("~worker", "<f8", (3,)),)
    assert (message.fields["status"], message.fields["next"]) == ("ok", 1)
    message, state = wire.without_state(message)
    assert message.entries == () and state.tobytes() == sent.tobytes()
    assert server.store.parameters()[1].tolist() == [-1.0] * 6


def test_a_push_without_a_state_is_let_in_where_there_may_be_one():
    server = serve_states()
    assert server.ask("POST", "/v1/push", push_of(server=server)).status_code == 200
    assert server.store.join("run1", 0).state is None


SPARSE = Sparse(np.ones(1), np.zeros(1, "<i4"), (3,))


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (np.ones(4), 413),
        (np.array([1.0, np.nan, 0.0]), 422),
        (np.array([np.inf]), 422),
        (SPARSE, 400),
        (np.ones(3, "<f4"), 400),
        (np.ones((3, 1)), 400),
        (np.ones(()), 400),
    ],
    ids=["long", "nan", "inf", "sparse", "float32", "2-d", "0-d"],
)
def test_a_state_that_is_too_long_not_finite_or_no_vector_of_float64_is_refused(bad, status):
    server = serve_states()
    before = server.store.parameters()[1]
    if isinstance(bad, Sparse):
        arrays = {"W": np.ones((2, 2)), "b": np.ones(2), wire.STATE: bad}
        parts = [arrays["W"], arrays["b"], *bad[:2]]
        fields = {"run": "run1", "partition": 0, "clock": 0, "base": 0, "generation": "g"}
        body = wire.encode(fields, entries_of(arrays), parts)
    else:
        body = push_with(bad, server=server)
    assert server.ask("POST", "/v1/push", body).status_code == status
    assert server.store.join("run1", 0).state is None
    assert server.store.ledger.next == {0: 0} and server.store.version == 0
    assert_array_equal(server.store.parameters()[1], before)
    assert server.store.ledger.balanced


def test_a_long_state_does_not_get_in_beside_a_short_gradient():
    server = serve_states()
    arrays = {"W": Sparse(np.ones(1), np.zeros(1, "<i4"), (2, 2)), "b": np.ones(2)}
    arrays[wire.STATE] = np.ones(4)  # in all one number less than a whole gradient and 24 bytes
    parts = [*arrays["W"][:2], arrays["b"], arrays[wire.STATE]]
    fields = {"run": "run1", "partition": 0, "clock": 0, "base": 0, "generation": "g"}
    response = server.ask("POST", "/v1/push", wire.encode(fields, entries_of(arrays), parts))
    assert (response.status_code, response.json["error"]) == (413, "too_large")


def test_a_body_of_states_is_not_read_beyond_what_a_state_may_take():
    server = serve_states()
    body = push_with(np.ones(1 << 20), server=server)
    assert server.ask("POST", "/v1/push", body).status_code == 413


def test_a_run_without_states_lets_none_in():
    server = serve()
    response = server.ask("POST", "/v1/push", push_with(np.ones(3), server=server))
    assert response.status_code == 422 and "'~worker' is not in the model" in response.text
    assert server.store.ledger.counts == {"received": 1, "rejected_misfit": 1}


def test_a_state_that_is_not_the_last_array_is_no_state():
    server = serve_states()
    arrays = {wire.STATE: np.ones(3), "W": np.ones((2, 2)), "b": np.ones(2)}
    body = push_of(arrays=arrays, server=server)
    assert server.ask("POST", "/v1/push", body).status_code == 422
    assert server.store.ledger.counts == {"received": 1, "rejected_misfit": 1}


def test_another_state_under_the_same_name_is_told_as_other_bytes():
    server = serve_states()
    for number in (1.0, 1.0, 2.0):
        server.ask("POST", "/v1/push", push_with(np.full(3, number), server=server))
    counts = server.store.ledger.counts
    assert (counts["applied"], counts["duplicate"], counts["duplicate_other_bytes"]) == (1, 1, 1)
    assert server.store.join("run1", 0).state.tolist() == [1.0, 1.0, 1.0]


def test_where_what_is_not_finite_is_skipped_such_a_state_is_too():
    server = serve_states(skip=True)
    server.ask("POST", "/v1/push", push_with(np.ones(3), server=server))
    body = push_with(np.full(3, np.nan), 1, server=server)
    assert decode(server.ask("POST", "/v1/push", body).data).fields["status"] == "skipped"
    assert server.store.join("run1", 0).state.tolist() == [1.0, 1.0, 1.0]
    before = state_of(server)[1]
    assert before == [-1.0] * 6


@pytest.mark.process
def test_r11_a_state_outlives_the_process_that_kept_it(tmp_path):
    sent = np.array([1.0, 2.0, np.pi])
    with Served(tmp_path, every_update=True) as served:
        served.supervisor.begin(SERVED_RUN, 1, "", MOST)
        with HttpClient(served.address, served.entries, 30.0, MOST) as client:
            at = client.pull(0)
            pushed = Gradient(tally(D, 0).value, state=sent)
            assert client.push(0, 0, at, pushed, want=False).status == "ok"
            os.kill(served.pid, signal.SIGKILL)
            again = client.join(0)
            assert again.generation != at.generation
            assert again.next == 1 and again.state.tobytes() == sent.tobytes()
            # The one that was started again lets states in, too.
            at = client.pull(0)
            pushed = Gradient(tally(D, 1).value, state=2 * sent)
            assert client.push(0, 1, at, pushed, want=False).status == "ok"
            assert client.join(0).state.tobytes() == (2 * sent).tobytes()
        assert served.model()[:3].tolist() == [1.0, 1.0, 0.0]


# --- through the worker loops ---------------------------------------------------------------


class Cut(Work):
    """The batches of a worker, in the units of its loop."""

    def __init__(self, loop, seed, partition):
        super().__init__([random_block(40, 5, seed)], 6, 3, partition)
        cuts = loop.cuts(self.batches.per_epoch, 3)
        self.total, self.steps, self.first = cuts.total, cuts.steps, cuts.first
        self.batches_per_epoch = cuts.per_epoch

    def batch(self, clock, step):
        return self.batches.get(*divmod(self.first(clock) + step, self.batches_per_epoch))


LOOPS = [
    (local_sgd(3, momentum(0.1)), sgd(1.0)),
    (elastic(0.3, 0.1, 2, momentum=0.5), average(1.0)),
]


@pytest.mark.parametrize(("loop", "updater"), LOOPS, ids=["local_sgd", "elastic"])
def test_two_copies_of_each_worker_that_race_give_the_same_bits_under_bsp(loop, updater):
    def run(copies):
        store = new_store(updater, bsp(), 2)
        work = [(p, Cut(loop, p + 1, p)) for p in (0, 1) for _ in range(copies)]
        in_threads(len(work), lambda i: loop(Direct(store), *work[i]))
        assert store.ledger.balanced
        return store

    alone, together = run(1), run(2)
    assert_array_equal(together.parameters()[1], alone.parameters()[1])
    for partition, state in alone.ledger.states.items():
        assert_array_equal(together.ledger.states[partition], state)
    assert together.ledger.counts["duplicate_other_bytes"] == 0


class Overtaken(Direct):
    """A client that is overtaken by another copy of its task, in front of its n-th question."""

    def __init__(self, store, loop, units, what, n, ahead):
        super().__init__(store)
        self.loop, self.units, self.what, self.left, self.ahead = loop, units, what, n, ahead

    def _let_the_other_pass(self, what):
        if what == self.what and self.left == 0:
            with pytest.raises(Killed):
                self.loop(Limited(self.store, self.ahead), 0, self.units)
        self.left -= what == self.what

    def pull(self, partition):
        self._let_the_other_pass("pull")
        return super().pull(partition)

    def push(self, *arguments, **named):
        self._let_the_other_pass("push")
        return super().push(*arguments, **named)


class Killed(Exception):
    """The task is over."""


class Limited(Direct):
    """A client whose task is killed when some pushes have been answered."""

    def __init__(self, store, pushes):
        super().__init__(store)
        self.pushes = pushes

    def push(self, *arguments, **named):
        answer = super().push(*arguments, **named)
        self.pushes -= 1
        if not self.pushes:
            raise Killed
        return answer


@pytest.mark.parametrize("what", ["pull", "push"])
@pytest.mark.parametrize(("loop", "updater"), LOOPS, ids=["local_sgd", "elastic"])
@pytest.mark.parametrize("ahead", [1, 2])
def test_a_task_that_is_overtaken_at_any_point_goes_on_from_the_others_state(
    loop, updater, what, ahead
):
    units = Cut(loop, 1, 0)
    alone = new_store(updater, bsp(), 1)
    loop(Direct(alone), 0, units)
    for n in range(units.total - 2):
        store = new_store(updater, bsp(), 1)
        loop(Overtaken(store, loop, units, what, n, ahead), 0, units)
        assert_array_equal(store.parameters()[1], alone.parameters()[1])
        assert_array_equal(store.ledger.states[0], alone.ledger.states[0])
        assert store.ledger.balanced


class Told(Direct):
    """A client that is asked again after a fault of the server, as over HTTP."""

    def push(self, *arguments, **named):
        for _ in range(100):
            with contextlib.suppress(CheckpointError):
                return super().push(*arguments, **named)
        raise AssertionError("it was never durable")


@pytest.mark.parametrize("loop", [downpour(), local_sgd(2, sgd(0.1))], ids=repr)
def test_nobody_leaves_before_the_last_round_is_over_which_may_have_to_be_pushed_again(
    tmp_path, monkeypatch, loop
):
    def run(failures):
        store = make_store(5, bsp(), 2, folder=tmp_path, every_update=True)
        work = [Cut(loop, p + 1, p) for p in (0, 1)]
        last, sync = work[0].total, os.fsync

        def fails(descriptor):
            if store.version == last and failures:
                failures.pop()
                full_disk()
            sync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            in_threads(2, lambda p: loop(Told(store), p, work[p]))
        assert store.ledger.balanced and not failures
        return store

    undisturbed, disturbed = run([]), run([1, 1])
    assert disturbed.ledger.counts["rejected_not_durable"] == 4
    assert_array_equal(disturbed.parameters()[1], undisturbed.parameters()[1])

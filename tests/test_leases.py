"""H6: a worker that is gone is waited for as long as its lease, and counts when it is back."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sparkdist.commands._members import make_member
from sparkdist.consistency import ssp
from sparkdist.errors import CheckpointError, InvalidCall
from sparkdist.methods import _base, stale_synchronous
from sparkdist.server.leases import Leases
from sparkdist.server.ledger import Ledger
from sparkdist.simulate import Deaths, Latency, Network, lognormal, replay, simulate
from tests.conftest import random_block
from tests.test_simulate import idle_units, pushes
from tests.test_store import RUN, a_push, make_store, model, one_at


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def leased(size, bound, lease, n):
    """A store whose leases are on a clock that is moved by hand."""
    store, clock = make_store(size, ssp(bound, lease), n), Clock()
    store.leases.use(clock)
    return store, clock


def work(store, partition, clock, **fields):
    """Pull and push, as a worker that is there does; return whether it may."""
    if store.pull(RUN, partition, 0.0).status != "ok":
        return False
    assert store.push(RUN, a_push(store, partition, clock, -1.0, **fields)).status == "ok"
    return True


# --- the store --------------------------------------------------------------------------------


def test_h6_a_dead_worker_is_waited_for_until_its_lease_is_over_and_no_longer():
    store, clock = leased(1, 1, 10.0, 3)
    for c in range(2):
        assert all(work(store, p, c) for p in range(3))
    # Worker 2 dies at clock 2, and was heard of last at 0 s; the others go on to clock 4.
    clock.now = 4.0
    assert [work(store, p, c) for c in (2, 3) for p in (0, 1)] == [True] * 4
    for seconds, status in ((4.0, "wait"), (9.999, "wait"), (10.0, "ok"), (13.0, "ok")):
        clock.now = seconds
        assert [store.pull(RUN, p, 0.0).status for p in (0, 1)] == [status] * 2, seconds
    assert store.ledger.slowest == 4 and store.ledger.away == {2}
    # The others are held to the bound among themselves, as ever.
    assert work(store, 0, 4) and work(store, 0, 5) and not work(store, 0, 6)


@pytest.mark.parametrize("how", ["push", "join", "pull"])
def test_h6_who_comes_back_has_its_place_again_and_every_push_counts_once(how):
    store, clock = leased(1, 0, 10.0, 2)
    assert work(store, 0, 0) and work(store, 1, 0)
    late = a_push(store, 1, 1, -1.0)
    clock.now = 10.0
    assert [work(store, 0, c) for c in range(1, 6)] == [True] * 5
    assert store.version == 7 and store.ledger.slowest == 6
    if how == "push":
        assert store.push(RUN, late).status == "ok"
    else:
        answer = store.join(RUN, 1) if how == "join" else store.pull(RUN, 1, 0.0)
        assert (answer.status, answer.next) == ("ok", 1)
    there = 2 if how == "push" else 1
    assert store.ledger.slowest == there and store.ledger.away == set()
    assert store.pull(RUN, 0, 0.0).status == "wait"
    for c in range(there, 6):
        assert store.push(RUN, a_push(store, 1, c, -1.0)).status == "ok"
    assert store.push(RUN, late).status == "duplicate"
    assert store.pull(RUN, 0, 0.0).status == "ok"
    assert model(store) == [12.0] and store.ledger.counts["applied"] == 12
    assert store.ledger.balanced


def test_h6_who_never_joins_is_waited_for_as_long_as_a_lease():
    store, clock = leased(1, 0, 5.0, 2)
    assert work(store, 0, 0) and not work(store, 0, 1)
    clock.now = 5.0
    assert work(store, 0, 1) and work(store, 0, 2)


def test_h6_without_a_lease_a_dead_worker_is_waited_for_for_ever():
    store, clock = leased(1, 0, None, 2)
    assert work(store, 0, 0)
    clock.now = 1e12
    assert not work(store, 0, 1) and store.ledger.away == set()


@pytest.mark.parametrize("bound", [0, 2])
@pytest.mark.parametrize("seed", range(8))
def test_h6_random_deaths_keep_the_bound_to_those_that_were_heard_of(bound, seed):
    n, clocks, lease, rng = 4, 15, 3.0, random.Random(seed)
    store, clock = leased(n * clocks, bound, lease, n)
    at, has, heard, waits, late = [0] * n, [False] * n, [0.0] * n, 0, 0
    odds = [rng.choice([1, 1, 30]) for _ in range(n)]
    while min(at) < clocks:
        clock.now += rng.choice([0.0, 0.1, 0.5, 2.0])
        (p,) = rng.choices(range(n), odds)
        if at[p] == clocks:
            continue
        if has[p]:
            push = a_push(store, p, at[p], one_at(n * clocks, p * clocks + at[p]))
            for expected in ("ok", "duplicate")[: rng.randint(1, 2)]:
                assert store.push(RUN, push).status == expected
            at[p], has[p] = at[p] + 1, False
        else:
            # The policy by its definition: the smallest clock of who was heard of, or asks.
            there = [q for q in range(n) if clock.now < heard[q] + lease or q == p]
            slowest, answer = min(at[q] for q in there), store.pull(RUN, p, 0.0)
            has[p] = at[p] <= slowest + bound
            assert answer.status == ("ok" if has[p] else "wait")
            waits, late = waits + (not has[p]), late + (has[p] and at[p] > min(at) + bound)
        heard[p] = clock.now
    assert waits > 0 and late > 0
    assert_array_equal(model(store), np.ones(n * clocks))
    assert store.ledger.balanced


def test_h6_a_pull_that_waits_is_answered_when_the_lease_ends_though_nothing_else_happens():
    store = make_store(1, ssp(0, lease=0.3), 2)
    assert work(store, 0, 0)
    start = time.monotonic()
    assert store.pull(RUN, 0, 30.0).status == "ok"
    assert time.monotonic() - start < 10  # a bound for hanging


def test_h6_who_waits_is_there_however_long_it_waits():
    # Worker 1 has come back at clock 1, and waits for 2, as worker 0 does at clock 2.  When 2
    # leaves, long after their leases, 1 may go on, and 0 has to wait for it.
    store, clock = leased(1, 0, 10.0, 3)
    assert all(work(store, p, 0) for p in range(3))
    assert store.push(RUN, a_push(store, 0, 1, -1.0)).next == 2
    store.ledger.take_back(2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(store.pull, RUN, p, 30.0) for p in (0, 1)]
        deadline = time.monotonic() + 5
        while len(store.leases._running) > 1 and time.monotonic() < deadline:
            time.sleep(1e-3)
        clock.now = 9.0
        store.join(RUN, 2)
        clock.now = 15.0  # the leases of 0 and 1 began at 0 s
        with store._changed:
            store._changed.notify_all()
        store.leave(RUN, 2)
        assert waiting[1].result(5).status == "ok"
        assert store.ledger.away == set() and store.pull(RUN, 0, 0.0).status == "wait"
        assert store.push(RUN, a_push(store, 1, 1, -1.0)).status == "ok"
        assert waiting[0].result(5).status == "ok"


def test_h6_an_update_that_is_taken_back_leaves_leases_as_they_are(tmp_path, monkeypatch):
    store, clock = make_store(1, ssp(0, 5.0), 3, folder=tmp_path, every_update=True), Clock()
    store.leases.use(clock)
    assert work(store, 0, 0)
    clock.now = 5.0

    def no_space(*_):
        raise CheckpointError("no space")

    with monkeypatch.context() as patch:
        assert store.pull(RUN, 0, 0.0).status == "ok"
        patch.setattr(store.checkpointer, "after_update", no_space)
        with pytest.raises(CheckpointError):
            store.push(RUN, a_push(store, 0, 1, -1.0))
    assert store.ledger.away == {1, 2} and store.ledger.slowest == 1
    assert store.join(RUN, 2).next == 0 and store.ledger.slowest == 0


# --- clocks and leases ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_clock_is_that_of_those_who_are_waited_for(seed):
    n, rng = 6, random.Random(seed)
    ledger = Ledger(RUN, n)
    for _ in range(400):
        p = rng.randrange(n)
        acts = ["accept"] * 8 + ["take_back", "miss", "hear", "hear", "copy"]
        act = rng.choice(acts + ["leave"] * (rng.random() < 0.05))
        if act == "accept":
            ledger.accept(p, 0, 0)
        elif act == "copy":
            ledger = ledger.copy()
        elif act != "take_back" or ledger.next.get(p, 0):
            getattr(ledger, act)([p] if act == "miss" else p)
        active = set(range(n)) - ledger.gone - ledger.away
        assert ledger.slowest == min((ledger.next.get(q, 0) for q in active), default=1 << 62)


def test_leases_end_in_the_order_of_the_last_words():
    clock = Clock()
    leases = Leases(10.0, clock)
    leases.begin(3)
    clock.now = 2.0
    leases.renew(0)
    leases.hold(2)
    assert (leases.end, leases.left) == (10.0, 8.0)
    clock.now = 10.0
    assert list(leases.over()) == [1] and leases.end == 12.0
    clock.now = 50.0
    assert list(leases.over()) == [0] and leases.end == float("inf")
    assert leases.left == 10.0  # one that begins now
    assert leases.silent() == {0: 48.0, 1: 50.0, 2: 50.0}


@pytest.mark.parametrize("bad", [0, -1.0, float("inf"), float("nan"), True, "1"])
def test_a_lease_that_is_no_time_is_refused(bad):
    with pytest.raises(InvalidCall, match="lease must be a finite number of seconds > 0, or None"):
        ssp(1, lease=bad)


def test_a_lease_is_given_by_method_and_by_command():
    assert stale_synchronous.stale_synchronous(2, lease=30.0).consistency == ssp(2, 30.0)
    assert isinstance(stale_synchronous.stale_synchronous(), _base.Method)
    assert make_member("consistency", "ssp:1,lease=30") == ssp(1, lease=30)
    assert ssp(1).lease is None and repr(ssp(1, 2.0)) == "ssp(bound=1, lease=2.0)"


# --- the simulator ----------------------------------------------------------------------------


class Once(Latency):
    """Worker 0 lives for so long at first; all others, and it later, for ever."""

    def __init__(self, seconds):
        self.seconds, self.left = seconds, True

    def draw(self, stream, at):
        first, self.left = self.left and at.worker == 0, self.left and at.worker != 0
        return self.seconds if first else 1e9


def with_a_death(back, lease, n_units=10):
    """Three workers whose units take 1 s, the first of which dies at 2.5 s."""
    policy, deaths = ssp(1, lease), Deaths(Once(2.5), back)
    return idle_units(3, n_units, 1.0, policy, deaths=deaths)


def test_h6_simulated_a_death_costs_the_others_the_lease_by_hand():
    # Worker 0 pushes at 1 and 2 s, and is heard of last at 2 s, at clock 2: its lease ends at 7 s.
    # The others may begin a unit at clock 3 and none at clock 4, which they reach at 4 s.
    result = with_a_death(100.0, 5.0)
    of_0, *others = pushes(result, 3)
    for found in others:
        assert found.tolist() == [1, 2, 3, 4, *range(8, 14)]
    # It is back at 102.5 s, and does what it had not done.
    assert of_0.tolist() == [1, 2, *(103.5 + np.arange(8))]
    assert result.deaths == 1 and result.counts == {"received": 30, "applied": 30}


def test_h6_simulated_without_a_lease_it_costs_the_whole_absence():
    _, *others = pushes(with_a_death(100.0, None), 3)
    for found in others:
        assert found[:4].tolist() == [1, 2, 3, 4] and found[4] > 102.5


def test_h6_simulated_who_comes_back_is_waited_for_again_by_hand():
    # Back at 10.5 s at clock 2.  The others are at clock 8 at 11 s, and go on when worker 0 is at
    # clock 7, at 15.5 s, and then one unit ahead of it.
    of_0, *others = pushes(with_a_death(8.0, 5.0, 12), 3)
    assert of_0.tolist() == [1, 2, *(11.5 + np.arange(10))]
    for found in others:
        assert found.tolist() == [1, 2, 3, 4, 8, 9, 10, 11, 16.5, 17.5, 18.5, 19.5]


@pytest.mark.parametrize("seed", range(3))
def test_h6_simulated_runs_with_leases_are_replayed_bit_for_bit(seed):
    data = tuple(random_block(120, 5, 4))
    options = {"consistency": ssp(1, 4.0), "batch_size": 3, "epochs": 3, "seed": seed}
    found = simulate(
        "logistic", data, workers=4, latency=lognormal(1.0, 1.0), record=True,
        network=Network(0.3), deaths=Deaths(15.0, 10.0), **options,
    )  # fmt: skip
    again = replay(found.events, "logistic", data, workers=4, **options)
    assert found.deaths > 0 and found.success and again.success
    assert_array_equal(again.x, found.x)
    assert (again.nit, again.staleness) == (found.nit, found.staleness)
    never = simulate(
        "logistic", data, workers=4, latency=lognormal(1.0, 1.0), network=Network(0.3),
        deaths=Deaths(15.0, 10.0), **options | {"consistency": ssp(1)},
    )  # fmt: skip
    assert found.seconds < never.seconds and found.counts == never.counts

"""What each policy promises, under any schedule."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sparkdist import consistency, registry
from sparkdist.consistency import asp, backup, bsp, rennala, ringmaster, ssp
from sparkdist.errors import BadGradient, InvalidCall
from sparkdist.server.rules import MeanGradient
from sparkdist.updaters import momentum
from tests.test_store import RUN, a_push, in_threads, make_rule, make_store, model, one_at


class Records(MeanGradient):
    """Remembers of every update its number and (partition, clock, base) of its pushes."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    def apply(self, t, pushes, *arrays):
        self.seen.append((t, [(push.partition, push.clock, push.base) for push in pushes]))
        super().apply(t, pushes, *arrays)


# --- who waits ------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0, 1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_r31_under_ssp_nobody_is_further_ahead_than_the_bound(bound, seed):
    n, clocks, rng = 4, 12, random.Random(seed)
    store, size = make_store(n * clocks, ssp(bound), n), n * clocks
    has, clock, waits = [False] * n, [0] * n, 0
    odds = [rng.choice([1, 1, 20]) for _ in range(n)]
    while min(clock) < clocks:
        (p,) = rng.choices(range(n), odds)
        if clock[p] == clocks:
            continue
        if has[p]:
            push = a_push(store, p, clock[p], one_at(size, p * clocks + clock[p]))
            assert store.push(RUN, push).status == "ok"
            clock[p], has[p] = clock[p] + 1, False
            assert clock[p] - min(clock) <= bound + 1
        else:
            answer = store.pull(RUN, p, 0.0)
            allowed = clock[p] <= min(clock) + bound
            assert answer.status == ("ok" if allowed else "wait")
            assert (answer.w is not None) == allowed
            if allowed:  # it holds every update of the clocks up to c - bound - 1
                updates = np.frombuffer(answer.w).reshape(n, clocks)
                assert (updates[:, : max(0, clock[p] - bound)] == 1).all()
            has[p], waits = allowed, waits + (not allowed)
    assert waits > 0
    assert_array_equal(model(store), np.ones(size))
    assert store.ledger.balanced


def test_r31_the_bound_is_kept_with_threads():
    n, clocks, bound = 4, 40, 2
    store = make_store(1, ssp(bound), n)
    rng = random.Random(0)
    pauses = [[rng.random() * 4e-4 for _ in range(clocks)] for _ in range(n)]

    def work(p):
        furthest, answer = 0, store.pull(RUN, p, 10.0)
        for clock in range(clocks):
            assert answer.status == "ok"
            slowest = store.ledger.slowest  # it only grows: the worst is seen at most
            furthest = max(furthest, clock - slowest)
            time.sleep(pauses[p][clock])
            push = a_push(store, p, clock, -1.0)
            answer = store.push(RUN, push, want=clock < clocks - 1, timeout=10.0)
        store.leave(RUN, p)
        return furthest

    assert max(in_threads(n, work)) <= bound
    assert model(store) == [n * clocks] and store.ledger.balanced


def test_r31_ssp_of_0_is_lockstep():
    store = make_store(1, ssp(0), 2)
    answer = store.push(RUN, a_push(store, 0, 0, -1.0), want=True, timeout=0.0)
    assert (answer.status, answer.w) == ("ok", None)
    assert store.pull(RUN, 0, 0.0).status == "wait"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.pull, RUN, 0, 30.0)
        store.push(RUN, a_push(store, 1, 0, -1.0))
        assert np.frombuffer(waiting.result(5).w) == [2.0]


def test_r31_who_has_left_is_not_waited_for_and_who_has_not_joined_is():
    store = make_store(1, ssp(0), 3)
    for p in (0, 1):
        store.push(RUN, a_push(store, p, 0, -1.0))
    assert store.pull(RUN, 0, 0.0).status == "wait"
    store.leave(RUN, 2)
    assert store.pull(RUN, 0, 0.0).status == "ok"


def test_under_asp_nobody_waits():
    store = make_store(1, asp(), 2)
    for clock in range(50):
        assert store.pull(RUN, 0, 0.0).status == "ok"
        answer = store.push(RUN, a_push(store, 0, clock, -1.0), want=True, timeout=0.0)
        assert np.frombuffer(answer.w) == [clock + 1.0]


@pytest.mark.parametrize("policy", [ssp(0), bsp(), backup(0)], ids=repr)
def test_a_pull_that_may_not_go_says_wait_after_its_time(policy):
    store = make_store(1, policy, 2)
    store.push(RUN, a_push(store, 0, 0, -1.0))
    start = time.monotonic()
    answer = store.pull(RUN, 0, 0.1)
    assert 0.1 <= time.monotonic() - start < 2
    assert (answer.status, answer.w, answer.next) == ("wait", None, 1)
    store.drain()
    start = time.monotonic()
    assert store.pull(RUN, 0, 30.0).status == "wait"
    assert time.monotonic() - start < 2


# --- rounds ---------------------------------------------------------------------------------


def rounds(order, n=4, clocks=10, size=7):
    """Train under bsp, in each round in the order that is given."""
    store = make_store(size, bsp(), n, rule=make_rule(size, momentum(0.1)))
    gradients = (
        np.random.default_rng(0).normal(size=(clocks, n, size)) * 10.0 ** np.arange(n)[:, None]
    )
    for clock in range(clocks):
        for p in order(n):
            push = a_push(store, p, clock, gradients[clock, p], weight=1.0 + p, base=clock)
            assert store.push(RUN, push).status == "ok"
        assert store.version == clock + 1
    assert store.ledger.balanced and store.ledger.counts["kept"] == 0
    return model(store)


def test_under_bsp_the_order_of_arrival_does_not_change_a_bit():
    expected = rounds(range)
    for seed in range(20):
        rng = random.Random(seed)
        assert_array_equal(rounds(lambda n, rng=rng: rng.sample(range(n), n)), expected)


def test_under_bsp_threads_and_repeated_pushes_do_not_change_a_bit():
    n, clocks, size = 4, 10, 7
    gradients = (
        np.random.default_rng(0).normal(size=(clocks, n, size)) * 10.0 ** np.arange(n)[:, None]
    )
    store = make_store(size, bsp(), n, rule=make_rule(size, momentum(0.1)))

    def work(p):
        for clock in range(clocks):
            push = a_push(store, p, clock, gradients[clock, p], weight=1.0 + p, base=clock)
            store.push(RUN, push)
            answer = store.push(RUN, push, want=True, timeout=10.0)
            assert (answer.status, answer.version) == ("duplicate", clock + 1)

    in_threads(n, work)
    assert_array_equal(model(store), rounds(range))


def test_a_round_is_the_mean_over_its_weights():
    store = make_store(1, bsp(), 2)
    store.push(RUN, a_push(store, 0, 0, -6.0, weight=1.0))
    assert store.version == 0 and store.status()["open_round"] == [0]
    store.push(RUN, a_push(store, 1, 0, -6.0, weight=3.0))
    assert_allclose(model(store), [3.0])


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_c8_backup_never_takes_more_than_n_gradients_a_round_and_none_of_another(extra, seed):
    n, rng = 5, random.Random(seed)
    store = make_store(1, backup(extra), n, rule=make_rule(1, kind=Records))
    pulled, clock, dropped = [0] * n, [0] * n, 0
    for _ in range(600):
        p = rng.randrange(n)
        if pulled[p] is None:
            answer = store.pull(RUN, p, 0.0)
            pulled[p] = answer.version if answer.status == "ok" else None
            continue
        status = store.push(RUN, a_push(store, p, clock[p], -1.0, base=pulled[p])).status
        assert status == ("ok" if status == "ok" else "dropped")
        dropped += status == "dropped"
        if status == "dropped":  # it goes on at once
            assert store.pull(RUN, p, 0.0).status == "ok"
        clock[p], pulled[p] = clock[p] + 1, None
    assert len(store.rule.seen) > 20 and (dropped > 0) == (extra > 0)
    for t, pushes in store.rule.seen:
        assert len(pushes) == n - extra
        assert {base for _, _, base in pushes} == {t}
        assert pushes == sorted(pushes)
    assert model(store) == [store.version]  # a mean, whatever was dropped
    assert store.ledger.counts["dropped"] == dropped and store.ledger.balanced
    assert store.ledger.staleness.keys() == {0}


@pytest.mark.parametrize("policy", [bsp(), backup(1)], ids=repr)
def test_leaving_closes_a_round(policy):
    n = 3 + getattr(policy, "extra", 0)
    store = make_store(1, policy, n)
    for p in (0, 1):
        store.push(RUN, a_push(store, p, 0, -1.0, base=0))
    assert store.version == 0
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.pull, RUN, 0, 30.0)
        store.leave(RUN, 2)
        assert waiting.result(5).version == 1
    assert model(store) == [1.0] and store.ledger.balanced


def test_who_pushes_and_leaves_takes_nobodys_place_in_the_round():
    store = make_store(1, bsp(), 3)
    for p in (0, 1, 2):
        assert store.version == 0
        assert store.push(RUN, a_push(store, p, 0, -float(p), base=0)).status == "ok"
        store.leave(RUN, p)
    assert store.version == 1 and model(store) == [1.0]
    assert store.ledger.counts["applied"] == 3 and store.ledger.balanced


@pytest.mark.parametrize("policy", [bsp(), backup(0)], ids=repr)
def test_a_second_push_of_a_worker_does_not_replace_its_first_in_the_round(policy):
    store = make_store(1, policy, 2)
    store.push(RUN, a_push(store, 0, 0, -1.0))
    answer = store.push(RUN, a_push(store, 0, 1, -9.0))
    assert (answer.status, answer.next) == ("stale", 1)
    store.push(RUN, a_push(store, 1, 0, -1.0))
    assert model(store) == [1.0] and store.ledger.next == {0: 1, 1: 1}
    assert store.ledger.balanced


def test_the_last_one_to_leave_closes_what_is_open():
    store = make_store(1, bsp(), 2)
    store.push(RUN, a_push(store, 0, 0, -1.0))
    store.leave(RUN, 0)
    assert store.version == 0
    store.leave(RUN, 1)
    assert store.version == 1 and model(store) == [1.0]


def test_when_a_round_is_refused_its_workers_go_back_together():
    store = make_store(1, bsp(), 2)
    with ThreadPoolExecutor(1) as pool:
        first = a_push(store, 0, 0, -1.7e308)
        waiting = pool.submit(store.push, RUN, first, want=True, timeout=30.0)
        while not store.status()["open_round"]:
            time.sleep(1e-3)
        with pytest.raises(BadGradient):
            store.push(RUN, a_push(store, 1, 0, -1.7e308))
        assert waiting.result(5).next == 0
    assert store.ledger.counts["rejected_not_finite"] == 2 and store.ledger.balanced
    for p in (0, 1):
        assert store.push(RUN, a_push(store, p, 0, -1.0)).status == "ok"
    assert model(store) == [1.0]


def test_when_one_is_skipped_under_bsp_the_others_still_train():
    store = make_store(1, bsp(), 2, skip=True)
    assert store.reject(RUN, 0, 0, "not_finite").status == "skipped"
    assert store.push(RUN, a_push(store, 1, 0, -1.0)).status == "ok"
    assert store.pull(RUN, 0, 0.0).status == "ok"  # it goes on with the same parameters
    assert store.push(RUN, a_push(store, 0, 1, -1.0)).status == "ok"
    assert store.version == 1 and store.ledger.balanced


# --- the members ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "may", "quorums"),
    [
        (asp(), [True, True, True], [1, 1, 1]),
        (ssp(1), [True, True, False], [1, 1, 1]),
        (bsp(), [True, False, False], [1, 1, 5]),
        (backup(2), [True, True, True], [1, 1, 3]),
        (asp(7), [True, True, True], [1, 1, 1]),
        (ringmaster(3), [True, True, True], [1, 1, 1]),
        (rennala(3), [True, True, True], [3, 3, 3]),
    ],
    ids=repr,
)
def test_the_policies_by_hand(policy, may, quorums):
    assert [policy.may_pull(clock, 3) for clock in (3, 4, 5)] == may
    assert [policy.quorum(n) for n in (0, 1, 5)] == quorums
    assert eval(repr(policy), vars(consistency)) == policy


@pytest.mark.parametrize(
    ("kind", "least"), [(asp, 0), (ssp, 0), (backup, 0), (ringmaster, 1), (rennala, 1)]
)
@pytest.mark.parametrize("bad", [-1, 1.0, True, "1", None])
def test_a_bound_that_cannot_work_is_refused(kind, least, bad):
    with pytest.raises(InvalidCall, match=f"must be a whole number >= {least}"):
        kind(bad)
    if least:
        with pytest.raises(InvalidCall):
            kind(0)


def test_these_are_the_policies():
    names = {"asp", "backup", "bsp", "rennala", "ringmaster", "ssp"}
    assert set(registry.names(consistency)) == names

"""Ringmaster, Rennala, the warm start, and rates that know how old a gradient is."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits

from sparkdist import MLP
from sparkdist.blocks import Block
from sparkdist.consistency import asp, bsp, rennala, ringmaster, ssp
from sparkdist.errors import BadGradient, InvalidCall
from sparkdist.layout import Layout
from sparkdist.server.checkpoint import Checkpointer
from sparkdist.server.rules import MeanGradient
from sparkdist.server.store import Store
from sparkdist.simulate import constant, scaled, simulate
from sparkdist.updaters import (
    Descent,
    adagrad,
    adam,
    delay_adaptive,
    ftrl,
    momentum,
    nesterov,
    rmsprop,
    sgd,
)
from tests.test_consistency import Records
from tests.test_store import RUN, a_push, make_rule, make_store, model, one_at, restored

CURVATURE = np.array([1.0, 3.0, 10.0])


def gradient(partition, clock, w):
    """Of the rows that a worker has at a clock, at w: noise of its own, and a common minimum."""
    noise = np.random.default_rng([partition, clock]).normal(size=3)
    return CURVATURE * (w - 1.0) + noise


def race(policy, n=5, pushes=400, seed=0, updater=sgd(0.05)):  # noqa: B008  # frozen
    """Have workers of very different speeds pull and push; the store, and who was applied when."""
    draw, store = random.Random(seed), make_store(3, policy, n, rule=make_rule(3, updater, Records))
    odds, views, clock = [1, 1, 3, 10, 30][:n], [None] * n, [0] * n
    for _ in range(pushes):
        (p,) = draw.choices(range(n), odds)
        if views[p] is None:
            answer = store.pull(RUN, p, 0.0)
            if answer.status == "ok":
                views[p] = answer.version, np.frombuffer(answer.w)
            continue
        version, w = views[p]
        push = a_push(store, p, clock[p], gradient(p, clock[p], w), base=version)
        assert store.push(RUN, push).status in ("ok", "dropped")
        clock[p], views[p] = clock[p] + 1, None
    assert store.ledger.balanced
    return store


def serial(seen):
    """Descend with the gradients that were applied, each at the parameters that it changed."""
    w = np.zeros(3)
    for _, pushes in seen:
        total = sum(gradient(p, clock, w) for p, clock, _ in pushes)
        w = w - 0.05 * (total / len(pushes))
    return w


# --- Ringmaster -------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_ringmaster_applies_no_gradient_as_old_as_its_bound_and_drops_no_other(bound, seed):
    free, store = race(asp(), seed=seed), race(ringmaster(bound), seed=seed)
    assert max(free.ledger.staleness) > 2 * bound
    assert max(store.ledger.staleness) == bound - 1
    counts = store.ledger.counts
    assert counts["dropped"] > 0 and counts["applied"] == store.version
    assert counts["received"] == counts["dropped"] + counts["applied"]


def test_ringmaster_of_a_large_bound_is_asynchronous_descent():
    assert_array_equal(model(race(ringmaster(10**6))), model(race(asp())))


@pytest.mark.parametrize("policy", [ringmaster(1), rennala(1)], ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_a_bound_of_1_and_rounds_of_1_are_serial_descent(policy, seed):
    store = race(policy, seed=seed)
    assert len(store.rule.seen) > 100 and len({s[1][0][0] for s in store.rule.seen}) > 2
    assert_allclose(model(store), serial(store.rule.seen), rtol=1e-14)


# --- Rennala ----------------------------------------------------------------------------------


def test_rennala_with_one_push_of_each_worker_is_bulk_synchronous():
    n, found = 4, []
    for policy in (bsp(), rennala(n)):
        store = make_store(3, policy, n, rule=make_rule(3, momentum(0.05)))
        for clock in range(30):
            for p in random.Random(clock).sample(range(n), n):
                w = np.frombuffer(store.pull(RUN, p, 0.0).w)
                push = a_push(store, p, clock, gradient(p, clock, w), weight=1.0 + p)
                assert store.push(RUN, push).status == "ok"
        assert store.version == 30
        found.append(model(store))
    assert_array_equal(*found)


@pytest.mark.parametrize("seed", range(3))
def test_a_round_of_rennala_has_its_number_of_gradients_at_one_version_several_of_the_fastest(seed):
    store = race(rennala(6), seed=seed)
    for t, pushes in store.rule.seen:
        assert len(pushes) == 6 and {base for _, _, base in pushes} == {t}
        assert pushes == sorted(pushes)
    most = max(max(Counter(p for p, _, _ in pushes).values()) for _, pushes in store.rule.seen)
    assert most > 2 and store.ledger.counts["dropped"] > 0
    assert store.ledger.staleness.keys() == {0}
    assert_allclose(model(store), serial(store.rule.seen), rtol=1e-13)


def test_nobody_waits_under_rennala_and_the_last_round_may_be_smaller():
    store = make_store(1, rennala(4), 2)
    for clock in range(3):
        answer = store.push(RUN, a_push(store, 0, clock, -1.0), want=True)
        assert (answer.status, answer.version, np.frombuffer(answer.w)) == ("ok", 0, [0.0])
    assert store.status()["open_round"] == [0, 0, 0]
    store.leave(RUN, 0)
    assert store.version == 0
    store.leave(RUN, 1)
    assert (store.version, model(store)) == (1, [1.0])
    assert store.ledger.balanced and store.ledger.counts["kept"] == 0


def test_a_round_of_several_pushes_that_cannot_be_applied_is_pushed_again():
    store = make_store(2, rennala(3), 2)
    store.push(RUN, a_push(store, 0, 0, one_at(2, 0)))
    store.push(RUN, a_push(store, 0, 1, one_at(2, 0)))
    with pytest.raises(BadGradient):
        store.push(RUN, a_push(store, 1, 0, [np.inf, 0.0]))
    assert (store.ledger.next[0], store.ledger.next[1], store.version) == (0, 0, 0)
    assert store.ledger.counts["rejected_not_finite"] == 3 and store.ledger.balanced
    assert store.push(RUN, a_push(store, 0, 2, one_at(2, 0))).status == "ahead"
    for clock in range(3):
        assert store.push(RUN, a_push(store, 0, clock, one_at(2, 0))).status == "ok"
    assert_array_equal(model(store), [1.0, 0.0])


def test_a_checkpoint_holds_none_of_the_pushes_of_an_open_round_of_rennala(tmp_path):
    store = make_store(1, rennala(3), 2, folder=tmp_path)
    for partition, clock in [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3)]:
        assert store.push(RUN, a_push(store, partition, clock, -1.0)).status == "ok"
    assert store.version == 1 and store.status()["open_round"] == [0, 0]
    store.save()
    again = restored(tmp_path, 1, rennala(3), 2)
    assert (again.version, again.ledger.next) == (1, {0: 2, 1: 1})
    assert again.push(RUN, a_push(again, 0, 4, -1.0)).status == "ahead"
    assert again.ledger.balanced


def test_a_copy_of_a_task_that_computed_on_another_version_is_no_fault():
    store = make_store(1, rennala(1), 2)
    copy = a_push(store, 0, 0, -3.0, digest=77)
    store.push(RUN, a_push(store, 1, 0, -1.0))
    assert store.push(RUN, a_push(store, 0, 0, -1.0)).status == "ok"
    assert store.push(RUN, copy).status == "duplicate"


@pytest.mark.parametrize("policy", [rennala(8), ringmaster(4)], ids=repr)
def test_with_the_real_worker_loop_all_units_are_done_and_the_books_balance(policy):
    X = np.random.default_rng(0).normal(size=(320, 4))
    y = (X.sum(axis=1) > 0).astype(float)
    latency = scaled(constant(1.0), [1, 2, 3, 5, 8])
    result = simulate(
        "logistic", (X, y), workers=5, updater=sgd(0.1), consistency=policy, batch_size=8,
        epochs=4, latency=latency, seed=3,
    )  # fmt: skip
    counts = result.counts
    assert result.success and counts["received"] == 160 == counts["applied"] + counts["dropped"]
    assert counts["dropped"] > 0 and result.fun < 0.6


# --- the warm start ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_warm_start_is_the_work_of_one_worker_and_then_all_go_on(seed):
    n, versions, draw = 4, 10, random.Random(seed)
    store = make_store(1, asp(versions), n, rule=make_rule(1, kind=Records))
    for p in range(n):
        store.join(RUN, p)
    has, clock = [None] * n, [0] * n
    while store.version < 60:
        p = draw.randrange(n)
        if has[p] is None:
            answer = store.pull(RUN, p, 0.0)
            assert (answer.status == "ok") == (p == 0 or store.version >= versions)
            has[p] = answer.version if answer.status == "ok" else None
            continue
        assert store.push(RUN, a_push(store, p, clock[p], -1.0, base=has[p])).status == "ok"
        clock[p], has[p] = clock[p] + 1, None
    who = [pushes[0][0] for _, pushes in store.rule.seen]
    assert who[:versions] == [0] * versions and set(who) == set(range(n))


def test_who_leaves_during_a_warm_start_is_followed_by_the_next():
    store = make_store(1, asp(5), 3)
    for p in (2, 1):
        store.join(RUN, p)
    assert [store.pull(RUN, p, 0.0).status for p in (1, 2)] == ["ok", "wait"]
    store.leave(RUN, 1)
    assert store.pull(RUN, 2, 0.0).status == "ok"
    store.join(RUN, 0)
    assert [store.pull(RUN, p, 0.0).status for p in (0, 2)] == ["ok", "wait"]


def test_the_real_worker_loop_waits_for_the_warm_start():
    X = np.random.default_rng(0).normal(size=(400, 3))
    y = (X[:, 0] > 0).astype(float)
    result = simulate("logistic", (X, y), workers=8, consistency=asp(20), batch_size=2, record=True)
    pushes = [event for event in result.events if event.verb == "push"]
    assert len(pushes) == 200 and result.success
    assert [event.partition for event in pushes[:20]] == [0] * 20
    assert [event.version for event in pushes[:20]] == list(range(20))
    # Then eight work side by side, and seven when the first has done all of its 25.
    assert result.staleness[7] >= 25 and result.staleness[6] >= 100


# --- damping ----------------------------------------------------------------------------------


def test_the_factors_by_hand():
    # rate / tau; and min(rate, c / tau) with c = 4 rate.
    assert [delay_adaptive()(tau) for tau in (0, 1, 2, 4)] == [1, 1, 1 / 2, 1 / 4]
    assert [delay_adaptive(4)(tau) for tau in (0, 1, 4, 5, 8)] == [1, 1, 1, 4 / 5, 1 / 2]
    assert eval(repr(delay_adaptive(4.0))) == delay_adaptive(4)


@pytest.mark.parametrize(
    "kind", [sgd, momentum, nesterov, adagrad, rmsprop, adam], ids=lambda kind: kind.__name__
)
def test_a_damped_step_is_one_of_a_smaller_rate_with_l1_and_l2_too(kind):
    random, found = np.random.default_rng(0), []
    w, first, second = random.normal(size=(3, 8))
    damped = Descent(kind(0.1), l1=0.3, l2=0.2, damping=lambda delay: 0.25)
    slower = Descent(kind(0.025), l1=0.3, l2=0.2)
    before = Descent(kind(0.1), l1=0.3, l2=0.2)
    w0, state = w, before.init(w)
    new_w, new_state = np.empty(8), before.init(w)
    before.update(0, first.copy(), state, w0, new_w, new_state)
    for descent in (damped, slower):
        last, last_state = np.empty(8), before.init(w)
        descent.update(1, second.copy(), new_state, new_w, last, last_state, delay=3)
        found.append((last, *last_state))
    for ours, theirs in zip(*found, strict=True):
        assert_allclose(ours, theirs, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("policy", "ages"), [(asp(), [0, 1, 2]), (ssp(5), [0, 1, 2])], ids=repr)
def test_the_store_damps_by_the_age_of_the_parameters(policy, ages):
    rule = MeanGradient(Descent(sgd(1.0), damping=delay_adaptive()), Layout.of(np.zeros(3)), "<f8")
    store = Store(np.zeros(3), rule, policy, Checkpointer(None))
    store.begin(RUN, 3)
    for p in ages:
        store.push(RUN, a_push(store, p, 0, one_at(3, p), base=0))
    assert_array_equal(model(store), [1.0, 1.0, 0.5])


def test_gradients_of_a_round_are_of_now():
    rule = MeanGradient(Descent(sgd(1.0), damping=delay_adaptive()), Layout.of(np.zeros(1)), "<f8")
    store = Store(np.zeros(1), rule, bsp(), Checkpointer(None))
    store.begin(RUN, 2)
    for clock in range(3):
        for p in range(2):
            store.push(RUN, a_push(store, p, clock, -1.0))
    assert model(store) == [3.0]


def test_a_damping_that_cannot_work_is_refused():
    with pytest.raises(InvalidCall, match="bound must be a finite number > 0"):
        delay_adaptive(0)
    with pytest.raises(InvalidCall, match="cannot be damped"):
        Descent(ftrl(), damping=delay_adaptive())
    for bad in (8, delay_adaptive):
        with pytest.raises(InvalidCall, match="damping must be a function of a delay"):
            Descent(sgd(), damping=bad)
    descent = Descent(sgd(), damping=lambda delay: 1.5)
    with pytest.raises(InvalidCall, match="the factor of delay 2 must be a number from 0 to 1"):
        descent.update(0, np.ones(1), (), np.ones(1), np.ones(1), (), delay=2)


# --- the digits, at a constant staleness ------------------------------------------------------

NETWORK = MLP([64, 64, 10])


def digits():
    """The 1,437 training rows of scikit-learn's digits."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))[:1437]
    return X[order] / 16.0, y[order].astype(float)


def stale_loss(updater, tau, seed, damping=None, epochs=15, batch=16):
    """Loss after training where each gradient is ``tau`` versions old."""
    X, y = digits()
    layout = NETWORK.own_layout
    w, order = layout.flatten(NETWORK.initial(seed)), np.random.default_rng(seed)
    rule = MeanGradient(Descent(updater, damping=damping), layout, "<f8")
    store = Store(w, rule, asp(), Checkpointer(None))
    store.begin(RUN, tau + 1)
    views, t = [w] * (tau + 1), 0
    with np.errstate(all="ignore"):
        for _ in range(epochs):
            for rows in np.array_split(order.permutation(len(y)), len(y) // batch):
                p, block = t % (tau + 1), Block(X[rows], y[rows], np.ones(len(rows)))
                found = NETWORK.value_and_grad(views[p], block)
                push = a_push(
                    store, p, t // (tau + 1), found.grad, base=max(0, t - tau), weight=len(rows)
                )
                views[p] = np.frombuffer(store.push(RUN, push, want=True).w)
                t += 1
        return NETWORK.value_and_grad(model(store), Block(X, y, np.ones(len(y)))).loss / len(y)


@pytest.mark.long
def test_d3_rates_that_know_the_staleness_save_a_run_that_it_would_kill():
    # An independent program on the same rows, 3 seeds: SGD at the rate that is best without
    # staleness, 2.26 at 20, which is log(10): dead.  With rate / tau .313 at 20 and .718 at 50.
    # Best of the rates at 50: SGD .675, Adagrad .300.
    def mean(updater, tau, damping=None):
        return np.mean([stale_loss(updater, tau, seed, damping) for seed in range(2)])

    assert mean(sgd(0.3), 20) > 1.5
    assert mean(sgd(0.3), 20, delay_adaptive()) == pytest.approx(0.313, rel=0.25)
    assert mean(sgd(0.3), 50, delay_adaptive()) == pytest.approx(0.718, rel=0.25)
    plain = min(mean(sgd(rate), 50) for rate in (0.003, 0.01, 0.03))
    own = min(mean(adagrad(rate, 1e-8), 50) for rate in (0.003, 0.01))
    assert plain == pytest.approx(0.675, rel=0.25) and own <= 0.6 * plain

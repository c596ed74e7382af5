"""The store and its ledger: exactly once, one version an update, and books that balance."""

import random
import sys
import threading
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sparkdist.consistency import asp, backup, bsp, ssp
from sparkdist.errors import BadGradient, CheckpointError, StaleRun
from sparkdist.layout import Layout
from sparkdist.server.checkpoint import Checkpointer, Snapshot, read_newest
from sparkdist.server.ledger import STALENESS_BINS, Ledger, Verdict
from sparkdist.server.rules import MeanGradient, Push
from sparkdist.server.store import Store
from sparkdist.updaters import Descent, adagrad, adam, momentum, sgd

RUN = "run"
every_policy = pytest.mark.parametrize("policy", [asp(), ssp(1), bsp(), backup(0)], ids=repr)


def make_rule(size, updater=sgd(1.0), kind=MeanGradient):  # noqa: B008  # frozen
    return kind(Descent(updater), Layout.of(np.zeros(size)), "<f8")


def make_store(size, policy=asp(), n=1, *, rule=None, skip=False, folder=None, **when):  # noqa: B008
    """A store of zeros whose run is open; with sgd(1.0) a push adds minus its gradient."""
    checkpointer = Checkpointer(folder, **when)
    rule = make_rule(size) if rule is None else rule
    store = Store(np.zeros(size), rule, policy, checkpointer, skip_not_finite=skip)
    store.begin(RUN, n)
    return store


def restored(folder, size, policy=asp(), n=1, *, rule=None, change=None, **when):  # noqa: B008
    """Another process's store, from the newest checkpoint, as server/process.py makes it."""
    checkpointer = Checkpointer(folder, **when)
    rule = make_rule(size) if rule is None else rule
    store = Store(np.zeros(size), rule, policy, checkpointer)
    snapshot = read_newest(folder)
    store.restore(change(snapshot) if change else snapshot)
    checkpointer.durable_version = store.version
    store.begin(RUN, n)
    return store


def a_push(store, partition, clock, gradient, **fields):
    """A push computed on what the store serves now."""
    known = {"base": store.version, "generation": store.generation, "digest": clock + 1}
    gradient = np.atleast_1d(np.asarray(gradient, float))
    return Push(partition, clock, gradient=gradient, **known | fields)


def one_at(size, index, height=-1.0):
    """A gradient that is -1 at one coordinate."""
    gradient = np.zeros(size)
    gradient[index] = height
    return gradient


def model(store):
    return store.parameters()[1]


def state(store):
    """What may not change when a push is refused: all but the counts."""
    version, w = store.parameters()
    books = store.ledger.to_dict() | {"counts": None, "timeline": None}
    return version, w.tolist(), [s.tolist() for s in store._parameters.copy()[1]], books


def in_threads(n, work):
    """Call work(0) ... work(n - 1), each in its own thread, often switched."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(n) as pool:
            return list(pool.map(work, range(n)))
    finally:
        sys.setswitchinterval(interval)


# --- exactly once ---------------------------------------------------------------------------


def test_r1_a_push_that_is_repeated_counts_once():
    n, partitions, rng = 3000, 15, random.Random(0)
    store = make_store(n, n=partitions)
    sends = [
        (i // partitions + 4 * rng.random(), i) for i in range(n) for _ in range(rng.randint(1, 5))
    ]
    queue = deque(i for _, i in sorted(sends))
    answers = Counter()
    counting = threading.Lock()

    def send(_):
        mine = Counter()
        while queue:
            try:
                i = queue.popleft()
            except IndexError:
                break
            clock, partition = divmod(i, partitions)
            push = a_push(store, partition, clock, one_at(n, i), base=0)
            status = store.push(RUN, push).status
            mine[status] += 1
            if status == "ahead":
                queue.append(i)
        with counting:
            answers.update(mine)

    in_threads(8, send)
    assert_array_equal(model(store), np.ones(n))
    assert answers["ok"] == n and answers["duplicate"] == len(sends) - n
    assert store.ledger.counts == {
        "received": sum(answers.values()),
        "applied": n,
        "duplicate": len(sends) - n,
        **({"ahead": answers["ahead"]} if answers["ahead"] else {}),
    }
    assert store.version == n and store.ledger.balanced
    assert sum(store.ledger.staleness.values()) == n


@every_policy
def test_r5_a_push_whose_answer_was_lost_is_safe_to_repeat(policy):
    n, clocks, rng = 3, 50, random.Random(1)
    size = n * clocks
    store = make_store(size, policy, n)
    for clock in range(clocks):
        for partition in rng.sample(range(n), n):
            height = -float(n if policy.in_rounds else 1)
            push = a_push(store, partition, clock, one_at(size, clock * n + partition, height))
            first = store.push(RUN, push)
            assert first.status == "ok" and first.next == clock + 1
            while rng.random() < 0.3:
                again = store.push(RUN, push)
                assert again.status == "duplicate" and again.next == clock + 1
    assert_array_equal(model(store), np.ones(size))
    assert store.ledger.counts["applied"] == size and store.ledger.balanced


def test_r5_a_dropped_push_may_be_repeated_too():
    store = make_store(1, backup(1), 2)
    late = a_push(store, 1, 0, -1.0)
    store.push(RUN, a_push(store, 0, 0, -1.0))
    assert store.push(RUN, late).status == "dropped"
    assert store.push(RUN, late).status == "duplicate"
    assert store.ledger.counts["duplicate_other_bytes"] == 0 and store.ledger.balanced


def test_r7_the_ledger_has_one_entry_a_partition_however_long_the_run():
    store = make_store(1, n=3)
    for i in range(3000):
        store.push(RUN, a_push(store, i % 3, i // 3, 0.0, base=0))
    ledger = store.ledger
    assert len(ledger.next) == len(ledger.last) == 3
    assert len(ledger.staleness) <= STALENESS_BINS + 1 and len(ledger.counts) == 2
    assert ledger.staleness[STALENESS_BINS] == 3000 - STALENESS_BINS


@pytest.mark.parametrize(
    ("policy", "status"),
    [(asp(), "duplicate"), (ssp(1), "duplicate"), (bsp(), "conflict"), (backup(1), "duplicate")],
)
def test_r8_other_bytes_under_the_same_name_change_nothing_and_are_told(policy, status):
    store = make_store(1, policy, 1)
    store.push(RUN, a_push(store, 0, 0, -1.0))
    before = state(store)
    # Of backup workers two copies of a task may see different versions: that is no fault.
    assert store.push(RUN, a_push(store, 0, 0, -5.0, digest=99)).status == status
    assert state(store) == before
    assert store.ledger.counts["duplicate_other_bytes"] == 1
    assert store.ledger.counts["duplicate"] == 0 and store.ledger.balanced
    assert store.ledger.judge(0, 0, 99) is Verdict.OTHER_BYTES


def test_r9_versions_are_1_to_n_and_a_replay_in_their_order_is_bitwise_the_same():
    threads, clocks, size = 8, 250, 5
    store = make_store(size, n=threads, rule=make_rule(size, momentum(0.1)))
    gradients = np.random.default_rng(0).normal(size=(threads, clocks, size))

    def work(p):
        return [
            (store.push(RUN, a_push(store, p, c, gradients[p, c], weight=3.0)).version, p, c)
            for c in range(clocks)
        ]

    history = sorted(sum(in_threads(threads, work), []))
    assert [version for version, _, _ in history] == list(range(1, threads * clocks + 1))
    replay = make_store(size, n=threads, rule=make_rule(size, momentum(0.1)))
    for _, p, c in history:
        replay.push(RUN, a_push(replay, p, c, gradients[p, c], weight=3.0))
    assert_array_equal(model(replay), model(store))
    assert store.ledger.first_version(history[-1][1], clocks - 1) == threads * clocks
    assert store.ledger.first_version(0, 0) is None


# --- other runs, other servers --------------------------------------------------------------


def test_r6_work_of_another_run_is_refused_and_touches_nothing():
    store = make_store(1, bsp(), 2)
    zombie = a_push(store, 0, 0, -1.0)
    store.push(RUN, zombie)
    store.begin("second", 1)
    before = store.ledger.to_dict()
    for call in (
        lambda: store.push(RUN, zombie),
        lambda: store.pull(RUN, 0, 0.0),
        lambda: store.join(RUN, 0),
        lambda: store.leave(RUN, 0),
        lambda: store.reject(RUN, 0, 0, "misfit"),
    ):
        with pytest.raises(StaleRun, match="'run' is over"):
            call()
    assert store.ledger.to_dict() == before and store.version == 0
    assert store.push("second", a_push(store, 0, 0, -1.0)).status == "ok"
    assert model(store) == [1.0] and store.status()["open_round"] == []


def test_r6_who_waits_is_woken_when_the_run_is_over():
    store = make_store(1, ssp(0), 2)
    store.push(RUN, a_push(store, 0, 0, -1.0))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.pull, RUN, 0, 30.0)
        while not store._changed._waiters:
            pass
        store.begin("second", 2)
        with pytest.raises(StaleRun):
            waiting.result(5)


def test_r6_a_run_that_is_over_stays_so_after_a_restart(tmp_path):
    store = make_store(1, folder=tmp_path, every_update=True)
    store.push(RUN, a_push(store, 0, 0, -1.0))
    store.begin("second", 1)
    assert read_newest(tmp_path).ledger["run"] == "second"


def test_begin_of_the_same_run_changes_nothing():
    store = make_store(1, bsp(), 2)
    store.push(RUN, a_push(store, 0, 0, -1.0))
    store.begin(RUN, 2)
    assert store.push(RUN, a_push(store, 1, 0, -1.0)).version == 1


def test_r15_a_push_computed_on_parameters_that_were_lost_is_stale(tmp_path):
    store = make_store(1, n=2, folder=tmp_path)
    store.push(RUN, a_push(store, 0, 0, -1.0))
    store.save()
    known, lost = a_push(store, 1, 0, -1.0), None
    store.push(RUN, a_push(store, 0, 1, -1.0))
    lost = a_push(store, 1, 0, -1.0)
    again = restored(tmp_path, 1, n=2)
    assert again.generation != store.generation
    assert again.version == 1 and model(again) == [1.0]
    # Version 2 may exist again by now, and be another one.
    again.push(RUN, a_push(again, 0, 1, -7.0))
    answer = again.push(RUN, lost)
    assert (answer.status, answer.next, answer.generation) == ("stale", 0, again.generation)
    assert again.push(RUN, known).status == "ok"  # version 1 is the same in both
    assert model(again) == [9.0] and again.ledger.balanced


def test_r15_what_was_lost_stays_lost_after_a_second_restart(tmp_path):
    # A is saved at version 1 and dies at 2; B goes on from 1 to 3 and is saved; C from 3.
    a = make_store(2, n=2, folder=tmp_path)
    a.push(RUN, a_push(a, 0, 0, [1.0, 0.0]))
    a.save()
    a.push(RUN, a_push(a, 0, 1, [1.0, 0.0]))
    lost, kept = (a_push(a, 1, 0, [0.0, 1.0], base=base) for base in (2, 1))
    b = restored(tmp_path, 2, n=2)
    assert b.push(RUN, lost).status == "stale"
    for clock in (1, 2):
        b.push(RUN, a_push(b, 0, clock, [1.0, 0.0]))
    b.save()
    c = restored(tmp_path, 2, n=2)
    assert c.version == 3
    assert c.push(RUN, lost).status == "stale"
    assert c.push(RUN, kept).status == "ok"


def test_r15_a_worker_that_is_ahead_of_a_restored_server_goes_back(tmp_path):
    store = make_store(1, folder=tmp_path)
    store.save()
    for clock in range(3):
        store.push(RUN, a_push(store, 0, clock, -1.0))
    again = restored(tmp_path, 1)
    answer = again.push(RUN, a_push(store, 0, 3, -1.0))
    assert (answer.status, answer.next) == ("ahead", 0)
    assert again.ledger.counts == {"received": 1, "ahead": 1}


# --- what may not enter ---------------------------------------------------------------------


@every_policy
def test_r22_an_update_that_overflows_is_refused(policy):
    store = make_store(2, policy, 1)
    store.push(RUN, a_push(store, 0, 0, [-1e308, 0]))
    before = state(store)
    with pytest.raises(BadGradient, match="not be finite") as caught:
        store.push(RUN, a_push(store, 0, 1, [-1e308, 1]))
    assert caught.value.reason == "not_finite"
    after = state(store)
    assert after[:3] == before[:3] and store.ledger.next == {0: 1}
    assert store.ledger.counts["rejected_not_finite"] == 1 and store.ledger.balanced
    assert store.push(RUN, a_push(store, 0, 1, [0, -1])).status == "ok"
    assert model(store).tolist() == [1e308, 1]


@every_policy
def test_r22_or_skipped_and_counts_as_done(policy):
    store = make_store(1, policy, 1, skip=True)
    store.push(RUN, a_push(store, 0, 0, -1e308))
    bad = a_push(store, 0, 1, -1e308)
    store.push(RUN, bad)
    assert store.push(RUN, bad).status == "duplicate"
    assert store.ledger.counts["skipped"] == 1 and store.ledger.next == {0: 2}
    assert model(store) == [1e308] and store.ledger.balanced
    assert store.push(RUN, a_push(store, 0, 2, 1e308)).status == "ok"
    assert model(store) == [0.0]


def test_r22_a_state_that_overflows_is_refused_too():
    store = make_store(1, rule=make_rule(1, adagrad(0.1)))
    with pytest.raises(BadGradient):
        store.push(RUN, a_push(store, 0, 0, 1e200))
    store.push(RUN, a_push(store, 0, 0, -1.0))
    assert np.isfinite(model(store)).all() and store.version == 1


def test_r22_a_push_that_was_not_admitted_is_booked():
    store = make_store(1)
    assert store.reject(RUN, 0, 0, "misfit") is None
    assert store.reject(RUN, 0, 0, "not_finite") is None
    assert store.ledger.counts == {"received": 2, "rejected_misfit": 1, "rejected_not_finite": 1}
    assert store.ledger.next == {}


@every_policy
def test_r22_a_push_that_is_skipped_may_be_repeated(policy):
    store = make_store(1, policy, 1, skip=True)
    assert store.reject(RUN, 0, 0, "misfit") is None
    statuses = [store.reject(RUN, 0, clock, "not_finite").status for clock in (0, 0, 5)]
    assert statuses == ["skipped", "duplicate", "ahead"]
    assert store.ledger.next == {0: 1} and store.ledger.balanced


class Raises(MeanGradient):
    """Raises in the middle of its third update, when half of it is written."""

    calls = 0

    def apply(self, t, pushes, w, state, new_w, new):
        super().apply(t, pushes, w, state, new_w, new)
        self.calls += 1
        if self.calls == 3:
            new_w[0] = 1e6
            raise ZeroDivisionError("the user's")


@every_policy
def test_r25_a_rule_that_raises_changes_nothing_and_blocks_nothing(policy):
    store = make_store(2, policy, 1, rule=make_rule(2, adam(), kind=Raises))
    plain = make_store(2, policy, 1, rule=make_rule(2, adam()))
    for clock in range(2):
        for each in (store, plain):
            each.push(RUN, a_push(each, 0, clock, [1.0, clock]))
    before = state(store)
    with pytest.raises(ZeroDivisionError):
        store.push(RUN, a_push(store, 0, 2, [3.0, 3.0]))
    assert state(store)[:3] == before[:3] and store.ledger.next == {0: 2}
    for each in (store, plain):
        assert each.push(RUN, a_push(each, 0, 2, [3.0, 4.0]), want=True, timeout=5).w is not None
    assert_array_equal(model(store), model(plain))
    assert store.ledger.counts["rejected_failed"] == 1 and store.ledger.balanced


# --- readers --------------------------------------------------------------------------------


def test_r30_a_reader_never_sees_half_an_update():
    size, done = 100_000, threading.Event()
    store = make_store(size, n=4)
    gradient, versions = np.full(size, -1.0), []

    def write(p):
        for clock in range(60):
            store.push(RUN, Push(p, clock, 0, store.generation, gradient, clock))

    def read(_):
        reads = 0
        while not done.is_set() or not reads:
            version, w = store.parameters()
            answer = store.pull(RUN, 0, 0.0)
            served = np.frombuffer(answer.w)
            assert w.min() == w.max() == version
            assert served.min() == served.max() == answer.version
            reads += 1
        return reads

    def work(i):
        if i >= 4:
            return read(i)
        try:
            write(i)
            versions.append(i)
        finally:
            if len(versions) == 4:
                done.set()
        return 1

    assert min(in_threads(8, work)) >= 1
    assert model(store).min() == 240


def test_the_copy_that_a_reader_has_does_not_change():
    store = make_store(1)
    served, (_, mine) = store.pull(RUN, 0, 0.0).w, store.parameters()
    for clock in range(2):
        store.push(RUN, a_push(store, 0, clock, -1.0))
    mine += 5
    assert np.frombuffer(served) == [0.0] and model(store) == [2.0]


# --- the books ------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("policy", [asp(), ssp(1), bsp(), backup(1)], ids=repr)
def test_r50_the_books_balance_after_everything(policy, seed, skip):
    rng, n = random.Random(seed), 3
    store = make_store(1, policy, n, skip=skip)
    seen = Counter()
    for step in range(300):
        p = rng.randrange(n)
        clock = max(0, store.ledger.next.get(p, 0) + rng.choice([-1, 0, 0, 0, 0, 1]))
        height = rng.choice([0.0, -1.0, 1.0, -1.7e308, 1.7e308])
        push = a_push(store, p, clock, height, loss=rng.choice([None, 1.0]), examples=2)
        push = push._replace(digest=rng.choice([1, 1, 2]))
        if rng.random() < 0.1:
            push = push._replace(generation="another", base=9999)
        try:
            if rng.random() < 0.1:
                store.reject(RUN, p, clock, rng.choice(["misfit", "not_finite"]))
            else:
                seen[store.push(RUN, push).status] += 1
            if step == 250:
                store.leave(RUN, p)
        except BadGradient:
            seen["rejected"] += 1
        assert store.ledger.balanced
        assert store.ledger.counts["kept"] == len(store._round)
        assert np.isfinite(model(store)).all()
    counts, ledger = store.status()["counts"], store.ledger
    assert counts["received"] == sum(v for k, v in counts.items() if k != "received")
    assert {"ok", "duplicate", "ahead", "stale"} <= set(seen)
    assert ledger.examples == 2 * counts["applied"] == 2 * sum(ledger.staleness.values())
    assert Ledger.from_dict(ledger.to_dict()) == ledger == ledger.copy()


def test_the_status_tells_everything_that_can_be_counted():
    store = make_store(2, bsp(), 2)
    store.join(RUN, 1)
    store.push(RUN, a_push(store, 0, 0, [1.0, 0.0]))
    store.leave(RUN, 1)
    status = store.status()
    told = {key: status[key] for key in ("run", "version", "size", "dtype", "ready", "n_workers")}
    assert told == {
        **{"run": RUN, "version": 1, "size": 2, "dtype": "<f8", "ready": True, "n_workers": 2}
    }
    assert [(w["partition"], w["clock"], w["left"]) for w in status["workers"]] == [
        (0, 1, False),
        (1, 0, True),
    ]


def test_another_rule_starts_with_a_new_state_and_t_of_0():
    store = make_store(1, rule=make_rule(1, adam(0.5)))
    for clock in range(3):
        store.push(RUN, a_push(store, 0, clock, -1.0))
    start = model(store)
    store.use(make_rule(1, sgd(lambda t: 1.0 + t)))
    store.push(RUN, a_push(store, 0, 3, -1.0))
    assert model(store) == start + 1 and store.version == 4


def test_a_snapshot_of_another_model_is_refused_and_changes_nothing():
    store = make_store(2)
    before = state(store)
    for w, parts in [(np.zeros(3), ()), (np.zeros(2, "f4"), ()), (np.zeros(2), (np.zeros(2),))]:
        with pytest.raises(CheckpointError, match="another model or another updater"):
            store.restore(Snapshot(7, w, parts, Ledger("other", 1).to_dict()))
    assert state(store) == before

"""AdaptiveRevision: Adagrad without delay, the two public servers with it, and what reads cost."""

from __future__ import annotations

from collections import deque
from math import exp, log1p, sqrt

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sparkdist.consistency import bsp
from sparkdist.errors import InvalidCall
from sparkdist.server.reads import KEPT, Reads
from sparkdist.spark.training import model_server
from sparkdist.spark.training.model_server import ModelServer
from sparkdist.updaters import Descent, adagrad, adaptive_revision, step_decay
from sparkdist.workers import downpour, local_sgd
from tests.test_store import RUN, a_push, make_rule, make_store, model, restored


def a_store(size, n, member=adaptive_revision(0.5), **options):  # noqa: B008  # frozen
    return make_store(size, n=n, rule=make_rule(size, member), **options)


class Workers:
    """Workers of a store: each reads, keeps what it has read, and pushes a gradient of it."""

    def __init__(self, store, n):
        self.store, self.clock = store, [0] * n
        self.base, self.w = [0] * n, [model(store)] * n

    def read(self, p):
        answer = self.store.pull(RUN, p, 0.0)
        self.base[p], self.w[p] = answer.version, np.frombuffer(answer.w)

    def push(self, p, gradient, **fields):
        push = a_push(self.store, p, self.clock[p], gradient, base=self.base[p], **fields)
        answer = self.store.push(RUN, push)
        self.clock[p] = answer.next
        return answer.status


# --- the rule ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rate", [0.3, step_decay(0.5, 0.5, 7)])
def test_g1_without_delay_it_is_adagrad_with_an_accumulator_of_1_bit_for_bit(dtype, rate):
    random = np.random.default_rng(0)
    grads = (random.normal(size=(200, 50)) * 10.0 ** random.integers(-3, 3, 50)).astype(dtype)
    found = []
    for member in (adagrad(rate, 1.0), adaptive_revision(rate)):
        w = np.zeros(50, dtype)
        state, new_w, new_state = member.init(w), np.empty_like(w), member.init(w)
        for t, grad in enumerate(grads):
            read = {"since": member.on_read(state)} if member.remembers_reads and t % 2 else {}
            member.update(t, grad, state, w, new_w, new_state, **read)
            w, new_w, state, new_state = new_w, w, new_state, state
        found.append(w)
    assert_array_equal(*found)


def test_g1_through_the_store_too():
    found = []
    for member in (adagrad(0.3, 1.0), adaptive_revision(0.3)):
        random, store = np.random.default_rng(0), a_store(9, 1, member)
        workers = Workers(store, 1)
        for _ in range(50):
            workers.read(0)
            assert workers.push(0, random.normal(size=9)) == "ok"
        found.append(model(store))
    assert_array_equal(*found)


def test_g2_gradients_of_one_read_are_one_step_on_their_sum():
    # Applied one by one, in any order: x0 - rate sum(g) / sqrt(max over prefixes of 1 + (sum g)^2).
    random, n = np.random.default_rng(1), 12
    grads = random.normal(size=(n, 40)) + 0.5
    store = a_store(40, n)
    workers = Workers(store, n)
    for p in range(n):
        workers.read(p)
    for p in range(n):
        assert workers.push(p, grads[p]) == "ok"
    sums = np.cumsum(grads, axis=0)
    expected = -0.5 * sums[-1] / np.sqrt((1 + sums**2).max(axis=0))
    assert_allclose(model(store), expected, rtol=1e-14, atol=1e-15)
    assert store.ledger.staleness == dict.fromkeys(range(n), 1)


# Two public servers, by coordinate and in plain floats.


class Petuum:
    """Bosen's AdaRevisionServerTableLogic: old sums by version; version 0 has 0."""

    def __init__(self, rate, size):
        self.rate, self.w, self.sums = rate, [0.0] * size, [0.0] * size
        self.z, self.z_max = [1.0] * size, [1.0] * size
        self.old, self.version = {}, 0

    def read(self, worker):
        self.old[self.version] = list(self.sums)
        return self.version

    def push(self, worker, base, gradient):
        for i, u in enumerate(gradient):
            bck = self.sums[i] - (self.old[base][i] if base else 0.0)
            eta_old = self.rate / sqrt(self.z_max[i])
            self.z[i] += u * (u + 2 * bck)
            self.z_max[i] = max(self.z[i], self.z_max[i])
            eta = self.rate / sqrt(self.z_max[i])
            self.w[i] += -(eta * u) + (eta_old - eta) * bck
            self.sums[i] += u
        self.version += 1


class Wormhole:
    """The delay-tolerant handle: the sum of a worker's read by sender, and inverse rates.

    Here what was applied since is a list, which is summed anew.
    """

    def __init__(self, rate, size):
        self.rate, self.w = rate, np.zeros(size)
        self.z, self.inverse = np.ones(size), np.full(size, 1 / rate)
        self.since = {}

    def read(self, worker):
        self.since[worker] = []

    def push(self, worker, base, gradient):
        bck = np.sum([np.zeros_like(self.w), *self.since.get(worker, [])], axis=0)
        old = self.inverse
        self.z = self.z + gradient * gradient + 2 * gradient * bck
        self.inverse = np.maximum(old, np.sqrt(np.maximum(self.z, 0.0)) / self.rate)
        self.w = (self.inverse * self.w - gradient) / self.inverse + (
            1 / old - 1 / self.inverse
        ) * bck
        for applied in self.since.values():
            applied.append(gradient)


@pytest.mark.parametrize("reference", [Petuum, Wormhole])
@pytest.mark.parametrize("seed", range(4))
def test_g3_any_interleaving_ends_where_the_public_servers_do(reference, seed):
    random, n, size = np.random.default_rng(seed), 6, 5
    store, other = a_store(size, n), reference(0.5, size)
    workers = Workers(store, n)
    pulls = random.dirichlet(np.ones(n))
    for p in range(n):
        workers.read(p)
        other.read(p)
    for _ in range(400):
        p = random.choice(n, p=pulls)
        # Most are one sign, so that z grows, and some are not, so that it falls.
        gradient = random.normal(0.5, 1.0, size)
        assert workers.push(p, gradient) == "ok"
        other.push(p, workers.base[p], gradient)
        workers.read(p)
        other.read(p)
    assert max(store.ledger.staleness) > 10
    assert_allclose(model(store), other.w, rtol=1e-12, atol=1e-12)


# --- long delays ------------------------------------------------------------------------------


def clicks(n_rows, size=2000, k=15, seed=0):
    """Sparse rows of indices, popular ones often, and labels of a logistic model."""
    random = np.random.default_rng(seed)
    p = 1 / np.arange(1, size + 1)
    w = random.normal(size=size)
    rows = [np.unique(row) for row in random.choice(size, size=(n_rows, k), p=p / p.sum())]
    m = np.array([w[row].sum() for row in rows]) / sqrt(3)
    m -= np.median(m) + 1
    return rows, np.where(random.random(n_rows) < 1 / (1 + np.exp(-m)), 1.0, -1.0)


def progressive(member, delay, rows, labels, size=2000):
    """Mean log loss, of each row before its gradient counts, which is ``delay`` rows later.

    A coordinate without a gradient rests, so that only those of a row are updated.
    """
    w = np.zeros(size)
    state, waiting, total = member.init(w), deque(), 0.0
    for row, y in zip(rows, labels, strict=True):
        m = y * w[row].sum()
        total += log1p(exp(-m)) if m > 0 else log1p(exp(m)) - m
        since = state[0][row] if member.remembers_reads else None
        waiting.append((row, -y / (1 + exp(min(m, 700.0))), since))
        if len(waiting) > delay:
            where, slope, since = waiting.popleft()
            part = [vector[where] for vector in state]
            new, new_w = [vector.copy() for vector in part], np.empty(len(where))
            read = {} if since is None else {"since": since}
            member.update(0, np.full(len(where), slope), part, w[where], new_w, new, **read)
            w[where] = new_w
            for vector, values in zip(state, new, strict=True):
                vector[where] = values
    return total / len(labels)


@pytest.mark.long
def test_g4_at_a_delay_of_1000_its_best_rate_is_still_that_without_delay():
    # An independent program gave these for the same rows; AdaGrad's accumulator starts at 1.
    expected = {
        (adagrad, 0): {0.1: 0.5286, 0.2: 0.5149, 0.5: 0.5314},
        (adagrad, 1000): {0.02: 0.5967, 0.05: 0.6032, 0.2: 1.2732},
        (adaptive_revision, 1000): {0.1: 0.5758, 0.2: 0.5644, 0.5: 0.6553},
    }
    data, found = clicks(20_000), {}
    for (kind, delay), losses in expected.items():
        found[kind, delay] = {rate: progressive(kind(rate, 1.0), delay, *data) for rate in losses}
        assert found[kind, delay] == pytest.approx(losses, abs=5e-4)
    best = {key: min(losses, key=losses.get) for key, losses in found.items()}
    assert best == {(adagrad, 0): 0.2, (adagrad, 1000): 0.02, (adaptive_revision, 1000): 0.2}
    stale, revised = found[adagrad, 1000], found[adaptive_revision, 1000]
    assert stale[0.2] / revised[0.2] >= 1.5
    assert min(revised.values()) <= min(stale.values()) - 0.02


# --- reads ------------------------------------------------------------------------------------


def test_a_push_whose_read_is_unknown_after_a_restart_is_stale_and_counts_after_another(tmp_path):
    store = a_store(3, 2, folder=tmp_path, every_update=True)
    workers = Workers(store, 2)
    for p in (0, 1, 0):
        workers.read(p)
        assert workers.push(p, [1.0, -2.0, 3.0]) == "ok"
    workers.read(0)  # at version 3, of which the checkpoint knows no reader
    again = restored(tmp_path, 3, n=2, rule=make_rule(3, adaptive_revision(0.5)))
    before, generation = model(again), store.generation
    workers.store = again
    assert workers.push(0, np.ones(3), generation=generation) == "stale"
    assert_array_equal(model(again), before)
    workers.read(0)
    assert workers.push(0, np.ones(3)) == "ok"
    assert again.ledger.counts["stale"] == 1 and again.ledger.balanced


def test_a_restart_between_a_push_and_the_next_read_changes_no_bit(tmp_path):
    grads = np.random.default_rng(0).normal(size=(20, 4))

    def run(folder, stops):
        store = a_store(4, 1, folder=folder, every_update=True)
        workers = Workers(store, 1)
        for i, grad in enumerate(grads):
            if i in stops:
                rule = make_rule(4, adaptive_revision(0.5))
                workers.store = restored(folder, 4, rule=rule, every_update=True)
            workers.read(0)
            assert workers.push(0, grad) == "ok"
        return model(workers.store)

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert_array_equal(run(tmp_path / "a", ()), run(tmp_path / "b", (1, 7, 15)))


def test_everybody_has_read_version_0_also_of_a_server_before():
    store = a_store(1, 2)
    for p, generation in enumerate((store.generation, "one before")):
        push = a_push(store, p, 0, 1.0, base=0, generation=generation)
        assert store.push(RUN, push).status == "ok"
    # g_bck of the second is 1: z = 2 + 1 + 2 = 5, and w = -0.5 * 2 / sqrt(5).
    assert_allclose(model(store), [-1 / sqrt(5)], rtol=1e-15)


def test_a_repeated_push_leaves_the_sums_alone():
    store = a_store(2, 1)
    workers = Workers(store, 1)
    workers.read(0)
    push = a_push(store, 0, 0, [1.0, 2.0])
    assert [store.push(RUN, push).status for _ in range(3)] == ["ok", "duplicate", "duplicate"]
    assert_array_equal(store._parameters.copy()[1][0], [1.0, 2.0])


def test_other_updaters_remember_no_reads():
    store = a_store(3, 1, adagrad())
    store.pull(RUN, 0, 0.0)
    assert store._parameters._reads is None
    with pytest.raises(NotImplementedError, match="does not remember reads"):
        adagrad().on_read(())


def test_reads_of_a_version_are_shared_and_are_few_however_long_the_run():
    reads, calls = Reads(0, np.zeros(1)), []

    def note():
        calls.append(version)
        return np.full(1, float(version))

    random, n, last = np.random.default_rng(0), 5, {}
    for version in range(1, 2000):
        for p in range(n):
            if random.random() < 0.4:
                reads.add(p, version, note)
                reads.add(p, version, note)
                last[p] = version
        assert len(reads) <= KEPT * n + 1
        p = int(random.integers(n))
        if last.get(p, 1) > 1:
            assert reads.find(p, last[p]) == last[p]
            assert reads.find(p, last[p] - 1) is None  # older ones went
    assert len(calls) == len(set(calls))
    for p in range(n):
        reads.find(p, last[p])
    assert len(reads) <= n + 1 and reads.find(0, 0) == 0


def test_copies_of_a_task_each_have_their_read():
    reads = Reads(0, np.zeros(1))
    for version in range(1, KEPT + 2):
        reads.add(3, version, lambda version=version: np.full(1, version))
    assert reads.find(3, 1) is None and reads.find(2, 3) is None
    assert [reads.find(3, version)[0] for version in range(2, KEPT + 2)] == [2, 3, 4, 5]


# --- where it does not fit --------------------------------------------------------------------


def test_it_is_refused_where_pushes_are_summed_or_of_several_reads():
    with pytest.raises(InvalidCall, match="needs pushes that are applied one by one; bsp"):
        ModelServer(np.zeros(3), updater=adaptive_revision(), consistency=bsp())
    with pytest.raises(InvalidCall, match="cannot be damped"):
        Descent(adaptive_revision(), damping=lambda delay: 1.0)
    find = model_server._several_reads
    for worker in (downpour(n_push=2), downpour(4, 4), downpour(2, local_rate=0.1), local_sgd(2)):
        assert find(adagrad(), worker) == []
        (problem,) = find(adaptive_revision(), worker)
        assert "gradients of one batch at the server's own parameters; the worker is" in problem
    assert find(adaptive_revision(), downpour()) == find(adaptive_revision(), downpour(3)) == []

"""Batches and the Downpour loop against a store in memory: no HTTP, no Spark."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from sparkdist.blocks import Array, Block
from sparkdist.client import Answer, Gradient
from sparkdist.consistency import Consistency, asp, bsp
from sparkdist.layout import Layout
from sparkdist.objectives import Logistic
from sparkdist.server.checkpoint import Checkpointer
from sparkdist.server.rules import MeanGradient, Push
from sparkdist.server.store import Store
from sparkdist.updaters import Descent, Updater, adagrad, sgd
from sparkdist.workers import Batches, downpour, elastic, local_sgd
from tests.conftest import random_block

RUN, D = "run", 5


class Direct:
    """A client without a network; ``trouble`` may change what is asked."""

    def __init__(self, store: Store):
        self.store = store

    def _told(self, answer: Any) -> Answer:
        w = None if answer.w is None else np.frombuffer(answer.w)
        state = answer.state
        return Answer(answer.status, answer.next, answer.version, answer.generation, w, state)

    def join(self, partition: int) -> Answer:
        return self._told(self.store.join(RUN, partition))

    def pull(self, partition: int) -> Answer:
        answer = self.store.pull(RUN, partition, 20.0)
        assert answer.status == "ok"
        return self._told(answer)

    def push(
        self, partition: int, clock: int, at: Answer, gradient: Gradient, *, want: bool
    ) -> Answer:
        value, *more = gradient
        digest = hash(value.tobytes())
        push = Push(partition, clock, at.version, at.generation, value, digest, *more)
        return self._told(self.store.push(RUN, push, want=want, timeout=20.0))

    def leave(self, partition: int) -> Answer:
        return self._told(self.store.leave(RUN, partition))


class Work:
    """Batches of a logistic regression, n_push a unit."""

    def __init__(
        self, blocks: list[Block], batch: int, epochs: int, partition: int, n_push: int = 1
    ):
        self.batches = Batches(blocks, batch, seed=3, partition=partition)
        self.n_push, self.per_epoch = n_push, -(-self.batches.per_epoch // n_push)
        self.total = epochs * self.per_epoch

    def steps(self, clock: int) -> int:
        return min(self.n_push, self.batches.per_epoch - clock % self.per_epoch * self.n_push)

    def batch(self, clock: int, step: int) -> Block:
        epoch, unit = divmod(clock, self.per_epoch)
        return self.batches.get(epoch, unit * self.n_push + step)

    def gradient(self, clock: int, step: int, w: Array) -> Gradient:
        block = self.batch(clock, step)
        loss, grad, weight = vars_of(block, w)
        return Gradient(grad, weight, len(block.y), loss)


def vars_of(block: Block, w: Array) -> tuple[float, Array, float]:
    partial = Logistic().value_and_grad(w, block)
    return partial.loss, partial.grad, partial.weight


def new_store(updater: Updater, consistency: Consistency, n_workers: int) -> Store:
    layout = Layout.of(np.zeros(D))
    rule = MeanGradient(Descent(updater), layout, "<f8")
    store = Store(np.zeros(D), rule, consistency, Checkpointer(None))
    store.begin(RUN, n_workers)
    return store


def run_workers(store: Store, work: list[Work], **options: Any) -> Array:
    threads = [
        threading.Thread(target=downpour(**options), args=(Direct(store), p, units))
        for p, units in enumerate(work)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert store.ledger.balanced
    return store.parameters()[1]


# --- batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
def test_an_epoch_is_every_row_once_and_a_batch_is_always_the_same(sparse):
    whole = random_block(103, 4, 0)
    X = csr_array(whole.X) if sparse else whole.X
    blocks = [
        Block(X[a:b], whole.y[a:b], whole.weight[a:b]) for a, b in ((0, 50), (50, 51), (51, 103))
    ]
    batches = Batches(blocks, 10, seed=1, partition=2)
    assert (batches.n_rows, batches.per_epoch) == (103, 11)
    epochs = [[batches.get(epoch, k) for k in range(11)] for epoch in (0, 1)]
    for epoch in epochs:
        assert [len(batch.y) for batch in epoch] == [10] * 10 + [3]
        rows = np.vstack([b.X.toarray() if sparse else b.X for b in epoch])
        assert_array_equal(np.sort(rows[:, 0]), np.sort(whole.X[:, 0]))
    assert not np.array_equal(epochs[0][0].weight, epochs[1][0].weight)
    again = Batches(blocks, 10, seed=1, partition=2).get(1, 4)
    assert_array_equal(again.weight, epochs[1][4].weight)
    other = Batches(blocks, 10, seed=1, partition=3).get(1, 4)
    assert not np.array_equal(again.weight, other.weight)


@pytest.mark.parametrize("kinds", ["ddd", "sss", "dsd", "sdd"])
def test_the_rows_of_a_batch_keep_their_labels_and_weights_in_dense_and_sparse_blocks(kinds):
    X, n = np.random.default_rng(0).random((60, 4)), np.arange(60.0)
    cuts = zip((0, 7, 7), (7, 7, 60), kinds, strict=True)  # the middle block is empty
    blocks = [
        Block(csr_array(X[a:b]) if kind == "s" else X[a:b], n[a:b], 1 + n[a:b])
        for a, b, kind in cuts
    ]
    batches, seen = Batches(blocks, 8, seed=0, partition=0), []
    for k in range(batches.per_epoch):
        batch = batches.get(0, k)
        assert isinstance(batch.X, np.ndarray) == (kinds == "ddd")
        rows = batch.X if kinds == "ddd" else batch.X.toarray()
        assert_array_equal(rows, X[batch.y.astype(int)])
        assert_array_equal(batch.weight, 1 + batch.y)
        seen += batch.y.tolist()
    assert sorted(seen) == n.tolist()


# --- the loop -------------------------------------------------------------------------------


@pytest.mark.parametrize("updater", [sgd(0.3), adagrad(0.2)])
def test_d1_one_worker_is_sequential_descent_bitwise(updater):
    work = Work([random_block(50, D, 1)], 8, 3, 0)
    found = run_workers(new_store(updater, asp(), 1), [work])
    w, total = np.zeros(D), np.full(D, 0.1)  # adagrad's accumulator starts at 0.1
    for clock in range(work.total):
        _, grad, weight = vars_of(work.batch(clock, 0), w)
        g = grad / weight
        if isinstance(updater, adagrad):
            total = total + g * g
            w = w + -(g / np.sqrt(total)) * 0.2
        else:
            w = w - 0.3 * g
    assert_allclose(found, w, rtol=1e-14)


def test_c4_synchronous_workers_are_one_process_with_their_batches_together():
    work = [
        Work([random_block(n, D, seed)], 6, 4, p) for p, (n, seed) in enumerate(((60, 1), (60, 2)))
    ]
    found = run_workers(new_store(sgd(0.5), bsp(), 2), work)
    w = np.zeros(D)
    for clock in range(work[0].total):
        sums = [vars_of(units.batch(clock, 0), w) for units in work]
        w = w - 0.5 * sum(s[1] for s in sums) / sum(s[2] for s in sums)
    assert_allclose(found, w, rtol=1e-12)


def test_synchronous_workers_of_different_length_end_together():
    work = [Work([random_block(n, D, n)], 6, 2, p) for p, n in enumerate((60, 7, 31))]
    first = run_workers(new_store(sgd(0.5), bsp(), 3), work)
    assert_array_equal(run_workers(new_store(sgd(0.5), bsp(), 3), work), first)


@pytest.mark.parametrize(("n_fetch", "n_push"), [(1, 1), (1, 3), (3, 1), (4, 2), (2, 5), (3, 4)])
def test_fetches_and_pushes_are_where_the_paper_has_them(n_fetch, n_push):
    work = Work([random_block(64, D, 4)], 8, 3, 0, n_push)
    found = run_workers(new_store(sgd(0.2), asp(), 1), [work], n_fetch=n_fetch, local_rate=0.05)
    server, step = np.zeros(D), 0
    for clock in range(work.total):
        accrued, weights = np.zeros(D), 0.0
        for k in range(work.steps(clock)):
            if step % n_fetch == 0:
                w = server
            _, grad, weight = vars_of(work.batch(clock, k), w)
            accrued, weights, step = accrued + grad, weights + weight, step + 1
            w = w - 0.05 / weight * grad
        server = server - 0.2 * accrued / weights
    assert_allclose(found, server, rtol=1e-12)


def test_two_copies_of_each_worker_change_nothing_under_bsp():
    def work() -> list[Work]:
        return [Work([random_block(40, D, seed)], 6, 3, p) for p, seed in enumerate((1, 2))]

    alone = run_workers(new_store(sgd(0.5), bsp(), 2), work())
    store = new_store(sgd(0.5), bsp(), 2)
    copies = [
        threading.Thread(target=downpour(), args=(Direct(store), p, units))
        for p, units in [*enumerate(work()), *enumerate(work())]
    ]
    for copy in copies:
        copy.start()
    for copy in copies:
        copy.join(60)
        assert not copy.is_alive()
    assert_array_equal(store.parameters()[1], alone)
    assert store.ledger.balanced


def test_in_rounds_who_fetches_less_often_than_he_pushes_is_refused():
    """Otherwise most of his gradients are of an earlier round, and dropped."""
    rounds, alone = ({"in_rounds": flag, "takes_gradients": True} for flag in (True, False))
    (problem,) = downpour(n_fetch=3, n_push=2).misfits(**rounds)
    assert problem.startswith("n_fetch is 3 and n_push 2: where pushes are kept for rounds")
    assert downpour(n_fetch=3, n_push=2).misfits(**alone) == []
    assert downpour(n_fetch=2, n_push=2).misfits(**rounds) == []


def test_gradients_are_not_added_and_differences_not_gone_down():
    for worker, gradients in ((downpour(), True), (local_sgd(4), True), (elastic(), False)):
        assert worker.misfits(in_rounds=False, takes_gradients=gradients) == []
        (problem,) = worker.misfits(in_rounds=False, takes_gradients=not gradients)
        assert "the updater takes" in problem

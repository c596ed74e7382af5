"""The methods that average: closed forms and identities, of the real loops and the real store.

The numbers of I1 to I8 are those of ALGORITHMS.md, sections 8.1 to 8.4.
"""

from __future__ import annotations

import threading
from functools import lru_cache

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.sparse import csr_array

from sparkdist import methods
from sparkdist.blocks import Block
from sparkdist.client import Gradient
from sparkdist.consistency import asp, bsp
from sparkdist.errors import InvalidCall
from sparkdist.layout import Layout
from sparkdist.objectives import Logistic
from sparkdist.registry import get
from sparkdist.server.checkpoint import Checkpointer
from sparkdist.server.rules import MeanGradient
from sparkdist.server.store import Store
from sparkdist.updaters import (
    Descent,
    adagrad,
    adam,
    average,
    inverse_time,
    momentum,
    nesterov,
    rmsprop,
    sgd,
)
from sparkdist.workers import Batches, Cuts, downpour, elastic, local_sgd
from tests.conftest import random_block
from tests.solver_problems import a9a, text
from tests.test_solvers import needs_text
from tests.test_workers import RUN, Direct


def method(name, **options):
    """One of sparkdist.methods, as ``minimize`` makes it."""
    return get(methods, name)(**options)[:3]


class Rows:
    """Batches of logistic loss in the units of a loop, of ``n_steps`` batches in all."""

    def __init__(self, loop, block, batch=8, *, partition=0, n_steps=None, epochs=1, seed=3):
        self.batches = Batches([block], batch, seed=seed, partition=partition)
        self.cuts = loop.cuts(n_steps or self.batches.per_epoch, epochs)
        self.total, self.steps, self.first = self.cuts.total, self.cuts.steps, self.cuts.first

    def batch(self, t):
        """Batch number t of the run."""
        return self.batches.get(*divmod(t, self.batches.per_epoch))

    def gradient(self, clock, step, w):
        batch = self.batch(self.first(clock) + step)
        partial = Logistic().value_and_grad(w, batch)
        return Gradient(partial.grad, partial.weight, len(batch.y), partial.loss)


def open_store(size, n_workers, policy, updater, l2=0.0):
    rule = MeanGradient(Descent(updater, 0.0, l2), Layout.of(np.zeros(size)), "<f8")
    store = Store(np.zeros(size), rule, policy, Checkpointer(None))
    store.begin(RUN, n_workers)
    return store


def together(store, loop, work, client=Direct):
    """Run a worker on each element of ``work`` at the same time; return the parameters."""
    threads = [
        threading.Thread(target=loop, args=(client(store), p, units))
        for p, units in enumerate(work)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert store.ledger.balanced
    return store.parameters()[1]


def in_turn(store, loop, work):
    """Let the workers take turns, a unit each; every turn begins with ``join``."""
    for clock in range(work[0].total):
        for partition, units in enumerate(work):
            units.total = clock + 1
            loop(Direct(store), partition, units)
    return store.parameters()[1]


# --- units ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuts", "lengths"),
    [
        (Cuts(5, 2, 2), [2, 2, 1, 2, 2, 1]),
        (Cuts(5, 2, 9), [5, 5]),
        (Cuts(5, 2, 2, flush=False), [2, 2, 2, 2, 2]),
        (Cuts(5, 2, 3, flush=False), [3, 3, 3, 1]),
        (Cuts(5, 2, 3, flush=False, warm=2), [1, 1, 3, 3, 2]),
        (Cuts(2, 2, 3, flush=False, warm=9), [1, 1, 1, 1]),
        (Cuts(0, 3, 2), []),
        (Cuts(0, 3, 2, flush=False, warm=1), []),
        (local_sgd("epoch").cuts(5, 2), [5, 5]),
        (local_sgd("all").cuts(5, 2), [10]),
        (local_sgd("all").cuts(0, 2), []),
        (local_sgd("epoch").cuts(0, 2), []),
        (local_sgd(4, warm=1).cuts(5, 2), [1, 4, 4, 1]),
        (elastic(tau=4).cuts(5, 2), [4, 4, 2]),
        (downpour(n_push=4).cuts(5, 2), [4, 1, 4, 1]),
    ],
)
def test_batches_are_cut_into_units_without_a_gap(cuts, lengths):
    assert cuts.total == len(lengths)
    assert [cuts.steps(clock) for clock in range(cuts.total)] == lengths
    firsts = np.cumsum([0, *lengths])[:-1].tolist()
    assert [cuts.first(clock) for clock in range(cuts.total)] == firsts


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: local_sgd(0), "steps must be .*; it is 0"),
        (lambda: local_sgd("week"), "steps must be .* 'epoch' or 'all'; it is 'week'"),
        (lambda: local_sgd(True), "steps must be .*; it is True"),
        (lambda: local_sgd(inner=average()), "takes gradients"),
        (lambda: local_sgd(warm=-1), "warm must be a whole number >= 0; it is -1"),
        (lambda: local_sgd("epoch", warm=2), "not after epochs"),
        (lambda: elastic(alpha=0.0), "alpha must be a number > 0 and <= 1; it is 0.0"),
        (lambda: elastic(alpha=1.1), "alpha must be a number > 0 and <= 1; it is 1.1"),
        (lambda: elastic(rate=0.0), "rate must be a finite number > 0"),
        (lambda: elastic(tau=0), "tau must be a whole number >= 1"),
        (lambda: elastic(momentum=1.0), "momentum must be a number >= 0 and < 1"),
    ],
)
def test_what_no_loop_can_do_is_refused(make, said):
    with pytest.raises(InvalidCall, match=said):
        make()


# --- one shot -------------------------------------------------------------------------------


class Newton:
    """One step to the least squares solution of a machine's own rows."""

    def __init__(self, loop, X, y):
        self.n, self.xx, self.xy = len(y), X.T @ X, X.T @ y
        cuts = loop.cuts(1, 1)
        self.total, self.steps, self.first = cuts.total, cuts.steps, cuts.first

    def gradient(self, clock, step, w):
        return Gradient(self.n * (w - np.linalg.solve(self.xx, self.xy)), float(self.n), self.n)


class Alone(Direct):
    """A client whose pushes do not wait for the others."""

    def push(self, partition, clock, at, gradient, *, want):
        return super().push(partition, clock, at, gradient, want=False)


@pytest.mark.long
@pytest.mark.parametrize("m", [4, 20, 50])
def test_i1_the_average_of_least_squares_solutions_has_the_error_of_the_closed_form(m):
    n, d, runs, random = 4000, 20, 200, np.random.default_rng(m)
    loop, policy, updater = method("one_shot", inner=sgd(1.0))
    errors = []
    for _ in range(runs):
        X = random.normal(size=(n, d))
        y = X.sum(axis=1) + random.normal(size=n)
        store = open_store(d, m, policy, updater)
        for p, rows in enumerate(np.split(np.arange(n), m)):
            loop(Alone(store), p, Newton(loop, X[rows], y[rows]))
        assert store.version == 1
        whole = np.linalg.solve(X.T @ X, X.T @ y)
        errors.append([((w - 1.0) ** 2).sum() for w in (store.parameters()[1], whole)])
    averaged, full = np.array(errors).T
    # The mean of an inverse Wishart matrix is I / (rows - d - 1).
    expected = (n - d - 1) / (m * (n // m - d - 1))
    deviation = (averaged - expected * full).std() / (np.sqrt(runs) * full.mean())
    assert averaged.mean() / full.mean() == pytest.approx(expected, abs=3 * deviation)


def test_one_shot_averages_once_by_rows_after_all_epochs():
    loop, policy, updater = method("one_shot", inner=sgd(0.3))
    blocks = [random_block(40, 4, 0), random_block(24, 4, 1)]
    work = [Rows(loop, block, partition=p, epochs=3) for p, block in enumerate(blocks)]
    store = open_store(4, 2, policy, updater)
    found = together(store, loop, work)
    ends, weights = zip(*[descend(units, sgd_step(0.3), 4) for units in work], strict=True)
    assert_allclose(found, np.average(ends, axis=0, weights=weights), rtol=1e-12)
    assert store.version == 1 and store.ledger.examples == 3 * 64


def descend(units, step, size):
    """Descend alone over all of a worker's batches; return the end and the sum of weights."""
    w, weight = np.zeros(size), 0.0
    for t in range(units.first(units.total - 1) + units.steps(units.total - 1)):
        g = Logistic().value_and_grad(w, units.batch(t))
        w, weight = step(t, w, g.grad / g.weight), weight + g.weight
    return w, weight


def sgd_step(rate):
    return lambda t, w, g: w - rate * g


# --- iterative parameter mixing -------------------------------------------------------------


class Perceptron:
    """One row a batch; the gradient is 0 where the row is on the right side."""

    def __init__(self, loop, X, y, partition, epochs):
        self.X, self.y, self.mistakes, self.partition = X, y, 0, partition
        cuts = loop.cuts(len(y), epochs)
        self.total, self.steps, self.first = cuts.total, cuts.steps, cuts.first

    def gradient(self, clock, step, w):
        order = np.random.default_rng([clock, self.partition]).permutation(len(self.y))
        x, y = self.X[order[step]], self.y[order[step]]
        wrong = bool(y * (x @ w) <= 0)
        self.mistakes += wrong
        return Gradient(-wrong * y * x, 1.0, 1)


@pytest.mark.parametrize("shards", [1, 4, 16])
def test_i2_the_perceptrons_that_are_mixed_make_no_more_mistakes_than_the_theorem_allows(shards):
    # McDonald, Hall and Mann, NAACL 2010, theorem 3: the mistakes of the workers, weighted by
    # their share of the mixture, are at most R^2 / gamma^2 over all epochs, of any separator.
    random, gamma = np.random.default_rng(0), 0.05
    separator = random.normal(size=20)
    separator /= np.linalg.norm(separator)
    X = random.normal(size=(4000, 20))
    X /= np.linalg.norm(X, axis=1)[:, None]
    X = X[np.abs(X @ separator) > gamma][:2000]
    y, epochs = np.sign(X @ separator), 8
    assert len(y) == 2000
    loop, policy, updater = method("mixing", inner=sgd(1.0))
    parts = np.array_split(np.arange(2000), shards)
    work = [Perceptron(loop, X[rows], y[rows], p, epochs) for p, rows in enumerate(parts)]
    store = open_store(20, shards, policy, updater)
    w = together(store, loop, work)
    assert store.version == epochs
    assert 10 < sum(units.mistakes for units in work) / shards <= 1 / gamma**2
    assert (y * (X @ w) > 0).all()


# --- elastic averaging ----------------------------------------------------------------------


class Noise:
    """Gradients that have nothing to do with w; from unit ``quiet`` on they are 0."""

    def __init__(self, loop, partition, n_steps, quiet):
        cuts = loop.cuts(n_steps, 1)
        self.total, self.steps, self.first = cuts.total, cuts.steps, cuts.first
        self.partition, self.quiet = partition, quiet

    def gradient(self, clock, step, w):
        value = np.random.default_rng([self.partition, clock, step]).normal(size=w.size)
        return Gradient(value * (clock < self.quiet), 1.0, 1)


def test_i3_an_exchange_conserves_the_sum_of_worker_and_centre():
    loop, policy, updater = method("easgd", alpha=0.3, rate=0.5, tau=2)
    work = [Noise(loop, p, 40, quiet=4) for p in range(3)]
    store, sums = open_store(7, 3, policy, updater), []
    for clock in range(work[0].total):
        for p, units in enumerate(work):
            units.total = clock + 1
            before = store.parameters()[1], store.ledger.states.get(p)
            loop(Direct(store), p, units)
            after = store.parameters()[1], store.ledger.states[p]
            if clock >= units.quiet:
                assert np.abs(after[0] - before[0]).max() > 1e-6
                assert_allclose(sum(after), before[0] + before[1], rtol=0, atol=1e-15)
        sums.append(store.parameters()[1] + sum(store.ledger.states[p] for p in range(3)))
    assert_allclose(sums[4:], np.tile(sums[4], (len(sums) - 4, 1)), rtol=0, atol=1e-14)


class Bowl:
    """f = x^2 / 2 in each coordinate: the gradient is x."""

    total = 2

    def steps(self, clock):
        return 1

    def first(self, clock):
        return clock

    def gradient(self, clock, step, w):
        return Gradient(w.copy(), 1.0, 1)


def cycle(p, eta, alpha):
    """Matrix of one round of p workers in turn: the real loop, on p + 1 unit vectors at once."""
    store = open_store(p + 1, p, asp(), average(1.0))
    start = np.eye(p + 1)
    store._parameters._w[:] = start[p]
    for worker in range(p):
        store.ledger.next[worker], store.ledger.states[worker] = 1, start[worker]
    loop = elastic(alpha, eta, tau=1)
    for worker in range(p):
        loop(Direct(store), worker, Bowl())
    rows = [store.ledger.states[worker] for worker in range(p)]
    return np.array([*rows, store.parameters()[1]])


@pytest.mark.long
@pytest.mark.parametrize(("p", "grid"), [(3, (40, 60)), (8, (20, 30)), (32, (8, 10))])
def test_i4_the_loop_is_stable_where_the_paper_says_and_no_further(p, grid):
    # Zhang, Choromanska and LeCun, section 4: round-robin EASGD on x^2 / 2 is stable for
    # 0 <= eta <= 2 and 0 <= alpha <= (4 - 2 eta) / (4 - eta).  With p = 8 it still is 0.2 % beyond.
    found = {True: 0, False: 0}
    for eta in np.linspace(0.031, 2.2, grid[0]):
        for alpha in np.linspace(0.0123, 1.0, grid[1]):
            radius = np.abs(np.linalg.eigvals(cycle(p, eta, alpha))).max()
            most = (4 - 2 * eta) / (4 - eta)
            if eta <= 2 and alpha <= most:
                assert radius <= 1 + 1e-9, (eta, alpha)
            elif eta > 2 or alpha > 1.01 * most:
                assert radius > 1, (eta, alpha)
            found[bool(radius > 1)] += 1
    assert min(found.values()) > 0.1 * grid[0] * grid[1]


@pytest.mark.parametrize("m", [0.0, 0.8])
def test_elastic_workers_in_turn_are_algorithm_2(m):
    alpha, rate, tau, d = 0.25, 0.4, 3, 5
    loop, policy, updater = method("easgd", alpha=alpha, rate=rate, tau=tau, momentum=m)
    work = [Rows(loop, random_block(30, d, p), 6, partition=p, n_steps=15) for p in range(2)]
    found = in_turn(open_store(d, 2, policy, updater), loop, work)
    centre, x, v = np.zeros(d), [None, None], [np.zeros(d), np.zeros(d)]
    for t in range(0, 15, tau):
        for p, units in enumerate(work):
            x[p] = centre.copy() if x[p] is None else x[p]
            for k in range(tau):
                g = Logistic().value_and_grad(x[p] + m * v[p], units.batch(t + k))
                v[p] = m * v[p] - rate * g.grad / g.weight
                pull = alpha * (x[p] - centre) if k == tau - 1 else 0.0
                x[p] = x[p] + v[p] - pull
                centre = centre + pull
    assert_allclose(found, centre, rtol=1e-12, atol=1e-15)


# --- local SGD ------------------------------------------------------------------------------

D = 5
BLOCKS = [random_block(60, D, 1), random_block(45, D, 2), random_block(52, D, 3)]


def rows_of(loop, epochs=2, blocks=BLOCKS):
    return [Rows(loop, block, 7, partition=p, epochs=epochs) for p, block in enumerate(blocks)]


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_i5_one_step_between_averages_is_synchronous_sgd(l2):
    loop, policy, updater = method("local_sgd", steps=1, inner=sgd(0.3))
    loop = loop.penalised(0.0, l2, None)
    found = together(open_store(D, 3, policy, updater), loop, rows_of(loop))
    plain = downpour()
    store = open_store(D, 3, bsp(), sgd(0.3), l2)
    assert_allclose(found, together(store, plain, rows_of(plain)), rtol=1e-12)


class Recording(Direct):
    """A client that keeps where each unit of its worker has ended, and its weight."""

    ends: dict = {}

    def push(self, partition, clock, at, gradient, *, want):
        end = at.w - gradient.value / gradient.weight
        self.ends[partition, clock] = end, gradient.weight, at.w
        return super().push(partition, clock, at, gradient, want=want)


@pytest.mark.parametrize(("steps", "warm"), [(1, 0), (4, 0), (5, 3), ("epoch", 0), ("all", 0)])
def test_i6_i7_steps_alone_and_then_the_average_are_local_sgd(steps, warm):
    loop = local_sgd(steps, sgd(inverse_time(0.5, 0.1)), warm)
    blocks = [random_block(56, D, seed) for seed in (1, 2, 3)]
    work, store = rows_of(loop, blocks=blocks), open_store(D, 3, bsp(), sgd(1.0))
    Recording.ends = {}
    found = together(store, loop, work, Recording)
    w = np.zeros(D)
    for clock in range(work[0].total):
        ends, weights = [], []
        for p, units in enumerate(work):
            x, weight = w, 0.0
            for t in range(units.first(clock), units.first(clock) + units.steps(clock)):
                g = Logistic().value_and_grad(x, units.batch(t))
                x, weight = x - 0.5 / (1 + 0.1 * t) * g.grad / g.weight, weight + g.weight
            ends.append(x)
            weights.append(weight)
            assert_allclose(Recording.ends[p, clock][0], x, rtol=1e-12, atol=1e-15)
        w = np.average(ends, axis=0, weights=weights)
        following = Recording.ends.get((0, clock + 1), (0, 0, found))[2]
        assert_allclose(following, w, rtol=1e-12, atol=1e-15)  # I7


def test_diloco_is_algorithm_1():
    loop, policy, updater = method("diloco", steps=4, inner=adam(0.05), outer=nesterov(0.7, 0.9))
    work = rows_of(loop, blocks=[random_block(56, D, seed) for seed in (1, 2, 3)])
    found = together(open_store(D, 3, policy, updater), loop, work)
    w, velocity = np.zeros(D), np.zeros(D)
    mean, square = np.zeros((3, D)), np.zeros((3, D))
    for clock in range(work[0].total):
        gaps, weights = [], []
        for p, units in enumerate(work):
            x, weight = w, 0.0
            for t in range(units.first(clock), units.first(clock) + units.steps(clock)):
                g = Logistic().value_and_grad(x, units.batch(t))
                mean[p] = 0.9 * mean[p] + 0.1 * g.grad / g.weight
                square[p] = 0.999 * square[p] + 0.001 * (g.grad / g.weight) ** 2
                root = np.sqrt(square[p] / (1 - 0.999 ** (t + 1))) + 1e-8
                x, weight = x - 0.05 * mean[p] / (1 - 0.9 ** (t + 1)) / root, weight + g.weight
            gaps.append(w - x)
            weights.append(weight)
        gap = np.average(gaps, axis=0, weights=weights)
        velocity = 0.9 * velocity + gap
        w = w - 0.7 * (gap + 0.9 * velocity)
    assert_allclose(found, w, rtol=1e-10, atol=1e-13)


def test_the_penalty_is_in_the_steps_of_the_workers_and_spares_what_is_free():
    """One worker, the whole as its batch: logistic loss + 0.05 |w|^2 but for the last one."""
    block, mask = random_block(60, D, 1), np.array([1.0, 1, 1, 1, 0])
    loop = local_sgd("all", sgd(1.0)).penalised(0.0, 0.1, mask)
    work = Rows(loop, block, 60, epochs=800)
    found = together(open_store(D, 1, bsp(), sgd(1.0)), loop, [work])

    def whole(w):
        partial, weight = Logistic().value_and_grad(w, block), block.weight.sum()
        value = partial.loss / weight + 0.05 * (mask * w) @ w
        return value, partial.grad / weight + 0.1 * mask * w

    best = minimize(whole, np.zeros(D), jac=True, method="BFGS", options={"gtol": 1e-10}).x
    assert_allclose(found, best, atol=1e-7)


# --- a task that fails ----------------------------------------------------------------------


class Failing(Rows):
    """Units whose n-th batch fails once."""

    n = -1

    def gradient(self, clock, step, w):
        if self.first(clock) + step == self.n:
            self.n = -1
            raise RuntimeError("disturbed")
        return super().gradient(clock, step, w)


class Forgetful(Direct):
    """A client that is told no state."""

    def join(self, partition):
        return super().join(partition)._replace(state=None)


STATEFUL = {
    "momentum": (local_sgd(3, momentum(0.1)), sgd(1.0)),
    "nesterov": (local_sgd(3, nesterov(0.1)), sgd(1.0)),
    "adam": (local_sgd(3, adam(0.1)), nesterov(0.7, 0.9)),
    "adagrad": (local_sgd(3, adagrad(0.1)), sgd(1.0)),
    "rmsprop": (local_sgd(3, rmsprop(0.1)), sgd(1.0)),
    "easgd": (elastic(0.3, 0.2, 3), average(1.0)),
    "eamsgd": (elastic(0.3, 0.2, 3, momentum=0.9), average(1.0)),
}


def retried(loop, updater, n, client=Direct):
    """Run one worker whose n-th batch fails, and run it again from its start."""
    store = open_store(D, 1, asp(), updater)
    units = Failing(loop, random_block(30, D, 1), 6, epochs=2)
    units.n = n
    for _ in range(2):
        try:
            loop(client(store), 0, units)
        except RuntimeError:
            continue
        break
    assert units.n == -1 and store.ledger.balanced
    return store.parameters()[1]


@pytest.mark.parametrize("name", STATEFUL)
def test_what_a_worker_remembers_survives_a_task_that_fails_at_any_batch(name):
    undisturbed = retried(*STATEFUL[name], -1)
    for n in range(10):
        assert_array_equal(retried(*STATEFUL[name], n), undisturbed)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_server_that_forgot_it_would_be_noticed(name):
    undisturbed = retried(*STATEFUL[name], -1)
    assert not np.array_equal(retried(*STATEFUL[name], 7, Forgetful), undisturbed)


# --- the tables of 8.3 and 8.4 --------------------------------------------------------------


class Drawn:
    """Batches of 8 rows, each drawn anew from the shard: as those of the tables were."""

    def __init__(self, loop, block, partition, n_steps):
        self.block, self.partition = block, partition
        cuts = loop.cuts(n_steps, 1)
        self.total, self.steps, self.first = cuts.total, cuts.steps, cuts.first

    def gradient(self, clock, step, w):
        X, y, weight = self.block
        draw = np.random.default_rng([self.partition, self.first(clock) + step])
        rows = draw.integers(len(y), size=8)
        found = Logistic().value_and_grad(w, Block(X[rows], y[rows], weight[rows]))
        return Gradient(found.grad, found.weight, 8, found.loss)


def mean_loss(X, y, w):
    whole = Logistic().value_and_grad(w, Block(X, y, np.ones(len(y))))
    return whole.loss / len(y) + 5e-4 * w @ w, whole.grad / len(y) + 1e-3 * w


class Problem:
    """Mean logistic loss + (1e-3 / 2) |w|^2 of some rows, on 8 workers."""

    def __init__(self, X, y, optimum, sort):
        self.X, self.y, self.optimum = csr_array(X), y, optimum
        order = (
            np.argsort(y, kind="stable") if sort else np.random.default_rng(0).permutation(len(y))
        )
        self.shards = [
            Block(self.X[rows], y[rows], np.ones(len(rows))) for rows in np.array_split(order, 8)
        ]

    def gap(self, of, n_steps=256, run=together):
        loop, policy, updater = of
        loop = loop.penalised(0.0, 1e-3, None)
        work = [Drawn(loop, block, p, n_steps) for p, block in enumerate(self.shards)]
        w = run(open_store(self.X.shape[1], 8, policy, updater), loop, work)
        return mean_loss(self.X, self.y, w)[0] - self.optimum


@lru_cache
def of_text(sort=False):
    """T-L2 of ALGORITHMS.md, 0.5: the optimum of four solvers."""
    return Problem(*text(), 0.39316973670152, sort)


@lru_cache
def of_a9a(sort=False):
    X, y = a9a()
    X, y = X[:2000], y[:2000]
    found = minimize(
        lambda w: mean_loss(X, y, w), np.zeros(X.shape[1]), jac=True, method="L-BFGS-B", tol=1e-10
    )
    return Problem(X, y, found.fun, sort)


def local(steps):
    return method("local_sgd", steps=steps, inner=sgd(inverse_time(8.0, 0.01)))


@pytest.mark.long
@needs_text
@pytest.mark.parametrize(
    ("steps", "alike", "sorted_by_label"),
    [
        (1, 4.36e-3, 4.4e-3),
        (4, 4.39e-3, 5.3e-3),
        (16, 4.37e-3, 9.3e-3),
        (64, 5.03e-3, 3.3e-2),
        (256, 1.14e-2, 1.1e-1),
    ],
)
def test_i8_the_gap_of_256_steps_by_how_many_of_them_are_alone(steps, alike, sorted_by_label):
    gaps = of_text().gap(local(steps)), of_text(True).gap(local(steps))
    # The table does not say how batches are drawn.  Drawn as here, or each row once an epoch, the
    # gaps of shards that are alike are up to 45 % above it from 64 steps on.
    assert gaps[0] == pytest.approx(alike, rel=0.25 if steps <= 16 else 0.5)
    assert gaps[1] == pytest.approx(sorted_by_label, rel=0.25)
    assert gaps[1] > gaps[0] * (1.5 if steps >= 16 else 0.9)


@pytest.mark.long
@needs_text
def test_i8_at_16_averages_more_steps_are_better():
    gaps = [of_text().gap(local(steps), 16 * steps) for steps in (1, 4, 16)]
    assert gaps == pytest.approx([1.4e-1, 3.9e-2, 4.4e-3], rel=0.25)


@pytest.mark.long
@needs_text
def test_i8_the_constants_of_diloco_are_not_universal():
    outer = [sgd(1.0), nesterov(0.7, 0.9), nesterov(0.7, 0.5)]
    gaps = [
        of_text().gap(method("diloco", steps=16, inner=sgd(2.0), outer=updater))
        for updater in outer
    ]
    assert gaps == pytest.approx([0.0241, 0.0230, 0.0103], rel=0.25)


@pytest.mark.long
@needs_text
def test_the_centre_of_elastic_workers_is_further_off_the_rarer_they_exchange():
    def of(tau):
        return method("easgd", alpha=0.9 / 8, rate=inverse_time(8.0, 0.01), tau=tau)

    gaps = [of_text().gap(of(tau), run=in_turn) for tau in (1, 4, 16, 64)]
    assert gaps == sorted(gaps) and gaps[0] < 0.01 < gaps[-1] < 0.04


@pytest.mark.long
def test_i8_on_data_that_is_here_shards_that_are_unlike_are_worse_the_rarer_the_averages():
    def of(steps):
        return method("local_sgd", steps=steps, inner=sgd(inverse_time(0.5, 0.01)))

    ratios = [of_a9a(True).gap(of(steps)) / of_a9a().gap(of(steps)) for steps in (1, 16, 64)]
    assert ratios[0] == pytest.approx(1.0, rel=0.5)
    assert ratios[1] > 1.2 and ratios[2] > 2 * ratios[1]

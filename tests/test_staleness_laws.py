"""The laws of stale gradients, of the real store on a clock of its own: nothing here sleeps.

Sources: Mitliagkas et al., Asynchrony begets Momentum, arXiv:1605.09774, for the shape and the
implicit momentum; Arjevani, Shamir and Srebro, A Tight Convergence Analysis for Stochastic
Gradient Descent with Delayed Updates, arXiv:1806.10188, for the limit of the delay.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from sparkdist.server.ledger import STALENESS_BINS
from sparkdist.server.store import Store
from sparkdist.updaters import sgd
from tests.test_store import RUN, a_push, make_rule, make_store, model

pytestmark = pytest.mark.long

Latency = Callable[[np.random.Generator, int], float]

LATENCIES: dict[str, Latency] = {
    "constant": lambda random, worker: 1.0,
    "exponential": lambda random, worker: random.exponential(),
    "lognormal": lambda random, worker: random.lognormal(0.0, 1.0),
}


class Trace(NamedTuple):
    """What was pushed: by whom, and how old its parameters were, by the versions in the answers."""

    store: Store
    workers: np.ndarray
    staleness: np.ndarray

    @property
    def booked(self) -> dict[int, int]:
        """The histogram that the store keeps."""
        return dict(self.store.status()["staleness"])


def simulate(n_workers: int, n_pushes: int, latency: Latency, seed: int = 0) -> Trace:
    """Let workers that are always busy pull, compute for a while and push, batch by batch."""
    random, store = np.random.default_rng(seed), make_store(1, n=n_workers)
    busy = [(latency(random, worker), worker) for worker in range(n_workers)]
    heapq.heapify(busy)
    base, clock = [0] * n_workers, [0] * n_workers
    trace = []
    for _ in range(n_pushes):
        now, worker = busy[0]
        push = a_push(store, worker, clock[worker], 0.0, base=base[worker])
        answer = store.push(RUN, push)
        trace.append((worker, answer.version - 1 - base[worker]))
        base[worker], clock[worker] = answer.version, answer.next
        heapq.heapreplace(busy, (now + latency(random, worker), worker))
    workers, staleness = np.array(trace).T
    return Trace(store, workers, staleness)


# --- conservation and shape -----------------------------------------------------------------


@pytest.mark.parametrize("kind", LATENCIES)
@pytest.mark.parametrize("n_workers", [4, 16, 64])
def test_d2_the_mean_staleness_is_the_number_of_other_workers(n_workers, kind):
    # What is still on its way at the end is not booked: at most about n_workers^2 versions.
    trace = simulate(n_workers, max(10_000, 800 * n_workers), LATENCIES[kind])
    assert trace.staleness.mean() == pytest.approx(n_workers - 1, rel=0.005)
    assert trace.booked == Counter(np.minimum(trace.staleness, STALENESS_BINS).tolist())


def test_d2_a_worker_that_is_ten_times_slower_changes_who_is_stale_and_not_the_mean():
    def latency(random, worker):
        return random.exponential(10.0 if worker == 0 else 1.0)

    trace = simulate(8, 30_000, latency)
    slow = trace.workers == 0
    assert trace.staleness.mean() == pytest.approx(7.0, rel=0.005)
    # While the slow one computes for 10 on average, seven others push 7 * 10 times; while a fast
    # one does for 1, six others and a tenth do.  Means of geometric variables, so 3 s.e. are:
    for who, mean in [(slow, 70.0), (~slow, 6.1)]:
        error = np.sqrt(mean * (1 + mean) / who.sum())
        assert trace.staleness[who].mean() == pytest.approx(mean, abs=3 * error)


def test_d2_exponential_latencies_make_the_staleness_geometric():
    n, n_workers = 40_000, 16
    trace = simulate(n_workers, n, LATENCIES["exponential"])
    for k in range(10):
        expected = (1 / n_workers) * (1 - 1 / n_workers) ** k
        error = np.sqrt(expected * (1 - expected) / n)
        assert trace.booked[k] / n == pytest.approx(expected, abs=3 * error), k


def test_d2_constant_latencies_make_the_staleness_constant():
    trace = simulate(16, 2000, LATENCIES["constant"])
    assert trace.booked == {**dict.fromkeys(range(15), 1), 15: 2000 - 15}


# --- implicit momentum ----------------------------------------------------------------------


def test_d2_asynchrony_begets_momentum():
    """Of f = x^2 / 2 and exponential latencies: whoever pushes next is drawn evenly."""
    runs, n_workers, rate, steps = 4000, 8, 0.05, 200
    random = np.random.default_rng(0)
    store = make_store(runs, rule=make_rule(runs, sgd(rate)))
    each = np.arange(runs)
    # The store starts at 0, and the same law holds of x - 1: the gradient of f is w + 1 there.
    views = np.zeros((runs, n_workers))
    mean = [1.0]
    for clock in range(steps):
        who = random.integers(n_workers, size=runs)
        store.push(RUN, a_push(store, 0, clock, views[each, who] + 1.0))
        w = model(store)
        views[each, who] = w
        mean.append(float((w + 1.0).mean()))
    law, plain = [1.0, 1.0 - rate], [1.0, 1.0 - rate]
    for _ in range(steps - 1):
        momentum = (1 - 1 / n_workers) * (law[-1] - law[-2])
        law.append(law[-1] + momentum - rate / n_workers * law[-1])
        plain.append((1 - rate) * plain[-1])
    assert np.abs(np.subtract(mean, law)).max() < 0.005
    assert np.abs(np.subtract(mean, plain)).max() > 0.1


# --- the limit of the delay -----------------------------------------------------------------


def limit(tau: int) -> float:
    return 2 * np.sin(np.pi / (2 * (2 * tau + 1)))


def delayed(tau: int, strengths: np.ndarray, steps: int) -> np.ndarray:
    """Run x <- x - strength x(tau steps ago) by tau + 1 workers in turn; all x, (steps, size).

    The workers hold cos(theta t) of the times t <= 0, which is how x moves at the limit itself.
    """
    size, n_workers = len(strengths), tau + 1
    store = make_store(size, n=n_workers, rule=make_rule(size, sgd(1.0)))
    theta = np.pi / (2 * tau + 1)
    views = [np.full(size, np.cos(theta * (t - tau))) for t in range(n_workers)]
    found = np.empty((steps, size))
    for t in range(steps):
        worker, clock = t % n_workers, t // n_workers
        base = max(0, t - tau)
        push = a_push(store, worker, clock, strengths * views[worker], base=base)
        answer = store.push(RUN, push, want=True)
        # The store starts at 0 and x at cos(0) = 1.
        found[t] = views[worker] = np.frombuffer(answer.w) + 1.0
    assert store.status()["staleness"][-1] == (tau, steps - tau)
    return found


def test_d2_the_limit_is_the_published_number():
    for tau, expected in [(0, 2.0), (1, 1.0), (5, 0.284630), (20, 0.076605), (100, 0.015630)]:
        assert limit(tau) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tau", [0, 1, 5, 20])
def test_d2_a_delay_sets_the_largest_rate_that_converges(tau):
    steps = 10_000
    below, at, above = delayed(tau, limit(tau) * np.array([0.99, 1.0, 1.01]), steps).T
    # At the limit x oscillates for ever, with the frequency of the root on the unit circle.
    theta = np.pi / (2 * tau + 1)
    assert np.abs(at - np.cos(theta * np.arange(1, steps + 1))).max() < 1e-6
    period = 2 * (2 * tau + 1)
    assert np.abs(below[-period:]).max() < 0.2
    assert np.abs(above[-period:]).max() > 5.0

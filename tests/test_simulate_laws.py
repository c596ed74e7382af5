"""The simulator against closed forms: order statistics, queues, staleness, heavy tails.

Sources beside the tests; H(n) is the harmonic number 1 + 1/2 + ... + 1/n.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sparkdist import MLP, datasets, simulate
from sparkdist.blocks import Block
from sparkdist.consistency import asp, backup, bsp
from sparkdist.errors import BadGradient
from sparkdist.simulate import (
    Moment,
    constant,
    exponential,
    lognormal,
    pareto,
    scaled,
    stragglers,
)
from sparkdist.updaters import adagrad, sgd
from tests.conftest import FULL
from tests.test_simulate import Noted, idle_units, pushes

pytestmark = pytest.mark.long


def harmonic(n):
    return sum(1 / i for i in range(1, n + 1))


def steady(result):
    """The pushes before the first worker leaves: all are busy until then."""
    end = next(i for i, event in enumerate(result.events) if event.verb == "leave")
    return [event for event in result.events[:end] if event.verb == "push"]


def staleness(result):
    """Of each steady push: how many were applied between its fetch and itself."""
    return np.array([i - event.version for i, event in enumerate(steady(result))])


# --- rounds: order statistics -----------------------------------------------------------------


def test_c5_the_kth_of_n_exponential_workers_comes_at_the_order_statistic():
    # Renyi: the k-th of n is the sum of independent exponentials with the rates n, n-1 ... n-k+1.
    # With k = N and n = N + b this is the law of backup workers, (H(N+b) - H(b)) / mu.
    n, rounds = 100, 2500 if FULL else 60
    result = idle_units(n, rounds, exponential(1.0), bsp(), method="sgd")
    starts = np.concatenate([[0.0], pushes(result, n).max(axis=0)[:-1]])
    arrivals = np.sort(pushes(result, n) - starts, axis=0)
    for k, expected in [(96, 3.1040), (100, 5.1874)]:
        law = harmonic(n) - harmonic(n - k)
        assert law == pytest.approx(expected, abs=1e-4)
        error = np.sqrt(sum(1 / i**2 for i in range(n - k + 1, n + 1)) / rounds)
        assert arrivals[k - 1].mean() == pytest.approx(law, abs=3 * error)


def seconds_a_round(n, b):
    """Of n + b exponential workers that are never stopped; solved as an absorbing Markov chain.

    k of n have pushed and s work at an old version; each event, after 1 / (n + b - k), is one of
    the others' pushes, or one of the s, which is dropped and whose worker begins anew.
    """
    states = [(k, s) for k in range(n) for s in range(b + 1)]
    place = {state: i for i, state in enumerate(states)}
    A, hold = np.eye(len(states)), np.zeros(len(states))
    for (k, s), i in place.items():
        busy = n + b - k
        hold[i] = 1 / busy
        if s:
            A[i, place[k, s - 1]] -= s / busy
        if k + 1 < n:
            A[i, place[k + 1, s]] -= (busy - s) / busy
    return np.linalg.solve(A, hold)[place[0, b]]


@pytest.mark.parametrize(("n", "b"), [(6, 2), (4, 0), (3, 5)])
def test_backup_workers_that_are_late_are_late_for_the_next_round_too(n, b):
    # b = 0 is the order statistic; with b > 0 a round takes longer than H(n+b) - H(b), which is
    # the law of workers that are stopped when their round closes.
    assert seconds_a_round(4, 0) == pytest.approx(harmonic(4))
    assert seconds_a_round(6, 2) > 1.1 * (harmonic(8) - harmonic(2))
    rounds = 1500 if FULL else 600
    result = idle_units(n + b, rounds, exponential(1.0), backup(b), method="sgd")
    end = next(i for i, event in enumerate(result.events) if event.verb == "leave")
    fetched = [e for e in result.events[:end] if e.verb == "fetch"]
    ends = {e.version: e.seconds for e in reversed(fetched)}
    spans = np.diff([ends[version] for version in sorted(ends)])
    # Neighbouring rounds are independent: each begins with n fresh workers and b late ones.
    error = spans.std() / np.sqrt(len(spans))
    assert spans.mean() == pytest.approx(seconds_a_round(n, b), abs=3 * error)


@functools.cache
def straggling(rounds):
    """Sorted latencies of 100 workers in each round, shape (rounds, 100)."""
    streams = [np.random.default_rng([7, worker]) for worker in range(100)]
    latency = stragglers()
    drawn = [
        [latency.draw(stream, Moment(p, i, i, 3)) for p, stream in enumerate(streams)]
        for i in range(rounds)
    ]
    return np.sort(np.array(drawn), axis=1)


def test_c6_stragglers_have_the_two_quantiles_of_chen_et_al():
    # 80 % of the 98th gradients in under 2 s, 30 % of the last: arXiv:1604.00981, section 2.1.
    arrivals = straggling(4000)
    assert (arrivals[:, 97] < 2.0).mean() == pytest.approx(0.80, abs=0.02)
    assert (arrivals[:, 99] < 2.0).mean() == pytest.approx(0.30, abs=0.025)
    # Mean time to the k-th, computed independently of this code when the model was fitted.
    for k, expected in [(90, 1.65), (95, 1.71), (96, 1.75), (97, 1.83), (98, 2.07)]:
        assert arrivals[:, k - 1].mean() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("beta", [1.0, 0.7, 0.5])
def test_c6_four_backup_workers_are_near_the_best_and_none_is_far(beta):
    # Time to converge: a round of N gradients, and N^-beta rounds, late workers being stopped.
    arrivals = straggling(4000)
    cost = [arrivals[:, 99 - b].mean() * (100.0 - b) ** -beta for b in range(21)]
    assert cost[4] <= 1.05 * min(cost) and cost[0] >= 3 * cost[4]


def test_c6_where_late_workers_are_not_stopped_four_backup_workers_are_too_few():
    # A straggler takes 10 s in the mean and the others 1.5 s: it is missing in several rounds.
    result = idle_units(100, 150 if FULL else 60, stragglers(), backup(4), method="sgd")
    last = steady(result)[-1]
    assert last.seconds / last.version > 1.5 * straggling(4000)[:, 95].mean()


class Rounds(Noted):
    """A latency that notes of which round each draw was."""

    def draw(self, stream, at):
        self.drawn.setdefault(at.worker, []).append(at.round)
        return self.latency.draw(stream, at)


def test_in_rounds_workers_share_the_luck_of_a_round_and_else_each_version_has_its_own():
    noted = Rounds(exponential(1.0))
    idle_units(5, 20, noted, bsp(), method="sgd")
    assert noted.table.tolist() == [[*range(20)]] * 5
    result = idle_units(5, 20, alone := Rounds(exponential(1.0)), asp())
    for worker in range(5):
        fetched = [e.version for e in result.events if e[1:3] == ("fetch", worker)]
        assert alone.drawn[worker] == fetched[:20]
    # A round's intensity is drawn once, and has the mean and the variance of the Gamma.
    found = np.array([simulate.latency._intensity(0, number) for number in range(20_000)])
    assert found[7] == simulate.latency._intensity(0, 7) != simulate.latency._intensity(1, 7)
    mean, variance = 3.232 * 0.451, 3.232 * 0.451**2
    assert found.mean() == pytest.approx(mean, abs=3 * np.sqrt(variance / 20_000))
    assert found.var() == pytest.approx(variance, rel=0.06)


# --- staleness --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "latency",
    [
        constant(1.0),
        exponential(1.0),
        pytest.param(lognormal(1.0, 1.0), marks=pytest.mark.slow),
    ],
)
def test_d2_the_mean_staleness_is_the_number_of_other_workers(latency):
    n_workers = 16
    result = idle_units(n_workers, 400, latency, points=1)
    found = staleness(result)
    # The first pushes of each worker are fresher, by 8 of 15 in the mean.
    assert found.mean() == pytest.approx(n_workers - 1, rel=0.005)
    if isinstance(latency, constant):
        assert (found[n_workers:] == n_workers - 1).all()


def test_d2_exponential_latencies_make_it_geometric():
    n_workers = 16
    found = staleness(idle_units(n_workers, 500, exponential(1.0)))
    for k in range(6):
        expected = (1 / n_workers) * (1 - 1 / n_workers) ** k
        error = np.sqrt(expected * (1 - expected) / len(found))
        assert (found == k).mean() == pytest.approx(expected, abs=3.5 * error), k


def test_d2_a_worker_that_is_ten_times_slower_is_the_stale_one():
    result = idle_units(8, 1200, scaled(exponential(1.0), [10, 1, 1, 1, 1, 1, 1, 1]))
    who = np.array([event.partition for event in steady(result)])
    found = staleness(result)
    assert found.mean() == pytest.approx(7.0, rel=0.01)
    # While the slow one computes for 10, seven push 10 times each; while a fast one does for 1,
    # six others push once and the slow one a tenth.
    for slow, mean in [(True, 70.0), (False, 6.1)]:
        chosen = found[(who == 0) == slow]
        error = np.sqrt(mean * (1 + mean) / len(chosen))
        assert chosen.mean() == pytest.approx(mean, abs=3 * error)


def digits(updater, seed):
    """The loss of the digits network after 15 epochs at a staleness of 50, all of one order."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))[:1437]
    rows = Block(X[order] / 16.0, y[order].astype(float), np.ones(1437))
    # 51 workers that take 1 s each: 15 epochs of 90 batches are 26.5 s of 51 updates.
    try:
        with np.errstate(all="ignore"):
            return simulate.simulate(
                MLP([64, 64, 10]), [rows] * 51, updater=updater, batch_size=16, seed=seed,
                until=26.5, points=1,
            ).fun  # fmt: skip
    except BadGradient:  # it diverged
        return np.inf


@pytest.mark.slow
def test_d3_at_a_staleness_of_50_adagrad_has_at_most_six_tenths_of_the_loss_of_sgd():
    rates, seeds = (0.003, 0.01, 0.03, 0.1), range(3)
    sgds = [np.mean([digits(sgd(rate), s) for s in seeds]) for rate in rates]
    adas = [np.mean([digits(adagrad(rate), s) for s in seeds]) for rate in rates]
    assert min(adas) <= 0.6 * min(sgds)
    # Both are tuned: the best rate is not the last one of the grid.
    assert min(sgds) < sgds[-1] and min(adas) < adas[-1]


# --- queues -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "think", "service"),
    [
        (8, 1.0, 0.2),
        pytest.param(8, 1.0, 0.05, marks=pytest.mark.slow),
        (3, 1.0, 1.0),
    ],
)
def test_workers_and_server_are_the_machine_repair_model(n, think, service):
    # M/M/1//N (Kleinrock, Queueing Systems I, section 3.8): the server is idle with p0 = 1 /
    # sum over k of N! / (N-k)! (S/Z)^k, its throughput is (1 - p0) / S.
    terms = np.cumprod([1.0, *((n - k) * service / think for k in range(n))])
    throughput = (1 - 1 / terms.sum()) / service
    result = idle_units(n, 6000 // n, exponential(think), service=exponential(service))
    times = np.array([event.seconds for event in steady(result)])
    rate = (len(times) - 1) / (times[-1] - times[0])
    assert rate == pytest.approx(throughput, rel=0.04)
    # The utilisation law: a worker computes for throughput Z / N of its time.
    assert 1 - result.idle.mean() == pytest.approx(throughput * think / n, rel=0.05)


def test_many_workers_wait_as_in_a_queue_of_poisson_arrivals():
    # M/D/1, Pollaczek and Khinchine: the mean wait in line is rho S / (2 (1 - rho)).  Of 400
    # workers of whom 1 or 2 are in line at a time, arrivals are all but Poisson: rho is that of
    # the throughput N / (Z + S + wait).
    n, service, think = 400, 1.0, 800.0
    noted = Noted(exponential(think))
    result = idle_units(n, 25, noted, service=service)
    events = [e for e in result.events if e.verb in ("fetch", "push")]
    came, waits = {}, []
    drawn = {worker: iter(seconds) for worker, seconds in noted.drawn.items()}
    for event in events:
        if event.verb == "fetch":
            came[event.partition] = event.seconds + next(drawn[event.partition], np.inf)
        else:
            waits.append(event.seconds - came[event.partition] - service)
    assert min(waits) > -1e-9
    # All join at once and stand in line: what comes after the first pushes counts.
    mean = np.mean(waits[4 * n :])
    rho = n * service / (think + service + mean)
    assert mean == pytest.approx(rho * service / (2 * (1 - rho)), rel=0.15)


# --- tails ------------------------------------------------------------------------------------


def test_a_pareto_tail_falls_as_its_power():
    stream, at = np.random.default_rng(0), Moment(0, 0, 0, 0)
    drawn = np.array([pareto(2.0, 1.5).draw(stream, at) for _ in range(40_000)])
    assert drawn.min() >= 2.0
    for t in (3.0, 10.0, 50.0):
        expected = (2.0 / t) ** 1.5
        error = np.sqrt(expected * (1 - expected) / len(drawn))
        assert (drawn > t).mean() == pytest.approx(expected, abs=3 * error)
    # Hill's estimator of the shape, the mean of log(T / least), has standard error shape / sqrt(n).
    assert 1 / np.log(drawn / 2.0).mean() == pytest.approx(1.5, abs=3 * 1.5 / 200)
    cut = [pareto(2.0, 1.5, most=3.0).draw(stream, at) for _ in range(1000)]
    assert max(cut) == 3.0 and np.mean(np.array(cut) == 3.0) == pytest.approx(0.544, abs=0.05)


def test_lognormal_and_exponential_have_their_moments():
    stream, at, n = np.random.default_rng(1), Moment(0, 0, 0, 0), 20_000
    logs = np.log([lognormal(3.0, 0.5).draw(stream, at) for _ in range(n)])
    assert logs.mean() == pytest.approx(np.log(3.0), abs=3 * 0.5 / np.sqrt(n))
    assert logs.std() == pytest.approx(0.5, abs=3 * 0.5 / np.sqrt(2 * n))
    drawn = np.array([exponential(3.0).draw(stream, at) for _ in range(n)])
    assert drawn.mean() == pytest.approx(3.0, abs=9 / np.sqrt(n))
    assert (drawn > 3.0).mean() == pytest.approx(np.exp(-1), abs=3 * 0.483 / np.sqrt(n))


# --- thousands --------------------------------------------------------------------------------


def test_a_thousand_workers_read_all_of_a9a():
    rounds = 2 if FULL else 1  # a worker has a batch an epoch
    result = simulate.simulate(
        "logistic", datasets.load(), workers=1000, method="sgd", latency=exponential(0.1),
        service=6e-4, epochs=rounds, points=2,
    )  # fmt: skip
    assert result.success and result.counts["applied"] == 1000 * rounds
    assert result.history.examples[-1] == 32_561 * rounds and result.nit == rounds
    # Each round has 1,000 pushes of 0.6 ms, and the last of 1,000 exponentials.
    assert result.seconds > rounds * 1000 * 6e-4

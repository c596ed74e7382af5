"""The simulator: times worked out by hand, the same bits for a seed, deaths that change nothing."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sparkdist import L2, Logistic, methods, registry, simulate
from sparkdist.blocks import Block
from sparkdist.codecs import ef21, error_feedback, float16, top_k
from sparkdist.consistency import asp, backup, bsp, ssp
from sparkdist.errors import BadData, BadGradient, InvalidCall, PassFailed
from sparkdist.simulate import (
    Deaths,
    Latency,
    Network,
    Service,
    constant,
    exponential,
    lognormal,
    pareto,
    scaled,
    stragglers,
    trace,
)
from sparkdist.simulate.conditions import Conditions
from sparkdist.simulate.engine import Engine
from sparkdist.simulate.scene import Scene
from sparkdist.simulate.training import Training
from sparkdist.updaters import adagrad, adaptive_revision, average, momentum, sgd
from sparkdist.workers import Batches
from tests.conftest import random_block
from tests.tally import Tally

every_policy = pytest.mark.parametrize("policy", [asp(), ssp(1), bsp(), backup(1)], ids=repr)
DRAWS = 400


class Noted(Latency):
    """Another latency that notes what each worker drew."""

    def __init__(self, latency):
        self.latency, self.drawn = latency, {}

    def draw(self, stream, at):
        seconds = self.latency.draw(stream, at)
        noted = self.drawn.setdefault(at.worker, [])
        assert at.number == len(noted)
        noted.append(seconds)
        return seconds

    @property
    def table(self):
        """Seconds, of shape (workers, draws)."""
        return np.array([self.drawn[worker] for worker in sorted(self.drawn)])


def idle_units(n_workers, n_units, latency, policy=None, **options):
    """Simulate workers whose gradients are 0: only time matters."""
    data = np.zeros((n_workers, 1)), np.zeros(n_workers)
    options = {"updater": sgd(1.0), "points": 1, "record": True} | options
    return simulate.simulate(
        "squared", data, workers=n_workers, latency=latency, consistency=policy or asp(),
        batch_size=1, epochs=n_units, **options,
    )  # fmt: skip


def pushes(result, n_workers):
    """When each push was booked, shape (workers, units)."""
    return np.array(
        [
            [e.seconds for e in result.events if e.verb == "push" and e.partition == p]
            for p in range(n_workers)
        ]
    )


def rough(seed=5, **options):
    """A run in which everything is left to chance."""
    block = random_block(90, 4, 1)
    conditions = {
        "latency": lognormal(1.0, 1.0),
        "network": Network(0.05, 2e3),
        "service": Service(exponential(0.02), 1e5),
        "deaths": Deaths(6.0, exponential(2.0)),
    }
    return simulate.simulate(
        "logistic", tuple(block), workers=5, batch_size=5, epochs=3, penalty=L2(0.1),
        intercept=True, record=True, seed=seed, **conditions | options,
    )  # fmt: skip


# --- the same bits ----------------------------------------------------------------------------


@every_policy
def test_the_same_seed_gives_the_same_run_bit_for_bit(policy):
    first, again, other = (rough(seed, consistency=policy) for seed in (5, 5, 6))
    assert first.deaths > 0 and first.events == again.events != other.events
    assert repr(first.history) == repr(again.history) and first.counts == again.counts
    for name in ("weights", "intercept"):
        assert_array_equal(first.x[name], again.x[name])
    assert_array_equal(first.idle, again.idle)
    assert (first.seconds, first.fun, first.bytes) == (again.seconds, again.fun, again.bytes)
    assert first.seconds != other.seconds and first.fun != other.fun


def test_one_worker_more_changes_no_latency_of_the_others():
    few, many = Noted(lognormal(1.0, 1.0)), Noted(lognormal(1.0, 1.0))
    idle_units(3, 20, few)
    idle_units(4, 20, many)
    assert_array_equal(few.table, many.table[:3])
    assert len(np.unique(many.table)) == 80


@pytest.mark.parametrize(("updater", "method"), [(sgd(0.3), "sgd"), (adagrad(0.1), "downpour")])
def test_d1_one_worker_is_the_sequential_method_bit_for_bit(updater, method):
    block = random_block(64, 4, 0)
    result = simulate.simulate(
        "logistic", tuple(block), workers=1, method=method, updater=updater,
        batch_size=10, epochs=3, seed=2,
    )  # fmt: skip
    batches = Batches([block], 10, seed=2, partition=0)
    w, squares = np.zeros(4), np.full(4, 0.1)
    for epoch in range(3):
        for number in range(7):
            sums = Logistic().value_and_grad(w, batches.get(epoch, number))
            g = sums.grad / sums.weight
            if method == "sgd":
                w = w - 0.3 * g
            else:
                squares = squares + g * g
                w = w - 0.1 * (g / np.sqrt(squares))
    assert_array_equal(result.x, w)
    assert result.seconds == 21.0 and result.idle == [0.0]


def in_rounds(block, n_workers, size, epochs, rate):
    """Synchronous SGD in one process: the sums of all workers in order, divided once."""
    edges = np.linspace(0, len(block.y), n_workers + 1).astype(int)
    cuts = [slice(*pair) for pair in zip(edges[:-1], edges[1:], strict=True)]
    parts = [Block(block.X[cut], block.y[cut], block.weight[cut]) for cut in cuts]
    workers = [Batches([part], size, seed=0, partition=p) for p, part in enumerate(parts)]
    w = np.zeros(4)
    for epoch in range(epochs):
        for number in range(workers[0].per_epoch):
            total, weight = np.zeros(4), 0
            for batches in workers:
                sums = Logistic().value_and_grad(w, batches.get(epoch, number))
                total, weight = total + sums.grad, weight + sums.weight
            w = w - rate * (total / weight)
    return w


CONDITIONS = {
    "at once": {"latency": 0.0},
    "constant": {"latency": constant(1.0)},
    "heavy tail": {"latency": pareto(1.0, 1.2)},
    "slow server": {"latency": exponential(1.0), "service": 0.1},
    "slow network": {"latency": exponential(1.0), "network": Network(0.2, 1e3)},
    "deaths": {"latency": exponential(1.0), "deaths": Deaths(4.0, 1.0)},
}


@pytest.mark.parametrize("conditions", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize("policy", [bsp(), backup(0)], ids=repr)
def test_c4_c7_n3_in_rounds_time_changes_no_bit_of_the_result(policy, conditions):
    block = random_block(60, 4, 3)
    result = simulate.simulate(
        "logistic", tuple(block), workers=3, method="sgd", updater=sgd(0.5), consistency=policy,
        batch_size=5, epochs=3, **conditions,
    )  # fmt: skip
    assert_array_equal(result.x, in_rounds(block, 3, 5, 3, 0.5))
    assert result.nit == 12 and result.staleness == {0: 36}


def test_n3_a_slower_server_costs_seconds_and_no_progress():
    fast, slow = (rough(consistency=bsp(), deaths=None, service=s) for s in (0.0, 0.1))
    assert fast.history.fun == slow.history.fun and fast.history.examples == slow.history.examples
    # Each update takes 5 pushes, one behind the other, at 0.1 s: 0.5 s at least, and more work
    # of the server fits into the time in which workers compute.
    assert slow.seconds > fast.seconds
    assert slow.seconds >= 0.1 * slow.nfev


def test_what_one_worker_draws_in_which_order_is_no_matter_of_the_policy():
    tables = []
    for policy in (asp(), ssp(2), bsp()):
        noted = Noted(lognormal(1.0, 1.0))
        idle_units(4, 10, noted, policy)
        tables.append(noted.table)
    assert_array_equal(tables[0], tables[1])
    assert_array_equal(tables[0], tables[2])


# --- times by hand ----------------------------------------------------------------------------


def recursion(draws, bound):
    """T(p, c) = d(p, c) + max(T(p, c-1), max over q of T(q, c-1-bound)): when clock c is pushed."""
    times = np.zeros((draws.shape[0], draws.shape[1] + 1))
    for c in range(1, draws.shape[1] + 1):
        others = times[:, c - 1 - bound].max() if c - 1 - bound > 0 else 0.0
        times[:, c] = draws[:, c - 1] + np.maximum(times[:, c - 1], others)
    return times[:, 1:]


@pytest.mark.parametrize(
    ("policy", "bound"),
    [(bsp(), 0), (backup(0), 0), (ssp(0), 0), (ssp(1), 1), (ssp(3), 3), (asp(), 99)],
    ids=repr,
)
def test_h4_each_push_comes_when_the_recursion_of_the_policy_says(policy, bound):
    noted = Noted(scaled(lognormal(1.0, 1.0), [1, 1, 3, 1]))
    result = idle_units(4, 25, noted, policy)
    assert_allclose(pushes(result, 4), recursion(noted.table, bound), rtol=1e-12)
    left = {event.partition: event.seconds for event in result.events if event.verb == "leave"}
    ends = np.array([left[worker] for worker in range(4)])
    assert_allclose(result.idle, 1 - noted.table.sum(axis=1) / ends, atol=1e-12)


def test_a_warm_start_is_one_worker_after_the_other_until_it_is_over():
    # Each has 5 units of 1 s; up to version 8 one works alone, and who leaves makes room.
    result = idle_units(3, 5, 1.0, asp(warm_start=8))
    assert_array_equal(pushes(result, 3)[0], [1, 2, 3, 4, 5])
    assert_array_equal(pushes(result, 3)[1], [6, 7, 8, 9, 10])
    assert_array_equal(pushes(result, 3)[2], [9, 10, 11, 12, 13])


def test_h5_a_bound_that_nobody_reaches_is_asynchronous():
    without, far = (rough(consistency=policy) for policy in (asp(), ssp(10**6)))
    assert without.events == far.events and without.fun == far.fun


def test_the_wait_falls_as_the_bound_grows():
    # Each time of the recursion is a maximum over fewer others: it cannot grow.
    runs = [idle_units(6, 40, lognormal(1.0, 1.0), ssp(s)) for s in (0, 1, 2, 4, 8)]
    seconds = [run.seconds for run in runs]
    assert seconds == sorted(seconds, reverse=True) and seconds[0] > 1.2 * seconds[-1]
    assert runs[0].idle.mean() > runs[-1].idle.mean()


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_h4_under_ssp_nobody_fetches_further_ahead_than_the_bound_though_workers_die(bound):
    result = rough(consistency=ssp(bound), latency=scaled(exponential(1.0), [1, 1, 1, 1, 4]))
    done, left, ahead = [0] * 5, set(), []
    for event in result.events:
        if event.verb == "push" and event.clock == done[event.partition]:
            done[event.partition] += 1
        elif event.verb == "fetch":
            slowest = min(c for p, c in enumerate(done) if p not in left)
            ahead.append(done[event.partition] - slowest)
        elif event.verb == "leave":
            left.add(event.partition)
    assert result.deaths > 0 and max(ahead) == bound


def test_the_network_and_the_server_take_what_the_bytes_say():
    result = simulate.simulate(
        "squared", (np.zeros((8, 2)), np.zeros(8)), workers=1, latency=1.0, batch_size=2, epochs=2,
        network=Network(0.01, 1e6), service=Service(0.002, 4e6), record=True,
    )  # fmt: skip
    # join, pull, 8 pushes of which each brings the next parameters, leave.
    requests, n_bytes = 11, sum(result.bytes.values())
    expected = 8 * 1.0 + requests * (2 * 0.01 + 0.002) + n_bytes / 1e6 + n_bytes / 4e6
    assert result.seconds == pytest.approx(expected, rel=1e-12)
    assert result.history.bytes[-1] < n_bytes and result.bytes["received"] > 8 * 2 * 8
    assert result.idle == pytest.approx([1 - 8 / expected])


def test_a_frame_is_as_long_as_on_the_wire_and_a_sparse_gradient_is_shorter():
    block = random_block(4, 2000, 0)
    dense = simulate.simulate("squared", tuple(block), workers=1, batch_size=1)
    few = block._replace(X=np.where(np.arange(2000) < 3, block.X, 0.0))
    sparse = simulate.simulate("squared", tuple(few), workers=1, batch_size=1)
    assert 4 * 16_000 < dense.bytes["received"] < 4 * 16_000 + 7 * 400
    assert sparse.bytes["received"] < 7 * 400
    assert sparse.bytes["sent"] == dense.bytes["sent"]


def test_a_server_that_is_always_busy_sends_as_fast_as_it_can():
    result = idle_units(6, 10, 0.0, service=Service(0.0, 1e5))
    assert result.seconds == pytest.approx(sum(result.bytes.values()) / 1e5, rel=1e-12)


@pytest.mark.parametrize("n_workers", [1, 4, 5, 20])
def test_the_throughput_is_that_of_the_workers_or_of_the_server(n_workers):
    # Asymptotic bounds of a closed queue, exact without chance: min(P / (Z + S), 1 / S).
    result = idle_units(n_workers, 50, 1.0, service=0.25)
    times = np.sort(pushes(result, n_workers), axis=None)[10 * n_workers : 30 * n_workers + 1]
    rate = (len(times) - 1) / (times[-1] - times[0])
    assert rate == pytest.approx(min(n_workers / 1.25, 4.0), rel=1e-9)


def test_a_trace_is_used_as_it_is_and_begins_again():
    noted = Noted(trace([[1.0, 2.0, 4.0], [8.0]]))
    result = idle_units(3, 5, noted)
    assert noted.drawn == {0: [1, 2, 4, 1, 2], 1: [8] * 5, 2: [1, 2, 4, 1, 2]}
    assert result.seconds == 40.0


def test_backup_the_first_round_ends_with_the_last_push_that_it_needs():
    noted = Noted(exponential(1.0))
    result = idle_units(20, 2, noted, backup(3), method="sgd")
    first = min(e.seconds for e in result.events if e.verb == "fetch" and e.version == 1)
    assert first == np.sort(noted.table[:, 0])[20 - 3 - 1]
    assert result.counts["applied"] >= 17 and result.counts["dropped"] >= 3
    assert result.counts["applied"] + result.counts["dropped"] == 40


# --- deaths -----------------------------------------------------------------------------------


def numbered(n_rows):
    return np.arange(n_rows, dtype=float)[:, None], np.zeros(n_rows)


#: A push of 60 coordinates is on its way for two seconds, and for less than one what a copy that
#: comes back at once says first: it begins before the last push of the one before it has arrived.
SLOW = Network(0.0, 400.0)


@pytest.mark.parametrize("policy", [asp(), ssp(1)], ids=repr)
@pytest.mark.parametrize("n_push", [1, 4])
def test_r1_workers_that_die_and_come_back_count_each_row_once(policy, n_push):
    result = simulate.simulate(
        Tally(60), numbered(60), workers=3, updater=sgd(1.0), consistency=policy, batch_size=1,
        n_push=n_push, n_fetch=n_push, epochs=n_push, latency=exponential(0.5 / n_push),
        network=SLOW, deaths=Deaths(4.0, 0.0), seed=1,
    )  # fmt: skip
    # A unit of 4 batches is applied as their mean, so that a row counts 1/4 in each of 4 epochs.
    assert_array_equal(result.x, np.ones(60))
    counts = dict(result.counts)
    assert result.deaths > 5 and counts["duplicate"] > 0
    assert counts.pop("received") == sum(counts.values())
    assert counts["applied"] == 60 and result.history.examples[-1] == 60 * n_push


def test_a_worker_that_is_dead_does_not_compute():
    noted = Noted(constant(1.0))
    result = idle_units(1, 3, noted, deaths=Deaths(trace([[2.5]]), 10.0))
    # It dies at 2.5 in its third batch, is away for 10, and computes that one again.
    assert result.seconds == 13.5 and result.deaths == 1
    assert noted.drawn == {0: [1.0] * 4}
    assert result.idle == [0.0]


def test_a_worker_that_never_gets_through_ends_the_run():
    with pytest.raises(PassFailed, match="worker 0 died 1000 times at one unit"):
        idle_units(1, 3, 2.0, deaths=Deaths(constant(1.0)))


# --- any loop ---------------------------------------------------------------------------------


def small_scene(n_workers=2, **options):
    data = random_block(40, 3, 0)
    training = Training(batch_size=5, **options)
    return Scene("test", "logistic", tuple(data), None, n_workers, training)


def run(scene, loop, latency=1.0, **options):
    given = Conditions(constant(latency), Network(), Service(), options.get("deaths"))
    engine = Engine(scene.desk, scene.crew, loop, given, 0)
    return engine.run(options.get("until", math.inf)), engine


@pytest.mark.parametrize("method", registry.names(methods))
def test_every_method_runs_with_workers_that_die_and_its_record_is_its_result(method):
    block = random_block(96, 4, 0)
    given = {"workers": 3, "method": method, "batch_size": 4, "epochs": 6, "penalty": L2(0.1)}
    loss = "hinge" if method == "cocoa" else "logistic"
    found = simulate.simulate(
        loss, tuple(block), latency=exponential(1.0), network=Network(0.2),
        deaths=Deaths(12.0, 1.0), record=True, **given,
    )  # fmt: skip
    again = simulate.replay(found.events, loss, tuple(block), **given)
    assert found.success and found.deaths > 0 and again.success
    assert_array_equal(again.x, found.x)
    assert again.counts["applied"] == found.counts["applied"]
    assert found.fun < found.history.fun[0]


@pytest.mark.parametrize("method", ["local_sgd", "diloco", "one_shot", "sgd"])
def test_methods_in_rounds_come_to_the_same_bits_though_workers_die(method):
    block = random_block(96, 4, 0)
    given = {"workers": 3, "method": method, "batch_size": 4, "epochs": 6, "penalty": L2(0.1)}
    calm, rough = (
        simulate.simulate("logistic", tuple(block), latency=exponential(1.0), deaths=d, **given)
        for d in (None, Deaths(40.0, 3.0))
    )
    assert rough.deaths > 0 and rough.seconds > calm.seconds
    assert_array_equal(rough.x, calm.x)


CODECS = {
    "float16": float16(),
    "top_k with its residual on the host": error_feedback(top_k(0.5)),
    "ef21": ef21(top_k(0.5)),
}


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("memory", ["host", "server"])
def test_a_codec_is_simulated_as_it_is_and_its_memory_survives_deaths(codec, memory):
    block = random_block(96, 400, 0)
    given = {
        "workers": 3, "method": "sgd", "batch_size": 4, "epochs": 3, "codec": codec,
        "memory": memory, "latency": exponential(1.0),
    }  # fmt: skip
    plain, calm, rough = (
        simulate.simulate("logistic", tuple(block), record=True, **given | other)
        for other in ({"codec": None}, {}, {"deaths": Deaths(20.0, 3.0)})
    )
    assert rough.deaths > 0 and not np.array_equal(calm.x, plain.x)
    assert calm.history.fun[-1] < 0.9 * calm.history.fun[0]
    # Of 3,200 bytes float16 sends 800, half of the coordinates fewer than 2,400.
    goes_along = memory == "server" and not codec.rebuildable
    bound = plain.bytes["received"] * (1.0 if goes_along else 0.85)
    assert (calm.bytes["received"] > bound) == goes_along
    if memory == "server" or codec.rebuildable:
        assert_array_equal(rough.x, calm.x)
    else:  # who dies before the answer to a push does not know that it was applied
        calm, rough = rough, calm
    again = simulate.replay(rough.events, "logistic", tuple(block), **no_time(given))
    assert_array_equal(again.x, rough.x)


def no_time(given):
    """The arguments of a replay."""
    return {name: value for name, value in given.items() if name != "latency"}


def test_a_loop_that_nobody_has_told_of_simulations_is_simulated():
    def twice(client, partition, units, heard):
        """Two local steps a push, of which the difference is sent."""
        at = client.join(partition)
        while at.next < units.total:
            at = client.pull(partition)
            start, w = at.w, at.w
            for _ in range(2):
                gradient = units.gradient(at.next, 0, w)
                w = w - 0.1 * gradient.value / gradient.weight
            push = gradient._replace(value=start - w, weight=1.0)
            heard.append(partition)
            at = client.push(partition, at.next, at, push, want=False)
        client.leave(partition)

    heard, scene = [], small_scene(consistency=bsp(), updater=sgd(1.0))
    done, engine = run(scene, functools.partial(twice, heard=heard))
    assert done and engine.now == 4 * 2 * 1.0 and heard == [0, 1] * 4
    # By hand: the mean of what two workers come to in two steps, four times.
    w = np.zeros(3)
    for clock in range(4):
        ends = []
        for units in scene.crew:
            v = w
            for _ in range(2):
                gradient = units.gradient(clock, 0, v)
                v = v - 0.1 * gradient.value / gradient.weight
            ends.append(v)
        w = np.mean(ends, axis=0)
    assert_allclose(scene.desk.store.parameters()[1], w, rtol=1e-12)


def test_workers_that_wait_for_one_who_went_without_a_word_are_named():
    def deserts(client, partition, units):
        at = client.pull(partition)
        if partition == 0:
            return
        gradient = units.gradient(0, 0, at.w)
        client.push(partition, 0, at, gradient, want=True)

    with pytest.raises(PassFailed, match=r"workers \[1\] wait for what will never come"):
        run(small_scene(consistency=bsp()), deserts)


def test_a_loop_that_dies_releases_what_it_holds_and_says_nothing_more():
    released = []

    def holds(client, partition, units):
        try:
            for _ in range(3):
                units.gradient(0, 0, client.pull(partition).w)
        finally:
            released.append(partition)
            client.leave(partition)

    scene = small_scene(n_workers=1)
    done, engine = run(scene, holds, until=1.5)
    assert not done and released == [0] and engine.now == 1.0
    assert scene.desk.store.ledger.gone == set()


def test_an_exception_of_a_gradient_ends_the_run_as_it_is():
    def fails(w, X, y):
        raise ZeroDivisionError("the user's own")

    with pytest.raises(ZeroDivisionError, match="the user's own"):
        simulate.simulate(fails, random_block(4, 2, 0)[:2], np.zeros(2), workers=2)


def test_a_gradient_that_is_not_finite_ends_the_run():
    def wrong(w, X, y):
        return 0.0, np.full(2, np.nan if w.any() else 1.0)

    with pytest.raises(BadGradient, match="partition 0, push 0"):
        simulate.simulate(wrong, random_block(4, 2, 0)[:2], np.ones(2), workers=2)


def test_what_the_caller_has_set_for_numpy_holds_in_the_loops():
    def divides(w, X, y):
        return 0.0, np.zeros(2) * (np.ones(1) / np.zeros(1) > 0)

    with np.errstate(divide="ignore"):
        result = simulate.simulate(divides, random_block(4, 2, 0)[:2], np.zeros(2), workers=2)
    assert result.success


# --- the front door ---------------------------------------------------------------------------


def test_a_run_tells_how_it_went():
    block = random_block(200, 4, 0)
    result = simulate.simulate(
        "logistic", tuple(block), workers=4, latency=exponential(0.1), penalty=L2(0.1),
        batch_size=5, epochs=4, points=8,
    )  # fmt: skip
    history = result.history
    assert result.success and result.method == "downpour" and result.nit == result.nfev == 160
    assert len(history) == len(history.fun) == 9
    assert history.examples == [100 * i for i in range(9)]
    for name, values in history.to_dict().items():  # N2
        if name in ("seconds", "version", "examples", "bytes"):
            assert values == sorted(values), name
    # N1: the seconds are updates times seconds an update.
    assert history.seconds[-1] == pytest.approx(
        history.version[-1] * (result.seconds / result.nit), rel=0.01
    )
    assert history.fun[0] == pytest.approx(np.log(2))
    start = Logistic().value_and_grad(np.asarray(result.x), block)
    by_hand = start.loss / start.weight + 0.05 * result.x @ result.x
    assert history.fun[-1] == result.fun == pytest.approx(by_hand, rel=1e-12)
    assert_allclose(result.jac, start.grad / start.weight + 0.1 * result.x, rtol=1e-10)
    assert sum(result.staleness.values()) == 160 and result.idle.shape == (4,)


def test_a_run_that_is_cut_off_says_so():
    result = idle_units(2, 10, 1.0, until=4.5)
    assert not result.success and result.message == "the time was over"
    assert result.seconds == 4.0 and result.nit == 8
    assert_array_equal(result.idle, [0.0, 0.0])


def test_a_run_draws_itself():
    pytest.importorskip("matplotlib")
    result = rough()
    figure = result.plot()
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
    assert [y for _, y in labels] == ["objective", "", "", "mean staleness", "", ""]
    assert [x for x, _ in labels[3:]] == [
        "simulated seconds", "examples", "megabytes through the server",
    ]  # fmt: skip
    kept = result.history
    across = [kept.seconds, kept.examples, np.array(kept.bytes) / 1e6]
    wanted = [(x, y) for y in (kept.fun, kept.staleness) for x in across]
    for axes, (x, y) in zip(figure.axes, wanted, strict=True):
        assert_array_equal(axes.lines[0].get_xdata(), x)
        assert_array_equal(axes.lines[0].get_ydata(), y)
        assert len(x) == 51


def test_a_model_in_float32_and_one_of_named_arrays():
    def squares(w, X, y):
        r = X @ w["a"] + w["b"] - y
        return float(r @ r) / 2, {"a": X.T @ r, "b": r.sum()}

    block = random_block(40, 3, 0)
    w0 = {"a": np.zeros(3, np.float32), "b": np.zeros((), np.float32)}
    wide, narrow = (
        simulate.simulate(squares, block[:2], start, workers=2, batch_size=4)
        for start in ({n: a.astype(float) for n, a in w0.items()}, w0)
    )
    assert set(narrow.x) == {"a", "b"}
    assert_allclose(narrow.x["a"], wide.x["a"], rtol=1e-4)
    assert 0 < np.abs(narrow.x["a"] - wide.x["a"]).max()
    assert narrow.bytes["sent"] < wide.bytes["sent"]


def test_a_block_for_each_worker_is_the_same_as_rows_dealt_out():
    block = random_block(30, 3, 0)
    parts = [Block(block.X[c], block.y[c], block.weight[c]) for c in (slice(15), slice(15, None))]
    dealt = simulate.simulate("logistic", tuple(block), workers=2, batch_size=4)
    given = simulate.simulate("logistic", parts, batch_size=4)
    assert_array_equal(dealt.x, given.x)
    assert given.fun == pytest.approx(dealt.fun, rel=1e-14)


def test_workers_without_rows_leave_at_once():
    result = simulate.simulate("logistic", tuple(random_block(3, 2, 0)), workers=8, method="sgd")
    assert result.success and result.history.examples[-1] == 3


def test_one_error_says_all_that_is_wrong_with_a_call():
    with pytest.raises(InvalidCall) as error:
        simulate.simulate(
            "logistic", (np.zeros((2, 2)), np.zeros(2)), workers=0, method="adam",
            batch_size=0, updater="sgd", penalty=0.1,
        )  # fmt: skip
    text = str(error.value)
    for part in ("5 problems", "'adam'", "batch_size must", "'sgd'", "penalty", "workers must"):
        assert part in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": [1, 2]}, r"data must be \(X, y\)"),
        ({"data": (np.zeros((2, 2)), np.zeros(3))}, r"X must be \(n, d\)"),
        ({"data": (np.zeros((0, 2)), np.zeros(0))}, "there are no rows"),
        ({"data": (np.full((4, 2), np.nan), np.zeros(4))}, "X has values that are NaN or infinite"),
        ({"data": (np.ones((4, 2)), [0, 1, np.inf, 0])}, "y has values that are NaN"),
        ({"data": (np.ones((4, 2)), np.zeros(4), -np.ones(4))}, "there are negative weights"),
        ({"data": (np.ones((4, 2)), np.zeros(4), np.zeros(4))}, "all weights are 0"),
        ({"data": (np.ones((4, 2)), ["a"] * 4)}, "must be arrays of numbers: could not convert"),
        (
            {"data": [Block(np.ones((1, d)), np.zeros(1), np.ones(1)) for d in (2, 3)]},
            r"the blocks have \[2, 3\] features",
        ),
        ({"method": "easgd", "worker": None, "alpha": "x"}, "alpha must be a number > 0 and <= 1"),
        ({"latency": -1}, "latency must be a number of seconds"),
        ({"service": "1 s"}, "service must be a number of seconds"),
        ({"network": 0.1}, "must be a Network"),
        ({"deaths": 3}, "must be Deaths"),
        ({"until": -1}, "until must be a number >= 0; it is -1"),
        ({"points": 0}, "points must be a whole number >= 1; it is 0"),
        ({"w0": np.zeros(3)}, "w0 is"),
        ({"penalty": 0.1}, "penalty is 0.1"),
        ({"n_push": 0}, "n_push must be a whole number >= 1; it is 0"),
        ({"extra": 1}, "downpour has no option 'extra'; it has n_fetch, n_push"),
        ({"method": "easgd", "worker": None, "penalty": L2(1), "tau": 0}, "tau must be"),
        (
            {"updater": average(1.0), "penalty": L2(1)},
            "the updater takes differences of the parameters",
        ),
        ({"method": "sgd", "updater": adaptive_revision()}, "applied one by one"),
        ({"memory": "disk"}, "memory is 'disk'"),
        ({"codec": "float16"}, "codec is 'float16'; it must be one of sparkdist.codecs"),
    ],
    ids=repr,
)
def test_what_cannot_work_is_refused(options, message):
    given = {"data": tuple(random_block(4, 2, 0)), "workers": 2} | options
    with pytest.raises(InvalidCall, match=message):
        simulate.simulate("logistic", given.pop("data"), **given)


def test_labels_outside_the_domain_are_refused():
    with pytest.raises(BadData, match="there is 3"):
        simulate.simulate("logistic", (np.zeros((2, 1)), np.array([0.0, 3.0])), workers=1)


# --- latencies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: constant(-1.0),
        lambda: exponential(math.nan),
        lambda: lognormal(1.0, math.inf),
        lambda: pareto(1.0, 0.0),
        lambda: pareto(2.0, 1.0, most=1.0),
        lambda: stragglers("1"),
        lambda: trace([[1.0], []]),
        lambda: scaled(1.0, []),
        lambda: scaled("a", [1.0]),
        lambda: Network(-1.0),
        lambda: Network(0.0, 0.0),
        lambda: Service(0.0, -1.0),
        lambda: Deaths(0.0),
        lambda: Deaths(1.0, -1.0),
    ],
)
def test_a_latency_that_cannot_be_is_refused(make):
    with pytest.raises(InvalidCall, match="1 problem"):
        make()


def test_momentum_and_every_other_updater_is_simulated_as_it_is():
    from sparkdist import updaters

    block = random_block(20, 3, 0)
    for name in registry.names(updaters):
        member = registry.get(updaters, name)()
        if member.takes_gradients:
            result = simulate.simulate("logistic", tuple(block), workers=2, updater=member)
            assert result.success and np.asarray(result.x).any(), name
    assert momentum in {registry.get(updaters, name) for name in registry.names(updaters)}

"""A recorded run, replayed: the same gradients in the same order, so the same bits (O1)."""

from __future__ import annotations

import functools
import random
import threading
import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from pyspark.sql import SparkSession

from sparkdist import L2, Dataset, ModelServer, minimize
from sparkdist.consistency import asp, backup, bsp, ssp
from sparkdist.errors import InvalidCall
from sparkdist.server.record import write_record
from sparkdist.simulate import (
    Deaths,
    Event,
    Network,
    Recorder,
    durations,
    exponential,
    lognormal,
    read_record,
    replay,
    simulate,
    trace,
)
from sparkdist.simulate.scene import Scene
from sparkdist.simulate.training import Training
from sparkdist.spark.training.recording import keep_record
from sparkdist.updaters import adagrad, momentum
from tests.conftest import LOCAL, random_block
from tests.test_workers import RUN, Direct

every_policy = pytest.mark.parametrize("policy", [asp(), ssp(1), bsp(), backup(1)], ids=repr)
LOOPS = [{}, {"n_push": 4}, {"n_fetch": 3}, {"n_push": 4, "n_fetch": 2}]
#: In rounds, what is pushed between two fetches is too old, and dropped.
PAIRS = [
    (policy, loop)
    for policy in (asp(), ssp(1), bsp(), backup(1))
    for loop in LOOPS
    if not policy.in_rounds or loop.get("n_fetch", 1) <= loop.get("n_push", 1)
]
every_pair = pytest.mark.parametrize(("policy", "loop"), PAIRS, ids=repr)
WORKERS = 4


class Pausing:
    """Units that take a little time each, another one in every run."""

    def __init__(self, units):
        self.units, self.total = units, units.total
        self.steps, self.first = units.steps, units.first

    def gradient(self, clock, step, w):
        time.sleep(random.expovariate(1.0) * 2e-4)
        return self.units.gradient(clock, step, w)


def the_call(policy, **loop):
    data = tuple(random_block(120, 5, 4))
    options = {"updater": adagrad(0.1), "consistency": policy, "batch_size": 3, "epochs": 3}
    return data, {"penalty": L2(0.1), **options, **loop}


def in_threads(data, options, around=None):
    """Train on a real store with a thread for each worker; return what was recorded and came.

    ``around`` is called with a client, partition, units and the worker loop, instead of the loop.
    """
    own = {name: options[name] for name in ("n_push", "n_fetch") if name in options}
    rest = {name: value for name, value in options.items() if name not in own}
    scene = Scene("test", "logistic", data, None, WORKERS, Training(**rest, options=own))
    store, loop = scene.desk.store, scene.loop
    if around is not None:
        loop = functools.partial(around, loop=loop)
    store.begin(RUN, WORKERS)
    store.observe = recorder = Recorder()
    threads = [
        threading.Thread(target=loop, args=(Direct(store), p, Pausing(units)))
        for p, units in enumerate(scene.crew)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert store.ledger.balanced
    return recorder, store


def assert_replayed(events, data, options, store, **more):
    result = replay(events, "logistic", data, workers=WORKERS, **options, **more)
    version, w = store.parameters()
    assert result.success, result.message
    assert_array_equal(result.x, w)
    assert result.nit == version
    assert result.staleness == dict(store.status()["staleness"])
    return result


# --- a real store -----------------------------------------------------------------------------


@pytest.mark.long
@every_pair
def test_o1_a_run_of_threads_is_replayed_bit_for_bit(policy, loop):
    data, options = the_call(policy, **loop)
    recorder, store = in_threads(data, options)
    result = assert_replayed(recorder.events, data, options, store)
    assert result.seconds == recorder.events[-1].seconds
    assert result.history.seconds == sorted(result.history.seconds)
    fetched = [e.version for e in recorder.events if e.verb == "fetch"]
    assert result.history.fun[-1] == result.fun and max(fetched) <= store.version


@pytest.mark.long
def test_a_round_that_a_leaving_worker_closes_is_in_the_history():
    def around(client, partition, units, loop):
        """Let a worker without rows leave when all the others have pushed."""
        deadline = time.monotonic() + 10
        while not units.total and client.store.ledger.counts["received"] < WORKERS - 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return loop(client, partition, units)

    _, options = the_call(bsp(), batch_size=1000, epochs=1)
    data = tuple(random_block(WORKERS - 1, 5, 4))  # a row each, and none for one of them
    recorder, store = in_threads(data, options, around)
    result = assert_replayed(recorder.events, data, options, store)
    verbs = [event.verb for event in recorder.events]
    assert "leave" in verbs[verbs.index("push") : -WORKERS + 1] and store.version == 1
    assert result.history.fun[-1] == result.fun != result.history.fun[0]


@pytest.mark.long
def test_o1_two_runs_of_threads_differ_and_their_records_tell_them_apart():
    data, options = the_call(asp())
    (one, store), (other, second) = in_threads(data, options), in_threads(data, options)
    assert_replayed(one.events, data, options, store)
    assert_replayed(other.events, data, options, second)
    # With 120 pushes of four threads, that both come in one order does not happen.
    assert not np.array_equal(store.parameters()[1], second.parameters()[1])


class Dies(Exception):
    """What ends a task."""


class Dying(Direct):
    """A client whose task dies after some pushes, before it has seen the answer."""

    def __init__(self, store, pushes):
        super().__init__(store)
        self.left = pushes

    def push(self, *arguments, **named):
        answer = super().push(*arguments, **named)
        self.left -= 1
        if self.left < 0:
            raise Dies
        return answer


def dying(client, partition, units, *, loop):
    """Run a worker's loop again and again, as Spark does, each time for so many pushes."""
    for pushes in (3, 0, 5, 1000):
        try:
            return loop(Dying(client.store, pushes), partition, units)
        except Dies:
            continue


@pytest.mark.long
@every_policy
def test_o1_tasks_that_died_and_were_run_again_are_in_the_record(policy):
    data, options = the_call(policy)
    recorder, store = in_threads(data, options, dying)
    joined = [e.partition for e in recorder.events if e.verb == "join"]
    assert sorted(joined) == sorted([*range(WORKERS)] * 4)
    assert_replayed(recorder.events, data, options, store)


class Losing(Direct):
    """A client that loses every fourth answer to a push, and sends it again."""

    def push(self, partition, clock, *rest, **named):
        answer = super().push(partition, clock, *rest, **named)
        if clock % 4 == partition:
            answer = super().push(partition, clock, *rest, **named)
            assert answer.status == "duplicate"
        return answer


def losing(client, partition, units, *, loop):
    """Run a worker's loop where answers are lost."""
    loop(Losing(client.store), partition, units)


@pytest.mark.long
@every_pair
def test_o1_pushes_whose_answer_was_lost_are_played_once(policy, loop):
    data, options = the_call(policy, **loop)
    recorder, store = in_threads(data, options, losing)
    assert store.ledger.counts["duplicate"] > 0
    assert_replayed(recorder.events, data, options, store)


# --- a simulated one --------------------------------------------------------------------------


@every_pair
def test_a_simulated_run_is_replayed_bit_for_bit_though_workers_died(policy, loop):
    data, options = the_call(policy, **loop)
    found = simulate(
        "logistic", data, workers=WORKERS, latency=lognormal(1.0, 1.0), record=True, seed=3,
        network=Network(0.3), deaths=Deaths(15.0, 1.0), **options,
    )  # fmt: skip
    again = replay(found.events, "logistic", data, workers=WORKERS, seed=3, **options)
    assert found.deaths > 0 and again.success
    assert_array_equal(again.x, found.x)
    assert (again.nit, again.staleness, again.fun) == (found.nit, found.staleness, found.fun)
    assert again.history.seconds == found.history.seconds
    assert again.history.fun == found.history.fun


def test_the_measured_latencies_of_a_run_simulate_it_again():
    data, options = the_call(asp())
    given = {"workers": WORKERS, "record": True, **options}
    found = simulate("logistic", data, latency=exponential(1.0), seed=1, **given)
    assert [len(row) for row in durations(found.events)] == [30] * WORKERS
    again = simulate("logistic", data, latency=trace(durations(found.events)), seed=1, **given)
    assert_array_equal(again.x, found.x)
    assert again.seconds == pytest.approx(found.seconds, rel=1e-12)
    assert [e[1:] for e in again.events] == [e[1:] for e in found.events]


# --- what does not fit ------------------------------------------------------------------------


def recorded(**options):
    data, known = the_call(asp())
    known |= options
    run = simulate(
        "logistic", data, workers=WORKERS, latency=exponential(1.0), record=True, **known
    )
    return data, known, run


def test_a_record_that_is_cut_off_is_played_as_far_as_it_goes():
    data, options, run = recorded()
    result = replay(run.events[:200], "logistic", data, workers=WORKERS, **options)
    pushes = [e for e in run.events[:200] if e.verb == "push"]
    assert not result.success and result.message == "the record ends before the run"
    assert result.nit == len(pushes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda events: events[10:], "event 0 of the record, .*before its worker has joined"),
        (lambda events: events[:60] + events[61:], "event .* of the record"),
        (lambda events: [*events, events[-1]], "the worker is done"),
        (lambda events: [Event(0.0, "join", 9, 0, 0)], "there are 4 workers"),
        (lambda events: [*events[:60], events[60]._replace(version=99)], "of the record"),
    ],
)
def test_a_record_that_cannot_be_is_refused_at_the_event(change, message):
    data, options, run = recorded()
    with pytest.raises(InvalidCall, match=message):
        replay(change(run.events), "logistic", data, workers=WORKERS, **options)


@pytest.mark.parametrize(
    "other", [{"batch_size": 4}, {"epochs": 2}, {"n_push": 2}, {"consistency": bsp()}], ids=repr
)
def test_a_record_of_another_training_is_refused(other):
    data, options, run = recorded()
    with pytest.raises(InvalidCall, match="of the record"):
        replay(run.events, "logistic", data, workers=WORKERS, **options | other)


def test_an_option_that_is_not_there_is_refused():
    with pytest.raises(InvalidCall, match="downpour has no option 'latency'"):
        replay([], "logistic", tuple(random_block(4, 2, 0)), workers=1, latency=1.0)


def test_a_recorder_keeps_so_many_and_counts_the_rest():
    recorder = Recorder(limit=2, clock=iter([10.0, 11.0, 13.0]).__next__)
    for clock in range(5):
        recorder("push", 1, clock, 7)
    assert recorder.events == [Event(1.0, "push", 1, 0, 7), Event(3.0, "push", 1, 1, 7)]
    assert recorder.missed == 3


def test_durations_of_workers_that_never_fetched_are_no_time():
    events = [
        Event(1.0, "fetch", 2, 0, 0),
        Event(3.5, "push", 2, 0, 0),
        Event(4.0, "leave", 2, 1, 1),
    ]
    assert durations(events) == [[0.0], [0.0], [2.5]]
    assert durations([]) == []


# --- files ------------------------------------------------------------------------------------


def test_a_record_comes_back_from_its_file(tmp_path):
    events = [Event(0.1 + 0.2, "join", 0, 0, 0), Event(1.0, "fetch", 0, 0, 0)]
    write_record(tmp_path / "run", events, {"epochs": 3})
    assert read_record(tmp_path / "run") == events
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-40],
        lambda text: text.split("\n", 1)[1],
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text + '[1.0, "push", 0]\n',
        lambda text: text.replace('"fetch"', "fetch"),
        lambda text: "",
        lambda text: "[1]\n",
    ],
)
def test_a_file_that_is_not_all_of_a_record_is_refused(tmp_path, change):
    path = tmp_path / "run"
    write_record(path, [Event(0.0, "join", 0, 0, 0), Event(1.0, "fetch", 0, 0, 0)], {})
    path.write_text(change(path.read_text()))
    with pytest.raises(InvalidCall, match="is not a record: "):
        read_record(path)
    with pytest.raises(InvalidCall, match="is not a record: "):
        read_record(tmp_path / "elsewhere")


def test_what_is_no_record_is_refused():
    for events in (5, [(1, 2)]):
        with pytest.raises(InvalidCall, match="events must be those of a record: "):
            replay(events, "logistic", (np.eye(2), np.ones(2)), workers=1)
    with pytest.raises(InvalidCall, match="points must be a whole number >= 1; it is -1"):
        replay([], "logistic", (np.eye(2), np.ones(2)), workers=1, points=-1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"record": "/no/such/folder/run"}, "record is '/no/such/folder/run'; it must name a file"),
        ({"record": 7}, "record is 7; it must name a file"),
        ({"record": "run", "resume": "there"}, "record is for a run from its start"),
    ],
)
def test_a_run_that_cannot_be_recorded_is_refused_before_it_begins(more, message):
    with pytest.raises(InvalidCall, match=message):
        ModelServer(np.zeros(2), **more)


# --- real Spark -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spark(start, folder) -> SparkSession:
    return start(LOCAL, folder)


def on_spark(spark, data, path=None, **options):
    """Train with two workers on Spark, and record it."""
    rows = Dataset.from_arrays(spark, *data, n_partitions=2)
    of_server = {name: options.pop(name) for name in ("updater", "consistency", "penalty")}
    with ModelServer(np.zeros(5), record=path, **of_server) as server:
        return server.train(rows, "logistic", progress=False, **options)


@pytest.mark.spark
@pytest.mark.parametrize("policy", [asp(), ssp(1), ssp(1, lease=30.0)], ids=repr)
def test_o1_a_run_on_spark_is_replayed_bit_for_bit(spark, tmp_path, policy):
    data, options = the_call(policy, updater=momentum(0.05), epochs=10)
    found = on_spark(spark, data, tmp_path / "run.jsonl", **options)
    again = replay(read_record(tmp_path / "run.jsonl"), "logistic", data, workers=2, **options)
    assert again.success and again.nit == found.nit == 400
    assert_array_equal(again.x, found.x)
    assert again.staleness == found.staleness and again.counts == found.counts


@pytest.mark.spark
def test_cocoa_on_spark_is_the_simulated_one_bit_for_bit(spark):
    data = tuple(random_block(120, 5, 4))
    options = {"method": "cocoa", "rounds": 2, "penalty": L2(0.1), "batch_size": 7, "epochs": 4}
    rows = Dataset.from_arrays(spark, *data, n_partitions=2)
    found = minimize("hinge", rows, progress=False, **options)
    simulated = simulate("hinge", data, workers=2, latency=exponential(1.0), **options)
    assert_array_equal(simulated.x, found.x)
    assert simulated.counts == found.counts and simulated.fun == pytest.approx(found.fun)


@pytest.mark.spark
def test_o1_minimize_records_too_and_the_method_is_named_alike(spark, tmp_path):
    data, path = tuple(random_block(120, 5, 4)), str(tmp_path / "run.jsonl")
    options = {"method": "easgd", "alpha": 0.3, "tau": 2, "batch_size": 6, "epochs": 4}
    rows = Dataset.from_arrays(spark, *data, n_partitions=2)
    found = minimize("logistic", rows, penalty=L2(0.1), progress=False, record=path, **options)
    again = replay(read_record(path), "logistic", data, workers=2, penalty=L2(0.1), **options)
    assert again.success
    assert_array_equal(again.x, found.x)


@pytest.mark.spark
def test_a_record_holds_one_run_from_its_start(spark, tmp_path, caplog):
    path = tmp_path / "run.jsonl"
    rows = Dataset.from_arrays(spark, *random_block(20, 5, 4), n_partitions=2)
    with ModelServer(np.zeros(5), record=path) as server:
        server.train(rows, "logistic", progress=False)
        first = path.read_bytes()
        with pytest.raises(InvalidCall, match="holds one run; another one needs a server of its"):
            server.train(rows, "logistic", progress=False)
    assert path.read_bytes() == first and list(tmp_path.iterdir()) == [path]

    class Restarted:
        restarts = 1

        def ask(self, name):
            return [], 0

    keep_record(Restarted(), tmp_path / "other", {})
    assert "other has not been written: the server was started again 1 times" in caplog.text
    assert not (tmp_path / "other").exists()


@pytest.mark.spark
def test_under_bsp_a_run_on_spark_is_the_simulated_one_bit_for_bit(spark):
    data, options = the_call(bsp(), updater=momentum(0.05))
    found = on_spark(spark, data, **options)
    simulated = simulate("logistic", data, workers=2, latency=exponential(1.0), **options)
    assert_array_equal(simulated.x, found.x)
    assert simulated.counts == found.counts and simulated.nit == found.nit

"""The passes of the resident engine: in this process by steps, through its routes, and for real."""

from __future__ import annotations

import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from werkzeug.test import create_environ, run_wsgi_app
from werkzeug.wrappers import Response

from sparkdist import wire
from sparkdist.blocks import Partial
from sparkdist.client import Address, PassClient, Worker
from sparkdist.client.connection import Reply
from sparkdist.errors import DecodeError, ServerUnavailable, StaleRun
from sparkdist.server import passes as passes_module
from sparkdist.server.coordinator import Coordinator
from sparkdist.server.pass_setup import PassSetup
from sparkdist.server.passes import Passes, Task
from sparkdist.server.supervisor import Supervisor, reserve_port
from sparkdist.wire import CONTENT_TYPE, decode, encode
from sparkdist.workers import resident

pytestmark = pytest.mark.long

TOKEN, HOST, RUN, D = "0123456789abcdef" * 4, "127.0.0.1:4711", "run1", 3
W, V = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
#: Of each portion; partition 2 has one of its own, and partition 3 comes first.
PARTITIONS = (3, 0, 0, 0, 0, 0, 2, 1, 1, 1, 3, 3, 1, 1)
LONG = 3600.0


class Clock:
    """Time that goes on when a test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(passes_module, "time", one)
    return one


def begun(partitions: Sequence[int] = PARTITIONS, idle: float = LONG) -> Passes:
    passes = Passes(idle)
    passes.begin(RUN, D, partitions)
    return passes


def start(passes: Passes, number: int = 1, *vectors: Any) -> None:
    """Begin a pass, and do not wait for it."""
    assert passes.evaluate(number, "value_and_grad", vectors or (W,), 0.0) == ("busy", None)


def ask(passes: Passes, worker: str, *own: int, place: str = "here", **more: Any) -> Task:
    """Ask for portions without waiting."""
    given = {"run": RUN, "seen": 0, "seconds": 0.0} | more
    return passes.work(worker=worker, own=own, place=place, **given)


def sums_of(portions: Sequence[int], size: int = D) -> np.ndarray:
    """Rows whose total depends on the order of the additions."""
    rows = np.empty((len(portions), size + 2))
    for row, number in zip(rows, portions, strict=True):
        drawn = np.random.default_rng(number)
        row[:] = drawn.normal(size=size + 2) * 10.0 ** drawn.integers(-8, 8, size + 2)
    return rows


def in_two(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss and weight; gradients."""
    return rows[:, :2], rows[:, 2:]


def bring(passes: Passes, portions: Sequence[int], number: int = 1) -> None:
    passes.bring(RUN, number, portions, *in_two(sums_of(portions)))


def total_by_hand(partitions: Sequence[int]) -> list[float]:
    """Loss, weight, gradient: portions of a partition in order, then partitions in order."""
    sums: dict[int, list[float]] = {}
    for number, partition in enumerate(partitions):
        row = sums_of([number])[0].tolist()
        before = sums.get(partition)
        sums[partition] = [a + b for a, b in zip(before, row, strict=True)] if before else row
    first, *others = (sums[partition] for partition in sorted(sums))
    for row in others:
        first = [a + b for a, b in zip(first, row, strict=True)]
    return first


def in_a_row(total: Partial | None) -> list[float]:
    assert total is not None
    return [total.loss, total.weight, *total.grad.tolist()]


def total_of(passes: Passes, number: int = 1) -> list[float]:
    state, total = passes.wait_for(number, 0.0)
    assert state == "done"
    return in_a_row(total)


# --- D5: any schedule ---------------------------------------------------------------------------


class Chaos:
    """Workers of a pass, one step at a time: a tenth of the results come twice, workers die,
    answers are lost, and time jumps so that there are copies, if there are to be any.
    """

    def __init__(self, seed: int, clock: Clock, *, copies: bool):
        self.random, self.clock, self.copies = random.Random(seed), clock, copies
        self.passes, self.lives = begun(), 0
        self.old: list[tuple[int, ...]] = []
        self.names, self.hands = dict[int, str](), dict[int, tuple[int, ...]]()
        for partition in range(4):
            self.new_life(partition)

    def new_life(self, partition: int) -> None:
        self.lives += 1
        self.names[partition] = f"life{self.lives}"
        self.hands[partition] = ()

    def run(self) -> list[float]:
        start(self.passes)
        for _ in range(5000):
            self.step(self.random.randrange(4))
            if self.passes.wait_for(1, 0.0)[0] == "done":
                return total_of(self.passes)
        raise AssertionError(f"no end in sight: {self.passes.status()}")

    def step(self, one: int) -> None:
        fate = self.random.random()
        if fate < 0.05:
            self.new_life(one)
        elif fate < 0.15:
            self.hands[one] = ()  # the answer was lost, and it asks again
        if self.copies:
            self.clock.now += self.random.choice([0.0, 0.01, 0.2])
        if self.hands[one]:
            bring(self.passes, self.hands[one])
            self.old.append(self.hands[one])
        if self.old and self.random.random() < 0.1:
            bring(self.passes, self.random.choice(self.old))
        place = f"place{one % 2}"
        self.hands[one] = ask(self.passes, self.names[one], one, place=place).portions


@pytest.mark.parametrize("copies", [False, True])
def test_d5_the_sums_are_the_same_bit_for_bit_whatever_happens(copies, clock):
    duplicates = 0
    for seed in range(60):
        chaos = Chaos(seed, clock, copies=copies)
        assert chaos.run() == total_by_hand(PARTITIONS)
        assert chaos.passes.counts["results"] == len(PARTITIONS)
        duplicates += chaos.passes.counts["duplicates"]
    assert duplicates > 60


# --- who gets what ------------------------------------------------------------------------------


def test_a_worker_gets_the_vectors_of_a_pass_once_and_its_number_and_kind(clock):
    passes = begun([0] * 8)
    passes.evaluate(7, "hessp", (W, V), 0.0)
    task = ask(passes, "a", 0)
    assert (task.status, task.number, task.kind, task.portions) == ("work", 7, "hessp", (0, 1))
    assert (task.vectors, task.n_vectors) == (W.tobytes() + V.tobytes(), 2)
    bring(passes, task.portions, 7)
    task = ask(passes, "a", 0, seen=7)
    assert (task.portions, task.vectors, task.n_vectors) == ((2, 3), None, 0)


def test_another_life_of_a_worker_gets_what_the_dead_one_had(clock):
    passes = begun([0, 0, 0, 0, 0])
    start(passes)
    assert ask(passes, "first", 0).portions == (0, 1)
    gotten = []
    for _ in range(5):
        gotten.append(ask(passes, "second", 0).portions)
        bring(passes, gotten[-1])
    assert gotten == [(2,), (3,), (4,), (0,), (1,)]
    assert total_of(passes) == total_by_hand([0] * 5)


def test_r5_a_worker_whose_answer_was_lost_gets_its_portions_again(clock):
    passes = begun([0])
    start(passes)
    first = ask(passes, "a", 0)
    assert ask(passes, "a", 0) == first
    bring(passes, first.portions)
    assert total_of(passes) == total_by_hand([0])


def test_a_late_portion_goes_to_another_at_the_same_place_after_a_tenth_of_a_second(clock):
    passes = begun([0, 1, 2])
    start(passes)
    assert ask(passes, "a", 0).portions == (0,)
    for worker, own, place in (("b", 1, "here"), ("c", 2, "there")):
        bring(passes, ask(passes, worker, own, place=place).portions)
    clock.now += 0.09
    assert ask(passes, "b", 1).status == "wait"
    clock.now += 0.011
    assert ask(passes, "c", 2, place="there").status == "wait"
    assert ask(passes, "b", 1).portions == (0,)
    bring(passes, [0])
    bring(passes, [0])  # the slow one, at last
    assert total_of(passes) == total_by_hand([0, 1, 2])
    assert passes.counts == {"results": 3, "duplicates": 1, "passes": 1}


def test_late_is_three_times_what_portions_usually_take(clock):
    passes = begun([0] * 8 + [1])
    start(passes)
    two = ask(passes, "a", 0).portions
    clock.now += 4.0  # 2 s a portion: late after 6
    bring(passes, two)
    start(passes, 2)
    assert ask(passes, "a", 0).portions == (0, 1)
    for number in (2, 3, 4, 5, 6, 7, 8):
        bring(passes, [number], 2)
    clock.now += 11.9
    assert ask(passes, "b", 1).status == "wait"
    clock.now += 0.2
    assert ask(passes, "b", 1).portions == (0,)


def test_homes_of_a_run_are_forgotten_with_it(clock):
    passes = begun([0, 1])
    start(passes)
    bring(passes, ask(passes, "a", 0).portions)
    passes.begin("run2", D, passes._partitions)
    passes.evaluate(2, "value_and_grad", (W,), 0.0)
    # Whether the blocks of 0 are still here is not known before its worker comes.
    task = passes.work("run2", "b", (1,), "here", 0, 0.0)
    assert task.portions == (1,)
    passes.bring("run2", 2, [1], *in_two(sums_of([1])))
    assert passes.work("run2", "b", (1,), "here", 0, 0.0).status == "wait"


# --- what is refused or ignored -----------------------------------------------------------------


def test_results_of_another_pass_are_counted_and_change_nothing(clock):
    passes = begun([0, 0])
    bring(passes, [0], 0)
    start(passes, 1)
    bring(passes, [0], 1)
    start(passes, 2)
    for number in (0, 1, 3):
        passes.bring(RUN, number, [0, 1], *in_two(sums_of([0, 1], size=9)))
    assert passes.counts == {"results": 1, "duplicates": 7, "passes": 0}
    bring(passes, [1, 0], 2)
    assert total_of(passes, 2) == total_by_hand([0, 0])
    assert passes.counts == {"results": 3, "duplicates": 7, "passes": 1}


def test_portions_that_do_not_exist_are_counted_and_change_nothing(clock):
    passes = begun([0, 0])
    start(passes)
    bring(passes, [2, 10**8])
    bring(passes, [1, 1, 0])
    assert total_of(passes) == total_by_hand([0, 0])
    assert passes.counts == {"results": 2, "duplicates": 3, "passes": 1}


@pytest.mark.parametrize("shape", [(2, D + 1), (2, D + 3), (1, D + 2), (3, D + 2), (0, D + 2)])
def test_r21_sums_that_do_not_fit_are_refused_and_nothing_of_them_is_kept(shape, clock):
    passes = begun([0, 0])
    start(passes)
    with pytest.raises(DecodeError, match=r"the pass needs \(\(2, 2\), \(2, 3\)\)"):
        passes.bring(RUN, 1, [0, 1], *in_two(np.zeros(shape)))
    with pytest.raises(DecodeError, match=r"the pass needs \(\(2, 2\), \(2, 3\)\)"):
        passes.bring(RUN, 1, [0, 1], np.zeros((2, 3)), np.zeros((2, 3)))
    assert passes.counts == {"results": 0, "duplicates": 0, "passes": 0}
    bring(passes, [0, 1])
    assert total_of(passes) == total_by_hand([0, 0])


def test_the_sums_of_a_pass_may_have_another_width_than_its_vectors(clock):
    passes = begun([0, 0])
    passes.evaluate(1, "metric", (W,), 0.0, 9)
    with pytest.raises(DecodeError, match=r"the pass needs \(\(2, 2\), \(2, 9\)\)"):
        passes.bring(RUN, 1, [0, 1], *in_two(np.zeros((2, D + 2))))
    passes.bring(RUN, 1, [0, 1], np.ones((2, 2)), np.ones((2, 9)))
    state, total = passes.wait_for(1, 0.0)
    assert state == "done"
    assert total.grad.tolist() == [2.0] * 9


def test_r6_workers_of_another_run_are_refused_at_every_door(clock):
    passes = begun([0])
    start(passes)
    before = passes.status()
    for run in ("run0", "", "run1 "):
        with pytest.raises(StaleRun):
            ask(passes, "zombie", 0, run=run)
        with pytest.raises(StaleRun):
            passes.bring(run, 1, [0], *in_two(sums_of([0])))
        with pytest.raises(StaleRun):
            passes.miss(run, [0])
    assert passes.status() == before
    assert ask(passes, "a", 0).portions == (0,)


# --- waiting ------------------------------------------------------------------------------------


class Waiting(threading.Thread):
    """A call in a thread of its own; its result is asked for with a bound for hanging."""

    def __init__(self, function: Any, *arguments: Any):
        super().__init__(daemon=True)
        self.call, self.found, self.error = (function, arguments), None, None
        self.start()

    def run(self) -> None:
        function, arguments = self.call
        try:
            self.found = function(*arguments)
        except Exception as error:
            self.error = error

    def result(self) -> Any:
        self.join(20)
        assert not self.is_alive(), "it hangs"
        if self.error is not None:
            raise self.error
        return self.found


def wait_until_it_waits(passes: Passes) -> None:
    """Until somebody waits inside: then its lock is free, and there is a waiter."""
    deadline = time.monotonic() + 30
    while not passes._changed._waiters:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_waiting_worker_gets_the_next_pass_and_the_driver_its_total():
    passes = begun([0])
    worker = Waiting(passes.work, RUN, "a", (0,), "here", 0, 300.0)
    wait_until_it_waits(passes)
    driver = Waiting(passes.evaluate, 1, "value_and_grad", (W,), 300.0)
    assert worker.result().portions == (0,)
    wait_until_it_waits(passes)
    bring(passes, [0])
    state, total = driver.result()
    assert (state, in_a_row(total)) == ("done", total_by_hand([0]))


def test_a_waiting_worker_is_sent_home_at_the_end():
    passes = begun([0])
    worker = Waiting(passes.work, RUN, "a", (0,), "here", 0, 300.0)
    wait_until_it_waits(passes)
    passes.end()
    assert worker.result() == Task("over")


def test_r6_a_waiting_worker_is_told_that_another_run_has_begun():
    passes = begun([0])
    worker = Waiting(passes.work, RUN, "a", (0,), "here", 0, 300.0)
    wait_until_it_waits(passes)
    passes.begin("run2", D, passes._partitions)
    with pytest.raises(StaleRun):
        worker.result()


def test_a_waiting_worker_takes_a_late_portion_when_it_is_late():
    passes = begun([0, 1])
    start(passes)
    bring(passes, ask(passes, "b", 1).portions)
    assert ask(passes, "a", 0).portions == (0,)
    assert Waiting(passes.work, RUN, "b", (1,), "here", 0, 300.0).result().portions == (0,)


def test_whoever_cannot_take_a_late_portion_sleeps_on(monkeypatch):
    asked = []
    hand_out = Coordinator.hand_out

    def counting(self, worker, *arguments):
        asked.append(worker)
        return hand_out(self, worker, *arguments)

    monkeypatch.setattr(Coordinator, "hand_out", counting)
    passes = begun([0, 1])
    start(passes)
    bring(passes, ask(passes, "b", 1, place="there").portions)
    assert ask(passes, "a", 0).portions == (0,)
    # 0.3 s of which 0.2 are after the portion has become late; looking every millisecond is 200.
    assert ask(passes, "b", 1, place="there", seconds=0.3).status == "wait"
    assert asked.count("b") < 10


def test_a_worker_is_told_to_ask_again_when_its_time_is_over(clock):
    passes = begun([0])
    assert ask(passes, "a", 0) == Task("wait")
    assert ask(passes, "a", 0, seconds=-5.0) == Task("wait")


# --- the end and the beginning ------------------------------------------------------------------


def test_workers_go_home_when_there_was_no_pass_for_long(clock):
    passes = begun([0], idle=5.0)
    clock.now += 5.0
    assert ask(passes, "a", 0).status == "wait"
    start(passes)
    clock.now += 100.0
    assert ask(passes, "a", 0).portions == (0,)  # a pass that takes long is no rest
    bring(passes, [0])
    clock.now += 4.9
    assert ask(passes, "a", 0).status == "wait"
    clock.now += 0.2
    assert ask(passes, "a", 0).status == "over"
    assert passes.status()["over"] is True
    assert passes.evaluate(2, "value_and_grad", (W,), 0.0) == ("over", None)
    passes.begin(RUN, D, [0])
    assert ask(passes, "a", 0).status == "wait"


def test_the_driver_can_get_a_total_for_which_nobody_waited_in_time(clock):
    passes = begun([0])
    start(passes)
    bring(passes, [0])
    passes.end()
    assert total_of(passes) == total_by_hand([0])


def test_an_end_in_the_middle_of_a_pass_is_told_to_both_sides(clock):
    passes = begun([0, 0])
    start(passes)
    ask(passes, "a", 0)
    passes.end()
    assert passes.wait_for(1, 0.0) == ("over", None)
    assert ask(passes, "a", 0).status == "over"


def test_before_the_first_run_the_driver_is_told_so_and_workers_wait_for_it():
    passes = Passes(LONG)
    assert passes.evaluate(1, "value_and_grad", (W,), 0.0) == ("over", None)
    assert passes.wait_for(1, 0.0) == ("over", None)
    assert ask(passes, "a", 0).status == "wait"
    early = [Waiting(partial(ask, passes, "a", 0, seconds=60.0)), Waiting(passes.miss, RUN, [1])]
    other = Waiting(partial(ask, passes, "b", 1, run="another", seconds=60.0))
    passes.begin(RUN, D, (0, 1))
    start(passes)
    assert early[0].result().portions == (0,)
    early[1].result()
    assert passes.wait_for(1, 0.0) == ("missing", None)
    with pytest.raises(StaleRun):
        other.result()


def test_a_pass_of_an_earlier_server_or_run_is_unknown(clock):
    passes = begun([0])  # as after a restart
    assert passes.wait_for(8, 0.0) == ("unknown", None)
    bring(passes, [0], 8)
    start(passes, 8)
    assert passes.wait_for(7, 0.0) == ("unknown", None)
    passes.begin("run2", D, passes._partitions)
    assert passes.wait_for(8, 0.0) == ("unknown", None)


def test_missing_blocks_are_told_until_another_run_begins():
    passes = begun([0, 1])
    driver = Waiting(passes.evaluate, 1, "value_and_grad", (W,), 300.0)
    wait_until_it_waits(passes)
    passes.miss(RUN, [1])
    assert driver.result() == ("missing", None)
    assert passes.wait_for(1, 0.0) == ("missing", None)
    passes.begin("run2", D, passes._partitions)
    start(passes, 2)


def test_a_pass_that_is_done_is_done_though_blocks_are_missing(clock):
    passes = begun([0])
    start(passes)
    bring(passes, [0])
    passes.miss(RUN, [0])
    assert total_of(passes) == total_by_hand([0])


def test_r50_everything_is_counted(clock):
    passes = begun([0, 1])
    assert passes.status() == {
        **{"run": RUN, "pass": 0, "over": False, "portions": 2, "workers": 0},
        **{"results": 0, "duplicates": 0, "passes": 0},
    }
    for number in (1, 2):
        start(passes, number)
        for worker, own in (("a", 0), ("b", 1), ("a", 0)):
            bring(passes, ask(passes, worker, own).portions, number)
    bring(passes, [0, 1], 2)
    assert passes.status() == {
        **{"run": RUN, "pass": 2, "over": False, "portions": 2, "workers": 2},
        **{"results": 4, "duplicates": 2, "passes": 2},
    }
    passes.begin("run2", D, passes._partitions)
    assert passes.status()["workers"] == 0


# --- the routes ---------------------------------------------------------------------------------

FIELDS = {"run": RUN, "worker": "a", "partitions": "0", "place": "here", "seen": 0, "wait": 0.0}
GETS, POSTS = ("/healthz", "/v1/status"), ("/v1/bring", "/v1/miss", "/v1/work")
ROUTES = [(m, p) for m in ("GET", "HEAD", "OPTIONS") for p in GETS]
ROUTES += [(m, p) for m in ("OPTIONS", "POST") for p in POSTS]
every_post = pytest.mark.parametrize("path", POSTS)


class Served(SimpleNamespace):
    """The app of a PassSetup, asked past any client; a pass has begun."""

    @classmethod
    def make(cls, partitions: Sequence[int] = (0, 0), dtype: str = "<f8") -> Served:
        hosts = frozenset({HOST})
        setup = PassSetup(
            LONG,
            "127.0.0.1",
            4711,
            hosts,
            TOKEN,
            dtype,
            run=RUN,
            size=D,
            partitions=tuple(partitions),
        )
        return cls(setup=setup, service=setup.service())

    def __getattr__(self, name: str) -> Any:
        return self.service.commands[name]

    def begin_pass(self) -> Served:
        assert self.evaluate(1, "value_and_grad", (W,), 0.0)[0] == "busy"
        return self

    def post(self, path: str, body: bytes, **changed: str) -> Response:
        return self.ask("POST", path, body, **changed)

    def ask(self, method: str, path: str, body: bytes = b"", **changed: str) -> Response:
        headers = {"Host": HOST, "Authorization": f"Bearer {TOKEN}", "Content-Type": CONTENT_TYPE}
        environ = create_environ(path, method=method, data=body, headers=headers | changed)
        return Response(*run_wsgi_app(self.service.app, environ))


@pytest.fixture
def served() -> Served:
    return Served.make().begin_pass()


def body_of(
    path: str, sums: Any = None, dtype: str = "<f8", totals: Any = None, **changed: Any
) -> bytes:
    """A good body of a route, but for what is changed; None leaves a field out."""
    more = {"/v1/bring": {"pass": 1, "portions": "0"}, "/v1/miss": {"partitions": "0"}}
    fields = FIELDS | more.get(path, {}) | changed
    fields = {name: value for name, value in fields.items() if value is not None}
    if path != "/v1/bring":
        return encode(fields)
    sums = np.zeros((1, D)) if sums is None else sums
    parts = [np.zeros((1, 2)) if totals is None else totals, sums.astype(dtype)]
    entries = [wire.Entry("totals", parts[0].dtype.str, parts[0].shape)]
    return encode(fields, [*entries, wire.Entry("grads", dtype, sums.shape)], parts)


def error_of(response: Response) -> tuple[int, str]:
    assert set(response.json) == {"error", "message"}
    return response.status_code, response.json["error"]


def test_the_routes_of_a_resident_job_are_these(served):
    rules = served.service.app.url_map.iter_rules()
    assert sorted((m, r.rule) for r in rules for m in r.methods) == sorted(
        (method, path) for method, path in ROUTES if method != "OPTIONS"
    )


def test_every_route_answers_whoever_has_the_token(served):
    assert served.ask("GET", "/healthz").json == {"alive": True}
    assert served.ask("GET", "/v1/status").json == served.status()
    work = decode(served.post("/v1/work", body_of("/v1/work")).data)
    assert work.fields == {"status": "work", "pass": 1, "kind": "value_and_grad", "portions": "0"}
    assert work.arrays()["vectors"].tolist() == [W.tolist()]
    following = decode(served.post("/v1/bring", body_of("/v1/bring", seen=1)).data)
    assert (following.fields["portions"], following.entries) == ("1", ())
    served.post("/v1/bring", body_of("/v1/bring", portions="1"))
    waiting = served.post("/v1/work", body_of("/v1/work"))
    assert (waiting.status_code, decode(waiting.data).fields["status"]) == (503, "wait")
    missed = served.post("/v1/miss", body_of("/v1/miss"))
    assert (missed.status_code, decode(missed.data).fields["status"]) == (200, "ok")
    served.end()
    over = served.post("/v1/work", body_of("/v1/work"))
    assert (over.status_code, decode(over.data).fields["status"]) == (200, "over")


class Unread:
    """A body that must not be read."""

    def read(self, *size: int) -> bytes:
        raise AssertionError("the body was read")


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_r37_every_route_but_healthz_needs_the_token(served, method, path):
    before = served.status()
    is_open = path == "/healthz" and method != "OPTIONS"
    right = {"Host": HOST, "Content-Type": CONTENT_TYPE, "Content-Length": "100"}
    for given in (None, "", "Bearer ", TOKEN, f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}0"):
        headers = right | ({} if given is None else {"Authorization": given})
        environ = create_environ(path, method=method, headers=headers) | {"wsgi.input": Unread()}
        response = Response(*run_wsgi_app(served.service.app, environ))
        expected = 200 if is_open else 401
        assert response.status_code in ({405, 401} if method == "OPTIONS" else {expected})
        assert TOKEN.encode() not in response.data
    assert served.status() == before


def test_r39_the_setup_does_not_show_the_token(served):
    assert TOKEN not in repr(served.setup) + str(served.setup)


@every_post
def test_r40_a_web_page_cannot_ask(served, path):
    before = served.status()
    body = body_of(path)
    assert error_of(served.post(path, body, Origin="null")) == (403, "origin")
    assert error_of(served.post(path, body, Host="evil.example")) == (400, "host")
    assert error_of(served.post(path, body, **{"Content-Type": "text/plain"})) == (415, "type")
    assert served.status() == before


@every_post
def test_r20_a_body_that_was_cut_or_changed_changes_nothing(served, path):
    before, body = served.status(), body_of(path)
    for length in range(1, len(body), 5):
        assert error_of(served.post(path, body[:length])) == (400, "frame")
        changed = body[:length] + bytes([body[length] ^ 1]) + body[length + 1 :]
        assert error_of(served.post(path, changed)) == (400, "frame")
    assert served.status() == before


BAD_IDS = [None, "", "a b", "../a", "\0", "a" * 65, 1, True, 1.5, "r\u00fcn"]
BAD_COUNTS = [None, -1, 1.0, True, "1", 2**53]
BAD_LISTS = [None, 0, True, "0,", ",0", "0,,1", "-1", "1.0", " 0", "0x1", "\u0661", "1" * 10]
BAD_LISTS += [
    "1-",
    "0-1-2",
    "1-0",
    "0-999999999",
    "0-2",
    "0,1,2",
    "0-1,2",
]  # there are two portions
MALFORMED = [
    *((path, "run", bad) for path in POSTS for bad in BAD_IDS),
    *((path, "partitions", bad) for path in POSTS for bad in BAD_LISTS),
    *((path, name, bad) for path in ("/v1/work", "/v1/bring") for name, bad in (
        *(("worker", bad) for bad in BAD_IDS), *(("place", bad) for bad in BAD_IDS),
        *(("seen", bad) for bad in BAD_COUNTS),
        *(("wait", bad) for bad in (True, "1", 10**301)),
    )),
    *(("/v1/bring", "pass", bad) for bad in BAD_COUNTS),
    *(("/v1/bring", "portions", bad) for bad in BAD_LISTS),
]  # fmt: skip


def test_r21_fields_that_are_malformed_change_nothing(served):
    before = served.status()
    for path, name, bad in MALFORMED:
        response = served.post(path, body_of(path, **{name: bad}))
        assert error_of(response) == (400, "frame"), (path, name, bad)
        assert response.json["message"].startswith(name)
    assert served.status() == before
    assert served.fault() is None


def test_r21_sums_of_another_shape_or_type_change_nothing(served):
    before = served.status()
    for shape in ((D,), (1, 1, D), (), (2, D), (1, D - 1), (1, D + 1), (0, D)):
        body = body_of("/v1/bring", np.zeros(shape))
        assert error_of(served.post("/v1/bring", body)) == (400, "frame")
    # Of a pass that is over, too: it would be counted.
    late = body_of("/v1/bring", np.zeros(D), **{"pass": 9})
    assert error_of(served.post("/v1/bring", late)) == (400, "frame")
    single = body_of("/v1/bring", np.zeros((1, D)), "<f4")
    assert error_of(served.post("/v1/bring", single)) == (400, "frame")
    for totals in (np.zeros((1, 2), "<f4"), np.zeros((1, 3)), np.zeros((2, 2)), np.zeros(2)):
        wrong = body_of("/v1/bring", totals=totals)
        assert error_of(served.post("/v1/bring", wrong)) == (400, "frame")
    fields = FIELDS | {"pass": 1, "portions": "0"}
    assert error_of(served.post("/v1/bring", encode(fields))) == (400, "frame")
    parts = [np.zeros((1, 2)), np.zeros(1), np.zeros(1, "<i4")]
    both = [wire.Entry("totals", "<f8", (1, 2)), wire.Entry("grads", "<f8", (1, D), 1, "<i4")]
    sparse = encode(fields, both, parts)
    assert error_of(served.post("/v1/bring", sparse)) == (400, "frame")
    assert served.status() == before


def test_arrays_where_none_are_expected_are_refused(served):
    zero = np.zeros(1)
    for path in ("/v1/work", "/v1/miss"):
        body = encode(FIELDS, wire.entries_of({"sums": zero}), [zero])
        assert error_of(served.post(path, body)) == (400, "frame")


@every_post
def test_r6_the_wrong_run_is_409(served, path):
    before = served.status()
    assert error_of(served.post(path, body_of(path, run="run0"))) == (409, "run")
    assert served.status() == before


@every_post
def test_r24_a_body_that_is_longer_than_all_sums_is_refused_before_it_is_read(served, path):
    room = wire.HEADER_LIMIT + wire.PRELUDE_BYTES
    # Both portions, each with D elements, loss and weight of 8 bytes.
    limit = room + (2 * (D + 2) * 8 if path == "/v1/bring" else 0)
    headers = {"Host": HOST, "Authorization": f"Bearer {TOKEN}", "Content-Type": CONTENT_TYPE}
    for length in (limit + 1, 2 << 30):
        environ = create_environ(path, method="POST", headers=headers)
        environ |= {"CONTENT_LENGTH": str(length), "wsgi.input": Unread()}
        response = Response(*run_wsgi_app(served.service.app, environ))
        assert error_of(response) == (413, "too_large")
    assert error_of(served.post(path, bytes(limit))) == (400, "frame")


def test_r44_an_exception_is_told_to_the_driver_and_not_to_the_worker(served, monkeypatch):
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("the secret")

    monkeypatch.setattr(Coordinator, "hand_out", fail)
    response = served.post("/v1/work", body_of("/v1/work"))
    assert error_of(response) == (500, "fault")
    assert b"secret" not in response.data
    assert "ZeroDivisionError: the secret" in served.fault()


# --- the client and the loop of a worker --------------------------------------------------------


class Through:
    """A connection to an app in this process; loses some answers after they were given."""

    def __init__(self, served: Served, losing: float = 0.0, seed: int = 0):
        self.served, self.losing, self.random = served, losing, random.Random(seed)

    def post(self, path: str, frame: Sequence[Any], deadline: float) -> Reply:
        response = self.served.post(path, b"".join(bytes(piece) for piece in frame))
        if self.random.random() < self.losing:
            raise ConnectionResetError("the answer was lost")
        return Reply(response.status_code, response.content_type, memoryview(response.data))

    def close(self) -> None:
        pass


def client_of(
    connection: Any,
    own: Sequence[int] = (0,),
    worker: str = "a",
    dtype: str = "<f8",
) -> PassClient:
    address = Address("127.0.0.1", 4711, TOKEN, RUN)
    client = PassClient(address, Worker(worker, own, "here"), np.dtype(dtype), 1000, patience=20.0)
    client._connection = connection
    return client


def compute(kind: str, vectors: Any, portion: int) -> Partial:
    """Whole numbers, whose sums are exact."""
    first = vectors[0]
    return Partial(float(first[0]) * portion, first * (portion + 1.0), 1.0 if len(kind) else 0.0)


def expected_of(n: int, w: Any) -> list[float]:
    """By Gauss: portions 0 to n - 1 sum to n (n - 1) / 2."""
    return [w[0] * n * (n - 1) / 2, float(n), *(w * (n * (n + 1) / 2)).tolist()]


def test_a_client_says_what_a_worker_is_told():
    served = Served.make().begin_pass()
    client = client_of(Through(served))
    task = client.work()
    assert (task.status, task.number, task.portions) == ("work", 1, (0,))
    assert task.vectors.tolist() == [W.tolist()]
    task = client.bring(1, task.portions, [compute("k", task.vectors, 0)])
    assert (task.portions, task.vectors) == ((1,), None)
    client.miss([0])
    assert served.wait_for(1, 0.0) == ("missing", None)
    served.end()
    assert client.work().status == "over"


def test_messages_of_float32_are_rounded_once_each_way_and_added_in_float64():
    served = Served.make(dtype="<f4")
    third = np.array([1.0, -2.0, 3.0]) / 3
    served.evaluate(1, "k", (third.astype(np.float32),), 0.0)
    client = client_of(Through(served), dtype="<f4")
    client._me["wait"] = 0.0  # there is no more to come
    task, rounded = client.work(), third.astype(np.float32).astype(np.float64)
    assert task.vectors.dtype == np.float64
    assert task.vectors.tolist() == [rounded.tolist()]
    loss, weight = 1 / 3, 1e9 + 0.5  # which float32 does not hold
    for portion in (0, 1):
        client.bring(1, [portion], [Partial(loss, third * 10**portion, weight)])
    state, total = served.wait_for(1, 10.0)
    assert (state, total.loss, total.weight) == ("done", 2 * loss, 2 * weight)
    tenfold = (third * 10).astype(np.float32).astype(np.float64)
    assert total.grad.tolist() == (rounded + tenfold).tolist()


@pytest.mark.parametrize("change", [
    {"status": None}, {"pass": "1"}, {"pass": 1.0}, {"kind": 0}, {"portions": 3},
])  # fmt: skip
def test_an_answer_that_makes_no_sense_is_asked_for_again(change, monkeypatch):
    fields = {"status": "work", "pass": 1, "kind": "k", "portions": "0"}
    bad = memoryview(encode(fields | change))
    client = client_of(SimpleNamespace(post=lambda *a: Reply(200, CONTENT_TYPE, bad)))
    client._patience = 0.0
    with pytest.raises(ServerUnavailable, match=f"does not say its {next(iter(change))}"):
        client.work()


@pytest.mark.parametrize("losing", [0.0, 0.3])
def test_r5_workers_that_lose_answers_finish_every_pass_with_exact_sums(losing, monkeypatch):
    monkeypatch.setattr("sparkdist.client.asking._PAUSE", 0.001)
    partitions = [0] * 9 + [1] * 4 + [2]
    served = Served.make(partitions)
    workers = [
        Waiting(resident, client_of(Through(served, losing, own), [own], f"w{own}"), compute)
        for own in range(3)
    ]
    for number in range(1, 21):
        w = W * number
        state, total = served.evaluate(number, "value_and_grad", (w,), 30.0)
        assert (state, in_a_row(total)) == ("done", expected_of(14, w))
    served.end()
    worked = sum(worker.result() for worker in workers)
    counts = served.status()
    assert (counts["results"], counts["passes"]) == (20 * 14, 20)
    assert worked >= 20 * 14
    assert (counts["duplicates"] > 0) or not losing


# --- a real process -----------------------------------------------------------------------------


@pytest.fixture
def supervised() -> Iterator[tuple[Supervisor, Address]]:
    """A server process of four partitions with five portions each."""
    held = reserve_port("127.0.0.1")
    try:
        host, port = held.getsockname()[:2]
        hosts = frozenset({f"{host}:{port}"})
        partitions = tuple(number // 5 for number in range(20))
        setup = PassSetup(LONG, host, port, hosts, TOKEN, run=RUN, size=D, partitions=partitions)
        with Supervisor(setup, pickle.dumps, restarts=3) as supervisor:
            yield supervisor, Address(host, port, TOKEN, RUN)
    finally:
        held.close()


class Work:
    """The toy's sums; at one portion of one pass the server is killed first."""

    def __init__(self, supervisor: Supervisor, fatal: tuple[float, int]):
        self.supervisor, self.fatal, self.kills = supervisor, fatal, 0

    def __call__(self, kind: str, vectors: Any, portion: int) -> Partial:
        if not self.kills and (vectors[0][0], portion) == self.fatal:
            self.kills += 1
            os.kill(self.supervisor.pid, signal.SIGKILL)
        return compute(kind, vectors, portion)


def stay(address: Address, own: Sequence[int], work: Work) -> int:
    """Be a worker."""
    me, kind = Worker(f"w{own[0]}", own, "here"), np.dtype("<f8")
    with PassClient(address, me, kind, 1000, patience=60.0) as client:
        return resident(client, work)


def evaluate(supervisor: Supervisor, number: int, w: Any) -> list[float]:
    """The driver's loop: a pass that the server does not know is begun again."""
    state, total, deadline = "unknown", None, time.monotonic() + 60
    while state != "done":
        assert time.monotonic() < deadline
        if state == "unknown":
            state, total = supervisor.ask("evaluate", number, "value_and_grad", (w,), 0.5)
        else:
            assert state == "busy"
            state, total = supervisor.ask("wait_for", number, 0.5)
    return in_a_row(total)


@pytest.mark.process
def test_r11_kill_9_of_the_server_between_and_in_passes_changes_no_sum(supervised):
    supervisor, address = supervised
    # Portion 7 is one of a hand of several, in the middle of its partition; nobody else has it.
    work = Work(supervisor, fatal=(120.0, 7))
    workers = [Waiting(stay, address, own, work) for own in ([0, 1], [2, 3])]
    try:
        for number in range(1, 201):
            w = W * number
            assert evaluate(supervisor, number, w) == expected_of(20, w)
            if number == 60:
                os.kill(supervisor.pid, signal.SIGKILL)
    finally:
        supervisor.ask("end")
        worked = [worker.result() for worker in workers]
    assert sum(worked) >= 200 * 20
    assert (work.kills, supervisor.restarts) == (1, 2)

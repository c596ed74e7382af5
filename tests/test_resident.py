"""The resident engine on real Spark: the aggregate engine's bits, and workers that come and go.

What faults do to it is in ``test_resident_faults.py``.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark import SparkContext
from pyspark.sql import SparkSession
from sklearn.linear_model import LogisticRegression

from sparkdist import L1, L2, MLP, Dataset, Logistic, ResidentEngine, Result, Softmax, minimize
from sparkdist.blocks import Array, Block, Partial
from sparkdist.errors import InvalidCall, PassFailed, WorkersMissing
from sparkdist.spark.engines import crew
from tests.conftest import LOCAL, random_block
from tests.job_count import counted_jobs
from tests.test_minimize import NON_ZEROS, OPTIMA, PROBLEMS

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark(start: Callable[..., SparkSession], folder: Path) -> SparkSession:
    (folder / "events").mkdir()
    conf = {
        "spark.python.task.killTimeout": "200ms",  # which tests of Ctrl-C would mostly wait for
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": str(folder / "events"),
        "spark.eventLog.compress": "false",
    }
    return start(LOCAL, folder, alone=True, **conf)


@pytest.fixture(scope="module")
def only() -> Iterator[ExitStack]:
    """Holds the dataset that several tests use: the one before it is closed, and its slots free."""
    with ExitStack() as stack:
        yield stack


# --- the same bits --------------------------------------------------------------------------

#: Blocks of the partitions: three portions (17 = 8 + 8 + 1), none, less than one, two.
BLOCKS = [17, 0, 1, 9]


def in_blocks(spark: SparkSession, table: Block) -> Dataset:
    """Rows in partitions of so many blocks, more of them than there are task slots."""
    edges = np.linspace(0, len(table.y), sum(BLOCKS) + 1).astype(int)
    blocks = [tuple(a[i:j] for a in table) for i, j in zip(edges[:-1], edges[1:], strict=True)]
    parts = [[blocks.pop() for _ in range(count)] for count in BLOCKS]
    rdd = spark.sparkContext.parallelize(parts, len(parts)).flatMap(list)
    return Dataset.from_rdd(rdd)


def loss_of_my_own(w, X, y, weight):
    m = X @ w
    slope = weight * (1 / (1 + np.exp(-m)) - y)
    return weight @ (np.logaddexp(0, m) - y * m), X.T @ slope


PRE = "preconditioned_lbfgs"
#: Method, objective and options, as functions of the number of features.
CALLS: dict[str, Callable[[int], dict[str, Any]]] = {
    "gd": lambda d: {"method": "gd", "penalty": L2(0.1)},
    "lbfgs": lambda d: {"penalty": L2(1e-3), "intercept": True},
    "bounds": lambda d: {"penalty": L2(1e-3), "bounds": [(0, None)] * d},
    "owlqn": lambda d: {"method": "owlqn", "penalty": L1(1e-2), "intercept": True},
    "newton_cg": lambda d: {"method": "newton_cg", "penalty": L2(1e-3), "max_iter": 1},
    "metric": lambda d: {"method": PRE, "penalty": L2(1e-3), "intercept": True},
    "metric of softmax": lambda d: {"objective": Softmax(2), "method": PRE, "intercept": True},
    "softmax": lambda d: {"objective": Softmax(2), "penalty": L2(0.1), "intercept": True},
    "mlp": lambda d: {"objective": MLP((d, 3, 2))},
    "own": lambda d: {"objective": loss_of_my_own, "w0": np.zeros(d)},
}


def call(data: Dataset, name: str, engine: str) -> Result:
    options = {"objective": "logistic", "max_iter": 2, **CALLS[name](data.n_features)}
    options |= {"engine": engine, "deterministic": True, "progress": False}
    return minimize(options.pop("objective"), data, **options)


def status(data: Dataset) -> dict[str, Any]:
    """What the server of the resident workers has counted."""
    return data.crew._server.ask("status")


def passes_of(data: Dataset) -> int:
    """How many passes the resident workers' server has finished."""
    return status(data)["passes"] if data.crew and data.crew._seat else 0


def flat(model: Any) -> Array:
    """All parameters, in one vector."""
    arrays = model.values() if isinstance(model, dict) else [model]
    return np.concatenate([np.ravel(array) for array in arrays])


@pytest.fixture(scope="module", params=["dense", "sparse"])
def both(request: Any, spark: SparkSession, a9a: Block, only: ExitStack) -> tuple[Dataset, Any]:
    """Rows of one kind, and what the aggregate engine makes of them."""
    only.close()
    zero_or_one = a9a._replace(y=(a9a.y > 0).astype(float))
    rows = zero_or_one if request.param == "sparse" else random_block(700, 8, seed=3)
    data = only.enter_context(in_blocks(spark, rows))
    return data, {name: call(data, name, "aggregate") for name in CALLS}


@pytest.mark.parametrize("name", CALLS)
def test_every_method_and_objective_gives_the_bits_of_the_aggregate_engine(name, both):
    data, by_jobs = both
    expected, before = by_jobs[name], passes_of(data)
    found = call(data, name, "resident")
    assert passes_of(data) - before == found.passes == expected.passes > 2
    assert (found.fun, found.nit, found.message) == (expected.fun, expected.nit, expected.message)
    assert_array_equal(found.history.fun, expected.history.fun)
    assert_array_equal(flat(found.x), flat(expected.x))
    assert_array_equal(flat(found.jac), flat(expected.jac))


def test_a_metric_that_fits_but_for_an_intercept_goes_to_the_server(both, monkeypatch):
    data, _ = both
    n_portions = len(ResidentEngine(data)._crew._parts)
    monkeypatch.setattr(crew, "_MOST_BYTES", 8 * data.n_features**2 * n_portions)
    options = {"method": PRE, "penalty": L2(1e-3), "deterministic": True, "progress": False}
    expected = minimize("logistic", data, max_iter=2, engine="aggregate", **options)
    found = minimize("logistic", data, max_iter=2, engine="resident", **options)  # hires anew
    assert passes_of(data) == found.passes == expected.passes
    assert_array_equal(found.x, expected.x)


def test_a_large_metric_is_a_spark_job_of_the_same_bits(both, monkeypatch):
    data, by_jobs = both
    monkeypatch.setattr(crew, "_MOST_BYTES", 100)
    found = call(data, "metric", "resident")
    assert found.passes == by_jobs["metric"].passes
    assert_array_equal(flat(found.x), flat(by_jobs["metric"].x))


@pytest.mark.parametrize(
    ("problem", "method"),
    [("A-L2", "lbfgs"), ("A-L2", PRE), ("A-L1", "owlqn"), ("A-NN", "lbfgs")],
)
def test_the_known_optimum_is_reached(problem, method, adult):
    options = {**PROBLEMS[problem], "method": method, "progress": False}
    found = minimize("logistic", adult, engine="resident", **options)
    assert found.success, found.message
    assert_allclose(found.fun, OPTIMA[problem], rtol=1e-10)
    assert np.count_nonzero(found.x) == NON_ZEROS.get(problem, 123)


@pytest.fixture(scope="module")
def adult(spark: SparkSession, a9a: Block, only: ExitStack) -> Dataset:
    only.close()
    return only.enter_context(Dataset.from_arrays(spark, a9a.X, a9a.y, n_partitions=3))


# --- workers come and go -----------------------------------------------------------------------

SMALL = random_block(n=300, d=3, seed=5)
#: Seconds: a bound of waits that would be endless if something were wrong.
LONG = 60.0


@pytest.fixture
def small(spark: SparkSession, only: ExitStack) -> Iterator[Dataset]:
    only.close()
    with Dataset.from_arrays(spark, *SMALL, n_partitions=3) as data:
        yield data


def solve(data: Dataset, engine: Any = "resident", objective: Any = "logistic", **more: Any):
    options = {"penalty": L2(0.1), "engine": engine, "deterministic": True, "progress": False}
    return minimize(objective, data, **(options | more))


@pytest.fixture(scope="module")
def optimum(spark: SparkSession) -> float:
    """What scikit-learn, whose C is 1 / lambda over the sum of the weights, finds on SMALL."""
    X, y, weight = SMALL
    solver = LogisticRegression(C=10 / weight.sum(), fit_intercept=False, tol=1e-12)
    w = solver.fit(X, y, weight).coef_[0]
    return weight @ (np.logaddexp(0, X @ w) - y * (X @ w)) / weight.sum() + 0.05 * w @ w


def until(holds: Callable[[], object]) -> None:
    """Wait for something; the deadline only keeps a test from hanging."""
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def no_job(context: SparkContext) -> bool:
    return not context.statusTracker().getActiveJobsIds()


def meet(folder: Path, partition: int, rows: Iterator[Any]) -> Iterator[bool]:
    """Wait for the other task of two: it needs a slot as well."""
    (folder / str(partition)).touch()
    deadline = time.monotonic() + LONG
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    yield len(list(folder.iterdir())) == 2


def slots_are_free(context: SparkContext, folder: Path) -> bool:
    """Whether two tasks can run side by side."""
    folder.mkdir()
    return all(
        context.parallelize([0, 1], 2).mapPartitionsWithIndex(partial(meet, folder)).collect()
    )


class Scaled(Logistic):
    """Logistic loss, several times; a parameter of the objective that no dataclass knows."""

    def __init__(self, times: float):
        self.times = times

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        found = super().value_and_grad(w, block)
        return Partial(self.times * found.loss, self.times * found.grad, found.weight)


def test_calls_on_one_dataset_share_the_workers_and_run_no_job(small, spark, optimum):
    first = solve(small, tol=1e-9)
    run, before, job = status(small)["run"], passes_of(small), small.crew._job._group
    with counted_jobs(spark.sparkContext) as jobs:
        again = solve(small, tol=1e-9)
        with_intercept = solve(small, intercept=True)
        curved = solve(small, method="newton_cg", tol=1e-9)
    assert jobs == []
    assert len(spark.sparkContext.statusTracker().getJobIdsForGroup(job)) == 1
    assert status(small)["run"] == run
    assert passes_of(small) - before == again.passes + with_intercept.passes + curved.passes
    assert_array_equal(again.x, first.x)
    assert_allclose([first.fun, curved.fun], [optimum, optimum], rtol=1e-12)
    assert with_intercept.fun < first.fun


def test_another_objective_gets_workers_of_its_own(small):
    plain = solve(small, w0=np.ones(3), max_iter=1)
    run, job = status(small)["run"], small.crew._job
    other = solve(small, objective="hinge", w0=np.ones(3), max_iter=1, method="gd")
    assert status(small)["run"] != run
    assert not job.is_running()
    # At the start of both runs: the losses of the rows, from the formulas.
    m, weight = SMALL.X.sum(axis=1), SMALL.weight
    logistic = np.logaddexp(0, m) - SMALL.y * m
    hinge = np.maximum(0, 1 - (2 * SMALL.y - 1) * m)
    found = [plain.history.fun[0], other.history.fun[0]]
    expected = [weight @ loss / weight.sum() + 0.15 for loss in (logistic, hinge)]
    assert_allclose(found, expected, rtol=1e-12)


def test_an_objective_of_the_same_class_with_another_parameter_is_another_one(small):
    options = {"penalty": None, "max_iter": 0}
    once, twice = (solve(small, objective=Scaled(times), **options) for times in (1.0, 2.0))
    assert_allclose([once.fun, twice.fun], [np.log(2), 2 * np.log(2)], rtol=1e-12)


def test_a_function_whose_surroundings_have_changed_is_sent_again(small):
    scale = {"loss": 1.0}

    def scaled(w, X, y, weight):
        loss, grad = loss_of_my_own(w, X, y, weight)
        return scale["loss"] * loss, scale["loss"] * grad

    options = {"objective": scaled, "w0": np.zeros(3), "penalty": None, "max_iter": 0}
    once = solve(small, **options)
    scale["loss"] = 2.0
    assert_allclose([once.fun, solve(small, **options).fun], [np.log(2), 2 * np.log(2)], rtol=1e-12)


def test_an_engine_sees_that_an_objective_was_changed_in_place(small):
    engine, objective = ResidentEngine(small), Scaled(1.0)
    options = {"objective": objective, "penalty": None, "max_iter": 0}
    once = solve(small, engine, **options)
    objective.times = 2.0
    twice = solve(small, engine, **options)
    assert_allclose([once.fun, twice.fun], [np.log(2), 2 * np.log(2)], rtol=1e-12)


def test_messages_of_float32_reach_the_optimum_to_their_precision(small, optimum):
    found = solve(small, ResidentEngine(small, messages="float32"), tol=1e-9)
    assert found.success
    assert_allclose(found.fun, optimum, rtol=2**-24)  # float32's unit roundoff
    assert not np.array_equal(found.x, solve(small, tol=1e-9).x)
    with pytest.raises(InvalidCall, match="messages must be 'float64' or 'float32'; it is 'half'"):
        ResidentEngine(small, messages="half")


def test_auto_takes_the_workers_unless_somebody_else_wants_the_slots(
    small, spark, tmp_path, caplog
):
    caplog.set_level(logging.INFO, logger="sparkdist")
    solve(small, "auto")
    run = status(small)["run"]
    solve(small, "auto")  # its own workers' job is nobody else's
    assert status(small)["run"] == run
    assert [r.message for r in caplog.records if r.message.startswith("engine")] == [
        "engine: resident"
    ] * 2
    small.free_slots()
    with slots_taken(1, spark.sparkContext, tmp_path / "let go"):
        assert solve(small, "auto", max_iter=1).passes > 0
        assert small.crew._seat is None
    assert caplog.records[-1].message == (
        "engine: aggregate, because other jobs are running, for whose task slots the workers would"
        " wait"
    )


def test_idle_workers_free_their_slots_and_come_again(small, spark, tmp_path):
    engine = ResidentEngine(small, idle=0.3)
    first = solve(small, engine)
    run = status(small)["run"]
    until(lambda: no_job(spark.sparkContext))
    assert slots_are_free(spark.sparkContext, tmp_path / "met")
    assert_array_equal(solve(small, engine).x, first.x)
    assert status(small)["run"] != run


def test_a_callback_that_takes_longer_than_idle_changes_nothing(small, spark):
    engine = ResidentEngine(small, idle=0.2)
    first = solve(small, engine)
    slow = solve(small, engine, callback=lambda state: until(lambda: no_job(spark.sparkContext)))
    assert_array_equal(slow.x, first.x)
    assert slow.passes == first.passes


def test_other_work_on_the_dataset_has_the_slots_at_once(small):
    engine = ResidentEngine(small, idle=10 * LONG)
    began = time.monotonic()
    by_workers = solve(small, engine)
    rows = small.visit(lambda partition, blocks: sum(len(block.y) for block in blocks))
    assert sum(rows) == 300
    again = solve(small, engine)
    by_jobs = solve(small, "aggregate")
    solve(small, engine)
    by_a_tree = solve(small, "aggregate", deterministic=False, max_iter=1)
    solve(small, engine)
    loss = by_workers.model.evaluate(small)["loss"]
    assert time.monotonic() - began < 10 * LONG
    assert_array_equal([again.x, by_jobs.x], [by_workers.x, by_workers.x])
    assert by_a_tree.nit == 1
    assert_allclose(loss + 0.05 * by_workers.x @ by_workers.x, by_workers.fun, rtol=1e-12)


@pytest.mark.parametrize("intercept", [False, True])
def test_r28_a_model_without_features_is_one_that_ends(intercept, spark):
    """The bytes of no numbers were taken for those of a pass that the worker had seen."""
    y = np.array([1.0, 1.0, 0.0, 1.0])
    with Dataset.from_arrays(spark, np.zeros((4, 0)), y, n_partitions=2) as data:
        found = minimize("logistic", data, engine="resident", intercept=intercept, tol=1e-9)
    assert found.success
    if intercept:
        assert_allclose(found.x["intercept"], np.log(3.0), atol=1e-7)  # of 3 to 1
    else:
        assert_allclose(found.fun, np.log(2.0), rtol=1e-15)


def test_blocks_that_are_gone_are_ingested_again(small, caplog):
    first = solve(small)
    small.free_slots()
    Path(small.blocks[1][0].directory, small.name, "1.blocks").unlink()
    with caplog.at_level(logging.WARNING, logger="sparkdist"):
        again = solve(small)
    assert "blocks are not where the workers are" in caplog.text
    assert "ingesting partitions [1] again" in caplog.text
    assert_array_equal(again.x, first.x)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def nobody_listens(where: tuple[str, int]) -> bool:
    try:
        socket.create_connection(where, LONG).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("way", ["unpersist", "with", "an error"])
def test_the_end_of_the_dataset_ends_workers_and_server(way, spark):
    with contextlib.suppress(ZeroDivisionError), ExitStack() as stack:
        data = Dataset.from_arrays(spark, *SMALL, n_partitions=3)
        if way != "unpersist":
            stack.enter_context(data)
        solve(data, ResidentEngine(data, idle=10 * LONG))
        pid, where = data.crew._server.pid, data.crew._seat.where
        assert not is_gone(pid) and not nobody_listens(where)
        assert not no_job(spark.sparkContext)
        if way == "unpersist":
            data.unpersist()
        if way == "an error":
            raise ZeroDivisionError
    assert is_gone(pid)
    assert nobody_listens(where)
    until(lambda: no_job(spark.sparkContext))


def test_data_that_is_ingested_for_the_call_alone_leaves_nothing(spark, tmp_path):
    rows = list(zip(SMALL.X.tolist(), SMALL.y.tolist(), strict=True))
    found = solve(spark.sparkContext.parallelize(rows, 2))
    assert found.success
    until(lambda: no_job(spark.sparkContext))
    assert slots_are_free(spark.sparkContext, tmp_path / "met")


# --- Ctrl-C, errors, and no slots ---------------------------------------------------------------


class Slow(Logistic):
    """Logistic loss that says that it has begun, and takes its time."""

    def __init__(self, begun: Path):
        self.begun = begun

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        self.begun.touch()
        time.sleep(LONG)
        return super().value_and_grad(w, block)


def interrupt_when(begun: Path) -> None:
    until(begun.exists)
    _thread.interrupt_main()


def test_ctrl_c_in_a_pass_frees_the_slots_and_the_next_call_works(small, spark, tmp_path):
    first = solve(small)
    begun = tmp_path / "begun"
    killer = threading.Thread(target=interrupt_when, args=[begun])
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        solve(small, objective=Slow(begun))
    killer.join(LONG)
    assert slots_are_free(spark.sparkContext, tmp_path / "met")
    assert_array_equal(solve(small).x, first.x)


def test_ctrl_c_in_a_callback_leaves_workers_that_go_home_or_go_on(small, spark, tmp_path):
    engine = ResidentEngine(small, idle=1.0)
    first = solve(small, engine)

    def interrupt(state: Any) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            solve(small, engine, callback=interrupt)
    assert_array_equal(solve(small, engine).x, first.x)
    with pytest.raises(KeyboardInterrupt):
        solve(small, engine, callback=interrupt)
    assert slots_are_free(spark.sparkContext, tmp_path / "met")


def own_loss_with_a_fault(w, X, y, weight):
    if w.any():
        raise ArithmeticError("the user's own words")
    return loss_of_my_own(w, X, y, weight)


def test_r51_a_loss_that_raises_is_told_and_frees_the_slots(small, spark, tmp_path):
    with pytest.raises(PassFailed) as caught:
        solve(small, objective=own_loss_with_a_fault, w0=np.zeros(3))
    assert "ArithmeticError: the user's own words" in str(caught.value)
    assert 'in own_loss_with_a_fault\n    raise ArithmeticError("the user' in str(caught.value)
    assert small.crew._seat is None
    assert slots_are_free(spark.sparkContext, tmp_path / "met")
    assert solve(small).success


def hold(let_go: Path, partition: int, rows: Iterator[Any]) -> Iterator[int]:
    """Hold a task slot until a file is there."""
    (let_go.parent / f"holds-{partition}").touch()
    until(let_go.exists)
    yield partition


@contextmanager
def slots_taken(n: int, context: SparkContext, let_go: Path) -> Iterator[None]:
    """Have a job of somebody else hold some of the two slots."""
    work = context.parallelize(range(n), n).mapPartitionsWithIndex(partial(hold, let_go))
    holder = threading.Thread(target=work.collect)
    holder.start()
    try:
        until(lambda: len(list(let_go.parent.glob("holds-*"))) == n)
        yield
    finally:
        let_go.touch()
        holder.join(LONG)


@pytest.mark.parametrize("taken", [1, 2])
def test_without_slots_the_pass_ends_and_names_the_other_engine(taken, small, spark, tmp_path):
    expected = r"within 1 s for [12] of the resident engine's workers; engine='aggregate' waits"
    with slots_taken(taken, spark.sparkContext, tmp_path / "let go"):
        with pytest.raises(WorkersMissing, match=expected):
            solve(small, ResidentEngine(small, patience=1.0))
    assert small.crew._seat is None
    assert solve(small).success


class Unhurried(Logistic):
    """Logistic loss whose passes take longer than the driver waits for one at a time."""

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        time.sleep(0.3)
        return super().value_and_grad(w, block)


def slow(w, X, y, weight):
    time.sleep(3.0)
    return float(w @ w), w


def test_a_pass_may_take_longer_than_workers_are_waited_for(small):
    """Spark's books may know 10 s later that a task has started; the server knows at once."""
    engine = ResidentEngine(small, patience=1.0)
    assert minimize(slow, small, np.zeros(small.n_features), engine=engine).success


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"idle": "x"}, "idle must be a number of seconds >= 0; it is 'x'"),
        ({"patience": np.nan}, "patience must be a number of seconds >= 0; it is nan"),
        ({"patience": None}, "patience must be a number of seconds >= 0; it is None"),
    ],
)
def test_seconds_that_are_none_are_told(options, problem, small):
    with pytest.raises(InvalidCall) as error:
        ResidentEngine(small, **options)
    assert error.value.problems == (problem,)
    with pytest.raises(InvalidCall, match="dataset is a str; it must be a Dataset"):
        ResidentEngine("small")


def test_two_threads_may_use_one_dataset(small):
    def fit(strength: float) -> float:
        penalty, options = L2(strength), {"w0": np.ones(3), "max_iter": 0}
        return solve(small, objective=Unhurried(), penalty=penalty, **options).fun

    with ThreadPoolExecutor(2) as pool:
        side_by_side = list(pool.map(fit, [0.0, 0.2]))
    assert side_by_side == [fit(0.0), fit(0.2)]
    # Half the strength times the squared length of the ones.
    assert_allclose(side_by_side[1] - side_by_side[0], 0.1 * 3, rtol=1e-12)


def test_r39_the_token_is_in_no_log_status_or_command_line(small, spark, folder):
    solve(small)
    token, context = small.crew._seat.token, spark.sparkContext
    assert len(token) >= 43  # 256 bits in base 64
    context._jsc.sc().listenerBus().waitUntilEmpty()
    events = [path.read_text() for path in (folder / "events").rglob("*") if path.is_file()]
    assert "sparkdist: resident workers" in "".join(events)
    told = [*events, str(status(small)), repr(small.crew._server._setup)]
    told += [path.read_text() for path in small.crew._server._folder.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told.append((process / "cmdline").read_text())
    assert [text for text in told if token in text] == []


def test_the_end_of_the_session_ends_workers_and_server(spark, only):
    only.close()
    data = Dataset.from_arrays(spark, *SMALL, n_partitions=3)
    solve(data, ResidentEngine(data, idle=10 * LONG))
    pid, where, job = data.crew._server.pid, data.crew._seat.where, data.crew._job
    spark.stop()
    until(lambda: not job.is_running())
    assert is_gone(pid)
    assert nobody_listens(where)
    with pytest.raises(InvalidCall, match="its SparkContext was stopped"):
        solve(data)
    data.unpersist()

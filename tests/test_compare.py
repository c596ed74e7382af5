"""Comparisons: N1 to N3, what a table says, and what it does not hide."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyspark.sql import SparkSession

from sparkdist import L2, Comparison, Dataset, Logistic, ResidentEngine, compare
from sparkdist.blocks import Array, Block, Partial
from sparkdist.comparison import Curve, thinned
from sparkdist.errors import InvalidCall
from sparkdist.updaters import sgd
from tests.conftest import LOCAL, random_block
from tests.job_count import counted_jobs


def curve(name: str, fun: list[float], seconds: float = 1.0) -> Curve:
    n = len(fun)
    at = [float(i) for i in range(n)]
    return Curve(name, [seconds * t for t in at], at, [100.0 * t for t in at], list(range(n)), fun)


def test_the_fastest_to_the_target_comes_first_and_who_did_not_reach_it_is_listed():
    found = Comparison(
        0.5,
        [
            curve("slow", [1.0, 0.7, 0.5]),
            curve("never", [1.0, 0.6], 9.0),
            curve("fast", [1.0, 0.4]),
        ],
        {},
    )
    rows = found.rows()
    assert [(row["method"], row["reached"]) for row in rows] == [
        ("fast", True), ("slow", True), ("never", False),
    ]  # fmt: skip
    assert [row["seconds"] for row in rows] == [1.0, 2.0, 9.0]
    assert [row["passes"] for row in rows] == [1.0, 2.0, 1.0]
    assert [row["megabytes"] for row in rows] == [1e-4, 2e-4, 1e-4]
    lines = str(found).splitlines()
    assert lines[0] == "to an objective of 0.5"
    assert lines[-1].split()[:5] == ["never", "not", "reached", "in", "9.00"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_what_is_no_number_is_null_in_json():
    found = Comparison(0.5, [curve("at once", [0.1]), curve("nowhere", [math.nan])], {})
    read = json.loads(found.to_json())
    assert read["rows"][0]["seconds_per_pass"] is None  # no pass was needed
    assert read["curves"][1]["fun"] == [None]


def test_points_are_closer_at_the_start_and_both_ends_are_there():
    assert thinned(4, 25) == [0, 1, 2, 3]
    points = thinned(10_000, 25)
    assert (points[0], points[-1]) == (0, 9_999)
    assert len(points) <= 26 and points == sorted(set(points))
    assert np.median(points) < 1_000


@pytest.fixture(scope="module")
def spark(start: Callable[..., SparkSession], folder: Path) -> SparkSession:
    return start(LOCAL, folder)


@pytest.fixture(scope="module")
def data(spark: SparkSession) -> Iterator[Dataset]:
    X, y, weight = random_block(400, 4, 1)
    with Dataset.from_arrays(spark, X, y, weight, n_partitions=2) as dataset:
        yield dataset


METHODS = {
    "lbfgs": {},
    "gd": {"max_iter": 5},
    "synchronous": {"method": "sgd", "epochs": 3, "batch_size": 16, "updater": sgd(0.5)},
    "downpour": {"epochs": 2, "batch_size": 16},
}


@pytest.fixture(scope="module")
def found(data: Dataset) -> Comparison:
    optimum = compare("logistic", data, {"lbfgs": {"tol": 1e-10}}, 0.0, penalty=L2(0.1))
    best = optimum.results["lbfgs"].fun
    return compare("logistic", data, METHODS, best + 1e-3, penalty=L2(0.1))


@pytest.mark.spark
def test_n1_time_to_accuracy_is_passes_times_seconds_a_pass(found):
    rows = found.rows()
    assert sorted(row["method"] for row in rows) == sorted(METHODS)
    assert rows[0]["reached"]
    for row in rows:
        assert_allclose(row["seconds"], row["passes"] * row["seconds_per_pass"], rtol=0.01)


@pytest.mark.spark
def test_n2_what_adds_up_never_falls(found):
    for one in found.curves:
        for what in (one.seconds, one.passes, one.n_bytes, one.updates):
            assert len(what) == len(one.fun)
            assert np.all(np.diff(what) >= 0), one.name
    by_name = {one.name: one for one in found.curves}
    assert by_name["synchronous"].passes[-1] == 3.0
    assert by_name["downpour"].passes[-1] == 2.0
    # 25 batches of 8 to 16 rows a partition and epoch, each push and answer 4 numbers at least.
    assert by_name["synchronous"].n_bytes[-1] > 3 * 2 * 13 * 2 * 32
    assert by_name["synchronous"].staleness == 0.0


@pytest.mark.spark
def test_every_objective_is_worked_out_in_the_same_way(found, data):
    start = [one.fun[0] for one in found.curves]
    assert_allclose(start, np.log(2), rtol=1e-12)  # at w = 0, whatever the weights of the rows
    for one in found.curves:
        assert_allclose(one.fun[-1], found.results[one.name].fun, rtol=1e-12)


class Sleepy(Logistic):
    """Logistic loss whose blocks take a moment longer."""

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        time.sleep(0.1)
        return super().value_and_grad(w, block)


@pytest.mark.spark
def test_n3_a_sleep_in_the_loss_changes_hardware_efficiency_alone(data):
    both = [
        compare(loss, data, {"gd": {"max_iter": 3}}, 0.0, penalty=L2(0.1), deterministic=True)
        for loss in (Logistic(), Sleepy())
    ]
    plain, slow = (one.curves[0] for one in both)
    assert (slow.fun, slow.passes, slow.updates) == (plain.fun, plain.passes, plain.updates)
    assert slow.seconds[-1] - slow.seconds[0] >= 0.1 * (slow.passes[-1] - slow.passes[0])


@pytest.mark.spark
@pytest.mark.parametrize(
    ("methods", "options", "problem"),
    [
        ([], {}, "there is no method to compare"),
        (["lbfgs", "bfgs"], {}, "bfgs: there is no method 'bfgs'"),
        ({"lbfgs": {}, "sgd": {"epochs": -1}}, {}, "sgd: epochs must be a whole number >= 1"),
        ({"lbfgs": {"memroy": 1}}, {}, "lbfgs: lbfgs has no option 'memroy'; it has memory. Did"),
        ({"lbfgs": {"w0": 1, "label": "y"}}, {}, "lbfgs: label is the same for all methods"),
        ({"lbfgs": 3}, {}, "methods['lbfgs'] is 3; it must be a dict"),
        (["gd", "gd"], {}, "methods is ['gd', 'gd'], with a name twice"),
        ([["gd"]], {}, "methods is [['gd']]; it must be a list of names"),
        ({5: {}}, {}, "methods is {5: {}}; it must be a list of names"),
        (["gd"], {"target": math.nan}, "target is nan; it must be a value of the objective"),
        (["gd"], {"target": True}, "target is True; it must be a value of the objective"),
        (["gd"], {"objective": "logitic"}, "gd: there is no 'logitic'"),
        (["gd"], {"callback": 3}, "gd: callback is 3; it must be a function"),
        (["gd"], {"intercept": "no"}, "gd: intercept must be True or False; it is 'no'"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_told_before_anything_runs(
    data, spark, methods, options, problem
):
    given = {"objective": "logistic", "data": data, "target": 0.3} | options
    with counted_jobs(spark.sparkContext) as jobs, pytest.raises(InvalidCall) as error:
        compare(methods=methods, **given)
    assert error.value.problems[0].startswith(problem) and jobs == []


@pytest.mark.spark
def test_an_engine_of_its_own_and_names_that_can_be_read_once(data):
    names = (name for name in ["weights"])
    options = {"intercept": True, "penalty": L2(1.0), "unpenalized": names}
    methods = {"a": {"method": "lbfgs"}, "b": {"method": "lbfgs"}}
    found = compare("logistic", data, methods, 0.3, engine=ResidentEngine(data), **options)
    a, b = found.curves
    assert a.fun == b.fun


@pytest.mark.spark
def test_a_callback_sees_exact_and_stochastic_methods(data):
    for method in ("gd", "sgd"):
        seen = []
        compare("logistic", data, [method], 0.3, callback=seen.append)
        assert seen and seen[-1].nit > 0


@pytest.mark.spark
def test_the_picture_has_a_line_for_each_method_in_each_panel(found, tmp_path):
    figure = found.plot()
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "seconds", "passes over the data", "bytes",
    ]  # fmt: skip
    for axes in figure.axes:
        assert len([line for line in axes.get_lines() if line.get_label() in METHODS]) == 4
    figure.savefig(tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").stat().st_size > 10_000

"""minimize says what is wrong with a call, all of it, before a job starts."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark import RDD
from pyspark.sql import SparkSession
from scipy.optimize import Bounds
from scipy.sparse import csr_array

from sparkdist import (
    L1,
    L2,
    Dataset,
    ElasticNet,
    Hinge,
    Logistic,
    compare,
    methods,
    minimize,
    registry,
)
from sparkdist.errors import InvalidCall, PassFailed
from tests.conftest import random_block
from tests.job_count import counted_jobs

pytestmark = pytest.mark.spark

TABLE = random_block(n=60, d=3, seed=9)


def my_loss(w, X, y):
    m = X @ w
    return np.sum(np.log1p(np.exp(m)) - y * m), X.T @ (1 / (1 + np.exp(-m)) - y)


@pytest.fixture(scope="module")
def rdd(spark: SparkSession) -> RDD:
    return spark.sparkContext.parallelize(list(zip(TABLE.X, TABLE.y.tolist(), strict=True)), 2)


@pytest.fixture(scope="module")
def weighted(spark: SparkSession) -> Iterator[Dataset]:
    with Dataset.from_arrays(spark, *TABLE) as data:
        yield data


@pytest.fixture(scope="module")
def plain(spark: SparkSession) -> Iterator[Dataset]:
    with Dataset.from_arrays(spark, TABLE.X, TABLE.y) as data:
        yield data


def problems_of(spark, objective, data, *arguments, **options) -> tuple[str, ...]:
    """What the error lists; no job has run."""
    with counted_jobs(spark.sparkContext) as jobs, pytest.raises(InvalidCall) as error:
        minimize(objective, data, *arguments, **options)
    assert jobs == []
    return error.value.problems


# --- what the arguments alone show, with an RDD whose ingest would be a job -------------------

ARGUMENTS = [
    ({"tol": -1.0}, "tol is -1.0; it must be 0 or more"),
    ({"tol": np.nan}, "tol is nan; it must be 0 or more"),
    ({"max_iter": -1}, "max_iter is -1; it must be 0 or more"),
    ({"penalty": 0.1}, "penalty is 0.1; it must be L2(...), L1(...) or ElasticNet(...)"),
    (
        {"method": "bfgs"},
        "there is no method 'bfgs'; there are gd, lbfgs, newton_cg, owlqn, "
        "preconditioned_lbfgs, " + ", ".join(registry.names(methods)) + ". Did you mean 'lbfgs'?",
    ),
    ({"engine": "spark"}, "there is no engine 'spark'; there are aggregate, resident, auto"),
    ({"memroy": 5}, "lbfgs has no option 'memroy'; it has memory. Did you mean 'memory'?"),
    ({"maxiter": 5}, "lbfgs has no option 'maxiter'; it has memory. Did you mean 'max_iter'?"),
    ({"labelCol": "y"}, "lbfgs has no option 'labelCol'; it has memory. Did you mean 'label'?"),
    (
        {"regParam": 0.1},
        "lbfgs has no option 'regParam'; it has memory. A penalty is penalty=sparkdist.L2(1e-3),"
        " for instance",
    ),
    ({"intercept": "no"}, "intercept must be True or False; it is 'no'"),
    ({"deterministic": 1}, "deterministic must be True or False; it is 1"),
    ({"callback": 3}, "callback is 3; it must be a function, or None"),
    ({"method": "gd", "memory": 5}, "gd has no option 'memory'; it has step_rule, step"),
    ({"method": "newton_cg", "x": 5}, "newton_cg has no option 'x'; it has none"),
    ({"penalty": L1(1.0)}, "lbfgs cannot use an L1 penalty; use gd or owlqn"),
    ({"penalty": ElasticNet(1.0, 1.0)}, "lbfgs cannot use an L1 penalty; use gd or owlqn"),
    ({"method": "owlqn", "bounds": [(0, 1)] * 3}, "owlqn cannot use bounds; use lbfgs"),
    (
        {"objective": "hinge", "method": "newton_cg"},
        "newton_cg needs Hessian-vector products, and Hinge has none; use lbfgs",
    ),
    (
        {"objective": my_loss, "w0": np.zeros(3), "method": "newton_cg"},
        "newton_cg needs Hessian-vector products, and UserLoss has none; use lbfgs",
    ),
]


@pytest.mark.parametrize(("arguments", "sentence"), ARGUMENTS)
def test_a_wrong_argument_is_told_before_the_data_is_read(arguments, sentence, spark, rdd):
    found = problems_of(spark, **{"objective": "logistic", "data": rdd, **arguments})
    assert found == (sentence,)


@pytest.mark.parametrize("data", [TABLE, TABLE.X, None, "a9a"])
def test_data_of_another_type_is_told(data, spark):
    expected = f"data is a {type(data).__name__}; it must be a Dataset, a DataFrame or an RDD"
    assert problems_of(spark, "logistic", data) == (expected,)


def test_all_wrong_arguments_are_in_one_error(spark):
    wrong = {"tol": -1, "max_iter": -1, "penalty": "l2", "method": "bfgs", "engine": "ray"}
    found = problems_of(spark, "logistic", [1, 2], **wrong)
    assert [sentence.split()[0] for sentence in found[:3]] == ["tol", "max_iter", "penalty"]
    assert [sentence.split("'")[1] for sentence in found[3:5]] == ["bfgs", "ray"]
    assert found[5].startswith("data is a list")
    assert len(found) == 6


def test_a_wrong_objective_hides_no_other_problem(spark):
    found = problems_of(spark, "logitic", [1, 2], method="bfgs", tol=-1)
    assert [sentence.split("'")[1] for sentence in found if "'" in sentence][:1] == ["logitic"]
    assert len(found) == 4


@pytest.mark.parametrize("kind", ["a session", "a lock"])
def test_an_objective_that_cannot_travel_is_told_before_the_data_is_read(kind, spark, rdd):
    held = spark.sparkContext if kind == "a session" else threading.Lock()
    (found,) = problems_of(spark, lambda w, X, y: (float(held is None), w), rdd, np.zeros(3))
    assert found.startswith("the objective cannot travel to the workers: ")
    assert found.endswith("and no session, file or lock")


OBJECTIVES = [
    ("logitic", None, r"there is no 'logitic'; .* Did you mean 'logistic'\?"),
    ("anything", None, "there is no 'anything'; there are hinge, huber, logistic"),
    (3, None, r"the objective is a int; it must be one of hinge, .*or a function f\(w, X, y\)"),
    (my_loss, None, "w0 is missing"),
    (lambda w, X: (0.0, w), np.zeros(3), r"the loss must be a function f\(w, X, y\) or"),
]


@pytest.mark.parametrize(("objective", "w0", "sentence"), OBJECTIVES)
def test_what_is_no_objective_is_told(objective, w0, sentence, spark, rdd):
    with counted_jobs(spark.sparkContext) as jobs:
        with pytest.raises(InvalidCall, match=sentence):
            minimize(objective, rdd, w0)
    assert jobs == []


def test_columns_are_named_of_a_dataframe_only(spark, plain, rdd):
    for data in (plain, rdd):
        (found,) = problems_of(spark, "logistic", data, label="target", weight="w")
        assert found == (
            "label, weight can only be given with a DataFrame, whose columns they name, not"
            f" {type(data).__name__}"
        )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rate": "x"}, "rate must be a finite number > 0, or a function of t = 0, 1, 2 ..."),
        ({"alpha": None}, "alpha must be a number > 0 and <= 1; it is None"),
        ({"batch_size": "x"}, "batch_size must be a whole number >= 1; it is 'x'"),
        ({"epochs": 2.5}, "epochs must be a whole number >= 1; it is 2.5"),
        ({"patience": None}, "patience must be a number of seconds > 0; it is None"),
        ({"seconds": "x"}, "seconds must be a number of seconds > 0; it is 'x'"),
        ({"port": "x"}, "port is 'x'; it must be a number from 1 to 65535, a pair"),
    ],
)
def test_a_wrong_number_for_a_server_is_told_before_the_data_is_read(options, problem, spark, rdd):
    (found,) = problems_of(spark, "logistic", rdd, method="easgd", **options)
    assert found.startswith(problem)


# --- what shows when the number of features is known ------------------------------------------

MODELS = [
    ({"w0": np.zeros(4)}, "w0 is an array of shape (4,); the model is an array of shape (3,)"),
    ({"w0": [0, np.inf, 0]}, "w0 has values that are NaN or infinite"),
    ({"unpenalized": ["b"]}, "unpenalized names ['b']; the model has []"),
    (
        {"intercept": True, "w0": np.zeros(3)},
        "w0 is an array of shape (3,); the model is a dict of weights(3,), intercept()",
    ),
    (
        {"bounds": Bounds([0, 0, 1], [1, 1, 0])},
        "bounds of parameter 2: the lower, 1, must be at most the upper, 0",
    ),
]


@pytest.mark.parametrize(("arguments", "sentence"), MODELS)
def test_what_does_not_fit_the_model_is_told_before_a_pass(arguments, sentence, spark, plain):
    assert problems_of(spark, "logistic", plain, **arguments) == (sentence,)


def test_bounds_of_another_length_are_told(spark, plain):
    (found,) = problems_of(spark, "logistic", plain, bounds=[(0, 1)] * 2)
    assert found.startswith("bounds do not fit a model of 3 weights")


def test_weights_that_a_function_does_not_take_are_told(spark, weighted):
    (found,) = problems_of(spark, my_loss, weighted, np.zeros(3))
    assert found == "the data has weights, and your function takes none: f(w, X, y, weight) would"


def test_problems_of_arguments_data_and_model_are_in_one_error(spark, weighted):
    wrong = {"unpenalized": ["b"], "intercept": True, "method": "newton_cg", "engine": "ray"}
    with pytest.raises(InvalidCall) as error:
        minimize(my_loss, weighted, np.full(3, np.nan), **wrong)
    assert str(error.value).splitlines()[0] == "minimize: 6 problems"
    words = ["Hessian-vector", "engine", "weights", "intercept=True", "unpenalized", "NaN"]
    for word, sentence in zip(words, error.value.problems, strict=True):
        assert word in sentence


# --- objectives -------------------------------------------------------------------------------


def scaled(scale, w, X, y):
    loss, grad = my_loss(w, X, y)
    return scale * loss, scale * grad


def test_an_objective_may_be_a_name_a_class_an_instance_or_any_function(plain):
    scale = 2.0
    options = {"penalty": L2(0.1), "tol": 1e-9}
    expected = minimize("logistic", plain, **options)
    for form in (Logistic, Logistic()):
        assert minimize(form, plain, **options).fun == expected.fun
    closures = [functools.partial(scaled, 1.0), lambda w, X, y: scaled(scale / 2, w, X, y)]
    for form in (my_loss, *closures):
        found = minimize(form, plain, np.zeros(3), **options)
        assert_allclose(found.fun, expected.fun, rtol=1e-12)


def test_a_loss_with_a_kink_is_warned_of(plain, caplog):
    with caplog.at_level(logging.WARNING, logger="sparkdist"):
        minimize(Hinge(), plain, penalty=L2(0.1), max_iter=2)
    assert "Hinge has no gradient at its kink" in caplog.text


# --- losses that fail on the executors --------------------------------------------------------


@pytest.fixture
def no_broadcast_stays(spark: SparkSession) -> Iterator[None]:
    """What the driver keeps of broadcasts is what it kept before."""
    folder = spark.sparkContext._temp_dir
    before = set(os.listdir(folder))
    yield
    assert set(os.listdir(folder)) == before


def raising(w, X, y):
    return 1 / (y[0] - y[0]).item(), w  # this very line


def misshapen(w, X, y):
    return my_loss(w, X, y)[0], np.zeros(2)


@pytest.mark.usefixtures("no_broadcast_stays")
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_loss_that_raises_is_shown_at_its_own_line(deterministic, plain):
    with pytest.raises(PassFailed) as error:
        minimize(raising, plain, np.zeros(3), deterministic=deterministic)
    text = str(error.value)
    assert "return 1 / (y[0] - y[0]).item(), w  # this very line" in text
    assert "test_minimize_calls.py" in text
    assert "ZeroDivisionError" in text
    assert "org.apache" not in text
    assert "\tat " not in text


@pytest.mark.usefixtures("no_broadcast_stays")
def test_a_gradient_of_another_shape_is_told(plain):
    with pytest.raises(PassFailed, match=r"misshapen: 1 problem\s.*the model's shape \(3,\)"):
        minimize(misshapen, plain, np.zeros(3))


@pytest.mark.usefixtures("no_broadcast_stays")
def test_a_loss_that_is_not_finite_is_no_success(plain):
    found = minimize(lambda w, X, y: (np.nan, np.zeros(3)), plain, np.zeros(3))
    assert (found.success, found.status, found.passes) == (False, 3, 1)
    assert "not finite at the start" in found.message


# --- the columns of a DataFrame ---------------------------------------------------------------


def test_columns_of_a_dataframe_may_have_any_names(spark):
    columns = ["first", "second", "third", "target", "importance"]
    table = np.c_[TABLE.X, TABLE.y, TABLE.weight].tolist()
    df = spark.createDataFrame(table, columns)
    named = {"features": columns[:3], "label": "target", "weight": "importance"}
    call = {"penalty": L2(0.1), "deterministic": True, "progress": False}
    with Dataset.from_dataframe(df, **named) as data:
        expected = minimize("logistic", data, **call)
    found = minimize("logistic", df, **named, **call)
    assert_array_equal(found.x, expected.x)
    assert found.model.features == columns[:3]
    (compared,) = compare("logistic", df, ["lbfgs"], 0.5, **named, penalty=L2(0.1)).results.values()
    assert_allclose(compared.fun, expected.fun, rtol=1e-12)


def test_an_unknown_method_is_told_with_the_problems_of_a_dataset(spark, plain):
    found = problems_of(spark, "logistic", plain, w0=np.zeros(5), method="bfgs")
    assert [sentence[:25] for sentence in found] == [
        "there is no method 'bfgs'",
        "w0 is an array of shape (",
    ]


def test_a_metric_that_is_too_large_is_told_before_a_pass(spark):
    wide = csr_array((3, 2001))
    with Dataset.from_arrays(spark, wide, [0.0, 1.0, 1.0]) as data:
        (problem,) = problems_of(spark, "logistic", data, method="preconditioned_lbfgs")
    assert problem.startswith("the metric of 2,001 parameters is a matrix of 2,001 x 2,001 numbers")

"""What is given at a front door in place of something else: one clear error, before any job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from sparkdist import (
    Dataset,
    DeepDist,
    Logistic,
    ModelServer,
    SparkModel,
    compare,
    minimize,
    read_dataset,
)
from sparkdist.errors import InvalidCall
from tests.job_count import counted_jobs

pytestmark = pytest.mark.spark

X, Y = np.eye(4), np.array([0.0, 1.0, 0.0, 1.0])


def train(data: Any) -> None:
    with ModelServer(np.zeros(4)) as server:
        server.train(data, "logistic")


def train_own(data: Any) -> None:
    with DeepDist({"w": np.zeros(4)}) as dd:
        dd.train(data, lambda model, rows: None, lambda model, update: None)


#: Doors by what they want first.
OF_SESSION: dict[str, Callable[[Any], Any]] = {
    "from_arrays": lambda thing: Dataset.from_arrays(thing, X, Y),
    "from_parquet": lambda thing: Dataset.from_parquet(thing, "nowhere"),
    "from_libsvm": lambda thing: Dataset.from_libsvm(thing, "nowhere"),
}
OF_DATA: dict[str, Callable[[Any], Any]] = {
    "from_dataframe": Dataset.from_dataframe,
    "from_rdd": Dataset.from_rdd,
    "minimize": lambda thing: minimize("logistic", thing),
    "minimize on a server": lambda thing: minimize("logistic", thing, method="sgd"),
    "compare": lambda thing: compare("logistic", thing, ["lbfgs"], 0.3),
    "train": train,
    "train of DeepDist": train_own,
}
OF_MODEL: dict[str, Callable[[Any], Any]] = {"ModelServer": ModelServer, "DeepDist": DeepDist}
#: Things by the name of their type.
THINGS: dict[str, Callable[[SparkSession], Any]] = {
    "SparkContext": lambda spark: spark.sparkContext,
    "SparkSession": lambda spark: spark,
    "NoneType": lambda spark: None,
    "str": lambda spark: "a9a",
    "ndarray": lambda spark: X,
    "type": lambda spark: Dataset,
}
WRONG = [
    (door, thing)
    for doors, fine in (
        (OF_SESSION, {"SparkSession"}),
        (OF_DATA, set()),
        (OF_MODEL, {"ndarray"}),
    )
    for door in doors.items()
    for thing in THINGS.items()
    if thing[0] not in fine
]


@pytest.fixture
def no_jobs(spark: SparkSession) -> Iterator[None]:
    with counted_jobs(spark.sparkContext) as jobs:
        yield
    assert jobs == []


@pytest.mark.parametrize(
    ("door", "thing"), WRONG, ids=[f"{door[0]}-{thing[0]}" for door, thing in WRONG]
)
def test_a_door_says_what_was_given_and_what_it_wants(door, thing, spark, no_jobs):
    (_, call), (kind, make) = door, thing
    with pytest.raises(InvalidCall) as error:
        call(make(spark))
    (problem,) = error.value.problems
    assert kind in problem


@pytest.mark.parametrize("door", OF_SESSION)
def test_a_context_in_place_of_a_session_is_told_how_to_get_one(door, spark, no_jobs):
    with pytest.raises(InvalidCall) as error:
        OF_SESSION[door](spark.sparkContext)
    assert error.value.caller == door
    assert error.value.problems == (
        "spark is a SparkContext; it must be a SparkSession: SparkSession.builder.getOrCreate()",
    )


ARRAYS = [
    ((None, Y), "X must be (n, d) and y (n,); they are () and (4,)"),
    (([["a"]], [0]), "X is a list, and not an array of numbers: could not convert string"),
    ((X, [0, [1], 2, 3]), "y is a list, and not an array of numbers"),
    ((X, Y, "w"), "weight is a str, and not an array of numbers"),
]


@pytest.mark.parametrize(("arrays", "sentence"), ARRAYS, ids=[s[:6] for _, s in ARRAYS])
def test_what_is_no_array_is_told_by_its_name(arrays, sentence, spark, no_jobs):
    with pytest.raises(InvalidCall) as error:
        Dataset.from_arrays(spark, *arrays)
    assert any(problem.startswith(sentence) for problem in error.value.problems)


COUNTS = [
    ("from_arrays", {"n_partitions": "2"}),
    ("from_arrays", {"n_partitions": 2.5}),
    ("from_parquet", {"n_partitions": 0}),
    ("from_libsvm", {"n_partitions": "2"}),
    ("from_libsvm", {"n_features": -1}),
]


@pytest.mark.parametrize(("door", "options"), COUNTS)
def test_what_is_no_number_of_things_is_told(door, options, spark, no_jobs, tmp_path):
    arguments = (X, Y) if door == "from_arrays" else (str(tmp_path),)
    ((name, value),) = options.items()
    with pytest.raises(InvalidCall) as error:
        getattr(Dataset, door)(spark, *arguments, **options)
    expected = f"{name} must be a whole number of at least 1; it is {value!r}"
    assert expected in error.value.problems


COMPARISONS = [
    ("lbfgs", 0.3, "methods is 'lbfgs'; it must be a list of names"),
    ({"lbfgs": "gd"}, 0.3, "methods['lbfgs'] is 'gd'; it must be a dict"),
    ([], 0.3, "there is no method to compare"),
    (["lbfgs"], "low", "target is 'low'; it must be a value of the objective"),
]


@pytest.mark.parametrize(("methods", "target", "sentence"), COMPARISONS)
def test_a_comparison_that_cannot_be_made_is_told(methods, target, sentence, spark, no_jobs):
    with pytest.raises(InvalidCall) as error:
        compare("logistic", spark.range(3), methods, target)
    (problem,) = error.value.problems
    assert problem.startswith(sentence)


def test_names_of_columns_may_be_in_anything_that_lists_them(spark):
    df = spark.createDataFrame([(1.0, 2.0, 0.0)], ["a", "b", "label"])
    names = pd.DataFrame(columns=["a", "b"]).columns
    for features in (names, np.array(["a", "b"]), dict(a=1, b=2), (c for c in "ab"), ("a", "b")):
        with Dataset.from_dataframe(df, features) as data:
            assert data.features == ["a", "b"] and data.n_features == 2


def test_an_embedded_data_set_has_the_columns_that_it_has(spark, tmp_path):
    with read_dataset(spark, "a9a-test", features="features", label="label") as data:
        assert data.n_features == 123
    for role, name in (("features", "x"), ("label", "y"), ("weight", "w")):
        said = f"a9a-test has no column '{name}' for {role}: its rows are features and label"
        with pytest.raises(InvalidCall, match=said):
            read_dataset(spark, "a9a-test", **{role: name})
    with pytest.raises(InvalidCall, match="data must be a path, or the name of an embedded"):
        read_dataset(spark, None)
    (tmp_path / "rows.csv").write_text("a,label\n1.0,0\n2.0,1\n")
    with read_dataset(spark, tmp_path / "rows.csv") as data:
        assert data.n_rows == 2


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"features": 5}, "features must be the name of a column, or a list of names; it is 5"),
        ({"features": ["a", None]}, "features must be the name of a column, or a list of names"),
        ({"label": ["label"]}, "label and weight must be names of columns; one is ['label']"),
        ({"weight": 3}, "label and weight must be names of columns; one is 3"),
    ],
    ids=str,
)
def test_what_are_no_names_of_columns_is_told(columns, problem, spark, tmp_path):
    df = spark.createDataFrame([(1.0, 0.0)], ["features", "label"])
    df.write.parquet(str(tmp_path / "rows"))
    for make in (
        lambda: Dataset.from_dataframe(df, **columns),
        lambda: Dataset.from_parquet(spark, str(tmp_path / "rows"), **columns),
    ):
        with pytest.raises(InvalidCall) as error:
            make()
        assert error.value.problems[0].startswith(problem)


def test_a_session_that_was_stopped_is_told_at_every_door(start, folder):
    spark = start("local[1]", folder)
    df = spark.range(3)
    rdd = spark.sparkContext.parallelize([1])
    spark.stop()
    for door in OF_SESSION.values():
        with pytest.raises(InvalidCall, match="spark is a session that was stopped"):
            door(spark)
    with pytest.raises(InvalidCall, match="the session of the DataFrame was stopped"):
        Dataset.from_dataframe(df)
    with pytest.raises(InvalidCall, match="the session of the RDD was stopped"):
        Dataset.from_rdd(rdd)
    for data in (df, rdd):
        with pytest.raises(InvalidCall, match="the session of the data was stopped"):
            minimize("logistic", data)
    model = SparkModel(Logistic(), np.zeros(1), 1)
    with pytest.raises(InvalidCall, match="the session of the DataFrame was stopped"):
        model.predict(df)


def test_a_server_of_a_session_that_was_stopped_says_so(start, folder):
    spark = start("local[1]", folder)
    rows = spark.sparkContext.parallelize([1.0], 1)
    with ModelServer(np.zeros(1)) as server, DeepDist(np.zeros(1)) as dd:
        spark.stop()
        with pytest.raises(InvalidCall, match="the session of the data was stopped"):
            server.train(rows, lambda model, batch: model)
        with pytest.raises(InvalidCall, match="the session of the data was stopped"):
            dd.train(rows, lambda model, batch: model, lambda model, update: None)
        again = start("local[1]", folder).sparkContext.parallelize([1.0], 1)
        with pytest.raises(InvalidCall, match="the session that its server was started in was"):
            server.train(again, lambda model, batch: model)
        with pytest.raises(InvalidCall, match="the session that its server was started in was"):
            dd.train(again, lambda model, batch: model, lambda model, update: None)
        # What has been learnt is there.
        assert (server.model, dd.model, server.status()["version"]) == (0.0, 0.0, 0)

"""Scoring: a model gives DataFrames what it gives arrays, and tells how good it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark.errors import PySparkException
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import sparkdist
from sparkdist import (
    L2,
    Dataset,
    Hinge,
    Logistic,
    Poisson,
    Softmax,
    SparkModel,
    Squared,
    minimize,
)
from sparkdist.blocks import Array
from sparkdist.errors import BadData, InvalidCall

pytestmark = pytest.mark.spark

N, D = 23, 3
#: Multiples of 1/8, which float32 holds exactly; two thirds of them are not 0.
X = (
    np.random.default_rng(7).integers(-16, 16, (N, D))
    / 8
    * (np.arange(N * D) % 3 > 0).reshape(N, D)
)
W, B = np.array([1.0, -2.0, 0.5]), 0.25
CLASSES = np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0], [-1.0, 0.5, 3.0]])  # (D, 3 classes)
MARGINS = X @ W + B
BINARY = SparkModel(Logistic(), {"weights": W, "intercept": np.array(B)}, D)
NAMES = ["a", "b", "c"]


def dense(x: Array) -> object:
    return Vectors.dense(x.tolist())


def sparse(x: Array) -> object:
    at = np.flatnonzero(x)
    return Vectors.sparse(D, at.tolist(), x[at].tolist())


def frame(spark: SparkSession, form: str) -> DataFrame:
    """Rows with their number in ``id``, in five partitions of which one or more are empty."""
    if form in ("double", "float"):
        rows, schema = X.tolist(), f"id int, features array<{form}>"
    elif form == "columns":
        rows, schema = X.tolist(), "id int, a double, b double, c double"
    else:
        forms = {"dense": [dense], "sparse": [sparse], "mixture": [sparse, dense]}[form]
        rows, schema = [forms[i % len(forms)](x) for i, x in enumerate(X)], ["id", "features"]
    flat = [(i, *row) if form == "columns" else (i, row) for i, row in enumerate(rows)]
    df = spark.createDataFrame(flat, schema)
    return df.withColumn("key", F.col("id") % 4).repartition(5, "key").drop("key")


def scored(model: SparkModel, df: DataFrame, **options: object) -> tuple[list, dict[str, Array]]:
    """Names of the columns, and the new ones in the order of the rows' numbers."""
    found = model.predict(df, **options)
    new = [name for name in found.columns if name not in df.columns]
    rows = sorted(found.select("id", *new).collect(), key=lambda row: row.id)
    return found.columns, {name: np.array([row[name] for row in rows]) for name in new}


FORMS = ["dense", "sparse", "mixture", "double", "float", "columns"]


@pytest.mark.parametrize("form", FORMS)
def test_a_frame_is_scored_by_the_formula_as_an_array_is(form, spark):
    df = frame(spark, form)
    features = NAMES if form == "columns" else "features"
    names, found = scored(BINARY, df, features=features)
    assert names == [*df.columns, "prediction", "probability"]
    assert_array_equal(found["prediction"], MARGINS > 0)
    assert_allclose(found["probability"], 1 / (1 + np.exp(-MARGINS)), rtol=1e-12)
    assert_array_equal(found["prediction"], BINARY.predict(X))
    assert_allclose(found["probability"], BINARY.predict_proba(X), rtol=1e-15)


def test_batches_of_any_size_are_scored(spark):
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "4")
    try:
        _, found = scored(BINARY, frame(spark, "mixture"))
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    assert_allclose(found["probability"], 1 / (1 + np.exp(-MARGINS)), rtol=1e-12)


def test_a_frame_without_rows_gets_its_columns(spark):
    df = frame(spark, "double").where("id < 0")
    assert BINARY.predict(df).columns == ["id", "features", "prediction", "probability"]
    assert BINARY.predict(df).collect() == []


def test_softmax_gives_the_class_and_an_array_of_probabilities(spark):
    model = SparkModel(Softmax(3), CLASSES, D)
    _, found = scored(model, frame(spark, "sparse"))
    odds = np.exp(X @ CLASSES)
    assert_array_equal(found["prediction"], odds.argmax(axis=1))
    assert_allclose(found["probability"], odds / odds.sum(axis=1, keepdims=True), rtol=1e-12)


MEANS: list[tuple[SparkModel, Callable[[Array], Array]]] = [
    (SparkModel(Squared(), W, D), lambda m: m),
    (SparkModel(Poisson(), W, D), np.exp),
    (SparkModel(Hinge(), W, D, labels=(-1.0, 1.0)), lambda m: np.where(m > 0, 1, -1)),
]


@pytest.mark.parametrize(("model", "of_margin"), MEANS)
def test_without_a_likelihood_of_classes_there_is_the_prediction_alone(model, of_margin, spark):
    names, found = scored(model, frame(spark, "double"))
    assert names == ["id", "features", "prediction"]
    assert_allclose(found["prediction"], of_margin(X @ W), rtol=1e-12)


def test_labels_are_those_of_the_training_data(spark):
    y = np.where(MARGINS > 0, 1.0, -1.0)
    y[:3] *= -1  # so that the classes overlap, and there is an optimum
    for labels in (y, (y + 1) / 2):
        with Dataset.from_arrays(spark, X, labels) as data:
            model = minimize("logistic", data, penalty=L2(0.1)).model
        _, found = scored(model, frame(spark, "dense"))
        assert {*found["prediction"]} == {*labels}
        assert np.mean(found["prediction"] == labels) > 0.7


def test_the_columns_of_the_training_data_are_read_also_after_a_save(spark, tmp_path):
    df = frame(spark, "columns").withColumn("label", (F.col("a") > F.col("c")).cast("double"))
    order = ["c", "a"]
    with Dataset.from_dataframe(df, order) as data:
        model = minimize("logistic", data, penalty=L2(0.1)).model
    loaded = sparkdist.load(model.save(tmp_path / "model"))
    _, found = scored(loaded, df)
    margins = X[:, [2, 0]] @ model.parameters
    assert_allclose(found["probability"], 1 / (1 + np.exp(-margins)), rtol=1e-12)


# --- what cannot be scored --------------------------------------------------------------------


def test_another_number_of_features_is_refused(spark):
    df = frame(spark, "columns")
    with pytest.raises(InvalidCall, match=r"3 features, \['a', 'b'\] are 2"):
        BINARY.predict(df, features=["a", "b"])
    short = SparkModel(Logistic(), W[:2], 2)
    with pytest.raises(PySparkException, match=r"X must have shape \(n, 2\); it has \(\d+, 3\)"):
        short.predict(frame(spark, "sparse")).collect()
    with pytest.raises(InvalidCall, match=r"X must have shape \(n, 2\); it has \(23, 3\)"):
        short.predict(X)


def test_columns_that_are_not_there_are_refused(spark):
    with pytest.raises(InvalidCall, match="there is no column 'features'; there are id, a, b, c"):
        BINARY.predict(frame(spark, "columns"))


def test_a_row_without_features_is_named(spark):
    df = spark.createDataFrame([(None,)], "features array<double>")
    with pytest.raises(PySparkException, match="row 0 of a batch: the features are null"):
        BINARY.predict(df).collect()


def test_a_loss_of_ones_own_does_not_predict(spark):
    with Dataset.from_arrays(spark, X, MARGINS) as data:
        found = minimize(lambda w, X, y: (w @ w, 2 * w), data, np.ones(D))
        with pytest.raises(InvalidCall, match="its loss is your own function"):
            found.model.evaluate(data)
    with pytest.raises(InvalidCall, match="its loss is your own function"):
        found.model.predict(frame(spark, "double"))


# --- evaluation -------------------------------------------------------------------------------

WEIGHT = np.arange(1.0, N + 1)


def mean(values: Array) -> float:
    return float(WEIGHT @ values / WEIGHT.sum())


def test_evaluate_gives_weighted_means_of_loss_and_error(spark):
    y = np.arange(N) % 2.0
    p = 1 / (1 + np.exp(-MARGINS))
    expected = {
        "loss": mean(-np.log(np.where(y == 1, p, 1 - p))),
        "error_rate": mean((p > 0.5) != y),
    }
    for labels in (y, 2 * y - 1):  # whatever the convention of the model
        with Dataset.from_arrays(spark, X, labels, WEIGHT, n_partitions=4) as data:
            found = BINARY.evaluate(data)
        assert found == pytest.approx(expected, rel=1e-12)


def test_evaluate_takes_what_minimize_takes(spark):
    y = np.arange(N) % 2.0
    table = [(*x, float(a), float(b)) for x, a, b in zip(X.tolist(), y, WEIGHT, strict=True)]
    df = spark.createDataFrame(table, [*NAMES, "label", "importance"])
    model = SparkModel(Logistic(), BINARY.parameters, D, features=NAMES)
    with Dataset.from_arrays(spark, X, y, WEIGHT) as data:
        expected = model.evaluate(data)
        for wrong in (data, df, df.rdd):
            for ask in (model.predict_proba, *([model.predict] if wrong is not df else [])):
                with pytest.raises(InvalidCall, match="it must be an array; predict"):
                    ask(wrong)
    assert model.evaluate(df, weight="importance") == pytest.approx(expected, rel=1e-12)
    mirrored = df.toDF("c", "b", "a", "y", "importance")
    columns = {"features": ["c", "b", "a"], "label": "y", "weight": "importance"}
    assert model.evaluate(mirrored, **columns) == pytest.approx(expected, rel=1e-12)
    rows = spark.sparkContext.parallelize([*zip(X, y, WEIGHT, strict=True)], 2)
    assert model.evaluate(rows) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(InvalidCall, match="data is a ndarray; it must be a Dataset, a DataFrame"):
        model.evaluate(X)


def test_of_a_row_with_nan_nobody_knows(spark):
    df = spark.createDataFrame([([float("nan")] * D,), (X[0].tolist(),)], "features array<double>")
    first, second = BINARY.predict(df).collect()
    assert np.isnan([first.prediction, first.probability]).all()
    assert second.prediction == BINARY.predict(X[:1])[0]


def test_evaluate_softmax(spark):
    y = np.arange(N) % 3.0
    odds = np.exp(X @ CLASSES)
    own = odds[np.arange(N), y.astype(int)] / odds.sum(axis=1)
    expected = {"loss": mean(-np.log(own)), "error_rate": mean(odds.argmax(axis=1) != y)}
    with Dataset.from_arrays(spark, X, y, WEIGHT) as data:
        found = SparkModel(Softmax(3), CLASSES, D).evaluate(data)
    assert found == pytest.approx(expected, rel=1e-12)


def test_evaluate_regressions(spark):
    y, m = np.arange(N) / 4.0, X @ W
    with Dataset.from_arrays(spark, X, y, WEIGHT) as data:
        squared = SparkModel(Squared(), W, D).evaluate(data)
        poisson = SparkModel(Poisson(), W, D).evaluate(data)
    expected = {"loss": mean((m - y) ** 2) / 2, "mean_squared_error": mean((m - y) ** 2)}
    assert squared == pytest.approx(expected, rel=1e-12)
    expected = {
        "loss": mean(np.exp(m) - y * m),
        "mean_squared_error": mean((np.exp(m) - y) ** 2),
    }
    assert poisson == pytest.approx(expected, rel=1e-12)


def test_evaluate_refuses_data_that_does_not_fit_the_model(spark):
    with Dataset.from_arrays(spark, X, np.full(N, 2.0)) as data:
        with pytest.raises(BadData, match=r"Logistic needs labels .* row 0 .* has 2"):
            BINARY.evaluate(data)
        with pytest.raises(InvalidCall, match="the model has 2 features, the data 3"):
            SparkModel(Squared(), W[:2], 2).evaluate(data)

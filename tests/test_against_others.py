"""minimize against scikit-learn and MLlib: other people's code for the same models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyspark.ml.classification import LogisticRegression as MLlibLogisticRegression
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge

from sparkdist import L1, L2, Dataset, Softmax, minimize
from sparkdist.blocks import Array, Block

pytestmark = pytest.mark.spark

N, D, LAMBDA = 300, 4, 0.01


def make_table() -> Block:
    """Correlated features of different scales, labels of a logistic model, weights."""
    random = np.random.default_rng(11)
    X = random.normal(size=(N, D)) @ random.normal(size=(D, D)) * [1.0, 3.0, 0.3, 1.0] + 0.5
    p = 1 / (1 + np.exp(-(X @ [1.0, -0.5, 2.0, 0.0] - 1.0)))
    return Block(X, (random.random(N) < p).astype(float), random.uniform(0.5, 2.0, N))


TABLE = make_table()


@pytest.fixture(scope="module")
def data(spark: SparkSession) -> Iterator[Dataset]:
    with Dataset.from_arrays(spark, *TABLE, n_partitions=2) as data:
        yield data


# --- scikit-learn -----------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [False, True])
def test_logistic_regression_is_that_of_scikit_learn(intercept, data):
    # Their objective is C sum_i s_i loss_i + |w|^2 / 2, ours the mean plus (lambda / 2) |w|^2.
    X, y, weight = TABLE
    C = 1 / (LAMBDA * weight.sum())
    theirs = LogisticRegression(
        C=C, fit_intercept=intercept, solver="newton-cg", tol=1e-12, max_iter=1000
    ).fit(X, y, weight)
    found = minimize(
        "logistic", data, method="newton_cg", penalty=L2(LAMBDA), intercept=intercept, tol=1e-10
    )
    w, b = (found.x["weights"], found.x["intercept"]) if intercept else (found.x, 0.0)
    assert_allclose(w, theirs.coef_[0], atol=1e-7)
    assert_allclose(b, theirs.intercept_[0] if intercept else 0.0, atol=1e-7)


def test_poisson_regression_is_that_of_scikit_learn(spark):
    # Their half deviance differs from our loss by what does not depend on w.
    X, _, weight = TABLE
    y = np.random.default_rng(0).poisson(np.exp(0.2 * X @ [1.0, -0.5, 1.0, 0.0])).astype(float)
    theirs = PoissonRegressor(alpha=LAMBDA, solver="newton-cholesky", tol=1e-12).fit(X, y, weight)
    with Dataset.from_arrays(spark, X, y, weight) as data:
        found = minimize("poisson", data, penalty=L2(LAMBDA), intercept=True, tol=1e-10)
    assert_allclose(found.x["weights"], theirs.coef_, atol=1e-7)
    assert_allclose(found.x["intercept"], theirs.intercept_, atol=1e-7)


def test_least_squares_is_ridge_regression_of_scikit_learn(spark):
    # Their objective is sum_i s_i (x_i w - y_i)^2 + alpha |w|^2, without our halves.
    X, _, weight = TABLE
    y = X @ [1.0, 2.0, 3.0, 4.0] + np.random.default_rng(0).normal(size=N)
    theirs = Ridge(alpha=LAMBDA * weight.sum(), solver="cholesky").fit(X, y, weight)
    with Dataset.from_arrays(spark, X, y, weight) as data:
        found = minimize("squared", data, penalty=L2(LAMBDA), intercept=True, tol=1e-10)
    assert_allclose(found.x["weights"], theirs.coef_, atol=1e-7)
    assert_allclose(found.x["intercept"], theirs.intercept_, atol=1e-7)


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array]:
    X, y = load_digits(return_X_y=True)
    return X / 16, y.astype(float)


def test_softmax_on_digits_is_that_of_scikit_learn(digits, spark):
    """B5: the start is that of Ray's example program, 1e-2 N(0, 1)."""
    X, y = digits
    C = 1 / (LAMBDA * len(y))
    theirs = LogisticRegression(C=C, fit_intercept=False, solver="newton-cg", tol=1e-10)
    W = theirs.fit(X, y).coef_.T
    own = log_softmax(X @ W, axis=1)[np.arange(len(y)), y.astype(int)]
    optimum = -own.mean() + LAMBDA / 2 * np.sum(W**2)
    start = 1e-2 * np.random.default_rng(0).normal(size=(64, 10))
    with Dataset.from_arrays(spark, X, y, n_partitions=2) as data:
        found = minimize(Softmax(10), data, start, penalty=L2(LAMBDA), tol=1e-8)
    assert_allclose(found.fun, optimum, rtol=1e-10)
    assert_allclose(found.x, W, atol=1e-5)
    assert np.mean(found.model.predict(X) == y) == theirs.score(X, y)


# --- the intercept is never penalised ---------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "penalty"), [("lbfgs", L2(1e7)), ("newton_cg", L2(1e7)), ("owlqn", L1(1e3))]
)
def test_under_a_huge_penalty_the_intercept_is_the_log_odds(method, penalty, data):
    _, y, weight = TABLE
    share = weight @ y / weight.sum()
    found = minimize("logistic", data, method=method, penalty=penalty, intercept=True, tol=1e-9)
    assert_allclose(found.x["weights"], 0, atol=1e-6)
    assert_allclose(found.x["intercept"], np.log(share / (1 - share)), atol=1e-6)


def test_under_a_huge_penalty_the_intercepts_of_softmax_are_the_shares(digits, spark):
    X, y = digits[0][:500, :3], digits[1][:500] % 3
    with Dataset.from_arrays(spark, X, y) as data:
        found = minimize(Softmax(3), data, penalty=L2(1e6), intercept=True, tol=1e-9)
    b = np.log(np.bincount(y.astype(int)) / 500)
    assert_allclose(found.x["intercept"] - found.x["intercept"].mean(), b - b.mean(), atol=1e-6)
    assert found.x["weights"].shape == (3, 3)
    assert_allclose(found.x["weights"], 0, atol=1e-6)


def test_from_the_largest_gradient_on_an_l1_penalty_gives_exactly_zero(data):
    """B7: lambda_max = max |gradient at 0|."""
    X, y, weight = TABLE
    largest = np.abs(X.T @ (weight * (0.5 - y))).max() / weight.sum()
    above = minimize("logistic", data, method="owlqn", penalty=L1(1.0001 * largest))
    below = minimize("logistic", data, method="owlqn", penalty=L1(0.9 * largest))
    assert np.count_nonzero(above.x) == 0
    assert np.count_nonzero(below.x) >= 1


# --- MLlib ------------------------------------------------------------------------------------


def test_coefficients_are_those_of_mllib(spark):
    """B4: MLlib standardises inside even when told not to, and reverses it."""
    X, y, _ = TABLE
    rows = [(Vectors.dense(x), label) for x, label in zip(X.tolist(), y.tolist(), strict=True)]
    df = spark.createDataFrame(rows, ["features", "label"])
    estimator = MLlibLogisticRegression(
        elasticNetParam=0.0,
        standardization=False,
        fitIntercept=False,
        regParam=1e-3,
        tol=1e-12,
        maxIter=300,
    )
    theirs = estimator.fit(df)
    found = minimize("logistic", df, penalty=L2(1e-3), tol=1e-10)
    assert_allclose(found.x, theirs.coefficients.toArray(), atol=1e-5)

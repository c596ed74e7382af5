"""One-shot averages of predictions: ensembles of the workers' own models, by hand and on Spark."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark.sql import SparkSession
from scipy.special import expit, softmax
from sklearn.datasets import load_digits

from sparkdist import L2, MLP, Dataset, Model, load, methods, minimize
from sparkdist.blocks import Block
from sparkdist.codecs import ef21, error_feedback, top_k
from sparkdist.errors import InvalidCall
from sparkdist.model import stack
from sparkdist.objectives import Hinge, Huber, Logistic, Poisson, Softmax, Squared
from sparkdist.registry import get
from sparkdist.simulate import Deaths, exponential, simulate
from sparkdist.spark.training.model_server import ModelServer
from sparkdist.updaters import inverse_time, sgd
from sparkdist.workers import Batches, local_sgd
from tests.conftest import RETRYING, random_block
from tests.faults import fail
from tests.test_model import edit, refused
from tests.test_model_server import FailsLate
from tests.test_store import RUN, a_push, make_store, restored

X = np.random.default_rng(5).normal(size=(50, 4))
RATE, BATCH, EPOCHS, SEED = 0.3, 6, 3, 2
#: Workers with unlike numbers of rows, each with a weight of its own.
PARTS = [random_block(rows, 4, seed) for seed, rows in enumerate([30, 17, 43])]
#: Derivatives of the loss in the score, by hand, and the mean that a score stands for.
BY_HAND = {
    "logistic": (lambda m, y: expit(m) - (y > 0), expit),
    "squared": (lambda m, y: m - y, lambda m: m),
    "poisson": (lambda m, y: np.exp(m) - y, np.exp),
}


def of_loss(name):
    """The parts, with labels that the loss knows."""
    return [block._replace(y=np.abs(block.y)) if name == "poisson" else block for block in PARTS]


def alone(block, partition, slope):
    """Stochastic gradient descent of one worker on its own rows, written out."""
    batches, w = Batches([block], BATCH, seed=SEED, partition=partition), np.zeros(4)
    for epoch in range(EPOCHS):
        for number in range(batches.per_epoch):
            rows, y, weight = batches.get(epoch, number)
            w = w - RATE * rows.T @ (weight * slope(rows @ w, y)) / weight.sum()
    return w


def one_shot(name="logistic", **options):
    known = {"combine": "predictions", "inner": sgd(RATE), "batch_size": BATCH, "epochs": EPOCHS}
    return simulate(name, of_loss(name), method="one_shot", seed=SEED, **known | options)


# --- against descents by hand -----------------------------------------------------------------


@pytest.mark.parametrize("name", BY_HAND)
def test_an_ensemble_predicts_the_mean_of_what_its_workers_would_alone(name):
    slope, mean = BY_HAND[name]
    model, parts = one_shot(name).model, of_loss(name)
    members = [alone(block, p, slope) for p, block in enumerate(parts)]
    weights = [block.weight.sum() for block in parts]
    assert_allclose(model.parameters, members, rtol=1e-10)
    assert_allclose(model.shares, np.divide(weights, sum(weights)), rtol=1e-12)
    expected = np.average([mean(X @ w) for w in members], axis=0, weights=weights)
    found = model.predict_proba(X) if name == "logistic" else model.predict(X)
    assert_allclose(found, expected, rtol=1e-9)
    if name == "logistic":
        assert_array_equal(model.predict(X), expected > 0.5)


def test_of_linear_predictions_it_is_the_average_of_parameters():
    for name in ("squared", "hinge"):
        many, one = one_shot(name), one_shot(name, combine="parameters")
        assert_array_equal(many.x, one.x)
        assert many.fun == one.fun and one.model.shares == ()
        assert_allclose(many.model.scores(X), one.model.scores(X), rtol=1e-12)


def test_of_probabilities_it_is_not():
    many, one = one_shot(), one_shot(combine="parameters")
    assert_array_equal(many.x, one.x)
    assert np.abs(many.model.predict_proba(X) - one.model.predict_proba(X)).max() > 1e-4


def test_a_worker_without_rows_is_no_member():
    nothing = Block(np.zeros((0, 4)), np.zeros(0), np.zeros(0))
    parts = [PARTS[0], nothing, PARTS[1]]
    model = simulate("logistic", parts, method="one_shot", combine="predictions").model
    weights = np.array([PARTS[0].weight.sum(), PARTS[1].weight.sum()])
    assert_allclose(model.shares, weights / weights.sum(), rtol=1e-12)


def test_networks_that_started_apart_can_be_averaged_by_predictions_only():
    # Hidden units have no order: the mean of the parameters of two networks is no network.
    pixels, y = load_digits(return_X_y=True)
    pixels, y = pixels / 16.0, y.astype(float)
    train, test = np.arange(1200), np.arange(1200, len(y))
    loss, members = MLP((64, 16, 10)), []
    for k, rows in enumerate(np.array_split(train, 4)):
        options = {"updater": sgd(0.5), "batch_size": 20, "epochs": 15, "seed": k}
        data = pixels[rows], y[rows]
        found = simulate(loss, data, loss.initial(k), workers=1, method="sgd", points=1, **options)
        members.append(found.x)

    def error(model):
        return (model.predict(pixels[test]) != y[test]).mean()

    together = Model(loss, stack(members), 64, shares=(0.25,) * 4)
    mixed = {name: np.mean([m[name] for m in members], axis=0) for name in members[0]}
    each = [error(Model(loss, member, 64)) for member in members]
    assert error(together) < np.mean(each) < 0.25
    assert error(Model(loss, mixed, 64)) > 2 * error(together)


# --- the opinion pool -------------------------------------------------------------------------

SHARES = np.array([0.5, 0.3, 0.2])
SCORES = np.random.default_rng(0).normal(size=(3, 7, 4), scale=3.0)
LINEAR = [Squared(), Huber(), Hinge(), MLP((3, 1), output="squared")]


def test_the_pool_of_scores_gives_the_mean_of_predictions():
    s = SCORES[:, :, 0]
    assert_allclose(expit(Logistic().pool(s, SHARES)), SHARES @ expit(s), rtol=1e-12)
    assert_allclose(np.exp(Poisson().pool(s, SHARES)), SHARES @ np.exp(s), rtol=1e-12)
    expected = np.tensordot(SHARES, softmax(SCORES, axis=2), axes=1)
    for loss in (Softmax(4), MLP((3, 4))):
        assert_allclose(loss.probability(loss.pool(SCORES, SHARES)), expected, rtol=1e-12)
    for loss in LINEAR:
        assert_allclose(loss.pool(s, SHARES), SHARES @ s, rtol=1e-12)


def test_the_pool_of_certain_models_that_disagree_is_finite():
    # Of probabilities 1 - exp(-800) and exp(-800) the mean is 1/2, and its logit 0; of 1 and 1/2,
    # to 300 digits, 3/4, and log 3.
    s = np.array([[800.0, 800.0], [-800.0, 0.0]])
    half = np.array([0.5, 0.5])
    assert_allclose(Logistic().pool(s, half), [0.0, np.log(3.0)], atol=1e-15)
    both = np.stack([s, np.zeros_like(s)], axis=2)
    pooled = Softmax(2).pool(both, half)
    assert_allclose(pooled[:, 0] - pooled[:, 1], [0.0, np.log(3.0)], atol=1e-15)


@pytest.mark.parametrize("loss", [Logistic(), Poisson(), *LINEAR], ids=repr)
def test_the_pool_of_equal_models_is_each_of_them(loss):
    s = np.linspace(-30.0, 30.0, 13)
    assert_allclose(loss.pool(np.array([s, s, s]), SHARES), s, rtol=1e-9, atol=1e-9)


# --- what survives ----------------------------------------------------------------------------


def test_workers_that_die_change_no_bit_of_the_ensemble():
    calm = one_shot()
    rough = one_shot(latency=exponential(1.0), deaths=Deaths(15.0, 3.0))
    assert rough.deaths > 0
    assert_array_equal(rough.model.parameters, calm.model.parameters)
    assert rough.model.shares == calm.model.shares


@pytest.mark.parametrize("codec", [ef21(top_k(0.5)), error_feedback(top_k(0.5))], ids=repr)
@pytest.mark.parametrize("memory", ["host", "server"])
def test_a_codec_compresses_what_is_pushed_and_no_member(codec, memory):
    plain, coded = one_shot(), one_shot(codec=codec, memory=memory)
    assert_array_equal(coded.model.parameters, plain.model.parameters)
    assert coded.model.shares == plain.model.shares
    assert not np.array_equal(coded.x, plain.x)


def test_the_members_are_in_the_checkpoint(tmp_path):
    policy = get(methods, "one_shot")(combine="predictions").consistency
    store = make_store(2, policy, 2, folder=tmp_path, every_update=True)
    for p, state in enumerate(([3.0, 1.0, 2.0], [1.0, 5.0, 6.0])):
        store.push(RUN, a_push(store, p, 0, [0.0, 0.0], base=0, state=np.array(state)))
    again = restored(tmp_path, 2, policy, 2)
    assert again.version == 1
    assert {p: s.tolist() for p, s in again.ledger.states.items()} == {
        0: [3.0, 1.0, 2.0],
        1: [1.0, 5.0, 6.0],
    }


# --- files ------------------------------------------------------------------------------------


def an_ensemble(objective, n_features, intercept=False):
    """Three models whose parameters are all different."""
    layout, random = objective.own_layout, np.random.default_rng(1)
    shape = objective.shape(n_features)
    if layout is not None:
        members = [layout.unflatten(random.normal(size=layout.size)) for _ in range(3)]
    elif intercept:
        parts = {"weights": shape, "intercept": shape[1:]}
        members = [{n: random.normal(size=s) for n, s in parts.items()} for _ in range(3)]
    else:
        members = [random.normal(size=shape) for _ in range(3)]
    return Model(objective, stack(members), n_features, shares=tuple(SHARES))


@pytest.mark.parametrize("read", [Model.load, load], ids=["numpy", "spark"])
@pytest.mark.parametrize(
    ("objective", "intercept"),
    [(Logistic(), False), (Logistic(), True), (Softmax(3), True), (MLP((4, 5, 3)), False)],
    ids=repr,
)
def test_an_ensemble_is_saved_and_comes_back(tmp_path, objective, intercept, read):
    model = an_ensemble(objective, 4, intercept)
    found = read(model.save(tmp_path))
    assert found.shares == model.shares
    assert_array_equal(found.flat(), model.flat())
    assert found.flat().shape[0] == 3
    assert_array_equal(found.predict_proba(X), model.predict_proba(X))
    described = json.loads((tmp_path / "model.json").read_text())
    assert (described["format"], described["shares"]) == (2, [0.5, 0.3, 0.2])


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 1},
        {"shares": [0.5, 0.5]},
        {"shares": [0.25] * 4},
        {"shares": []},
        {"shares": [0.5, 0.3, 0.3]},
        {"shares": [1.5, 0.5, -1.0]},
        {"shares": None},
        {"shares": [float("nan")] * 3},
    ],
    ids=str,
)
def test_a_folder_whose_shares_do_not_fit_is_refused(tmp_path, changes):
    saved = an_ensemble(Logistic(), 4).save(tmp_path)
    edit(saved, **changes)
    refused(saved)


# --- what cannot be ---------------------------------------------------------------------------


def test_what_makes_no_ensemble_is_refused():
    with pytest.raises(InvalidCall, match="combine must be 'parameters' or 'predictions'"):
        get(methods, "one_shot")(combine="votes")
    for more in ({"steps": 8}, {"steps": "all", "warm": 2}):
        with pytest.raises(InvalidCall, match="with steps='all'"):
            local_sgd(**more, ensemble=True)


def test_shares_that_are_not_those_of_the_parameters_are_refused():
    model = Model(Logistic(), np.zeros((3, 4)), 4, shares=(0.5, 0.5))
    with pytest.raises(InvalidCall, match=r"there are 2 shares, .* \(3, 4\)"):
        model.predict(X)


# --- Spark ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spark(start: Callable[..., SparkSession], folder: Path) -> SparkSession:
    return start(RETRYING, folder)


@pytest.mark.spark
def test_on_spark_it_is_the_same_ensemble_bit_for_bit_though_a_task_fails(spark, a9a, tmp_path):
    options = {"inner": sgd(inverse_time(0.5, 0.01)), "batch_size": 256, "epochs": 2}
    options |= {"penalty": L2(1e-3), "method": "one_shot", "combine": "predictions"}
    simulated = simulate("logistic", (a9a.X, a9a.y), workers=2, points=1, **options)
    data, flag = Dataset.from_arrays(spark, a9a.X, a9a.y, n_partitions=2), tmp_path / "flag"
    result = minimize(FailsLate(flag, fail), data, progress=False, **options)
    assert flag.exists()
    assert_array_equal(result.model.parameters, simulated.model.parameters)
    assert result.model.shares == simulated.model.shares
    calm = minimize("logistic", data, progress=False, **options)
    assert_array_equal(calm.model.parameters, simulated.model.parameters)
    members, shares = calm.model.parameters, calm.model.shares
    p = np.average([expit(a9a.X @ w) for w in members], axis=0, weights=shares)
    wrong = (p > 0.5) != (a9a.y > 0)
    loss = -np.where(a9a.y > 0, np.log(p), np.log1p(-p)).mean()
    found = calm.model.evaluate(data)
    assert found == pytest.approx({"loss": loss, "error_rate": wrong.mean()}, rel=1e-9)
    frame = spark.createDataFrame([([1.0] * 123,)], "features array<double>")
    (row,) = calm.model.predict(frame).collect()
    ones = np.average(expit(members.sum(axis=1)), weights=shares)
    assert row.probability == pytest.approx(ones, rel=1e-12)


@pytest.mark.spark
def test_own_rows_make_no_ensemble(spark):
    worker, policy, updater, _ = get(methods, "one_shot")(combine="predictions")
    rows = spark.sparkContext.parallelize([1.0, 2.0], 2)
    with ModelServer(np.zeros(1), updater=updater, consistency=policy) as server:
        with pytest.raises(InvalidCall, match="an ensemble needs an objective"):
            server.train(rows, lambda model, rows: model - np.mean(rows), worker=worker)

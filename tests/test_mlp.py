"""MLP: its derivatives, closed forms, scikit-learn's, two precisions, training, and its model."""

from __future__ import annotations

import json
import time
import warnings

import numpy as np
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

from sparkdist import Model, SparkModel
from sparkdist.blocks import Block, Partial
from sparkdist.errors import InvalidCall, ModelFileError
from sparkdist.objectives import MLP, Logistic, Softmax, Squared
from sparkdist.penalties import L2
from sparkdist.problem import as_objective, pose
from sparkdist.solving import Solving
from tests.in_memory import InMemory

NETWORKS = [
    MLP((4, 3)),
    MLP((4, 1), output="squared"),
    MLP((4, 5, 3), "relu"),
    MLP((4, 5, 3), "tanh"),
    MLP((4, 5, 1), "relu", "squared"),
    MLP((4, 5, 1), "tanh", "squared"),
    MLP([4, 5, 3, 6, 3], "relu"),
    MLP([4, 5, 3, 6, 3], "tanh"),
    MLP([4, 5, 3, 6, 1], "tanh", "squared"),
]
DEEP = NETWORKS[-2]


def random_problem(network, n=20, seed=0, *, to_matrix=np.asarray):
    """Return w, away from any symmetry, and a block with uneven weights and many zeros."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, network.n_features)) * (random.random((n, network.n_features)) < 0.7)
    y = random.integers(0, network.n_scores, n) if network.classifies else random.normal(size=n)
    block = Block(to_matrix(X), y.astype(float), random.uniform(0.5, 2.0, n))
    return random.normal(size=network.size(network.n_features)), block


def flat(network, **arrays):
    return network.own_layout.flatten(arrays)


def slope_along(f, w, direction, h=1e-4):
    """Fourth-order central difference of f at w."""
    near = f(w + h * direction) - f(w - h * direction)
    far = f(w + 2 * h * direction) - f(w - 2 * h * direction)
    return (8 * near - far) / (12 * h)


# --- derivatives ----------------------------------------------------------------------------


@pytest.mark.parametrize("to_matrix", [np.asarray, csr_array])
@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_gradient_is_the_derivative_of_the_value(network, to_matrix):
    w, block = random_problem(network, to_matrix=to_matrix)
    differences = [
        slope_along(lambda u: network.value_and_grad(u, block).loss, w, axis)
        for axis in np.eye(w.size)
    ]
    # tanh of four layers has large fifth derivatives, which is the differences' error.
    assert_allclose(network.value_and_grad(w, block).grad, differences, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("to_matrix", [np.asarray, csr_array])
@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_hessp_is_the_derivative_of_the_gradient(network, to_matrix):
    w, block = random_problem(network, to_matrix=to_matrix)
    v = np.random.default_rng(1).normal(size=w.size)
    differences = slope_along(lambda u: network.value_and_grad(u, block).grad, w, v, h=1e-5)
    assert_allclose(network.hessp(w, v, block), differences, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_hessian_is_symmetric(network):
    w, block = random_problem(network)
    H = np.array([network.hessp(w, axis, block) for axis in np.eye(w.size)])
    assert_allclose(H, H.T, rtol=1e-10, atol=1e-10)
    assert np.abs(H).max() > 0.1


@pytest.mark.parametrize("to_matrix", [np.asarray, csr_array])
def test_partials_of_split_rows_add_to_the_whole(to_matrix):
    w, block = random_problem(DEEP, to_matrix=to_matrix)
    rows = [slice(0, 7), slice(7, 7), slice(7, 8), slice(8, 20)]
    parts = (DEEP.value_and_grad(w, Block(*(part[cut] for part in block))) for cut in rows)
    merged, whole = sum(parts, Partial.nothing()), DEEP.value_and_grad(w, block)
    assert_allclose([merged.loss, merged.weight], [whole.loss, whole.weight], rtol=1e-13)
    assert_allclose(merged.grad, whole.grad, rtol=1e-12, atol=1e-12)


# --- numbers from outside -------------------------------------------------------------------


def test_a_squared_network_by_hand():
    # z = (1 + 4 - 1, -1 + 2 - 3) = (4, -2), a = (4, 0), s = 2 + 0 + 1 = 3, y = 1: r = 2,
    # three times.  Backwards 6 (1/2, 3) = (3, 18), of which the second unit passes nothing on.
    network = MLP((2, 2, 1), "relu", "squared")
    w = flat(network, W1=[[1, -1], [2, 1]], b1=[-1, -3], W2=[[0.5], [3]], b2=[1])
    block = Block(np.array([[1.0, 2.0]]), np.array([1.0]), np.array([3.0]))
    partial = network.value_and_grad(w, block)
    assert (partial.loss, partial.weight) == (6.0, 3.0)
    assert_array_equal(
        partial.grad, flat(network, W1=[[3, 0], [6, 0]], b1=[3, 0], W2=[[24], [0]], b2=[6])
    )
    assert_array_equal(network.scores(w, block.X), [3.0])


def test_a_softmax_network_by_hand():
    # z = 2/4 - 1/2 = 0, a = 0 with slope 1, s = (0, log 3), p = (1/4, 3/4), y = 0.
    network = MLP((1, 1, 2), "tanh")
    w = flat(network, W1=[[0.25]], b1=[-0.5], W2=[[1, -1]], b2=[0, np.log(3)])
    block = Block(np.array([[2.0]]), np.array([0.0]), np.array([1.0]))
    partial = network.value_and_grad(w, block)
    expected = flat(network, W1=[[-3]], b1=[-1.5], W2=[[0, 0]], b2=[-0.75, 0.75])
    assert_allclose(partial.loss, np.log(4), rtol=1e-15)
    assert_allclose(partial.grad, expected, rtol=1e-15, atol=1e-16)
    assert_allclose(network.probability(network.scores(w, block.X)), [[0.25, 0.75]], rtol=1e-15)


@pytest.mark.parametrize(
    ("network", "linear"), [(MLP((4, 3)), Softmax(3)), (MLP((4, 1), output="squared"), Squared())]
)
@pytest.mark.parametrize("to_matrix", [np.asarray, csr_array])
def test_without_a_hidden_layer_it_is_linear_with_an_intercept(network, linear, to_matrix):
    w, block = random_problem(network, to_matrix=to_matrix)
    ours, theirs = (o.value_and_grad(w, block) for o in (network, linear))
    assert_allclose(ours.loss, theirs.loss, rtol=1e-13)
    assert_allclose(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    assert_allclose(network.hessp(w, w, block), linear.hessp(w, w, block), rtol=1e-12, atol=1e-12)
    assert_allclose(network.scores(w, block.X), linear.scores(w, block.X), rtol=1e-12)


def test_tanh_of_small_weights_is_linear():
    network = MLP((4, 5, 1), "tanh", "squared")
    w, block = random_problem(network)
    model = network.own_layout.unflatten(1e-4 * w)
    linear = (block.X @ model["W1"] + model["b1"]) @ model["W2"][:, 0] + model["b2"]
    assert_allclose(network.scores(1e-4 * w, block.X), linear, rtol=1e-6)


def fitted_by_sklearn(kind, network, w, X, y):
    """scikit-learn's loss at w, and its gradient: one epoch of SGD, whole batch, step 1."""
    theirs = kind(
        hidden_layer_sizes=network.layers[1:-1],
        activation=network.activation,
        solver="sgd",
        alpha=0.0,
        momentum=0.0,
        batch_size=len(y),
        learning_rate_init=1.0,
        max_iter=1,
        warm_start=True,
        random_state=0,
    )
    model = network.own_layout.unflatten(w)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(X, y)  # makes the arrays, which are then replaced
        theirs.coefs_ = [model[f"W{k}"].copy() for k in range(1, len(network.layers))]
        theirs.intercepts_ = [model[name].copy() for name in network.biases]
        theirs.fit(X, y)
    pairs = zip(theirs.coefs_, theirs.intercepts_, strict=True)
    stepped = np.concatenate([np.ravel(array) for pair in pairs for array in pair])
    return theirs, theirs.loss_, w - stepped


@pytest.mark.parametrize("network", [n for n in NETWORKS if len(n.layers) > 2], ids=repr)
def test_loss_and_gradient_are_those_of_scikit_learn(network):
    w, block = random_problem(network, n=30)
    kind = MLPClassifier if network.classifies else MLPRegressor
    theirs, loss, grad = fitted_by_sklearn(kind, network, 0.5 * w, block.X, block.y)
    ours = network.value_and_grad(0.5 * w, block._replace(weight=np.ones(30)))
    assert_allclose(ours.loss / 30, loss, rtol=1e-9)
    assert_allclose(ours.grad / 30, grad, rtol=1e-9, atol=1e-11)
    stepped = 0.5 * w - grad
    scores = network.scores(stepped, block.X)
    assert_allclose(network.predict(scores), theirs.predict(block.X), rtol=1e-9)
    if network.classifies:
        assert_allclose(network.probability(scores), theirs.predict_proba(block.X), rtol=1e-8)


# --- precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("to_matrix", [np.asarray, csr_array])
@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_a_float32_model_has_a_float32_gradient_near_that_of_float64(network, to_matrix):
    w, block = random_problem(network, to_matrix=to_matrix)
    single, double = (network.value_and_grad(u, block) for u in (w.astype(np.float32), w))
    assert (single.grad.dtype, type(single.loss)) == (np.float32, float)
    assert_allclose(single.loss, double.loss, rtol=1e-5)
    assert_allclose(single.grad, double.grad, rtol=1e-4, atol=1e-5 * np.abs(double.grad).max())
    assert not np.array_equal(single.grad, double.grad.astype(np.float32))  # no detour by float64
    assert network.hessp(w.astype(np.float32), w, block).dtype == np.float32
    assert network.scores(w.astype(np.float32), block.X).dtype == np.float32


def test_the_dtype_of_the_rows_does_not_matter_to_a_float32_model():
    w, block = random_problem(DEEP)
    w, rows = w.astype(np.float32), block._replace(X=block.X.astype(np.float32))
    same = rows._replace(X=rows.X.astype(np.float64))
    a, b = (DEEP.value_and_grad(w, given) for given in (rows, same))
    assert a.loss == b.loss
    assert_array_equal(a.grad, b.grad)


@pytest.mark.parametrize("dtype", [np.int64, np.float16, np.float64])
def test_any_other_model_is_computed_with_in_float64(dtype):
    w, block = random_problem(DEEP)
    w = (4 * w).astype(dtype)
    rows = block._replace(X=block.X.astype(np.float32))
    assert DEEP.value_and_grad(w, rows).grad.dtype == np.float64
    exact = DEEP.value_and_grad(w.astype(np.float64), rows._replace(X=rows.X.astype(np.float64)))
    assert_array_equal(DEEP.value_and_grad(w, rows).grad, exact.grad)


@pytest.mark.parametrize("weight_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("network", [MLP((1, 2)), MLP((1, 1), output="squared")])
def test_the_loss_of_a_float32_model_is_summed_in_float64(network, weight_dtype):
    w = np.zeros(network.size(1), np.float32)
    weight = np.array([2**25, *[1] * 7], weight_dtype)  # 2^25 + 7 is no float32
    block = Block(np.zeros((8, 1)), np.ones(8), weight)
    one = network.value_and_grad(w, Block(*(part[-1:] for part in block)))
    total = network.value_and_grad(w, block)
    assert (total.loss, total.weight) == (one.loss * (2**25 + 7), 2**25 + 7)


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1e30), (np.float64, 1e300)])
def test_extreme_scores_have_finite_losses_and_gradients(dtype, size):
    network = MLP((1, 1, 3))
    arrays = {"W1": [[1.0]], "b1": [0.0], "W2": [[size, -size, 0.0]], "b2": [0.0, 0.0, 0.0]}
    w = flat(network, **arrays).astype(dtype)
    block = Block(np.ones((3, 1)), np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 4.0]))
    partial = network.value_and_grad(w, block)
    # The losses are 0, 2 size and size; all of p is on class 0.
    assert_allclose(partial.loss, 8 * size, rtol=1e-6)
    grad = network.own_layout.unflatten(partial.grad)
    assert_array_equal(grad["b2"], [6, -2, -4])
    assert_array_equal(grad["W2"], [[6, -2, -4]])
    assert_allclose(grad["b1"], 6 * size + 2 * size, rtol=1e-6)
    assert_array_equal(network.probability(network.scores(w, block.X)), [[1, 0, 0]] * 3)


# --- where to start -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "variances"),
    [("relu", [2 / 784, 2 / 128]), ("tanh", [2 / (784 + 128), 2 / (128 + 10)])],
)
def test_initial_weights_have_the_variance_of_their_paper(activation, variances):
    network = MLP(activation=activation)
    model = network.initial()
    assert [(name, array.shape) for name, array in model.items()] == list(network.own_layout.shapes)
    for name, variance in zip(("W1", "W2"), variances, strict=True):
        # The variance of n normal draws has a relative spread of sqrt(2 / n).
        allowed = 4 * np.sqrt(2 / model[name].size)
        assert_allclose(np.var(model[name]), variance, rtol=allowed)
        assert abs(np.mean(model[name])) < 4 * np.sqrt(variance / model[name].size)
    assert not model["b1"].any()
    assert not model["b2"].any()


def test_initial_weights_follow_from_the_seed():
    first, again, other = (DEEP.own_layout.flatten(DEEP.initial(seed)) for seed in (3, 3, 4))
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    single = DEEP.initial(3, dtype=np.float32)
    assert {array.dtype for array in single.values()} == {np.dtype(np.float32)}
    assert_array_equal(DEEP.own_layout.flatten(single), first.astype(np.float32))
    assert {array.dtype for array in DEEP.initial(3).values()} == {np.dtype(np.float64)}


# --- training -------------------------------------------------------------------------------


def posed(network, w0=None, problems=None, **given):
    defaults = {"penalty": None, "bounds": None, "intercept": False, "unpenalized": ()}
    given = {"n_features": network.n_features, **defaults, **given}
    return pose(network, w0=w0, problems=[] if problems is None else problems, **given)


def train(network, block, method="lbfgs", w0=None, penalty=None, **options):
    """As minimize does, without Spark."""
    problem = posed(network, w0, penalty=penalty)
    solving = Solving(InMemory(block), problem, time.perf_counter(), lambda *seen: None, None)
    return solving.solve(method, {"tol": 1e-6, "max_iter": 500, **options})


XOR = Block(np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0.0, 1, 1, 0]), np.ones(4))


@pytest.mark.parametrize("network", [MLP((2, 8, 2), "tanh"), MLP((2, 8, 2), "relu")], ids=repr)
def test_xor_is_learnt_from_the_default_start_and_not_from_zero(network):
    zeros = {name: np.zeros(shape) for name, shape in network.own_layout.shapes}
    stuck, found = train(network, XOR, w0=zeros), train(network, XOR)
    assert_allclose(stuck.fun, np.log(2), rtol=1e-12)  # zero is stationary
    assert found.fun < 1e-3
    model = Model(network, found.x, 2)
    assert_array_equal(model.predict(XOR.X), XOR.y)
    assert_array_equal(model.predict_proba(XOR.X)[:, 1] > 0.99, XOR.y == 1)


@pytest.mark.parametrize("method", ["lbfgs", "newton_cg", "gd"])
def test_two_moons_are_separated(method):
    X, y = make_moons(120, noise=0.1, random_state=0)
    block, network = Block(X, y.astype(float), np.ones(120)), MLP((2, 10, 2), "tanh")
    found = train(network, block, method, penalty=L2(1e-4), tol=1e-4, max_iter=2000)
    assert found.success, found.message
    assert_array_equal(Model(network, found.x, 2).predict(X), y)


def test_a_sine_is_fitted():
    x = np.linspace(-3, 3, 60)[:, np.newaxis]
    block, network = Block(x, np.sin(x[:, 0]), np.ones(60)), MLP((1, 8, 1), "tanh", "squared")
    found = train(network, block, tol=1e-7)
    assert np.abs(Model(network, found.x, 1).predict(x) - block.y).max() < 0.02


# --- problems -------------------------------------------------------------------------------


def test_a_run_starts_from_initial_unless_told_otherwise():
    assert_array_equal(posed(DEEP).w0, DEEP.own_layout.flatten(DEEP.initial(0)))
    other = DEEP.initial(1)
    assert_array_equal(posed(DEEP, other).w0, DEEP.own_layout.flatten(other))


def test_penalties_leave_the_biases_alone():
    network = MLP((2, 2, 2))
    assert_array_equal(posed(network, penalty=L2(1)).mask, [1] * 4 + [0] * 2 + [1] * 4 + [0] * 2)
    freed = posed(network, penalty=L2(1), unpenalized=["W2"])
    assert_array_equal(freed.mask, [1] * 4 + [0] * 8)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"n_features": 7}, "MLP has 4 inputs; the data 7 features"),
        (
            {"intercept": True},
            "intercept=True is for linear models; MLP has b1, b2, b3, b4 already",
        ),
        (
            {"w0": np.zeros(92)},
            "w0 is an array of shape (92,); the model is a dict of W1(4, 5), b1",
        ),
        ({"unpenalized": ["b5"]}, "unpenalized names ['b5']; the model has ['W1', 'b1', 'W2',"),
    ],
)
def test_a_call_that_does_not_fit_is_a_problem(given, problem):
    problems = []
    posed(DEEP, problems=problems, **given)
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_the_class_and_the_name_mean_the_default_network():
    assert as_objective("mlp", None) == as_objective(MLP, None) == MLP((784, 128, 10), "relu")


@pytest.mark.parametrize(
    "layers", [(), (3,), 3, "34", None, (3, 0, 2), (3, -1, 2), (3.0, 2), {3, 2}]
)
def test_layers_that_are_none_are_refused(layers):
    with pytest.raises(InvalidCall) as caught:
        MLP(layers)
    rule = "layers must be two or more whole numbers, 1 or more: inputs, hidden units, outputs"
    assert caught.value.problems == (f"{rule}; it is {layers!r}",)


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (((4, 1),), ["a softmax output has one unit a class, 2 or more; layers ends in 1"]),
        (((4, 2), "relu", "squared"), ["a squared output has one unit; layers ends in 2"]),
        (((4, 2), "sine"), ["activation must be 'relu' or 'tanh'; it is 'sine'"]),
        (
            ((4, 2), None, ["softmax"]),
            [
                "activation must be 'relu' or 'tanh'; it is None",
                "output must be 'softmax' or 'squared'; it is ['softmax']",
            ],
        ),
    ],
)
def test_a_network_that_cannot_be_is_refused_with_all_problems(arguments, problems):
    with pytest.raises(InvalidCall) as caught:
        MLP(*arguments)
    assert list(caught.value.problems) == problems


def test_labels_are_those_of_the_output():
    labels = np.array([-1, 0, 0.5, 2, 3, np.nan])
    classes, target = MLP((4, 3)), MLP((4, 1), output="squared")
    assert_array_equal(classes.bad_labels(labels), [-1, 0.5, 3, np.nan])
    assert_array_equal(target.bad_labels(labels), [np.nan])
    assert classes.label_rule() == "whole numbers 0 to 2"
    assert target.label_rule() == "finite numbers"
    assert (classes.classifies, target.classifies) == (True, False)
    assert (classes.gives_probabilities, target.gives_probabilities) == (True, False)


# --- the model ------------------------------------------------------------------------------


def fitted(network, dtype=np.float64):
    return Model(network, network.initial(5, dtype=dtype), network.n_features, features="x")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_loading_inverts_saving(tmp_path, network, dtype):
    model = fitted(network, dtype)
    found = Model.load(model.save(tmp_path))
    assert (found.objective, found.n_features, found.features) == (network, 4, "x")
    assert list(found.parameters) == list(model.parameters)
    for name, array in model.parameters.items():
        assert found.parameters[name].dtype == dtype
        assert_array_equal(found.parameters[name], array)
    X = random_problem(network)[1].X
    assert_array_equal(found.predict(X), model.predict(X))
    assert_allclose(found.predict(csr_array(X)), model.predict(X), rtol=1e-12)


def test_the_order_of_the_parameters_does_not_matter():
    model = fitted(DEEP)
    names = sorted(model.parameters)
    assert names != list(model.parameters)
    other = Model(DEEP, {name: model.parameters[name] for name in names}, 4)
    X = random_problem(DEEP)[1].X
    assert_array_equal(other.predict_proba(X), model.predict_proba(X))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_features": 5},
        {"objective": {"name": "mlp", "arguments": {"layers": [4, 5, 2]}}},
        {"objective": {"name": "mlp", "arguments": {"layers": [4, 2, 5, 3]}}},
        {"objective": {"name": "mlp", "arguments": {"layers": [4]}}},
        {"objective": {"name": "mlp", "arguments": {"layers": None}}},
        {"objective": {"name": "mlp", "arguments": {"layers": [4, 5, 3], "activation": "x"}}},
        {"objective": {"name": "softmax", "arguments": {"n_classes": 3}}},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_refused(tmp_path, changes):
    path = fitted(MLP((4, 5, 3))).save(tmp_path) / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelFileError, match="is not a model folder of sparkdist"):
        Model.load(tmp_path)


def test_layers_may_be_a_list_of_numbers_of_numpy(tmp_path):
    network = MLP(list(np.array([4, 5, 3])))
    assert network == MLP((4, 5, 3))
    assert len({network, MLP((4, 5, 3))}) == 1
    saved = json.loads((fitted(network).save(tmp_path) / "model.json").read_text())
    assert saved["objective"]["arguments"]["layers"] == [4, 5, 3]


def test_a_linear_model_is_no_network(tmp_path):
    path = Model(Softmax(3), np.zeros((4, 3)), 4).save(tmp_path) / "model.json"
    mlp = {"objective": {"name": "mlp", "arguments": {"layers": [4, 3]}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | mlp))
    with pytest.raises(ModelFileError, match=r"needs \{'W1': \(4, 3\), 'b1': \(3,\)\}"):
        Model.load(tmp_path)


def test_a_squared_output_has_no_probabilities():
    with pytest.raises(InvalidCall, match="MLP gives no probabilities"):
        fitted(MLP((4, 1), output="squared")).predict_proba(np.zeros((2, 4)))


def test_a_dataframe_gets_a_probability_for_each_class(tmp_path):
    network = MLP((4, 5, 3))
    model = SparkModel.load(fitted(network).save(tmp_path))
    X = random_problem(network)[1].X
    scored = model._scorer("columns")(*(pa.array(column) for column in X.T))
    assert_allclose(np.array(scored.field("prediction")), model.predict(X))
    assert_allclose(scored.field("probability").to_pylist(), model.predict_proba(X), rtol=1e-12)
    # What the column's type is made from.
    assert [o.n_scores for o in (network, Softmax(4), Logistic(), Squared())] == [3, 4, 1, 1]

"""Properties of every loss, in or out of the registry."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from sparkdist import objectives, registry
from sparkdist.blocks import Block, Partial
from sparkdist.layout import Layout
from sparkdist.objectives import MLP, Huber, Softmax, UserLoss

D = 5


def log_cosh(w, X, y):
    """A convex user loss without weights, whose model is a dict."""
    r = X @ w["slope"] + w["level"] - y
    slope = np.tanh(r)
    return np.log(np.cosh(r)).sum(), {"level": slope.sum(), "slope": X.T @ slope}


def weighted_log_cosh(w, X, y, weight):
    """The same with weights; its model is one array."""
    r = X @ w - y
    return weight @ np.log(np.cosh(r)), X.T @ (weight * np.tanh(r))


REGISTERED = [registry.get(objectives, name)() for name in registry.names(objectives)]
MEMBERS = [
    *(member for member in REGISTERED if member.n_features is None),
    MLP((D, 4, 3), "tanh"),
    MLP((D, 3, 1), "relu", "squared"),
    Softmax(n_classes=4),
    Huber(delta=0.3),
    UserLoss(log_cosh, Layout.of({"level": 0.0, "slope": np.zeros(D - 1)})),
    UserLoss(weighted_log_cosh, Layout.of(np.zeros(D))),
]


def name_of(objective):
    return type(objective).__name__


LINEAR = [member for member in MEMBERS if member.n_intercepts]
CONVEX = [member for member in MEMBERS if member.convex]
SMOOTH = [member for member in MEMBERS if member.twice]
WEIGHTED = [member for member in MEMBERS if getattr(member, "takes_weight", True)]
SIGNED = [o for o in LINEAR if o.classifies and not o.bad_labels(np.array([-1.0, 1.0])).size]


@pytest.fixture(params=MEMBERS, ids=name_of)
def objective(request):
    return request.param


def n_columns(objective):
    return D - 1 if getattr(objective, "layout", None) and objective.layout.names else D


def random_problem(objective, n=40, seed=0, *, intercept=False):
    """Return w and a block with labels of the loss's own domain and uneven weights."""
    rng = np.random.default_rng(seed)
    d = n_columns(objective)
    candidates = np.arange(5.0)
    bad = objective.bad_labels(candidates)
    labels = rng.choice(candidates[~np.isin(candidates, bad)], size=n)
    block = Block(rng.normal(size=(n, d)), labels, rng.uniform(0.5, 2.0, size=n))
    size = objective.size(d) + (objective.n_intercepts if intercept else 0)
    return 0.5 * rng.normal(size=size), block


def take(block, start, stop):
    return Block(*(part[start:stop] for part in block))


def slope_along(f, w, direction, h=1e-4):
    """Fourth-order central difference of f at w; its error is h^4 times a fifth derivative."""
    near = f(w + h * direction) - f(w - h * direction)
    far = f(w + 2 * h * direction) - f(w - 2 * h * direction)
    return (8 * near - far) / (12 * h)


@pytest.mark.parametrize("intercept", [False, True])
def test_gradient_is_the_derivative_of_the_value(objective, intercept):
    w, block = random_problem(objective, intercept=intercept)
    grad = objective.value_and_grad(w, block).grad
    along_axes = [
        slope_along(lambda u: objective.value_and_grad(u, block).loss, w, axis)
        for axis in np.eye(w.size)
    ]
    assert grad.shape == w.shape
    assert_allclose(grad, along_axes, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("smooth", SMOOTH, ids=name_of)
@pytest.mark.parametrize("intercept", [False, True])
def test_hessp_is_the_derivative_of_the_gradient(smooth, intercept):
    w, block = random_problem(smooth, intercept=intercept)
    v = np.random.default_rng(1).normal(size=w.size)
    expected = slope_along(lambda u: smooth.value_and_grad(u, block).grad, w, v)
    assert_allclose(smooth.hessp(w, v, block), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smooth", SMOOTH, ids=name_of)
def test_hessian_is_symmetric_and_positive_semidefinite_where_the_loss_is_convex(smooth):
    w, block = random_problem(smooth, intercept=True)
    H = np.array([smooth.hessp(w, axis, block) for axis in np.eye(w.size)])
    assert_allclose(H, H.T, rtol=1e-12, atol=1e-12)
    assert (np.linalg.eigvalsh(H).min() > -1e-10) == smooth.convex
    assert np.abs(H).max() > 0.1


@pytest.mark.parametrize("convex", CONVEX, ids=name_of)
def test_gradient_is_a_subgradient_of_a_convex_function(convex):
    w, block = random_problem(convex)
    at_w = convex.value_and_grad(w, block)
    for step in np.random.default_rng(2).normal(size=(20, w.size)):
        there = convex.value_and_grad(w + step, block).loss
        assert there >= at_w.loss + at_w.grad @ step - 1e-12


def test_partials_of_split_rows_add_to_the_whole(objective):
    w, block = random_problem(objective, n=40)
    cuts = [(0, 7), (7, 7), (7, 8), (8, 40)]  # an empty part, and one of one row
    parts = (objective.value_and_grad(w, take(block, i, j)) for i, j in cuts)
    merged, whole = sum(parts, Partial.nothing()), objective.value_and_grad(w, block)
    assert_allclose(merged.loss, whole.loss, rtol=1e-13)
    assert_allclose(merged.weight, whole.weight, rtol=1e-13)
    assert_allclose(merged.grad, whole.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smooth", SMOOTH, ids=name_of)
def test_hessp_of_split_rows_adds_to_the_whole(smooth):
    w, block = random_problem(smooth, n=40)
    parts = sum(smooth.hessp(w, w, take(block, i, j)) for i, j in [(0, 7), (7, 7), (7, 40)])
    assert_allclose(parts, smooth.hessp(w, w, block), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weighted", WEIGHTED, ids=name_of)
def test_weight_2_equals_the_row_twice(weighted):
    w, block = random_problem(weighted)
    rows = np.arange(len(block.y))
    repeat = np.append(rows, rows[::3])
    twice = Block(block.X[repeat], block.y[repeat], np.ones(len(repeat)))
    heavy = block._replace(weight=np.where(rows % 3 == 0, 2.0, 1.0))
    a, b = (weighted.value_and_grad(w, rows) for rows in (twice, heavy))
    assert_allclose([a.loss, a.weight], [b.loss, b.weight], rtol=1e-13)
    assert_allclose(a.grad, b.grad, rtol=1e-12, atol=1e-12)
    if weighted.twice:
        hessp = [weighted.hessp(w, w, rows) for rows in (twice, heavy)]
        assert_allclose(*hessp, rtol=1e-12, atol=1e-12)


def test_weight_of_a_partial_is_the_sum_of_the_weights(objective):
    w, block = random_problem(objective)
    counts_rows = not getattr(objective, "takes_weight", True)
    expected = len(block.y) if counts_rows else sum(block.weight.tolist())
    assert_allclose(objective.value_and_grad(w, block).weight, expected, rtol=1e-14)


@pytest.mark.parametrize("intercept", [False, True])
def test_csr_equals_dense(objective, intercept):
    w, block = random_problem(objective, intercept=intercept)
    block.X[np.abs(block.X) < 0.7] = 0.0
    sparse = block._replace(X=csr_array(block.X))
    assert 0 < sparse.X.nnz < block.X.size
    a, b = (objective.value_and_grad(w, rows) for rows in (block, sparse))
    assert_allclose(a.loss, b.loss, rtol=1e-13)
    assert_allclose(a.grad, b.grad, rtol=1e-12, atol=1e-12)
    assert isinstance(b.grad, np.ndarray)
    if objective.twice:
        hessp = [objective.hessp(w, w, rows) for rows in (block, sparse)]
        assert_allclose(*hessp, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("linear", LINEAR, ids=name_of)
def test_an_intercept_equals_a_column_of_ones(linear):
    w, block = random_problem(linear, intercept=True)
    ones = block._replace(X=np.column_stack([block.X, np.ones(len(block.y))]))
    a, b = (linear.value_and_grad(w, rows) for rows in (block, ones))
    assert_allclose(a.loss, b.loss, rtol=1e-13)
    assert_allclose(a.grad, b.grad, rtol=1e-12, atol=1e-12)
    assert_allclose(linear.scores(w, block.X), linear.scores(w, ones.X), rtol=1e-12, atol=1e-12)
    assert_allclose(linear.hessp(w, w, block), linear.hessp(w, w, ones), rtol=1e-12, atol=1e-12)


def test_inputs_may_be_read_only_and_stay_as_they_were(objective):
    w, dense = random_problem(objective)
    for X in (dense.X, csr_array(dense.X)):
        block = dense._replace(X=X)
        stored = [w, block.y, block.weight, getattr(X, "data", None) if X is not dense.X else X]
        before = [array.copy() for array in stored]
        for array in stored:
            array.flags.writeable = False
        first = objective.value_and_grad(w, block)
        again = objective.value_and_grad(w, block)
        assert_array_equal(first.grad, again.grad)
        for array, copy in zip(stored, before, strict=True):
            assert_array_equal(array, copy)


def test_the_gradient_is_a_new_float64_vector(objective):
    w, block = random_problem(objective)
    grad = objective.value_and_grad(w, block).grad
    assert grad.dtype == np.float64
    assert grad.flags.writeable
    assert not any(np.shares_memory(grad, array) for array in (w, *block))


def test_pickled_objective_computes_the_same(objective):
    w, block = random_problem(objective)
    copy = pickle.loads(pickle.dumps(objective))
    a, b = objective.value_and_grad(w, block), copy.value_and_grad(w, block)
    assert (a.loss, a.weight) == (b.loss, b.weight)
    assert_array_equal(a.grad, b.grad)


def test_equal_parameters_make_equal_objectives(objective):
    assert pickle.loads(pickle.dumps(objective)) == objective
    assert sum(objective == other for other in MEMBERS) == 1
    assert len({objective, pickle.loads(pickle.dumps(objective))}) == 1


@pytest.mark.parametrize("binary", SIGNED, ids=name_of)
def test_both_conventions_of_two_labels_give_the_same(binary):
    w, block = random_problem(binary)
    signs = block._replace(y=np.where(block.y > 0, 1.0, -1.0))
    a, b = (binary.value_and_grad(w, rows) for rows in (block, signs))
    assert a.loss == b.loss
    assert_array_equal(a.grad, b.grad)


def test_what_the_losses_say_of_themselves():
    assert [name_of(o) for o in MEMBERS if not o.differentiable] == ["Hinge"]
    assert [name_of(o) for o in MEMBERS if not o.twice] == ["Hinge", "UserLoss", "UserLoss"]
    classifiers = {name_of(o) for o in MEMBERS if o.classifies}
    assert classifiers == {"Hinge", "Logistic", "MLP", "Softmax", "SquaredHinge"}
    assert [name_of(o) for o in MEMBERS if not o.convex] == ["MLP", "MLP"]


def test_size_is_the_product_of_the_shape(objective):
    assert objective.size(D) == np.prod(objective.shape(D))

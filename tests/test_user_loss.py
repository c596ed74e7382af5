"""UserLoss: the user's own function as an objective."""

import functools
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from sparkdist.blocks import Block
from sparkdist.errors import InvalidCall
from sparkdist.layout import Layout
from sparkdist.objectives import Logistic, Softmax, UserLoss

VECTOR = Layout.of(np.zeros(4))
NAMED = Layout.of({"W": np.zeros((4, 3)), "b": np.zeros(3)})


def logistic(w, X, y):
    m = X @ w
    p = 1 / (1 + np.exp(-m))
    return np.sum(np.log(1 + np.exp(m)) - y * m), X.T @ (p - y)


def weighted_logistic(w, X, y, weight):
    m = X @ w
    p = 1 / (1 + np.exp(-m))
    return weight @ (np.log(1 + np.exp(m)) - y * m), X.T @ (weight * (p - y))


def softmax(model, X, y):
    scores = X @ model["W"] + model["b"]
    P = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    R = P - (y[:, np.newaxis] == np.arange(3))
    # Not in the model's order, which must not matter.
    return -np.log(P[y[:, np.newaxis] == np.arange(3)]).sum(), {"b": R.sum(0), "W": X.T @ R}


def random_block(n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, 30).astype(float)
    return Block(rng.normal(size=(30, 4)), y, rng.uniform(0.5, 2, 30))


def returning(result):
    return UserLoss(lambda w, X, y: result, VECTOR)


def returning_named(result):
    return UserLoss(lambda w, X, y: result, NAMED)


def assert_equal_partials(a, b):
    assert_allclose([a.loss, a.weight], [b.loss, b.weight], rtol=1e-13)
    assert_allclose(a.grad, b.grad, rtol=1e-12)


@pytest.mark.parametrize("to_matrix", [np.asarray, csr_array])
def test_a_logistic_loss_in_plain_numpy_equals_logistic(to_matrix):
    block, w = random_block(), np.linspace(-1, 1, 4)
    block = block._replace(X=to_matrix(block.X))
    unit = block._replace(weight=np.ones(30))
    ours, ours_weighted = UserLoss(logistic, VECTOR), UserLoss(weighted_logistic, VECTOR)
    assert_equal_partials(ours.value_and_grad(w, block), Logistic().value_and_grad(w, unit))
    assert_equal_partials(
        ours_weighted.value_and_grad(w, block), Logistic().value_and_grad(w, block)
    )


def test_a_model_of_named_arrays_equals_softmax():
    block, w = random_block(n_classes=3), np.linspace(-1, 1, 15)
    block = block._replace(weight=np.ones(30))
    ours, theirs = UserLoss(softmax, NAMED), Softmax(3)
    assert_equal_partials(ours.value_and_grad(w, block), theirs.value_and_grad(w, block))


def test_size_and_shape_are_those_of_the_model():
    matrix = UserLoss(logistic, Layout.of(np.zeros((4, 3))))
    assert (matrix.size(7), matrix.shape(7), matrix.n_intercepts) == (12, (4, 3), 0)
    named = UserLoss(softmax, NAMED)
    assert (named.size(7), named.shape(7), named.n_intercepts) == (15, (15,), 0)
    assert not named.twice


class Callable:
    def __call__(self, w, X, y, weight):
        raise AssertionError("only its signature is read")


def with_default(w, X, y, alpha=0.1): ...
def with_default_weight(w, X, y, sample_weight=None): ...
def with_option(w, X, y, *, alpha=0.1): ...
def with_more(w, X, y, weight, alpha=0.1): ...
def with_any(*args): ...


@pytest.mark.parametrize(
    ("function", "takes_weight"),
    [
        (logistic, False),
        (weighted_logistic, True),
        (with_default, False),  # alpha must not be handed the weights
        (with_default_weight, True),
        (with_option, False),
        (with_more, True),
        (with_any, False),
        (Callable(), True),
        (functools.partial(with_more, alpha=1.0), True),
    ],
)
def test_weights_are_passed_to_a_fourth_parameter(function, takes_weight):
    assert UserLoss(function, VECTOR).takes_weight is takes_weight


def two_parameters(w, X): ...
def five_parameters(w, X, y, weight, alpha): ...
def needs_option(w, X, y, *, alpha): ...


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (two_parameters, "two_parameters: too many positional arguments"),
        (five_parameters, "five_parameters: missing a required argument: 'alpha'"),
        (needs_option, "needs_option: missing a required( keyword-only)? argument: 'alpha'"),
        ("logistic", "'logistic': 'logistic' is not a callable object"),
    ],
)
def test_functions_that_cannot_be_called_are_refused_at_once(function, why):
    rule = r"the loss must be a function f\(w, X, y\) or f\(w, X, y, weight\); "
    with pytest.raises(InvalidCall, match="^UserLoss: 1 problem\n  - " + rule + why):
        UserLoss(function, VECTOR)


GOOD = np.zeros(4)
PAIR = "it must return a pair (loss_sum, grad_sum); it returned "
NUMBER = "the loss must be one real number, the sum over the rows; it is "
GRADIENT = "the gradient must be real numbers of the model's shape (4,); it is "
NAMES = "the gradient must be a dict with the model's names, ['W', 'b']; it is "
W_AND_B = {"W": np.zeros((4, 3)), "b": np.zeros(3)}

BAD_RESULTS = [
    (returning(None), [PAIR + "None (NoneType)"]),
    (returning(1.5), [PAIR + "1.5 (float)"]),
    (returning((1.0, GOOD, 3)), [PAIR + "a tuple of length 3"]),
    (returning(np.zeros(2)), [PAIR + "an array of float64 of shape (2,)"]),
    (returning((np.zeros(30), GOOD)), [NUMBER + "an array of float64 of shape (30,)"]),
    (returning((np.zeros(1), GOOD)), [NUMBER + "an array of float64 of shape (1,)"]),
    (returning((1j, GOOD)), [NUMBER + "1j (complex)"]),
    (returning((None, GOOD)), [NUMBER + "None (NoneType)"]),
    (returning(("1", GOOD)), [NUMBER + "'1' (str)"]),
    (returning((1.0, np.zeros(3))), [GRADIENT + "an array of float64 of shape (3,)"]),
    (returning((1.0, np.zeros((4, 1)))), [GRADIENT + "an array of float64 of shape (4, 1)"]),
    (returning((1.0, GOOD * 1j)), [GRADIENT + "an array of complex128 of shape (4,)"]),
    (returning((1.0, [[1], [2, 3]])), [GRADIENT + "a list of length 2"]),
    (returning((1.0, W_AND_B)), [GRADIENT + "a dict with the names ['W', 'b']"]),
    (returning((1.0, 0.0)), [GRADIENT + "0.0 (float)"]),
    (returning((None, None)), [NUMBER + "None (NoneType)", GRADIENT + "None (NoneType)"]),
    (returning_named((1.0, GOOD)), [NAMES + "an array of float64 of shape (4,)"]),
    (returning_named((1.0, [GOOD, GOOD])), [NAMES + "a list of length 2"]),
    (returning_named((1.0, {"W": 0, "c": 0})), [NAMES + "a dict with the names ['W', 'c']"]),
    (returning_named((1.0, {"W": 0})), [NAMES + "a dict with the names ['W']"]),
    (
        returning_named((1.0, {**W_AND_B, "c": 0})),
        [NAMES + "a dict with the names ['W', 'b', 'c']"],
    ),
    (
        returning_named((1.0, {"W": np.zeros(12), "b": None})),
        [
            "the gradient of 'W' must be real numbers of the model's shape (4, 3); "
            "it is an array of float64 of shape (12,)",
            "the gradient of 'b' must be real numbers of the model's shape (3,); "
            "it is None (NoneType)",
        ],
    ),
]


@pytest.mark.parametrize(("objective", "problems"), BAD_RESULTS)
def test_wrong_results_are_told_exactly(objective, problems):
    w = np.zeros(objective.layout.size)
    with pytest.raises(InvalidCall) as caught:
        objective.value_and_grad(w, random_block())
    assert caught.value.caller == "<lambda>"
    assert list(caught.value.problems) == problems


@pytest.mark.parametrize("loss", [2, 2.0, np.float32(2), np.array(2.0), True + 1])
@pytest.mark.parametrize("grad", [[1, 2, 3, 4], np.arange(1, 5, dtype="f4"), (1, 2, 3, 4)])
def test_any_real_number_and_array_will_do(loss, grad):
    partial = returning([loss, grad]).value_and_grad(np.zeros(4), random_block())
    assert (type(partial.loss), partial.loss, partial.weight) == (float, 2.0, 30.0)
    assert_array_equal(partial.grad, [1.0, 2, 3, 4])


@pytest.mark.parametrize("loss", [np.inf, np.nan])
def test_a_loss_that_is_not_finite_is_handed_on(loss):
    partial = returning((loss, GOOD + loss)).value_and_grad(np.zeros(4), random_block())
    assert_array_equal([partial.loss, *partial.grad], [loss] * 5)


def test_a_function_cannot_change_w():
    def greedy(w, X, y):
        w -= 1.0
        return 0.0, w

    w = np.zeros(4)
    with pytest.raises(ValueError, match="read-only"):
        UserLoss(greedy, VECTOR).value_and_grad(w, random_block())
    assert_array_equal(w, np.zeros(4))
    w += 1.0  # the caller's own array is still writable


def test_the_gradient_is_copied_out_of_the_function():
    buffer = np.ones(4)
    partial = returning((0.0, buffer)).value_and_grad(np.zeros(4), random_block())
    buffer[:] = 7.0
    assert_array_equal(partial.grad, np.ones(4))


def test_an_error_in_the_function_is_not_hidden():
    def broken(w, X, y):
        return 1 / 0, w

    with pytest.raises(ZeroDivisionError):
        UserLoss(broken, VECTOR).value_and_grad(np.zeros(4), random_block())


PROGRAM = """
import multiprocessing, pickle, sys
from numpy import exp
from scipy.special import expit
assert sys.modules["__mp_main__"].expit is expit  # where pickle would find it first
import sparkdist.spark
for function in (exp, expit):
    data = pickle.dumps(function)
    assert b"__m" not in data and pickle.loads(data) is function
"""


@pytest.mark.long
def test_a_function_of_scipy_that_the_program_has_imported_travels_by_its_own_module() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- sums, and not means ----------------------------------------------------------------------


def mean_of(function):
    """The function as scikit-learn or torch would have it."""

    def mean(w, X, y, *weight):
        loss, grad = function(w, X, y, *weight)
        n = weight[0].sum() if weight else len(y)
        grad = {k: g / n for k, g in grad.items()} if isinstance(grad, dict) else grad / n
        return loss / n, grad

    return functools.wraps(function)(mean)


@pytest.mark.parametrize("to_matrix", [np.asarray, csr_array])
@pytest.mark.parametrize("n", [2, 3, 30, 1000])
@pytest.mark.parametrize("function", [logistic, weighted_logistic])
def test_means_are_refused_and_sums_are_not(function, n, to_matrix):
    rng = np.random.default_rng(n)
    X = rng.normal(size=(n, 4))
    block = Block(to_matrix(X), rng.integers(0, 2, n).astype(float), rng.uniform(0.5, 2, n))
    w = rng.normal(size=4)
    UserLoss(function, VECTOR).value_and_grad(w, block)
    with pytest.raises(InvalidCall, match="it must return sums over the rows; it returns means"):
        UserLoss(mean_of(function), VECTOR).value_and_grad(w, block)


def test_means_of_named_arrays_are_refused():
    block = random_block(3)
    w = NAMED.flatten({"W": np.ones((4, 3)), "b": np.zeros(3)})
    UserLoss(softmax, NAMED).value_and_grad(w, block)
    with pytest.raises(InvalidCall, match="of 30 rows"):
        UserLoss(mean_of(softmax), NAMED).value_and_grad(w, block)


def test_the_look_is_taken_once_and_at_few_rows():
    seen = []

    def loss(w, X, y):
        seen.append(len(y))
        return logistic(w, X, y)

    objective = UserLoss(loss, VECTOR)
    rng = np.random.default_rng(0)
    for n in (1, 1000, 1000):
        block = Block(rng.normal(size=(n, 4)), np.ones(n), np.ones(n))
        objective.value_and_grad(np.zeros(4), block)
    assert seen == [1, 64, 32, 32, 1000, 1000]
    assert objective == UserLoss(loss, VECTOR)


def test_losses_that_are_neither_are_left_alone():
    """Of a batch as a whole, or with a draw in it: a model server may be given these."""
    block, rng = random_block(), np.random.default_rng(0)
    for function in (
        lambda w, X, y: (float(np.var(X @ w)), X.T @ (X @ w)),
        lambda w, X, y: (float(rng.random()), rng.random(4)),
        lambda w, X, y: (0.0, np.zeros(4)),
        lambda w, X, y: (np.nan, np.full(4, np.nan)),
    ):
        UserLoss(function, VECTOR).value_and_grad(np.ones(4), block)

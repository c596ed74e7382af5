"""Values of the losses against numbers from outside: by hand, and from mpmath."""

import numpy as np
import pytest
from mpmath import mp, mpf
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize

from sparkdist import datasets
from sparkdist.blocks import Block
from sparkdist.errors import InvalidCall
from sparkdist.objectives import Hinge, Huber, Logistic, Poisson, Softmax, Squared, SquaredHinge
from sparkdist.penalties import L2

BINARY = [Hinge(), Logistic(), SquaredHinge()]
REGRESSION = [Huber(), Squared()]

E_HALF = 1.6487212707001282  # exp(1/2)

# One row x = (1, 2) with w = (1, -1/4), so that m = 1/2: label, loss, slope, curvature.
BY_HAND = [
    (Squared(), 3, 25 / 8, -5 / 2, 1),
    (Squared(), -1, 9 / 8, 3 / 2, 1),
    (Huber(delta=1), 0, 1 / 8, 1 / 2, 1),
    (Huber(delta=1.5), 2, 9 / 8, -3 / 2, 1),  # r = -delta
    (Huber(delta=1), 3, 2, -1, 0),  # r = -5/2: 1 (5/2 - 1/2)
    (Huber(delta=2), -4, 7, 2, 0),  # r = 9/2: 2 (9/2 - 1)
    (Huber(), 2, 1.35 * (1.5 - 0.675), -1.35, 0),
    (Logistic(), 1, 0.4740769841801067, -0.3775406687981454, 0.2350037122015945),
    (Logistic(), 0, 0.9740769841801067, 0.6224593312018546, 0.2350037122015945),
    (Hinge(), 1, 1 / 2, -1, 0),
    (Hinge(), 0, 3 / 2, 1, 0),
    (SquaredHinge(), 1, 1 / 4, -1, 2),
    (SquaredHinge(), 0, 9 / 4, 3, 2),
    (Poisson(), 0, E_HALF, E_HALF, E_HALF),
    (Poisson(), 3, E_HALF - 3 / 2, E_HALF - 3, E_HALF),
]


def one_row(x, y):
    return Block(np.array([x], dtype=float), np.array([y], dtype=float), np.ones(1))


@pytest.mark.parametrize(("objective", "y", "loss", "slope", "curvature"), BY_HAND)
def test_one_row_by_hand(objective, y, loss, slope, curvature):
    block, w, v = one_row([1, 2], y), np.array([1, -0.25]), np.array([3.0, 1.0])
    partial = objective.value_and_grad(w, block)
    assert_allclose(partial.loss, loss, rtol=1e-15)
    assert_allclose(partial.grad, [slope, 2 * slope], rtol=1e-15)
    assert_allclose(objective.hessp(w, v, block), [5 * curvature, 10 * curvature], rtol=1e-15)
    assert partial.weight == 1


def test_hinge_losses_at_their_kink_and_beyond():
    for margin in (1.0, 1.5, 800.0):
        for objective in (Hinge(), SquaredHinge()):
            loss, slope = objective.loss_and_slope(np.full(1, margin), np.ones(1))
            assert (loss[0], slope[0]) == (0, 0)
            assert objective.curvature(np.full(1, margin), np.ones(1))[0] == 0


def log1pexp(u):
    return mp.log1p(mp.exp(u))


def straightened_exp(m):
    return mp.exp(m) if m <= 500 else mp.exp(500) * (1 + m - 500)


# The loss of margin m and label y, and its slope, in mpmath at 60 digits.
IN_MPMATH = [
    (Logistic(), 1, lambda m: log1pexp(-m), lambda m: -1 / (1 + mp.exp(m))),
    (Logistic(), 0, log1pexp, lambda m: 1 / (1 + mp.exp(-m))),
    (Poisson(), 3, lambda m: straightened_exp(m) - 3 * m, lambda m: mp.exp(min(m, 500)) - 3),
    (SquaredHinge(), 1, lambda m: max(0, 1 - m) ** 2, lambda m: -2 * max(0, 1 - m)),
    (Hinge(), 0, lambda m: max(0, 1 + m), lambda m: int(m > -1)),
    (Huber(delta=2), 3, lambda m: 2 * abs(m - 3) - 2, lambda m: 2 * mp.sign(m - 3)),
    (Squared(), 3, lambda m: (m - 3) ** 2 / 2, lambda m: m - 3),
]
MARGINS = [-1e6, -1e3, -750.0, -709.5, -700.5, -40.0, -20.0, 6.0, 20.0, 40.0, 499.0]
MARGINS += [501.0, 700.5, 709.5, 750.0, 1e3, 1e6]


@pytest.mark.parametrize(("objective", "y", "loss", "slope"), IN_MPMATH)
def test_extreme_margins_agree_with_mpmath(objective, y, loss, slope):
    ours = objective.loss_and_slope(np.array(MARGINS), np.full(len(MARGINS), float(y)))
    with mp.workdps(60):
        expected = [[float(f(mpf(m))) for m in MARGINS] for f in (loss, slope)]
    # atol: below 1e-307 the numbers are subnormal and have fewer digits.
    assert_allclose(ours, expected, rtol=2e-15, atol=1e-307)


def test_logistic_curvature_agrees_with_mpmath():
    with mp.workdps(60):
        expected = [float(1 / (1 + mp.exp(m)) / (1 + mp.exp(-m))) for m in map(mpf, MARGINS)]
    ours = Logistic().curvature(np.array(MARGINS), np.ones(len(MARGINS)))
    assert_allclose(ours, expected, rtol=2e-15, atol=1e-307)


def test_infinite_margins_of_the_logistic_loss():
    loss, slope = Logistic().loss_and_slope(np.array([np.inf, -np.inf]), np.ones(2))
    assert_array_equal(loss, [0, np.inf])
    assert_array_equal(np.isfinite(slope), True)


@pytest.mark.parametrize("scores", [[1e3, -1e3, 0], [750, 750, 700], [-40, 0, 40], [0, 1, 2]])
@pytest.mark.parametrize("y", [0, 1, 2])
def test_softmax_at_extreme_scores_agrees_with_mpmath(scores, y):
    partial = Softmax(3).value_and_grad(np.array(scores, dtype=float), one_row([1], y))
    with mp.workdps(60):
        total = sum(mp.exp(s) for s in scores)
        loss = float(mp.log(total) - scores[y])
        grad = [float(mp.exp(s) / total - (k == y)) for k, s in enumerate(scores)]
    assert_allclose(partial.loss, loss, rtol=1e-15, atol=1e-15)
    assert_allclose(partial.grad, grad, rtol=1e-15, atol=1e-15)


def test_poisson_goes_on_straight_with_the_same_slope():
    m = np.array([500 - 1e-9, 500.0, 500 + 1e-9, 1e4])
    loss, slope = Poisson().loss_and_slope(m, np.zeros(4))
    assert_allclose(slope / np.exp(500), 1, rtol=1e-8)
    assert_allclose(np.diff(loss[2:]) / np.diff(m[2:]) / np.exp(500), 1, rtol=1e-12)
    assert_array_equal(Poisson().curvature(m, np.zeros(4)) > 0, [True, False, False, False])


def test_softmax_of_two_classes_is_the_logistic_loss_of_the_difference():
    rng = np.random.default_rng(0)
    block = Block(rng.normal(size=(30, 4)), rng.integers(0, 2, 30).astype(float), np.ones(30))
    W, V = rng.normal(size=(2, 4, 2))
    two, one = Softmax(2), Logistic()
    a = two.value_and_grad(W.ravel(), block)
    b = one.value_and_grad(W[:, 1] - W[:, 0], block)
    assert_allclose(a.loss, b.loss, rtol=1e-14)
    assert_allclose(a.grad.reshape(4, 2), np.outer(b.grad, [-1, 1]), rtol=1e-12)
    Hv = one.hessp(W[:, 1] - W[:, 0], V[:, 1] - V[:, 0], block)
    assert_allclose(
        two.hessp(W.ravel(), V.ravel(), block).reshape(4, 2), np.outer(Hv, [-1, 1]), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("n", "d", "n_classes"),
    [
        (2000, 40, 20),  # 1.6 million products: two strips
        (3, 60_000, 20),  # more than a strip holds in one row
        (7, 0, 3),  # nothing but intercepts
    ],
)
def test_softmax_equals_the_textbook_formula(n, d, n_classes):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n, d)), rng.integers(0, n_classes, n)
    W, b = rng.normal(size=(d, n_classes)) / max(1, d) ** 0.5, rng.normal(size=n_classes)
    w, objective = np.append(W, b), Softmax(n_classes)
    scores = X @ W + b
    P = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    R = P - np.eye(n_classes)[y]
    partial = objective.value_and_grad(w, Block(X, y.astype(float), np.ones(n)))
    assert_allclose(objective.scores(w, X), scores, rtol=1e-10, atol=1e-12)
    assert_allclose(objective.probability(scores), P, rtol=1e-12)
    assert_allclose(partial.grad, np.append(X.T @ R, R.sum(axis=0)), rtol=1e-10, atol=1e-10)
    assert_allclose(partial.loss, -np.log(P[np.arange(n), y]).sum(), rtol=1e-12)


def test_labels_outside_the_domain_are_found():
    found = [
        *((o, [-1, 1], []) for o in BINARY),
        *((o, [0, 1], []) for o in BINARY),
        *((o, [1], []) for o in BINARY),
        *((o, [-1, 0, 1], [0]) for o in BINARY),
        *((o, [0, 1, 2, np.nan], [2, np.nan]) for o in BINARY),
        *((o, [-7.5, 0, 1e300], []) for o in REGRESSION),
        *((o, [0, np.inf, np.nan], [np.inf, np.nan]) for o in REGRESSION),
        (Softmax(3), [0, 1, 2], []),
        (Softmax(3), [-1, 0, 0.5, 3, np.nan], [-1, 0.5, 3, np.nan]),
        (Poisson(), [0, 0.5, 7], []),
        (Poisson(), [-1, 0, np.inf, np.nan], [-1, np.inf, np.nan]),
    ]
    for objective, labels, bad in found:
        assert_array_equal(objective.bad_labels(np.array(labels, dtype=float)), bad)


def test_label_rules_name_the_domain():
    assert Softmax(3).label_rule() == "whole numbers 0 to 2"
    assert {o.label_rule() for o in BINARY} == {"{0, 1} or {-1, +1}"}
    assert {o.label_rule() for o in REGRESSION} == {"finite numbers"}
    assert Poisson().label_rule() == "finite numbers >= 0"


def test_predictions_by_hand():
    scores = np.array([-2.0, 0.0, 0.1])
    for objective in BINARY:
        assert_array_equal(objective.predict(scores), [0, 0, 1])
    for objective in REGRESSION:
        assert_array_equal(objective.predict(scores), scores)
    assert_allclose(Poisson().predict(np.array([0, 0.5, 710])), [1, E_HALF, np.inf])
    assert_array_equal(Softmax(3).predict(np.array([[1.0, 3, 2], [5, 0, 5]])), [1, 0])


def test_probabilities_by_hand():
    assert_allclose(Logistic().probability(np.array([0, np.log(3)])), [0.5, 0.75], rtol=1e-15)
    scores = np.log([[1.0, 2, 5], [1, 1, 2]])
    expected = [[1 / 8, 1 / 4, 5 / 8], [1 / 4, 1 / 4, 1 / 2]]
    assert_allclose(Softmax(3).probability(scores), expected, rtol=1e-14)


@pytest.mark.parametrize("n_classes", [1, 0, -3, 2.5, 3.0, np.nan, "3", None])
def test_softmax_refuses_what_is_no_number_of_classes(n_classes):
    with pytest.raises(InvalidCall, match=r"n_classes must be a whole number >= 2; it is"):
        Softmax(n_classes)


@pytest.mark.parametrize("delta", [0, -1.0, np.inf, np.nan])
def test_huber_refuses_what_is_no_threshold(delta):
    with pytest.raises(InvalidCall, match="delta must be a finite number > 0; it is"):
        Huber(delta)


def test_the_published_optimum_on_a9a():
    # Mean logistic loss + (1e-3 / 2) ||w||^2: newton-cg and L-BFGS-B agree on it to 1e-14.
    X, y = datasets.load("a9a")
    block, penalty, n = Block(X, y, np.ones(len(y))), L2(1e-3), len(y)

    def fun(w):
        partial = Logistic().value_and_grad(w, block)
        return partial.loss / n + penalty.value(w), partial.grad / n + penalty.grad(w)

    found = minimize(fun, np.zeros(123), jac=True, method="L-BFGS-B", options={"gtol": 1e-7})
    assert_allclose(found.fun, 0.33334075206872, atol=1e-10)
    X, y = datasets.load("a9a", "test")
    wrong = Logistic().predict(Logistic().scores(found.x, X)) != (y > 0)
    assert_allclose(wrong.mean(), 0.14882, atol=2e-4)

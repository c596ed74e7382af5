"""FTRL-Proximal: what it minimises, where it is zero, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from sparkdist.simulate import simulate
from sparkdist.spark.training.model_server import ModelServer
from sparkdist.updaters import Descent, ftrl
from tests.test_adaptive_revision import clicks


def walk(member, grads, w):
    """All w, one before each gradient and one after the last."""
    state, path = member.init(w), [w]
    for t, grad in enumerate(grads):
        new_w, new_state = np.empty_like(w), tuple(np.empty_like(part) for part in state)
        member.update(t, grad, state, path[-1], new_w, new_state)
        state = new_state
        path.append(new_w)
    return path


@pytest.mark.parametrize("start", [0.0, 1.7])
def test_m1_without_l1_and_l2_it_is_descent_with_a_rate_for_each_coordinate(start):
    grads = np.random.default_rng(0).normal(size=(500, 20))
    w, n = np.full(20, start), np.zeros(20)
    for grad, ours in zip(grads, walk(ftrl(0.1), grads, w)[1:], strict=True):
        n += grad**2
        w = w - 0.1 / (1.0 + np.sqrt(n)) * grad
        assert_allclose(ours, w, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (1.5, 0.0), (0.0, 2.0), (1.5, 2.0)])
def test_m2_each_w_is_the_minimum_of_all_gradients_and_the_proximal_terms(l1, l2):
    rate, beta, size = 0.3, 0.7, 6
    grads = np.random.default_rng(1).normal(0.2, 1.0, size=(30, size))
    path = walk(ftrl(rate, beta, l1, l2), grads, np.zeros(size))
    roots = np.sqrt(np.cumsum(grads**2, axis=0))
    sigmas = np.diff(np.vstack([np.zeros(size), roots]), axis=0) / rate
    zeros = 0
    for t in (1, 2, 5, 12, 30):
        for i in range(size):

            def objective(w, t=t, i=i):
                seen = np.array(path[:t])[:, i]
                proximal = 0.5 * sigmas[:t, i] @ (w - seen) ** 2
                return (
                    grads[:t, i].sum() * w
                    + proximal
                    + l1 * abs(w)
                    + 0.5 * (beta / rate + l2) * w * w
                )

            found = minimize_scalar(objective, bracket=(-1.0, 1.0), tol=1e-12).x
            assert path[t][i] == pytest.approx(found, abs=2e-7)  # of a minimum: sqrt of the epsilon
            zeros += path[t][i] == 0.0
    assert (zeros > 3) == (l1 > 0)


def test_m3_a_large_l1_makes_all_of_it_0():
    grads = np.random.default_rng(2).normal(size=(100, 30))
    reach = np.abs(np.cumsum(grads, axis=0)).max()
    path = walk(ftrl(0.1, l1=1.01 * reach), grads, np.zeros(30))
    assert not np.any(path) and not np.any(np.signbit(path))
    assert np.any(walk(ftrl(0.1, l1=0.5 * reach), grads, np.zeros(30)))


def test_it_goes_on_from_where_it_starts():
    w = np.array([3.0, -2.0, 0.0, 1e-3])
    path = walk(ftrl(0.1, l1=0.5, l2=0.1), np.zeros((3, 4)), w)
    assert_allclose(path, [w] * 4, rtol=1e-12)


def test_a_coordinate_that_is_not_penalised_has_neither_l1_nor_l2():
    grads, mask = np.random.default_rng(3).normal(size=(40, 5)), np.array([1, 1, 1, 0, 1])
    w = np.array([0.0, 0.0, 0.0, 2.0, 0.0])
    descent = Descent(ftrl(0.2, 1.0, 100.0, 3.0), mask=mask)
    found = walk(descent, grads.copy(), w)[-1]
    assert repr(descent.updater) == "ftrl(rate=0.2, beta=1.0, l1=100.0, l2=3.0)"
    assert_array_equal(found[[0, 1, 2, 4]], 0.0)
    assert_allclose(found[3], walk(ftrl(0.2), grads, w)[-1][3], rtol=1e-13)


def test_l1_and_l2_leave_the_intercept_alone():
    random = np.random.default_rng(4)
    X, y = random.normal(size=(200, 3)), (random.random(200) < 0.9).astype(float)
    found = simulate(
        "logistic", (X, y), workers=2, updater=ftrl(1.0, l1=1e6), intercept=True, batch_size=10
    ).x
    assert_array_equal(found["weights"], 0.0)
    assert found["intercept"] > 1.0  # log(0.9 / 0.1) is 2.2
    model = {"weights": np.ones(2), "intercept": np.ones(1)}
    server = ModelServer(model, updater=ftrl(l1=1e6))
    grad, w = np.zeros(3), np.ones(3)
    rule = server._rule(server._on_server)
    state, new_w = rule.init(w), np.empty(3)
    rule._descent.update(0, grad, state, w, new_w, rule.init(w))
    assert_allclose(new_w, 1.0)
    # After a gradient of 1e5: z of the intercept is 10 + 1e5 and of the weights 1e6 below it.
    grad[:] = 1e5
    rule._descent.update(0, grad, state, w, new_w, rule.init(w))
    assert_array_equal(server._on_server, [1, 1, 0])
    assert new_w[2] == pytest.approx(1.0 - 0.1 * 1e5 / (1.0 + 1e5))


# --- sparsity against loss --------------------------------------------------------------------


class Rda:
    """Xiao's regularised dual averaging with the same rates: all proximal terms are at 0."""

    def __init__(self, size, rate, l1):
        self.rate, self.l1, self.z, self.n = rate, l1, np.zeros(size), np.zeros(size)
        self.w = np.zeros(size)

    def step(self, row, grad):
        self.z[row] += grad
        self.n[row] += grad * grad
        z, curvature = self.z[row], (1.0 + np.sqrt(self.n[row])) / self.rate
        self.w[row] = -np.sign(z) * np.maximum(np.abs(z) - self.l1, 0.0) / curvature


class Fobos(Rda):
    """Duchi and Singer's forward-backward splitting: l1 in every step of a coordinate."""

    def step(self, row, grad):
        self.n[row] += grad * grad
        rate = self.rate / (1.0 + np.sqrt(self.n[row]))
        w = self.w[row] - rate * grad
        self.w[row] = np.sign(w) * np.maximum(np.abs(w) - rate * self.l1, 0.0)


class Ours(Rda):
    """The updater, on the coordinates of a row: the others rest."""

    def __init__(self, size, rate, l1):
        super().__init__(size, rate, l1)
        self.member = ftrl(rate, l1=l1)

    def step(self, row, grad):
        state, w = (self.z[row], self.n[row]), self.w[row]
        new_w, new = np.empty(len(row)), (np.empty(len(row)), np.empty(len(row)))
        self.member.update(0, np.full(len(row), grad), state, w, new_w, new)
        self.w[row], (self.z[row], self.n[row]) = new_w, new


def progress(learner, rows, labels):
    """1 - AUC on the second half, of predictions before the update, and non-zeros at the end."""
    scores = np.empty(len(rows))
    for i, (row, y) in enumerate(zip(rows, labels, strict=True)):
        scores[i] = learner.w[row].sum()
        learner.step(row, -y * expit(-y * scores[i]))
    half = len(rows) // 2
    return 1 - roc_auc_score(labels[half:], scores[half:]), int(np.count_nonzero(learner.w))


@pytest.mark.long
def test_m4_at_equal_l1_it_predicts_better_than_rda_and_is_sparser_than_fobos():
    size = 20_000
    data = clicks(20_000, size, seed=1)
    # An independent program gave these: 1 - AUC and non-zeros.
    expected = {0.5: (0.2572, 10996), 1.0: (0.2629, 5635)}
    for l1 in (0.5, 1.0, 2.0, 4.0):
        error, n_nonzero = progress(Ours(size, 0.2, l1), *data)
        assert error < progress(Rda(size, 0.2, l1), *data)[0]
        if l1 in expected:
            assert error == pytest.approx(expected[l1][0], abs=5e-4)
            assert n_nonzero == pytest.approx(expected[l1][1], rel=0.01)
    # Fobos at about the same error as ours with l1 = .5, which the same program had at 18102.
    error, n_nonzero = progress(Fobos(size, 0.2, 0.03), *data)
    assert error == pytest.approx(0.2581, abs=1e-3)
    assert n_nonzero == pytest.approx(18102, rel=0.01)
    assert error > expected[0.5][0] and n_nonzero > expected[0.5][1] / 0.7

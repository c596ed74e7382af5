"""Properties of every penalty."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize_scalar

from sparkdist import penalties, registry
from sparkdist.errors import InvalidCall
from sparkdist.penalties import L1, L2, ElasticNet

MEMBERS = [
    *(registry.get(penalties, name)() for name in registry.names(penalties)),
    *(L1(0.7), L2(0.7), ElasticNet(0.5, 0.3), ElasticNet(0.0, 0.0)),
]
repeatable = settings(derandomize=True, deadline=None, max_examples=50)
every_penalty = pytest.mark.parametrize("penalty", MEMBERS, ids=str)
vectors = arrays(float, st.integers(0, 6), elements=st.floats(-1e6, 1e6))
steps = st.floats(1e-3, 1e3)


def test_values_gradients_and_proxes_by_hand():
    w = np.array([3.0, -4.0, 0.0])
    assert L2(0.5).value(w) == 6.25
    assert L1(0.5).value(w) == 3.5
    assert ElasticNet(l1=2, l2=4).value(w) == 64
    assert_array_equal(L2(0.5).grad(w), [1.5, -2, 0])
    assert_array_equal(L1(0.5).grad(w), [0, 0, 0])
    assert_array_equal(ElasticNet(l1=2, l2=4).grad(w), [12, -16, 0])
    assert_array_equal(L2(0.5).prox(w, 2.0), [1.5, -2, 0])
    assert_array_equal(L1(1.75).prox(w, 2.0), [0, -0.5, 0])
    assert_array_equal(ElasticNet(l1=1, l2=0.5).prox(w, 2.0), [0.5, -1, 0])


def test_coefficients_by_hand():
    assert (L1(0.7).l1, L1(0.7).l2) == (0.7, 0)
    assert (L2(0.7).l1, L2(0.7).l2) == (0, 0.7)
    assert (ElasticNet(0.5, 0.3).l1, ElasticNet(0.5, 0.3).l2) == (0.5, 0.3)


@every_penalty
def test_value_is_the_sum_over_the_coefficients(penalty):
    w = np.random.default_rng(0).normal(size=7)
    expected = sum(penalty.l1 * abs(x) + penalty.l2 * x * x / 2 for x in w.tolist())
    assert_allclose(penalty.value(w), expected, rtol=1e-14)


@every_penalty
def test_gradient_is_the_derivative_of_the_smooth_part(penalty):
    w, h = np.random.default_rng(0).normal(size=7), 1e-4

    def smooth(u):
        return penalty.value(u) - penalty.l1 * np.abs(u).sum()

    axes = h * np.eye(7)
    differences = [(smooth(w + axis) - smooth(w - axis)) / (2 * h) for axis in axes]
    assert_allclose(penalty.grad(w), differences, atol=1e-10)


@every_penalty
@repeatable
@given(w=vectors, step=steps)
def test_prox_satisfies_the_optimality_condition(penalty, w, step):
    """0 is in step (l1 d|u| + l2 u) + u - w, where d|u| is sign(u), and [-1, 1] at u = 0."""
    u = penalty.prox(w, step)
    rest = w - u - step * penalty.l2 * u
    tolerance = 1e-12 * (1 + np.abs(w) + step * penalty.l1 + step * penalty.l2 * np.abs(u))
    away = u != 0
    assert np.all(np.abs(rest - step * penalty.l1 * np.sign(u))[away] <= tolerance[away])
    assert np.all(np.abs(rest)[~away] <= (step * penalty.l1 + tolerance)[~away])


@every_penalty
@pytest.mark.parametrize("w", [-3.0, -0.2, 0.0, 0.4, 5.0])
@pytest.mark.parametrize("step", [0.1, 2.0])
def test_prox_is_the_minimum_that_scipy_finds(penalty, w, step):
    def distance(u):
        return step * penalty.value(np.array([u])) + (u - w) ** 2 / 2

    u = penalty.prox(np.array([w]), step)[0]
    found = minimize_scalar(distance, bracket=(-6, 6), tol=1e-10)
    assert_allclose(u, found.x, atol=1e-6)
    assert distance(u) <= found.fun + 1e-15


@every_penalty
@repeatable
@given(w=vectors, step=steps)
def test_prox_is_firmly_nonexpansive(penalty, w, step):
    v = np.roll(w, 1)
    p, q = penalty.prox(w, step), penalty.prox(v, step)
    assert (p - q) @ (p - q) <= (p - q) @ (w - v) + 1e-9 * (1 + w @ w)


@every_penalty
def test_prox_with_step_0_does_nothing(penalty):
    w = np.random.default_rng(0).normal(size=7)
    assert_array_equal(penalty.prox(w, 0.0), w)


def test_the_soft_threshold_gives_exact_zeros():
    w = np.array([0.3, -0.3, 0.1, 0.30000001])
    assert_array_equal(L1(0.3).prox(w, 1.0) == 0, [True, True, True, False])


@every_penalty
def test_a_mask_leaves_coordinates_free(penalty):
    w, mask = np.array([1.0, -2.0, 30.0]), np.array([1.0, 1.0, 0.0])
    assert penalty.value(w * mask) == penalty.value(w[:2])
    assert_array_equal(penalty.grad(w * mask), [*penalty.grad(w[:2]), 0])


@every_penalty
def test_inputs_may_be_read_only_and_any_shape_is_kept(penalty):
    w = np.random.default_rng(0).normal(size=(3, 2))
    w.flags.writeable = False
    before = w.copy()
    for result in (penalty.grad(w), penalty.prox(w, 0.5)):
        assert result.shape == (3, 2)
        assert not np.shares_memory(result, w)
    assert isinstance(penalty.value(w), float)
    assert_array_equal(w, before)


@every_penalty
def test_pickles_and_compares_by_its_coefficients(penalty):
    assert pickle.loads(pickle.dumps(penalty)) == penalty
    assert sum(penalty == other for other in MEMBERS) == 1
    assert len({penalty, pickle.loads(pickle.dumps(penalty))}) == 1


@pytest.mark.parametrize("bad", [-1e-9, np.inf, np.nan])
@pytest.mark.parametrize("kind", [L1, L2])
def test_strengths_must_be_finite_and_not_negative(kind, bad):
    with pytest.raises(InvalidCall) as caught:
        kind(bad)
    assert caught.value.caller == kind.__name__
    assert caught.value.problems == (f"strength must be a finite number >= 0; it is {bad!r}",)


def test_all_bad_strengths_are_told_at_once():
    with pytest.raises(InvalidCall, match="ElasticNet: 2 problems\n  - l1 .* it is -1\n  - l2 "):
        ElasticNet(-1, np.nan)
    assert ElasticNet(0, 0).value(np.ones(3)) == 0

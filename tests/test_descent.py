"""Descent: clipping, the penalty, and where they lead."""

import pickle
import tracemalloc
from dataclasses import FrozenInstanceError
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import Lasso

from sparkdist import registry, updaters
from sparkdist.errors import InvalidCall
from sparkdist.updaters import (
    Descent,
    adagrad,
    adam,
    adaptive_revision,
    average,
    cosine,
    ftrl,
    momentum,
    nesterov,
    rmsprop,
    sgd,
    warmup,
)

MEMBERS = [registry.get(updaters, name)() for name in registry.names(updaters)]
every_member = pytest.mark.parametrize("member", MEMBERS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
repeatable = settings(derandomize=True, deadline=None, max_examples=100)


def step(descent, t, grad, state, w):
    """One update into arrays that hold NaN; the gradient is the caller's to lose."""
    new_w = np.full_like(w, nan)
    new_state = tuple(np.full_like(vector, nan) for vector in state)
    descent.update(t, grad.copy(), state, w, new_w, new_state)
    return new_w, new_state


def minimise(descent, gradient, w, steps):
    state, new_w, new_state = descent.init(w), np.empty_like(w), descent.init(w)
    for t in range(steps):
        descent.update(t, gradient(w), state, w, new_w, new_state)
        w, new_w, state, new_state = new_w, w, new_state, state
    return w


def clipped(grad, clip):
    """What is left of a gradient: sgd with rate 1 from 0 shows it."""
    grad = np.asarray(grad)
    return -step(Descent(sgd(1.0), clip=clip), 0, grad, (), np.zeros_like(grad))[0]


# --- the four lines -------------------------------------------------------------------------

G, W = np.array([3.0, 4.0]), np.array([4.0, -8.0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # W - G / 2
        ({}, [2.5, -10]),
        # |G| = 5, so the clip halves it.
        ({"clip": 2.5}, [3.25, -9]),
        ({"clip": 5}, [2.5, -10]),
        # G + W / 4 = (4, 2)
        ({"l2": 0.25}, [2, -9]),
        ({"l2": 0.25, "mask": [1, 0]}, [2, -10]),
        # 1/4 nearer to 0
        ({"l1": 0.5}, [2.25, -9.75]),
        ({"l1": 0.5, "mask": [0, 1]}, [2.5, -9.75]),
        # The threshold is 5: the first is 0.
        ({"l1": 10}, [0, -5]),
        # Clipped first, (1.5, 2), then + W / 4: (2.5, 0); W - half of it: (2.75, -8); 1/4 nearer.
        ({"clip": 2.5, "l2": 0.25, "l1": 0.5}, [2.5, -7.75]),
        ({"clip": 2.5, "l2": 0.25, "l1": 0.5, "mask": np.array([1.0, 0.0])}, [2.5, -9]),
    ],
    ids=str,
)
def test_one_step_by_hand(options, expected):
    assert_array_equal(step(Descent(sgd(0.5), **options), 0, G, (), W)[0], expected)


def test_the_threshold_of_adagrad_is_one_for_each_coordinate():
    """s = 9 + 16 = 25 and 25 + 144 = 169, h = 65/5 and 65/13: w - h g, then h / 2 nearer to 0."""
    w, state = np.array([400.0, -800.0]), (np.array([9.0, 25.0]),)
    w, (s,) = step(Descent(adagrad(65.0), l1=0.5), 0, np.array([4.0, 12.0]), state, w)
    assert_array_equal(s, [25, 169])
    assert_allclose(w, [400 - 52 - 6.5, -800 - 60 + 2.5], rtol=1e-15)


def test_an_l2_penalty_is_a_part_of_the_gradient_also_for_adam():
    """The first step of Adam is rate sign(l2 w); AdamW's would be rate l2 w."""
    w = np.array([100.0, -1.0, 0.0])
    moved = step(Descent(adam(0.1), l2=0.01), 0, np.zeros(3), adam().init(w), w)[0] - w
    assert_allclose(moved, [-0.1, 0.1, 0], rtol=1e-5)


def test_a_step_of_length_0_has_no_threshold():
    descent = Descent(sgd(warmup(1.0, 2)), l1=10.0)
    assert_array_equal(step(descent, 0, G, (), W)[0], W)
    assert_array_equal(step(descent, 1, G, (), W)[0], [0, -5])


def test_zeros_of_the_threshold_have_no_sign():
    w = np.array([-0.1, 0.1, -0.0])
    result = step(Descent(sgd(1.0), l1=1.0), 0, np.zeros(3), (), w)[0]
    assert_array_equal(np.signbit(result), False)
    assert_array_equal(result, 0)


@every_member
@every_dtype
def test_without_options_it_is_the_updater(member, dtype):
    random = np.random.default_rng(0)
    w, grad = random.normal(size=(2, 9)).astype(dtype)
    state = member.init(w)
    wanted_w, wanted_state = np.empty_like(w), member.init(w)
    member.update(3, grad, state, w, wanted_w, wanted_state)
    # A clip that is long enough, a mask without a penalty: not a bit may change.
    for descent in (Descent(member), Descent(member, clip=100.0, mask=np.ones(9))):
        new_w, new_state = step(descent, 3, grad, descent.init(w), w)
        assert_array_equal(new_w, wanted_w)
        assert_array_equal(new_state, wanted_state)


# --- where it leads -------------------------------------------------------------------------


def soft(x, threshold):
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


FAST = [
    *(sgd(0.1), momentum(0.02), momentum(0.1, 0.5), nesterov(0.02), adagrad(0.5)),
    *(rmsprop(cosine(0.05, 3000)), adam(cosine(0.05, 3000))),
    *(adaptive_revision(0.5), ftrl(0.5)),
]


def test_every_member_that_takes_a_penalty_is_asked_where_it_leads():
    assert {type(m) for m in FAST} == {type(m) for m in MEMBERS if m.takes_gradients}


@pytest.mark.parametrize("member", FAST, ids=str)
@pytest.mark.parametrize(("l1", "l2"), [(0.4, 0.0), (0.0, 0.7), (0.4, 0.7)])
def test_the_penalised_minimum_of_a_parabola_is_reached(member, l1, l2):
    """Of h (w - a)^2 / 2 + l1 |w| + l2 w^2 / 2: soft(h a, l1) / (h + l2); the last is free."""
    h, a = np.array([1.0, 2.0, 10.0, 0.5, 3.0, 1.0]), np.array([2.0, -1.0, 0.03, -0.1, 0.5, 5.0])
    mask = np.array([1, 1, 1, 1, 1, 0])
    expected = soft(h * a, l1 * mask) / (h + l2 * mask)
    descent = Descent(member, l1=l1, l2=l2, mask=mask)
    w = minimise(descent, lambda w: h * (w - a), np.full(6, -3.0), 3000)
    assert_allclose(w, expected, atol=1e-9)
    assert_array_equal(w == 0, expected == 0)  # exact zeros, and only there
    assert np.sum(w == 0) == (2 if l1 else 0)


@pytest.mark.parametrize(
    "member", [sgd(0.2), momentum(0.05), nesterov(0.05), adagrad(0.5)], ids=str
)
def test_scikit_learns_lasso_is_reached(member):
    """Correlated features: 1/(2n) |y - X w|^2 + 0.1 |w|_1."""
    random = np.random.default_rng(0)
    X = random.normal(size=(60, 8)) + random.normal(size=(60, 1))
    y = X @ [2, -1, 0, 0, 0.5, 0, 0, 0] + random.normal(size=60)
    expected = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, y).coef_
    w = minimise(Descent(member, l1=0.1), lambda w: X.T @ (X @ w - y) / 60, np.zeros(8), 2500)
    assert_allclose(w, expected, atol=1e-6)
    assert_array_equal(w == 0, expected == 0)
    assert 0 < np.sum(w == 0) < 8


# --- clipping -------------------------------------------------------------------------------


@repeatable
@given(
    grad=arrays(float, st.integers(0, 6), elements=st.floats(-1e6, 1e6)),
    clip=st.floats(1e-6, 1e6),
)
def test_a_clipped_gradient_keeps_its_direction_and_is_no_longer_than_the_clip(grad, clip):
    norm = np.linalg.norm(grad)
    result = clipped(grad, clip)
    if norm <= clip * (1 - 1e-12):
        assert_array_equal(result, grad)
    else:
        assert_allclose(result, grad * (clip / norm), rtol=1e-12, atol=1e-300)
        assert np.linalg.norm(result) <= clip * (1 + 1e-12)


@pytest.mark.parametrize(
    ("grad", "clip", "expected"),
    [
        # (3, 4) times anything is (0.6, 0.8) after a clip at 1.
        (np.array([3e300, 4e300]), 1.0, [0.6, 0.8]),
        (np.array([1.2e308, 1.6e308]), 1.0, [0.6, 0.8]),  # a norm above the largest float64
        (np.array([3e-310, 4e-310]), 1e-311, [0.6e-311, 0.8e-311]),
        (np.array([3e200, -4e200]), 1e250, [3e200, -4e200]),
        (np.array([1.8e38, 2.4e38], np.float32), 1.0, [0.6, 0.8]),
        (np.array([3e-30, 4e-30], np.float32), 1e-30, [0.6e-30, 0.8e-30]),
        (np.array([0.0, 0.0]), 1e-300, [0, 0]),
        (np.array([-7.0]), 2.0, [-2]),
        (np.array([]), 1.0, []),
    ],
)
def test_huge_tiny_and_zero_gradients(grad, clip, expected):
    result = clipped(grad, clip)
    assert result.dtype == grad.dtype
    assert_allclose(
        result, expected, rtol=1e-4 if max(map(abs, expected), default=1) < 1e-300 else 3e-7
    )


def test_the_norm_of_float32_is_summed_in_float64():
    # 1 + 10^6 10^-8 = 1.01: in float32 1 + 10^-8 is 1.
    grad = np.full(1_000_001, 1e-4, np.float32)
    grad[0] = 1.0
    assert_allclose(clipped(grad, 0.5)[0], 0.5 / np.sqrt(1.01), rtol=1e-6)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_gradient_that_is_not_finite_is_not_hidden_by_the_clip(bad):
    result = clipped([1.0, bad, 3.0], 1.0)
    assert_array_equal(np.isfinite(result), [True, False, True])


def test_differences_can_be_clipped_too():
    assert_array_equal(step(Descent(average(), clip=2.5), 0, G, (), W)[0], [5.5, -6])


# --- the contract ---------------------------------------------------------------------------

FULL = {"l1": 0.01, "l2": 0.1, "mask": [1, 1, 0, 1, 1, 1, 1, 1, 1], "clip": 1.0}


def options_of(member):
    return FULL if member.takes_gradients else {"clip": 1.0}


@every_member
@every_dtype
def test_w_and_state_are_only_read_and_a_replay_is_bitwise_the_same(member, dtype):
    descent = Descent(member, **options_of(member))
    w, grad = np.random.default_rng(0).normal(size=(2, 9)).astype(dtype)
    state = step(descent, 0, grad, descent.init(w), w)[1]
    for array in (w, *state):
        array.flags.writeable = False
    again = pickle.loads(pickle.dumps(descent))
    results = [step(d, 1, grad, state, w) for d in (descent, descent, again)]
    for new_w, new_state in results:
        assert_array_equal(new_w, results[0][0])
        assert_array_equal(new_state, results[0][1])
        kept = [array.dtype for array in (new_w, *new_state)]
        assert kept == [array.dtype for array in (w, *state)] and kept[0] == dtype
        assert np.isfinite([new_w, *new_state]).all()


@every_member
@every_dtype
def test_float32_is_as_float64_to_its_precision(member, dtype):
    descent = Descent(member, **options_of(member))
    w, grad = np.random.default_rng(0).normal(size=(2, 9))
    wide = step(descent, 0, grad, descent.init(w), w)[0]
    w, grad = w.astype(dtype), grad.astype(dtype)
    assert_allclose(step(descent, 0, grad, descent.init(w), w)[0], wide, rtol=2e-6, atol=1e-6)


def peak_of_an_update(descent, dtype):
    w = np.ones(1_000_000, dtype)
    state, new_w, new_state = descent.init(w), np.empty_like(w), descent.init(w)
    grad = w.copy()
    tracemalloc.start()
    try:
        descent.update(0, grad, state, w, new_w, new_state)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@every_dtype
def test_without_l1_nothing_of_the_size_of_w_is_allocated(dtype):
    mask = np.ones(1_000_000)
    assert peak_of_an_update(Descent(adam(), l2=0.1, mask=mask), dtype) < 10_000
    # The sum in float64 casts float32 by the piece: 8192 numbers at a time, whatever the size.
    allowed = 10_000 if dtype is np.float64 else 200_000
    assert peak_of_an_update(Descent(adam(), l2=0.1, mask=mask, clip=1.0), dtype) < allowed


@every_dtype
def test_with_l1_nothing_is_allocated_either_if_the_step_is_one_number(dtype):
    mask = np.ones(1_000_000)
    assert peak_of_an_update(Descent(momentum(), l1=0.1, mask=mask), dtype) < 10_000


def test_the_mask_is_a_copy_and_nobody_changes_it():
    mask = np.array([1.0, 0.0])
    descent = Descent(sgd(0.5), l2=0.25, mask=mask)
    mask[:] = 0
    assert_array_equal(step(descent, 0, G, (), W)[0], [2, -10])
    with pytest.raises(ValueError, match="read-only"):
        descent.mask[:] = False
    with pytest.raises(FrozenInstanceError):
        descent.mask = mask
    assert {descent: "a key, though an array is none"}[descent]


# --- what is refused ------------------------------------------------------------------------

MASK = "mask must be an array of 0 and 1, or None; it is "


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"l1": -1.0}, "l1 must be a finite number >= 0; it is -1.0"),
        ({"l1": None}, "l1 must be a finite number >= 0; it is None"),
        ({"l2": inf}, "l2 must be a finite number >= 0; it is inf"),
        ({"l2": "1"}, "l2 must be a finite number >= 0; it is '1'"),
        ({"clip": 0}, "clip must be a finite number > 0; it is 0"),
        ({"clip": nan}, "clip must be a finite number > 0; it is nan"),
        ({"clip": [1]}, "clip must be a finite number > 0; it is [1]"),
        ({"mask": [0.5, 1]}, MASK + "[0.5, 1]"),
        ({"mask": [nan]}, MASK + "[nan]"),
        ({"mask": ["1", "0"]}, MASK + "['1', '0']"),
        ({"mask": [[1], [1, 0]]}, MASK + "[[1], [1, 0]]"),
        ({"mask": [0.5] * 100}, MASK + "[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, ...]"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(options, problem):
    with pytest.raises(InvalidCall) as caught:
        Descent(sgd(), **options)
    assert caught.value.caller == "Descent"
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize("bad", ["adagrad", None, adagrad, 0.1])
def test_an_updater_is_a_member_not_its_name_or_class(bad):
    with pytest.raises(InvalidCall, match="updater must be a member of .* adagrad.0.1. for"):
        Descent(bad)


@pytest.mark.parametrize("options", [{"l1": 0.1}, {"l2": 0.1}])
def test_a_penalty_on_averaged_models_is_refused(options):
    with pytest.raises(InvalidCall, match="takes differences .* penalise where the workers step"):
        Descent(average(), **options)
    assert Descent(average(), l1=0, l2=0).l1 == 0


def test_all_problems_of_a_call_are_told_at_once():
    with pytest.raises(InvalidCall) as caught:
        Descent("sgd", l1=-1, l2=nan, mask="all", clip=-1)
    told = [problem.split(" must be ")[0] for problem in caught.value.problems]
    assert told == ["updater", "l1", "l2", "mask", "clip"]


def test_a_mask_of_another_shape_is_refused_before_the_first_update():
    descent = Descent(sgd(), l1=0.1, mask=[1, 0, 1])
    assert descent.init(np.zeros(3)) == ()
    with pytest.raises(InvalidCall, match=r"mask must have the shape of the parameters, \(2,\)"):
        descent.init(np.zeros(2))

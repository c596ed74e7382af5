"""Properties of every updater, and steps by hand."""

import inspect
import pickle
import tracemalloc
from math import inf, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from sparkdist import registry, updaters
from sparkdist.errors import InvalidCall
from sparkdist.updaters import (
    adagrad,
    adam,
    adaptive_revision,
    average,
    cosine,
    ftrl,
    inverse_time,
    momentum,
    nesterov,
    rmsprop,
    sgd,
    step_decay,
)

DEFAULTS = [registry.get(updaters, name)() for name in registry.names(updaters)]
MEMBERS = [
    *DEFAULTS,
    *(sgd(inverse_time(0.5, 0.1)), momentum(0.1, 0.0), nesterov(step_decay(0.1, 0.5, 2), 0.5)),
    *(adagrad(0.5, 1.0), rmsprop(0.1, 0.5, 1e-3), adam(0.1, 0.0, 0.0, 0.5), average(0.5)),
    *(adaptive_revision(0.5, 0.1), ftrl(0.5, 2.0, l2=0.1)),
]
DESCENDING = [member for member in MEMBERS if member.takes_gradients]
repeatable = settings(derandomize=True, deadline=None, max_examples=30)


def shown(value):
    """The id of a member; a function's repr has an address, and so differs between processes."""
    return "recipe" if inspect.isfunction(value) else str(value)


every_member = pytest.mark.parametrize("member", MEMBERS, ids=shown)
every_default = pytest.mark.parametrize("member", DEFAULTS, ids=shown)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
gradients = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


def step(member, t, grad, state, w):
    """One update into new arrays that hold NaN, so that what is not overwritten is seen."""
    new_w = np.full_like(w, nan)
    new_state = tuple(np.full_like(vector, nan) for vector in state)
    member.update(t, grad, state, w, new_w, new_state)
    return new_w, new_state


def walk(member, grads, w):
    """All w from the first on, one for each gradient, and the last state."""
    path, state = [np.asarray(w)], member.init(np.asarray(w))
    for t, grad in enumerate(grads):
        w, state = step(member, t, np.asarray(grad, path[0].dtype), state, path[-1])
        path.append(w)
    return path, state


def random_steps(dtype, n=6, d=50, seed=0):
    """A start, and n gradients of different sizes."""
    random = np.random.default_rng(seed)
    grads = random.normal(size=(n, d)) * random.uniform(0.01, 10, size=(n, 1))
    return random.normal(size=d).astype(dtype), grads.astype(dtype)


# --- numbers from outside -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "grads", "path", "last_state"),
    [
        # 10 - 4 / 2 = 8;  8 + 2 / 2 = 9;  9 - 1 / 2
        (sgd(0.5), [4, -2, 1], [10, 8, 9, 8.5], []),
        # The rates are 1, 1/2 and 1/3.
        (sgd(inverse_time(1.0, 1.0)), [4, -2, 3], [10, 6, 7, 6], []),
        # v = 4;  2 - 2 = 0;  0 + 8 = 8;  w falls by v / 4.
        (momentum(0.25, 0.5), [4, -2, 8], [10, 9, 9, 7], [8]),
        # v = 4, 0, 8 again;  v / 2 + g = 6, -2, 12;  w falls by a quarter of it.
        (nesterov(0.25, 0.5), [4, -2, 8], [10, 8.5, 9, 6], [8]),
        # s = 9 + 16 = 5^2;  25 + 144 = 13^2;  169 + 84^2 = 85^2;  65 * 4/5, 12/13, 85 * ...
        (adagrad(65.0, 9.0), [4, -12], [100, 48, 108], [169]),
        (adagrad(85.0, 169.0), [-84], [0, 84], [7225]),
        # s = 16/4 = 2^2;  3 + 4/4 = 2^2;  3 + 4/4;  the divisor is 2 + 2 each time.
        (rmsprop(1.0, 0.75, 2.0), [4, 2, -2], [10, 9, 8.5, 9], [4]),
        # m = 3/2, -3/4, 9/8, over 1/2, 3/4, 7/8: 3, -1, 9/7;  v = 9/4, 63/16, 333/64, over
        # 1/4, 7/16, 37/64: 9, 9, 9;  the divisor is 3 + 1 each time: 3/4, -1/4, 9/28.
        (
            adam(1.0, 0.5, 0.75, 1.0),
            [3, -3, 3],
            [10, 9.25, 9.5, 9.5 - 9 / 28],
            [9 / 8, 333 / 64],
        ),
        # As adagrad above: no delay.  gbar = -8, z = 169.
        (adaptive_revision(65.0, 9.0), [4, -12], [100, 48, 108], [-8, 169, 169]),
        # z = -10 (2 + 1/2), n = 9, 25;  sigma w = 30, 10 w;  c = 1/2 + 2 + 3, + 2.
        (
            ftrl(1.0, 2.0, l2=0.5),
            [3, 4],
            [10, 52 / 5.5, (52 - 4 + 2 * 52 / 5.5) / 7.5],
            [-52 + 4 - 2 * 52 / 5.5, 25],
        ),
        (average(0.5), [4, -2, 1], [10, 12, 11, 11.5], []),
    ],
    ids=shown,
)
def test_steps_by_hand(member, grads, path, last_state):
    got, state = walk(member, [[float(g)] for g in grads], np.array([float(path[0])]))
    assert_allclose(np.ravel(got), path, rtol=1e-15)
    assert_allclose(np.ravel(state), last_state, rtol=1e-15)


# Each function below is a paper's recipe for one coordinate, in plain Python floats.


def by_sgd(grads, rate, w):
    for g in grads:
        w -= rate * g
    return w


def by_momentum_with_the_rate_in_the_sum(grads, rates, w, mu=0.9):
    """Goyal et al., equation (10), with the correction of remark 2."""
    v = 0.0
    for t, g in enumerate(grads):
        v = mu * (rates(t) / rates(max(t - 1, 0))) * v + rates(t) * g
        w -= v
    return w


def by_nesterov_at_the_point_ahead(grads, rate, w, mu=0.9):
    """Sutskever et al., (3) and (4): theta, whose gradient is taken at theta + mu v."""
    v, theta = 0.0, w
    for g in grads:
        v = mu * v - rate * g
        theta += v
    return theta + mu * v


def by_adagrad(grads, rate, w, initial):
    """Dean et al.: the rate over the root of the sum of all squares."""
    for t, g in enumerate(grads):
        w -= rate / sqrt(initial + sum(x * x for x in grads[: t + 1])) * g
    return w


def by_ftrl(grads, rate, w, beta=1.0, l1=0.0, l2=0.0):
    """McMahan et al., KDD 2013, Algorithm 1, from the z that gives the first w."""
    z, n = -w * (beta / rate + l2) - np.sign(w) * l1, 0.0
    for g in grads:
        if abs(z) <= l1:
            w = 0.0
        else:
            w = -(z - np.sign(z) * l1) / ((beta + sqrt(n)) / rate + l2)
        sigma = (sqrt(n + g * g) - sqrt(n)) / rate
        z, n = z + g - sigma * w, n + g * g
    if abs(z) <= l1:
        return 0.0
    return -(z - np.sign(z) * l1) / ((beta + sqrt(n)) / rate + l2)


def by_rmsprop(grads, rate, w, decay=0.9, epsilon=1e-8):
    """The weights of the average: (1 - decay) decay^age."""
    for t, g in enumerate(grads):
        mean = sum((1 - decay) * decay ** (t - i) * grads[i] ** 2 for i in range(t + 1))
        w -= rate * g / (sqrt(mean) + epsilon)
    return w


def by_adam(grads, rate, w, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Kingma and Ba, Algorithm 1."""
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        w -= rate * m_hat / (sqrt(v_hat) + epsilon)
    return w


FALLING = step_decay(0.3, 0.25, 3)


@pytest.mark.parametrize(
    ("member", "recipe"),
    [
        (sgd(0.3), lambda g: by_sgd(g, 0.3, 1.0)),
        (momentum(FALLING), lambda g: by_momentum_with_the_rate_in_the_sum(g, FALLING, 1.0)),
        (nesterov(0.3), lambda g: by_nesterov_at_the_point_ahead(g, 0.3, 1.0)),
        (adagrad(0.3), lambda g: by_adagrad(g, 0.3, 1.0, 0.1)),
        (adaptive_revision(0.3), lambda g: by_adagrad(g, 0.3, 1.0, 1.0)),
        (ftrl(0.3), lambda g: by_ftrl(g, 0.3, 1.0)),
        (ftrl(0.3, 0.5, 2.0, 0.7), lambda g: by_ftrl(g, 0.3, 1.0, 0.5, 2.0, 0.7)),
        (rmsprop(0.3), lambda g: by_rmsprop(g, 0.3, 1.0)),
        (adam(0.3), lambda g: by_adam(g, 0.3, 1.0)),
        (average(0.3), lambda g: by_sgd(g, -0.3, 1.0)),
    ],
    ids=shown,
)
@repeatable
@given(grads=gradients)
def test_each_step_is_the_papers(member, recipe, grads):
    path, _ = walk(member, [[g] for g in grads], np.array([1.0]))
    scale = 1 + max(map(abs, grads))
    assert path[-1][0] == pytest.approx(recipe(grads), rel=1e-11, abs=1e-12 * scale)


@pytest.mark.parametrize(
    ("member", "of_sklearn"),
    [
        (sgd(0.1), lambda w: SGDOptimizer([w], 0.1, momentum=0.0, nesterov=False)),
        (momentum(0.1, 0.8), lambda w: SGDOptimizer([w], 0.1, momentum=0.8, nesterov=False)),
        (nesterov(0.1, 0.8), lambda w: SGDOptimizer([w], 0.1, momentum=0.8, nesterov=True)),
        # scikit-learn adds epsilon before the correction: 1e-30 makes them the same.
        (adam(0.1, 0.8, 0.99, 1e-30), lambda w: AdamOptimizer([w], 0.1, 0.8, 0.99, 1e-30)),
    ],
    ids=shown,
)
def test_scikit_learn_goes_the_same_way(member, of_sklearn):
    w, grads = random_steps(float, n=40)
    theirs = w.copy()
    other = of_sklearn(theirs)
    for ours, grad in zip(walk(member, grads, w)[0][1:], grads, strict=True):
        other.update_params([theirs], [grad])
        assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_first_step_of_adagrad():
    """0.1 g / sqrt(0.1 + g^2): the rate for a large gradient, 0.1 / sqrt(0.1) g for a small one."""
    g = np.array([1e6, -1e6, 1e-6, 1.0, 0.0])
    w = walk(adagrad(0.1, 0.1), [g], np.zeros(5))[0][-1]
    assert_allclose(w, [-0.1, 0.1, -0.31622776601683794e-6, -0.1 / sqrt(1.1), 0], rtol=1e-11)


@pytest.mark.parametrize(("member", "length"), [(adam(), 1e-3), (rmsprop(), 1e-3 / sqrt(0.1))])
def test_the_first_step_of_adam_and_rmsprop_has_one_length(member, length):
    g = np.array([1e6, -1e-3, 1.0])
    w = walk(member, [g], np.zeros(3))[0][-1]
    assert_allclose(w, -length * np.sign(g), rtol=1e-4)


def test_momentum_remembers_gradients_not_steps_so_that_the_rate_may_change():
    w, grads = random_steps(float)
    for kind in (momentum, nesterov):
        states = [walk(kind(rate), grads, w)[1] for rate in (1.0, 1e-3, FALLING)]
        assert_array_equal(states[0], states[1])
        assert_array_equal(states[0], states[2])


def test_the_average_of_models():
    """With rate 1 the new w is the mean of what the workers came to."""
    random = np.random.default_rng(0)
    w, theirs = random.normal(size=20), random.normal(size=(5, 20))
    difference = np.mean(theirs - w, axis=0)
    assert_allclose(walk(average(), [difference], w)[0][-1], theirs.mean(axis=0), atol=1e-15)
    half = walk(average(0.5), [difference], w)[0][-1]
    assert_allclose(half, (w + theirs.mean(axis=0)) / 2, atol=1e-15)


# --- convergence ----------------------------------------------------------------------------


def minimise(member, gradient, w, steps):
    w = np.array(w)
    state, new_w, new_state = member.init(w), np.empty_like(w), member.init(w)
    for t in range(steps):
        member.update(t, gradient(w), state, w, new_w, new_state)
        w, new_w, state, new_state = new_w, w, new_state, state
    return w


def rosenbrock(w):
    a, b = w.tolist()
    return np.array([-400 * a * (b - a * a) - 2 * (1 - a), 200 * (b - a * a)])


FOR_PARABOLA = [
    *(sgd(0.05), momentum(0.02), nesterov(0.02), adagrad(1.0), adaptive_revision(1.0), ftrl(1.0)),
    *(rmsprop(cosine(0.1, 800)), adam(cosine(0.1, 800))),
]
FOR_ROSENBROCK = [
    *(sgd(1.4e-3), momentum(5e-4), nesterov(5e-4)),
    *(adagrad(0.5), adaptive_revision(0.5), ftrl(0.5)),
    *(rmsprop(cosine(0.01, 8000)), adam(cosine(0.02, 8000))),
]


def test_every_descending_member_is_asked_to_converge():
    asked = {type(member) for member in DESCENDING}
    assert asked == set(map(type, FOR_PARABOLA)) == set(map(type, FOR_ROSENBROCK))


@pytest.mark.parametrize("member", FOR_PARABOLA, ids=shown)
def test_the_minimum_of_a_parabola_is_reached(member):
    curvature, centre = np.array([1.0, 5.0, 25.0]), np.array([1.0, -2.0, 0.5])
    w = minimise(member, lambda w: curvature * (w - centre), np.zeros(3), 800)
    assert_allclose(w, centre, atol=1e-6)


@pytest.mark.parametrize("member", FOR_ROSENBROCK, ids=shown)
def test_the_minimum_of_the_rosenbrock_function_is_reached(member):
    assert_allclose(minimise(member, rosenbrock, [-1.2, 1.0], 8000), [1, 1], atol=0.05)


# --- the contract ---------------------------------------------------------------------------


@every_member
@every_dtype
def test_an_update_is_pure_and_a_replay_is_bitwise_the_same(member, dtype):
    w, grads = random_steps(dtype)
    state = walk(member, grads, w)[1]
    copies = [grads[0].copy(), w.copy(), *(vector.copy() for vector in state)]
    for array in (grads, w, *state):
        array.flags.writeable = False  # a write into an input would raise
    results = [step(member, 6, grads[0], state, w) for _ in range(2)]
    results.append(step(member, 6, copies[0], tuple(copies[2:]), copies[1]))
    for new_w, new_state in results:
        assert_array_equal(new_w, results[0][0])
        assert_array_equal(new_state, results[0][1])
    assert_array_equal(w, copies[1])
    assert_array_equal(state, copies[2:])


@every_member
@every_dtype
def test_state_is_vectors_like_w_and_two_states_share_nothing(member, dtype):
    w = random_steps(dtype)[0]
    arrays = [w, *member.init(w), *member.init(w)]
    assert {array.shape for array in arrays} == {w.shape}
    assert {array.dtype for array in arrays} <= {np.dtype(dtype), np.dtype(np.float64)}
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


@every_member
def test_float32_stays_float32(member):
    w, grads = random_steps(np.float32)
    path, state = walk(member, grads, w)
    wide = walk(member, grads.astype(float), w.astype(float))[0]
    size = np.asarray(member.step_size(5, state))
    assert {array.dtype for array in path} == {np.dtype(np.float32)}
    double = [i for i, array in enumerate(state) if array.dtype == np.float64]
    assert double == ([0] if isinstance(member, adaptive_revision) else [])  # gbar
    assert size.dtype == np.float32 or size.shape == ()
    assert_allclose(path[-1], wide[-1], rtol=1e-5, atol=1e-4)


def test_numbers_of_numpy_do_not_make_float32_arithmetic_wider():
    w, grads = random_steps(np.float32)
    big = np.float64
    pairs = [
        (sgd(0.1), sgd(lambda t: big(0.1))),
        (momentum(0.1, 0.9), momentum(big(0.1), big(0.9))),
        (adagrad(0.1), adagrad(lambda t: big(0.1), big(0.1))),
        (adam(0.1, 0.7), adam(big(0.1), big(0.7))),
    ]
    for plain, other in pairs:
        assert_array_equal(walk(plain, grads, w)[0], walk(other, grads, w)[0])


@every_default
@every_dtype
def test_an_update_allocates_nothing_of_the_size_of_w(member, dtype):
    w = np.ones(1_000_000, dtype)
    state, new_w, new_state = member.init(w), np.empty_like(w), member.init(w)
    tracemalloc.start()
    try:
        member.update(0, w, state, w, new_w, new_state)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000  # NumPy's own buffers, where float64 meets float32, have 64 KiB each


@every_member
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_step_size_is_how_far_w_moves_if_all_gradients_are_the_same(member, sign):
    g = sign * np.array([0.01, 0.5, 3.0])
    w = np.zeros(3)
    state = member.init(w)
    for t in range(5):
        new_w, state = step(member, t, g, state, w)
        moved = (w - new_w) if member.takes_gradients else (new_w - w)
        assert_allclose(moved, member.step_size(t, state) * g, rtol=1e-12)


@every_member
@every_dtype
def test_without_a_gradient_nothing_moves(member, dtype):
    w = random_steps(dtype)[0]
    path, _ = walk(member, np.zeros((3, w.size)), w)
    assert_allclose(path, [w] * 4, rtol=2 * np.finfo(dtype).eps)  # ftrl makes w of its state
    assert_array_equal(path[1:], [path[1]] * 3)


@pytest.mark.parametrize(
    "member", [adagrad(0.1, 1e-37), rmsprop(epsilon=1e-37), adam(epsilon=1e-37)]
)
def test_the_least_divisor_is_not_0_in_float32(member):
    w = np.ones(2, np.float32)
    path, _ = walk(member, [[0.0, 1.0], [0.0, -1.0]], w)
    assert np.isfinite(path).all()
    assert_array_equal(np.array(path)[:, 0], 1)


def test_after_the_last_gradient_momentum_goes_on_and_the_others_rest():
    w = np.zeros(1)
    moved = {
        name: not np.array_equal(*walk(registry.get(updaters, name)(), [[1.0], [0.0]], w)[0][1:])
        for name in registry.names(updaters)
    }
    assert {name for name, moves in moved.items() if moves} == {"adam", "momentum", "nesterov"}


@every_member
def test_a_long_run_needs_no_special_care(member):
    w, grads = random_steps(float, n=1)
    new_w, new_state = step(member, 10**12, grads[0], member.init(w), w)
    assert np.isfinite([new_w, *new_state]).all()
    assert np.isfinite(member.step_size(10**12, new_state)).all()


@every_member
def test_a_model_without_parameters(member):
    path, _ = walk(member, np.zeros((2, 0)), np.zeros(0))
    assert path[-1].shape == (0,)


@every_member
def test_reads_like_its_call_pickles_and_compares_by_its_numbers(member):
    assert eval(repr(member), vars(updaters)) == member
    assert pickle.loads(pickle.dumps(member)) == member
    assert sum(member == other for other in MEMBERS) == 1
    assert len({member, pickle.loads(pickle.dumps(member))}) == 1


@every_default
def test_a_state_pickles_and_names_its_vectors(member):
    state = member.init(np.arange(3.0))
    again = pickle.loads(pickle.dumps(state))
    assert type(again) is type(state)
    assert_array_equal(again, state)
    assert len(getattr(state, "_fields", ())) == len(state)


def test_only_average_takes_differences_instead_of_gradients():
    assert {type(member) for member in MEMBERS} - {type(member) for member in DESCENDING} == {
        average
    }


# --- what is refused ------------------------------------------------------------------------

BELOW_1 = "must be a number >= 0 and < 1"
DIVISOR = "must be a number from 1e-37 to 1e37"


@pytest.mark.parametrize("kind", [type(member) for member in DEFAULTS])
def test_every_member_checks_its_rate(kind):
    with pytest.raises(InvalidCall) as caught:
        kind("fast")
    assert caught.value.caller == kind.__name__
    schedule = "" if kind is ftrl else ", or a function of t = 0, 1, 2 ... that gives one >= 0"
    problem = f"rate must be a finite number > 0{schedule}; it is 'fast'"
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize(
    ("kind", "name", "rule"),
    [
        (momentum, "momentum", BELOW_1),
        (nesterov, "momentum", BELOW_1),
        (rmsprop, "decay", BELOW_1),
        (adam, "beta1", BELOW_1),
        (adam, "beta2", BELOW_1),
        (adagrad, "initial", DIVISOR),
        (adaptive_revision, "initial", DIVISOR),
        (ftrl, "beta", DIVISOR),
        (rmsprop, "epsilon", DIVISOR),
        (adam, "epsilon", DIVISOR),
    ],
)
def test_every_number_is_checked(kind, name, rule):
    shared = [-0.1, inf, nan, None, "0.5", True, np.array([0.5, 0.5])]
    for bad in [*shared, *([1, 1.0, 1.5] if rule == BELOW_1 else [0, 9e-38, 1.1e37])]:
        with pytest.raises(InvalidCall) as caught:
            kind(**{name: bad})
        assert caught.value.problems == (f"{name} {rule}; it is {bad!r}",)


@pytest.mark.parametrize("bound", [1e-37, 1e37])
def test_the_bounds_of_a_divisor_are_allowed(bound):
    assert adagrad(initial=bound).initial == bound
    assert 0 < np.float32(bound) < inf


def test_the_defaults():
    """Those of the papers and of PyTorch where they have one; all can be had by name alone."""
    assert list(map(repr, DEFAULTS)) == [
        "adagrad(rate=0.1, initial=0.1)",
        "adam(rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08)",
        "adaptive_revision(rate=0.1, initial=1.0)",
        "average(rate=1.0)",
        "ftrl(rate=0.1, beta=1.0, l1=0.0, l2=0.0)",
        "momentum(rate=0.01, momentum=0.9)",
        "nesterov(rate=0.01, momentum=0.9)",
        "rmsprop(rate=0.001, decay=0.9, epsilon=1e-08)",
        "sgd(rate=0.01)",
    ]


def test_all_problems_of_a_call_are_told_at_once():
    with pytest.raises(InvalidCall, match="^adam: 4 problems\n  - rate .*\n  - beta1 .* it is 1\n"):
        adam(0, 1, -1, 0)

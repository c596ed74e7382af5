"""The gradient noise scale: unbiased, cheap, told by every run, and right where it is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sparkdist import MLP
from sparkdist.blocks import Block
from sparkdist.consistency import asp, bsp
from sparkdist.server.metrics import exposition
from sparkdist.server.noise import EVERY, FIRST, NoiseScale, Window
from sparkdist.simulate import simulate
from sparkdist.updaters import Descent, adagrad, average, linear_scaling, momentum, sgd
from sparkdist.wire import Sparse
from tests.test_policies import digits
from tests.test_store import RUN, a_push, make_rule, make_store, model


def pairs(noise, gradients, sizes):
    """Give two mean gradients as if two pushes in a row had carried them."""
    for gradient, size in zip(gradients, sizes, strict=True):
        noise.see(np.asarray(gradient), size)


def only(noise):
    """The estimates of the only window."""
    status = noise.status()
    assert status["windows"] == 1
    return np.array([status["gradient_squared"], status["noise"]])


# --- the estimate -----------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(16, 16), (16, 48), (8,) * 10, (1, 2, 3, 4)])
def test_expectations_give_exactly_what_they_are_of(sizes):
    # E |g_B|^2 = |G|^2 + S / B, here with |G|^2 = 2 and S = 300.
    window = Window(sizes, [2 + 300 / b for b in sizes], 2 + 300 / sum(sizes))
    assert_allclose(window.estimate(), [2, 300], rtol=1e-12)


def test_of_two_batches_of_one_size_it_is_their_product_and_half_their_difference():
    # |G|^2 = g.h and S = B |g - h|^2 / 2, which is the algebra of A.2 and A.3 for two.
    g, h = np.array([3.0, 1.0]), np.array([1.0, 2.0])
    noise = NoiseScale()
    pairs(noise, [g, h], [10, 10])
    assert_allclose(only(noise), [5, 10 * 5 / 2], rtol=1e-14)
    assert noise.status()["batch_size"] == pytest.approx(5.0)


def test_over_all_pairs_of_rows_the_mean_of_the_estimates_is_exact():
    rows = np.random.default_rng(0).normal(0.3, 1.0, size=(12, 4))
    found = []
    for one in rows:
        for other in rows:
            noise = NoiseScale()
            pairs(noise, [one, other], [1, 1])
            found.append(only(noise))
    mean = rows.mean(axis=0)
    covariance = np.cov(rows.T, bias=True)
    assert_allclose(np.mean(found, axis=0), [mean @ mean, np.trace(covariance)], rtol=1e-12)


@pytest.mark.parametrize("sizes", [(16, 16), (5, 40), (4, 8, 12, 16, 20)])
def test_gaussian_gradients_of_unequal_batches_give_no_bias(sizes):
    random, mean = np.random.default_rng(1), np.full(20, 0.1)
    spread = np.linspace(0.5, 2.0, 20)
    found = []
    for _ in range(3000):
        batches = [mean + spread * random.normal(size=20) / np.sqrt(b) for b in sizes]
        noise = NoiseScale()
        if len(sizes) == 2:
            pairs(noise, batches, sizes)
        else:
            sums = [(g * b, b) for g, b in zip(batches, sizes, strict=True)]
            noise.see_round(sums, sum(s for s, _ in sums) / sum(sizes))
        found.append(only(noise))
    error = np.std(found, axis=0) / np.sqrt(len(found))
    wrong = (np.mean(found, axis=0) - [0.2, (spread**2).sum()]) / error
    assert np.abs(wrong).max() < 4


def test_the_average_fades_and_is_divided_by_its_weight():
    noise = NoiseScale()
    for value in [1.0] * 5 + [3.0] * 300:
        noise.add(Window((1, 1), (value, value), value))
    # All gradients are the same: no noise, and so no batch that would be too large.
    status = noise.status()
    assert status == {
        "windows": 305,
        "gradient_squared": pytest.approx(3.0, abs=1e-5),
        "noise": pytest.approx(0.0, abs=1e-12),
        "batch_size": None,
    }
    noise = NoiseScale()
    noise.add(Window((1, 1), (1.0, 1.0), 1.0))
    assert noise.status()["gradient_squared"] == 1.0


def test_what_overflows_or_has_no_other_batch_is_left_out():
    noise = NoiseScale()
    with np.errstate(over="ignore"):
        pairs(noise, [[1e200], [1e200]], [1, 1])
    noise.see_round([(np.ones(1), 2.0), (np.zeros(1), 0.0)], np.ones(1))
    assert noise.status() == {
        "windows": 0, "gradient_squared": None, "noise": None, "batch_size": None
    }  # fmt: skip


def test_a_sparse_gradient_counts_like_a_dense_one():
    dense = [np.array([0.0, 3.0, 0.0, 1.0]), np.array([2.0, 0.0, 0.0, 0.0])]
    sparse = [
        {"": Sparse(np.array([3.0, 1.0]), np.array([1, 3], "<i4"), (4,))},
        {"": Sparse(np.array([2.0]), np.array([0], "<i4"), (4,))},
    ]
    found = []
    for parts in (dense, sparse):
        noise = NoiseScale()
        noise.see_round([(part, 2.0) for part in parts], (dense[0] + dense[1]) / 4)
        found.append(only(noise))
    assert_array_equal(*found)


# --- of a run ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "a_window"), [(asp(), 2), (bsp(), 3)], ids=repr)
def test_the_first_windows_of_a_run_are_looked_at_and_then_few(policy, a_window):
    n, windows = 3, FIRST + 10 * EVERY
    store, random = make_store(2, policy, n, rule=make_rule(2, sgd(1e-3))), np.random.default_rng(0)
    for i in range(windows * a_window):
        store.push(RUN, a_push(store, i % n, i // n, random.normal(size=2)))
    assert store.status()["noise_scale"]["windows"] == pytest.approx(FIRST + 10, abs=1)
    assert b"sparkdist_noise_noise " in exposition(store.status())


def test_it_takes_nothing_from_the_gradients():
    grads, found = np.random.default_rng(0).normal(size=(100, 5)), []
    for size in (5, 6):  # one more coordinate, which is 0
        store = make_store(size, rule=make_rule(size, adagrad(0.1)))
        for clock, grad in enumerate(grads):
            store.push(RUN, a_push(store, 0, clock, np.resize([*grad, 0.0], size)))
        found.append((model(store)[:5], store.status()["noise_scale"]))
    assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == pytest.approx(found[1][1])


def test_differences_of_parameters_have_none():
    store = make_store(2, rule=make_rule(2, average()))
    store.push(RUN, a_push(store, 0, 0, np.ones(2)))
    assert store.status()["noise_scale"] is None
    assert b"sparkdist_noise" not in exposition(store.status())


@pytest.mark.parametrize("policy", [asp(), bsp()], ids=repr)
def test_a_run_with_workers_finds_the_noise_of_its_rows(policy):
    # Of squared loss at w: rows' gradients (x.w - y) x, at a w that hardly moves.
    random = np.random.default_rng(0)
    X, y = random.normal(size=(4000, 3)), random.normal(size=4000) + 2.0
    X[:, 0] = 1.0
    rows = -y[:, None] * X
    mean = rows.mean(axis=0)
    exact = mean @ mean, (rows**2).sum(axis=1).mean() - mean @ mean
    store = make_store(3, policy, 4, rule=make_rule(3, sgd(1e-9)))
    order = random.permutation(4000).reshape(-1, 4, 10)
    for clock, batches in enumerate(order):
        for p, batch in enumerate(batches):
            store.push(RUN, a_push(store, p, clock, rows[batch].sum(axis=0), weight=10.0))
    found = store.status()["noise_scale"]
    assert found["gradient_squared"] == pytest.approx(exact[0], rel=0.15)
    assert found["noise"] == pytest.approx(exact[1], rel=0.15)
    assert found["batch_size"] == pytest.approx(exact[1] / exact[0], rel=0.25)


def of_rows(network, w, X, y):
    """Exact |G|^2 and S: one gradient a row."""
    squares, total = 0.0, np.zeros(network.size(64))
    for i in range(len(y)):
        grad = network.value_and_grad(w, Block(X[i : i + 1], y[i : i + 1], np.ones(1))).grad
        squares, total = squares + grad @ grad, total + grad
    G = total / len(y)
    return G @ G, squares / len(y) - G @ G


@pytest.mark.long
def test_m5_on_the_digits_it_grows_from_tens_to_hundreds_of_rows():
    # 16 workers with batches of 16, base rate .01 scaled by 16, momentum .9.  An independent
    # program found B_simple 26, 74, 371, 403 and 138 at epochs 0, 1, 5, 10 and 20.
    network, (X, y) = MLP([64, 64, 10]), digits()
    w, random = network.own_layout.flatten(network.initial(0)), np.random.default_rng(0)
    descent, b, k = Descent(momentum(linear_scaling(0.01, 16))), 16, 16
    state, new_w, new_state, t = descent.init(w), np.empty_like(w), descent.init(w), 0
    found = {}
    for epoch in range(6):
        order = random.permutation(len(y))
        if epoch in (0, 1, 5):
            noise = NoiseScale()
            for _ in range(FIRST):
                rows = random.choice(len(y), size=(k, b))  # with replacement: independent
                sums = [network.value_and_grad(w, _block(X, y, one)).grad for one in rows]
                noise.see_round([(s, float(b)) for s in sums], sum(sums) / (k * b))
            found[epoch] = (noise.status(), of_rows(network, w, X, y))
        for rows in np.array_split(order, len(y) // (k * b)):
            grad = network.value_and_grad(w, _block(X, y, rows)).grad / len(rows)
            descent.update(t, grad, state, w, new_w, new_state)
            w, new_w, state, new_state, t = new_w, w, new_state, state, t + 1
    for status, (gradient, trace) in found.values():
        assert status["noise"] == pytest.approx(trace, rel=0.2)
        assert status["gradient_squared"] == pytest.approx(gradient, rel=0.5)
    sizes = [status["batch_size"] for status, _ in found.values()]
    assert 13 < sizes[0] < 52 and 37 < sizes[1] < 148 and 180 < sizes[2] < 750


def _block(X, y, rows):
    return Block(X[rows], y[rows], np.ones(len(rows)))


def test_a_simulated_run_tells_it():
    X = np.random.default_rng(0).normal(size=(600, 4))
    y = (X[:, 0] > 0).astype(float)
    result = simulate("logistic", (X, y), workers=3, batch_size=10, epochs=2)
    assert result.noise_scale["windows"] > FIRST
    assert result.noise_scale["noise"] > 0

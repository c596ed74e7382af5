"""The rate of a large batch: linear scaling, where it ends, and what a warm-up does.

All on scikit-learn's digits: an MLP 64-64-10, momentum 0.9, 20 epochs, batches of k times 16 rows.
"""

from __future__ import annotations

import functools
from math import sqrt

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from sparkdist import MLP
from sparkdist.blocks import Block
from sparkdist.updaters import Descent, linear_scaling, momentum
from tests.conftest import FULL
from tests.test_policies import digits

pytestmark = pytest.mark.long

NETWORK, EPOCHS, SMALL = MLP([64, 64, 10]), 20, 16
SEEDS = range(5 if FULL else 3)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads make products as small as these slower."""
    with threadpool_limits(1):
        yield


def train(k, rate, seed):
    """Loss after training: k workers with 16 rows each are one batch of k times 16 (check C4)."""
    X, y = digits()
    ones, order = np.ones(len(y)), np.random.default_rng(seed)
    w = NETWORK.own_layout.flatten(NETWORK.initial(seed))
    descent = Descent(momentum(rate))
    state, new_w, new_state, t = descent.init(w), np.empty_like(w), descent.init(w), 0
    with np.errstate(all="ignore"):
        for _ in range(EPOCHS):
            for rows in np.array_split(order.permutation(len(y)), len(y) // (k * SMALL)):
                found = NETWORK.value_and_grad(w, Block(X[rows], y[rows], ones[: len(rows)]))
                descent.update(t, found.grad / len(rows), state, w, new_w, new_state)
                w, new_w, state, new_state, t = new_w, w, new_state, state, t + 1
        return NETWORK.value_and_grad(w, Block(X, y, ones)).loss / len(y)


@functools.cache
def losses(k, base, scaling):
    """Of all seeds."""
    epochs_of_warmup = 5 * (1437 // (k * SMALL)) if scaling == "warm-up" else 0
    factor = {"none": 1, "sqrt": sqrt(k)}.get(scaling, k)
    return [train(k, linear_scaling(base, factor, epochs_of_warmup), seed) for seed in SEEDS]


def median(k, base, scaling):
    return np.median(losses(k, base, scaling))


@pytest.mark.parametrize(("k", "unscaled", "root"), [(8, 0.294, 0.130), (16, 0.645, 0.183)])
def test_c1_linear_scaling_keeps_the_loss_and_less_does_not(k, unscaled, root):
    # An independent program found .0569 for k = 1, .0589 and .0577 for k = 8 and 16.
    baseline = median(1, 0.01, "linear")
    assert baseline == pytest.approx(0.0569, rel=0.15)
    assert median(k, 0.01, "linear") == pytest.approx(baseline, rel=0.2)
    assert median(k, 0.01, "none") > 4 * baseline
    assert median(k, 0.01, "none") == pytest.approx(unscaled, rel=0.15)
    assert median(k, 0.01, "sqrt") == pytest.approx(root, rel=0.15)


def test_c2_it_breaks_for_a_batch_of_half_of_the_rows():
    # Batches are of one size: asked for 512 of 1,437 rows, they are two of 718.
    assert median(32, 0.01, "linear") > 1.2 * median(1, 0.01, "linear")


def test_c3_a_warm_up_costs_a_little_at_a_small_rate_and_saves_runs_near_the_largest():
    for k in (8, 16):
        plain, warmed = median(k, 0.01, "linear"), median(k, 0.01, "warm-up")
        assert plain < warmed < 1.2 * plain
    stuck = [sum(loss > 0.1 for loss in losses(16, 0.1, how)) for how in ("linear", "warm-up")]
    assert stuck[1] < stuck[0]

"""Solving: every solver on one problem, and the books that it keeps."""

import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import Bounds, OptimizeResult

from sparkdist import registry, solvers
from sparkdist.blocks import Block
from sparkdist.objectives import Logistic, Softmax
from sparkdist.penalties import L1, L2
from sparkdist.problem import pose
from sparkdist.solving import Solving
from tests.conftest import random_block
from tests.in_memory import InMemory

BLOCKS = [random_block(40, 4, seed=1), random_block(25, 4, seed=2)]
METHODS = registry.names(solvers)
WITH_L1 = ["gd", "owlqn"]
RIDGE = L2(0.1)


def posed(objective, w0=None, *, penalty=RIDGE, bounds=None, intercept=True):
    problems = []
    problem = pose(
        objective,
        4,
        w0,
        penalty=penalty,
        bounds=bounds,
        intercept=intercept,
        unpenalized=(),
        problems=problems,
    )
    assert problems == []
    return problem


class Solved:
    """A run that is over, with what engine, bar and callback saw of it."""

    def __init__(self, method, problem, *, blocks=BLOCKS, stop_after=None, **options):
        self.engine, self.shown, self.seen = InMemory(*blocks), [], []
        self.stop_after, began = stop_after, time.perf_counter()
        solving = Solving(self.engine, problem, began, self.show, self.callback)
        self.result = solving.solve(method, options)

    def show(self, *seen):
        self.shown.append(seen)

    def callback(self, state):
        self.seen.append(state)
        if len(self.seen) == self.stop_after:
            raise StopIteration


def value(x, l1=0.0, l2=0.1):
    """The objective from its formula."""
    total = weight = 0.0
    for block in BLOCKS:
        m = (block.X @ x["weights"] + x["intercept"]) * (2 * block.y - 1)
        total += block.weight @ np.log(1 + np.exp(-m))
        weight += block.weight.sum()
    w = x["weights"]
    return total / weight + l1 * np.abs(w).sum() + l2 / 2 * (w @ w)


@pytest.fixture(scope="module", params=METHODS)
def solved(request):
    return Solved(request.param, posed(Logistic()), tol=1e-8)


def test_every_solver_converges_to_the_minimum(solved):
    result = solved.result
    assert result.success
    assert_allclose(result.fun, value(result.x), rtol=1e-12)
    # The objective is strongly convex with 0.1 in the weights: no point is lower than this.
    for name in ("weights", "intercept"):
        for step in (-1e-3, 1e-3):
            assert value({**result.x, name: result.x[name] + step}) > result.fun


def test_a_result_is_scipys_with_the_books_of_the_run(solved):
    result = solved.result
    assert isinstance(result, OptimizeResult)
    assert result.x["weights"].shape == result.jac["weights"].shape == (4,)
    assert result.x["intercept"].shape == result.jac["intercept"].shape == ()
    assert result.passes == solved.engine.passes == result.nfev + result.get("nhev", 0)
    assert 0 < result.history.seconds[-1] <= result.seconds
    assert result.method in METHODS


def test_the_history_has_the_start_and_each_iteration(solved):
    result, history = solved.result, solved.result.history
    lists = history.to_dict()
    assert {len(values) for values in lists.values()} == {result.nit + 1} == {len(history)}
    assert np.all(np.diff(history.passes) >= 1)
    assert np.all(np.diff(history.seconds) >= 0)
    assert history.passes[-1] <= result.passes


def test_the_first_entry_is_the_start(solved):
    history = solved.result.history
    assert history.passes[0] == 1
    assert history.fun[0] == pytest.approx(np.log(2), rel=1e-14)  # every margin is 0
    slope = sum((b.weight * (0.5 - b.y)) @ np.c_[b.X, np.ones(len(b.y))] for b in BLOCKS)
    weight = sum(b.weight.sum() for b in BLOCKS)
    assert history.grad_norm[0] == pytest.approx(np.abs(slope).max() / weight, rel=1e-12)


def test_the_last_entry_is_the_result(solved):
    result, history = solved.result, solved.result.history
    assert history.fun[-1] == result.fun
    largest = max(np.abs(part).max() for part in result.jac.values())
    assert history.grad_norm[-1] == largest <= 1e-8


def test_the_callback_sees_each_iterate_in_the_models_shape(solved):
    assert len(solved.seen) == solved.result.nit
    for nit, state in enumerate(solved.seen, start=1):
        assert state.nit == nit
        assert state.fun == solved.result.history.fun[nit] == pytest.approx(value(state.x))
        assert state.jac["weights"].shape == (4,)
    assert_array_equal(solved.seen[-1].x["weights"], solved.result.x["weights"])


def test_each_evaluation_is_shown(solved):
    assert len(solved.shown) == solved.result.nfev
    passes, fun, size, seconds = solved.shown[0]
    assert passes == 1
    assert solved.shown[-1][0] == solved.result.passes
    assert (fun, size) == (solved.result.history.fun[0], solved.result.history.grad_norm[0])
    assert seconds > 0
    assert min(fun for _, fun, *_ in solved.shown) == pytest.approx(solved.result.fun, rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_callback_may_stop_a_run(method):
    solved = Solved(method, posed(Logistic()), stop_after=2, tol=0.0)
    result = solved.result
    assert (result.nit, result.success, len(result.history)) == (2, False, 3)
    assert "the callback stopped the run" in result.message
    assert result.fun == solved.seen[-1].fun == result.history.fun[-1]


@pytest.mark.parametrize("method", METHODS)
def test_without_iterations_the_start_is_the_result(method):
    w0 = {"weights": [1, 0, -1, 2], "intercept": 0.5}
    result = Solved(method, posed(Logistic(), w0), max_iter=0).result
    assert (result.nit, result.passes, len(result.history), result.success) == (0, 1, 1, False)
    assert_array_equal(result.x["weights"], w0["weights"])
    assert result.fun == pytest.approx(value({k: np.array(v) for k, v in w0.items()}), rel=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_a_result_is_a_warm_start(method):
    first = Solved(method, posed(Logistic()), tol=1e-6).result
    again = Solved(method, posed(Logistic(), first.x), tol=1e-6).result
    assert (again.nit, again.passes, again.fun) == (0, 1, first.fun)


@pytest.mark.parametrize("method", WITH_L1)
def test_with_l1_the_books_hold_the_whole_objective_and_the_shortest_subgradient(method):
    solved = Solved(method, posed(Logistic(), penalty=L1(0.1)), tol=1e-8)
    result, history = solved.result, solved.result.history
    assert result.success
    assert result.fun == history.fun[-1] == pytest.approx(value(result.x, l1=0.1, l2=0), rel=1e-12)
    assert result.x["intercept"] != 0  # which l1 leaves alone
    slope = sum((b.weight * (0.5 - b.y)) @ b.X for b in BLOCKS)
    free = sum((b.weight * (0.5 - b.y)).sum() for b in BLOCKS)
    weight = sum(b.weight.sum() for b in BLOCKS)
    shortest = [*np.maximum(np.abs(slope) / weight - 0.1, 0), abs(free) / weight]
    assert history.grad_norm[0] == pytest.approx(max(shortest), rel=1e-12)
    assert solved.shown[0][1:3] == (history.fun[0], history.grad_norm[0])


@pytest.mark.parametrize("method", WITH_L1)
def test_a_start_away_from_zero_has_its_l1_norm_in_the_books(method):
    w0 = {"weights": np.array([1.0, 0.0, -1.0, 2.0]), "intercept": np.array(0.5)}
    solved = Solved(method, posed(Logistic(), w0, penalty=L1(0.1)), max_iter=0)
    expected = value(w0, l1=0.1, l2=0)
    for fun in (solved.result.fun, solved.result.history.fun[0], solved.shown[0][1]):
        assert fun == pytest.approx(expected, rel=1e-14)


def test_without_a_penalty_each_solver_of_l1_gets_a_zero():
    results = [Solved(m, posed(Logistic(), penalty=None), tol=1e-9).result for m in WITH_L1]
    assert results[0].fun == pytest.approx(results[1].fun, rel=1e-14)


def test_bounds_reach_the_solver():
    box = Bounds(0.05, 0.2)
    start = {"weights": np.full(4, 9.0), "intercept": 0.0}  # outside of them
    result = Solved("lbfgs", posed(Logistic(), start, bounds=box), tol=1e-8).result
    assert result.success
    assert result.x["weights"].min() >= 0.05
    assert result.x["weights"].max() == 0.2
    inside = {"weights": np.full(4, 0.2), "intercept": np.array(0.0)}
    assert result.history.fun[0] == pytest.approx(value(inside), rel=1e-14)


def test_a_matrix_and_its_gradient_keep_their_shape():
    solved = Solved("lbfgs", posed(Softmax(2), intercept=False), max_iter=2, tol=0.0)
    assert solved.result.x.shape == solved.result.jac.shape == (4, 2)
    assert solved.seen[0].x.shape == solved.seen[0].jac.shape == (4, 2)


def test_a_start_that_is_not_finite_is_in_the_books():
    bad = Block(np.array([[np.inf, 0, 0, 0]]), np.ones(1), np.ones(1))
    with np.errstate(invalid="ignore"):
        result = Solved("gd", posed(Logistic(), intercept=False), blocks=[bad]).result
    assert (result.success, result.status, len(result.history)) == (False, 3, 1)
    assert np.isnan(result.history.fun[0])

"""What stands for the Hessian of a linear model, and L-BFGS in its metric."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from sparkdist import (
    L2,
    MLP,
    Hinge,
    Huber,
    Logistic,
    Poisson,
    Softmax,
    Squared,
    SquaredHinge,
    datasets,
)
from sparkdist.blocks import Block
from sparkdist.errors import InvalidCall
from sparkdist.layout import Layout
from sparkdist.objectives import UserLoss
from sparkdist.problem import MOST_METRIC_ROWS, MeanLoss, pose, problems_of_metric
from sparkdist.solvers import lbfgs, preconditioned_lbfgs
from sparkdist.solvers.preconditioned_lbfgs import upper_factor
from tests.conftest import random_block
from tests.in_memory import InMemory

ROWS = random_block(40, 4, seed=3)
FORMS = pytest.mark.parametrize("form", [np.asarray, csr_array], ids=["dense", "csr"])


def with_ones(block):
    return np.column_stack([block.X, np.ones(len(block.y))])


# --- the matrix -----------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("size", [4, 5], ids=["", "intercept"])
@pytest.mark.parametrize("loss", [Logistic(), Squared(), Poisson()], ids=repr)
def test_of_a_smooth_loss_it_is_the_hessian_at_the_usual_start(loss, size, form):
    w = np.zeros(size)  # labels are 0 and 1: none is above exp(0)
    hessian = [loss.hessp(w, axis, ROWS) for axis in np.eye(size)]
    assert_allclose(loss.metric(w, ROWS._replace(X=form(ROWS.X))), hessian, rtol=1e-12, atol=1e-12)


def weighted(X, c):
    """X' diag(c) X, a row at a time."""
    return sum(value * np.outer(x, x) for x, value in zip(X, c, strict=True))


def test_of_huber_it_has_the_weights_of_reweighted_least_squares():
    block = Block(np.eye(3), np.array([0.5, -2.0, 8.0]), np.array([1.0, 1.0, 3.0]))
    # At w = 0 the residuals are -y: 0.5 is inside delta = 2, 2 at its edge, 8 four times as far.
    assert_allclose(Huber(2.0).metric(np.zeros(3), block), np.diag([1, 1, 3 / 4]), rtol=1e-15)


@pytest.mark.parametrize(
    ("loss", "label", "wrong"), [(Huber(delta=0.7), 0.0, "both"), (Logistic(), 1.0, "negative")]
)
def test_its_parabola_touches_the_loss_from_above(loss, label, wrong):
    """Of the logistic loss on the side of 0 where it is a straight line that will end."""
    others = np.linspace(-20, 20, 201)
    y = np.full_like(others, label)
    for m in np.linspace(-5, 0 if wrong == "negative" else 5, 41):
        at = np.array([m])
        (f,), (slope,) = loss.loss_and_slope(at, y[:1])
        (c,) = loss.expected_curvature(at, y[:1])
        values, _ = loss.loss_and_slope(others, y)
        parabola = f + slope * (others - m) + 0.5 * c * (others - m) ** 2
        assert (values <= parabola + 1e-9).all()
        # And nothing smaller would do: it touches on the other side, or where the loss ends.
        lower = f + slope * (others - m) + 0.49 * c * (others - m) ** 2
        assert (values > lower + 1e-9).any()


def test_of_the_squared_hinge_every_row_counts():
    w = np.full(4, 100.0)  # margins so large that rows on the right side have no curvature
    assert (SquaredHinge().curvature(ROWS.X @ w, ROWS.y) == 0).any()
    expected = weighted(ROWS.X, 2.0 * ROWS.weight)
    assert_allclose(SquaredHinge().metric(w, ROWS), expected, rtol=1e-12)


@FORMS
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_of_softmax_it_is_the_mean_of_the_classes(n_classes, form):
    block = ROWS._replace(X=form(ROWS.X), y=ROWS.y * (n_classes - 1))
    loss, X1 = Softmax(n_classes), with_ones(ROWS)
    # Without weights all classes have p = 1 / K.
    share = (1 - 1 / n_classes) / n_classes
    expected = weighted(X1, share * ROWS.weight)
    assert_allclose(loss.metric(np.zeros(5 * n_classes), block), expected, rtol=1e-12)
    # With any, the diagonal blocks of the Hessian have it as their mean.
    w = np.random.default_rng(1).normal(size=5 * n_classes)
    hessian = np.array([loss.hessp(w, axis, block) for axis in np.eye(w.size)])
    blocks = hessian.reshape(5, n_classes, 5, n_classes)
    mean = np.einsum("iaja->ij", blocks) / n_classes
    assert_allclose(loss.metric(w, block), mean, rtol=1e-10, atol=1e-12)


@FORMS
def test_float32_features_give_it_to_their_precision(form):
    narrow = ROWS._replace(X=form(ROWS.X.astype(np.float32)))
    found = Logistic().metric(np.zeros(5), narrow)
    assert found.dtype == np.float64
    assert_allclose(found, Logistic().metric(np.zeros(5), ROWS), rtol=1e-5, atol=1e-4)


def test_who_has_one():
    own = UserLoss(lambda w, X, y: (0.0, w), Layout.of(np.zeros(2)))
    with_it = (Logistic(), Squared(), Huber(), SquaredHinge(), Poisson(), Softmax(3))
    assert [loss.has_metric for loss in with_it] == [True] * 6
    assert [loss.has_metric for loss in (Hinge(), MLP([2, 2]), own)] == [False] * 3


def posed(loss, block, penalty=None, intercept=False):
    problem = pose(
        loss,
        block.X.shape[1],
        None,
        penalty=penalty,
        bounds=None,
        intercept=intercept,
        unpenalized=(),
        problems=[],
    )
    return problem, MeanLoss(InMemory(block), problem, lambda *seen: None)


@pytest.mark.parametrize("n_classes", [None, 3])
def test_a_problems_metric_is_of_the_mean_and_has_the_penalty_but_of_the_intercept(n_classes):
    loss = Logistic() if n_classes is None else Softmax(n_classes)
    problem, fun = posed(loss, ROWS, L2(0.5), intercept=True)
    found = fun.metric(problem.w0)
    bare = loss.metric(problem.w0, ROWS) / ROWS.weight.sum()
    assert_allclose(found - bare, np.diag([0.5] * 4 + [0.0]), atol=1e-12)
    assert fun.passes == 1


def test_too_many_features_are_refused():
    wide = Block(csr_array((3, MOST_METRIC_ROWS)), np.array([0.0, 1.0, 1.0]), np.ones(3))
    assert problems_of_metric(posed(Logistic(), wide)[0]) == []
    (problem,) = problems_of_metric(posed(Logistic(), wide, intercept=True)[0])
    assert problem == (
        "the metric of 2,001 parameters is a matrix of 2,001 x 2,001 numbers, and the most is"
        " 2,000; use lbfgs or newton_cg"
    )
    assert problems_of_metric(posed(Softmax(2), wide._replace(y=wide.y))[0]) == []


# --- its factor -----------------------------------------------------------------------------


def test_the_factor_of_a_definite_matrix_is_cholesky():
    M = np.array([[4.0, 2.0], [2.0, 5.0]])
    assert_allclose(upper_factor(M), [[2.0, 1.0], [0.0, 2.0]], rtol=1e-15)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize(
    "M",
    [np.ones((3, 3)), np.diag([1.0, 0.0, 2.0]), np.array([[1.0, 1.0], [1.0, 1.0 - 1e-9]])],
    ids=["rank 1", "a column of zeros", "rounding"],
)
def test_the_diagonal_of_a_singular_matrix_is_enlarged_by_a_small_share(M, scale):
    units = np.ones(len(M))
    units[0] = scale  # whatever the units of the others are
    M = M * np.outer(units, units)
    R = upper_factor(M)
    added = (R.T @ R - M) / np.outer(units, units)
    assert_allclose(added, np.diag(np.diag(added)), atol=1e-12)
    # A column of zeros says nothing of its units: it gets 1.
    assert (np.diag(added) <= np.where(np.diag(M) > 0, 1e-8, 1.0)).all()


@pytest.mark.parametrize("M", [np.zeros((2, 2)), np.full((2, 2), np.nan), -np.eye(2)])
def test_a_matrix_that_says_nothing_leaves_plain_lbfgs_and_is_told(M, caplog):
    assert_array_equal(upper_factor(M), np.eye(2))
    assert "plain L-BFGS goes on" in caplog.text


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (2,), (0, 0)])
def test_a_metric_that_does_not_fit_is_refused(shape):
    problem, fun = posed(Squared(), ROWS)
    with pytest.raises(InvalidCall, match="it must be square, for 4 parameters"):
        preconditioned_lbfgs(fun, problem.w0, metric=lambda w: np.ones(shape))


# --- the solver -----------------------------------------------------------------------------


def test_least_squares_are_solved_in_a_step():
    problem, fun = posed(Squared(), ROWS, intercept=True)
    found = preconditioned_lbfgs(fun, problem.w0, metric=fun.metric, tol=1e-10)
    root = np.sqrt(ROWS.weight)
    expected = np.linalg.lstsq(with_ones(ROWS) * root[:, None], ROWS.y * root, rcond=None)[0]
    assert_allclose(found.x, expected, rtol=1e-9)
    # SciPy's first step has length 1, and its second is Newton's.
    assert found.success and found.nit <= 2 and found.nfev <= 4


def fits(X, solver, **options):
    """Objective after each evaluation of a logistic regression."""
    y = datasets.load("a9a")[1][: X.shape[0]] > 0
    block = Block(X, y.astype(float), np.ones(len(y)))
    problem, fun = posed(Logistic(), block, L2(1e-5))
    trace = []

    def seen(w):
        value, gradient = fun(w)
        trace.append(value)
        return value, gradient

    needs = {"metric": fun.metric} if solver is preconditioned_lbfgs else {}
    solver(seen, problem.w0, **needs, **options)
    return np.array(trace)


def test_an_ill_conditioned_problem_takes_a_tenth_of_the_passes():
    """A-L2s, whose optimum SciPy and scikit-learn agree on."""
    X, _ = datasets.load("a9a")
    gaps = {
        solver: fits(X, solver, tol=1e-8) - 0.32293307671398
        for solver in (lbfgs, preconditioned_lbfgs)
    }
    passes = {solver: int(np.argmax(gap < 1e-9)) for solver, gap in gaps.items()}
    assert 0 < passes[preconditioned_lbfgs] <= 40
    assert passes[lbfgs] >= 10 * passes[preconditioned_lbfgs]


def test_units_of_the_features_change_nothing():
    """Without a penalty, which has units of its own; by powers of two there is no rounding."""
    random = np.random.default_rng(0)
    X, y = random.normal(size=(300, 6)), random.integers(0, 2, 300).astype(float)
    units = 2.0 ** np.array([-20, -7, 0, 3, 9, 20])
    found = []
    for scale in (np.ones(6), units):
        problem, fun = posed(Logistic(), Block(X * scale, y, np.ones(300)))
        result = preconditioned_lbfgs(fun, problem.w0, metric=fun.metric, tol=0.0, max_iter=6)
        found.append((result.x * scale, result.nfev))
    assert found[0][1] == found[1][1]
    assert_allclose(found[1][0], found[0][0], rtol=1e-9)


@pytest.mark.parametrize("extra", ["zeros", "twice"])
def test_a_column_that_says_nothing_new_costs_no_passes(extra):
    """In units from 2^-24 to 2^24, without a penalty."""
    random = np.random.default_rng(0)
    X, y = random.normal(size=(300, 6)), random.integers(0, 2, 300).astype(float)
    X *= 2.0 ** np.linspace(-24, 24, 6)
    more = np.column_stack([X, np.zeros(300) if extra == "zeros" else X[:, 2]])
    nfev = []
    for features in (X, more):
        problem, fun = posed(Logistic(), Block(features, y, np.ones(300)))
        scaled = 1e-6 * np.abs(fun(problem.w0)[1]).max()
        result = preconditioned_lbfgs(fun, problem.w0, metric=fun.metric, tol=scaled)
        assert result.success
        nfev.append(result.nfev)
    assert nfev[1] <= nfev[0] + 2


@pytest.mark.parametrize("loss", [Logistic(), Poisson()], ids=repr)
def test_a_start_that_is_far_off_costs_no_more_than_lbfgs(loss):
    random = np.random.default_rng(1)
    X = random.normal(size=(500, 10))
    y = (random.random(500) < 1 / (1 + np.exp(-X[:, 0]))).astype(float)
    problem, fun = posed(loss, Block(X, y, np.ones(500)), intercept=True)
    start = np.append(np.zeros(10), -30.0) if loss == Poisson() else np.full(11, 20.0)
    plain = lbfgs(fun, start, tol=1e-6)
    found = preconditioned_lbfgs(fun, start, metric=fun.metric, tol=1e-6)
    assert plain.success and found.success
    assert_allclose(found.fun, plain.fun, rtol=1e-9)
    assert found.nfev <= plain.nfev


def test_a_start_at_the_optimum_asks_for_no_metric():
    problem, fun = posed(Logistic(), ROWS, L2(0.1))
    best = lbfgs(fun, problem.w0, tol=1e-10).x

    def metric(w):
        raise AssertionError("a pass for nothing")

    assert preconditioned_lbfgs(fun, best, metric=metric, tol=1e-8).nit == 0

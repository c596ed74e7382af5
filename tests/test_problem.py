"""Problem: the mean loss of a model, its penalty, its bounds, and what does not fit."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import Bounds, approx_fprime

from sparkdist.blocks import Block
from sparkdist.errors import InvalidCall
from sparkdist.layout import Layout
from sparkdist.objectives import Hinge, Huber, Logistic, Poisson, Softmax, Squared, UserLoss
from sparkdist.penalties import L1, L2, ElasticNet
from sparkdist.problem import MeanLoss, as_objective, pose
from tests.conftest import random_block
from tests.in_memory import InMemory

INF = np.inf
#: One feature, residuals 0 and 2 at w = 1, the second row three times.
TWO_ROWS = Block(np.array([[1.0], [2.0]]), np.array([1.0, 0.0]), np.array([1.0, 3.0]))


def posed(objective, n_features, w0=None, **given):
    """Pose a problem of which nothing is wrong."""
    problem, problems = attempt(objective, n_features, w0, **given)
    assert problems == []
    return problem


def attempt(objective, n_features, w0=None, **given):
    defaults = {"penalty": None, "bounds": None, "intercept": False, "unpenalized": ()}
    problems = []
    problem = pose(objective, n_features, w0, **{**defaults, **given}, problems=problems)
    return problem, problems


def own_loss(model, X, y):
    r = X @ model["slope"] + model["level"] - y
    return 0.5 * r @ r, {"slope": X.T @ r, "level": r.sum()}


def own(d):
    return as_objective(own_loss, {"slope": np.zeros(d), "level": 0.0})


def silent(*seen): ...


# --- objectives -----------------------------------------------------------------------------


@pytest.mark.parametrize("given", [Huber(), Huber, "huber"])
def test_an_objective_may_be_itself_its_class_or_its_name(given):
    assert as_objective(given, None) == Huber()


def test_an_objective_with_arguments_is_taken_as_it_is():
    objective = Huber(delta=3.0)
    assert as_objective(objective, None) is objective


def test_a_function_becomes_a_loss_with_the_layout_of_w0():
    loss = as_objective(own_loss, {"slope": [0, 0], "level": 0})
    assert loss == UserLoss(own_loss, Layout.of({"slope": np.zeros(2), "level": 0.0}))


@pytest.mark.parametrize(
    ("objective", "w0", "caller", "problem"),
    [
        (own_loss, None, "minimize", "w0 is missing: it tells sparkdist the shape of"),
        (3, None, "minimize", "the objective is a int; it must be one of hinge, huber, logistic,"),
        (None, 1.0, "minimize", "the objective is a NoneType; it must be one of hinge,"),
        ("logistics", None, "objectives", "there is no 'logistics'; there are hinge, huber,"),
    ],
)
def test_what_is_no_objective_is_refused(objective, w0, caller, problem):
    with pytest.raises(InvalidCall) as caught:
        as_objective(objective, w0)
    assert caught.value.caller == caller
    assert caught.value.problems[0].startswith(problem)
    assert len(caught.value.problems) == 1


# --- layouts and starts ---------------------------------------------------------------------


def test_a_model_starts_at_zero_in_its_own_shape():
    problem = posed(Softmax(4), 3)
    assert problem.layout.shapes == ((None, (3, 4)),)
    assert_array_equal(problem.w0, np.zeros(12))


def test_an_intercept_is_one_number_or_one_a_class_behind_the_weights():
    one = posed(Logistic(), 3, intercept=True).layout.shapes
    assert one == (("weights", (3,)), ("intercept", ()))
    several = posed(Softmax(4), 3, intercept=True).layout.shapes
    assert several == (("weights", (3, 4)), ("intercept", (4,)))


def test_w0_is_flattened_by_name():
    w0 = {"intercept": [7, 8], "weights": [[1, 2], [3, 4], [5, 6]]}
    assert_array_equal(posed(Softmax(2), 3, w0, intercept=True).w0, np.arange(1, 9))
    assert_array_equal(posed(Softmax(2), 3, w0["weights"]).w0, np.arange(1, 7))
    assert_array_equal(posed(own(2), 2, {"level": 3, "slope": [1, 2]}).w0, [1, 2, 3])


@pytest.mark.parametrize(
    ("w0", "intercept", "problem"),
    [
        ([1, 2], False, "w0 is an array of shape (2,); the model is an array of shape (3,)"),
        (0.0, False, "w0 is an array of shape (); the model is an array of shape (3,)"),
        (
            [1, 2, 3],
            True,
            "w0 is an array of shape (3,); the model is a dict of weights(3,), intercept()",
        ),
        (
            {"weights": [1, 2, 3], "b": 0},
            True,
            "w0 is a dict of weights(3,), b(); the model is a dict of weights(3,), intercept()",
        ),
        ([1, np.nan, 3], False, "w0 has values that are NaN or infinite"),
        ([1, -INF, 3], False, "w0 has values that are NaN or infinite"),
    ],
)
def test_a_w0_that_does_not_fit_is_a_problem(w0, intercept, problem):
    assert attempt(Logistic(), 3, w0, intercept=intercept)[1] == [problem]


def test_an_intercept_of_ones_own_model_is_ones_own():
    (problem,) = attempt(own(2), 2, intercept=True)[1]
    assert problem.startswith("intercept=True is for the built-in objectives; give your own model")


# --- penalties ------------------------------------------------------------------------------


def evaluate(problem, w, block=TWO_ROWS):
    return MeanLoss(InMemory(block), problem, silent)(np.array(w, dtype=float))


def test_the_mean_of_a_loss_by_hand():
    # Losses 0 and 2, slopes 0 and 2 times x = 2, the second row with weight 3 of 4.
    assert evaluate(posed(Squared(), 1), [1]) == (1.5, 3.0)


def test_the_ridge_by_hand():
    # (1.5 + 0.5 / 2 * 1, 3 + 0.5 * 1)
    assert evaluate(posed(Squared(), 1, penalty=L2(0.5)), [1]) == (1.75, 3.5)


def test_an_intercept_is_never_penalised_by_hand():
    problem = posed(Squared(), 1, intercept=True, penalty=L2(0.5))
    # At w = b = 1 the residuals are 1 and 3: losses 1/2 and 9/2.
    f, g = evaluate(problem, [1, 1])
    assert f == (0.5 + 3 * 4.5) / 4 + 0.25
    assert_array_equal(g, [(1 * 1 + 3 * 3 * 2) / 4 + 0.5, (1 + 3 * 3) / 4])


@pytest.mark.parametrize(
    ("penalty", "l1", "l2"),
    [(None, 0, 0), (L1(0.1), 0.1, 0), (L2(0.2), 0, 0.2), (ElasticNet(0.3, 0.4), 0.3, 0.4)],
)
def test_a_penalty_is_its_two_strengths_and_l1_is_left_to_the_solver(penalty, l1, l2):
    problem = posed(Squared(), 1, penalty=penalty)
    assert (problem.l1, problem.l2) == (l1, l2)
    assert evaluate(problem, [1])[0] == 1.5 + l2 / 2


@pytest.mark.parametrize(
    ("objective", "given", "mask"),
    [
        (Logistic(), {}, [1, 1]),
        (Logistic(), {"intercept": True}, [1, 1, 0]),
        (Softmax(2), {"intercept": True}, [1, 1, 1, 1, 0, 0]),
        (Logistic(), {"intercept": True, "unpenalized": ["weights"]}, [0, 0, 0]),
        (own(2), {}, [1, 1, 1]),
        (own(2), {"unpenalized": ["level"]}, [1, 1, 0]),
        (own(2), {"unpenalized": ("level", "slope")}, [0, 0, 0]),
    ],
)
def test_the_mask_frees_the_intercept_and_what_is_named(objective, given, mask):
    assert_array_equal(posed(objective, 2, **given).mask, mask)


def test_an_intercept_in_ones_own_model_is_penalised_unless_named():
    loss = as_objective(own_loss, {"slope": np.zeros(2), "intercept": 0.0})
    assert_array_equal(posed(loss, 2).mask, [1, 1, 1])
    assert_array_equal(posed(loss, 2, unpenalized=["intercept"]).mask, [1, 1, 0])


def test_names_may_be_given_once_only():
    """A generator was empty when the mask was made of it, and everything penalised."""
    given = (name for name in ["level"])
    assert_array_equal(posed(own(2), 2, unpenalized=given).mask, [1, 1, 0])
    assert attempt(own(2), 2, unpenalized=(name for name in ["x"]))[1] == [
        "unpenalized names ['x']; the model has ['slope', 'level']"
    ]


@pytest.mark.parametrize("bad", ["level", None, 5, [5], [None]])
def test_what_is_no_list_of_names_is_a_problem(bad):
    assert attempt(own(2), 2, unpenalized=bad)[1] == [
        f"unpenalized is {bad!r}; it must be a list of names"
    ]


def test_unknown_names_are_a_problem():
    assert attempt(own(2), 2, unpenalized=["levle", "bias", "level"])[1] == [
        "unpenalized names ['bias', 'levle']; the model has ['slope', 'level']"
    ]
    assert attempt(Logistic(), 2, unpenalized=["weights"])[1] == [
        "unpenalized names ['weights']; the model has []"
    ]


# --- bounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "low", "high"),
    [
        (Bounds(0, 5), [0, 0, -INF], [5, 5, INF]),
        (Bounds([0, 1], INF), [0, 1, -INF], [INF, INF, INF]),
        (Bounds([0, 1], [2, 3]), [0, 1, -INF], [2, 3, INF]),
        (Bounds([0, 1, 2], 4), [0, 1, 2], [4, 4, 4]),
        ([(0, None), (None, 1)], [0, -INF, -INF], [INF, 1, INF]),
        ([(0, 1), (1, 2), (None, 3)], [0, 1, -INF], [1, 2, 3]),
        ({"weights": (0, None)}, [0, 0, -INF], [INF, INF, INF]),
        ({"intercept": (-1, 1)}, [-INF, -INF, -1], [INF, INF, 1]),
        ({"weights": ([0, 1], [2, 3]), "intercept": (None, 4)}, [0, 1, -INF], [2, 3, 4]),
        ({}, [-INF] * 3, [INF] * 3),
    ],
)
def test_bounds_for_the_weights_leave_the_intercept_free(bounds, low, high):
    box = posed(Logistic(), 2, bounds=bounds, intercept=True).bounds
    assert_array_equal([box.lb, box.ub], [low, high])


@pytest.mark.parametrize(
    ("bounds", "low", "high"),
    [
        (Bounds(0, INF), [0, 0], [INF, INF]),
        (Bounds([0, -1], [0, 1]), [0, -1], [0, 1]),
        ([(0, 1), (None, None)], [0, -INF], [1, INF]),
        (np.array([[0, 1], [2, 3]]), [0, 2], [1, 3]),
    ],
)
def test_bounds_of_a_model_that_is_one_array(bounds, low, high):
    box = posed(Logistic(), 2, bounds=bounds).bounds
    assert_array_equal([box.lb, box.ub], [low, high])


def test_bounds_of_a_matrix_are_one_number_or_a_matrix():
    low = [[0, 1], [2, 3], [4, 5]]
    box = posed(Softmax(2), 3, bounds={"weights": (low, 9)}, intercept=True).bounds
    assert_array_equal(box.lb, [0, 1, 2, 3, 4, 5, -INF, -INF])
    assert_array_equal(box.ub, [9, 9, 9, 9, 9, 9, INF, INF])


def test_bounds_of_ones_own_model():
    box = posed(own(2), 2, bounds={"slope": ([0, 1], None)}).bounds
    assert_array_equal([box.lb, box.ub], [[0, 1, -INF], [INF] * 3])
    assert_array_equal(posed(own(2), 2, bounds=Bounds(0, 1)).bounds.lb, [0, 0, 0])


def test_no_bounds_are_none():
    assert posed(Logistic(), 2).bounds is None


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds([0, 0, 0, 0], 1),
        [(0, 1), (0, 1), (0, 1), (0, 1)],
        (0, None),
        [(0, 1, 2), (0, 1, 2)],
        [],
        3,
        [("a", "b"), (0, 1)],
        {"level": (0, 1)},
        {"weights": 0},
        {"weights": ([0, 0, 0], None)},
    ],
)
def test_bounds_that_do_not_fit_are_one_problem(bounds):
    (problem,) = attempt(Logistic(), 2, bounds=bounds, intercept=True)[1]
    assert problem.startswith("bounds do not fit a model of 2 weights (")
    assert problem.endswith(", or a dict of pairs for the named arrays")


@pytest.mark.parametrize(
    ("bounds", "problem"),
    [
        ([(0, 1), (3, 2)], "parameter 1: the lower, 3, must be at most the upper, 2"),
        ([(np.nan, 1), (0, 1)], "parameter 0: the lower, nan, must be at most the upper, 1"),
    ],
)
def test_bounds_that_are_crossed_are_a_problem(bounds, problem):
    assert attempt(Logistic(), 2, bounds=bounds)[1] == [f"bounds of {problem}"]


def test_all_problems_of_a_call_are_found():
    given = {"bounds": [(1, 0)] * 3, "unpenalized": ["x"], "intercept": True}
    problems = attempt(own(2), 2, [1.0], **given)[1]
    words = ("intercept=True is for", "unpenalized names", "w0 is an array", "bounds of parameter")
    assert len(problems) == len(words)
    for problem, start in zip(problems, words, strict=True):
        assert problem.startswith(start)


# --- the mean loss --------------------------------------------------------------------------

SMOOTH = [Logistic(), Softmax(3), Poisson(), Squared()]


def random_mean(objective):
    """A ridge problem with an intercept over two blocks, and a w away from its optimum."""
    blocks = [random_block(15, 3, seed=1), random_block(9, 3, seed=2)]
    problem = posed(objective, 3, intercept=True, penalty=L2(0.7))
    w = np.random.default_rng(3).normal(size=problem.layout.size)
    return MeanLoss(InMemory(*blocks), problem, silent), w


@pytest.mark.parametrize("objective", SMOOTH, ids=lambda o: type(o).__name__)
def test_the_gradient_is_that_of_the_value(objective):
    fun, w = random_mean(objective)
    differences = approx_fprime(w, lambda w: fun(w)[0], 1e-6)
    assert_allclose(fun(w)[1], differences, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", SMOOTH, ids=lambda o: type(o).__name__)
def test_hessian_products_are_those_of_the_gradient(objective):
    fun, w = random_mean(objective)
    v, step = np.linspace(-1, 1, w.size), 1e-6
    differences = (fun(w + step * v)[1] - fun(w - step * v)[1]) / (2 * step)
    assert_allclose(fun.hessp(w, v), differences, rtol=1e-6, atol=1e-8)


def test_ones_own_loss_has_the_mean_over_its_rows():
    f, g = evaluate(posed(own(1), 1, penalty=L2(0.5), unpenalized=["level"]), [1, 1])
    # Residuals 1 and 3; the function takes no weights, so each row is one of two.
    assert f == (0.5 + 4.5) / 2 + 0.25
    assert_array_equal(g, [(1 + 6) / 2 + 0.5, (1 + 3) / 2])


def test_passes_are_counted_and_evaluations_observed():
    seen, engine = [], InMemory(TWO_ROWS)
    fun = MeanLoss(
        engine, posed(Squared(), 1, penalty=ElasticNet(0.1, 0.5)), lambda *a: seen.append(a)
    )
    w = np.array([1.0])
    fun(w)
    fun.hessp(w, w)
    fun(2 * w)
    assert (fun.passes, engine.passes) == (3, 3)
    assert [(list(w), f, list(g)) for w, f, g, _ in seen] == [
        ([1], 1.75, [3.5]),
        ([2], (0.5 + 3 * 8) / 4 + 1, [(1 + 3 * 8) / 4 + 1]),
    ]
    assert all(seconds >= 0 for *_, seconds in seen)


def test_a_row_of_weight_zero_does_not_count():
    block = TWO_ROWS._replace(weight=np.array([0.0, 2.0]))
    assert evaluate(posed(Hinge(), 1), [1], block) == (3.0, 2.0)  # one row: 1 + 2, label 0

"""Checks: what is wrong with a call, in whole sentences, all at once."""

import inspect
import logging

import numpy as np
import pytest

from sparkdist import registry, solvers
from sparkdist.checks import find_problems, problems_of_names
from sparkdist.layout import Layout
from sparkdist.objectives import Hinge, Logistic, SquaredHinge, UserLoss
from sparkdist.penalties import L1, L2, ElasticNet

OWN = UserLoss(lambda w, X, y: (0.0, w), Layout.of(np.zeros(2)))
BOX = [(0, None)] * 2
FINE = {
    "loss": Logistic(),
    "method": "lbfgs",
    "penalty": None,
    "bounds": None,
    "options": {},
    "tol": 1e-6,
    "max_iter": 100,
    "on_server": ("downpour", "sgd"),
}


def problems(**given):
    return find_problems(**{**FINE, **given})


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"penalty": L2(1.0), "bounds": BOX, "options": {"memory": 5}},
        {"method": "owlqn", "penalty": L1(1.0), "options": {"memory": 5}},
        {"method": "gd", "penalty": ElasticNet(1.0, 1.0), "options": {"step_rule": "nesterov"}},
        {"method": "gd", "penalty": L2(1.0), "options": {"step_rule": "constant", "step": 0.1}},
        {"method": "newton_cg", "penalty": L2(1.0)},
        {"penalty": L1(0.0)},
        {"penalty": ElasticNet(0.0, 1.0)},
        {"method": "newton_cg", "loss": SquaredHinge()},
        {"method": "lbfgs", "loss": OWN},
        {"tol": 0, "max_iter": 0},
        {"tol": np.float32(0.1), "max_iter": np.int64(3)},
        {"max_iter": 1e3, "options": {"memory": np.int64(5)}},
        {"max_iter": np.inf},
        {"method": "gd", "options": {"step": None}},
        {"method": "gd", "options": {"step": 1}},
        {"method": "gd", "options": {"step": np.float32(0.5)}},
    ],
)
def test_a_call_that_can_work_has_no_problem(given):
    assert problems(**given) == []


PENALTY = "it must be L2(...), L1(...) or ElasticNet(...)"
METHODS = "there are gd, lbfgs, newton_cg, owlqn, preconditioned_lbfgs, downpour, sgd"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"tol": -1e-9}, "tol is -1e-09; it must be 0 or more"),
        ({"tol": np.nan}, "tol is nan; it must be 0 or more"),
        ({"tol": None}, "tol is None; it must be 0 or more"),
        ({"tol": "1e-6"}, "tol is '1e-6'; it must be 0 or more"),
        ({"max_iter": -1}, "max_iter is -1; it must be 0 or more"),
        ({"max_iter": 2.5}, "max_iter is 2.5; it must be a whole number"),
        ({"max_iter": None}, "max_iter is None; it must be 0 or more"),
        ({"penalty": 0.1}, f"penalty is 0.1; {PENALTY}"),
        ({"penalty": "l2"}, f"penalty is 'l2'; {PENALTY}"),
        ({"penalty": L2}, f"penalty is {L2!r}; {PENALTY}"),
        ({"method": "bfgs"}, f"there is no method 'bfgs'; {METHODS}. Did you mean 'lbfgs'?"),
        ({"method": "_run"}, f"there is no method '_run'; {METHODS}"),
        ({"penalty": L1(1.0)}, "lbfgs cannot use an L1 penalty; use gd or owlqn"),
        (
            {"method": "newton_cg", "penalty": ElasticNet(1.0, 1.0)},
            "newton_cg cannot use an L1 penalty; use gd or owlqn",
        ),
        ({"method": "gd", "bounds": BOX}, "gd cannot use bounds; use lbfgs"),
        ({"method": "owlqn", "bounds": BOX}, "owlqn cannot use bounds; use lbfgs"),
        (
            {"method": "newton_cg", "loss": Hinge()},
            "newton_cg needs Hessian-vector products, and Hinge has none; use lbfgs",
        ),
        (
            {"method": "newton_cg", "loss": OWN},
            "newton_cg needs Hessian-vector products, and UserLoss has none; use lbfgs",
        ),
        ({"options": {"memory": 0}}, "memory is 0; it must be 1 or more"),
        (
            {"method": "gd", "options": {"step_rule": "constant"}},
            "step_rule='constant' needs a step, below 2 / (largest curvature)",
        ),
        ({"tol": True}, "tol is True; it must be 0 or more"),
        (
            {"options": {"mem": 5}},
            "lbfgs has no option 'mem'; it has memory. Did you mean 'memory'?",
        ),
        ({"options": {"step": 1.0}}, "lbfgs has no option 'step'; it has memory"),
        ({"options": {"l1": 1.0}}, "lbfgs has no option 'l1'; it has memory"),
        (
            {"method": "gd", "options": {"memory": 5}},
            "gd has no option 'memory'; it has step_rule, step",
        ),
        (
            {"method": "newton_cg", "options": {"memory": 5}},
            "newton_cg has no option 'memory'; it has none",
        ),
    ],
)
def test_each_problem_is_one_sentence(given, sentence):
    assert problems(**given) == [sentence]


@pytest.mark.parametrize(
    "name", ["fun", "w0", "tol", "max_iter", "callback", "bounds", "hessp", "metric"]
)
@pytest.mark.parametrize("method", registry.names(solvers))
def test_what_the_front_door_gives_is_no_option(method, name):
    (problem,) = problems(method=method, options={name: 1})
    assert problem.startswith(f"{method} has no option {name!r}; it has ")


#: What an option is not, by the annotation of the solver's own signature.
WRONG = {
    "int": ["ten", 2.5, None, [1], True],
    "float | None": ["ten", [0.1], True, 1j],
    "str": [1, None, ["nesterov"]],
}
OPTIONS = [
    (method, name, value)
    for method in registry.names(solvers)
    for name, parameter in inspect.signature(registry.get(solvers, method)).parameters.items()
    if parameter.default is not parameter.empty
    and name not in {"tol", "max_iter", "callback", "l1", "bounds"}  # of the front door
    for value in WRONG[parameter.annotation]
]


@pytest.mark.parametrize(("method", "name", "value"), OPTIONS)
def test_an_option_of_another_type_is_one_sentence(method, name, value):
    (problem,) = problems(method=method, options={name: value})
    assert problem.startswith(f"{name} is {value!r}; it must be a ")


def test_there_are_options_of_a_wrong_type_for_three_solvers():
    assert {method for method, _, _ in OPTIONS} >= {"gd", "lbfgs", "owlqn"}


def test_several_problems_are_all_listed():
    found = problems(
        loss=OWN,
        method="newton_cg",
        penalty=L1(1.0),
        bounds=BOX,
        options={"memory": 5, "radius": 1.0},
        tol=-1,
        max_iter=-2,
    )
    assert [sentence.split(";")[0] for sentence in found] == [
        "tol is -1",
        "max_iter is -2",
        "newton_cg cannot use an L1 penalty",
        "newton_cg cannot use bounds",
        "newton_cg needs Hessian-vector products, and UserLoss has none",
        "newton_cg has no option 'memory'",
        "newton_cg has no option 'radius'",
    ]


def test_an_unknown_method_does_not_hide_the_rest():
    found = problems(method="bfgs", penalty="l1", tol=-1, options={"memory": 5})
    assert [sentence.split()[0] for sentence in found] == ["tol", "penalty", "there"]


def test_a_loss_with_a_kink_is_no_problem_and_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="sparkdist"):
        assert problems(loss=SquaredHinge()) == []
        assert caplog.messages == []
        assert problems(loss=Hinge()) == []
    (message,) = caplog.messages
    assert message.startswith("Hinge has no gradient at its kink: a solver may stop short")


@pytest.mark.parametrize(
    ("known", "name", "hint"),
    [
        (["memory"], "memroy", ". Did you mean 'memory'?"),
        (["memory"], "lr", ""),
        (["alpha", "rate", "updater"], "lr", ". The rate is rate=0.1, for instance"),
        (
            ["steps", "inner", "updater"],
            "lr",
            ". The rate is inner=sparkdist.updaters.sgd(0.1)",
        ),
        (["updater"], "learning_rate", ". The rate is updater=sparkdist.updaters.sgd(0.1), for"),
        (["updater"], "C", ". A penalty is penalty=sparkdist.L2(1e-3), for instance"),
        (["memory"], "maxIter", ". Did you mean 'max_iter'?"),
    ],
)
def test_what_may_have_been_meant_by_a_name(known, name, hint):
    (told,) = problems_of_names("it", [name], known)
    assert told.startswith(f"it has no option {name!r}; it has {', '.join(known)}{hint}")
    (bare,) = problems_of_names("it", [name], known, door=())
    assert repr(name) not in bare.partition("; ")[2]


@pytest.mark.parametrize("method", [None, 5, ["lbfgs"]])
def test_a_method_that_is_no_name_is_told(method):
    (told,) = problems(method=method)
    assert told == f"there is no method {method!r}; {METHODS}"

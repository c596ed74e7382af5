"""What can be wrong with a call before anything runs."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from numbers import Integral, Real
from typing import Any

import numpy as np

from sparkdist import registry, solvers
from sparkdist.fields import collect, plain
from sparkdist.objectives import Objective
from sparkdist.penalties import L1, L2, ElasticNet

__all__ = [
    "AT_THE_DOOR",
    "find_problems",
    "parameters_of",
    "problems_of_callback",
    "problems_of_names",
]

logger = logging.getLogger(__name__)

#: Parameters of solvers that have a parameter of their own at the front door.
_NOT_OPTIONS = ("fun", "w0", "tol", "max_iter", "callback", "l1", "bounds", "hessp", "metric")
#: What :func:`sparkdist.minimize` has for all methods.
AT_THE_DOOR = (
    "w0", "features", "label", "weight", "method", "penalty", "bounds", "intercept",
    "unpenalized", "engine", "deterministic", "tol", "max_iter", "callback", "progress",
)  # fmt: skip
#: What others call the rate of a method, and the strength of a penalty.
_RATES = ("rate", "learning_rate", "lr", "eta", "step_size", "stepSize")
_STRENGTHS = ("regParam", "reg", "C", "l2", "alpha", "weight_decay", "regularization")
#: What an option must be, by its annotation.
_TYPES: dict[str, tuple[type, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "str": (str, "a word"),
}


def find_problems(
    loss: Objective | None,
    method: str,
    penalty: Any,
    bounds: Any,
    options: Mapping[str, Any],
    *,
    tol: float,
    max_iter: int,
    on_server: Sequence[str],
) -> list[str]:
    """Find what is wrong with a call whatever the data: a sentence for each problem.

    ``loss`` is None where there is none, because what was given is not an objective.
    ``on_server`` names the methods that are not solvers of a function: they need the model server.

    What a solver can do is read off its signature: bounds, if it has a parameter ``bounds``.
    """
    problems = []
    if not plain(tol) >= 0:
        problems.append(f"tol is {tol!r}; it must be 0 or more")
    if not plain(max_iter) >= 0:
        problems.append(f"max_iter is {max_iter!r}; it must be 0 or more")
    elif max_iter != inf and max_iter % 1:
        problems.append(f"max_iter is {max_iter!r}; it must be a whole number")
    if penalty is not None and not isinstance(penalty, L1 | L2 | ElasticNet):
        problems.append(f"penalty is {penalty!r}; it must be L2(...), L1(...) or ElasticNet(...)")
        penalty = None
    if method in on_server:
        return problems
    if method not in registry.names(solvers):
        known = [*registry.names(solvers), *on_server]
        return [*problems, registry.unknown(method, known, "method")]
    if loss is not None:
        _warn_of_kinks(loss)
    has_l1 = penalty is not None and penalty.l1 > 0
    problems += _unsupported(loss, method, has_l1, bounds is not None)
    wrong = _unknown_options(method, options) + _mistyped_options(method, options)
    return problems + (wrong or _values_refused(method, options))


def problems_of_names(
    owner: str, given: Iterable[str], known: Sequence[str], door: Sequence[str] = AT_THE_DOOR
) -> list[str]:
    """Say which options it does not have, which it has, and what may have been meant.

    ``door`` are the names of what is there for all.
    """
    has = ", ".join(known) or "none"
    there = [*known, *door]
    return [
        f"{owner} has no option {name!r}; it has {has}{_hint(name, there)}"
        for name in given
        if name not in known
    ]


def _hint(name: str, there: Sequence[str]) -> str:
    if name in _STRENGTHS and "penalty" in there:
        return ". A penalty is penalty=sparkdist.L2(1e-3), for instance"
    for part in ("rate", "inner", "updater") if name in _RATES else ():
        if part in there:
            value = "0.1" if part == "rate" else "sparkdist.updaters.sgd(0.1)"
            return f". The rate is {part}={value}, for instance"
    return registry.meant(name, [one for one in there if one != name])


def problems_of_callback(callback: Any) -> list[str]:
    """Say that it is no function."""
    if callback is None or callable(callback):
        return []
    return [f"callback is {callback!r}; it must be a function, or None"]


def _unsupported(loss: Objective | None, method: str, has_l1: bool, has_bounds: bool) -> list[str]:
    """Find what the solver cannot do, and say which one can."""
    wanted, problems = parameters_of(method), []
    if has_l1 and "l1" not in wanted:
        problems.append(f"{method} cannot use an L1 penalty; use {_solvers_with('l1')}")
    if has_bounds and "bounds" not in wanted:
        problems.append(f"{method} cannot use bounds; use {_solvers_with('bounds')}")
    if "hessp" in wanted and loss is not None and not loss.twice:
        name = type(loss).__name__
        problems.append(f"{method} needs Hessian-vector products, and {name} has none; use lbfgs")
    if "metric" in wanted and loss is not None and not loss.has_metric:
        name = type(loss).__name__
        problems.append(
            f"{method} is for linear models whose loss has second derivatives, and {name} is none;"
            " use lbfgs"
        )
    return problems


def _unknown_options(method: str, options: Mapping[str, Any]) -> list[str]:
    allowed = [name for name in parameters_of(method) if name not in _NOT_OPTIONS]
    return problems_of_names(method, options, allowed)


def _mistyped_options(method: str, options: Mapping[str, Any]) -> list[str]:
    """Find options of another type than the solver's signature says."""
    parameters = inspect.signature(registry.get(solvers, method)).parameters
    problems = []
    for name in [name for name in options if name in parameters and name not in _NOT_OPTIONS]:
        kind, *others = str(parameters[name].annotation).split(" | ")
        base, rule = _TYPES[kind]
        value = options[name]
        fits = isinstance(value, base) and not isinstance(value, bool)
        if not fits and not (value is None and others == ["None"]):
            problems.append(f"{name} is {value!r}; it must be {rule}")
    return problems


def _values_refused(method: str, options: Mapping[str, Any]) -> list[str]:
    """Ask the solver itself, for a function that is flat: it is at the end at once."""
    problems: list[str] = []
    wanted, needed = parameters_of(method), {"hessp": None, "metric": None, "l1": 0.0}
    with collect(problems):
        registry.get(solvers, method)(
            lambda w: (0.0, np.zeros(1)),
            np.zeros(1),
            **{name: value for name, value in needed.items() if name in wanted},
            **options,
        )
    return problems


def _warn_of_kinks(loss: Objective) -> None:
    if not loss.differentiable:
        logger.warning(
            "%s has no gradient at its kink: a solver may stop short of the minimum, with success"
            " False; squared_hinge is the smooth one",
            type(loss).__name__,
        )


def parameters_of(method: str) -> list[str]:
    """Names of a solver's parameters."""
    return list(inspect.signature(registry.get(solvers, method)).parameters)


def _solvers_with(keyword: str) -> str:
    return " or ".join(name for name in registry.names(solvers) if keyword in parameters_of(name))

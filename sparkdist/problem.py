"""Problem: objective, model, penalty and bounds of a call, checked and put together."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import Bounds

from sparkdist import objectives, registry
from sparkdist.blocks import Array, Partial
from sparkdist.errors import InvalidCall
from sparkdist.layout import Layout
from sparkdist.objectives import Objective, UserLoss
from sparkdist.penalties import L1, L2, ElasticNet
from sparkdist.solvers import NOISE

__all__ = [
    "Engine",
    "MeanLoss",
    "Problem",
    "as_objective",
    "names_unpenalized",
    "pose",
    "problems_of_metric",
]

NOISE_OF_FLOAT32 = 1e-8
#: Features and intercept of a model that has a metric: 32 MB from each partition.
MOST_METRIC_ROWS = 2000
Penalty: TypeAlias = L1 | L2 | ElasticNet
BoundsLike: TypeAlias = (
    Bounds
    | Sequence[tuple[float | None, float | None]]
    | Mapping[str, tuple[float | None, float | None]]
)


class Engine(Protocol):
    """What gives the sums over all rows: one call is one pass over the data."""

    @property
    def single_precision(self) -> bool:
        """Whether the products with the features are made in float32."""

    def value_and_grad(self, objective: Objective, w: Array) -> Partial:
        """Sum loss, gradient and weight."""

    def hessp(self, objective: Objective, w: Array, v: Array) -> Partial:
        """Sum Hessian times v, as ``grad``, and weight."""

    def metric(self, objective: Objective, w: Array) -> Partial:
        """Sum the matrices that stand for the Hessian, as ``grad``, and weight."""


@dataclass(frozen=True)
class Problem:
    """What is minimised: mean loss + (l2/2) |mask * w|^2 + l1 |mask * w|_1, within bounds."""

    objective: Objective
    layout: Layout
    w0: Array  # (size,)
    mask: Array  # (size,): 1 where w is penalised, 0 where it is free
    l1: float = 0.0
    l2: float = 0.0
    bounds: Bounds | None = None

    @property
    def penalty(self) -> ElasticNet | None:
        """Both parts of the penalty; None where there is none."""
        return ElasticNet(self.l1, self.l2) if self.l1 or self.l2 else None


def as_objective(objective: Any, w0: Any) -> Objective:
    """Return an Objective for one, its class, its name, or the user's own function.

    Raises
    ------
    InvalidCall
        For anything else, and for a function without ``w0``, which says how its model looks.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str):
        objective = registry.get(objectives, objective)
    if inspect.isclass(objective) and issubclass(objective, Objective):
        return objective()
    if not callable(objective):
        known = ", ".join(registry.names(objectives))
        rule = f"it must be one of {known}, or a function f(w, X, y) -> (loss_sum, grad_sum)"
        problem = f"the objective is a {type(objective).__name__}; {rule}"
        raise InvalidCall("minimize", [problem])
    if w0 is None:
        problem = "w0 is missing: it tells sparkdist the shape of your function's parameters"
        raise InvalidCall("minimize", [problem])
    return UserLoss(objective, _layout_of(w0))


def _layout_of(w0: Any) -> Layout:
    """Return the layout of a model.

    Raises
    ------
    InvalidCall
        If it is none.
    """
    try:
        layout = Layout.of(w0)
        layout.flatten(w0)  # are its arrays numbers?
        if not layout.shapes:
            raise ValueError("it has no arrays")
    except (TypeError, ValueError) as error:
        rule = "it must be an array of numbers, or a dict of named ones"
        raise InvalidCall("minimize", [f"w0 is {w0!r:.80}; {rule}: {error}"]) from error
    return layout


def pose(
    objective: Objective,
    n_features: int,
    w0: ArrayLike | Mapping[str, ArrayLike] | None,
    *,
    penalty: Penalty | None,
    bounds: BoundsLike | None,
    intercept: bool,
    unpenalized: Sequence[str],
    problems: list[str],
) -> Problem:
    """Put a problem together; what does not fit is added to ``problems``."""
    layout = _layout(objective, n_features, intercept, problems)
    mask = np.ones(layout.size)
    named = names_unpenalized(unpenalized, layout, problems)
    free = {*named, *objective.biases, *(("intercept",) if intercept else ())}
    for name in free & set(layout.names):
        mask[layout.slices()[name]] = 0.0
    start = _start(objective.initial() if w0 is None else w0, layout, problems)
    box = _box(bounds, layout, objective.size(n_features), problems)
    l1 = l2 = 0.0
    if isinstance(penalty, L1 | L2 | ElasticNet):  # anything else has been told already
        l1, l2 = penalty.l1, penalty.l2
    return Problem(objective, layout, start, mask, l1, l2, box)


def names_unpenalized(names: Any, layout: Layout, problems: list[str]) -> list[str]:
    """Return the names; what is no list of the model's arrays is added to ``problems``."""
    is_list = isinstance(names, Iterable) and not isinstance(names, str)
    found: list[Any] = list(names) if is_list else [None]
    if not all(isinstance(name, str) for name in found):
        problems.append(f"unpenalized is {names!r}; it must be a list of names")
        return []
    if unknown := set(found) - set(layout.names):
        problems.append(f"unpenalized names {sorted(unknown)}; the model has {list(layout.names)}")
    return found


def _layout(objective: Objective, n_features: int, intercept: bool, problems: list[str]) -> Layout:
    name = type(objective).__name__
    if objective.n_features not in (None, n_features):
        problems.append(f"{name} has {objective.n_features} inputs; the data {n_features} features")
    if objective.own_layout is not None:
        if intercept and objective.biases:
            biases = ", ".join(objective.biases)
            problems.append(f"intercept=True is for linear models; {name} has {biases} already")
        elif intercept:
            problems.append(
                "intercept=True is for the built-in objectives; give your own model an array for"
                " it, as in w0={'w': ..., 'b': 0.0}, and name it in `unpenalized`"
            )
        return objective.own_layout
    shape = objective.shape(n_features)
    if not intercept:
        return Layout(((None, shape),))
    return Layout((("weights", shape), ("intercept", shape[1:])))


def _start(w0: Any, layout: Layout, problems: list[str]) -> Array:
    """Flatten w0, or the objective's own start; zeros where there is neither."""
    if w0 is None:
        return np.zeros(layout.size)
    try:
        given = _layout_of(w0)
    except InvalidCall as error:
        problems += error.problems
        return np.zeros(layout.size)
    if dict(given.shapes) != dict(layout.shapes):
        problems.append(f"w0 is {given}; the model is {layout}")
        return np.zeros(layout.size)
    flat = layout.flatten(w0)
    if not np.isfinite(flat).all():
        problems.append("w0 has values that are NaN or infinite")
    return flat


def _box(bounds: Any, layout: Layout, n_weights: int, problems: list[str]) -> Bounds | None:
    """Bounds for every parameter; those for the weights alone leave an intercept free."""
    if bounds is None:
        return None
    low, high = np.full(layout.size, -np.inf), np.full(layout.size, np.inf)
    try:
        for where, pair in _pairs(bounds, layout, n_weights):
            low[where], high[where] = pair
    except (TypeError, ValueError, KeyError) as error:
        problems.append(
            f"bounds do not fit a model of {n_weights} weights ({error}); give"
            " scipy.optimize.Bounds, a (low, high) pair for each weight, or a dict of pairs for"
            " the named arrays"
        )
    if (wrong := ~(low <= high)).any():
        at = int(np.argmax(wrong))
        problems.append(
            f"bounds of parameter {at}: the lower, {low[at]:g}, must be at most the upper,"
            f" {high[at]:g}"
        )
    return Bounds(low, high)


def _pairs(bounds: Any, layout: Layout, n_weights: int) -> list[tuple[slice, tuple[Any, Any]]]:
    """Read bounds as (where, (low, high)), in any of their forms."""
    if isinstance(bounds, Mapping):
        return [_named_pair(layout, name, *pair) for name, pair in bounds.items()]
    if isinstance(bounds, Bounds):
        low, high = bounds.lb, bounds.ub
    else:
        pairs = [_pair(*pair) for pair in bounds]
        if len(pairs) not in (layout.size, n_weights):
            raise ValueError(f"{len(pairs)} pairs")
        low, high = (np.array(side) for side in zip(*pairs, strict=True))
    whole = layout.size in (np.size(low), np.size(high))
    return [(slice(None) if whole else slice(0, n_weights), (low, high))]


def _named_pair(layout: Layout, name: str, low: Any, high: Any) -> tuple[slice, tuple[Any, Any]]:
    """Where an array lies, and its bounds, each a number or an array of its shape."""
    shape = dict(layout.shapes)[name]
    low, high = (np.broadcast_to(side, shape).ravel() for side in _pair(low, high))
    return layout.slices()[name], (low, high)


def _pair(low: Any, high: Any) -> tuple[Any, Any]:
    """Return a pair of bounds in which None means that there is none."""
    return -np.inf if low is None else low, np.inf if high is None else high


def problems_of_metric(problem: Problem) -> list[str]:
    """Find out whether the matrix that stands for the Hessian is too large."""
    rows = problem.w0.size // problem.objective.n_scores
    if rows <= MOST_METRIC_ROWS:
        return []
    fact = f"the metric of {rows:,} parameters is a matrix of {rows:,} x {rows:,} numbers"
    return [f"{fact}, and the most is {MOST_METRIC_ROWS:,}; use lbfgs or newton_cg"]


class MeanLoss:
    """fun(w) and hessp(w, v) of a problem for a solver: the sums of a pass, divided once.

    It counts the passes, and tells ``observe(w, fun, grad, seconds)`` of each evaluation, with
    the smooth part and its gradient.
    """

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        observe: Callable[[Array, float, Array, float], None],
    ):
        self._engine, self._problem, self._observe = engine, problem, observe
        # Products in float32 leave about 1e-9 of the objective to chance: measured on 20,000 x 50.
        self.noise = NOISE_OF_FLOAT32 if engine.single_precision else NOISE
        self.passes = 0

    def __call__(self, w: Array) -> tuple[float, Array]:
        """Mean loss and (l2/2) |mask * w|^2, with the gradient: one pass."""
        problem, start = self._problem, time.perf_counter()
        total = self._engine.value_and_grad(problem.objective, w)
        self.passes += 1
        penalised = problem.mask * w
        f = total.loss / total.weight + 0.5 * problem.l2 * float(penalised @ penalised)
        g = total.grad / total.weight + problem.l2 * penalised
        self._observe(w, f, g, time.perf_counter() - start)
        return f, g

    def hessp(self, w: Array, v: Array) -> Array:
        """Hessian at w, times v: one pass."""
        problem = self._problem
        total = self._engine.hessp(problem.objective, w, v)
        self.passes += 1
        return total.grad / total.weight + problem.l2 * problem.mask * v

    def metric(self, w: Array) -> Array:
        """What stands for the Hessian near w, for each column of the D x k parameters: one pass."""
        problem = self._problem
        mask = problem.mask.reshape(-1, problem.objective.n_scores)[:, 0]
        total = self._engine.metric(problem.objective, w)
        self.passes += 1
        return total.grad / total.weight + problem.l2 * np.diag(mask)

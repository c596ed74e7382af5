"""The user's own loss: a plain NumPy function, checked and wrapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, TypeAlias

import numpy as np

from sparkdist.blocks import Array, Block, Partial
from sparkdist.errors import InvalidCall
from sparkdist.layout import Layout
from sparkdist.objectives._base import Objective

__all__ = ["UserLoss"]

LossFunction: TypeAlias = Callable[..., Any]
#: Rows, at most, of the look at whether a function gives sums.
_TRIED = 64


@dataclass(frozen=True)
class UserLoss(Objective):
    """Any loss, as a function ``f(w, X, y) -> (loss_sum, grad_sum)`` of some rows.

    ``w`` arrives as the model that ``layout`` describes, an array or a dict of named arrays,
    and ``grad_sum`` has the same structure.  Both results are sums over the rows, not means.
    ``w`` is read-only; ``X`` has shape (n, d), dense or CSR, and ``y`` has shape (n,).  X comes
    in the dtype of the dataset; with float32, NumPy makes a float64 copy for each ``X @ w``,
    unless the function casts w: ``X @ w.astype(X.dtype)``.

    A function with a fourth parameter, ``f(w, X, y, weight)``, gets the weights of the rows,
    shape (n,), and has to multiply them in; ``takes_weight`` says which of the two it is.  A
    fourth parameter with a default counts only if it is called weight, weights or
    sample_weight.  Without it every row weighs 1.

    Source: the contract is that of SciPy's ``minimize(..., jac=True)``, for sums over rows.

    Raises
    ------
    InvalidCall
        If the function cannot be called like this; from ``value_and_grad``, if what it
        returns is not a pair of a number and a gradient with the model's names and shapes, or
        are means: those of some rows are looked at once in a task, and of their halves.
    """

    function: LossFunction
    layout: Layout
    takes_weight: bool = field(init=False)
    _was_tried: bool = field(default=False, init=False, repr=False, compare=False)

    twice = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "takes_weight", _takes_weight(self.function))

    @property
    def n_intercepts(self) -> int:
        """None that sparkdist knows of: an intercept is part of the user's model."""
        return 0

    @property
    def own_layout(self) -> Layout:
        """The layout of the user's model."""
        return self.layout

    def size(self, n_features: int) -> int:
        """Number of parameters of the model."""
        return self.layout.size

    def shape(self, n_features: int) -> tuple[int, ...]:
        """Shape of the model; of the flat vector, if the model is a dict."""
        return (self.layout.size,) if self.layout.names else self.layout.shapes[0][1]

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        """Call the function on the block's rows, and check what it returns."""
        if not self._was_tried and block.y.size > 1:
            object.__setattr__(self, "_was_tried", True)
            self._refuse_means(w, block)
        flat = w.view()
        flat.flags.writeable = False  # the next block must find w as it was
        data = block if self.takes_weight else block[:2]
        result = self.function(self.layout.unflatten(flat), *data)
        if problems := _problems(result, self.layout):
            raise InvalidCall(_name(self.function), problems)
        loss, grad = result
        weight = block.weight.sum() if self.takes_weight else block.y.size
        return Partial(float(loss), self.layout.flatten(grad), float(weight))

    def _refuse_means(self, w: Array, block: Block) -> None:
        """Refuse a function that gives means: no check of its gradient would show it.

        Of 2k rows a mean is that of the means of the halves, exactly, and a sum their sum.
        """
        k = min(block.y.size, _TRIED) // 2
        rows = (slice(2 * k), slice(k), slice(k, 2 * k))
        whole, *halves = (self.value_and_grad(w, Block(*(a[s] for a in block))) for s in rows)
        weight = sum(half.weight for half in halves) or 1.0
        shares = [half.weight / weight for half in halves]
        size = sum(abs(part.loss) + np.abs(part.grad).sum() for part in (whole, *halves))
        if not np.isfinite(size):
            return

        def distance(a: float, b: float) -> float:
            loss = whole.loss - a * halves[0].loss - b * halves[1].loss
            grad = whole.grad - a * halves[0].grad - b * halves[1].grad
            return abs(loss) + float(np.abs(grad).sum())

        near = 1e-5 * size  # for float32; what ignores its rows is neither
        if distance(*shares) < near < min(distance(1.0, 0.0), 1e-2 * distance(1.0, 1.0)):
            problem = (
                f"it must return sums over the rows; it returns means: of {2 * k} rows"
                f" {whole.loss:.6g}, of their halves {halves[0].loss:.6g} and {halves[1].loss:.6g}"
            )
            raise InvalidCall(_name(self.function), [problem])


def _takes_weight(function: LossFunction) -> bool:
    """Read off the signature whether the function wants the rows' weights."""
    try:
        wanted = signature(function)
        positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        fourth = [p for p in wanted.parameters.values() if p.kind in positional][3:4]
        takes_weight = any(
            p.default is Parameter.empty or p.name in ("weight", "weights", "sample_weight")
            for p in fourth
        )
        wanted.bind(*"wXys"[: 4 if takes_weight else 3])
    except (TypeError, ValueError) as error:
        rule = "the loss must be a function f(w, X, y) or f(w, X, y, weight)"
        raise InvalidCall("UserLoss", [f"{rule}; {_name(function)}: {error}"]) from error
    return takes_weight


def _problems(result: object, layout: Layout) -> list[str]:
    """Say everything that is wrong with what the user's function returned."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        return [f"it must return a pair (loss_sum, grad_sum); it returned {_describe(result)}"]
    loss, grad = result
    problems = []
    if _real_shape(loss) != ():
        rule = "the loss must be one real number, the sum over the rows"
        problems.append(f"{rule}; it is {_describe(loss)}")
    if not layout.names:
        return problems + _shape_problems("the gradient", grad, layout.shapes[0][1])
    if not isinstance(grad, Mapping) or set(grad) != set(layout.names):
        rule = f"the gradient must be a dict with the model's names, {list(layout.names)}"
        return [*problems, f"{rule}; it is {_describe(grad)}"]
    for name, shape in layout.shapes:
        problems += _shape_problems(f"the gradient of {name!r}", grad[name], shape)
    return problems


def _shape_problems(what: str, array: object, shape: tuple[int, ...]) -> list[str]:
    if _real_shape(array) == shape:
        return []
    rule = f"{what} must be real numbers of the model's shape {shape}"
    return [f"{rule}; it is {_describe(array)}"]


def _real_shape(value: Any) -> tuple[int, ...] | None:
    """Shape of a number or an array of real numbers; None for anything else."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal length
        return None
    return array.shape if array.dtype.kind in "fiub" else None


def _describe(value: object) -> str:
    """Say in a few words what somebody returned."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the names {list(value)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of length {len(value)}"
    return f"{value!r} ({type(value).__name__})"


def _name(function: LossFunction) -> str:
    return getattr(function, "__name__", repr(function))

"""A multilayer perceptron, for classes or for regression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from sparkdist.blocks import Array, Block, Matrix, Partial
from sparkdist.errors import InvalidCall
from sparkdist.layout import Layout
from sparkdist.objectives._base import Objective
from sparkdist.objectives._cross_entropy import cross_entropy, cross_entropy_curvature
from sparkdist.objectives.softmax import Softmax
from sparkdist.objectives.squared import Squared

__all__ = ["MLP"]

#: W of shape (n_in, n_out) and b of shape (n_out,) of each layer.
Weights: TypeAlias = list[tuple[Array, Array]]


class _Activation(NamedTuple):
    """What comes out of a unit, A = f(Z), and its derivatives as functions of A."""

    apply: Callable[[Array], Array]  # f(Z), which may overwrite Z
    slope: Callable[[Array], Array]  # f'(Z)
    bend: Callable[[Array, Array], Array]  # change of f'(Z) where A changes by dA: f''(Z) dZ
    spread: Callable[[int, int], float]  # standard deviation of initial W, of (n_in, n_out)


_ACTIVATIONS = {
    "relu": _Activation(
        apply=lambda Z: np.maximum(Z, 0.0, out=Z),
        slope=np.sign,  # of A >= 0: at the kink the slope is 0
        bend=lambda A, dA: np.zeros_like(A),
        spread=lambda n_in, n_out: (2.0 / n_in) ** 0.5,
    ),
    "tanh": _Activation(
        apply=lambda Z: np.tanh(Z, out=Z),
        slope=lambda A: 1.0 - A * A,
        bend=lambda A, dA: -2.0 * A * dA,
        spread=lambda n_in, n_out: (2.0 / (n_in + n_out)) ** 0.5,
    ),
}


def _squared(S: Array, y: Array, weight: Array) -> float:
    """Sum of weight * Squared; overwrites S, of shape (1, n), with its derivatives in S."""
    loss, slope = Squared().loss_and_slope(S[0], y)
    S[0] = weight * slope
    return float(weight @ loss)


def _squared_curvature(S: Array, U: Array, weight: Array) -> Array:
    """Second derivatives at S times U: weight * u for each row; overwrites U."""
    U *= weight.astype(U.dtype, copy=False)
    return U


class _Output(NamedTuple):
    """How the scores of the last layer, of shape (n_out, n), become a loss."""

    loss: Callable[[Array, Array, Array], float]
    curvature: Callable[[Array, Array, Array], Array]
    objective: Callable[[int], Objective]  # predicts, and knows the labels


_OUTPUTS = {
    "softmax": _Output(cross_entropy, cross_entropy_curvature, Softmax),
    "squared": _Output(_squared, _squared_curvature, lambda n_out: Squared()),
}


@dataclass(frozen=True)
class MLP(Objective):
    """Loss of a multilayer perceptron: fully connected layers, one after the other.

    For one row x, with A_0 = x and L layers::

        Z_l = A_{l-1} W_l + b_l             A_l = f(Z_l)  for l < L, and S = Z_L
        loss = log(sum_k exp(S_k)) - S_y    softmax: y is the class, 0 to n_out - 1
               (S - y)^2 / 2                squared: y is the target, and n_out is 1

    and with the derivatives D_L of the loss in S, backwards from l = L::

        gradient in W_l = A_{l-1}' D_l      gradient in b_l = D_l
        D_{l-1} = (D_l W_l') * f'(Z_{l-1})

    The model is a dict W1 (n_in, n_out), b1 (n_out,), W2, b2 ...; penalties leave the b alone.
    A float32 w is computed with in float32, X being converted block by block; only the loss
    is summed in float64.  Any other w is computed with in float64.

    The loss is not convex, and zero is stationary: all hidden units are the same there, so a
    run without w0 starts from ``initial()``.  The derivative of relu at its kink is taken as 0,
    and ``hessp`` is the Hessian of the linear piece on which w lies.

    Source: Goodfellow, Bengio and Courville, Deep Learning, algorithms 6.3 and 6.4; for
    ``hessp`` Pearlmutter, Fast Exact Multiplication by the Hessian, Neural Computation 6 (1994).

    Parameters
    ----------
    layers
        Number of inputs, of the units of each hidden layer, if any, and of outputs.
    activation
        Of the hidden units, f: ``relu``, max(0, z), or ``tanh``.
    output
        ``softmax`` for classes, ``squared`` for regression.
    """

    layers: Sequence[int] = (784, 128, 10)
    activation: str = "relu"
    output: str = "softmax"

    convex = False

    def __post_init__(self) -> None:
        if problems := _problems(self.layers, self.activation, self.output):
            raise InvalidCall("MLP", problems)
        # A tuple of Python's numbers, so that a list, as in a saved model, makes an equal MLP.
        object.__setattr__(self, "layers", tuple(int(size) for size in self.layers))

    @property
    def classifies(self) -> bool:
        """Whether the output is a class."""
        return self._last.classifies

    @property
    def gives_probabilities(self) -> bool:
        """Whether the output is a class."""
        return self._last.gives_probabilities

    @property
    def n_scores(self) -> int:
        """Number of outputs."""
        return self.layers[-1]

    @property
    def n_intercepts(self) -> int:
        """None but the biases of the layers."""
        return 0

    @property
    def n_features(self) -> int:
        """Number of inputs."""
        return self.layers[0]

    @property
    def own_layout(self) -> Layout:
        """W1, b1, W2, b2 ..."""
        shapes: list[tuple[str | None, tuple[int, ...]]] = []
        for layer, (n_in, n_out) in enumerate(pairwise(self.layers), start=1):
            shapes += [(f"W{layer}", (n_in, n_out)), (f"b{layer}", (n_out,))]
        return Layout(tuple(shapes))

    @property
    def biases(self) -> tuple[str, ...]:
        """The names b1, b2 ..."""
        return tuple(f"b{layer}" for layer in range(1, len(self.layers)))

    def initial(self, seed: int = 0, *, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Draw parameters to start from: normal W, whose variance is the paper's, and zero b.

        relu: 2 / n_in, of He, Zhang, Ren and Sun, Delving Deep into Rectifiers, ICCV 2015,
        equation (10).  tanh: 2 / (n_in + n_out), of Glorot and Bengio, Understanding the
        difficulty of training deep feedforward neural networks, AISTATS 2010, equation (12).
        """
        random, spread = np.random.default_rng(seed), _ACTIVATIONS[self.activation].spread
        model: dict[str, Array] = {}
        for layer, (n_in, n_out) in enumerate(pairwise(self.layers), start=1):
            W = spread(n_in, n_out) * random.standard_normal((n_in, n_out))
            model |= {f"W{layer}": W.astype(dtype), f"b{layer}": np.zeros(n_out, dtype)}
        return model

    def size(self, n_features: int) -> int:
        """Number of parameters of all layers."""
        return sum((n_in + 1) * n_out for n_in, n_out in pairwise(self.layers))

    def shape(self, n_features: int) -> tuple[int, ...]:
        """Shape of the flat vector."""
        return (self.size(n_features),)

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        """Sum loss and gradient over the block's rows, in the dtype of w."""
        X, y, weight = block
        w, weight = _single_or_double(w), weight.astype(np.float64, copy=False)
        weights, slope = self._weights(w), _ACTIVATIONS[self.activation].slope
        inputs, S = self._forward(weights, X)
        loss = _OUTPUTS[self.output].loss(S, y, weight)  # S holds the derivatives now
        grad, D = np.empty(w.size, w.dtype), S.T
        views = self._weights(grad)
        for layer in reversed(range(len(weights))):
            A, (W_grad, b_grad) = inputs[layer], views[layer]
            _product(A.T, D, W_grad)
            D.sum(axis=0, out=b_grad)
            if layer > 0:
                D = D @ weights[layer][0].T
                D *= slope(A)
        return Partial(loss, grad, float(weight.sum()))

    def hessp(self, w: Array, v: Array, block: Block) -> Array:
        """Sum of the rows' Hessians at w, times v: the derivative of the gradient along v.

        Each line of ``value_and_grad``, and below it its derivative: Pearlmutter's R{.}, whose
        results have a d before their name.
        """
        X, y, weight = block
        w = _single_or_double(w)
        weights, along = self._weights(w), self._weights(v.astype(w.dtype, copy=False))
        _, slope, bend, _ = _ACTIVATIONS[self.activation]
        inputs, S = self._forward(weights, X)
        dinputs, dS = self._forward_along(weights, along, inputs)
        dD = _OUTPUTS[self.output].curvature(S, dS, weight).T
        _OUTPUTS[self.output].loss(S, y, weight)
        Hv, D = np.empty(w.size, w.dtype), S.T
        views = self._weights(Hv)
        for layer in reversed(range(len(weights))):
            A, (W_part, b_part) = inputs[layer], views[layer]
            _product(A.T, dD, W_part)
            dD.sum(axis=0, out=b_part)
            if layer > 0:
                dA, W, dW = dinputs[layer - 1], weights[layer][0], along[layer][0]
                W_part += dA.T @ D
                E, dE = D @ W.T, dD @ W.T + D @ dW.T
                D, dD = E * slope(A), dE * slope(A) + E * bend(A, dA)
        return Hv

    def scores(self, w: Array, X: Matrix) -> Array:
        """Outputs of the last layer: (n, n_classes), or (n,) for a squared output."""
        S = self._forward(self._weights(_single_or_double(w)), X)[1]
        return S.T if self.classifies else S[0]

    def predict(self, scores: Array) -> Array:
        """Return the class with the largest score, or the score."""
        return self._last.predict(scores)

    def probability(self, scores: Array) -> Array:
        """Return the probabilities of the classes, shape (n, n_classes)."""
        return self._last.probability(scores)

    def pool(self, scores: Array, shares: Array) -> Array:
        """Return what the loss of the output makes of several networks' scores."""
        return self._last.pool(scores, shares)

    @property
    def of_scores(self) -> Objective:
        """The loss of the output."""
        return self._last

    def bad_labels(self, labels: Array) -> Array:
        """Labels that are not the number of a class, or not finite."""
        return self._last.bad_labels(labels)

    def label_rule(self) -> str:
        """Say the numbers of the classes, or that targets are finite."""
        return self._last.label_rule()

    @property
    def _last(self) -> Objective:
        """The loss of the scores, whose labels and predictions are those of the network."""
        return _OUTPUTS[self.output].objective(self.layers[-1])

    def _weights(self, w: Array) -> Weights:
        """W and b of each layer, views of w."""
        weights, start = [], 0
        for n_in, n_out in pairwise(self.layers):
            middle, end = start + n_in * n_out, start + (n_in + 1) * n_out
            weights.append((w[start:middle].reshape(n_in, n_out), w[middle:end]))
            start = end
        return weights

    def _forward(self, weights: Weights, X: Matrix) -> tuple[list[Any], Array]:
        """Inputs of the layers, X and A_1 ..., and new scores S of shape (n_out, n)."""
        apply = _ACTIVATIONS[self.activation].apply
        inputs: list[Any] = []
        A: Any = X.astype(weights[0][0].dtype, copy=False)
        for W, b in weights:
            inputs.append(A)
            A = A @ W
            A += b
            if len(inputs) < len(weights):
                A = apply(A)
        return inputs, np.ascontiguousarray(A.T)

    def _forward_along(
        self, weights: Weights, along: Weights, inputs: list[Any]
    ) -> tuple[list[Array], Array]:
        """Derivatives along a direction of A_1 ... and S: what ``_forward`` gives but X's, 0."""
        slope = _ACTIVATIONS[self.activation].slope
        dA = [inputs[0] @ along[0][0] + along[0][1]]
        for layer in range(1, len(weights)):
            A, (dW, db) = inputs[layer], along[layer]
            dA[-1] *= slope(A)
            dA.append(dA[-1] @ weights[layer][0] + A @ dW + db)
        return dA[:-1], np.ascontiguousarray(dA[-1].T)


def _problems(layers: Any, activation: Any, output: Any) -> list[str]:
    """Say everything that is wrong with the arguments."""
    problems: list[str] = []
    sizes: list[Any] = list(layers) if isinstance(layers, tuple | list) else []
    if len(sizes) < 2 or not all(isinstance(n, Integral) and int(n) > 0 for n in sizes):
        rule = "layers must be two or more whole numbers, 1 or more: inputs, hidden units, outputs"
        problems.append(f"{rule}; it is {layers!r}")
        sizes = []
    for name, given, known in (
        ("activation", activation, _ACTIVATIONS),
        ("output", output, _OUTPUTS),
    ):
        if not isinstance(given, str) or given not in known:
            rule = f"{name} must be {' or '.join(map(repr, known))}"
            problems.append(f"{rule}; it is {given!r}")
    if sizes and output == "softmax" and sizes[-1] < 2:
        problems.append("a softmax output has one unit a class, 2 or more; layers ends in 1")
    if sizes and output == "squared" and sizes[-1] != 1:
        problems.append(f"a squared output has one unit; layers ends in {sizes[-1]}")
    return problems


def _single_or_double(w: Array) -> Array:
    return w if w.dtype == np.float32 else w.astype(np.float64, copy=False)


def _product(A: Any, D: Array, out: Array) -> None:
    """A @ D, written where it belongs; a sparse product cannot be told where."""
    if isinstance(A, np.ndarray):
        np.matmul(A, D, out=out)
    else:
        out[:] = A @ D

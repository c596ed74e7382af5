"""Softmax loss, for two or more classes: multinomial logistic regression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import issparse
from scipy.special import log_softmax, logsumexp, softmax

from sparkdist.blocks import Array, Block, Matrix, Partial
from sparkdist.fields import settle, whole
from sparkdist.objectives._base import Objective
from sparkdist.objectives._cross_entropy import cross_entropy, cross_entropy_curvature
from sparkdist.objectives._gram import gram
from sparkdist.objectives._precision import in_precision_of

__all__ = ["Softmax"]


@dataclass(frozen=True)
class Softmax(Objective):
    """Negative log-likelihood of K classes, each with its own weights.

    For one row with scores s = W' x + b, W of shape (d, K), and class y::

        loss            = log(sum_k exp(s_k)) - s_y
        gradient in W   = x (p - e_y)'              with p_k = exp(s_k) / sum_j exp(s_j)
        Hessian times V = x (p * u - p (p @ u))'    with u = V' x

    w is W flattened row after row, then the K intercepts b if w has any.  Labels are the whole
    numbers 0 to K - 1.  ``n_classes`` is K, the number of classes of the data.

    The parametrisation is symmetric: adding one vector to all columns of W changes nothing.

    Source: Murphy, Machine Learning: A Probabilistic Perspective, section 8.3.7.
    """

    n_classes: int = 2

    classifies = True

    def __post_init__(self) -> None:
        settle(self, n_classes=whole(2))

    @property
    def n_scores(self) -> int:
        """One score a class."""
        return self.n_classes

    def size(self, n_features: int) -> int:
        """Length of w without intercepts, d K."""
        return n_features * self.n_classes

    def shape(self, n_features: int) -> tuple[int, ...]:
        """Shape of W, (d, K)."""
        return (n_features, self.n_classes)

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        """Sum loss and gradient over the block's rows: two products with X."""
        X, y, weight = block
        S = self._class_scores(w, X)
        loss = cross_entropy(S, y, weight)  # S holds the derivatives now
        return Partial(loss, _gather(X, S, w.size), float(weight.sum()))

    def hessp(self, w: Array, v: Array, block: Block) -> Array:
        """Sum of the rows' Hessians at w, times v: three products with X."""
        X, _, weight = block
        S, U = self._class_scores(w, X), self._class_scores(v, X)
        return _gather(X, cross_entropy_curvature(S, U, weight), w.size)

    def metric(self, w: Array, block: Block) -> Array:
        """X' diag(weight * c) X, for X with a column of ones if w has intercepts.

        c = sum_k p_k (1 - p_k) / K is the mean of a row's curvatures in its K scores.
        """
        X, _, weight = block
        P = softmax(self._class_scores(w, X), axis=0)
        curvature = (1.0 - np.square(P).sum(axis=0)) / self.n_classes
        return gram(X, weight * curvature, intercept=w.size > self.size(X.shape[1]))

    def scores(self, w: Array, X: Matrix) -> Array:
        """Return the class scores of the rows, shape (n, K)."""
        return self._class_scores(w, X).T

    def predict(self, scores: Array) -> Array:
        """Return the class with the largest score; of equal ones the first."""
        return scores.argmax(axis=1).astype(np.float64)

    def probability(self, scores: Array) -> Array:
        """Return the probabilities of the classes, shape (n, K)."""
        return softmax(scores, axis=1)

    def pool(self, scores: Array, shares: Array) -> Array:
        """Return the logarithms of the mean probabilities."""
        return logsumexp(log_softmax(scores, axis=2), axis=0, b=shares[:, None, None])

    def bad_labels(self, labels: Array) -> Array:
        """Labels that are not the number of a class."""
        return labels[~np.isin(labels, np.arange(self.n_classes))]

    def label_rule(self) -> str:
        """Say the numbers of the classes."""
        return f"whole numbers 0 to {self.n_classes - 1}"

    def _class_scores(self, w: Array, X: Matrix) -> Array:
        """Scores in a new array of shape (K, n), which the caller may overwrite."""
        split = self.size(X.shape[1])
        W, b = w[:split].reshape(-1, self.n_classes), w[split:]
        S = np.ascontiguousarray(in_precision_of(X, W, _by_row).T)
        return S + b[:, np.newaxis] if b.size else S


def _gather(X: Matrix, R: Array, size: int) -> Array:
    """X' R' flattened, for R of shape (K, n); behind it R's sums when w has intercepts."""
    grad = in_precision_of(X, R, _by_class).T.ravel()
    return np.append(grad, R.sum(axis=1)) if size > grad.size else grad


def _by_row(X: Matrix, W: Array) -> Array:
    """X W, shape (n, K)."""
    product = np.empty((X.shape[0], W.shape[1]), np.result_type(X.dtype, W.dtype))
    for rows, strip in _strips(X, W.shape[1]):
        product[rows] = strip @ W
    return product


def _by_class(X: Matrix, R: Array) -> Array:
    """R X, shape (K, d)."""
    product = np.zeros((len(R), X.shape[1]), np.result_type(X.dtype, R.dtype))
    for rows, strip in _strips(X, len(R)):
        product += R[:, rows] @ strip
    return product


def _strips(X: Matrix, n_classes: int) -> list[tuple[slice, Matrix]]:
    """Cut the rows so that each product with a strip takes at most 10^6 multiplications.

    OpenBLAS then uses, on AVX-512, kernels that do not repack X: 46 GFLOP/s against 23 for
    (n, 784) @ (784, 10).  Processors without them lose 6 %; strips of few rows lose more.
    """
    n, d = X.shape
    height = 10**6 // max(1, d * n_classes)
    if issparse(X) or height < 50:
        return [(slice(None), X)]
    return [(slice(i, i + height), X[i : i + height]) for i in range(0, n, height)]

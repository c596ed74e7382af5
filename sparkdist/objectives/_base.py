"""What engines, solvers and saved models ask of a loss."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from sparkdist.blocks import Array, Block, Matrix, Partial
from sparkdist.layout import Layout, Model
from sparkdist.objectives._gram import gram
from sparkdist.objectives._precision import in_precision_of, times_vector

__all__ = ["MarginLoss", "Objective"]


class Objective(ABC):
    """A loss summed over rows, as a function of one flat parameter vector w.

    Conventions
    -----------
    ``w`` has ``size(d)`` elements, or ``size(d) + n_intercepts`` with the intercepts last:
    its length says whether there are any.  An objective with ``own_layout`` brings a model of
    its own instead, whose flat vector w is.  Everything that is returned is a sum over the
    block's rows, each row times its weight; nothing is divided and nothing is penalised here.
    Inputs are never written to.  Two objectives of one class with equal parameters are equal.
    A member refuses its parameters when it is made, with an InvalidCall.

    Where X is of float32, the built-in losses multiply with it in float32, w being rounded to
    float32 for that; losses, their derivatives and all results are of float64 nevertheless.
    MLP computes in the dtype of w, whatever that of X, and a UserLoss as its function does.
    """

    #: The gradient exists everywhere.  Hinge says False.
    differentiable: ClassVar[bool] = True
    #: ``hessp`` is there, and says something about the loss.
    twice: ClassVar[bool] = True
    #: A minimum is the minimum.  MLP says False; of a UserLoss only its author knows.
    convex: ClassVar[bool] = True

    @property
    def classifies(self) -> bool:
        """Whether predictions are class labels, so that a share of wrong ones makes sense."""
        return False

    @property
    def n_scores(self) -> int:
        """How many scores a row has: 1, or the number of classes."""
        return 1

    @property
    def n_intercepts(self) -> int:
        """How many intercepts a model with an intercept has."""
        return self.n_scores

    @property
    def n_features(self) -> int | None:
        """How many features the data must have; None where any number will do."""
        return None

    @property
    def own_layout(self) -> Layout | None:
        """Layout of the objective's own model; None for weights and an optional intercept."""
        return None

    @property
    def biases(self) -> tuple[str, ...]:
        """Names in the own layout that are intercepts, which no penalty touches."""
        return ()

    def initial(self, seed: int = 0) -> Model | None:
        """Where to start without w0; None for zeros."""
        return None

    def size(self, n_features: int) -> int:
        """Length of w without intercepts."""
        return n_features

    def shape(self, n_features: int) -> tuple[int, ...]:
        """Shape in which users see the weights."""
        return (n_features,)

    @abstractmethod
    def value_and_grad(self, w: Array, block: Block) -> Partial:
        """Sum loss and gradient over the block's rows."""

    def hessp(self, w: Array, v: Array, block: Block) -> Array:
        """Sum of the rows' Hessians at w, times v; the shape of w."""
        raise NotImplementedError(f"{type(self).__name__} has no hessp")

    def metric(self, w: Array, block: Block) -> Array:
        """Sum of the rows' matrices (D, D) that stand for their Hessians near w.

        Positive semidefinite; D is d, or d + 1 with intercepts.  The D x k parameters of a model
        with k scores have k times this one.
        """
        raise NotImplementedError(f"{type(self).__name__} has no metric")

    @property
    def has_metric(self) -> bool:
        """Whether there is a ``metric``, and it says something about the loss."""
        return self.twice and type(self).metric is not Objective.metric

    def scores(self, w: Array, X: Matrix) -> Array:
        """Scores of the rows, linear but for MLP: (n,), or (n, n_classes)."""
        raise NotImplementedError(f"{type(self).__name__} has no scores")

    def predict(self, scores: Array) -> Array:
        """Map scores to predictions, shape (n,)."""
        return scores

    @property
    def gives_probabilities(self) -> bool:
        """Whether there is a ``probability``."""
        return type(self).probability is not Objective.probability

    def probability(self, scores: Array) -> Array:
        """Map scores to probabilities: (n,) of the positive class, or (n, n_classes)."""
        raise NotImplementedError(f"{type(self).__name__} has no probability")

    def pool(self, scores: Array, shares: Array) -> Array:
        """Return the scores whose prediction is the mean of several models' predictions.

        That is of probabilities where there are any, else of what ``predict`` gives; of scores
        where the prediction is a class without a probability.  Here scores are averaged.

        Parameters
        ----------
        scores
            Of the models, one after the other along the first axis: (models, n), or
            (models, n, n_classes).
        shares
            Weights of the models, (models,); they sum up to 1.

        Source: Stone, The Opinion Pool, Annals of Mathematical Statistics 32 (1961).
        """
        return np.tensordot(shares, scores, axes=1)

    @property
    def of_scores(self) -> Objective:
        """The loss as a function of the scores, a linear model of which it is the loss."""
        return self

    def bad_labels(self, labels: Array) -> Array:
        """Those of the distinct ``labels`` of a data set that are outside the loss's domain."""
        return labels[~np.isfinite(labels)]

    def label_rule(self) -> str:
        """Say the domain of the labels in words, for messages."""
        return "finite numbers"


class MarginLoss(Objective):
    """A loss of one margin a row, m = x @ w + intercept, given by its derivatives in m."""

    @abstractmethod
    def loss_and_slope(self, m: Array, y: Array) -> tuple[Array, Array]:
        """Loss and its derivative in m, element by element; all of shape (n,)."""

    @abstractmethod
    def curvature(self, m: Array, y: Array) -> Array:
        """Second derivative of the loss in m, element by element; shape (n,)."""

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        """Sum loss and gradient over the block's rows: two products with X."""
        X, y, weight = block
        loss, slope = self.loss_and_slope(self.scores(w, X), y)
        grad = _gather(X, weight * slope, w.size)
        return Partial(float(weight @ loss), grad, float(weight.sum()))

    def hessp(self, w: Array, v: Array, block: Block) -> Array:
        """X' (weight * curvature * (X v)): the sum of the rows' Hessians at w, times v."""
        X, y, weight = block
        curvature = self.curvature(self.scores(w, X), y)
        return _gather(X, weight * curvature * self.scores(v, X), w.size)

    def expected_curvature(self, m: Array, y: Array) -> Array:
        """Second derivative to expect on the way from the margins m, not negative; shape (n,).

        It is ``curvature``, but of losses that have rows without any, which may get some.
        """
        return self.curvature(m, y)

    def metric(self, w: Array, block: Block) -> Array:
        """X' diag(weight * expected curvature) X, for X with a column of ones if w has one."""
        X, y, weight = block
        curvature = self.expected_curvature(self.scores(w, X), y)
        return gram(X, weight * curvature, intercept=w.size > X.shape[1])

    def scores(self, w: Array, X: Matrix) -> Array:
        """Return the margins x @ w + intercept, shape (n,)."""
        d = X.shape[1]
        m = in_precision_of(X, w[:d], times_vector)
        return m + w[d] if w.size > d else m


def _gather(X: Matrix, r: Array, size: int) -> Array:
    """X' r, with the sum of r behind it when w has an intercept."""
    # A CSR matrix transposes into CSC over the same arrays: 13 microseconds, no copy.
    grad = in_precision_of(X.T, r, operator.matmul)
    return np.append(grad, r.sum()) if size > X.shape[1] else grad

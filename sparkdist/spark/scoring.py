"""Scoring DataFrames with a fitted model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import RDD
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import arrow_udf

from sparkdist.blocks import Array, Block
from sparkdist.errors import BadData, InvalidCall
from sparkdist.model import Model, labels_of, pooled_scores
from sparkdist.objectives import Objective
from sparkdist.spark.data.dataframe import plan_columns
from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.data.from_arrow import feature_matrix
from sparkdist.spark.data.given import as_dataset, named_columns, problems_of_data
from sparkdist.spark.data.ingest import BadRow
from sparkdist.spark.data.sources import describe, refuse_connect, refuse_not_dataframe

__all__ = ["SparkModel", "load", "model_of"]


class SparkModel(Model):
    """A model whose ``predict`` takes arrays and DataFrames."""

    def predict(self, X: Any, features: str | Sequence[str] | None = None) -> Any:
        """Predict the rows of an array, as an array (n,), or of a DataFrame, as new columns.

        A DataFrame comes back with a column ``prediction`` and, where the objective has it,
        ``probability``: of the positive class, or an array with one for each class.  ``features``
        is the vector or array column, or the list of numeric columns, to read; by default what
        the model was trained on.

        Raises
        ------
        InvalidCall
            If the features are not there, or, for an array, not ``n_features`` of them.
        """
        refuse_connect(X)
        if isinstance(X, DataFrame):
            refuse_not_dataframe(X)
            return self._transform(X, features)
        _refuse_distributed("predict", X)
        return super().predict(X)

    def predict_proba(self, X: Any) -> Array:
        """Probabilities for the rows of an array; for a DataFrame :meth:`predict` has them."""
        refuse_connect(X)
        _refuse_distributed("predict_proba", X)
        return super().predict_proba(X)

    def evaluate(
        self,
        data: Dataset | DataFrame | RDD[Any],
        *,
        features: str | Sequence[str] | None = None,
        label: str | None = None,
        weight: str | None = None,
    ) -> dict[str, float]:
        """Weighted means over the rows of a dataset, or of what :func:`minimize` takes for one.

        ``loss``, without penalty; and ``error_rate``, the share of wrong labels, or
        ``mean_squared_error``.  Labels of two classes may be {0, 1} or {-1, +1}, whatever the
        model was trained on.  ``features``, by default what it was trained on, ``label`` and
        ``weight`` are columns of a DataFrame.

        Raises
        ------
        InvalidCall
            If the data does not have ``n_features`` features.
        BadData
            For labels that the objective does not know.
        """
        refuse_connect(data)
        self.require_known_loss()
        columns = named_columns(features=features, label=label, weight=weight)
        if problems := problems_of_data(data, columns):
            raise InvalidCall("evaluate", problems)
        if isinstance(data, DataFrame):
            columns = {"features": self.features, **columns}
        with ExitStack() as stack:
            return self._evaluate(as_dataset(data, stack, columns))

    def _evaluate(self, dataset: Dataset) -> dict[str, float]:
        if dataset.n_features != self.n_features:
            problem = f"the model has {self.n_features} features, the data {dataset.n_features}"
            raise InvalidCall("evaluate", [problem])
        dataset.refuse_labels(self.objective)
        shared = dataset.handles.context.broadcast((self.objective, self.flat(), self.shares))

        def sums(partition: int, blocks: Iterator[Block]) -> Array:
            return np.sum([_sums(*shared.value, block) for block in blocks], axis=0)

        try:
            loss, error, weight = np.sum(dataset.visit(sums), axis=0)
        finally:
            shared.destroy()
        name = "error_rate" if self.objective.classifies else "mean_squared_error"
        return {"loss": float(loss / weight), name: float(error / weight)}

    def _transform(self, df: DataFrame, features: str | Sequence[str] | None) -> DataFrame:
        self.require_known_loss()
        chosen = self.features if features is None else features
        columns, plan = plan_columns("predict", df, chosen, ())
        if plan.kind == "columns" and len(columns) != self.n_features:
            problem = f"the model has {self.n_features} features, {chosen!r} are {len(columns)}"
            raise InvalidCall("predict", [problem])
        fields = {"prediction": "double"}
        if self.gives_probabilities:
            fields["probability"] = "array<double>" if self.objective.n_scores > 1 else "double"
        if taken := sorted(set(fields) & set(df.columns)):
            problem = f"the data already has {taken}, which it would add; drop or rename them"
            raise InvalidCall("predict", [problem])
        schema = ", ".join(f"{name}: {kind}" for name, kind in fields.items())
        score = arrow_udf(self._scorer(plan.kind), f"struct<{schema}>")  # type: ignore[call-overload]
        scored = df.withColumn("_sparkdist_scored", score(*columns))
        found = {name: F.col("_sparkdist_scored")[name] for name in fields}
        return scored.withColumns(found).drop("_sparkdist_scored")

    def _scorer(self, kind: str) -> Callable[..., pa.Array]:
        def score(*arrays: pa.Array) -> pa.Array:
            try:
                scores = self.scores(feature_matrix(kind, list(arrays)))
            except BadRow as bad:
                raise BadData(f"row {bad.row} of a batch: {bad.what}") from None
            found = {"prediction": self.from_scores(scores)}
            if self.gives_probabilities:
                found["probability"] = self.objective.probability(scores)
            return pa.StructArray.from_arrays([_arrow(v) for v in found.values()], list(found))

        return score


def _refuse_distributed(caller: str, X: Any) -> None:
    """Refuse what would be an array of one object."""
    if isinstance(X, DataFrame | Dataset | RDD):
        cure = "predict(df) adds columns to a DataFrame, evaluate(data) takes them all"
        raise InvalidCall(caller, [f"X is {describe(X)}; it must be an array; {cure}"])


def _sums(objective: Objective, w: Array, shares: Sequence[float], block: Block) -> Array:
    """Sums of loss, error and weight over a block."""
    scores = pooled_scores(objective, w, block.X, shares)
    if shares:  # the loss of a linear model whose features the scores are
        unit, features = np.eye(objective.n_scores).ravel(), scores.reshape(len(scores), -1)
        total = objective.of_scores.value_and_grad(unit, block._replace(X=features))
    else:
        total = objective.value_and_grad(w, block)
    predicted = objective.predict(scores)
    if not objective.classifies:
        wrong = (predicted - block.y) ** 2
    elif scores.ndim == 1:
        wrong = (predicted > 0) != (block.y > 0)  # in both conventions class 1 is positive
    else:
        wrong = predicted != block.y
    return np.array([total.loss, block.weight @ wrong, total.weight])


def _arrow(values: Array) -> pa.Array:
    """A column of numbers, or of lists where there is a number for each class."""
    if values.ndim == 1:
        return pa.array(values)
    n, k = values.shape
    offsets = np.arange(0, n * k + 1, k, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(values).ravel())


def model_of(
    loss: Objective, x: Any, dataset: Dataset, shares: tuple[float, ...] = ()
) -> SparkModel:
    """The model of parameters that were fitted to a dataset; with ``shares``, an ensemble."""
    labels = labels_of(loss, dataset.labels)
    return SparkModel(loss, x, dataset.n_features, labels, dataset.features, shares=shares)


load = SparkModel.load

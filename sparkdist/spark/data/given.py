"""What may be given as data: a Dataset, or something that becomes one for the time of a call."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from pyspark import RDD
from pyspark.sql import DataFrame

from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.data.sources import describe
from sparkdist.spark.network import context_of, has_stopped

__all__ = ["as_dataset", "named_columns", "problems_of_data"]


def named_columns(**columns: Any) -> dict[str, Any]:
    """Return the columns that were named, by their role."""
    return {role: name for role, name in columns.items() if name is not None}


def problems_of_data(data: Any, columns: Mapping[str, Any] | None = None) -> list[str]:
    """Find what is wrong with the data; ``columns`` are those that were named, by their role."""
    if not isinstance(data, Dataset | DataFrame | RDD):
        return [f"data is {describe(data)}; it must be a Dataset, a DataFrame or an RDD"]
    if not isinstance(data, Dataset) and has_stopped(context_of(data)):
        return ["the session of the data was stopped"]
    if columns and not isinstance(data, DataFrame):
        named, kind = ", ".join(columns), type(data).__name__
        return [f"{named} can only be given with a DataFrame, whose columns they name, not {kind}"]
    return []


def as_dataset(
    data: Dataset | DataFrame | RDD[Any],
    stack: ExitStack,
    columns: Mapping[str, Any] | None = None,
) -> Dataset:
    """Ingest what is not a Dataset yet, until the end of the stack."""
    if isinstance(data, Dataset):
        return data
    if isinstance(data, DataFrame):
        return stack.enter_context(Dataset.from_dataframe(data, **(columns or {})))
    return stack.enter_context(Dataset.from_rdd(data))

"""Read what a job names on its command line: an embedded data set, or files in some format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import NumericType

from sparkdist import datasets
from sparkdist.errors import InvalidCall
from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.data.sources import context_of_session, find_count, read_libsvm

__all__ = ["FORMATS", "read_dataframe", "read_dataset"]

FORMATS = ("libsvm", "parquet", "csv")
_SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".csv.gz": "csv"}


def read_dataset(
    spark: SparkSession,
    data: str | Path,
    kind: str | None = None,
    *,
    features: str | Sequence[str] | None = None,
    label: str = "label",
    weight: str | None = None,
    n_features: int | None = None,
    n_partitions: int | None = None,
    dtype: DTypeLike = "float64",
) -> Dataset:
    """Ingest ``data``: an embedded name, as ``a9a`` or ``a9a-test``, or a path or glob.

    ``kind`` is one of FORMATS, by default as the suffix says, else LIBSVM.  ``features`` is
    by default ``features``; in CSV every numeric column but label and weight.  ``dtype`` is that
    of dense features, as in :meth:`Dataset.from_dataframe`.
    """
    problems: list[str] = []
    context_of_session("read", spark, problems)
    data = _as_text(data)
    find_count(n_partitions, 1, problems)
    if _embedded(data):
        problems += _misnamed(data, features, label, weight)
    if problems:
        raise InvalidCall("read", problems)
    if _embedded(data):
        X, y = datasets.load(*_embedded(data))
        return Dataset.from_arrays(spark, X, y, n_partitions=n_partitions, dtype=dtype)
    kind = kind or _guess(data)
    if kind == "parquet" and "*" not in data:
        columns = "features" if features is None else features
        return Dataset.from_parquet(spark, data, columns, label, weight, n_partitions, dtype)
    df = read_dataframe(spark, data, kind, n_features=n_features)
    if n_partitions is not None:
        df = df.repartition(n_partitions)
    columns = default_features(df, kind, [label, weight]) if features is None else features
    return Dataset.from_dataframe(df, columns, label, weight, dtype)


def read_dataframe(
    spark: SparkSession, data: str | Path, kind: str | None = None, *, n_features: int | None = None
) -> DataFrame:
    """Read ``data`` as a DataFrame, lazily where Spark can."""
    context_of_session("read", spark)
    data = _as_text(data)
    if _embedded(data):
        return _embedded_dataframe(spark, *_embedded(data))
    kind = kind or _guess(data)
    if kind == "libsvm":
        return read_libsvm(spark, data, n_features)
    if kind == "csv":
        return spark.read.csv(data, header=True, inferSchema=True)
    if kind == "parquet":
        return spark.read.parquet(data)
    raise InvalidCall("read", [f"there is no format {kind!r}; there are {', '.join(FORMATS)}"])


def default_features(
    df: DataFrame, kind: str, not_features: Sequence[str | None]
) -> str | list[str]:
    """Name the feature columns of a file of some kind."""
    if kind != "csv":
        return "features"
    numeric = [field.name for field in df.schema if isinstance(field.dataType, NumericType)]
    return [name for name in numeric if name not in not_features]


def _misnamed(data: str, features: Any, label: Any, weight: Any) -> list[str]:
    """Say which columns an embedded data set does not have."""
    there = ("features", features, "features"), ("label", label, "label"), ("weight", weight, None)
    return [
        f"{data} has no column {name!r} for {role}: its rows are features and label"
        for role, name, own in there
        if name not in (None, own)
    ]


def _as_text(data: Any) -> str:
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    rule = "data must be a path, or the name of an embedded data set"
    raise InvalidCall("read", [f"{rule}; it is {data!r:.80}"])


def _embedded(data: str) -> tuple[str, str] | tuple[()]:
    """Name and split of an embedded data set, nothing for a path."""
    name, _, split = data.partition("-")
    if name in datasets.names() and split in ("", "train", "test"):
        return name, split or "train"
    return ()


def _embedded_dataframe(spark: SparkSession, name: str, split: str) -> DataFrame:
    X, y = datasets.load(name, split)
    edges = zip(X.indptr[:-1], X.indptr[1:], strict=True)
    vectors = (Vectors.sparse(X.shape[1], X.indices[i:j], X.data[i:j]) for i, j in edges)
    rows = list(zip(y.tolist(), vectors, strict=True))
    return spark.createDataFrame(rows, ["label", "features"])


def _guess(data: str) -> str:
    return next(
        (kind for end, kind in _SUFFIXES.items() if data.rstrip("/").endswith(end)), "libsvm"
    )

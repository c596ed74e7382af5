"""From a DataFrame to Arrow batches of flat columns, and to blocks on the executors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import RDD, TaskContext
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BooleanType, DataType, NumericType

from sparkdist.errors import InvalidCall
from sparkdist.spark.data.from_arrow import Columns
from sparkdist.spark.data.ingest import Handle, keep
from sparkdist.spark.data.residency import Place

__all__ = [
    "handle_of_row",
    "how_to_name",
    "ingested_dataframe",
    "leaks",
    "listed",
    "plan_columns",
    "refuse_no_names",
]

#: PySpark has the workers of SQL shorten their tracebacks, and starts others for RDDs, which do
#: not: for this setting alone twice as many processes that have everything to import.
_AS_FOR_RDDS = {"spark.sql.execution.pyspark.udf.simplifiedTraceback.enabled": "false"}
#: With this limit Spark does not add up all columns' buffers after each row.
_NO_LIMIT = str(2**31 - 1)
#: In the names of operators that send rows to Python.
_OF_PYTHON = ("Python", "InPandas", "InArrow")
_one_at_a_time = threading.Lock()
#: A sparse vector has an index to each value.
_BYTES_OF_A_NUMBER = 12


def plan_columns(
    caller: str,
    df: DataFrame,
    features: str | Sequence[str],
    scalars: Sequence[str],
    problems: Sequence[str] = (),
) -> tuple[list[Column], Columns]:
    """Columns that hold features and scalars flat and each of one type, and how to read them.

    ``scalars`` are the label, and perhaps the weight; ``problems`` what is known to be wrong.
    """
    features = listed(features)
    refuse_no_names(caller, features, scalars, problems)
    names = [features] if isinstance(features, str) else list(features)
    types = {field.name: field.dataType for field in df.schema}
    problems = [*problems, *([] if names else ["the list of feature columns is empty"])]
    problems += leaks(names, scalars)
    problems += _missing(df, [*names, *scalars]) + _not_numeric("column", scalars, types)
    kind = _kind(features, types, problems)
    if problems:
        raise InvalidCall(caller, problems)
    columns = _feature_columns(kind, names)
    plan = Columns(kind, len(columns), has_weight=len(scalars) == 2)
    return [*columns, *(_column(name).cast("double") for name in scalars)], plan


def refuse_no_names(
    caller: str, features: Any, scalars: Sequence[Any], problems: Sequence[str]
) -> None:
    """Raise InvalidCall for what are no names of columns, with the other ``problems``."""
    found = [
        f"label and weight must be names of columns; one is {name!r:.80}"
        for name in scalars
        if not isinstance(name, str)
    ]
    is_list = isinstance(features, list | tuple) and all(isinstance(f, str) for f in features)
    if not (isinstance(features, str) or is_list):
        rule = "features must be the name of a column, or a list of names"
        found.insert(0, f"{rule}; it is {features!r:.80}")
    if found:
        raise InvalidCall(caller, [*problems, *found])


def listed(features: Any) -> Any:
    """Return one name as it is, and of several a list: they may come as an Index, or once only."""
    several = isinstance(features, Iterable) and not isinstance(features, str)
    return list(features) if several else features


def leaks(names: Sequence[str], scalars: Sequence[str]) -> list[str]:
    """Find labels and weights that are among the features."""
    return [
        f"column {name!r} is label or weight, and a feature" for name in scalars if name in names
    ]


def how_to_name(column: str) -> str:
    """Say how another column than the default is named."""
    return f": name yours, {column}=..." if column in ("features", "label") else ""


def _missing(df: DataFrame, names: Sequence[str]) -> list[str]:
    return [
        f"there is no column {name!r}; there are {', '.join(df.columns)}{how_to_name(name)}"
        for name in names
        if name not in df.columns
    ]


def _not_numeric(what: str, names: Sequence[str], types: Mapping[str, DataType]) -> list[str]:
    return [
        f"{what} {name!r} is {types[name].simpleString()}; it must be numeric"
        for name in names
        if name in types and not isinstance(types[name], NumericType | BooleanType)
    ]


def _kind(features: str | Sequence[str], types: Mapping[str, DataType], problems: list[str]) -> str:
    """Say which form the features have, or add to the problems."""
    if not isinstance(features, str):
        problems += _not_numeric("feature column", features, types)
        return "columns"
    kind = types.get(features)
    if kind is None or isinstance(kind, NumericType | BooleanType):
        return "columns"
    if kind.typeName() == "vectorudt" or type(kind).__name__ == "VectorUDT":
        return "vector"
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, NumericType):
        return "array"
    problems.append(
        f"features column {features!r} is {kind.simpleString()}; it must be a vector, an array"
        " of numbers or a number, or a list of numeric columns"
    )
    return "columns"


def _feature_columns(kind: str, names: Sequence[str]) -> list[Column]:
    if kind == "columns":
        return [_column(name).cast("double") for name in names]
    if kind == "array":
        return [_column(names[0]).cast("array<double>")]
    vector = F.unwrap_udt(_column(names[0]))
    # A column of null lists goes to Arrow at a fifth of the speed of one of empty lists: 110
    # against 530 MB/s here for 500,000 dense vectors of 100, whose indices are null.
    indices = F.coalesce(vector.getField("indices"), F.array().cast("array<int>"))
    values = F.coalesce(vector.getField("values"), F.array().cast("array<double>"))
    return [vector.getField("type"), vector.getField("size"), indices, values]


def _column(name: str) -> Column:
    """The column of this very name: without quotes a dot in it would mean a field of a struct."""
    return F.col("`" + name.replace("`", "``") + "`")


def ingested_dataframe(
    df: DataFrame,
    features: str | Sequence[str],
    scalars: Sequence[str],
    name: str,
    dtype: np.dtype[Any],
    problems: Sequence[str] = (),
) -> RDD[Any]:
    """Ingest the batches of each partition, and give a row that has its handle.

    Raises
    ------
    InvalidCall
        If a column is missing or of the wrong type, with the ``problems`` that are known.
    """
    columns, plan = plan_columns("from_dataframe", df, features, scalars, problems)

    def ingest(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        assert context is not None
        handle = keep(plan.blocks(batches), name, context.partitionId(), dtype)
        yield pa.RecordBatch.from_pydict({"handle": [json.dumps(handle)]})

    flat = df.select(*(column.alias(f"c{i}") for i, column in enumerate(columns)))
    settings = _AS_FOR_RDDS | _batch_limits(df, features)
    with _settings(df.sparkSession, settings):
        return flat.mapInArrow(ingest, "handle string").rdd


def _batch_limits(df: DataFrame, features: str | Sequence[str]) -> dict[str, str]:
    """Leave out Spark's look at the size of a batch after each row, where the schema bounds it.

    The whole query is planned with it: where Python has a part in that already, it stays.
    """
    plan = df._jdf.queryExecution().optimizedPlan().toString()
    if any(name in plan for name in _OF_PYTHON):
        return {}
    known, conf = _n_features(df, features), df.sparkSession._jsparkSession.sessionState().conf()
    rows, limit = conf.arrowMaxRecordsPerBatch(), conf.arrowMaxBytesPerBatch()
    if known is None or not 0 < rows * known * _BYTES_OF_A_NUMBER <= limit:
        return {}
    return {"spark.sql.execution.arrow.maxBytesPerBatch": _NO_LIMIT}


def _n_features(df: DataFrame, features: str | Sequence[str]) -> int | None:
    """Features of a row, where the schema tells: columns, or what MLlib notes with vectors."""
    if not isinstance(features, str):
        return len(features)
    notes = df.schema[features].metadata
    known = notes.get("ml_attr", notes).get("num_attrs", notes.get("numFeatures"))
    return known if isinstance(known, int) else None


@contextmanager
def _settings(session: SparkSession, settings: Mapping[str, str]) -> Iterator[None]:
    """Have settings of Spark SQL for an RDD that is made here: it keeps those that it finds."""
    with _one_at_a_time:  # two threads would take each other's settings for the session's own
        before = {name: session.conf.get(name, None) for name in settings}
        try:
            for name, value in settings.items():
                session.conf.set(name, value)
            yield
        finally:
            for name, was in before.items():
                session.conf.unset(name) if was is None else session.conf.set(name, was)


def handle_of_row(row: Any) -> Handle:
    """Read the handle in a row of :func:`ingested_dataframe`."""
    place, *rest = json.loads(row.handle)
    handle = Handle(Place(*place), *rest)
    return handle._replace(labels=None if handle.labels is None else tuple(handle.labels))

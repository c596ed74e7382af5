"""Sources: what each kind of input is turned into before it is ingested; on the driver."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, DTypeLike
from pyspark import RDD, SparkContext, TaskContext
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BooleanType, DataType, NumericType
from scipy.sparse import csr_array, issparse

from sparkdist.blocks import Array, Block, Matrix
from sparkdist.errors import InvalidCall, UnsupportedSession
from sparkdist.spark.failures import told_plainly
from sparkdist.spark.from_arrow import Columns
from sparkdist.spark.ingest import Handle, keep
from sparkdist.spark.jobs import run_job
from sparkdist.spark.network import context_of, has_stopped
from sparkdist.spark.residency import Place

__all__ = [
    "context_of_session",
    "describe",
    "find_count",
    "find_dtype",
    "handles_of_dataframe",
    "leaks",
    "plan_columns",
    "read_libsvm",
    "refuse_connect",
    "refuse_not_dataframe",
    "refuse_not_rdd",
    "slices_of_arrays",
]

_SLICE_BYTES = 64 << 20  # of what a task reads at once


def refuse_connect(source: Any) -> None:
    """Raise UnsupportedSession for an object of a Spark Connect client."""
    if type(source).__module__.startswith("pyspark.sql.connect"):
        raise UnsupportedSession(
            f"this {type(source).__name__} belongs to a Spark Connect session, which has no RDDs;"
            " sparkdist needs a classic session: SparkSession.builder.master(...) without"
            " .remote(...) and without SPARK_REMOTE in the environment"
        )


def context_of_session(caller: str, spark: Any, problems: Sequence[str] = ()) -> SparkContext:
    """Return the context of a session; raise InvalidCall for what is none, or was stopped."""
    refuse_connect(spark)
    start = "SparkSession.builder.getOrCreate()"
    if not isinstance(spark, SparkSession):
        problem = f"spark is {describe(spark)}; it must be a SparkSession: {start}"
    elif has_stopped(spark.sparkContext):
        problem = f"spark is a session that was stopped; {start} starts another"
    else:
        return spark.sparkContext
    raise InvalidCall(caller, [problem, *problems])


def find_count(value: Any, default: int, problems: list[str], what: str = "n_partitions") -> int:
    """Return a number of things, or the default for None; what is none is added to ``problems``."""
    if value is None:
        return default
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        problems.append(f"{what} must be a whole number of at least 1; it is {value!r}")
        return default
    return int(value)


def find_dtype(dtype: Any, problems: list[str], what: str = "dtype") -> np.dtype[Any]:
    """Return float32 or float64; what is neither is added to ``problems``."""
    # By name, because np.dtype() makes float64 of None.  A dtype has a name, np.float32 a __name__.
    name = getattr(dtype, "name", getattr(dtype, "__name__", dtype))
    if not isinstance(name, str) or name not in ("float64", "float32"):
        problems.append(f"{what} must be 'float64' or 'float32'; it is {dtype!r}")
        name = "float64"
    return np.dtype(name)


def refuse_not_rdd(rdd: Any, problems: Sequence[str] = ()) -> None:
    """Raise InvalidCall for what is not an RDD, and for what else is wrong with the call."""
    refuse_connect(rdd)
    if not isinstance(rdd, RDD):
        problem = f"an RDD is needed, not {describe(rdd)}; for a DataFrame use from_dataframe"
        problems = [problem, *problems]
    elif has_stopped(context_of(rdd)):
        problems = ["the session of the RDD was stopped", *problems]
    if problems:
        raise InvalidCall("from_rdd", problems)


def refuse_not_dataframe(df: Any, problems: Sequence[str] = ()) -> None:
    """Raise InvalidCall for what is not a DataFrame of Spark, with the other ``problems``."""
    refuse_connect(df)
    if not isinstance(df, DataFrame):
        problem = f"a DataFrame of Spark is needed, not {describe(df)}"
        raise InvalidCall("from_dataframe", [problem, *problems])
    if has_stopped(context_of(df)):
        raise InvalidCall("from_dataframe", ["the session of the DataFrame was stopped", *problems])


def describe(data: Any) -> str:
    """Say what somebody gave in place of something, and what to do with a pandas DataFrame."""
    kind = type(data)
    if kind.__module__.startswith("pandas"):
        return f"a pandas {kind.__name__}: make it Spark's with spark.createDataFrame(...)"
    return f"a {kind.__name__}"


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


def leaks(names: Sequence[str], scalars: Sequence[str]) -> list[str]:
    """Find labels and weights that are among the features."""
    return [
        f"column {name!r} is label or weight, and a feature" for name in scalars if name in names
    ]


def _missing(df: DataFrame, names: Sequence[str]) -> list[str]:
    return [
        f"there is no column {name!r}; there are {', '.join(df.columns)}"
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


def handles_of_dataframe(
    df: DataFrame, columns: Sequence[Column], plan: Columns, name: str, dtype: np.dtype[Any]
) -> RDD[Handle]:
    """Ingest the batches of each partition, and give its handle."""

    def ingest(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        assert context is not None
        handle = keep(plan.blocks(batches), name, context.partitionId(), dtype)
        yield pa.RecordBatch.from_pydict({"handle": [json.dumps(handle)]})

    flat = df.select(*(column.alias(f"c{i}") for i, column in enumerate(columns)))
    return flat.mapInArrow(ingest, "handle string").rdd.map(_handle_of_row)


def _handle_of_row(row: Any) -> Handle:
    place, *rest = json.loads(row.handle)
    handle = Handle(Place(*place), *rest)
    return handle._replace(labels=None if handle.labels is None else tuple(handle.labels))


def read_libsvm(
    spark: SparkSession,
    path: str,
    n_features: int | None,
    n_partitions: int | None = None,
    problems: Sequence[str] = (),
) -> DataFrame:
    """Read LIBSVM text with Spark's own reader, unless there are ``problems``.

    The columns are label and features.
    """
    problems = list(problems)
    context = context_of_session("from_libsvm", spark, problems)
    find_count(n_features, 1, problems, "n_features")
    find_count(n_partitions, 1, problems)
    if problems:
        raise InvalidCall("from_libsvm", problems)
    reader = spark.read.format("libsvm")
    if n_features is not None:
        reader = reader.option("numFeatures", n_features)
    with told_plainly("reading LIBSVM text"):  # without n_features this is a pass over the text
        df = run_job(context, lambda: reader.load(path))
    return df if n_partitions is None else df.repartition(n_partitions)


def slices_of_arrays(
    X: Matrix,
    y: ArrayLike,
    weight: ArrayLike | None,
    n_partitions: int,
    problems: Sequence[str] = (),
) -> Iterator[Block]:
    """Cut the rows of arrays, in order, into as many slices for each partition; some may be empty.

    ``problems`` are what is known to be wrong with the call.  Float32 stays as it is.
    """
    problems = list(problems)
    kind = np.float32 if getattr(X, "dtype", None) == np.float32 else np.float64
    X = csr_array(X) if issparse(X) else _numbers("X", X, kind, problems)
    y = _numbers("y", y, np.float64, problems)
    weight = np.ones(y.shape) if weight is None else _numbers("weight", weight, y.dtype, problems)
    if X.ndim != 2 or y.ndim != 1 or X.shape[0] != len(y):
        problems.append(f"X must be (n, d) and y (n,); they are {X.shape} and {y.shape}")
    if weight.shape != y.shape:
        problems.append(f"weight must have the shape of y, {y.shape}; it is {weight.shape}")
    if problems:
        raise InvalidCall("from_arrays", problems)
    # Of float64: how rows are cut does not depend on how they come, nor do then sums.
    n_bytes = X.data.nbytes if issparse(X) else 8 * X.size
    n_slices = n_partitions * (n_bytes // (n_partitions * _SLICE_BYTES) + 1)
    edges = np.linspace(0, len(y), n_slices + 1).astype(int)
    cuts = [slice(start, stop) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    return (Block(X[cut], y[cut], weight[cut]) for cut in cuts)


def _numbers(name: str, values: Any, kind: DTypeLike, problems: list[str]) -> Array:
    """Return an array of numbers; what cannot be made one is added to ``problems``."""
    try:
        return np.asarray(values, dtype=kind)
    except (TypeError, ValueError) as error:
        problems.append(f"{name} is {describe(values)}, and not an array of numbers: {error}")
        return np.empty((0, 0) if name == "X" else 0)

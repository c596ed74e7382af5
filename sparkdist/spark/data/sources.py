"""Sources: what each kind of input is turned into before it is ingested; on the driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from pyspark import RDD, SparkContext
from pyspark.sql import DataFrame, SparkSession
from scipy.sparse import csr_array, issparse

from sparkdist.blocks import Array, Block, Matrix, reals
from sparkdist.errors import InvalidCall, UnsupportedSession
from sparkdist.spark.failures import told_plainly
from sparkdist.spark.jobs import run_job
from sparkdist.spark.network import context_of, has_stopped

__all__ = [
    "context_of_session",
    "describe",
    "find_count",
    "find_dtype",
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
    if X.dtype.kind in "cO":
        problems.append(f"X is a sparse matrix of {X.dtype}, and not of numbers")
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
        return reals(values, kind)
    except (TypeError, ValueError) as error:
        problems.append(f"{name} is {describe(values)}, and not an array of numbers: {error}")
        return np.empty((0, 0) if name == "X" else 0)

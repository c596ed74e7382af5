"""Options that say what the data is, and its reading."""

from __future__ import annotations

import argparse
import re
from typing import Any

__all__ = ["FORMATS", "add_labels", "add_source", "expect_pattern", "open_dataset"]

#: Those of ``read_dataset``, which knows them only with PySpark.
FORMATS = ("libsvm", "parquet", "csv")

#: What Spark says of a sparse vector with more features than it was told of.
_TOO_WIDE = re.compile(r"out of bounds for vector of size|exceeds the specified vector size")


def add_source(group: Any, example: str, features: str) -> None:
    """Add where the rows are, and which columns are their features."""
    group.add_argument(
        "--data", required=True, help=f"path or glob, or an embedded name: {example}"
    )
    group.add_argument("--format", choices=FORMATS, help="default: as the suffix says, else libsvm")
    group.add_argument("--features", type=_columns, help=features)


def add_labels(group: Any) -> None:
    """Add what only training reads, and how it keeps the rows."""
    group.add_argument(
        "--label", default="label", help="column of the label (default: %(default)s)"
    )
    group.add_argument("--weight", help="column of the rows' weights (default: all 1)")
    group.add_argument("--n-features", type=int, help="of LIBSVM files; saves a pass over the text")
    group.add_argument("--partitions", type=int, help="into how many the data is dealt")
    group.add_argument(
        "--dtype",
        choices=("float64", "float32"),
        default="float64",
        help="of the features (default: %(default)s); float32 halves the space of dense rows and"
        " the time of a pass, and knows the objective to 1e-8 of its size",
    )


def _columns(text: str) -> str | list[str]:
    """One column, or several that are separated by commas."""
    return text.split(",") if "," in text else text


def open_dataset(spark: Any, options: argparse.Namespace, data: str) -> Any:
    """Ingest train or test data as the options say."""
    import sparkdist
    from sparkdist.errors import InvalidCall, PassFailed

    expect_pattern(spark, data)
    try:
        return sparkdist.read_dataset(
            spark,
            data,
            options.format,
            features=options.features,
            label=options.label,
            weight=options.weight,
            n_features=options.n_features,
            n_partitions=options.partitions,
            dtype=options.dtype,
        )
    except PassFailed as error:
        if not _TOO_WIDE.search(str(error)):
            raise
        more = f"{data!r} has more than {options.n_features} features"
        todo = "say with --n-features how many there are in all"
        raise InvalidCall("train", [f"{more}: {todo}"]) from error


def expect_pattern(spark: Any, data: str) -> None:
    """Keep Spark from looking for a folder that is called as a pattern: it logs a page of Java."""
    if set(data) & set("*?[{"):
        spark.conf.set("spark.sql.streaming.fileStreamSink.ignoreMetadata", "true")

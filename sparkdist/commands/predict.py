"""Score data with a saved model, and write or show the predictions.

python -m sparkdist predict --model model --data a9a-test --output predictions.parquet
"""

from __future__ import annotations

import argparse
from typing import Any

from sparkdist.commands import _data, _session

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("--model", required=True, help="folder that train wrote")
    several = "vector or array column, or several: a,b,c (default: as in training)"
    _data.add_source(parser, "a9a-test", several)
    parser.add_argument(
        "--output", help="where to write: .csv, else Parquet; without it ten rows are shown"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    _session.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Score; the exit status is 2 if that cannot be done."""
    return _session.with_spark("predict", options, predict)


def predict(spark: Any, options: argparse.Namespace) -> int:
    """Read, score, and write or show."""
    import sparkdist

    model = sparkdist.load(options.model)
    _data.expect_pattern(spark, options.data)
    df = sparkdist.read_dataframe(spark, options.data, options.format, n_features=model.n_features)
    if not options.output:
        # Ten rows before scoring: a Python worker that is not read to its end logs a broken pipe.
        # Embedded rows, which are few, come from such workers themselves.
        embedded = options.data.partition("-")[0] in sparkdist.datasets.names()
        rows = df.collect()[:10] if embedded else df.limit(10).collect()
        df = spark.createDataFrame(rows, df.schema)
    scored = model.predict(df, features=options.features)
    new = [name for name in scored.columns if name not in df.columns]
    if not options.output:
        scored.select(*(["label"] if "label" in df.columns else []), *new).show()
        return 0
    write(scored, options.output, options.overwrite)
    print(f"\n{', '.join(new)} of {options.data} by {options.model}: {options.output}\n")
    return 0


def write(scored: Any, path: str, overwrite: bool) -> None:
    """Write Parquet, or CSV without the columns that it cannot hold."""
    mode = "overwrite" if overwrite else "errorifexists"
    if not path.endswith(".csv"):
        scored.write.mode(mode).parquet(path)
        return
    types = {field.name: field.dataType.simpleString() for field in scored.schema}
    nested = [name for name, kind in types.items() if "<" in kind or kind in ("vector", "udt")]
    scored.drop(*nested).write.mode(mode).csv(path, header=True)

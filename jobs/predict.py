"""Score data with a saved model with spark-submit.

spark-submit jobs/predict.py --model model --data a9a-test --output predictions.parquet
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

logger = logging.getLogger("sparkdist.predict")


def columns(text: str) -> str | list[str]:
    """One column, or several that are separated by commas."""
    return text.split(",") if "," in text else text


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder that train.py wrote")
    parser.add_argument("--data", required=True, help="path or glob, or an embedded name: a9a-test")
    parser.add_argument(
        "--format",
        choices=("libsvm", "parquet", "csv"),
        help="default: as the suffix says, else libsvm",
    )
    parser.add_argument(
        "--features",
        type=columns,
        help="vector or array column, or several: a,b,c (default: as in training)",
    )
    parser.add_argument(
        "--output", help="where to write: .csv, else Parquet; without it ten rows are shown"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the job."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    # Not at the top: --help then needs neither Spark nor Java.
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    from sparkdist.errors import SparkdistError

    spark = SparkSession.builder.appName("sparkdist predict").getOrCreate()
    try:
        return predict(spark, options)
    except (SparkdistError, PySparkException) as error:  # as for a path that is not there
        logger.error("%s", error)
        return 2
    finally:
        spark.stop()


def predict(spark: Any, options: argparse.Namespace) -> int:
    """Read, score, and write or show."""
    import sparkdist

    model = sparkdist.load(options.model)
    df = sparkdist.read_dataframe(spark, options.data, options.format, n_features=model.n_features)
    if not options.output:
        df = df.limit(10)  # before scoring: a show() that stops half-way breaks the worker's pipe
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


if __name__ == "__main__":
    sys.exit(main())

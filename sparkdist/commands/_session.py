"""What the verbs that need Spark share: options of the session, its start, and errors."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["add_arguments", "said", "start", "with_spark"]

#: A line that begins with an exception: of Python, or as py4j shows one of Java.
_EXCEPTION = re.compile(r"^(?:: )?((?:\w+\.)*\w*(?:Error|Exception|Failed|Died)\b.*)$", re.M)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the session."""
    group = parser.add_argument_group("Spark")
    group.add_argument(
        "--master", help="local[4], spark://host:7077 ... (default: as configured, else local[*])"
    )
    group.add_argument(
        "--conf",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="a setting of Spark; may be repeated",
    )
    group.add_argument(
        "--verbose", action="store_true", help="say on standard error what is decided and done"
    )


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def start(name: str, options: argparse.Namespace) -> Any:
    """Start the session that the options describe, or take the one that there is."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName(name)
    if options.master:
        builder = builder.master(options.master)
    for key, value in options.conf:
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    context: Any = spark.sparkContext
    local = str(context.master).split("[")[0] == "local"
    if local and "PYSPARK_PYTHON" not in os.environ:
        # Spark would run whatever python3 is on the PATH, and not that of a virtual environment.
        context.pythonExec = sys.executable
    return spark


def with_spark(
    verb: str,
    options: argparse.Namespace,
    work: Callable[[Any, argparse.Namespace], int],
    check: Callable[[argparse.Namespace], None] = lambda _: None,
) -> int:
    """Check the options, then do the work in a session; what is wrong is a message and a 2."""
    logger = logging.getLogger(f"sparkdist.{verb}")
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    if options.verbose:
        logging.getLogger("sparkdist").setLevel(logging.INFO)
    # Not at the top: --help then needs neither Spark nor Java.
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    from sparkdist.errors import SparkdistError

    try:
        check(options)
        spark = start(f"sparkdist {verb}", options)
        try:
            return work(spark, options)
        finally:
            spark.stop()
    except (SparkdistError, PySparkException, OSError) as error:  # as for a path that is not there
        logger.error("%s", error)
    except Py4JError as error:  # as for a master that nobody can parse
        logger.error("%s", said(error))
    return 2


def said(error: BaseException) -> str:
    """The one line of an error that says what happened: tracebacks and Java's stacks are long."""
    text = str(error).strip()
    found = _EXCEPTION.findall(text.rpartition("Traceback (most recent call last):")[2])
    line = found[0] if found else text.partition("\n")[0]
    return line or type(error).__name__

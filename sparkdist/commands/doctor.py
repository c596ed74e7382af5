"""Look for what would keep sparkdist from working, on driver and executors, and say what to do.

python -m sparkdist doctor --master spark://host:7077
"""

from __future__ import annotations

import argparse
import functools
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

from sparkdist.commands import _session
from sparkdist.commands._finding import FIX, OK, Finding

__all__ = ["add_arguments", "as_text", "examine", "run"]

_LOOK_ABOVE = "look at the lines above, and at what Spark says on standard error"
_NO_ANSWER = (
    "Spark's web page tells whether there are workers with the cores and the memory that are asked"
    " for, and the logs there why a task failed"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        help="seconds that executors have for their answer (default: %(default)g)",
    )
    _session.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print a line for each finding; the exit status is 1 if something must be fixed."""
    width = shutil.get_terminal_size((100, 24)).columns
    n_wrong = 0
    for finding in examine(options):
        print(as_text(finding, width), flush=True)
        n_wrong += finding.level == FIX
    print(f"\n{n_wrong or 'nothing'} to fix")
    return 1 if n_wrong else 0


def as_text(finding: Finding, width: int) -> str:
    """Level, what it is about, what was found; below it what to do."""
    head, rest = f"{finding.level:<5}{finding.about:<11}", " " * 16
    text = textwrap.fill(
        finding.found, max(width, 40), initial_indent=head, subsequent_indent=rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    if not finding.todo:
        return text
    return f"{text}\n" + textwrap.fill(
        finding.todo, max(width, 40), initial_indent=f"{rest}-> ", subsequent_indent=f"{rest}   ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def examine(options: argparse.Namespace) -> Iterator[Finding]:
    """Make all checks, in order; one that raises is a finding itself."""
    try:
        from sparkdist.commands import _facts, _findings
    except ImportError as error:
        yield Finding(FIX, "packages", str(error), "pip install sparkdist brings what it needs")
        return
    yield from _guarded("Python", lambda: _findings.of_python(_facts.find_installation()))
    yield from _guarded("Java", lambda: _findings.of_java(_facts.find_java()))
    yield from _guarded("Spark", lambda: _findings.of_spark(_facts.find_installation()))
    yield from _guarded("packages", lambda: _findings.of_packages(_facts.find_installation()))
    opened: list[Any] = []
    yield from _guarded("session", lambda: _open(options, opened))
    if not opened:
        return
    asked: list[Any] = []
    (spark,) = opened
    try:
        yield from _guarded(
            "executors", lambda: _ask(spark.sparkContext, options.patience, asked), _NO_ANSWER
        )
        for about, check in _findings.OF_CLUSTER.items() if asked else ():
            yield from _guarded(about, functools.partial(check, *asked))
    finally:
        spark.stop()


def _open(options: argparse.Namespace, opened: list[Any]) -> list[Finding]:
    """Start a session, and put it into the list."""
    from sparkdist.spark.network import driver_host

    began = time.perf_counter()
    # Spark's own bars would stand in the lines of the report.
    options.conf = [("spark.ui.showConsoleProgress", "false"), *options.conf]
    spark = _session.start("sparkdist doctor", options)
    opened.append(spark)
    took, host = time.perf_counter() - began, driver_host(spark.sparkContext)
    return [Finding(OK, "session", f"Spark {spark.version} in {took:.1f} s, the driver is {host}")]


def _ask(context: Any, patience: float, asked: list[Any]) -> list[Finding]:
    """Ask the executors, and put the cluster into the list."""
    from sparkdist.commands._facts import ask_cluster

    asked.append(ask_cluster(context, patience))
    return []


def _guarded(
    about: str, check: Callable[[], list[Finding]], todo: str = _LOOK_ABOVE
) -> list[Finding]:
    """Make a check; what it raises becomes a finding."""
    try:
        return check()
    except (Exception, SystemExit) as error:  # PySpark leaves where it finds no Spark
        return [Finding(FIX, about, _session.said(error), todo)]

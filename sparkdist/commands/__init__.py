"""The commands of ``python -m sparkdist``, one verb a file; jobs/ hands the same to spark-submit.

A verb has ``add_arguments(parser)`` and ``run(options)``, which returns the exit status.  What
needs Spark or NumPy is imported when it runs, so that ``--help`` needs neither, and no Java.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

__all__ = ["VERBS", "main", "run"]

VERBS = ("train", "predict", "methods", "doctor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m sparkdist VERB ...``; by default with the arguments of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m sparkdist", description="Train, predict, look around, look for faults."
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        command = _command(verb)
        about = (command.__doc__ or "").replace("``", "")
        added = verbs.add_parser(
            verb,
            help=about.partition("\n")[0],
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(added)
    options = parser.parse_args(arguments)
    return _command(options.verb).run(options)


def run(verb: str, arguments: Sequence[str] | None, *, prog: str, about: str | None) -> int:
    """Run one verb as a job: ``prog`` and ``about`` are what its help calls it."""
    parser = argparse.ArgumentParser(
        prog=prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command = _command(verb)
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def _command(verb: str) -> Any:
    return importlib.import_module(f"sparkdist.commands.{verb}")


class _Version(argparse.Action):
    """Show the version, which is looked up only then: that takes longer than all other options."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import sparkdist

        print(f"sparkdist {sparkdist.__version__}")
        parser.exit()

"""What a failed job says to the user, and what is said of one that would fail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.cloudpickle import dumps
from pyspark.errors import AnalysisException, PySparkException

from sparkdist.errors import PassFailed

__all__ = ["cannot_travel", "told_plainly"]

_TRACEBACK = re.compile(
    r"Traceback \(most recent call last\):\n.*?(?=\n\s*(?:SQLSTATE|at [\w.$/<>]+\()|\Z)", re.S
)
_FRAME_OF_SPARK = re.compile(r'  File "[^"]*/(?:pyspark|pyspark\.zip)/.*\n(?:    .*\n)*')


def cannot_travel(what: str, code: Any) -> list[str]:
    """Say why it cannot be pickled, if it cannot: it has to go to other processes."""
    try:
        dumps(code)  # type: ignore[no-untyped-call]
    except Exception as error:  # pickling runs code of the user's own
        cure = "it may use arrays and numbers of its surroundings, and no session, file or lock"
        return [f"{what} cannot travel to the workers: {error}; {cure}"]
    return []


@contextmanager
def told_plainly(what: str) -> Iterator[None]:
    """Turn what Spark raises for a failed job into PassFailed: the task's traceback, not the JVM's.

    An AnalysisException is left as it is: no job has run, and it says in a line what is wrong.
    """
    try:
        yield
    except AnalysisException:
        raise
    except (Py4JJavaError, PySparkException) as error:
        java = getattr(error, "java_exception", None)
        text = str(error if java is None else java)
        raise PassFailed(f"{what} failed on the executors:\n{_tell(text)}") from error


def _tell(text: str) -> str:
    """Keep the last traceback of a message, without Spark's own frames; else its first line."""
    found = _TRACEBACK.findall(text)
    return _FRAME_OF_SPARK.sub("", found[-1]).rstrip() if found else text.splitlines()[0]

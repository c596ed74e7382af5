"""The exceptions of sparkdist, drawn as a tree.

::

    SparkdistError
     +-- InvalidCall (ValueError)        arguments that cannot work, all problems of a call at once
     +-- BadData (ValueError)            rows that cannot be used, with partition and row
     +-- UnsupportedSession (TypeError)  Spark Connect: there are no RDDs
     +-- PassFailed (RuntimeError)       a task failed on the executors, with its own traceback
     +-- ModelFileError (ValueError)     a model folder that is missing, foreign or damaged
"""

from collections.abc import Sequence

__all__ = [
    "BadData",
    "InvalidCall",
    "ModelFileError",
    "PassFailed",
    "SparkdistError",
    "UnsupportedSession",
]


class SparkdistError(Exception):
    """Base of every exception that sparkdist raises on purpose."""


class InvalidCall(SparkdistError, ValueError):
    """A call whose arguments cannot work; ``problems`` holds one sentence for each."""

    def __init__(self, caller: str, problems: Sequence[str]):
        self.caller, self.problems = caller, tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  - ".join([f"{caller}: {count}", *problems]))

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...]]]:
        return type(self), (self.caller, self.problems)


class BadData(SparkdistError, ValueError):
    """Rows that cannot be used: not finite, null, of another length, or with a wrong label."""


class UnsupportedSession(SparkdistError, TypeError):
    """The session is a Spark Connect client, which has no RDDs."""


class ModelFileError(SparkdistError, ValueError):
    """A model folder is missing, was written by something else, or is damaged."""


class PassFailed(SparkdistError, RuntimeError):
    """A pass over the data failed on the executors after Spark's own retries."""

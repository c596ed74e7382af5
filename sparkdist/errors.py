"""The exceptions of sparkdist, drawn as a tree.

::

    SparkdistError
     +-- InvalidCall (ValueError)        arguments that cannot work, all problems of a call at once
     +-- BadData (ValueError)            rows that cannot be used, with partition and row
     +-- UnsupportedSession (TypeError)  Spark Connect: there are no RDDs
     +-- PassFailed (RuntimeError)       a task failed on the executors, with its own traceback
     +-- ModelFileError (ValueError)     a model folder that is missing, foreign or damaged
     +-- ServerError (RuntimeError)      the model server
          +-- DecodeError                bytes that are no frame
          +-- BadGradient                a push that does not fit the model, or is not finite
          +-- WrongToken                 a request without this run's token
          +-- StaleRun                   a request of a run that is over
          +-- ServerUnavailable          no answer before the deadline
          +-- ServerDied                 it died more often than it may be started again
          +-- CheckpointError            a checkpoint that is damaged or cannot be written
          +-- WorkersMissing             a worker that everybody waits for did not come
"""

from collections.abc import Sequence

__all__ = [
    "BadData",
    "BadGradient",
    "CheckpointError",
    "DecodeError",
    "InvalidCall",
    "ModelFileError",
    "PassFailed",
    "ServerDied",
    "ServerError",
    "ServerUnavailable",
    "SparkdistError",
    "StaleRun",
    "UnsupportedSession",
    "WorkersMissing",
    "WrongToken",
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


class ServerError(SparkdistError, RuntimeError):
    """Something about the model server."""


class DecodeError(ServerError):
    """Bytes that are not one whole, undamaged frame."""


class BadGradient(ServerError):
    """A push that does not fit the model, or is not finite; the message names partition and key."""

    def __init__(self, message: str, reason: str = "misfit"):
        super().__init__(message, reason)
        self.message, self.reason = message, reason

    def __str__(self) -> str:
        return self.message


class WrongToken(ServerError):
    """A request without the token of this run."""


class StaleRun(ServerError):
    """A request of a run that is over, or of another server."""


class ServerUnavailable(ServerError):
    """No answer from the server before the deadline; the message names host and port."""


class ServerDied(ServerError):
    """The server process died more often than it may be started again."""


class CheckpointError(ServerError):
    """A checkpoint that is damaged, foreign, or cannot be written; the message names the path."""


class WorkersMissing(ServerError):
    """Workers that everybody waits for did not come: there are too few task slots."""

"""Jobs: a Spark job in a thread of its own, so that whoever waits for it can be interrupted."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

from pyspark import InheritableThread, SparkContext

from sparkdist.spark.first_task import FirstTask

__all__ = ["run_job"]

_LOOK_SECONDS = 0.2
T = TypeVar("T")


def _nothing() -> None:
    return None


def run_job(
    context: SparkContext,
    job: Callable[[], T],
    look: Callable[[], BaseException | None] = _nothing,
    patience: float | None = None,
) -> T:
    """Run a job in a thread of its own, while ``look`` is called again and again.

    An exception that ``look`` returns, Ctrl-C, and the stop button of a notebook cancel the job:
    no task of it is left.  A job in the thread that is interrupted would run on, and py4j would
    have cut the connection on which it could be told to stop.

    A job that gets no task slot is warned of; where there is no executor for ``patience``
    seconds, it ends with WorkersMissing.
    """
    tag, done, failed = f"sparkdist-{uuid.uuid4().hex[:12]}", list[T](), list[BaseException]()
    # Not is_alive(): up to Python 3.12 a join that is interrupted marks the thread as ended.
    ended = threading.Event()
    first = FirstTask(context, tag, patience)

    def run() -> None:
        try:
            context.addJobTag(tag)
            done.append(job())
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    InheritableThread(target=run, daemon=True).start()
    verdict: BaseException | None = None
    try:
        while verdict is None and not ended.is_set():
            ended.wait(_LOOK_SECONDS)
            verdict = look() or first.look()
    finally:
        deadline = time.monotonic() + 30
        while not ended.is_set() and time.monotonic() < deadline:
            context.cancelJobsWithTag(tag)
            ended.wait(_LOOK_SECONDS)
    if verdict is not None:
        raise verdict
    if failed:
        raise failed[0]
    return done[0]

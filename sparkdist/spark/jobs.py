"""Jobs: a Spark job in a thread of its own, so that whoever waits for it can be interrupted."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

from pyspark import InheritableThread, SparkContext

__all__ = ["interruptible", "run_job"]

_LOOK_SECONDS = 0.2
T = TypeVar("T")


def _nothing() -> None:
    return None


def run_job(
    context: SparkContext,
    job: Callable[[], T],
    look: Callable[[], BaseException | None] = _nothing,
) -> T:
    """Run a job in a thread of its own, while ``look`` is called again and again.

    An exception that ``look`` returns, Ctrl-C, and the stop button of a notebook cancel the job:
    no task of it is left.  A job in the thread that is interrupted would run on, and py4j would
    have cut the connection on which it could be told to stop.
    """
    tag, done, failed = f"sparkdist-{uuid.uuid4().hex[:12]}", list[T](), list[BaseException]()
    # Not is_alive(): up to Python 3.12 a join that is interrupted marks the thread as ended.
    ended = threading.Event()

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
            verdict = look()
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


def interruptible(context: SparkContext, job: Callable[[], T]) -> T:
    """Run a job so that Ctrl-C cancels it; Python interrupts its main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        return job()
    return run_job(context, job)

"""How many Spark jobs ran."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark import SparkContext


@contextmanager
def counted_jobs(context: SparkContext) -> Iterator[list[int]]:
    """Give a list that holds the ids of the jobs of the ``with`` when it has ended."""
    group, ids = f"count-{uuid.uuid4().hex}", []
    context.setJobGroup(group, "a test")
    try:
        yield ids
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)
        # The tracker hears of jobs through a queue.
        context._jsc.sc().listenerBus().waitUntilEmpty()
        ids += context.statusTracker().getJobIdsForGroup(group)

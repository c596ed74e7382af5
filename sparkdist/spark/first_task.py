"""FirstTask: whether Spark has given a job a task slot at all, and what to do if it has not."""

from __future__ import annotations

import logging
import time

from pyspark import SparkContext

from sparkdist.errors import WorkersMissing
from sparkdist.spark.network import n_executors

__all__ = ["FirstTask"]

logger = logging.getLogger(__name__)

#: Seconds without a task until the first warning, and between two later ones.
_FIRST, _AGAIN = 30.0, 600.0
#: Spark may note a task that has started with the next heartbeat only, which come every 10 s: it
#: must be missing twice, so far apart.
_APART = 12.0


class FirstTask:
    """Watches over the jobs of a tag until one of their tasks has started.

    Spark itself waits for executors for ever, and says so in the log of the JVM alone.

    Parameters
    ----------
    context, tag
        Where the jobs run, and how they are known.
    patience
        Seconds after which a cluster without a single executor ends the wait; None for never.
    """

    def __init__(self, context: SparkContext, tag: str, patience: float | None = None):
        self._context, self._tag = context, tag
        self._began, self._wait, self._suspected = time.monotonic(), _FIRST - _APART, False
        self._patience = float("inf") if patience is None else patience
        self._started = False

    def look(self) -> WorkersMissing | None:
        """Warn if no task has started for too long; return what must end the wait."""
        seconds = time.monotonic() - self._began
        if self._started or seconds < min(self._wait, self._patience):
            return None
        self._started, submitted = self._progress()
        if self._started or not submitted:
            return None
        if seconds >= self._patience and not n_executors(self._context):
            return WorkersMissing(f"{self._facts(seconds)} {self._cure()}")
        if seconds >= self._wait and self._suspected:
            self._wait = seconds + _AGAIN
            logger.warning("%s %s", self._facts(seconds), self._cure())
        elif seconds >= self._wait:
            self._wait, self._suspected = seconds + _APART, True
        return None

    def _progress(self) -> tuple[bool, bool]:
        """Whether a task has started, and whether there is a job to have any."""
        tracker = self._context.statusTracker()
        # Not in PySpark's own tracker, which knows groups only.
        ids = self._context._jsc.sc().statusTracker().getJobIdsForTag(self._tag)
        jobs = [job for job in map(tracker.getJobInfo, ids) if job]
        stages = [tracker.getStageInfo(stage) for job in jobs for stage in job.stageIds]
        known = [stage for stage in stages if stage]
        started = any(s.numActiveTasks + s.numCompletedTasks + s.numFailedTasks for s in known)
        return started, bool(jobs)

    def _facts(self, seconds: float) -> str:
        conf, infos = self._context.getConf(), self._context.statusTracker().getExecutorInfos()
        where = f"{conf.get('spark.driver.host')}:{conf.get('spark.driver.port')}"
        busy = sum(info.numRunningTasks for info in infos)
        return (
            f"Spark has started no task of this job for {seconds:.0f} s. The master is"
            f" {self._context.master}; live executors: {n_executors(self._context)}, running tasks:"
            f" {busy}; executors call the driver at {where} (spark.driver.host, spark.driver.port)."
        )

    def _cure(self) -> str:
        if n_executors(self._context):
            return "It waits for slots that other jobs have."
        conf = self._context.getConf()
        cores = conf.get("spark.executor.cores", "not set")
        memory = conf.get("spark.executor.memory", "1g")
        return (
            "If executors start and end again on the master's page, they cannot reach that address:"
            " set spark.driver.host to one that they can reach, and let them through the firewall."
            " If none starts, no worker has what each asks for: spark.executor.cores"
            f" ({cores}), spark.executor.memory ({memory})."
        )

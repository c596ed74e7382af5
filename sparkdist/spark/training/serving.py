"""Serving: the model server of a front door, and the Spark jobs that work with it."""

from __future__ import annotations

import functools
import html
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

from pyspark import RDD, SparkContext
from pyspark.cloudpickle import dumps

from sparkdist.blocks import Array
from sparkdist.client import Address
from sparkdist.consistency import Consistency
from sparkdist.errors import InvalidCall, PassFailed, ServerUnavailable, WorkersMissing
from sparkdist.layout import Layout
from sparkdist.progress import TrainingProgress
from sparkdist.result import TrainingHistory
from sparkdist.server import page
from sparkdist.server.rules import Rule, model_entries
from sparkdist.server.setup import Setup
from sparkdist.server.supervisor import Supervisor, reserve_port
from sparkdist.spark.network import (
    bind_host,
    driver_host,
    has_stopped,
    hosts_of,
    ports_of,
    task_slots,
)
from sparkdist.spark.training.recording import keep_record
from sparkdist.spark.training.server_options import ServerOptions
from sparkdist.spark.training.train import Loop, Plan, run_job, unreachable_from, work
from sparkdist.workers import Units

__all__ = ["Face", "Serving", "Watch"]

logger = logging.getLogger(__name__)

F = TypeVar("F", bound="Face")


class Serving:
    """A server process beside the driver, on an address that Spark's executors know.

    Parameters
    ----------
    w, layout, rule, consistency
        What the server holds, and how pushes change it.
    options
        How the process is kept, checked by the caller.
    push_bytes
        What the arrays of a push may take; by default what the parameters take.
    """

    def __init__(
        self,
        w: Array,
        layout: Layout,
        rule: Rule,
        consistency: Consistency,
        options: ServerOptions,
        push_bytes: int | None = None,
    ):
        self._state = (w, layout, rule, consistency)
        self._consistency, self._options, self._push_bytes = consistency, options, push_bytes
        self._entries = model_entries(layout, w.dtype.str)
        self._stack: ExitStack | None = None
        self._turn = threading.Lock()

    def __enter__(self) -> Serving:
        if self.running:
            raise InvalidCall("the model server", ["it runs already; leave its `with` first"])
        context = SparkContext._active_spark_context
        if context is None:
            problem = "there is no Spark session; make one first: it says where the driver is"
            raise InvalidCall("the model server", [problem])
        self.context, options = context, self._options
        host = driver_host(context)
        options.refuse_bypassed_encryption(context.getConf(), host)
        options.refuse_other_checkpoints(self._state[0], self._state[2])
        with ExitStack() as stack:
            ports = ports_of(options.port, [])
            held = stack.enter_context(reserve_port(bind_host(context, host), ports))
            bound, port = held.getsockname()[:2]
            self._where, self._token = (host, port), secrets.token_urlsafe(32)
            folder, leftovers = options.place(stack)
            setup = Setup(
                *self._state,
                host=bound,
                port=port,
                hosts=hosts_of(host, bound, port),
                token=self._token,
                folder=folder,
                push_bytes=self._push_bytes,
                **options.of_process(),
            )
            self._supervisor = stack.enter_context(
                Supervisor(setup, dumps, options.restarts, leftovers)
            )
            self._stack = stack.pop_all()
        self._resuming, self._calls, self._reached = options.resume is not None, 0, False
        self._page_was_told = False
        # Without the token: a log is kept for longer than a run, and read by others.
        logger.info("the live page of the model server is at %s", self._page(None))
        return self

    def __exit__(self, *error: object) -> None:
        if self._stack is not None:
            stack, self._stack = self._stack, None
            stack.close()

    @property
    def running(self) -> bool:
        """Whether the server has been started, and not stopped."""
        return self._stack is not None

    @property
    def supervisor(self) -> Supervisor:
        """The process.

        Raises
        ------
        InvalidCall
            If it is not running.
        """
        if self._stack is None:
            problem = "its server is not running; use it in a `with`"
            raise InvalidCall("the model server", [problem])
        return self._supervisor

    def _page(self, token: str | None) -> str:
        return page.address(*self._where, token, tls=self._options.certificate is not None)

    @property
    def page(self) -> str:
        """Address of the live page, with the token that opens it.

        Raises
        ------
        InvalidCall
            If the server is not running.
        """
        self.supervisor  # noqa: B018  # is it running?
        return self._page(self._token)

    def page_once(self) -> str | None:
        """The same for who shows it; None from the second time on."""
        told, self._page_was_told = self._page_was_told, True
        return None if told else self.page

    def use(self, rule: Any) -> None:
        """Change how pushes are applied; a run that is resumed keeps the state of its updater."""
        self.supervisor.use(rule, keep=self._resuming)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Refuse another run while this one goes on: it would end it.

        Raises
        ------
        InvalidCall
            In another thread's run, or in a callback of one; and without a session.
        """
        if has_stopped(self.context):
            problem = "the session that its server was started in was stopped; make a new server"
            raise InvalidCall("train", [problem])
        if not self._turn.acquire(blocking=False):
            problem = "a run of its server goes on; wait for its end, or make another server"
            raise InvalidCall("train", [problem])
        try:
            yield
        finally:
            self._turn.release()

    def parameters(self) -> tuple[int, Array]:
        """Version and a copy of the parameters."""
        return self.supervisor.ask("model")

    def status(self) -> dict[str, Any]:
        """The server's books."""
        return self.supervisor.ask("status")

    def states(self) -> dict[int, Array]:
        """What each worker has to know, by partition, of those that say so."""
        return self.supervisor.ask("states")

    def fit_to_slots(self, elements: RDD[Any]) -> RDD[Any]:
        """Make the partitions as few as can run at the same time, if they wait for each other."""
        if not self._consistency.waits:
            return elements
        slots = task_slots(self.context)
        return elements.coalesce(slots) if elements.getNumPartitions() > slots else elements

    def run(
        self,
        elements: RDD[Any],
        make_units: Callable[[int, Any], AbstractContextManager[Units]],
        loop: Loop,
        plan: dict[str, Any],
        watch: Watch,
    ) -> None:
        """Have a worker on each partition until its units are done.

        Parameters
        ----------
        elements
            The data; its partitions are the workers.
        make_units
            Makes a worker's units of the number and the elements of its partition.
        loop
            How a worker fetches, steps and pushes.
        plan
            What decides which unit is which: a checkpoint is continued under the same plan only.
        watch
            Sees the server's status several times a second.

        Raises
        ------
        PassFailed, ServerDied, ServerUnavailable, WorkersMissing, InvalidCall
        """
        supervisor, n_workers = self.supervisor, elements.getNumPartitions()
        run = self._begin(n_workers, plan, loop.state_bytes)
        if run is None:
            return
        watch.ran = True
        address = Address(*self._where, self._token, run, self._options.certificate_text())
        self._refuse_unreachable(address, loop.patience)
        for_workers = Plan(address, self._entries, make_units, loop)
        job = elements.mapPartitionsWithIndex(functools.partial(work, for_workers))
        look = functools.partial(self._look, watch, n_workers, loop.patience)
        try:
            watch.memories_lost = sum(run_job(self.context, job.collect, look))
        except StopIteration:
            watch.stopped = True
        except PassFailed as error:
            raise supervisor.died or self._with_fault(error) from error
        else:
            look()
            if self._options.record is not None:
                keep_record(supervisor, self._options.record, plan)

    def _begin(self, n_workers: int, plan: dict[str, Any], state_bytes: int) -> str | None:
        """Open a run, or go on with the one of the checkpoint that is resumed.

        A program that is resumed makes its calls again; None for those that were over.
        """
        self._calls += 1
        if self._calls > 1 and self._options.record is not None:
            problem = f"{self._options.record} holds one run; another one needs a server of its own"
            raise InvalidCall("train", [problem])
        wanted = {**plan, "workers": n_workers, "call": self._calls}
        run = secrets.token_hex(8)
        saved = self.status() if self._resuming else {"run": ""}
        if saved["run"]:
            of_saved = json.loads(saved["plan"])
            if of_saved["call"] > self._calls:
                return None
            _refuse_other_plan(of_saved, wanted)
            run = saved["run"]
        self._resuming = False
        self.supervisor.begin(run, n_workers, json.dumps(wanted), state_bytes)
        return run

    def _refuse_unreachable(self, address: Address, patience: float) -> None:
        if not self._reached and (problem := unreachable_from(self.context, address, patience)):
            raise ServerUnavailable(problem)
        self._reached = True

    def _with_fault(self, error: PassFailed) -> PassFailed:
        """Put the server's own traceback behind what the workers saw of it."""
        fault = self.supervisor.ask("fault")
        return PassFailed(f"{error}\n{fault}") if fault else error

    def _look(self, watch: Watch, n_workers: int, patience: float) -> BaseException | None:
        """See how the run is going; return what must end it."""
        if self.supervisor.died is not None:
            return self.supervisor.died
        status = self.status()
        watch.see(status)
        joined = len(status["workers"])
        if self._consistency.waits and joined < n_workers and watch.seconds > patience:
            return WorkersMissing(
                f"{n_workers} workers must run at the same time, and {joined} came within"
                f" {patience:g} s: Spark has too few free task slots"
            )
        return None


class Face:
    """What the front doors share: a server that lives as long as their ``with``."""

    _serving: Serving

    def __enter__(self: F) -> F:
        self._serving.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._serving.__exit__(*error)

    def status(self) -> dict[str, Any]:
        """The server's books: version, counts of pushes by fate, staleness, workers."""
        return self._serving.status()

    @property
    def page(self) -> str:
        """Address of the live page: open it in a browser while the server runs.

        The token in it opens the books of this server and nothing else: it can neither read nor
        change the parameters, and is worth nothing once the server has ended.

        Raises
        ------
        InvalidCall
            If the server is not running.
        """
        return self._serving.page

    def _repr_html_(self) -> str:
        """Show a link to the live page in a notebook."""
        name = html.escape(type(self).__name__)
        if not self._serving.running:
            return f"<p>{name}: its server is not running</p>"
        link = html.escape(self.page)
        return f'<p>{name}: <a href="{link}" target="_blank" rel="noreferrer">live page</a></p>'


class Watch:
    """Keeps the history of a run, shows it, and tells the user's callback.

    Parameters
    ----------
    bar
        What shows it.
    callback
        Called with the server's status; raising StopIteration ends the run.
    """

    def __init__(
        self, bar: TrainingProgress, callback: Callable[[dict[str, Any]], object] | None = None
    ):
        self._bar, self._callback, self._began = bar, callback, time.perf_counter()
        self.history, self.stopped, self.memories_lost = TrainingHistory(), False, 0
        #: There was a run: a program that is resumed makes calls again that were over.
        self.ran = False

    @property
    def seconds(self) -> float:
        """Wall time since the call."""
        return time.perf_counter() - self._began

    def see(self, status: dict[str, Any]) -> None:
        """Book a status."""
        self.history.append(self.seconds, status)
        self._bar.show(status)
        if self._callback is not None:
            self._callback(status)


def _refuse_other_plan(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    other = [
        f"{name} was {saved.get(name)!r} and is {wanted.get(name)!r}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if other:
        raise InvalidCall("resume: the run of the checkpoint was another one", other)

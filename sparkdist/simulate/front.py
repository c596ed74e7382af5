"""Front doors: simulate a training, or replay one that was recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from numpy.typing import ArrayLike

from sparkdist.codecs import Codec
from sparkdist.consistency import Consistency
from sparkdist.errors import InvalidCall
from sparkdist.fields import plain
from sparkdist.problem import Penalty
from sparkdist.result import Result
from sparkdist.server.record import Event, Recorder
from sparkdist.simulate.conditions import Conditions, Deaths, Network, Service
from sparkdist.simulate.engine import Engine
from sparkdist.simulate.latency import Latency, as_latency
from sparkdist.simulate.replay import Replay
from sparkdist.simulate.scene import Scene
from sparkdist.simulate.training import Training
from sparkdist.updaters import Damping, Updater
from sparkdist.workers import Worker

__all__ = ["replay", "simulate"]


def simulate(
    objective: Any,
    data: Any,
    w0: ArrayLike | Mapping[str, ArrayLike] | None = None,
    *,
    workers: int | None = None,
    method: str = "downpour",
    latency: float | Latency = 1.0,
    network: Network | None = None,
    service: float | Latency | Service = 0.0,
    deaths: Deaths | None = None,
    worker: Worker | None = None,
    consistency: Consistency | None = None,
    updater: Updater | None = None,
    codec: Codec | None = None,
    memory: str = "host",
    penalty: Penalty | None = None,
    intercept: bool = False,
    unpenalized: Sequence[str] = (),
    clip: float | None = None,
    damping: Damping | None = None,
    batch_size: int = 64,
    epochs: int = 1,
    seed: int = 0,
    until: float = inf,
    points: int = 50,
    record: bool = False,
    **options: Any,
) -> Result:
    """Train with a model server on a cluster that is not there: simulated time, real gradients.

    The worker loop, the consistency policy, the updater, the ledger and the frames on the wire
    are those of :func:`sparkdist.minimize` with the same method; latencies, network and
    deaths are made up.  The same arguments give the same result, bit for bit; under ``bsp``
    that is also the result on Spark, if the data has as many partitions there.

    ::

        result = simulate("logistic", (X, y), workers=1000, latency=exponential(0.1))
        result.plot()

    Parameters
    ----------
    objective, w0
        As in :func:`sparkdist.minimize`.
    data
        ``(X, y)`` or ``(X, y, weight)``, which is dealt out to the workers in order; or a list
        with a :class:`Block` for each worker.
    workers
        How many there are.
    method
        One of those of :func:`sparkdist.minimize` that need a model server: ``downpour``, ``sgd``,
        ``backup_workers``, ``stale_synchronous``, ``local_sgd``, ``diloco``, ``easgd`` ...
    latency
        Seconds that a batch takes a worker: a number or a latency.
    network
        Between the workers and the server; it takes no time by default.
    service
        What a request takes the server: seconds, a latency, or a :class:`Service`.
    deaths
        How workers die and come back; they do not by default.
    worker, consistency, updater, codec
        What the method says otherwise.
    memory, penalty, intercept, unpenalized, clip, damping, batch_size, epochs
        As in :func:`sparkdist.minimize` and :class:`sparkdist.ModelServer`.
    seed
        Of the batches, and of all chance.
    until
        Simulated seconds after which the run is cut off, with ``success`` False.
    points
        Entries in the history, each a pass over the data.
    record
        Keep all that the server did, as ``events``, which :func:`replay` plays again.
    **options
        Of the method: ``extra`` of ``backup_workers``, ``steps`` of ``local_sgd`` ...

    Returns
    -------
    Result
        ``seconds`` are simulated.  ``history`` has seconds, fun, staleness, examples and bytes;
        ``idle`` the share of each worker's time that it neither computed nor was dead, shape
        (workers,); ``bytes`` those of requests and answers; ``deaths`` their number.

    Raises
    ------
    InvalidCall, BadData
    BadGradient
        If the parameters would not be finite any more.
    PassFailed
        If a worker dies so often that it gets nowhere.
    """
    training = Training(
        method, worker, consistency, updater, codec, memory, penalty, intercept, unpenalized,
        clip, damping, batch_size, epochs, seed, options,
    )  # fmt: skip
    conditions = _conditions(latency, network, service, deaths)
    if not plain(until) >= 0:
        raise InvalidCall("simulate", [f"until must be a number >= 0; it is {until!r}"])
    scene = Scene("simulate", objective, data, w0, workers, training, points)

    def after_push(engine: Engine) -> None:
        scene.after_push(engine.now, engine.received + engine.sent)

    engine = Engine(scene.desk, scene.crew, scene.loop, conditions, seed, after_push)
    recorder = Recorder(clock=lambda: engine.now)
    if record:
        scene.desk.store.observe = recorder
    done = engine.run(until)
    return scene.result(
        engine.now,
        None if done else (1, "the time was over"),
        idle=engine.idle(),
        bytes={"received": engine.received, "sent": engine.sent},
        deaths=engine.deaths,
        **({"events": recorder.events} if record else {}),
    )


def replay(
    events: Sequence[Event],
    objective: Any,
    data: Any,
    w0: ArrayLike | Mapping[str, ArrayLike] | None = None,
    *,
    workers: int | None = None,
    points: int = 50,
    **options: Any,
) -> Result:
    """Compute a recorded run again: the same gradients in the same order, so the same bits.

    Parameters
    ----------
    events
        Of a :class:`Recorder` or of :func:`read_record`, or tuples of the same: all of a run, from
        its start.
    objective, data, w0, workers, points
        As in :func:`simulate`; the rows must lie in the partitions as they did.
    **options
        Those of the run, as in :func:`simulate`: method, worker, consistency, updater, codec,
        memory, penalty, intercept, unpenalized, clip, damping, batch_size, epochs, seed, and
        the method's own.

    Returns
    -------
    Result
        ``seconds`` and those of the history are the recorded ones.

    Raises
    ------
    BadData
    InvalidCall
        Also if the record and these arguments do not belong together.
    """
    known = Training.__dataclass_fields__.keys() - {"options"}
    given = {name: options.pop(name) for name in known & options.keys()}
    training = Training(**given, options=options)
    scene = Scene("replay", objective, data, w0, workers, training, points)
    player = Replay(scene.desk, scene.crew, scene.loop)
    player.play(events, lambda seconds: scene.after_push(seconds, 0))
    return scene.result(
        player.seconds,
        (0, "the run was played to its end")
        if player.over
        else (1, "the record ends before the run"),
    )


def _conditions(
    latency: float | Latency,
    network: Network | None,
    service: float | Latency | Service,
    deaths: Deaths | None,
) -> Conditions:
    problems: list[str] = []
    if not isinstance(network, Network | None):
        problems.append(f"network is {network!r}; it must be a Network")
    if not isinstance(deaths, Deaths | None):
        problems.append(f"deaths is {deaths!r}; it must be Deaths(every, back)")
    if problems:
        raise InvalidCall("simulate", problems)
    if not isinstance(service, Service):
        service = Service(as_latency(service, "simulate", "service"))
    return Conditions(
        as_latency(latency, "simulate", "latency"), network or Network(), service, deaths
    )

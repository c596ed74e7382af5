"""The simulator: a training with the model server on simulated time, with real gradients."""

from sparkdist.server.record import Event, Recorder, durations, read_record
from sparkdist.simulate.conditions import Deaths, Network, Service
from sparkdist.simulate.front import replay, simulate
from sparkdist.simulate.history import SimulatedHistory
from sparkdist.simulate.latency import (
    Latency,
    Moment,
    constant,
    exponential,
    lognormal,
    pareto,
    scaled,
    stragglers,
    trace,
)

__all__ = [
    "Deaths",
    "Event",
    "Latency",
    "Moment",
    "Network",
    "Recorder",
    "Service",
    "SimulatedHistory",
    "constant",
    "durations",
    "exponential",
    "lognormal",
    "pareto",
    "read_record",
    "replay",
    "scaled",
    "simulate",
    "stragglers",
    "trace",
]

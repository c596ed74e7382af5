"""The simulator: a training with the model server on simulated time, with real gradients."""

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
from sparkdist.simulate.record import Event, Recorder, durations

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
    "replay",
    "scaled",
    "simulate",
    "stragglers",
    "trace",
]

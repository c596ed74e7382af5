"""Updaters: how the model server descends, one rule a file, and schedules of the rate."""

from sparkdist.updaters._base import State, Updater
from sparkdist.updaters._damping import Damping, delay_adaptive
from sparkdist.updaters._descent import Descent
from sparkdist.updaters._rates import (
    Rate,
    Schedule,
    constant,
    cosine,
    inverse_time,
    linear_scaling,
    step_decay,
    warmup,
)
from sparkdist.updaters.adagrad import adagrad
from sparkdist.updaters.adam import adam
from sparkdist.updaters.adaptive_revision import adaptive_revision
from sparkdist.updaters.average import average
from sparkdist.updaters.ftrl import ftrl
from sparkdist.updaters.momentum import momentum
from sparkdist.updaters.nesterov import nesterov
from sparkdist.updaters.rmsprop import rmsprop
from sparkdist.updaters.sgd import sgd

__all__ = [
    "Damping",
    "Descent",
    "Rate",
    "Schedule",
    "State",
    "Updater",
    "adagrad",
    "adam",
    "adaptive_revision",
    "average",
    "constant",
    "cosine",
    "delay_adaptive",
    "ftrl",
    "inverse_time",
    "linear_scaling",
    "momentum",
    "nesterov",
    "rmsprop",
    "sgd",
    "step_decay",
    "warmup",
]

"""Losses: one a file, each with value, gradient and Hessian-vector product."""

from sparkdist.objectives._base import Objective
from sparkdist.objectives._user import UserLoss
from sparkdist.objectives.hinge import Hinge
from sparkdist.objectives.huber import Huber
from sparkdist.objectives.logistic import Logistic
from sparkdist.objectives.mlp import MLP
from sparkdist.objectives.poisson import Poisson
from sparkdist.objectives.softmax import Softmax
from sparkdist.objectives.squared import Squared
from sparkdist.objectives.squared_hinge import SquaredHinge

__all__ = [
    "MLP",
    "Hinge",
    "Huber",
    "Logistic",
    "Objective",
    "Poisson",
    "Softmax",
    "Squared",
    "SquaredHinge",
    "UserLoss",
]

"""Bring your own loss, in NumPy, and minimise it over the Spark data that you already have."""

from importlib.metadata import version

from sparkdist import consistency, datasets, errors, objectives, updaters
from sparkdist.model import Model
from sparkdist.objectives import (
    MLP,
    Hinge,
    Huber,
    Logistic,
    Objective,
    Poisson,
    Softmax,
    Squared,
    SquaredHinge,
)
from sparkdist.penalties import L1, L2, ElasticNet
from sparkdist.result import History, Result, TrainingHistory
from sparkdist.spark.dataset import Dataset
from sparkdist.spark.deepdist import DeepDist
from sparkdist.spark.minimize import minimize
from sparkdist.spark.model_server import ModelServer
from sparkdist.spark.read import read_dataframe, read_dataset
from sparkdist.spark.scoring import SparkModel

__version__ = version("sparkdist")
load = SparkModel.load

__all__ = [
    "L1",
    "L2",
    "MLP",
    "Dataset",
    "DeepDist",
    "ElasticNet",
    "Hinge",
    "History",
    "Huber",
    "Logistic",
    "Model",
    "ModelServer",
    "Objective",
    "Poisson",
    "Result",
    "Softmax",
    "SparkModel",
    "Squared",
    "SquaredHinge",
    "TrainingHistory",
    "consistency",
    "datasets",
    "errors",
    "load",
    "minimize",
    "objectives",
    "read_dataframe",
    "read_dataset",
    "updaters",
]

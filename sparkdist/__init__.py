"""Bring your own loss, in NumPy, and minimise it over the Spark data that you already have.

Names are imported when they are first used: executors and the model server's process start
without what only the driver needs, in a third of the time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparkdist import (
        codecs,
        consistency,
        datasets,
        errors,
        methods,
        objectives,
        simulate,
        updaters,
        workers,
    )
    from sparkdist.comparison import Comparison
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
    from sparkdist.spark.compare import compare
    from sparkdist.spark.data.dataset import Dataset
    from sparkdist.spark.data.read import read_dataframe, read_dataset
    from sparkdist.spark.engines.resident import ResidentEngine
    from sparkdist.spark.minimize import minimize
    from sparkdist.spark.scoring import SparkModel, load
    from sparkdist.spark.training.deepdist import DeepDist
    from sparkdist.spark.training.model_server import ModelServer

__all__ = [
    "L1",
    "L2",
    "MLP",
    "Comparison",
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
    "ResidentEngine",
    "Result",
    "Softmax",
    "SparkModel",
    "Squared",
    "SquaredHinge",
    "TrainingHistory",
    "codecs",
    "compare",
    "consistency",
    "datasets",
    "errors",
    "load",
    "methods",
    "minimize",
    "objectives",
    "read_dataframe",
    "read_dataset",
    "simulate",
    "updaters",
    "workers",
]

#: Where the names are that are not objectives or modules of their own.
_HOMES = {
    "sparkdist.comparison": ["Comparison"],
    "sparkdist.spark.compare": ["compare"],
    "sparkdist.model": ["Model"],
    "sparkdist.penalties": ["L1", "L2", "ElasticNet"],
    "sparkdist.result": ["History", "Result", "TrainingHistory"],
    "sparkdist.spark.data.dataset": ["Dataset"],
    "sparkdist.spark.training.deepdist": ["DeepDist"],
    "sparkdist.spark.minimize": ["minimize"],
    "sparkdist.spark.training.model_server": ["ModelServer"],
    "sparkdist.spark.data.read": ["read_dataframe", "read_dataset"],
    "sparkdist.spark.engines.resident": ["ResidentEngine"],
    "sparkdist.spark.scoring": ["SparkModel", "load"],
}
_MODULES = [
    "codecs",
    "consistency", "datasets", "errors", "methods", "objectives", "simulate", "updaters", "workers",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("sparkdist")
    elif name in _MODULES:
        found = importlib.import_module(f"sparkdist.{name}")
    elif name in __all__:
        homes = [home for home, names in _HOMES.items() if name in names]
        module = importlib.import_module(homes[0] if homes else "sparkdist.objectives")
        found = getattr(module, name)
    else:
        raise AttributeError(f"module 'sparkdist' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

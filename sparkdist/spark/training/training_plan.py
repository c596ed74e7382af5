"""What a call of ``ModelServer.train`` asks for, and what is wrong with it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pyspark import RDD

from sparkdist.fields import Rule, collect, number
from sparkdist.layout import Layout
from sparkdist.objectives import Objective
from sparkdist.spark.data import given
from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.failures import cannot_travel
from sparkdist.workers import Epochs, Worker, downpour

__all__ = [
    "TrainingPlan",
    "misfits",
    "problems_of_data",
    "takes_rows",
    "unrepeatable",
    "worker_of",
]


@dataclass(frozen=True)
class TrainingPlan(Epochs):
    """The numbers of a call of ``train``: beside the epochs, for how long a worker asks in vain."""

    patience: float = 300.0

    rules: ClassVar[Mapping[str, Rule]] = {
        **Epochs.rules,
        "patience": number("a number of seconds > 0", lambda x: x > 0),
    }

    def named(self, n_rows: int | None) -> dict[str, Any]:
        """Return what decides which batch is which."""
        return {
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "seed": self.seed,
            "worker": repr(self.worker),
            "rows": n_rows,
        }


def worker_of(worker: Any, *of_downpour: Any) -> tuple[Worker, list[str]]:
    """Return the worker loop, downpour where none is given, and what is wrong with it."""
    problems: list[str] = []
    with collect(problems):
        own = downpour(*of_downpour)
    if problems:
        return downpour(), problems
    if worker is None:
        return own, []
    if not isinstance(worker, Worker):
        return own, [f"worker is {worker!r}; it must be one of sparkdist.workers"]
    problem = f"n_fetch, n_push and local_rate are downpour's; worker is {worker!r}"
    return worker, [problem] if own != downpour() else []


def unrepeatable(worker: Worker) -> list[str]:
    """Say why no other process could know the worker again: its repr has an address in it."""
    if " at 0x" not in repr(worker):
        return []
    rule = "folder and resume need a worker that another process knows again, and a function is not"
    cure = "give it a schedule of sparkdist.updaters, such as inverse_time(0.5, 0.1)"
    return [f"{rule}: {cure}, or a dataclass of your own; the worker is {worker!r}"]


def problems_of_data(data: Any, objective: Any, columns: Mapping[str, Any]) -> list[str]:
    """Find what is wrong with the data, and what does not go with the objective."""
    if problems := given.problems_of_data(data, columns):
        return problems
    if not isinstance(data, RDD) and takes_rows(objective):
        return ["gradient(model, rows) is for an RDD; of a dataset f(w, X, y) gets arrays"]
    return cannot_travel("the objective", objective)


def takes_rows(objective: Any) -> bool:
    """Whether it is the user's ``gradient(model, rows)``: a function of two parameters."""
    if isinstance(objective, Objective | str | type) or not callable(objective):
        return False
    try:
        inspect.signature(objective).bind("model", "rows")
    except (TypeError, ValueError):
        return False
    return True


def misfits(loss: Objective, data: Dataset, layout: Layout) -> list[str]:
    """Say where objective, data and model do not belong together."""
    name, n = type(loss).__name__, data.n_features
    if loss.n_features not in (None, n):
        return [f"{name} has {loss.n_features} inputs; the data {n} features"]
    if loss.own_layout is not None:
        sizes = {loss.own_layout.size}
    else:
        sizes = {loss.size(n), loss.size(n) + loss.n_intercepts}
    if layout.size not in sizes:
        wanted = " or ".join(f"{size:,}" for size in sorted(sizes))
        return [f"the model has {layout.size:,} parameters; {name} on this data has {wanted}"]
    return []

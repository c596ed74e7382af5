"""The stochastic methods of minimize, each on a model server of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy.optimize import OptimizeResult

from sparkdist import methods, registry
from sparkdist.checks import problems_of_names
from sparkdist.fields import collect
from sparkdist.layout import type_of
from sparkdist.problem import Problem
from sparkdist.result import Result
from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.training.model_server import ModelServer
from sparkdist.spark.training.training_plan import TrainingPlan

__all__ = ["NAMES", "descend", "find_problems_of_options"]

#: What there is.
NAMES = registry.names(methods)
#: Parameters with one of their own at the front door, and those of the method ``downpour``.
_NOT_OPTIONS = {
    "self", "model", "penalty", "unpenalized", "data", "objective", "callback", "progress",
    "worker", "n_fetch", "n_push", "local_rate", "features", "label", "weight",
}  # fmt: skip


def find_problems_of_options(
    method: str, options: Mapping[str, Any], exact: Sequence[str]
) -> list[str]:
    """Say which options it does not have, those among them that ``exact`` methods have."""
    of_doors = [*_options_of(ModelServer.__init__), *_options_of(ModelServer.train)]
    own = inspect.signature(registry.get(methods, method)).parameters
    known = [*dict.fromkeys([*own, *of_doors])]
    problems = problems_of_names(method, options, known)
    problems += _problems_of_values(method, options)
    if exact:
        rule = f"{method} sees every row `epochs` times"
        problems.append(f"{', '.join(exact)} cannot be used with {method}: {rule}")
    return problems


def _problems_of_values(method: str, options: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with the options of method, server and run; making them starts nothing."""

    def given(known: Any) -> dict[str, Any]:
        return {name: options[name] for name in known if name in options}

    make, problems = registry.get(methods, method), list[str]()
    with collect(problems):
        make(**given(inspect.signature(make).parameters))
    with collect(problems):
        ModelServer([0.0], **given(_options_of(ModelServer.__init__)))
    with collect(problems):
        TrainingPlan(**{"batch_size": 64, "epochs": 1, "seed": 0} | given(TrainingPlan.rules))
    return problems


def descend(
    method: str,
    problem: Problem,
    data: Dataset,
    w0: Any,
    callback: Callable[[OptimizeResult], object] | None,
    options: Mapping[str, Any],
    progress: bool,
) -> Result:
    """Train on a model server that lives as long as the call."""
    make = registry.get(methods, method)
    own = {n: options[n] for n in inspect.signature(make).parameters if n in options}
    options = {**make(**own)._asdict(), **{n: v for n, v in options.items() if n not in own}}
    of_server = {n: v for n, v in options.items() if n in _options_of(ModelServer.__init__)}
    of_train = {name: value for name, value in options.items() if name not in of_server}
    layout = problem.layout
    start = problem.w0.astype("<f8" if w0 is None else type_of(w0))
    free = [name for name in layout.names if not problem.mask[layout.slices()[name]].any()]
    with ModelServer(
        layout.unflatten(start), penalty=problem.penalty, unpenalized=free, **of_server
    ) as server:

        def tell(status: dict[str, Any]) -> None:
            if callback is not None:
                callback(_seen(server, status))

        result = server.train(data, problem.objective, callback=tell, progress=progress, **of_train)
    result.method = method
    return result


def _seen(server: ModelServer, status: dict[str, Any]) -> OptimizeResult:
    return OptimizeResult(
        x=server.model,
        nit=status["version"],
        nfev=status["counts"].get("applied", 0),
        examples=status["examples"],
        n_bytes=status["bytes_in"] + status["bytes_out"],
    )


def _options_of(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in _NOT_OPTIONS]

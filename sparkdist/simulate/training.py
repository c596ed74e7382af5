"""Training: what is simulated, as ``minimize`` on a model server knows it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparkdist import methods, registry
from sparkdist.checks import problems_of_names
from sparkdist.codecs import Codec
from sparkdist.consistency import Consistency
from sparkdist.fields import collect, read_fields
from sparkdist.methods import Method
from sparkdist.penalties import L1, L2, ElasticNet
from sparkdist.problem import Penalty
from sparkdist.updaters import Damping, Updater
from sparkdist.workers import Epochs, Worker

__all__ = ["Training"]

#: What a method is made of: the name of the argument, its type, and where there are some.
_PARTS: list[tuple[str, type, str]] = [
    ("worker", Worker, "workers"),
    ("consistency", Consistency, "consistency"),
    ("updater", Updater, "updaters"),
    ("codec", Codec, "codecs"),
]


#: What :func:`sparkdist.simulate.simulate` has for all methods, beside those of the training.
_OF_CALL = ("w0", "workers", "latency", "network", "service", "deaths", "until", "points", "record")


@dataclass(frozen=True)
class Training:
    """The arguments of a call that say what is trained and how; see :func:`simulate`."""

    method: str = "downpour"
    worker: Worker | None = None
    consistency: Consistency | None = None
    updater: Updater | None = None
    codec: Codec | None = None
    memory: str = "host"
    penalty: Penalty | None = None
    intercept: bool = False
    unpenalized: Sequence[str] = ()
    clip: float | None = None
    damping: Damping | None = None
    batch_size: int = 64
    epochs: int = 1
    seed: int = 0
    #: Of the method.
    options: Mapping[str, Any] = field(default_factory=dict)

    def made(self, problems: list[str]) -> Method:
        """Put the parts together; what is wrong with them is added to ``problems``."""
        problems += self._problems()
        method = self._method(problems)
        own: dict[str, Any] = {}
        for name, kind, room in _PARTS:
            given = getattr(self, name)
            if isinstance(given, kind):
                own[name] = given
            elif given is not None:
                problems.append(f"{name} is {given!r:.80}; it must be one of sparkdist.{room}")
        found = method._replace(**own)
        problems += found.worker.misfits(
            in_rounds=found.consistency.in_rounds, takes_gradients=found.updater.takes_gradients
        )
        return found

    def _problems(self) -> list[str]:
        problems = read_fields(self, **Epochs.rules)
        if not isinstance(self.penalty, L1 | L2 | ElasticNet | None):
            rule = "it must be L2(...), L1(...) or ElasticNet(...)"
            problems.append(f"penalty is {self.penalty!r}; {rule}")
        if self.memory not in ("host", "server"):
            problems.append(f"memory is {self.memory!r}; it must be 'host' or 'server'")
        return problems

    def _method(self, problems: list[str]) -> Method:
        """Make the method of its own options; downpour where that cannot be."""
        known = registry.names(methods)
        if self.method not in known:
            problems.append(f"there is no method {self.method!r}; there are {', '.join(known)}")
            return registry.get(methods, "downpour")()
        make = registry.get(methods, self.method)
        own = inspect.signature(make).parameters
        problems += problems_of_names(
            self.method, self.options, list(own), [*_OF_CALL, *vars(self)]
        )
        with collect(problems):
            return make(**{name: value for name, value in self.options.items() if name in own})
        return registry.get(methods, "downpour")()

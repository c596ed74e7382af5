"""Result: what every front door returns, an OptimizeResult with a history that plots itself."""

from __future__ import annotations

import importlib
import math
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from scipy.optimize import OptimizeResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SEEN", "History", "Result", "TrainingHistory", "end_of_epochs", "plotting"]


@dataclass
class History:
    """One entry for the starting point and one for each iteration, in equally long lists."""

    #: Wall time since the call, in seconds.
    seconds: list[float] = field(default_factory=list)
    #: Passes over the data so far: evaluations and Hessian-vector products.
    passes: list[int] = field(default_factory=list)
    #: The objective: mean loss and penalty.
    fun: list[float] = field(default_factory=list)
    #: max |gradient|; with an L1 part, of the shortest subgradient.
    grad_norm: list[float] = field(default_factory=list)

    def append(self, seconds: float, passes: int, fun: float, grad_norm: float) -> None:
        """Add an entry."""
        self.seconds.append(seconds)
        self.passes.append(passes)
        self.fun.append(fun)
        self.grad_norm.append(grad_norm)

    def __len__(self) -> int:
        return len(self.fun)

    def to_dict(self) -> dict[str, list[Any]]:
        """Lists by name, for JSON or a DataFrame."""
        return asdict(self)

    def plot(self, title: str = "") -> Figure:
        """Draw the objective, and how far it is above the run's best, in seconds and in passes.

        Raises
        ------
        ImportError
            Without matplotlib; ``pip install sparkdist[plot]``.
        """
        draw = plotting()
        best = min(self.fun)
        across = (
            draw.Scale("seconds", self.seconds),
            draw.Scale("passes over the data", self.passes),
        )
        # Its logarithm shows the rate of convergence, which the objective itself hides as soon as
        # it looks flat.  The best point, whose distance is 0, is left out.
        gap = draw.Scale("objective − best", [fun - best for fun in self.fun], log=True)
        return draw.plot_run(across, (draw.Scale("objective", self.fun), gap), title)


@dataclass
class TrainingHistory:
    """How a run with the model server went, as the driver saw it, in equally long lists."""

    #: Wall time since the call, in seconds.
    seconds: list[float] = field(default_factory=list)
    #: Version of the parameters.
    version: list[int] = field(default_factory=list)
    #: Rows in the applied pushes so far.
    examples: list[int] = field(default_factory=list)
    #: Mean loss of the batches since the entry before, each at the parameters of its worker.
    loss: list[float] = field(default_factory=list)
    #: Mean staleness of the applied pushes so far.
    staleness: list[float] = field(default_factory=list)
    #: Bytes of the pushes so far, and of the parameters that were sent to workers.
    bytes_in: list[int] = field(default_factory=list)
    bytes_out: list[int] = field(default_factory=list)

    _sums: tuple[float, float] = field(default=(0.0, 0.0), repr=False)
    _bytes: dict[str, int] = field(default_factory=dict, repr=False)

    def append(self, seconds: float, status: dict[str, Any]) -> None:
        """Add an entry from the server's status."""
        self.seconds.append(seconds)
        self.version.append(status["version"])
        self.examples.append(status["examples"])
        self.loss.append(self._recent_loss(status["loss"], status["weight"]))
        applied = sum(count for _, count in status["staleness"])
        total = sum(stale * count for stale, count in status["staleness"])
        self.staleness.append(total / applied if applied else float("nan"))
        for name, so_far in (("bytes_in", self.bytes_in), ("bytes_out", self.bytes_out)):
            before = self._bytes.get(name, 0)
            more = status[name] - before if status[name] >= before else status[name]
            self._bytes[name] = status[name]  # from 0 on again when a server is started again
            so_far.append((so_far[-1] if so_far else 0) + more)

    def _recent_loss(self, loss: float, weight: float) -> float:
        """Mean over what came since; as before if nothing did, or the server went back."""
        more, heavier = loss - self._sums[0], weight - self._sums[1]
        self._sums = loss, weight
        if heavier > 0:
            return more / heavier
        return self.loss[-1] if self.loss else float("nan")

    def __len__(self) -> int:
        return len(self.seconds)

    def to_dict(self) -> dict[str, list[Any]]:
        """Lists by name, for JSON or a DataFrame."""
        return {name: found for name, found in asdict(self).items() if not name.startswith("_")}

    def plot(self, title: str = "") -> Figure:
        """Draw the loss of the batches, and how stale they were, in seconds and in rows.

        Raises
        ------
        ImportError
            Without matplotlib; ``pip install sparkdist[plot]``.
        """
        draw = plotting()
        across = (draw.Scale("seconds", self.seconds), draw.Scale("examples", self.examples))
        loss = draw.Scale("mean loss of the batches", self.loss)
        stale = draw.Scale("mean staleness", self.staleness, bottom=0.0)
        return draw.plot_run(across, (loss, stale), title)


class Result(OptimizeResult):  # type: ignore[misc]  # SciPy has no types
    """SciPy's ``OptimizeResult`` of a run over distributed data.

    Attributes
    ----------
    x : ndarray or dict of ndarray
        The parameters, in the shape of the model; ``{"weights", "intercept"}`` where an
        intercept was asked for.  Give it back as ``w0`` to go on.
    fun : float
        The objective at x: weighted mean of the loss over the rows, plus the penalty.
    jac : ndarray or dict of ndarray
        Its gradient, in the structure of x; with an L1 part, the shortest subgradient.
    nit, nfev, nhev : int
        Iterations, evaluations of value and gradient, and Hessian-vector products.
    passes : int
        Passes over the data, ``nfev + nhev``.
    success : bool
    status : int
    message : str
    seconds : float
    history : History
    model : Model
        What predicts and can be saved.
    """

    def __repr__(self) -> str:
        """Show it as SciPy shows a result, whose names are all strings."""
        shown = OptimizeResult(self)
        if "staleness" in shown:
            shown["staleness"] = {str(age): n for age, n in shown["staleness"].items()}
        return repr(shown)

    def plot(self) -> Figure:
        """Draw the run; see :meth:`History.plot` and :meth:`TrainingHistory.plot`."""
        after = f"{self.nfev:,} pushes" if "staleness" in self else f"{self.passes} passes"
        return self.history.plot(f"{self.method}: {self.fun:.8g} after {after}")


#: The share by which gradients of batches may leave the objective above that of a good start.
_NOISE = 0.1
#: Status and message of a run that has seen every row in every epoch.
SEEN = 0, "every row has been seen in every epoch"


def end_of_epochs(fun: float, start: float) -> tuple[int, str]:
    """The same for a run whose objective is known, now and at its start: it may have diverged."""
    if math.isfinite(fun) and fun <= start + _NOISE * abs(start):
        return SEEN
    return 3, (
        f"the objective is {fun:.6g}, and was {start:.6g} at the start: lower the rate, or bring"
        " the features to similar scales"
    )


def plotting() -> ModuleType:
    """Import what draws."""
    try:
        return importlib.import_module("sparkdist._plot")
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'sparkdist[plot]'") from error

"""Scene: server, workers and history of a training, ready to begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sparkdist.blocks import Array, Block, Partial
from sparkdist.errors import BadData, InvalidCall
from sparkdist.fields import checked, whole
from sparkdist.layout import type_of
from sparkdist.model import Model, ensemble_of, labels_of
from sparkdist.objectives import Objective, UserLoss
from sparkdist.problem import MeanLoss, Problem, as_objective, pose
from sparkdist.result import Result, end_of_epochs
from sparkdist.simulate.dealing import deal
from sparkdist.simulate.history import SimulatedHistory
from sparkdist.simulate.staging import stage
from sparkdist.simulate.training import Training
from sparkdist.solvers import pseudo_gradient
from sparkdist.workers import BlockUnits, Epochs, local_sgd

__all__ = ["Scene"]


class Scene:
    """Server, workers and history of a training, ready to begin.

    Parameters
    ----------
    caller
        Who is named in errors.
    objective, data, w0, workers
        As in :func:`sparkdist.simulate.simulate`.
    training
        Its options.
    points
        Entries in the history after the one of the start.

    Raises
    ------
    InvalidCall, BadData
    """

    def __init__(
        self,
        caller: str,
        objective: Any,
        data: Any,
        w0: ArrayLike | Mapping[str, ArrayLike] | None,
        workers: int | None,
        training: Training,
        points: int = 50,
    ):
        loss = as_objective(objective, w0)
        problems: list[str] = []
        method = training.made(problems)
        rows, parts = deal(data, workers, problems)
        self._points, self._pushes = checked("points", points, whole(1), problems), 0
        if problems:
            raise InvalidCall(caller, problems)
        self._engine = _InMemory(rows)
        self.problem = _pose(caller, loss, rows, w0, training)
        dtype = type_of(w0)
        self.name, self._ensemble = training.method, method.worker.ensemble
        labels = np.concatenate([block.y for block in rows])
        self._of_data = rows[0].X.shape[1], labels_of(loss, labels)
        self.desk, self.loop = stage(caller, self.problem, training, method, parts, dtype)
        plan = Epochs(training.batch_size, training.epochs, training.seed, method.worker)
        self.crew = [BlockUnits(loss, part, p, plan, dtype) for p, part in enumerate(parts)]
        self.history = SimulatedHistory()
        self._total = max(1, sum(units.total for units in self.crew))
        self.look(0.0, 0)

    def after_push(self, seconds: float, n_bytes: int) -> None:
        """Look at the server at every ``1 / points`` of the run's pushes."""
        before = self._pushes * self._points // self._total
        self._pushes += 1
        if self._pushes * self._points // self._total > before:
            self.look(seconds, n_bytes)

    def look(self, seconds: float, n_bytes: int) -> None:
        """Add an entry to the history."""
        fun, _ = self._objective()
        self._looked_at = self.desk.store.version
        self.history.add(seconds, self.desk.store.status(), fun, n_bytes)

    def result(self, seconds: float, end: tuple[int, str] | None, **found: Any) -> Result:
        """What the server knows at the end, and the objective there, which tells without ``end``.

        ``end`` is status and message.
        """
        store, layout = self.desk.store, self.problem.layout
        if store.version != self._looked_at:  # a round that a leaving worker has closed
            self.look(seconds, self.history.bytes[-1])
        status, (fun, jac) = store.status(), self._objective()
        code, message = end or end_of_epochs(fun, self.history.fun[0])
        return Result(
            success=code == 0,
            status=code,
            message=message,
            method=self.name,
            model=self._model(),
            x=layout.unflatten(store.parameters()[1].astype(np.float64)),
            fun=fun,
            jac=layout.unflatten(jac),
            nit=status["version"],
            nfev=status["counts"].get("applied", 0),
            counts=status["counts"],
            staleness=dict(status["staleness"]),
            noise_scale=status["noise_scale"],
            seconds=seconds,
            history=self.history,
            **found,
        )

    def _model(self) -> Model:
        """What predicts: with the server's parameters, or an ensemble of the workers' own."""
        store, problem = self.desk.store, self.problem
        states, w = store.ledger.states if self._ensemble else {}, store.parameters()[1]
        x, shares = ensemble_of(*local_sgd.models_of(states), problem.layout, w.astype(np.float64))
        return Model(problem.objective, x, *self._of_data, shares=shares)

    def _objective(self) -> tuple[float, Array]:
        """Objective and gradient, with L1 the shortest subgradient, where the server is now."""
        w = self.desk.store.parameters()[1].astype(np.float64)
        f, g = MeanLoss(self._engine, self.problem, lambda *_: None)(w)
        l1 = self.problem.l1 * self.problem.mask
        return f + float(l1 @ np.abs(w)), pseudo_gradient(w, g, l1)


class _InMemory:
    """The sums over blocks of this process."""

    single_precision = False

    def __init__(self, blocks: Sequence[Block]):
        self._blocks = blocks

    def value_and_grad(self, objective: Objective, w: Array) -> Partial:
        filled = (block for block in self._blocks if len(block.y))
        return sum((objective.value_and_grad(w, block) for block in filled), Partial.nothing())

    def hessp(self, objective: Objective, w: Array, v: Array) -> Partial:
        raise NotImplementedError("nothing here asks for it")

    def metric(self, objective: Objective, w: Array) -> Partial:
        raise NotImplementedError("nothing here asks for it")


def _pose(caller: str, loss: Objective, whole: Sequence[Block], w0: Any, of: Training) -> Problem:
    problems: list[str] = []
    y = np.unique(np.concatenate([block.y for block in whole]))
    if (bad := loss.bad_labels(y)).size:
        name = type(loss).__name__
        raise BadData(f"{name} needs labels that are {loss.label_rule()}; there is {bad[0]:g}")
    if isinstance(loss, UserLoss) and not loss.takes_weight:
        if any((block.weight != 1.0).any() for block in whole):
            problems.append("the data has weights, and your function takes none")
    problem = pose(
        loss,
        whole[0].X.shape[1],
        loss.initial(of.seed) if w0 is None else w0,
        penalty=of.penalty,
        bounds=None,
        intercept=of.intercept,
        unpenalized=of.unpenalized,
        problems=problems,
    )
    if problems:
        raise InvalidCall(caller, problems)
    return problem

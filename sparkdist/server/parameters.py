"""Parameters: the vector that is served, its updater's state, and the copies of the next update."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparkdist.blocks import Array
from sparkdist.errors import BadGradient, CheckpointError
from sparkdist.server.rules import Push, Rule, all_finite
from sparkdist.updaters import State

__all__ = ["Parameters"]


class Parameters:
    """Two copies of everything: one is served, the other is where the next update is written.

    An update that raises, or is not finite, leaves no trace; one that could not be made durable
    is taken back by swapping again.  Nothing is allocated.
    """

    def __init__(self, w: Array, rule: Rule):
        self._w, self._new_w = w.copy(), np.empty_like(w)
        self.version = 0
        self._served: tuple[int, bytes] = (-1, b"")
        self.use(rule)

    def use(self, rule: Rule) -> None:
        """Change the rule; the state beside the parameters starts anew."""
        self.rule, self.started = rule, self.version
        self._state, self._new_state = rule.init(self._w), rule.init(self._w)

    def prepare(self, pushes: Sequence[Push]) -> None:
        """Write the next update into the copies.

        Raises
        ------
        BadGradient
            If it is not finite.
        """
        t = self.version - self.started
        with np.errstate(over="ignore", invalid="ignore"):
            self.rule.apply(t, pushes, self._w, self._state, self._new_w, self._new_state)
        # The state too: a squared gradient may overflow where the parameters do not.
        if not all(map(all_finite, (self._new_w, *self._new_state))):
            raise BadGradient("the parameters would not be finite after it", "not_finite")

    def swap(self, step: int) -> None:
        """Serve the copies, as the next version (+1), or the former ones again (-1)."""
        self._w, self._new_w = self._new_w, self._w
        self._state, self._new_state = self._new_state, self._state
        self.version += step

    def payload(self) -> bytes:
        """The parameters' bytes, one immutable copy for everybody who asks for this version."""
        if self._served[0] != self.version:
            self._served = (self.version, self._w.tobytes())
        return self._served[1]

    def copy(self) -> tuple[Array, State]:
        """Return copies of the parameters and the state."""
        return self._w.copy(), tuple(part.copy() for part in self._state)

    def restore(self, version: int, w: Array, state: State, started: int = 0) -> None:
        """Take over parameters and state, which was new at version ``started``.

        Raises
        ------
        CheckpointError
            If they are of another model or another updater.
        """
        mine, saved = [self._w, *self._state], [w, *state]
        if [(a.dtype, a.shape) for a in mine] != [(a.dtype, a.shape) for a in saved]:
            raise CheckpointError("the checkpoint is of another model or another updater")
        for to, source in zip(mine, saved, strict=True):
            to[...] = source
        self.version, self.started = version, started
        self._served = (-1, b"")

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self._w.size

    @property
    def dtype(self) -> str:
        """Their type, as NumPy writes it."""
        return self._w.dtype.str

"""Parameters: the vector that is served, its updater's state, and the copies of the next update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparkdist.blocks import Array, all_finite
from sparkdist.errors import BadGradient, CheckpointError
from sparkdist.server.reads import Reads
from sparkdist.server.rules import Push, Rule
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

    def use(self, rule: Rule, *, keep: bool = False) -> None:
        """Change the rule; the state beside the parameters starts anew, unless it is to be kept."""
        self.rule = rule
        if keep:
            return
        self.started = self.version
        self._state, self._new_state = rule.init(self._w), rule.init(self._w)
        self._reads = self._no_reads()

    def _no_reads(self) -> Reads | None:
        """Nobody has read anything but the version at which the state was new."""
        if not self.rule.remembers_reads:
            return None
        return Reads(self.started, self.rule.on_read(self.rule.init(self._w)))

    def read_by(self, partition: int) -> bytes:
        """Give the parameters to a worker, and remember that it has read them."""
        if self._reads is not None:
            self._reads.add(partition, self.version, lambda: self.rule.on_read(self._state))
        return self.payload()

    def knows(self, push: Push) -> bool:
        """Whether what a push needs of the moment of its read is known."""
        return self._reads is None or self._reads.find(push.partition, push.base) is not None

    def prepare(self, pushes: Sequence[Push]) -> None:
        """Write the next update into the copies.

        Raises
        ------
        BadGradient
            If it is not finite.
        """
        t, reads = self.version - self.started, self._reads
        pushes = [
            push._replace(
                delay=self.version - push.base,
                since=None if reads is None else reads.find(push.partition, push.base),
            )
            for push in pushes
        ]
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
            self._served = (-1, b"")  # the next ones may have its memory, which is warm
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
        self._served, self._reads = (-1, b""), self._no_reads()

    def status(self) -> dict[str, Any]:
        """Version, number and type of the parameters, and how they descend, for JSON."""
        return {
            "version": self.version,
            "size": self._w.size,
            "dtype": self._w.dtype.str,
            "updater": str(self.rule),
            "noise_scale": self.rule.noise_scale(),
        }

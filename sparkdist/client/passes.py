"""The client of a resident job over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sparkdist import wire
from sparkdist.blocks import Array, Partial
from sparkdist.client.asking import LONG_POLL, Asking
from sparkdist.client.protocol import Address
from sparkdist.errors import DecodeError

__all__ = ["PassClient", "PassTask", "Worker"]

#: Portions in one answer: more than any dataset has.
_MOST = 1 << 20
_FIELDS = {"status": str, "pass": int, "kind": str, "portions": str}


class PassTask(NamedTuple):
    """What to do: ``work`` at portions of a pass, ``wait`` (ask again), or go home: ``over``."""

    status: str
    number: int
    kind: str
    portions: tuple[int, ...]
    #: The vectors of the pass, one a row; None if the worker has them already.
    vectors: Array | None


class Worker(NamedTuple):
    """Who asks."""

    #: Of this life of the task alone.
    name: str
    #: Those whose blocks it has.
    partitions: Sequence[int]
    #: The name of its host: whoever has the same one can open the same blocks.
    place: str


class PassClient(Asking):
    """One worker of a resident job.

    Parameters
    ----------
    address
        Where the server is.
    worker
        Who asks.
    dtype
        Of vectors and gradients on the wire; here they are float64.
    longest
        Numbers in the vectors of a pass, at most.
    """

    def __init__(
        self,
        address: Address,
        worker: Worker,
        dtype: np.dtype[Any],
        longest: int,
        patience: float = 300.0,
    ):
        super().__init__(address, dtype.itemsize * longest, patience)
        self._dtype = dtype
        self._me: dict[str, Any] = {
            "run": address.run,
            "worker": worker.name,
            "partitions": wire.spans(worker.partitions),
            "place": worker.place,
            "wait": LONG_POLL,
        }
        self._seen = 0

    def __enter__(self) -> PassClient:
        return self

    def work(self) -> PassTask:
        """Ask for portions; waits a while for the next pass."""
        return self.ask("work", self._frame(), self._understand)

    def bring(self, number: int, portions: Sequence[int], found: Sequence[Partial]) -> PassTask:
        """Hand in the sums of portions, and ask for the next ones."""
        totals = np.array([(partial.loss, partial.weight) for partial in found])
        grads = np.empty((len(found), found[0].grad.size), self._dtype)
        for row, partial in zip(grads, found, strict=True):
            row[:] = partial.grad
        entries = [
            wire.Entry("totals", "<f8", totals.shape),
            wire.Entry("grads", self._dtype.str, grads.shape),
        ]
        fields = {"pass": number, "portions": wire.spans(portions)}
        return self.ask("bring", self._frame(entries, [totals, grads], **fields), self._understand)

    def miss(self, partitions: Sequence[int]) -> None:
        """Say that the blocks of these partitions are not here."""
        fields = {"run": self._me["run"], "partitions": wire.spans(partitions)}
        self.ask("miss", wire.pieces(fields), lambda message: True)

    def _frame(self, entries: Any = (), parts: Any = (), **fields: Any) -> list[Any]:
        return wire.pieces({**self._me, "seen": self._seen, **fields}, entries, parts)

    def _understand(self, message: wire.Message) -> PassTask:
        fields = message.fields
        if wrong := [name for name, kind in _FIELDS.items() if type(fields.get(name)) is not kind]:
            raise DecodeError(f"the answer does not say its {wrong[0]}")
        portions = wire.numbers_of(fields["portions"], _MOST)
        vectors = message.arrays().get("vectors")
        if vectors is not None and not isinstance(vectors, np.ndarray):
            raise DecodeError("the vectors of a pass are dense")
        if vectors is not None:
            self._seen = fields["pass"]
            vectors = vectors.astype(np.float64, copy=False)
        return PassTask(fields["status"], fields["pass"], fields["kind"], portions, vectors)

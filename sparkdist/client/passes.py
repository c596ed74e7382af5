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

__all__ = ["PassClient", "PassTask"]

_FIELDS = {"status": str, "pass": int, "kind": str, "portions": str}


class PassTask(NamedTuple):
    """What to do: ``work`` at portions of a pass, ``wait`` (ask again), or go home: ``over``."""

    status: str
    number: int
    kind: str
    portions: tuple[int, ...]
    #: The vectors of the pass, one a row; None if the worker has them already.
    vectors: Array | None


class PassClient(Asking):
    """One worker of a resident job.

    Parameters
    ----------
    address
        Where the server is.
    worker
        A name of this life of the task alone.
    partitions
        Those whose blocks it has.
    place
        The name of its host: whoever has the same one can open the same blocks.
    answer_bytes
        What the vectors of a pass take at most.
    """

    def __init__(
        self,
        address: Address,
        worker: str,
        partitions: Sequence[int],
        place: str,
        answer_bytes: int,
        patience: float = 300.0,
    ):
        super().__init__(address, answer_bytes, patience)
        self._me: dict[str, Any] = {
            "run": address.run,
            "worker": worker,
            "partitions": ",".join(map(str, partitions)),
            "place": place,
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
        sums = np.empty((len(portions), 2 + found[0].grad.size))
        for row, partial in zip(sums, found, strict=True):
            row[0], row[1], row[2:] = partial.loss, partial.weight, partial.grad
        entry = wire.Entry("sums", "<f8", sums.shape)
        fields = {"pass": number, "portions": ",".join(map(str, portions))}
        return self.ask("bring", self._frame([entry], [sums], **fields), self._understand)

    def miss(self, partitions: Sequence[int]) -> None:
        """Say that the blocks of these partitions are not here."""
        fields = {"run": self._me["run"], "partitions": ",".join(map(str, partitions))}
        self.ask("miss", wire.pieces(fields), lambda message: True)

    def _frame(self, entries: Any = (), parts: Any = (), **fields: Any) -> list[Any]:
        return wire.pieces({**self._me, "seen": self._seen, **fields}, entries, parts)

    def _understand(self, message: wire.Message) -> PassTask:
        fields = message.fields
        if wrong := [name for name, kind in _FIELDS.items() if type(fields.get(name)) is not kind]:
            raise DecodeError(f"the answer does not say its {wrong[0]}")
        portions = tuple(int(part) for part in fields["portions"].split(",") if part)
        vectors = message.arrays().get("vectors")
        if vectors is not None and not isinstance(vectors, np.ndarray):
            raise DecodeError("the vectors of a pass are dense")
        if vectors is not None:
            self._seen = fields["pass"]
        return PassTask(fields["status"], fields["pass"], fields["kind"], portions, vectors)

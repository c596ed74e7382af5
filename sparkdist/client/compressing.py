"""Compressing: a client whose gradients go through a codec."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sparkdist.blocks import Array
from sparkdist.client.protocol import Answer, Gradient, ParameterClient
from sparkdist.codecs import Codec, stream

__all__ = ["Compressing", "Memory"]


class Memory:
    """Where the memory of a codec is kept on this host, for whoever goes on for a partition.

    A file is a clock, the vector that belongs to it, and the one of the next clock.  It is written
    before a push is sent: whether that counts then decides which of the two goes on.  It is
    replaced as a whole, so that a task that is killed leaves the old file or the new one.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path):
        self._path = path

    def keep(self, clock: int, now: Array, following: Array) -> None:
        """Write down what is to be known at a clock, and at the next one."""
        draft = self._path.with_suffix(f".{os.getpid()}")
        draft.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "wb") as file:
            file.write(clock.to_bytes(8, "little"))
            for memory in (now, following):
                file.write(memory.astype("<f8", copy=False).tobytes())
        os.replace(draft, self._path)

    def recall(self, clock: int, size: int) -> Array | None:
        """Return what belongs to this clock, if it is here."""
        try:
            data = self._path.read_bytes()
        except OSError:
            return None
        age = clock - int.from_bytes(data[:8], "little")
        if len(data) != 8 * (2 * size + 1) or age not in (0, 1):
            return None
        return np.frombuffer(data, "<f8", size, 8 * (1 + age * size))

    def forget(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


class Compressing:
    """Sends what a codec makes of the mean gradient, and looks after the codec's memory.

    The memory changes when a push has been applied, and at no other time.  What can be worked out
    from the bytes that were sent, the server knows (CodedGradient), and tells when a worker joins.
    The residual of error feedback cannot: with ``memory`` it is kept on the worker's host, for a
    task that is run again there; where that is lost, with its executor, it begins at 0 and
    ``lost`` counts it.  Without ``memory`` it goes with every push, d numbers, and is never lost.

    Parameters
    ----------
    client
        Who sends.
    codec
        Bound to the model's layout.
    size, dtype
        Of the parameters.
    seed
        Of the run: a push that is made again is made of the same random numbers.
    memory
        Where a memory is kept that the server cannot work out.
    """

    def __init__(
        self,
        client: ParameterClient,
        codec: Codec,
        size: int,
        dtype: str,
        seed: int,
        memory: Memory | None = None,
    ):
        self._client, self._codec, self._seed = client, codec, seed
        self._first = codec.init(size, dtype)
        self._n = sum(part.size for part in self._first)
        self._goes_along = self._n > 0 and not codec.rebuildable and memory is None
        self._memory = None if codec.rebuildable or not self._n else memory
        self._state, self._clock = self._first, -1
        #: How many times the memory was not there.
        self.lost = 0

    def join(self, partition: int) -> Answer:
        """Ask at which clock this partition goes on, and with which memory."""
        answer = self._client.join(partition)
        behind: Array | None = None
        if answer.state is not None and self._memory is None and self._n:
            cut = answer.state.size - self._n
            behind, own = answer.state[cut:], answer.state[:cut]
            answer = answer._replace(state=own if cut else None)
        if self._memory is not None and answer.next:
            behind = self._memory.recall(answer.next, self._n)
            self.lost += behind is None
        self._state, self._clock = self._parts(behind), answer.next
        return answer

    def pull(self, partition: int) -> Answer:
        """Get the parameters, as soon as this worker may have them."""
        return self._client.pull(partition)

    def push(
        self, partition: int, clock: int, at: Answer, gradient: Gradient, *, want: bool
    ) -> Answer:
        """Hand in the gradient's code."""
        if clock != self._clock:  # sent back, or ahead: the memory is that of another clock
            self.join(partition)
        weight = gradient.weight
        mean = gradient.value / weight if weight > 0 else np.zeros_like(gradient.value)
        code, after = self._codec.encode(mean, self._state, stream(self._seed, partition, clock))
        if weight <= 0 and not self._codec.rebuildable:
            after = self._state  # no rows: what is late will not be applied either
        sent = gradient._replace(value=code)
        if self._goes_along:
            own = () if gradient.state is None else (gradient.state,)
            sent = sent._replace(state=np.concatenate([*own, _flat(after)]))
        if self._memory is not None:
            self._memory.keep(clock, _flat(self._state), _flat(after))
        answer = self._client.push(partition, clock, at, sent, want=want)
        self._book(clock, answer, after)
        return answer

    def leave(self, partition: int) -> Answer:
        """Say that nobody needs to wait for this partition any more."""
        answer = self._client.leave(partition)
        if self._memory is not None:
            self._memory.forget()
        return answer

    def _book(self, clock: int, answer: Answer, after: tuple[Array, ...]) -> None:
        """Remember what the server did with a push."""
        if answer.next != clock + 1 or answer.status not in ("ok", "dropped", "skipped"):
            self._clock = -1
            return
        self._clock = clock + 1
        if answer.status == "ok":
            self._state = after
        elif self._memory is not None:
            self._memory.keep(self._clock, _flat(self._state), _flat(self._state))

    def _parts(self, vector: Array | None) -> tuple[Array, ...]:
        if vector is None:
            return self._first
        cuts = np.cumsum([part.size for part in self._first])[:-1]
        pairs = zip(np.split(vector, cuts), self._first, strict=True)
        return tuple(part.astype(a.dtype).reshape(a.shape) for part, a in pairs)


def _flat(state: tuple[Array, ...]) -> Array:
    return np.concatenate([part.ravel() for part in state]).astype(np.float64, copy=False)

"""Coded: gradients that come through a codec, and the memories of those who sent them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sparkdist.blocks import Array
from sparkdist.codecs import Codec
from sparkdist.errors import BadGradient
from sparkdist.layout import Layout
from sparkdist.server.incoming import weight
from sparkdist.server.rules import MeanGradient, Push
from sparkdist.updaters import Descent
from sparkdist.wire import CODE, Entry, Message, Sparse

__all__ = ["CodedGradient", "rule_of"]


def rule_of(descent: Descent, layout: Layout, dtype: str, codec: Codec | None) -> MeanGradient:
    """Return the rule of gradients as they are, or as a codec sends them."""
    if codec is None:
        return MeanGradient(descent, layout, dtype)
    return CodedGradient(descent, layout, dtype, codec)


class CodedGradient(MeanGradient):
    """Decode the pushes' mean gradients, and go on as with any others.

    A codec with a memory that can be worked out from what was sent, such as EF21's, has it kept
    here: behind the worker's own state, with the ledger.  So it is that of the last push that
    counted, survives a restart, and is given to whoever goes on for the partition.

    Parameters
    ----------
    descent, layout, dtype
        As those of MeanGradient.
    codec
        Bound to the layout; a payload of any other is refused.
    """

    def __init__(self, descent: Descent, layout: Layout, dtype: str, codec: Codec):
        super().__init__(descent, layout, dtype)
        self._codec, self._size = codec, layout.size
        first = codec.init(layout.size, dtype)
        #: Whether a push has to be looked at together with the state before it.
        self.follows = codec.rebuildable and bool(first)
        self._first = [part.copy() for part in first]

    def __str__(self) -> str:
        return f"{super().__str__()} of {self._codec}"

    def admit(self, message: Message) -> Any:
        """Return the sum that a payload stands for, sparse where the codec is.

        Raises
        ------
        BadGradient
            If there is anything but one payload; if it is of numbers that are not finite.
        DecodeError
            If it is none of this codec, model and type.
        """
        if message.entries != (Entry(CODE, "|u1", (len(message.payload),)),):
            raise BadGradient(f"a push of this run is one array {CODE!r}, of bytes")
        times = weight(message.fields)
        if not self._codec.sparse:
            return self._codec.decode(message.payload, self._size, self._dtype) * times
        values, indices = self._codec.decode_sparse(message.payload, self._size, self._dtype)
        return dict(self._parts(values * times, indices))

    def _parts(self, values: Array, indices: Any) -> Iterator[tuple[str, Sparse]]:
        """Cut ascending indices of the flat vector into those of the model's arrays."""
        for name, where in self._slices.items():
            a, b = np.searchsorted(indices, (where.start, where.stop))
            shape = (where.stop - where.start,)
            yield name or "", Sparse(values[a:b], indices[a:b] - where.start, shape)

    def follow(self, push: Push, before: Array | None) -> Push:
        """Work out the sender's memory after a push, and with EF21's the gradient itself."""
        own = np.empty(0) if push.state is None else push.state
        memory = self._first
        if before is not None:
            sizes = np.cumsum([part.size for part in self._first])
            behind = before[before.size - sizes[-1] :]
            parts = zip(np.split(behind, sizes[:-1]), self._first, strict=True)
            memory = [part.astype(a.dtype).reshape(a.shape) for part, a in parts]
        assert push.code is not None
        try:
            after = self._codec.rebuild(push.code, self._size, self._dtype, tuple(memory))
        except BadGradient:  # it overflows: as any other update that would not be finite
            return push._replace(gradient=np.full(self._size, np.nan))
        gradient = after[0] * push.weight if self._codec.differences else push.gradient
        state = np.concatenate([own, *(part.ravel() for part in after)]).astype(np.float64)
        return push._replace(gradient=gradient, state=state)

"""Both ends keep the last vector; what is sent is a compressed difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparkdist.blocks import Array
from sparkdist.codecs._base import State
from sparkdist.codecs._wrapper import Wrapper

__all__ = ["ef21"]


@dataclass(frozen=True)
class ef21(Wrapper):
    """Send what is missing to the vector from what the receiver has, as well as a codec can.

    Worker k and the server both keep g_k, at first 0::

        send c = C(x_k - g_k);  g_k <- g_k + c
        the server descends along mean_k(g_k)

    With full gradients of fixed partitions and a constant rate it converges linearly where the
    loss is strongly convex, however different the partitions are, and error_feedback does not.
    With batches the noise of a batch stays in g_k: use error_feedback there.

    ``decode`` gives c, a difference.  g_k is what was sent, added up: the server has it anyway,
    and a sender that was lost gets it from there, bit for bit.

    Source: Richtarik, Sokolov and Fatkhullin, EF21: A New, Simpler, Theoretically Better, and
    Practically Faster Error Feedback, NeurIPS 2021, Algorithm 2.
    """

    differences = True

    def write(self, x: Array, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Write the codec's version of the difference."""
        known, *others = state
        body, new = self.inner.write(x - known, tuple(others), rng)
        c = self.inner.read(memoryview(body), x.size, x.dtype)
        return body, (known + c, *new)

    def after(self, body: memoryview, size: int, dtype: np.dtype[Any], state: State) -> State:
        """Add the difference."""
        known, *others = state
        c = self.inner.read(body, size, dtype)
        return (known + c, *self.inner.after(body, size, dtype, tuple(others)))

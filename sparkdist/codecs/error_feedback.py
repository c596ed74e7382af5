"""What a codec leaves out is added to the next vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparkdist.blocks import Array
from sparkdist.codecs._base import State
from sparkdist.codecs._wrapper import Wrapper

__all__ = ["error_feedback"]


@dataclass(frozen=True)
class error_feedback(Wrapper):
    """Remember the error of a codec, and compress it together with the next vector.

    ::

        p = e + x;  send C(p);  e <- p - C(p)

    Nothing is lost, only late: what has been sent is always the sum of the vectors minus e.  With
    a constant rate, w - rate mean_k(e_k) is where plain gradient descent would be that takes its
    gradients at w.  Where the rate falls, what was late is applied at the rate of that time.

    The residual e depends on the vectors themselves, so that nobody can work it out from what was
    sent.  It is d numbers; see ``rebuildable`` in :class:`Codec`.

    Source: Stich, Cordonnier and Jaggi, Sparsified SGD with Memory, NeurIPS 2018, Algorithm 1;
    Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML
    2019, Algorithm 2; first, Seide et al., Interspeech 2014, for one bit.
    """

    rebuildable = False

    def write(self, x: Array, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Write the codec's version of the vector and of what is late."""
        late, *others = state
        p = late + x
        body, new = self.inner.write(p, tuple(others), rng)
        # What the receiver reads, of the very bytes, and so with its rounding.
        p -= self.inner.read(memoryview(body), x.size, x.dtype)
        return body, (p, *new)

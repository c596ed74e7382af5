"""The user's own descent, as a rule of the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparkdist.blocks import Array, all_finite
from sparkdist.errors import BadGradient
from sparkdist.server.rules import Push
from sparkdist.skeleton import Skeleton, update_of
from sparkdist.updaters import State
from sparkdist.wire import Message, Sparse

__all__ = ["UserDescent"]


class UserDescent:
    """Call ``descent(model, update)`` for each push, on a copy of the model.

    A copy, so that a descent that raises leaves the model as it was.  The function may change
    the model's arrays in place, put others of the same shapes there, or return the new model.

    Parameters
    ----------
    skeleton
        Makes the model from the parameters.
    descent
        The user's function; it came from the driver, never over the network.
    """

    def __init__(self, skeleton: Skeleton, descent: Callable[[Any, Any], Any]):
        self._skeleton, self._descent = skeleton, descent

    remembers_reads = False

    def __str__(self) -> str:
        return f"{getattr(self._descent, '__name__', 'descent')}(model, update)"

    follows = False

    def follow(self, push: Push, before: Array | None) -> Push:
        """Nothing has to be known of the push before."""
        return push

    def init(self, w: Array) -> State:
        """Return no state: what the descent is to remember is an array of the model."""
        return ()

    def on_read(self, state: State) -> Array:
        """Remember nothing: it is not asked."""
        raise NotImplementedError

    def noise_scale(self) -> None:
        """Return None: an update is anything."""

    def admit(self, message: Message) -> Any:
        """Return the update in a push; None where there is none.

        Raises
        ------
        BadGradient
            For sparse arrays, NaN and infinities.
        """
        arrays = message.arrays()
        for name, array in arrays.items():
            if isinstance(array, Sparse):
                raise BadGradient(f"array {name!r:.80} is sparse; a descent gets whole arrays")
            if not all_finite(array):
                raise BadGradient(f"array {name!r:.80} has NaN or infinite values", "not_finite")
        return arrays or None

    def apply(
        self, t: int, pushes: Sequence[Push], w: Array, state: State, new_w: Array, new: State
    ) -> None:
        """Descend from ``w``, push by push, into ``new_w``."""
        np.copyto(new_w, w)
        for push in pushes:
            if push.gradient is None:
                continue
            model = self._skeleton.build(new_w)
            # Arrays of a request are read-only; the function may do with its update what it likes.
            update = update_of({name: array.copy() for name, array in push.gradient.items()})
            returned = self._descent(model, update)
            self._skeleton.read(model if returned is None else returned, new_w)

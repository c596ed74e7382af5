"""What the model server asks of an updater."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeAlias

from sparkdist.blocks import Array

__all__ = ["State", "Updater"]

#: What an updater remembers: a NamedTuple of vectors of the shape of w, or ().  Their dtype is
#: that of w, or float64 where differences of sums would lose too much in float32.
State: TypeAlias = tuple[Array, ...]


class Updater(ABC):
    """A rule that makes new parameters of the old ones and a gradient.

    Conventions
    -----------
    ``grad`` is a mean, never a sum: over the rows of a batch, or over the workers of a round.

    The result goes into arrays of the caller, who holds two copies of w and of the state and
    swaps them once the new ones are good.  So an update is a pure function of its arguments,
    with nothing to undo if its result is not finite, and still allocates nothing.  The caller
    should look at the new state too: a squared gradient may overflow where w does not, and
    would leave that coordinate with steps of 0 for ever.

    ``t`` is an argument, not a part of the state: the server counts its updates anyway.  It is
    the number of updates since ``init``, so that who starts a new state starts at 0 again.

    A member refuses its arguments when it is made, all that are wrong in one InvalidCall; an
    update raises InvalidCall where a schedule gives no rate.
    """

    #: False if what is pushed is no gradient, but what the workers added to the parameters.
    takes_gradients = True
    #: True if ``update`` takes ``since``, too: what ``on_read`` gave when the parameters were read
    #: that the gradient was computed on; without it they are those of now.
    remembers_reads = False
    #: False if s times the rate does not make s times the step; only then may a step be damped.
    rate_scales_step = True

    @property
    def penalises(self) -> bool:
        """Whether it has a penalty of its own."""
        return False

    def only_on(self, mask: Array) -> Updater:
        """Return the rule whose own penalty acts where the mask is true; most have none."""
        return self

    def on_read(self, state: State) -> Array:
        """Return what has to be known of the moment at which a worker reads the parameters."""
        raise NotImplementedError(f"{self!r} does not remember reads")

    @abstractmethod
    def init(self, w: Array) -> State:
        """Return the state before the first update; call it twice for the two copies."""

    @abstractmethod
    def update(
        self, t: int, grad: Array, state: State, w: Array, new_w: Array, new_state: State
    ) -> None:
        """Write the t-th update (t counts from 0) of w and state into new_w and new_state.

        All arrays have the shape of w, and all but the state's its dtype.  Inputs are only read.
        new_w and new_state, which share no memory with them, are overwritten in full, whatever
        they hold.  Nothing of the size of w is allocated.
        """

    @abstractmethod
    def step_size(self, t: int, state: State) -> float | Array:
        """Return h, for which update t would be w - h g if the gradients up to it were all g.

        One number, or one a coordinate, at the given ``state``, the new one.  A proximal step of
        length h belongs to the update: a constant added to all gradients moves w as far, so that
        the steps rest where the sum of the loss and the penalty is stationary.  See Descent.
        """

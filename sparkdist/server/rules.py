"""Rules: how pushes change the parameters.

A rule admits what a push carries, and applies the pushes of a round to a copy of the state: the
store swaps the copy in when it is whole and finite, so that an exception changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sparkdist.blocks import Array, all_finite
from sparkdist.errors import BadGradient
from sparkdist.layout import Layout
from sparkdist.server.noise import NoiseScale
from sparkdist.updaters import Descent, State
from sparkdist.wire import Entry, Message, Sparse

__all__ = ["MeanGradient", "Push", "Rule", "model_entries"]


class Push(NamedTuple):
    """What a worker sends for a unit of work: sums over its rows, never means."""

    partition: int
    clock: int
    #: Version of the parameters that the gradient was computed on, and who served them.
    base: int
    generation: str
    gradient: Any
    digest: int
    weight: float = 1.0
    examples: int = 0
    loss: float | None = None
    #: What the worker has to know to go on after this unit.
    state: Array | None = None
    #: The bytes of a codec, for rules that follow its memory.
    code: bytes | None = None
    n_bytes: int = 0
    #: The server's own: how many versions old ``base`` is when the push is applied, and what
    #: its updater remembers of the moment at which it was read.
    delay: int = 0
    since: Array | None = None


class Rule(Protocol):
    """What the store asks."""

    #: Whether ``follow`` has to see a push, and the state that its partition had before.
    follows: bool

    def follow(self, push: Push, before: Array | None) -> Push:
        """Return a new push with what can be known of it only now, in its turn."""

    @property
    def remembers_reads(self) -> bool:
        """Whether a push needs what ``on_read`` gave when its parameters were read."""

    def on_read(self, state: State) -> Array:
        """Return what is to be remembered of this moment."""

    def noise_scale(self) -> dict[str, Any] | None:
        """Return the gradient noise scale for JSON; None where there are no gradients."""

    def init(self, w: Array) -> State:
        """Return the state beside the parameters, before the first update."""

    def admit(self, message: Message) -> Any:
        """Return the gradient in a push, or raise BadGradient."""

    def apply(
        self, t: int, pushes: Sequence[Push], w: Array, state: State, new_w: Array, new: State
    ) -> None:
        """Write the t-th update into ``new_w`` and ``new``; ``w`` and ``state`` are only read."""


def model_entries(layout: Layout, dtype: str) -> tuple[Entry, ...]:
    """Describe a model's arrays as the header of a frame does; the nameless one is ''."""
    return tuple(Entry(name or "", dtype, shape) for name, shape in layout.shapes)


class MeanGradient:
    """Sum the gradients in worker order, divide once by the sum of their weights, descend.

    Parameters
    ----------
    descent
        Clipping, penalty and updater.
    layout, dtype
        What every push must look like, exactly.
    """

    def __init__(self, descent: Descent, layout: Layout, dtype: str):
        self._descent = descent
        self._entries = model_entries(layout, dtype)
        self._dtype, self._slices = np.dtype(dtype), layout.slices()
        self._total = np.zeros(layout.size, dtype)
        self._noise, self.follows = NoiseScale(), False

    def __str__(self) -> str:
        return repr(self._descent.updater)

    def init(self, w: Array) -> State:
        """Return the updater's state."""
        return self._descent.init(w)

    @property
    def remembers_reads(self) -> bool:
        """Whether the updater does."""
        return self._descent.updater.remembers_reads

    def on_read(self, state: State) -> Array:
        """Return what the updater wants to know."""
        return self._descent.updater.on_read(state)

    def noise_scale(self) -> dict[str, Any] | None:
        """Return the gradient noise scale, unless pushes are no gradients."""
        return self._noise.status() if self._descent.updater.takes_gradients else None

    def admit(self, message: Message) -> Array | dict[str, Array | Sparse]:
        """Return the gradient as one vector, or by name where some of it is sparse.

        Raises
        ------
        BadGradient
            If names, order, types or shapes are not those of the model; if an index is out of
            range or there twice; for NaN and infinities.
        """
        if message.entries == self._entries:
            flat = message.flat(self._dtype)
            _refuse_not_finite(flat, message)
            return flat
        dense = tuple(Entry(*entry[:3]) for entry in message.entries)
        if dense != self._entries:
            raise BadGradient(_difference(self._entries, dense))
        arrays = message.arrays()
        for name, array in arrays.items():
            if isinstance(array, Sparse):
                _refuse_bad_indices(name, array)
                array = array.values
            _refuse_not_finite(array, message)
        return arrays

    def apply(
        self, t: int, pushes: Sequence[Push], w: Array, state: State, new_w: Array, new: State
    ) -> None:
        """Write the t-th update into ``new_w`` and ``new``."""
        first, *rest = pushes
        weight = sum(push.weight for push in pushes)
        if weight <= 0:
            self._refuse_anything(pushes)
            _copy((w, *state), (new_w, *new))
            return
        if rest or isinstance(first.gradient, dict):
            self._total.fill(0.0)
            for push in pushes:
                self._add(push.gradient)
            np.divide(self._total, weight, out=self._total)
        else:
            np.divide(first.gradient, weight, out=self._total)
        if rest:
            self._noise.see_round([(push.gradient, push.weight) for push in pushes], self._total)
        else:
            self._noise.see(self._total, weight)
        since = {} if first.since is None else {"since": first.since}
        self._descent.update(t, self._total, state, w, new_w, new, delay=first.delay, **since)

    def follow(self, push: Push, before: Array | None) -> Push:
        """Nothing has to be known of the push before."""
        return push

    def _refuse_anything(self, pushes: Sequence[Push]) -> None:
        """Rows of weight 0 have gradients of 0: no mean, and nothing to do."""
        self._total.fill(0.0)
        for push in pushes:
            self._add(push.gradient)
        if self._total.any():
            raise BadGradient("the weights sum up to 0: there is no mean gradient", "not_finite")

    def _add(self, gradient: Array | dict[str, Array | Sparse]) -> None:
        if not isinstance(gradient, dict):
            self._total += gradient
            return
        for (_, where), array in zip(self._slices.items(), gradient.values(), strict=True):
            part = self._total[where]
            if isinstance(array, Sparse):
                part[array.indices] += array.values
            else:
                part += array.ravel()


def _copy(sources: Sequence[Array], targets: Sequence[Array]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target[...] = source


def _refuse_not_finite(values: Array, message: Message) -> None:
    if all_finite(values):
        return
    for name, array in message.arrays().items():
        flat = array.values if isinstance(array, Sparse) else array.ravel()
        bad = np.flatnonzero(~np.isfinite(flat))
        if bad.size:
            what = f"{_called(name)} is {flat[bad[0]]} at element {bad[0]}"
            raise BadGradient(f"{what}, one of {bad.size} values that are not finite", "not_finite")


def _refuse_bad_indices(name: str, array: Sparse) -> None:
    indices, size = array.indices, int(np.prod(array.shape))
    outside = (indices < 0) | (indices >= size)
    if outside.any():
        index = int(indices[np.argmax(outside)])
        raise BadGradient(f"{_called(name)} has index {index}; it has {size} elements")
    if np.unique(indices).size != indices.size:
        raise BadGradient(f"{_called(name)} has an index twice; sum the values first")


def _difference(expected: Sequence[Entry], found: Sequence[Entry]) -> str:
    """Say the first thing that does not fit, naming the array."""
    names, there = [entry.name for entry in expected], [entry.name for entry in found]
    if missing := [name for name in names if name not in there]:
        return f"{_called(missing[0])} is missing; the model has {names}"
    if unknown := [name for name in there if name not in names]:
        return f"{_called(unknown[0])} is not in the model, which has {names}"
    for want, have in zip(expected, found, strict=True):
        if want.name != have.name:
            return f"the arrays come in the order {there}; the model's is {names}"
        if want != have:
            return (
                f"{_called(want.name)} is {have.dtype} of shape {have.shape}; the model's is"
                f" {want.dtype} of shape {want.shape}"
            )
    return "the arrays are not those of the model"


def _called(name: str) -> str:
    return f"array {name!r:.80}" if name else "the array"

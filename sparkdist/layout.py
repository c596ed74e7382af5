"""Layout: how a model, one array or several named ones, lies in one flat vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from sparkdist.blocks import Array, reals

__all__ = ["Layout", "Model", "type_of"]

#: What users hand in and get back: one array, or a dict of named arrays.
Model: TypeAlias = "Array | dict[str, Array]"


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's arrays, in the order in which they are flattened.

    A model that is one array, not a dict, has the single name None.
    """

    shapes: tuple[tuple[str | None, tuple[int, ...]], ...]

    @classmethod
    def of(cls, model: ArrayLike | Mapping[str, ArrayLike]) -> Layout:
        """Read the layout off a model."""
        if isinstance(model, Mapping):
            return cls(tuple((name, np.shape(array)) for name, array in model.items()))
        return cls(((None, np.shape(model)),))

    def __str__(self) -> str:
        if self.names:
            return "a dict of " + ", ".join(f"{name}{shape}" for name, shape in self.shapes)
        return f"an array of shape {self.shapes[0][1]}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays; empty for a model that is one array."""
        return tuple(name for name, _ in self.shapes if name is not None)

    @property
    def size(self) -> int:
        """Number of parameters in all."""
        return sum(prod(shape) for _, shape in self.shapes)

    def slices(self) -> dict[str | None, slice]:
        """Where each array lies in the flat vector."""
        found, start = {}, 0
        for name, shape in self.shapes:
            found[name] = slice(start, start + prod(shape))
            start += prod(shape)
        return found

    def flatten(self, model: ArrayLike | Mapping[str, ArrayLike]) -> Array:
        """Copy a model of this layout into one new float64 vector of shape (size,).

        Raises
        ------
        TypeError, ValueError
            For what is no array of numbers.
        """
        arrays = model if isinstance(model, Mapping) else {None: model}
        flat = np.empty(self.size)
        for name, where in self.slices().items():
            flat[where] = reals(arrays[name]).ravel()  # type: ignore[index]
        return flat

    def unflatten(self, flat: Array) -> Model:
        """Show a vector as a model: views of ``flat``, which are not copied."""
        slices = self.slices()
        arrays = {name: flat[slices[name]].reshape(shape) for name, shape in self.shapes}
        if None in arrays:
            return arrays[None]
        return {str(name): array for name, array in arrays.items()}


def type_of(model: Any) -> str:
    """Return the type of a model's vector: float32 if all its arrays are, else float64."""
    arrays = model.values() if isinstance(model, Mapping) else [model]
    single = all(np.asarray(array).dtype == np.float32 for array in arrays)
    return "<f4" if single else "<f8"

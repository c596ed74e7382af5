"""Skeleton: a model of any type, taken apart into its floating-point arrays and the rest.

The arrays are the parameters: one flat vector, which may cross the network.  The rest, a pickle,
may not: it travels as code does, in Spark's closures and from the driver to its own server.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import ChainMap
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from sparkdist.blocks import Array
from sparkdist.layout import Layout

__all__ = ["Skeleton", "arrays_of", "update_of"]

_PARAMETERS = ("<f4", "<f8")
#: The arrays of the model that is being put together.
_arrays: ContextVar[list[Array]] = ContextVar("arrays")
#: What names an element of a sequence; names of a dict are behind a point.
_ELEMENT, _NAMED = "#", "."
Update: TypeAlias = "Any"


@dataclass(frozen=True)
class Skeleton:
    """A model without its arrays.

    The parameters are its NumPy arrays in float32 or float64 that are not empty; arrays of other
    types, and everything else, are as they were when it was taken apart.  An array that is there
    twice is one parameter.  The vector is in float32 if all arrays are, else in float64.

    Parameters
    ----------
    rest
        The pickle of the model without arrays.
    layout, dtypes
        Shape and type of each array, in the order in which the pickle meets them.
    pickler
        What takes models of this kind apart: cloudpickle's where classes come from a notebook.
    """

    rest: bytes
    layout: Layout
    dtypes: tuple[str, ...]
    pickler: type[pickle.Pickler] = pickle.Pickler

    @classmethod
    def of(cls, model: Any, pickler: type[pickle.Pickler] = pickle.Pickler) -> Skeleton:
        """Take a model apart."""
        rest, arrays = _take_apart(model, pickler)
        shapes = tuple((f"{i:04d}", array.shape) for i, array in enumerate(arrays))
        return cls(rest, Layout(shapes), tuple(array.dtype.str for array in arrays), pickler)

    @property
    def dtype(self) -> str:
        """Type of the vector."""
        return "<f4" if set(self.dtypes) == {"<f4"} else "<f8"

    def build(self, w: Array) -> Any:
        """Put a model together; its arrays are copies."""
        views = zip(self.layout.slices().values(), self.layout.shapes, self.dtypes, strict=True)
        arrays = [w[where].reshape(shape).astype(dtype) for where, (_, shape), dtype in views]
        before = _arrays.set(arrays)
        try:
            return pickle.loads(self.rest)  # noqa: S301  # from the driver, never from the network
        finally:
            _arrays.reset(before)

    def read(self, model: Any, w: Array) -> None:
        """Write the model's arrays into a vector.

        Raises
        ------
        ValueError
            If they are not as many, or not of the shapes, as when it was taken apart.
        """
        arrays = _take_apart(model, self.pickler)[1]
        shapes = [shape for _, shape in self.layout.shapes]
        if [array.shape for array in arrays] != shapes:
            found = [array.shape for array in arrays]
            raise ValueError(
                f"the model had float arrays of the shapes {shapes}, and has {found} now: it keeps"
                " those that it had when the server started; give it np.zeros(...) there before"
            )
        for array, where in zip(arrays, self.layout.slices().values(), strict=True):
            w[where] = array.ravel()


def _take_apart(model: Any, pickler: type[pickle.Pickler]) -> tuple[bytes, list[Array]]:
    arrays: list[Array] = []

    def reduce(array: Array) -> Any:
        if array.dtype.str not in _PARAMETERS or not array.size:
            return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        arrays.append(array)
        return _array, (len(arrays) - 1,)

    # The pickler remembers objects, so that an array that is there twice is met once.
    own = getattr(pickler, "dispatch_table", None)
    rest: Any = own if isinstance(own, Mapping) else copyreg.dispatch_table
    table: ChainMap[Any, Any] = ChainMap({np.ndarray: reduce}, rest)
    file = io.BytesIO()
    taker: Any = type("Taker", (pickler,), {"dispatch_table": table})
    taker(file, protocol=pickle.HIGHEST_PROTOCOL).dump(model)
    return file.getvalue(), arrays


def _array(index: int) -> Array:
    return _arrays.get()[index]


def arrays_of(update: Update) -> dict[str, Array]:
    """Name the arrays of an update: an array or a number, or a dict or a sequence of these.

    Float32 stays float32; numbers of all other types travel as float64.

    Raises
    ------
    TypeError
        For anything else in it.
    """
    if isinstance(update, Mapping):
        return {f"{_NAMED}{name}": _real(value, name) for name, value in update.items()}
    if isinstance(update, tuple | list):
        return {f"{_ELEMENT}{i}": _real(value, i) for i, value in enumerate(update)}
    return {"": _real(update, "the update")}


def update_of(arrays: Mapping[str, Array]) -> Update:
    """Return the update whose arrays these are; a tuple comes back as a list."""
    if "" in arrays:
        return arrays[""]
    if any(name.startswith(_ELEMENT) for name in arrays):
        return list(arrays.values())
    return {name.removeprefix(_NAMED): array for name, array in arrays.items()}


def _real(value: Any, name: Any) -> Array:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal length
        array = np.asarray(None)
    if array.dtype.kind not in "fiub":
        rule = "an update is an array or a number, or a dict or a list of these"
        raise TypeError(f"{rule}; {name!r} is a {type(value).__name__} of {array.dtype}")
    dtype = "<f4" if array.dtype == np.float32 else "<f8"
    # ascontiguousarray would make a number an array of one element.
    return np.require(array, dtype, "C") if array.ndim else array.astype(dtype)

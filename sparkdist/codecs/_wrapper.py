"""What the codecs share that wrap another one, and keep a vector of their own beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from sparkdist.blocks import Array
from sparkdist.codecs._base import Codec, State, Values
from sparkdist.codecs._check import contraction
from sparkdist.codecs.top_k import top_k
from sparkdist.fields import settle

if TYPE_CHECKING:
    from sparkdist.layout import Layout

__all__ = ["Wrapper"]


@dataclass(frozen=True)
class Wrapper(Codec):
    """A codec that sends what ``inner`` makes of a vector, and keeps one of shape (d,), first 0.

    The state is that vector, and behind it the state of ``inner``.
    """

    inner: Codec = top_k()

    def __post_init__(self) -> None:
        settle(self, inner=contraction)
        object.__setattr__(self, "sparse", self.inner.sparse)

    def bind(self, layout: Layout) -> Codec:
        """Bind what it wraps."""
        return replace(self, inner=self.inner.bind(layout))

    def init(self, size: int, dtype: DTypeLike) -> State:
        """Return zeros, and behind them the state of what it wraps."""
        return (np.zeros(size, dtype), *self.inner.init(size, dtype))

    def read(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Array:
        """Return what the wrapped codec reads."""
        return self.inner.read(body, size, dtype)

    def read_sparse(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Values:
        """Return what the wrapped codec reads, values and indices."""
        return self.inner.read_sparse(body, size, dtype)

    def longest(self, size: int, dtype: np.dtype[Any]) -> int:
        """As long as what the wrapped codec writes."""
        return self.inner.longest(size, dtype)

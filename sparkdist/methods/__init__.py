"""Methods: each a point in worker loop x consistency x updater, with its paper's constants."""

from sparkdist.methods._base import Method

__all__ = ["Method"]

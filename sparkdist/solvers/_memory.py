"""The limited memory of L-BFGS: the last few pairs (s, y), and the Hessian they stand for."""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from sparkdist.blocks import Array

__all__ = ["Pairs", "inverse_hessian_times", "remember", "restrict"]

#: Steps s and gradient differences y, the newest last.
Pairs: TypeAlias = "deque[tuple[Array, Array]]"


def remember(pairs: Pairs, s: Array, y: Array) -> None:
    """Append the pair, unless it shows no curvature: the update needs s.y > 0."""
    if s @ y > 1e-12 * (y @ y):
        pairs.append((s, y))


def restrict(pairs: Pairs, free: Array) -> Pairs:
    """Return what the pairs say of the free coordinates alone, in vectors of these only."""
    restricted: Pairs = deque()
    for s, y in pairs:
        remember(restricted, s[free], y[free])
    return restricted


def inverse_hessian_times(g: Array, pairs: Pairs) -> Array:
    """H g by the two-loop recursion; g and the vectors of the pairs have shape (d,).

    Source: Nocedal and Wright, Numerical Optimization, 2nd ed., Algorithm 7.4; Liu and Nocedal,
    On the Limited Memory BFGS Method for Large Scale Optimization, Mathematical Programming 45
    (1989).
    """
    q, alphas = g.copy(), []
    for s, y in reversed(pairs):
        alphas.append((s @ q) / (s @ y))
        q -= alphas[-1] * y
    if pairs:
        s, y = pairs[-1]
        q *= (s @ y) / (y @ y)  # H0 = gamma I, equation (7.20)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - (y @ q) / (s @ y)) * s
    return q

"""An engine without Spark: the blocks are a list."""

from __future__ import annotations

import functools
import operator

import numpy as np

from sparkdist.blocks import Array, Block, Partial
from sparkdist.objectives import Objective


class InMemory:
    """Sums over blocks of this process, counted."""

    def __init__(self, *blocks: Block):
        self.blocks, self.passes = blocks, 0

    single_precision = False

    def value_and_grad(self, objective: Objective, w: Array) -> Partial:
        self.passes += 1
        parts = (objective.value_and_grad(w, block) for block in self.blocks)
        return functools.reduce(operator.add, parts)

    def metric(self, objective: Objective, w: Array) -> Partial:
        self.passes += 1
        parts = [objective.metric(w, block) for block in self.blocks]
        weight = float(sum(block.weight.sum() for block in self.blocks))
        return Partial(0.0, np.sum(parts, axis=0), weight)

    def hessp(self, objective: Objective, w: Array, v: Array) -> Partial:
        self.passes += 1
        grad = np.sum([objective.hessp(w, v, block) for block in self.blocks], axis=0)
        return Partial(0.0, grad, float(sum(block.weight.sum() for block in self.blocks)))

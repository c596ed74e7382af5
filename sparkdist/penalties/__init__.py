"""Penalties: one a file, each with value, gradient and proximal operator."""

from sparkdist.penalties._base import Penalty
from sparkdist.penalties.elastic_net import ElasticNet
from sparkdist.penalties.l1 import L1
from sparkdist.penalties.l2 import L2

__all__ = ["L1", "L2", "ElasticNet", "Penalty"]

"""Worker loops: what runs on a partition; they know neither Spark nor HTTP."""

from sparkdist.workers.batches import Batches, Order
from sparkdist.workers.downpour import Units, downpour
from sparkdist.workers.resident import resident

__all__ = ["Batches", "Order", "Units", "downpour", "resident"]

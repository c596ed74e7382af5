"""Worker loops: what runs on a partition; they know neither Spark nor HTTP."""

from sparkdist.workers._base import Cuts, Units, Worker
from sparkdist.workers._batches import Batches, Order
from sparkdist.workers._resident import resident
from sparkdist.workers.downpour import downpour
from sparkdist.workers.elastic import elastic
from sparkdist.workers.local_sgd import local_sgd

__all__ = [
    "Batches",
    "Cuts",
    "Order",
    "Units",
    "Worker",
    "downpour",
    "elastic",
    "local_sgd",
    "resident",
]

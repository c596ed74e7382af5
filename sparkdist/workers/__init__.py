"""Worker loops: what runs on a partition; they know neither Spark nor HTTP."""

from sparkdist.workers._base import Cuts, Units, UnitWorker, Whole, Worker
from sparkdist.workers._batches import Batches, Order
from sparkdist.workers._penalty import share_penalty
from sparkdist.workers._resident import resident
from sparkdist.workers._units import BlockUnits, CutUnits, Epochs
from sparkdist.workers.cocoa import cocoa
from sparkdist.workers.downpour import downpour
from sparkdist.workers.elastic import elastic
from sparkdist.workers.local_sgd import local_sgd
from sparkdist.workers.svrg import svrg

__all__ = [
    "Batches",
    "BlockUnits",
    "CutUnits",
    "Cuts",
    "Epochs",
    "Order",
    "UnitWorker",
    "Units",
    "Whole",
    "Worker",
    "cocoa",
    "downpour",
    "elastic",
    "local_sgd",
    "resident",
    "share_penalty",
    "svrg",
]

"""Consistency policies: may a worker go on, and is this round full?  One a file."""

from sparkdist.consistency._base import Consistency
from sparkdist.consistency.asp import asp
from sparkdist.consistency.backup import backup
from sparkdist.consistency.bsp import bsp
from sparkdist.consistency.rennala import rennala
from sparkdist.consistency.ringmaster import ringmaster
from sparkdist.consistency.ssp import ssp

__all__ = ["Consistency", "asp", "backup", "bsp", "rennala", "ringmaster", "ssp"]

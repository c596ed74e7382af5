"""What a method is made of."""

from __future__ import annotations

from typing import NamedTuple

from sparkdist.codecs import Codec
from sparkdist.consistency import Consistency
from sparkdist.updaters import Updater
from sparkdist.workers import Worker

__all__ = ["Method"]


class Method(NamedTuple):
    """What a call of ``minimize`` on a model server is made of, unless it says otherwise.

    The formulas stand with the worker loop, the policy and the updater that a method names.
    """

    worker: Worker
    consistency: Consistency
    updater: Updater
    codec: Codec | None = None

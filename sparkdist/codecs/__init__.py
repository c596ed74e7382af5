"""Codecs: how a gradient becomes few bytes, one a file; error feedback wraps one of them."""

from sparkdist.codecs._base import Codec, State, stream
from sparkdist.codecs.ef21 import ef21
from sparkdist.codecs.error_feedback import error_feedback
from sparkdist.codecs.float16 import float16
from sparkdist.codecs.one_bit import one_bit
from sparkdist.codecs.power_sgd import power_sgd
from sparkdist.codecs.qsgd import qsgd
from sparkdist.codecs.random_k import random_k
from sparkdist.codecs.sign import sign
from sparkdist.codecs.sparse import sparse
from sparkdist.codecs.top_k import top_k

__all__ = [
    "Codec",
    "State",
    "ef21",
    "error_feedback",
    "float16",
    "one_bit",
    "power_sgd",
    "qsgd",
    "random_k",
    "sign",
    "sparse",
    "stream",
    "top_k",
]

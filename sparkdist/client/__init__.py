"""Parameter clients: how a worker loop talks to the model server."""

from sparkdist.client.compressing import Compressing, Memory
from sparkdist.client.http import HttpClient
from sparkdist.client.passes import PassClient, PassTask, Worker
from sparkdist.client.protocol import Address, Answer, Gradient, ParameterClient
from sparkdist.wire import Entry

__all__ = [
    "Address",
    "Answer",
    "Compressing",
    "Entry",
    "Gradient",
    "HttpClient",
    "Memory",
    "ParameterClient",
    "PassClient",
    "PassTask",
    "Worker",
]

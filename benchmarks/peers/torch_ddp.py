"""torch's DistributedDataParallel over gloo, two processes; prints JSON.  See bench_network.py.

Called with the file of the data, the sizes of the layers, rows of a batch, rate, epochs, rounds.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

PROCESSES = 2


def main() -> None:
    """Start the processes, which find each other at a free port."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    torch.multiprocessing.spawn(train, (port, *sys.argv[1:]), nprocs=PROCESSES)


def train(rank: int, port: int, data: str, *numbers: str) -> None:
    """Train in turns, from the same start; the first process prints."""
    *layers, batch, rate, epochs, rounds = map(float, numbers)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    with np.load(data) as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays}
    X, y = (found[name][rank::PROCESSES].contiguous() for name in ("X", "y"))
    y = y.long()
    seconds, accuracies = [], []
    for _ in range(int(rounds)):
        model = network([int(n) for n in layers])
        start = time.perf_counter()
        descend(model, X, y, int(batch), rate, int(epochs))
        dist.barrier()
        seconds.append(time.perf_counter() - start)
        with torch.no_grad():
            right = model(found["X_test"]).argmax(1) == found["y_test"]
        accuracies.append(float(right.double().mean()))
    if rank == 0:
        name = f"torch {torch.__version__}, DistributedDataParallel over gloo"
        told = {"name": name, "rows": len(found["y"]), "whole": False}
        print(json.dumps({**told, "seconds": seconds, "accuracies": accuracies}))
    dist.destroy_process_group()


def network(layers: list[int]) -> nn.Module:
    """Linear layers with relu between them, the same in every process."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for n_in, n_out in zip(layers[:-1], layers[1:], strict=True):
        parts += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def descend(model: nn.Module, X: Any, y: Any, batch: int, rate: float, epochs: int) -> None:
    """Each epoch is a permutation of the process's rows, cut into batches."""
    together = DistributedDataParallel(model)
    optimizer, loss = torch.optim.SGD(model.parameters(), rate), nn.CrossEntropyLoss()
    dist.barrier()
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(batch):
            optimizer.zero_grad()
            loss(together(X[rows]), y[rows]).backward()
            optimizer.step()


if __name__ == "__main__":
    main()

"""What test_compose.py submits to the cluster: a run left alone, then one to be disturbed.

Each line that it prints is a JSON object; ``spark-submit compose_job.py exactly | on_a_server``.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import time
from typing import Any

import numpy as np
from pyspark.sql import SparkSession

from sparkdist import L2, Dataset, Logistic, ModelServer, Result, datasets, minimize
from sparkdist.consistency import bsp
from sparkdist.updaters import sgd


class Paced(Logistic):
    """Takes its time, so that a worker can be killed in mid-training."""

    def value_and_grad(self, w: Any, block: Any) -> Any:
        time.sleep(0.02)
        return super().value_and_grad(w, block)


def say(**said: Any) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def say_where(data: Dataset) -> None:
    """Which container each partition's blocks are in."""
    say(hosts=data.visit(lambda partition, blocks: socket.gethostname()))


def exactly(data: Dataset) -> Result:
    def tell(now: Any) -> None:
        say(at=now["nit"])

    options = {"penalty": L2(1e-3), "tol": 1e-9, "deterministic": True}
    return minimize(Paced(), data, callback=tell, **options)


def on_a_server(data: Dataset) -> Result:
    def tell(status: dict[str, Any]) -> None:
        say(at=status["version"])

    with ModelServer(
        np.zeros(data.n_features), updater=sgd(1.0), consistency=bsp(), penalty=L2(1e-3)
    ) as server:
        return server.train(data, Paced(), batch_size=512, epochs=10, callback=tell)


def main(path: str) -> None:
    spark = SparkSession.builder.appName(f"compose {path}").getOrCreate()
    # One worker has two task slots: should the other one die, there is room for both partitions.
    with Dataset.from_arrays(spark, *datasets.load("a9a"), n_partitions=2) as data:
        for run in ("undisturbed", "disturbed"):
            say_where(data)
            say(begins=run)
            result = {"exactly": exactly, "on_a_server": on_a_server}[path](data)
            bits = hashlib.sha256(result.x.tobytes()).hexdigest()
            say(run=run, objective=result.fun, bits=bits)
        say_where(data)
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1])

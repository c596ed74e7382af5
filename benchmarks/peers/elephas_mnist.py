"""Elephas, asynchronous, parameters fetched and sent for each batch; prints JSON.

See bench_network.py.  Called with the file of the data, the sizes of the layers, rows of a batch,
rate, epochs, rounds; of these one is made, since it takes a minute.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from importlib.metadata import version
from typing import Any

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "SPARK_LOCAL_IP": "127.0.0.1",
    "PYSPARK_PYTHON": sys.executable,
}

import keras
import numpy as np
from elephas.spark_model import AsynchronousSparkModel
from elephas.utils.rdd_utils import to_simple_rdd
from pyspark.sql import SparkSession


def main() -> None:
    """Train once."""
    data, *numbers = sys.argv[1:]
    *layers, batch, rate, epochs, _ = map(float, numbers)
    with np.load(data) as arrays:
        found = dict(arrays)
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.driver.memory", "6g")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    rows = to_simple_rdd(spark.sparkContext, found["X"], found["y"]).repartition(2).cache()
    rows.foreachPartition(import_all)  # and caches the rows
    model = network([int(n) for n in layers], rate)
    spark_model = AsynchronousSparkModel(
        model,
        batch_size=int(batch),
        mode="asynchronous",
        frequency="batch",
        parameter_server_mode="http",
        port=free_port(),
    )
    start = time.perf_counter()
    spark_model.fit(
        rows, epochs=int(epochs), batch_size=int(batch), verbose=0, validation_split=0.0
    )
    seconds = time.perf_counter() - start
    scores = spark_model.master_network.predict(found["X_test"], verbose=0)
    accuracy = float(np.mean(scores.argmax(1) == found["y_test"]))
    spark.stop()
    versions = ", ".join(f"{name} {version(name)}" for name in ("keras", "pyspark"))
    name = f"Elephas {version('elephas')}, asynchronous, http ({versions})"
    told = {"name": name, "rows": len(found["y"]), "whole": True}
    print(json.dumps({**told, "seconds": [seconds], "accuracies": [accuracy]}))


def import_all(rows: Any) -> None:
    """Have a Python worker of Spark import TensorFlow before the clock starts."""
    import elephas.worker  # noqa: F401

    for _ in rows:
        pass


def network(layers: list[int], rate: float) -> keras.Model:
    """Dense layers, relu between them and softmax at the end."""
    keras.utils.set_random_seed(0)
    *hidden, last = layers[1:]
    parts = [keras.layers.Dense(n, activation="relu") for n in hidden]
    model = keras.Sequential(
        [keras.Input((layers[0],)), *parts, keras.layers.Dense(last, activation="softmax")]
    )
    model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy")
    return model


def free_port() -> int:
    """Return a port of loopback that nobody uses."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


if __name__ == "__main__":
    main()

"""A small network on Fashion-MNIST, every batch pulled and pushed: rows a second and accuracy.

Beside it Elephas and torch's DistributedDataParallel, each in an environment of its own.
``--with elephas torch`` makes the environments, in the folder that the environment variable
PEER_ENVIRONMENTS names; what stands there already is used without being asked for.  Where the
variable is not set they are made in a temporary folder, every time.  The data is found as in
bench_softmax.py.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
from bench_softmax import PLACES
from common import report, start_session

from sparkdist import MLP, Dataset, ModelServer
from sparkdist.blocks import Array
from sparkdist.consistency import asp
from sparkdist.result import TrainingHistory
from sparkdist.updaters import sgd

LAYERS, BATCH, RATE, WORKERS, SEED = (784, 128, 10), 64, 0.1, 2, 0
PEERS = Path(__file__).parent / "peers"
SCRIPTS = {"elephas": "elephas_mnist.py", "torch": "torch_ddp.py"}
#: What pip installs, and what it installs without what that asks for.  Elephas asks for tensorflow,
#: whose build for CPUs has another name; torch 2.13.0 is 2.13.0+cpu where pip finds that.
PACKAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "elephas": (
        ("tensorflow-cpu<2.20", "flask==2.3.3", "h5py==3.11.0", "numpy<2", "pyspark<=4.0.0"),
        ("elephas==7.3.0",),
    ),
    "torch": (("torch==2.13.0", "numpy"), ()),
}
INSTALL_SECONDS, RUN_SECONDS = 1200, 1800


def main() -> None:
    """Train with one after the other; print and write the table."""
    arguments = parsed()
    n = arguments.epochs
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.npz")
        np.savez(data, **read("train", ""), **read("t10k", "_test"))
        found, told = ours(data, n, arguments.rounds)
        rows = [found]
        place = Path(os.environ.get("PEER_ENVIRONMENTS", folder))
        for name in PACKAGES:
            try:
                python = environment(name, place, make=name in arguments.peers)
                rows.append(theirs(name, python, data, n, arguments.rounds))
            except (OSError, subprocess.SubprocessError, LookupError) as trouble:
                print(f"{name} is skipped: {trouble}")
    notes = [
        f"{n} epochs of 60,000 rows by two workers with one BLAS thread each, on the cores"
        f" that they share with the server; steps of {RATE} times the mean gradient of 64 rows, or"
        " with torch of twice 64. Before the clock starts data are ingested or"
        " loaded and Spark's Python workers have imported what they need.",
        "Whole: for sparkdist the call of `train`, with Spark's jobs and two passes for the"
        " objective; for Elephas the call of `fit`, with the start of its server. Batches: from"
        " the first to the last push that the driver sees applied, looking five times a second;"
        f" for torch from the first batch to the last. {told}",
    ]
    title = f"A network of {'-'.join(map(str, LAYERS))} on Fashion-MNIST, float32, batches of 64"
    report("network", title, rows, notes)


def parsed() -> Any:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5, help="trainings; with Elephas only one")
    parser.add_argument("--with", dest="peers", nargs="+", choices=PACKAGES, default=[])
    return parser.parse_args()


def read(part: str, suffix: str) -> dict[str, Array]:
    """Images in [0, 1] as float32, and labels, named X and y with a suffix."""
    for place in filter(None, PLACES):
        images = Path(place, f"{part}-images-idx3-ubyte.gz")
        if images.exists():
            labels = images.with_name(f"{part}-labels-idx1-ubyte.gz")
            y = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
            X = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16)
            scaled = X.reshape(len(y), LAYERS[0]).astype(np.float32) / np.float32(255)
            return {f"X{suffix}": scaled, f"y{suffix}": y.astype(float)}
    raise SystemExit(f"Fashion-MNIST is in none of {PLACES}; apt-get install dataset-fashion-mnist")


def ours(data: Path, epochs: int, rounds: int) -> tuple[dict[str, Any], str]:
    """Train with sparkdist; a row of the table, and what the server and staleness were."""
    with np.load(data) as arrays:
        X, y, X_test, y_test = (arrays[name] for name in ("X", "y", "X_test", "y_test"))
    network, spark = MLP(list(LAYERS)), start_session()
    whole, batches, accuracies, around, stale = [], [], [], [], 0.0
    with Dataset.from_arrays(spark, X, y, n_partitions=WORKERS) as rows:
        for number in range(rounds + 1):
            began = time.perf_counter()
            model = network.initial(SEED, dtype=np.float32)
            with ModelServer(model, updater=sgd(RATE), consistency=asp()) as server:
                start = time.perf_counter()
                result = server.train(
                    rows, network, batch_size=BATCH, epochs=epochs, seed=SEED, progress=False
                )
                took = time.perf_counter() - start
            if number == 0:
                continue  # Spark's Python workers imported what they need
            around.append(time.perf_counter() - began - took)
            whole.append(epochs * len(y) / took)
            batches.append(rate_of_batches(result.history))
            accuracies.append(float(np.mean(result.model.predict(X_test) == y_test)))
            stale = result.history.staleness[-1]
            if result.history.examples[-1] != epochs * len(y):
                raise SystemExit(f"not every batch was pushed and applied: {result.counts}")
    spark.stop()
    told = (
        f"Starting and ending sparkdist's server took {statistics.median(around):.1f} s more;"
        f" its gradients were {stale:.2f} versions old in the mean."
    )
    return row("sparkdist, asp()", whole, batches, accuracies), told


def rate_of_batches(history: TrainingHistory) -> float:
    """Rows a second between the first and the last push that the driver saw applied."""
    first = next(i for i, seen in enumerate(history.examples) if seen)
    last = history.examples.index(history.examples[-1])
    rows = history.examples[last] - history.examples[first]
    return rows / (history.seconds[last] - history.seconds[first])


def row(
    name: str, whole: list[float], batches: list[float], accuracies: list[float]
) -> dict[str, Any]:
    """One line of the table."""
    return {
        "two workers": name,
        "whole: samples/s (median)": statistics.median(whole) if whole else "",
        "whole: best": max(whole) if whole else "",
        "batches: samples/s (median)": statistics.median(batches) if batches else "",
        "batches: best": max(batches) if batches else "",
        "trainings": len(accuracies),
        "test accuracy (median)": f"{statistics.median(accuracies):.4f}",
    }


def environment(name: str, place: Path, *, make: bool) -> Path:
    """Return the Python of a peer's environment, which is made if that was asked for.

    Raises
    ------
    LookupError
        If there is none and none was asked for.
    OSError, SubprocessError
        If it cannot be made.
    """
    folder = place / name
    python, whole = folder / "bin" / "python", folder / "installed"
    if whole.exists():
        return python
    if not make:
        raise LookupError(f"it has no environment; --with {name} makes one")
    venv.create(folder, clear=True, with_pip=True)
    packages, bare = PACKAGES[name]
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    quiet([*pip, *packages], INSTALL_SECONDS)
    if bare:
        quiet([*pip, "--no-deps", *bare], INSTALL_SECONDS)
    whole.touch()
    return python


def theirs(name: str, python: Path, data: Path, epochs: int, rounds: int) -> dict[str, Any]:
    """Run a peer's script in its environment; a row of the table.

    Raises
    ------
    OSError, SubprocessError, LookupError
        If that fails.
    """
    numbers = [*map(str, (*LAYERS, BATCH, RATE, epochs, rounds))]
    said = quiet([str(python), str(PEERS / SCRIPTS[name]), str(data), *numbers], RUN_SECONDS)
    found = json.loads(said.splitlines()[-1])
    rates = [epochs * found["rows"] / seconds for seconds in found["seconds"]]
    whole, batches = (rates, []) if found["whole"] else ([], rates)
    return row(found["name"], whole, batches, found["accuracies"])


def quiet(command: list[str], seconds: float) -> str:
    """Run a command without this environment's Python; return what it prints.

    Raises
    ------
    SubprocessError
        With its last words, if it fails or takes too long.
    """
    removed = ("PYTHONPATH", "PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "SPARK_HOME")
    clean = {key: value for key, value in os.environ.items() if key not in removed}
    done = subprocess.run(
        command, env=clean, timeout=seconds, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = " ".join(done.stderr.split())[-300:]
        raise subprocess.SubprocessError(f"{' '.join(command[:4])} ended with {last!r}")
    return done.stdout


if __name__ == "__main__":
    main()

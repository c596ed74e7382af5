"""Softmax on Fashion-MNIST, 60,000 x 784, 100 L-BFGS iterations: against MLlib and one process.

The data is the Debian package dataset-fashion-mnist; or name a folder with its IDX files in
the environment variable FASHION_MNIST.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
from common import PeakMemory, report, seconds, start_session
from scipy.optimize import minimize as scipy_minimize

from sparkdist import L2, Dataset, Softmax, minimize
from sparkdist.blocks import Array, Block

STRENGTH, ITERATIONS, CLASSES = 1e-4, 100, 10
PLACES = (
    os.environ.get("FASHION_MNIST", ""),
    str(Path(__file__).parents[2] / "shared" / "data" / "fashion-mnist"),
    "/usr/share/datasets/fashion-mnist",
)


def main() -> None:
    """Run each contender once after the other, in one process tree."""
    X, y = load()
    rows = [
        scipy_alone(X, y),
        scikit_learn(X, y),
        *on_spark(X, y),
    ]
    slowest = next(row for row in rows if "MLlib" in row["100 iterations"])
    for row in rows:
        row["times faster than MLlib"] = round(slowest["seconds"] / row["seconds"], 2)
    notes = [
        "sparkdist: from the cached DataFrame to the result, ingest included; the single processes"
        " have the arrays in memory. One BLAS thread each. Memory is of all processes, JVM"
        " and cached DataFrame included."
    ]
    report("softmax", "Softmax on Fashion-MNIST, 60,000 x 784 float64, L2 1e-4", rows, notes)


def load() -> tuple[Array, Array]:
    """Read the training images, scaled to [0, 1], and labels."""
    for place in filter(None, PLACES):
        images = Path(place, "train-images-idx3-ubyte.gz")
        if images.exists():
            labels = images.with_name("train-labels-idx1-ubyte.gz")
            X = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16)
            y = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
            return X.reshape(len(y), 784) / 255.0, y.astype(float)
    raise SystemExit(f"Fashion-MNIST is in none of {PLACES}; apt-get install dataset-fashion-mnist")


def objective(W: Array, X: Array, y: Array) -> float:
    """Mean loss plus penalty, the same for all contenders; W has shape (d, K)."""
    total = Softmax(CLASSES).value_and_grad(W.ravel(), Block(X, y, np.ones(len(y))))
    return total.loss / total.weight + STRENGTH / 2 * float((W**2).sum())


def row(name: str, took: float, value: float, iterations: int, peak: float) -> dict[str, Any]:
    """One line of the table."""
    return {
        "100 iterations": name,
        "seconds": round(took, 1),
        "objective": f"{value:.6f}",
        "iterations": iterations,
        "peak memory, MB": round(peak),
    }


def scipy_alone(X: Array, y: Array) -> dict[str, Any]:
    """SciPy's L-BFGS-B on one block of all rows."""
    loss, block = Softmax(CLASSES), Block(X, y, np.ones(len(y)))

    def fun(w: Array) -> tuple[float, Array]:
        total = loss.value_and_grad(w, block)
        value = total.loss / total.weight + STRENGTH / 2 * float(w @ w)
        return value, total.grad / total.weight + STRENGTH * w

    options = {"maxiter": ITERATIONS, "maxfun": 10 * ITERATIONS, "ftol": 0.0, "gtol": 0.0}
    found: Any = None

    def work() -> None:
        nonlocal found
        found = scipy_minimize(fun, np.zeros(7840), jac=True, method="L-BFGS-B", options=options)

    with PeakMemory() as memory:
        took = seconds(work)
    return row("SciPy, one process", took, found.fun, found.nit, memory.peak)


def scikit_learn(X: Array, y: Array) -> dict[str, Any]:
    """scikit-learn's LogisticRegression, whose lbfgs is SciPy's too."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=1 / (STRENGTH * len(y)), fit_intercept=False, max_iter=ITERATIONS, tol=1e-12
    )
    import warnings

    with PeakMemory() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops at 100 iterations, as asked
        took = seconds(lambda: model.fit(X, y))
    value = objective(model.coef_.T, X, y)
    return row("scikit-learn, one process", took, value, int(model.n_iter_[0]), memory.peak)


def on_spark(X: Array, y: Array) -> list[dict[str, Any]]:
    """Run sparkdist and MLlib on one cached DataFrame."""
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.functions import array_to_vector

    spark = start_session("8g")
    arrays = spark.createDataFrame(_table(X, y)).select(
        array_to_vector("x").alias("features"), "label"
    )
    df = arrays.repartition(2).cache()
    df.count()
    found: Any = None

    def ours() -> None:
        nonlocal found
        with Dataset.from_dataframe(df) as data:
            found = minimize(
                Softmax(CLASSES),
                data,
                penalty=L2(STRENGTH),
                tol=0.0,
                max_iter=ITERATIONS,
                progress=False,
            )

    with PeakMemory() as memory:
        took = seconds(ours)
    rows = [row("sparkdist, aggregate engine", took, found.fun, found.nit, memory.peak)]

    def theirs() -> None:
        nonlocal found
        estimator = LogisticRegression(
            family="multinomial",
            regParam=STRENGTH,
            elasticNetParam=0.0,
            standardization=False,
            fitIntercept=False,
            maxIter=ITERATIONS,
            tol=0.0,
        )
        found = estimator.fit(df)

    with PeakMemory() as memory:
        took = seconds(theirs)
    value = objective(found.coefficientMatrix.toArray().T, X, y)
    iterations = len(found.summary.objectiveHistory) - 1
    rows.append(row("Spark MLlib", took, value, iterations, memory.peak))
    spark.stop()
    return rows


def _table(X: Array, y: Array) -> Any:
    import pyarrow as pa

    n, d = X.shape
    offsets = pa.array(np.arange(0, n * d + 1, d, dtype=np.int32))
    lists = pa.ListArray.from_arrays(offsets, pa.array(X.ravel()))
    return pa.table({"x": lists, "label": pa.array(y)})


if __name__ == "__main__":
    main()

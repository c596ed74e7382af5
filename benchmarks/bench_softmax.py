"""Softmax on Fashion-MNIST, 60,000 x 784, 100 L-BFGS iterations: against MLlib and one process.

The data is the Debian package dataset-fashion-mnist; or name a folder with its IDX files in
the environment variable FASHION_MNIST.
"""

from __future__ import annotations

import gzip
import os
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import PeakMemory, median_ratio, report, seconds, start_session
from scipy.optimize import minimize as scipy_minimize
from threadpoolctl import threadpool_limits

from sparkdist import L2, Dataset, Softmax, minimize
from sparkdist.blocks import Array, Block

STRENGTH, ITERATIONS, CLASSES = 1e-4, 100, 10
#: Of the resident engine and of SciPy alone, which are near each other.
TURNS = 3
PLACES = (
    os.environ.get("FASHION_MNIST", ""),
    str(Path(__file__).parents[2] / "shared" / "data" / "fashion-mnist"),
    "/usr/share/datasets/fashion-mnist",
)


class Contender:
    """A fit, ``() -> (W of shape (d, K), iterations)``, its times, and memory of the first turn."""

    def __init__(self, name: str, fit: Callable[[], tuple[Array, int]]):
        self.name, self._fit = name, fit
        self.times: list[float] = []
        self.peak = 0.0

    def run(self) -> None:
        """Fit once more."""

        def work() -> None:
            self.W, self.iterations = self._fit()

        with PeakMemory() as memory:
            self.times.append(seconds(work))
        self.peak = self.peak or memory.peak

    def row(self, X: Array, y: Array) -> dict[str, Any]:
        """Give a line of the table; the objective is of float64, whatever the blocks were."""
        return {
            "100 iterations": self.name,
            "seconds": round(statistics.median(self.times), 1),
            "objective": f"{objective(self.W, X, y):.6f}",
            "iterations": self.iterations,
            "peak memory, MB": round(self.peak),
        }


def main() -> None:
    """Run the single processes, then those on Spark; the near ones in turns."""
    X, y = load()
    alone = Contender("SciPy, one process", lambda: scipy_alone(X, y))
    threaded = Contender("SciPy, one process, 2 threads", lambda: scipy_alone(X, y, threads=2))
    learn = Contender("scikit-learn, one process", lambda: scikit_learn(X, y))
    for contender in (alone, threaded, learn):
        contender.run()
    spark = start_session("8g")
    df = cached(spark, X, y)
    name = "sparkdist, resident engine"
    resident = Contender(name, lambda: ours(df, "resident"))
    halved = Contender(f"{name}, dtype float32", lambda: ours(df, "resident", "float32"))
    turns = [resident, halved, *[alone, resident, halved] * (TURNS - 1)]
    for contender in turns:
        contender.run()
    aggregate = Contender("sparkdist, aggregate engine", lambda: ours(df, "aggregate"))
    mllib = Contender("Spark MLlib", lambda: theirs(df))
    aggregate.run()
    mllib.run()
    spark.stop()
    contenders = (alone, threaded, learn, resident, halved, aggregate, mllib)
    rows = [contender.row(X, y) for contender in contenders]
    for row in rows:
        row["times faster than MLlib"] = round(rows[-1]["seconds"] / row["seconds"], 2)
    times = median_ratio(alone.times, resident.times)
    halved_times = median_ratio(alone.times, halved.times)
    notes = [
        "sparkdist: from the cached DataFrame to the result, ingest included; the single processes"
        " have the arrays in memory. One BLAS thread each, but where it says 2. Memory is of all"
        " processes, JVM and cached DataFrame included.",
        f"The resident engine and SciPy: medians of {TURNS} turns, in each of which SciPy takes"
        f" {times:.2f} times as long as the resident engine, and {halved_times:.2f} times as long"
        " as that takes on float32.",
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


def scipy_alone(X: Array, y: Array, threads: int = 1) -> tuple[Array, int]:
    """SciPy's L-BFGS-B on one block of all rows."""
    loss, block = Softmax(CLASSES), Block(X, y, np.ones(len(y)))

    def fun(w: Array) -> tuple[float, Array]:
        total = loss.value_and_grad(w, block)
        value = total.loss / total.weight + STRENGTH / 2 * float(w @ w)
        return value, total.grad / total.weight + STRENGTH * w

    options = {"maxiter": ITERATIONS, "maxfun": 10 * ITERATIONS, "ftol": 0.0, "gtol": 0.0}
    # NumPy may have been loaded before OMP_NUM_THREADS was set.
    with threadpool_limits(threads):
        found = scipy_minimize(fun, np.zeros(7840), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(-1, CLASSES), found.nit


def scikit_learn(X: Array, y: Array) -> tuple[Array, int]:
    """scikit-learn's LogisticRegression, whose lbfgs is SciPy's too."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=1 / (STRENGTH * len(y)), fit_intercept=False, max_iter=ITERATIONS, tol=1e-12
    )
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops at 100 iterations, as asked
        model.fit(X, y)
    return model.coef_.T, int(model.n_iter_[0])


def cached(spark: Any, X: Array, y: Array) -> Any:
    """A cached DataFrame of Spark's vectors, in two partitions."""
    from pyspark.ml.functions import array_to_vector

    arrays = spark.createDataFrame(_table(X, y)).select(
        array_to_vector("x").alias("features"), "label"
    )
    df = arrays.repartition(2).cache()
    df.count()
    return df


def ours(df: Any, engine: str, dtype: str = "float64") -> tuple[Array, int]:
    """Ingest the DataFrame, and fit on an engine."""
    with Dataset.from_dataframe(df, dtype=dtype) as data:
        found = minimize(
            Softmax(CLASSES),
            data,
            penalty=L2(STRENGTH),
            engine=engine,
            tol=0.0,
            max_iter=ITERATIONS,
            progress=False,
        )
    return found.x, found.nit


def theirs(df: Any) -> tuple[Array, int]:
    """Fit MLlib's LogisticRegression."""
    from pyspark.ml.classification import LogisticRegression

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
    return found.coefficientMatrix.toArray().T, len(found.summary.objectiveHistory) - 1


def _table(X: Array, y: Array) -> Any:
    import pyarrow as pa

    n, d = X.shape
    offsets = pa.array(np.arange(0, n * d + 1, d, dtype=np.int32))
    lists = pa.ListArray.from_arrays(offsets, pa.array(X.ravel()))
    return pa.table({"x": lists, "label": pa.array(y)})


if __name__ == "__main__":
    main()

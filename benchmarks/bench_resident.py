"""The resident engine: a pass on tiny data, fits against MLlib, how a pass grows, threads.

With ``--fast-ingest`` only the dense fit, in a session with the two settings of docs/resident.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from common import report, seconds, start_session
from scipy.optimize import minimize as scipy_minimize
from scipy.sparse import csr_array
from scipy.special import expit
from threadpoolctl import threadpool_limits

from sparkdist import L2, Dataset, Logistic, datasets, minimize
from sparkdist.blocks import Array, Block, Matrix
from sparkdist.spark.engines.aggregate import AggregateEngine
from sparkdist.spark.engines.resident import ResidentEngine

#: Rounds of the tiny pass, and passes of each engine in a round.
TURNS, PASSES = 8, {"aggregate": 6, "resident": 40}
#: A-L2s: a9a without an intercept and with this penalty, its optimum to 1e-13, and the gap asked
#: for.  SciPy's L-BFGS-B, scikit-learn's newton-cg and our newton_cg agree on the optimum.
A9A_L2, A9A_OPTIMUM, A9A_GAP = 1e-5, 0.32293307671398, 1e-9
#: MLlib is within that gap after 392 iterations, and is let off there; its tol goes by the value.
A9A_MLLIB = 400
DENSE_ROWS, DENSE_COLUMNS, DENSE_L2, DENSE_GAP = 500_000, 100, 1e-4, 1e-6
#: And here after 48.
DENSE_MLLIB = 50
#: The pass grows from here by 1, 2, 4 and 8: rows of 100 columns; columns of 125,000 rows.
ROWS, COLUMNS, TIMES = (62_500, 100), (125_000, 50), (1, 2, 4, 8)
GROWTH_PASSES, BANDWIDTH_BYTES = 25, 512 << 20
THREADS_SHAPE = (125_000, 400)
#: Of docs/resident.md, for local mode.
UNCHECKED, IN_MEMORY = "-Darrow.enable_unsafe_memory_access=true", "/dev/shm"

PRE = "preconditioned_lbfgs"

Fit = Callable[[], Array]


def main() -> None:
    """Measure, print and write the four tables, or the one of ``--fast-ingest``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast-ingest", action="store_true")
    if parser.parse_args().fast_ingest:
        fast_ingest()
        return
    spark = start_session("8g")
    tiny(spark)
    # NumPy may have been loaded before OMP_NUM_THREADS was set.
    with threadpool_limits(1):
        fits(spark)
    growth(spark)
    spark.stop()
    threads()


# --- a pass on tiny data --------------------------------------------------------------------


def tiny(spark: Any) -> None:
    """Time passes of both engines, one after the other on the same two task slots."""
    random = np.random.default_rng(0)
    X, y = random.normal(size=(2000, 100)), random.integers(0, 2, 2000).astype(float)
    w, loss = np.zeros(100), Logistic()
    with Dataset.from_arrays(spark, X, y, n_partitions=2) as data:
        engines = {"aggregate": AggregateEngine(data), "resident": ResidentEngine(data)}
        turns: dict[str, list[list[float]]] = {name: [] for name in engines}
        for _ in range(TURNS):
            for name, engine in engines.items():
                turns[name].append(timed_passes(engine, loss, w, PASSES[name]))
    medians = {name: [statistics.median(times) for times in turns[name]] for name in turns}
    ratios = [a / b for a, b in zip(medians["aggregate"], medians["resident"], strict=True)]
    rows = []
    for name, found in turns.items():
        times = np.concatenate(found)
        rows.append(
            {
                "2,000 x 100, 2 workers": f"a pass of the {name} engine",
                "ms (median)": round(float(np.median(times)) * 1e3, 2),
                "ms (quarter below)": round(float(np.percentile(times, 25)) * 1e3, 2),
                "times less": round(statistics.median(ratios), 1) if name == "resident" else 1.0,
            }
        )
    note = (
        f"{TURNS} turns of {PASSES['aggregate']} and {PASSES['resident']} passes; the ratio is the"
        " median of the turns'."
    )
    report("resident_pass", "A pass of the resident engine", rows, [note])


def timed_passes(engine: Any, loss: Logistic, w: Array, n: int) -> list[float]:
    """Time passes when the workers are there: the first two are not counted."""
    return [seconds(lambda: engine.value_and_grad(loss, w)) for _ in range(n + 2)][2:]


# --- fits -----------------------------------------------------------------------------------


class Problem:
    """Mean logistic loss of rows in memory, plus an L2 penalty; labels are 0 and 1."""

    def __init__(self, name: str, X: Matrix, y: Array, strength: float, gap: float):
        self.name, self.X, self.y, self.strength, self.gap = name, X, y, strength, gap
        self._block = Block(X, y, np.ones(len(y)))
        self.optimum = np.inf

    def __call__(self, w: Array) -> tuple[float, Array]:
        """Value and gradient, on one block of all rows."""
        total = Logistic().value_and_grad(w, self._block)
        value = total.loss / total.weight + self.strength / 2 * float(w @ w)
        return value, total.grad / total.weight + self.strength * w

    def scipy(self, gtol: float) -> Array:
        """SciPy's L-BFGS-B, with a step too short for double precision as the only other end."""
        options = {"ftol": 0.0, "gtol": gtol, "maxiter": 10_000, "maxfun": 10_000}
        zero = np.zeros(self.X.shape[1])
        found = scipy_minimize(self, zero, jac=True, method="L-BFGS-B", options=options)
        return np.asarray(found.x)

    def scikit_learn(self, solver: str, tol: float) -> Array:
        """scikit-learn's LogisticRegression of the same problem."""
        from sklearn.linear_model import LogisticRegression

        C = 1 / (self.strength * len(self.y))
        model = LogisticRegression(
            C=C, fit_intercept=False, solver=solver, tol=tol, max_iter=10_000
        )
        return np.asarray(model.fit(self.X, self.y).coef_).ravel()

    def mllib(self, df: Any, max_iter: int) -> Array:
        """Spark MLlib's LogisticRegression of the same problem."""
        from pyspark.ml.classification import LogisticRegression

        estimator = LogisticRegression(
            regParam=self.strength,
            elasticNetParam=0.0,
            standardization=False,
            fitIntercept=False,
            maxIter=max_iter,
            tol=0.0,
        )
        return np.asarray(estimator.fit(df).coefficients.toArray())

    def sparkdist(
        self, df: Any, method: str, tol: float, dtype: str = "float64", **options: Any
    ) -> Array:
        """Fit on the resident engine, from the DataFrame on."""
        call: dict[str, Any] = {"method": method, "penalty": L2(self.strength), "tol": tol}
        call |= {"progress": False, **options}
        if dtype == "float64":
            return np.asarray(minimize(Logistic(), df, engine="resident", **call).x)
        with Dataset.from_dataframe(df, dtype=dtype) as data:
            return np.asarray(minimize(Logistic(), data, engine="resident", **call).x)


FIT_NOTES = [
    "sparkdist and MLlib: from the cached DataFrame to the result, ingest included; the single"
    " processes have the arrays in memory, and one BLAS thread. The median of three turns counts."
    " MLlib is stopped at the iteration that is near enough.",
    "The gap is above the optimum, in float64 on all rows.",
]


def fits(spark: Any) -> None:
    """Both problems; of each contender the loosest power of ten as tol that reaches the gap."""
    rows = [*sparse_fits(spark, rounds=3), *dense_fits(spark, rounds=3)]
    report("resident_fit", "Logistic regression on the resident engine", rows, FIT_NOTES)


def fast_ingest() -> None:
    """The dense problem in a session that is set for a faster ingest."""
    with TemporaryDirectory(dir=IN_MEMORY) as folder:
        options = {"spark__local__dir": folder, "spark__driver__extraJavaOptions": UNCHECKED}
        spark = start_session("8g", **options)
        with threadpool_limits(1):
            rows = dense_fits(spark, rounds=3)
        spark.stop()
    notes = [*FIT_NOTES, f"Java has `{UNCHECKED}`; `spark.local.dir` is in {IN_MEMORY}."]
    report("resident_fit_set", "The dense fit with settings for a faster ingest", rows, notes)


def sparse_fits(spark: Any, rounds: int) -> list[dict[str, Any]]:
    """Fit a9a."""
    problem = a9a()
    df = cached(spark, problem)
    contenders: dict[str, Fit] = {
        "Spark MLlib": lambda: problem.mllib(df, A9A_MLLIB),
        "sparkdist, resident, lbfgs": lambda: problem.sparkdist(df, "lbfgs", 1e-7),
        "the same, memory=50": lambda: problem.sparkdist(df, "lbfgs", 1e-7, memory=50),
        "sparkdist, resident, newton_cg": lambda: problem.sparkdist(df, "newton_cg", 1e-6),
        "sparkdist, resident, preconditioned_lbfgs": lambda: problem.sparkdist(df, PRE, 1e-6),
        "scikit-learn, one process, lbfgs": lambda: problem.scikit_learn("lbfgs", 1e-7),
        "scikit-learn, one process, newton-cg": lambda: problem.scikit_learn("newton-cg", 1e-6),
    }
    problem.mllib(df, 3)  # the JVM compiles what it is going to need
    rows = compared(problem, contenders, rounds)
    df.unpersist()
    return rows


def dense_fits(spark: Any, rounds: int) -> list[dict[str, Any]]:
    """Fit the dense rows."""
    problem = dense()
    df = cached(spark, problem)
    contenders: dict[str, Fit] = {
        "Spark MLlib": lambda: problem.mllib(df, DENSE_MLLIB),
        "sparkdist, resident, lbfgs": lambda: problem.sparkdist(df, "lbfgs", 1e-4),
        "the same, memory=50": lambda: problem.sparkdist(df, "lbfgs", 4e-5, memory=50),
        "the same, float32": lambda: problem.sparkdist(df, "lbfgs", 4e-5, "float32", memory=50),
        "sparkdist, resident, preconditioned_lbfgs": lambda: problem.sparkdist(df, PRE, 1e-4),
        "sparkdist, resident, preconditioned_lbfgs, float32": lambda: problem.sparkdist(
            df, PRE, 1e-4, "float32"
        ),
        "SciPy, one process": lambda: problem.scipy(1e-4),
        "scikit-learn, one process, newton-cg": lambda: problem.scikit_learn("newton-cg", 1e-4),
    }
    problem.mllib(df, 3)  # the JVM compiles what it is going to need
    rows = compared(problem, contenders, rounds)
    df.unpersist()
    return rows


def compared(problem: Problem, contenders: dict[str, Fit], rounds: int) -> list[dict[str, Any]]:
    """Let them fit in turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    reached: dict[str, float] = {}
    for _ in range(rounds):
        for name, fit in contenders.items():
            start = time.perf_counter()
            w = fit()
            times[name].append(time.perf_counter() - start)
            reached[name] = problem(w)[0] - problem.optimum
    mllib = statistics.median(times["Spark MLlib"])
    return [
        {
            "logistic regression": f"{problem.name}: {name}",
            "seconds": round(statistics.median(times[name]), 2),
            "gap": f"{reached[name]:.0e}" + (" (too large)" if reached[name] > problem.gap else ""),
            "times faster than MLlib": round(mllib / statistics.median(times[name]), 1),
        }
        for name in contenders
    ]


def a9a() -> Problem:
    """A-L2s: ill-conditioned."""
    X, y = datasets.load("a9a")
    problem = Problem("a9a, L2 1e-5, to 1e-9", X, (y > 0).astype(float), A9A_L2, A9A_GAP)
    problem.optimum = A9A_OPTIMUM
    return problem


def dense() -> Problem:
    """Normal features, each correlated 0.9 with the one before it.

    SciPy's optimum is known to about 1e-12, since the Hessian's eigenvalues are above 1e-3;
    scikit-learn's newton-cg has to agree.
    """
    random = np.random.default_rng(0)
    X = random.normal(size=(DENSE_ROWS, DENSE_COLUMNS))
    for j in range(1, DENSE_COLUMNS):
        X[:, j] = 0.9 * X[:, j - 1] + np.sqrt(1 - 0.9**2) * X[:, j]
    truth = random.normal(size=DENSE_COLUMNS) / 3
    y = (random.random(DENSE_ROWS) < expit(X @ truth)).astype(float)
    problem = Problem("500,000 x 100, L2 1e-4, to 1e-6", X, y, DENSE_L2, DENSE_GAP)
    problem.optimum = problem(problem.scipy(1e-7))[0]
    other = problem(problem.scikit_learn("newton-cg", 1e-6))[0]
    if abs(other - problem.optimum) > 1e-3 * DENSE_GAP:
        raise SystemExit(f"two solvers disagree: {problem.optimum!r} and {other!r}")
    return problem


def cached(spark: Any, problem: Problem) -> Any:
    """A cached DataFrame of Spark's vectors, in two partitions."""
    from pyspark.ml.functions import array_to_vector
    from pyspark.ml.linalg import Vectors

    X, y = problem.X, problem.y
    if isinstance(X, csr_array):
        starts = zip(X.indptr[:-1], X.indptr[1:], strict=True)
        vectors = (Vectors.sparse(X.shape[1], X.indices[a:b], X.data[a:b]) for a, b in starts)
        rows = list(zip(vectors, y.tolist(), strict=True))
        df = spark.createDataFrame(rows, ["features", "label"])
    else:
        n, d = X.shape
        offsets = pa.array(np.arange(0, n * d + 1, d, dtype=np.int32))
        lists = pa.ListArray.from_arrays(offsets, pa.array(X.ravel()))
        df = spark.createDataFrame(pa.table({"x": lists, "label": pa.array(y)}))
        df = df.select(array_to_vector("x").alias("features"), "label")
    df = df.repartition(2).cache()
    df.count()
    return df


# --- how a pass grows -----------------------------------------------------------------------


def growth(spark: Any) -> None:
    """Time passes over more rows and over more columns; fit a fixed cost and a rate."""
    shapes = [(times * ROWS[0], ROWS[1]) for times in TIMES]
    shapes += [(COLUMNS[0], times * COLUMNS[1]) for times in TIMES]
    rows, points = [], []
    for n, d in shapes:
        ms, megabytes = 1e3 * pass_seconds(spark, n, d), n * d * 8 / 1e6
        points.append((megabytes, ms))
        rows.append(
            {
                "float64, 2 workers": f"{n:,} x {d}",
                "MB": round(megabytes),
                "ms a pass (median)": round(ms, 1),
                "GB/s": round(megabytes / ms, 1),
            }
        )
    notes = [
        f"{name}: {fixed:.1f} ms + size / ({rate:.1f} GB/s)."
        for name, (fixed, rate) in {
            "More rows": fixed_and_rate(points[: len(TIMES)]),
            "More columns": fixed_and_rate(points[len(TIMES) :]),
        }.items()
    ]
    one, two = bandwidth(1), bandwidth(2)
    notes.append(
        f"The machine's memory, np.dot(x, x) over {BANDWIDTH_BYTES >> 20} MiB a process: {one:.1f}"
        f" GB/s for one process, {two:.1f} GB/s for two. A pass reads X once from there, and a"
        " second time from the cache."
    )
    report("resident_growth", "How a pass of the resident engine grows", rows, notes)


def pass_seconds(spark: Any, n_rows: int, n_columns: int) -> float:
    """Median time of a pass over random rows that the executors make."""

    def blocks(seed: int) -> Iterator[tuple[Array, Array]]:
        random = np.random.default_rng(seed)
        for part in np.array_split(np.arange(n_rows // 2), 16):
            yield random.normal(size=(len(part), n_columns)), random.integers(0, 2, len(part))

    rdd = spark.sparkContext.parallelize(range(2), 2).flatMap(blocks)
    with Dataset.from_rdd(rdd) as data:
        w = np.full(n_columns, 0.01)
        return statistics.median(timed_passes(ResidentEngine(data), Logistic(), w, GROWTH_PASSES))


def fixed_and_rate(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Fit ms = fixed + MB / rate to relative errors; rate in GB/s."""
    size, ms = np.array(points).T
    slope, fixed = np.polyfit(size, ms, 1, w=1 / ms)
    return float(fixed), float(1 / slope)


# --- BLAS threads ---------------------------------------------------------------------------


def threads() -> None:
    """Time passes whose workers have one BLAS thread each, as by default, or two."""
    n, d = THREADS_SHAPE
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(2):
        for count in times:
            setting = {"spark__executorEnv__OMP_NUM_THREADS": str(count)}
            spark = start_session("4g", **setting)
            times[count].append(1e3 * pass_seconds(spark, n, d))
            spark.stop()
    rows = [
        {
            f"{n:,} x {d} float64, 2 workers": f"{count} BLAS thread{'s' * (count > 1)} each",
            "ms a pass (median)": round(statistics.median(found), 1),
        }
        for count, found in times.items()
    ]
    note = (
        "Two sessions of each, in turns. Spark gives its Python workers as many threads as"
        " `spark.task.cpus`, 1 by default; `spark.executorEnv.OMP_NUM_THREADS` changes that."
    )
    report("resident_threads", "BLAS threads of the workers", rows, [note])


def bandwidth(n: int) -> float:
    """GB/s that so many processes read at the same time, in sum."""
    context = get_context("spawn")
    with ExitStack() as stack:
        ends = []
        for _ in range(n):
            mine, theirs = context.Pipe()
            process = context.Process(target=reader, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join, 10)
            stack.enter_context(mine)
            ends.append(mine)
        for end in ends:
            end.recv()
        for end in ends:
            end.send("read")
        return sum(end.recv() for end in ends)


def reader(control: Connection) -> None:
    """Read an array much larger than any cache, ten times; tell the median GB/s."""
    x = np.ones(BANDWIDTH_BYTES // 8)
    control.send("ready")
    control.recv()
    with threadpool_limits(1):
        times = [seconds(lambda: np.dot(x, x)) for _ in range(10)]
    control.send(x.nbytes / 1e9 / statistics.median(times))


if __name__ == "__main__":
    main()

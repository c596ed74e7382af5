"""Every method, codec and solver on the same rows, once with a task that fails and once without.

``--tables`` names some of the tables; ``--only NAME ...`` runs the rows whose names begin with one
of these, and puts them into the tables that there are; ``--quick`` takes the first 4,000 rows,
and only prints; ``--tune`` prints the best rate of each row by the simulator, which are those of
this file.  Fashion-MNIST is found as in bench_softmax.py.
"""

from __future__ import annotations

import argparse
import inspect
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench_network import read
from bench_softmax import load
from common import RESULTS, markdown, report, start_session
from lines import code_lines
from pyspark import TaskContext

from sparkdist import L1, L2, MLP, Dataset, Logistic, Softmax, codecs, datasets, methods, minimize
from sparkdist.blocks import Array
from sparkdist.codecs import Codec
from sparkdist.consistency import bsp
from sparkdist.errors import BadGradient
from sparkdist.methods import Method
from sparkdist.objectives import Hinge, Objective
from sparkdist.penalties import Penalty
from sparkdist.registry import get, names
from sparkdist.result import Result
from sparkdist.simulate import lognormal, simulate
from sparkdist.spark.training.model_server import ModelServer
from sparkdist.updaters import adagrad, adam, linear_scaling, nesterov, sgd
from sparkdist.workers import cocoa

Options = dict[str, Any]
PACKAGE = Path(inspect.getfile(datasets)).parents[1]
WORKERS, ITERATIONS, QUICK = 2, 100, 4_000
#: Of Fashion-MNIST the classes from here on are shoes and a bag, those before are clothes.
SHOES = 5
#: The rates of images are those that are best on so many.
TUNED_ON = 20_000
#: Of ``--tune``.
GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
#: The evaluation of a worker at which its task fails, counted over both of its attempts.
FATAL = 5


class Problem(NamedTuple):
    """What is minimised; the minimum where it is known."""

    loss: type[Objective]
    arguments: tuple[Any, ...]
    penalty: Penalty
    batch_size: int
    minimum: float | None


PROBLEMS = {
    # Newton-cg and L-BFGS-B of SciPy agree on it to 1e-14.
    "logistic": Problem(Logistic, (), L2(1e-3), 256, 0.33334075206872),
    "lasso": Problem(Logistic, (), L1(1e-3), 256, 0.3470350693730),
    # LinearSVC of scikit-learn, tol=1e-5.
    "machine": Problem(Hinge, (), L2(1e-3), 256, 0.356524),
    "softmax": Problem(Softmax, (10,), L2(1e-3), 128, None),
    "network": Problem(MLP, ([784, 64, 10],), L2(1e-4), 128, None),
    "sparse softmax": Problem(Softmax, (10,), L1(1e-3), 128, None),
    "shoes": Problem(Hinge, (), L2(1e-3), 128, None),
}


class Case(NamedTuple):
    """A row: a method, its options for a rate, and the rate."""

    method: str
    options: Callable[[float], Options] = lambda rate: {}
    rate: float = 0.0
    problem: str = "logistic"


def descent(method: str, rate: float, **more: Any) -> Case:
    """Make a row of a method whose rate is that of the server's SGD."""
    return Case(method, lambda rate: {"updater": sgd(rate), **more}, rate)


def inner(method: str, rate: float, **more: Any) -> Case:
    """Make a row of a method whose rate is that of the workers' SGD."""
    return Case(method, lambda rate: {"inner": sgd(rate), **more}, rate)


def rated(method: str, rate: float, **more: Any) -> Case:
    """Make a row of a method with a rate of its own."""
    return Case(method, lambda rate: {"rate": rate, **more}, rate)


def warmed(rate: float) -> Options:
    """Twice the rate for two workers, reached in the 64 steps of the first epoch."""
    return {"updater": sgd(linear_scaling(rate, WORKERS, 64))}


def of_diloco(rate: float) -> Options:
    """Few steps, and half a momentum: the paper's 500 and 0.9 are for long runs."""
    return {"steps": 16, "inner": adam(rate), "outer": nesterov(0.7, 0.5)}


METHODS = {
    "sgd": descent("sgd", 1.0),
    "sgd, linear scaling, warm-up": Case("sgd", warmed, 1.0),
    "backup_workers": descent("backup_workers", 1.0, extra=1),
    "stale_synchronous": descent("stale_synchronous", 1.0, bound=3),
    "downpour": Case("downpour", lambda rate: {"updater": adagrad(rate)}, 0.3),
    "local_sgd, 8 steps": inner("local_sgd", 1.0, steps=8),
    "local_sgd, 8 steps, post-local": inner("local_sgd", 1.0, steps=8, warm=64),
    "mixing": inner("mixing", 1.0),
    "one_shot": inner("one_shot", 1.0),
    "diloco, 16 steps": Case("diloco", of_diloco, 0.03),
    "easgd": rated("easgd", 1.0, alpha=0.45),
    "easgd, momentum 0.9 (EAMSGD)": rated("easgd", 0.3, alpha=0.45, momentum=0.9),
    "cocoa": Case("cocoa", lambda rate: {"epochs": 6}, problem="machine"),
    "svrg": rated("svrg", 1.0, epochs=6),
    "adaptive_revision": rated("adaptive_revision", 1.0),
    "ftrl": rated("ftrl", 1.0),
    "ringmaster": descent("ringmaster", 1.0, bound=2),
    "rennala": descent("rennala", 1.0, pushes=2),
}
SOLVERS = {
    "gd": Case("gd"),
    "lbfgs": Case("lbfgs"),
    "newton_cg": Case("newton_cg"),
    "preconditioned_lbfgs": Case("preconditioned_lbfgs"),
    "owlqn": Case("owlqn", problem="lasso"),
}


def coded(codec: Codec, rate: float) -> Case:
    """Make a row of synchronous SGD with a codec."""
    return descent("sgd", rate, codec=codec)


CODECS = {
    "none": descent("sgd", 1.0),
    "float16": coded(codecs.float16(), 1.0),
    "sparse": coded(codecs.sparse(), 1.0),
    "qsgd": coded(codecs.qsgd(), 1.0),
    "top_k, error feedback": coded(codecs.error_feedback(codecs.top_k(0.05)), 1.0),
    "random_k": coded(codecs.random_k(0.05), 0.3),
    "sign, error feedback": coded(codecs.error_feedback(codecs.sign()), 1.0),
    "one_bit, error feedback": coded(codecs.error_feedback(codecs.one_bit()), 1.0),
    "power_sgd, error feedback": coded(codecs.error_feedback(codecs.power_sgd(2)), 1.0),
    "ef21, top_k": coded(codecs.ef21(codecs.top_k(0.05)), 1.0),
}


#: Of images, where it is not 0.1.
RATES = {"downpour": 0.03, "diloco, 16 steps": 0.003, "easgd": 0.3, "rennala": 0.3} | {
    f"{codec}, error feedback": 0.3 for codec in ("top_k", "sign", "one_bit")
}


def on_images(name: str, case: Case) -> Case:
    """Make the row of another table: with its rate, on another problem."""
    problem = {"machine": "shoes", "lasso": "sparse softmax"}.get(case.problem, "softmax")
    return case._replace(rate=case.rate and RATES.get(name, 0.1), problem=problem)


IMAGES = {
    **{
        name: on_images(name, case)
        for name, case in (METHODS | CODECS | SOLVERS).items()
        if name != "none"  # which is sgd
    },
    "network: sgd": METHODS["sgd"]._replace(rate=0.3, problem="network"),
    "network: downpour": METHODS["downpour"]._replace(rate=0.1, problem="network"),
    "network: power_sgd, error feedback": coded(
        codecs.error_feedback(codecs.power_sgd(2)), 0.3
    )._replace(problem="network"),
}


class Rows(NamedTuple):
    """Rows on Spark; and of images, those of the test."""

    data: Dataset
    X_test: Array | None = None
    y_test: Array | None = None

    @classmethod
    def of(cls, spark: Any, table: str, problem: str, n: int | None) -> Rows:
        """Deal the first n out to the workers."""
        X, y = rows_of(table)
        data = Dataset.from_arrays(spark, X[:n], labels(problem, y[:n]), n_partitions=WORKERS)
        data.visit(lambda partition, blocks: None)  # Spark's Python workers import
        if table != "methods_images":
            return cls(data)
        X_test, y_test = (array.astype(float) for array in read("t10k", "").values())
        return cls(data, X_test, labels(problem, y_test))


def labels(problem: str, y: Array) -> Array:
    """Labels of a problem, of those in the data."""
    return (y >= SHOES).astype(float) if problem == "shoes" else y


# --- a task that fails ------------------------------------------------------------------------


def failing(base: type[Any], method: str, flag: Path) -> type[Any]:
    """Return a class like ``base`` whose ``method`` fails its task once, on partition 1.

    A file counts the calls, so that the attempt that follows goes on counting.  The class is made
    here, so that it goes to the executors by value: this file is not there.
    """
    fatal, original = FATAL, getattr(base, method)

    def counted(self: Any, *arguments: Any) -> Any:
        context = TaskContext.get()
        if context is not None and context.partitionId() == 1:
            with flag.open("ab") as calls:
                calls.write(b".")
                if calls.tell() == fatal:
                    raise RuntimeError("a task that fails once, as it was asked to")
        return original(self, *arguments)

    return dataclass(frozen=True)(type(base.__name__, (base,), {method: counted}))


def solve(case: Case, data: Dataset, flag: Path | None = None) -> Result:
    """Run a row; with ``flag``, with a task that fails on the way."""
    (loss, arguments, penalty, _, _), options = PROBLEMS[case.problem], options_of(case)
    if flag is not None and case.method == "cocoa":  # which wants this loss, and works without it
        worker, policy, updater, _ = get(methods, "cocoa")()
        start = np.zeros(data.n_features)
        with ModelServer(start, updater=updater, consistency=policy, penalty=penalty) as server:
            broken = failing(cocoa, "unit", flag)(worker.rounds, worker.gamma)
            return server.train(data, Hinge(), worker=broken, progress=False, **options)
    if flag is not None:
        loss = failing(loss, "value_and_grad", flag)
    return minimize(
        loss(*arguments),
        data,
        method=case.method,
        penalty=penalty,
        progress=False,
        **options,
    )


def options_of(case: Case) -> Options:
    """Those that all methods have, or all solvers; and its own."""
    common: Options = {"engine": "resident", "tol": 1e-9, "max_iter": ITERATIONS}
    if case.method in names(methods):
        common = {"batch_size": PROBLEMS[case.problem].batch_size, "epochs": 5}
    return common | case.options(case.rate)


# --- a row ------------------------------------------------------------------------------------


def measured(name: str, case: Case, rows: Rows) -> dict[str, Any]:
    """Run a row of a table twice, the second time with a task that fails."""
    minimum, began = PROBLEMS[case.problem].minimum, time.perf_counter()
    calm = solve(case, rows.data)
    took = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        flag = Path(folder, "calls")
        disturbed = solve(case, rows.data, flag)
        if flag.stat().st_size < FATAL:
            raise SystemExit(f"no task of {name} has failed")
    what = "objective" if minimum is None else "relative gap"
    files = files_of(case)
    row = {"method": linked(name, files[0]), what: reached(calm, minimum)}
    if rows.X_test is not None:
        accuracy = np.mean(calm.model.predict(rows.X_test) == rows.y_test)
        row["test accuracy"] = f"{accuracy:.3f}"
    return {
        **row,
        **traffic(case, calm, rows.data),
        "seconds": round(took, 1),
        "with a task that fails": compared(case, calm, disturbed, minimum),
        "code lines": lines_in(files[:1]),
        "with its parts": lines_in(files),
    }


def reached(result: Result, minimum: float | None) -> str:
    """Objective at the end, or how far it is above the minimum, relative to it."""
    if minimum is None:
        return f"{result.fun:.4f}"
    gap = result.fun / minimum - 1
    return f"{gap:.1e}" if gap > 1e-12 else "below 1e-12"


def compared(case: Case, calm: Result, disturbed: Result, minimum: float | None) -> str:
    """Say whether the failure changed a bit; where timing may, what was reached with it."""
    same = all(
        np.array_equal(a, b) for a, b in zip(arrays(calm.x), arrays(disturbed.x), strict=True)
    )
    if same:
        return "same bits"
    made = method_of(case)
    in_order = made is None or isinstance(made.consistency, bsp)
    return f"{'OTHER BITS' if in_order else 'by timing'}: {reached(disturbed, minimum)}"


def arrays(x: Any) -> list[Array]:
    """Arrays of a result."""
    return list(x.values()) if isinstance(x, dict) else [x]


def traffic(case: Case, result: Result, data: Dataset) -> dict[str, Any]:
    """Passes over the rows, megabytes each way, and how old the gradients were.

    Of a solver the bytes are d float64 each way, for each pass and worker; and those of a metric.
    """
    if case.method not in names(methods):
        megabytes = 8e-6 * sum(a.size for a in arrays(result.x)) * WORKERS * result.passes
        metric = 8e-6 * data.n_features**2 * WORKERS * (case.method == "preconditioned_lbfgs")
        sent, passes, ages = (megabytes + metric, megabytes), result.passes, {0: 1}
    else:
        history = result.history
        sent = (history.bytes_in[-1] / 1e6, history.bytes_out[-1] / 1e6)
        passes, ages = history.examples[-1] / data.n_rows, result.staleness
    mean = sum(age * n for age, n in ages.items()) / sum(ages.values())
    return {
        "passes": f"{passes:.4g}",
        "MB pushed": f"{sent[0]:.3g}",
        "MB fetched": f"{sent[1]:.3g}",
        "staleness, mean": f"{mean:.2g}",
        "most": max(ages),
    }


# --- its code ---------------------------------------------------------------------------------


def method_of(case: Case) -> Method | None:
    """Return the parts of a method, with the options of its row; None for a solver."""
    if case.method not in names(methods):
        return None
    make, options = get(methods, case.method), case.options(case.rate)
    own = {name: options[name] for name in inspect.signature(make).parameters if name in options}
    return make(**own)._replace(codec=options.get("codec"))


def files_of(case: Case) -> list[Path]:
    """Files of a row: of the codec, the method or the solver; then those of all its parts."""
    made = method_of(case)
    if made is None:
        return [PACKAGE / "solvers" / f"{case.method}.py"]
    codec = made.codec
    shown = codec.inner if isinstance(codec, codecs.error_feedback) else codec
    parts = [] if shown is None else [Path(inspect.getfile(type(shown)))]
    parts += [*files_within(codec), PACKAGE / "methods" / f"{case.method}.py"]
    parts += [file for part in made[:3] for file in files_within(part)]
    return list(dict.fromkeys(parts))


def files_within(part: Any) -> Iterator[Path]:
    """Files of a frozen part and of the parts in it."""
    if is_dataclass(part) and type(part).__module__.startswith("sparkdist."):
        for field in fields(part):
            yield from files_within(getattr(part, field.name))
        yield Path(inspect.getfile(type(part)))


def lines_in(files: Iterable[Path]) -> int:
    """Lines of code in files, but in those that a whole family shares."""
    return sum(len(code_lines(f.read_text())) for f in files if not f.name.startswith("_"))


def linked(name: str, file: Path) -> str:
    """Link a name to its file, as seen from docs/methods."""
    return f"[{name}](../../sparkdist/{file.relative_to(PACKAGE)})"


# --- tables -----------------------------------------------------------------------------------

HOW = (
    "Two workers on local[2,4], one run each; the same once more, in which the {n}th evaluation on"
    " one of them raises, and Spark runs its task again. Rates: the best of {grid} by the simulator"
    " (`bench_methods.py --tune`), one seed. Seconds are of the whole call on a machine that others"
    " use too, with the start of a server of 1 s or so, and without ingest."
).format(n=FATAL, grid=", ".join(f"{rate:g}" for rate in GRID))
SIZES = (
    "Code lines: of the file that the name leads to, without docstrings and comments; with its"
    " parts: also of the worker loop, the policy, the updaters and the codec that it is made of,"
    " but not of what a whole family shares, in files with an underscore."
)
PUSHED = (
    "MB of frames to the server and from it; of the solvers, d float64 each way, pass and worker,"
    " and a metric of D x D."
)
TITLES = {
    "methods": (
        "a9a, 32,561 rows of 123 features, logistic loss, L2 1e-3; batches of 256, 5 epochs",
        "The gap is to the minimum, relative to it. `cocoa` has the hinge loss and 6 epochs, `svrg`"
        f" 6 epochs, `owlqn` L1 1e-3; the solvers stop after {ITERATIONS} iterations.",
    ),
    "methods_codecs": (
        "The same with synchronous SGD and a codec",
        "A push has 984 bytes and a head of 260: little to gain. `top_k` and `random_k` keep 5%;"
        " `power_sgd` finds no matrix, and sends all.",
    ),
    "methods_images": (
        "Fashion-MNIST, 60,000 images, softmax, L2 1e-3; batches of 128, 5 epochs",
        "A push has 63 kB and a head; `top_k` and `random_k` keep 5%, `power_sgd` has rank 2. Of"
        " another objective: `cocoa`, which tells shoes and bags from clothes by the hinge loss in"
        " 6 epochs; `owlqn`, with L1 1e-3; `network`, an MLP of 784-64-10 with L2 1e-4. The"
        f" solvers stop after {ITERATIONS} iterations. Rates: tuned on {TUNED_ON:,} of the images.",
    ),
}
TABLES = {"methods": METHODS | SOLVERS, "methods_codecs": CODECS, "methods_images": IMAGES}


def main() -> None:
    """Run all rows, print and write the tables; or what was asked for."""
    arguments = parsed()
    asked = {
        t: {n: case for n, case in TABLES[t].items() if n.startswith(tuple(arguments.only))}
        for t in arguments.tables
    }
    if arguments.tune:
        for table, cases in asked.items():
            if cases:
                n = TUNED_ON if table == "methods_images" else None
                tune(cases, *(array[:n] for array in rows_of(table)))
        return
    spark = start_session(master="local[2,4]")
    spark.sparkContext.setLogLevel("OFF")  # of the tasks that fail
    for table, cases in asked.items():
        if cases:
            found = run(spark, table, cases, arguments.quick)
            if arguments.quick:
                head = {"title": table, "notes": [], "versions": {}, "date": "", "machine": ""}
                print(f"\n{markdown({**head, 'rows': found})}\n")
            else:
                keep(table, found, show=True)
    spark.stop()


def parsed() -> Any:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tune", action="store_true")
    return parser.parse_args()


def run(spark: Any, table: str, cases: dict[str, Case], quick: bool) -> list[dict[str, Any]]:
    """Run rows of a table."""
    found, rows = [], dict[str, Rows]()
    with ExitStack() as stack:
        for name, case in cases.items():
            if (kind := case.problem if case.problem == "shoes" else "") not in rows:
                rows[kind] = Rows.of(spark, table, kind, QUICK if quick else None)
                stack.enter_context(rows[kind].data)
            found.append(measured(name, case, rows[kind]))
            print(table, *found[-1].values(), flush=True)
            if not quick:
                keep(table, found)
    return found


def rows_of(table: str) -> tuple[Any, Array]:
    """Read the rows of a table."""
    return load() if table == "methods_images" else datasets.load("a9a")


def keep(table: str, rows: list[dict[str, Any]], show: bool = False) -> None:
    """Put rows into a table, in its order, in place of those of the same names."""
    path = RESULTS / f"{table}.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    known = {row["method"]: row for row in [*before, *rows]}
    order = [linked(name, files_of(case)[0]) for name, case in TABLES[table].items()]
    title, note = TITLES[table]
    notes = [note, *([HOW, PUSHED, SIZES] if table == "methods" else [])]
    report(table, title, [known[name] for name in order if name in known], notes, show)


def tune(cases: dict[str, Case], X: Any, y: Array) -> None:
    """Print what each rate of the grid reaches, simulated: in rounds the same bits as on Spark."""
    for name, case in cases.items():
        if not case.rate:
            continue
        problem, found = PROBLEMS[case.problem], {}
        for rate in GRID:
            with np.errstate(all="ignore"):
                changed = case._replace(rate=rate)
                found[rate] = reached_at(changed, problem, X, labels(case.problem, y))
        best = min(found, key=lambda rate: found[rate])
        mark = "" if best == case.rate else f"   NOT {case.rate:g}"
        print(f"{name}: {best:g}{mark}  {found}", flush=True)


def reached_at(case: Case, problem: Problem, X: Any, y: Array) -> float:
    """Return the objective of a simulated run; infinity if it left the numbers."""
    try:
        loss = problem.loss(*problem.arguments)
        found = simulate(
            loss,
            (X, y),
            workers=WORKERS,
            method=case.method,
            penalty=problem.penalty,
            latency=lognormal(0.01, 0.3),
            points=1,
            **options_of(case),
        )
    except BadGradient:
        return float("inf")
    return found.fun if np.isfinite(found.fun) else float("inf")


if __name__ == "__main__":
    main()

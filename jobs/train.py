"""Train a model with spark-submit: read, minimise, save, and say in a table what came out.

spark-submit jobs/train.py --data a9a --objective logistic --l2 1e-3 --output model
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

logger = logging.getLogger("sparkdist.train")


def columns(text: str) -> str | list[str]:
    """One column, or several that are separated by commas."""
    return text.split(",") if "," in text else text


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", required=True, help="path or glob, or an embedded name: a9a")
    data.add_argument("--test-data", help="the same for a test set: a9a-test")
    data.add_argument(
        "--format",
        choices=("libsvm", "parquet", "csv"),
        help="default: as the suffix says, else libsvm",
    )
    data.add_argument(
        "--features", type=columns, help="vector or array column, or several numeric ones: a,b,c"
    )
    data.add_argument("--label", default="label", help="column of the label (default: %(default)s)")
    data.add_argument("--weight", help="column of the rows' weights (default: all 1)")
    data.add_argument("--n-features", type=int, help="of LIBSVM files; saves a pass over the text")
    data.add_argument("--partitions", type=int, help="into how many the data is dealt")
    loss = parser.add_argument_group("objective")
    loss.add_argument(
        "--objective",
        default="logistic",
        help="logistic (default), softmax, squared, huber, poisson, hinge or squared_hinge",
    )
    loss.add_argument("--n-classes", type=int, help="of softmax (default: the largest label + 1)")
    loss.add_argument("--delta", type=float, help="of huber, in units of the label")
    loss.add_argument("--l1", type=float, default=0.0, help="strength of the L1 penalty")
    loss.add_argument("--l2", type=float, default=0.0, help="strength of the L2 penalty")
    loss.add_argument("--intercept", action="store_true", help="fit one; it is never penalised")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--method", help="lbfgs, owlqn, newton_cg, gd (default: lbfgs, with --l1 owlqn)"
    )
    how.add_argument("--engine", default="aggregate", help="(default: %(default)s)")
    how.add_argument("--tol", type=float, default=1e-6, help="on max |gradient| (%(default)s)")
    how.add_argument("--max-iter", type=int, default=1000, help="(default: %(default)s)")
    how.add_argument("--deterministic", action="store_true", help="the same bits in every run")
    out = parser.add_argument_group("output")
    out.add_argument("--output", default="model", help="folder of the model (default: %(default)s)")
    out.add_argument(
        "--expect",
        type=float,
        help="a known optimum; fail if it is missed by 1e-10 relative",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the job; the exit status is 0 only if the solver converged."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    # Not at the top: --help then needs neither Spark nor Java.
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    from sparkdist.errors import SparkdistError

    spark = SparkSession.builder.appName("sparkdist train").getOrCreate()
    try:
        return train(spark, options)
    except (SparkdistError, PySparkException, OSError) as error:  # as for a path that is not there
        logger.error("%s", error)
        return 2
    finally:
        spark.stop()


def train(spark: Any, options: argparse.Namespace) -> int:
    """Read, minimise, evaluate, save and report."""
    import sparkdist

    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)  # before the work, in case it cannot be made
    began = time.perf_counter()
    with ExitStack() as stack:
        dataset = stack.enter_context(open_data(spark, options, options.data))
        ingested = time.perf_counter() - began
        sets = {"train": dataset}
        if options.test_data:
            options.n_features = dataset.n_features
            sets["test"] = stack.enter_context(open_data(spark, options, options.test_data))
        result = sparkdist.minimize(
            make_objective(options, dataset.labels),
            dataset,
            method=options.method or ("owlqn" if options.l1 else "lbfgs"),
            penalty=sparkdist.ElasticNet(l1=options.l1, l2=options.l2),
            intercept=options.intercept,
            engine=options.engine,
            deterministic=options.deterministic,
            tol=options.tol,
            max_iter=options.max_iter,
        )
        metrics = {name: result.model.evaluate(data) for name, data in sets.items()}
        size = repr(dataset).removeprefix("Dataset(").removesuffix(")")
    result.model.metrics.update(metrics, objective=result.fun, message=result.message)
    files = save(result, folder)
    report(options, result, metrics, f"{size}, ingested in {ingested:.1f} s", files)
    return 0 if result.success and met(options.expect, result.fun) else 1


def open_data(spark: Any, options: argparse.Namespace, data: str) -> Any:
    """Ingest train or test data as the options say."""
    import sparkdist

    return sparkdist.read_dataset(
        spark,
        data,
        options.format,
        features=options.features,
        label=options.label,
        weight=options.weight,
        n_features=options.n_features,
        n_partitions=options.partitions,
    )


def make_objective(options: argparse.Namespace, labels: tuple[float, ...] | None) -> Any:
    """Make the objective with its arguments."""
    from sparkdist import objectives, registry
    from sparkdist.errors import InvalidCall

    kind = registry.get(objectives, options.objective)
    if options.objective == "huber" and options.delta is not None:
        return kind(options.delta)
    if options.objective != "softmax":
        return kind()
    if options.n_classes is None and labels is None:
        raise InvalidCall(
            "train.py", ["softmax has more classes than are counted; give --n-classes"]
        )
    return kind(options.n_classes or int(max(labels or (0,))) + 1)


def met(expected: float | None, found: float) -> bool:
    """Whether a known optimum is reached."""
    return expected is None or abs(found - expected) <= 1e-10 * abs(expected)


def save(result: Any, folder: Path) -> list[str]:
    """Write the model, the history and the plot; return the files' names."""
    result.model.save(folder)
    (folder / "history.json").write_text(json.dumps(result.history.to_dict(), indent=1) + "\n")
    files = ["model.safetensors", "model.json", "history.json"]
    try:
        result.plot().savefig(folder / "history.png")
    except ImportError as error:
        logger.warning("no picture: %s", error)
        return files
    return [*files, "history.png"]


def report(
    options: argparse.Namespace,
    result: Any,
    metrics: dict[str, dict[str, float]],
    data: str,
    files: list[str],
) -> None:
    """Print what a person wants to know."""
    import sparkdist

    per_pass = result.history.seconds[-1] - result.history.seconds[0]
    lines = {
        "data": f"{options.data}: {data}",
        "objective": f"{result.fun:.14g}  (with penalty: l1={options.l1:g}, l2={options.l2:g})",
        "converged": f"{'yes' if result.success else 'NO'}: {result.message}",
        "passes": f"{result.passes} over the data in {result.seconds:.1f} s,"
        f" {per_pass / max(result.passes - 1, 1):.3f} s each",
    }
    if options.expect is not None:
        gap = (result.fun - options.expect) / abs(options.expect)
        verdict = "reached" if met(options.expect, result.fun) else "MISSED"
        lines["expected"] = f"{options.expect:.14g}  {verdict}, relative difference {gap:.1e}"
    for name, values in metrics.items():
        shown = ", ".join(f"{key.replace('_', ' ')} {value:.5f}" for key, value in values.items())
        lines[name] = shown
    lines["model"] = f"{options.output}/: {', '.join(files)}"
    head = f"sparkdist {sparkdist.__version__}: {options.objective} by {result.method}"
    print(f"\n{head}\n{'-' * len(head)}")
    for name, text in lines.items():
        print(f"{name:<11}{text}")
    print()


if __name__ == "__main__":
    sys.exit(main())

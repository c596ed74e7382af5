"""Train a model: read, minimise, save, and say in a table what came out.

python -m sparkdist train --data a9a --objective logistic --l2 1e-3 --output model
python -m sparkdist train --data a9a --method downpour --epochs 5 --batch-size 100
"""

from __future__ import annotations

import argparse
import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sparkdist.commands import _call, _data, _report, _session

__all__ = ["add_arguments", "run"]

logger = logging.getLogger("sparkdist.train")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    data = parser.add_argument_group("data")
    _data.add_source(data, "a9a", "vector or array column, or several numeric ones: a,b,c")
    data.add_argument("--test-data", help="the same for a test set: a9a-test")
    _data.add_labels(data)
    _add_objective(parser.add_argument_group("objective"))
    how = parser.add_argument_group("how")
    how.add_argument(
        "--method",
        metavar="NAME[:...]",
        help="lbfgs, preconditioned_lbfgs, owlqn, newton_cg, gd:step_rule=nesterov, which are"
        " exact; or, with a model server beside the driver, sgd, downpour:n_push=4,"
        " stale_synchronous:3, local_sgd:16, easgd:0.3 ...: python -m sparkdist methods has all"
        " (default: lbfgs, with --l1 owlqn)",
    )
    _call.add_exact(parser.add_argument_group("exact methods"))
    _call.add_stochastic(parser.add_argument_group("methods on a model server"))
    out = parser.add_argument_group("output")
    out.add_argument("--output", default="model", help="folder of the model (default: %(default)s)")
    out.add_argument(
        "--expect", type=float, help="a known optimum; fail if it is missed by 1e-10 relative"
    )
    out.add_argument(
        "--json", action="store_true", help="print the report as one JSON object, for scripts"
    )
    _session.add_arguments(parser)


def _add_objective(group: Any) -> None:
    group.add_argument(
        "--objective",
        default="logistic",
        help="logistic (default), softmax, squared, huber, poisson, hinge, squared_hinge or mlp",
    )
    group.add_argument("--n-classes", type=int, help="of softmax (default: the largest label + 1)")
    group.add_argument("--delta", type=float, help="of huber, in units of the label")
    group.add_argument(
        "--layers", type=_sizes, help="of mlp, from the features to the classes: 784,128,10"
    )
    group.add_argument("--l1", type=float, default=0.0, help="strength of the L1 penalty")
    group.add_argument("--l2", type=float, default=0.0, help="strength of the L2 penalty")
    group.add_argument("--intercept", action="store_true", help="fit one; it is never penalised")


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 784,128,10") from None


def run(options: argparse.Namespace) -> int:
    """Train; the exit status is 0 only if the method converged, 2 if it could not begin."""
    return _session.with_spark("train", options, train, _call.refuse)


def train(spark: Any, options: argparse.Namespace) -> int:
    """Read, minimise, evaluate, save and report."""
    import sparkdist

    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)  # before the work, in case it cannot be made
    began = time.perf_counter()
    with ExitStack() as stack:
        dataset = stack.enter_context(_data.open_dataset(spark, options, options.data))
        ingested = time.perf_counter() - began
        logger.info("%r, ingested in %.1f s", dataset, ingested)
        sets = {"train": dataset}
        if options.test_data:
            options.n_features = dataset.n_features
            sets["test"] = stack.enter_context(
                _data.open_dataset(spark, options, options.test_data)
            )
        arguments = {**_call.arguments_of(options, []), "progress": not options.json}
        if options.verbose and arguments["method"] not in _call.names_on_server():
            arguments["callback"] = _tell
        objective = _call.make_objective(options, dataset.labels)
        result = sparkdist.minimize(objective, dataset, **arguments)
        metrics = {name: result.model.evaluate(data) for name, data in sets.items()}
    result.model.metrics.update(metrics, objective=result.fun, message=result.message)
    files = _report.save(result, folder)
    facts = _report.facts(options, result, dataset, ingested, metrics, files)
    print(_report.as_json(facts) if options.json else _report.as_text(facts))
    return 0 if facts["success"] and facts["reached"] is not False else 1


def _tell(found: Any) -> None:
    """Log an iteration, where no progress bar can be seen."""
    logger.info("iteration %d: objective %.10g, %d evaluations", found.nit, found.fun, found.nfev)

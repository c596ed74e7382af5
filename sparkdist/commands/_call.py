"""The call of ``minimize`` that the options of train describe, and what is wrong with it."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from sparkdist.commands._members import make, make_member, read
from sparkdist.fields import collect

__all__ = [
    "EXACT", "OF_SERVER", "add_exact", "add_stochastic", "arguments_of", "make_objective",
    "names_on_server", "refuse",
]  # fmt: skip

#: Options of exact methods alone, with the defaults of ``minimize``.
EXACT = {"engine": "aggregate", "tol": 1e-6, "max_iter": 1000}


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"it is {text!r}; it must be a whole number >= {least}"
            )
        return int(text)

    return read


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"it is {text!r}; it must be a number >= 0")
    return number


def _ports(text: str) -> int | tuple[int, int]:
    ends = text.split("-")
    if not all(end.isdecimal() and int(end) <= 65535 for end in ends) or len(ends) > 2:
        raise argparse.ArgumentTypeError(f"it is {text!r}; it must be like 40000 or 40000-40015")
    return int(text) if len(ends) == 1 else (int(ends[0]), int(ends[1]))


#: Options of ModelServer and of its ``train`` that are read as they stand: type, default, help.
OF_SERVER: dict[str, tuple[Callable[[str], Any], Any, str]] = {
    "batch_size": (_whole(1), 64, "rows of a gradient"),
    "epochs": (_whole(1), 1, "how many times every row is seen"),
    "seed": (_whole(0), 0, "of the order of the rows, and of an mlp's first parameters"),
    "patience": (_number, 300, "seconds that a worker waits for the server, or for others"),
    "clip": (_number, None, "largest Euclidean norm of a mean gradient"),
    "memory": (str, "host", "where error feedback keeps what it has not sent: host, or server"),
    "checkpoint": (str, "interval", "none, interval or every (before a push is acknowledged)"),
    "seconds": (_number, 10, "between two checkpoints"),
    "folder": (str, None, "where checkpoints go and stay; by default they do not stay"),
    "resume": (str, None, "folder of a run whose driver died: go on where it ends"),
    "restarts": (_whole(0), 3, "times that the server may be started again"),
    "skip_not_finite": (bool, False, "leave out gradients that are not finite, and count them"),
    "certificate": (str, None, "PEM file for TLS between executors and server"),
    "key": (str, None, "PEM file that belongs to it"),
    "plaintext": (bool, False, "no TLS although Spark is set to encrypt"),
    "port": (_ports, 0, "of the server: a number, a range 40000-40015, or 0 for any"),
    "record": (
        str,
        None,
        "file for what the server does, in which order: replay computes it again",
    ),
}


def add_exact(group: Any) -> None:
    """Add what only methods that see all rows in a pass know; None is: not given."""
    engine, tol, max_iter = EXACT.values()
    group.add_argument(
        "--engine",
        help=f"aggregate, a Spark job a pass; resident, workers that stay and hold their slots, for"
        f" many short passes; auto, resident where nothing speaks against it (default: {engine})",
    )
    group.add_argument("--tol", type=float, help=f"on max |gradient| (default: {tol:g})")
    group.add_argument("--max-iter", type=int, help=f"(default: {max_iter})")
    group.add_argument("--deterministic", action="store_true", help="the same bits in every run")


def add_stochastic(group: Any) -> None:
    """Add what only methods on a model server know; None is: not given."""
    group.add_argument(
        "--rate", type=_number, help="learning rate: the workers' where they make steps of their"
        " own, else the server's (default: 0.1, of diloco 0.001)",
    )  # fmt: skip
    group.add_argument(
        "--updater", metavar="NAME[:...]", help="how the server descends, instead of as the method"
        " says: momentum:0.05, adam:rate=0.01,beta1=0.8 ...",
    )  # fmt: skip
    group.add_argument(
        "--consistency", metavar="NAME[:N]", help="who waits for whom, instead of as the method"
        " says: asp (nobody), bsp (everybody, in rounds), ssp:4 (at most 4 clocks ahead),"
        " backup:1 (rounds without the last)",
    )  # fmt: skip
    group.add_argument(
        "--codec", metavar="NAME[:...]", help="how gradients are compressed on their way: float16,"
        " qsgd:32, error_feedback:top_k:0.01 ... (default: not at all)",
    )  # fmt: skip
    for name, (kind, default, text) in OF_SERVER.items():
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            group.add_argument(flag, action="store_const", const=True, help=text)
            continue
        shown = "" if default is None else f" (default: {default})"
        group.add_argument(flag, type=kind, help=text + shown)


def names_on_server() -> list[str]:
    """The methods on a model server of their own."""
    from sparkdist import methods, registry

    return registry.names(methods)


def arguments_of(options: argparse.Namespace, problems: list[str]) -> dict[str, Any]:
    """Return the keyword arguments for ``minimize``; what cannot be is added to ``problems``."""
    from sparkdist.penalties import ElasticNet

    found = {name: vars(options)[name] for name in (*EXACT, *OF_SERVER)}
    text = options.method or ("owlqn" if options.l1 else "lbfgs")
    method, own = text.partition(":")[0], dict[str, Any]()
    with collect(problems):
        own = _method_options(text, options.rate if options.updater is None else None)
    with collect(problems):
        found["penalty"] = ElasticNet(l1=options.l1, l2=options.l2)
    with collect(problems):
        found["consistency"] = make_member("consistency", options.consistency)
    with collect(problems):
        found["codec"] = make_member("codecs", options.codec)
    with collect(problems):
        found["updater"] = _updater(options)
    given = {name: value for name, value in found.items() if value is not None}
    also = {"intercept": options.intercept, "deterministic": options.deterministic}
    return {"method": method, **also, **own, **given}


def _method_options(text: str, rate: float | None) -> dict[str, Any]:
    """Options in ``easgd:0.3,tau=8`` and the like, or for a solver in ``gd:step=0.1``."""
    from sparkdist import methods, registry

    name, plain, own = read(text)
    if name not in registry.names(methods):
        _refuse_no_options(text, name, plain, own)
        return own if rate is None else own | {"rate": rate}
    kind = registry.get(methods, name)
    _, own = make(text, kind, plain, own, "updaters")
    parameters = inspect.signature(kind).parameters
    # Who makes steps: the worker with a rate or an updater of its own, else the server.
    who = next((who for who in ("rate", "inner", "updater") if who in parameters), None)
    if rate is None or who is None:
        return own
    new = rate if who == "rate" else dataclasses.replace(parameters[who].default, rate=rate)
    return make(text, kind, [], own | {who: new}, "updaters")[1]


def _refuse_no_options(text: str, name: str, plain: list[Any], own: dict[str, Any]) -> None:
    """Raise InvalidCall for what no solver takes; what this one takes, ``minimize`` knows."""
    from sparkdist import registry, solvers
    from sparkdist.errors import InvalidCall

    if name not in registry.names(solvers):
        return
    takes_words = [
        key
        for key, parameter in inspect.signature(registry.get(solvers, name)).parameters.items()
        if isinstance(parameter.default, str)
    ]
    words = [key for key, value in own.items() if isinstance(value, str) and key not in takes_words]
    if plain or words:
        rule = f"write {name}:option=number" + "".join(f" or {key}=word" for key in takes_words)
        raise InvalidCall(name, [f"{text!r} cannot be read: {rule}"])


def _updater(options: argparse.Namespace) -> Any:
    """The updater that is named, with its rate; None for the method's own."""
    from sparkdist.errors import InvalidCall

    updater = make_member("updaters", options.updater)
    if updater is None:
        return None
    if not updater.takes_gradients:
        what = f"{options.updater} adds up differences of parameters"
        raise InvalidCall("train", [f"{what}: it is for easgd, which has it already"])
    return updater if options.rate is None else dataclasses.replace(updater, rate=options.rate)


def make_objective(options: argparse.Namespace, labels: tuple[float, ...] | None) -> Any:
    """Make the objective with its arguments; softmax has as many classes as there are labels.

    Raises
    ------
    InvalidCall
        If there is no such objective, it does not know an argument, or softmax cannot be told.
    """
    from sparkdist import objectives, registry
    from sparkdist.errors import InvalidCall

    kind = registry.get(objectives, options.objective)
    known = inspect.signature(kind).parameters
    given = {name: vars(options)[name] for name in ("n_classes", "delta", "layers")}
    given = {name: value for name, value in given.items() if value is not None}
    if foreign := [name for name in given if name not in known]:
        has = f"it has {', '.join(known)}" if known else "it has none"
        problems = [f"{options.objective} has no option {name!r}; {has}" for name in foreign]
        raise InvalidCall("train", problems)
    if "n_classes" in known and "n_classes" not in given:
        if labels is None:
            many = "softmax has more classes than are counted; give --n-classes"
            raise InvalidCall("train", [many])
        given["n_classes"] = int(max(labels) + 1)
    return kind(**given)


def refuse(options: argparse.Namespace) -> None:
    """Raise InvalidCall with everything that is wrong with the options, whatever the data.

    It is found here and not in ``minimize`` because the rows are read before that is called.
    """
    from sparkdist.checks import find_problems
    from sparkdist.errors import InvalidCall
    from sparkdist.spark.training.stochastic import find_problems_of_options

    problems: list[str] = []
    loss: Any = None
    with collect(problems):
        loss = make_objective(options, (0.0, 1.0))
    call = arguments_of(options, problems)
    method, penalty = call.pop("method"), call.pop("penalty", None)
    exact = {name: call.pop(name) for name in EXACT if name in call}
    if exact.get("engine", "auto") not in ("aggregate", "resident", "auto"):
        known = "there are aggregate, resident, auto"
        problems.append(f"there is no engine {exact['engine']!r}; {known}")
    del call["intercept"], call["deterministic"]
    # minimize itself warns of a kink, once.
    smooth = loss if loss is not None and loss.differentiable else None
    ends = {name: exact.get(name, EXACT[name]) for name in ("tol", "max_iter")}
    on_server = names_on_server()
    problems += find_problems(smooth, method, penalty, None, call, **ends, on_server=on_server)
    if method in on_server:
        in_order = ["deterministic"] if options.deterministic and method != "sgd" else []
        problems += find_problems_of_options(method, call, [*exact, *in_order])
    if problems:
        raise InvalidCall("train", problems)

"""The commands without a JVM: what they list, what they refuse, and the doctor's checks."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from pyspark import cloudpickle

from sparkdist import ModelServer, codecs, commands, consistency, minimize, registry, updaters
from sparkdist.commands import (
    _call,
    _data,
    _facts,
    _findings,
    _probe,
    _report,
    _session,
    doctor,
    methods,
    train,
)
from sparkdist.commands._finding import FIX, NOTE, OK, Finding
from sparkdist.errors import InvalidCall
from sparkdist.penalties import ElasticNet
from sparkdist.spark.data.read import FORMATS
from tests.test_house import FAMILIES, ROOT


def call(*arguments: str) -> int:
    return commands.main(list(arguments))


# --- the front -------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["methods", "--json"]])
def test_help_and_methods_need_neither_java_nor_pyspark_nor_numpy(arguments):
    program = (
        "import sys; sys.modules.update(pyspark=None, numpy=None)\n"
        f"from sparkdist.commands import main; sys.exit(main({arguments!r}))"
    )
    nowhere = {"PATH": "/nowhere", "JAVA_HOME": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | nowhere,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout and not done.stderr


def test_the_package_is_a_program(capsys):
    done = subprocess.run(
        [sys.executable, "-m", "sparkdist", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    with pytest.raises(SystemExit, match="0"):
        call("--version")
    assert done.stdout == capsys.readouterr().out
    assert done.stdout.startswith("sparkdist 0.")


@pytest.mark.parametrize("verb", commands.VERBS)
def test_every_verb_tells_what_it_does(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        call(verb, "--help")
    assert f"usage: python -m sparkdist {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["dance"], ["train"], ["train", "--conf", "a"]])
def test_a_call_that_cannot_be_read_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        call(*arguments)
    assert "usage: python -m sparkdist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("there is no 'x'", "there is no 'x'"),
        ("", "RuntimeError"),
        (
            "An error occurred while calling None.org.apache.spark.X.\n"
            ": org.apache.spark.SparkException: Could not parse Master URL: 'x'\n\tat org.x.Y(Z)\n",
            "org.apache.spark.SparkException: Could not parse Master URL: 'x'",
        ),
        (
            "asking failed on the executors:\nTraceback (most recent call last):\n"
            '  File "worker.py", line 1, in main\n    raise E(\n'
            "pyspark.errors.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python is 3.9\nCheck it",
            "pyspark.errors.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python is 3.9",
        ),
    ],
)
def test_of_an_error_the_line_that_says_what_happened_is_told(text, line):
    assert _session.said(RuntimeError(text)) == line


# --- methods ---------------------------------------------------------------------------------


def test_every_family_and_every_member_is_listed():
    found = methods.families()
    there = {name for name in FAMILIES if (ROOT / "sparkdist" / name / "__init__.py").exists()}
    there |= {"methods", "workers"}  # know neither Spark nor HTTP, but are not pure
    assert set(found) == there | {"schedules"}
    for name in there:
        family = importlib.import_module(f"sparkdist.{name}")
        assert [member.name for member in found[name]] == registry.names(family)
        for member in found[name]:
            assert registry.get(family, member.name).__name__ == member.public
    names = {member.name for member in found["schedules"]}
    assert names == {"constant", "cosine", "inverse_time", "linear_scaling", "step_decay", "warmup"}


def test_every_member_has_a_summary_and_a_source():
    members = [member for family in methods.families().values() for member in family]
    assert all(member.summary.endswith((".", "?")) for member in members)
    assert [member.name for member in members if not member.source] == []


def test_a_source_is_the_paragraph_that_says_so():
    assert methods._source("Do it.\n\nSource: A, B\n2001, C.\n\nMore.") == "A, B 2001, C."
    assert methods._source("Do it.\n\nA and B, J. Sci. Comput. 16 (1995).") == ""


def test_a_new_family_is_found_and_a_folder_that_is_none_is_not(tmp_path, monkeypatch):
    def write(path: str, text: str = "") -> None:
        file = tmp_path / "made_up" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    for folder in ("", "birds/", "shell/", "mixed/", "empty/"):
        write(f"{folder}__init__.py")
    bird = '__all__ = ["{0}"]\nclass {0}:\n    """Sing.\n\n    Source: {0} (1999).\n    """\n'
    write("birds/_base.py", "1 / 0")
    write("birds/tree_creeper.py", bird.format("TreeCreeper"))
    write("birds/wren.py", bird.format("wren"))
    write("shell/egg.py", "from made_up.spark import job\n" + bird.format("Egg"))
    write("mixed/two.py", '__all__ = ["Two", "more"]\nclass Two: ...\ndef more(): ...')
    monkeypatch.syspath_prepend(tmp_path)
    try:
        found = methods.families("made_up")
    finally:
        sys.modules.pop("made_up", None)
    creeper = ("tree_creeper", "Sing.", "TreeCreeper (1999).", "made_up.birds.tree_creeper")
    assert list(found) == ["birds"]
    assert found["birds"][0] == (*creeper, "TreeCreeper")
    assert [member.name for member in found["birds"]] == ["tree_creeper", "wren"]


@pytest.mark.parametrize("width", [40, 64, 80, 100, 160])
def test_a_table_fits_the_terminal_and_loses_no_word(width):
    for family, members in methods.families().items():
        table = methods.as_table(family, members, width)
        assert max(map(len, table.splitlines())) <= width
        words = set(table.split())
        for member in members:
            assert {member.name, *member.summary.split(), *member.source.split()} <= words


def test_the_width_is_that_of_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "72")
    assert call("methods") == 0
    lines = capsys.readouterr().out.splitlines()
    assert 60 < max(map(len, lines)) <= 72


@pytest.mark.parametrize(
    ("name", "heads", "phrase"),
    [
        ("sgd", ["methods.sgd(n_push: int", "updaters.sgd(rate:"], "w <- w - rate g"),
        ("SquaredHinge", ["objectives.SquaredHinge("], "max(0, 1 - s m)^2"),
        ("cosine", ["updaters.cosine(rate:"], "arXiv:1608.03983"),
        ("L2", ["penalties.L2(strength:"], "Half the squared Euclidean norm"),
    ],
)
def test_one_name_shows_its_signature_and_its_whole_docstring(name, heads, phrase, capsys):
    assert call("methods", name) == 0
    told = capsys.readouterr().out
    found = [line for line in told.splitlines() if line.startswith("sparkdist.")]
    assert [line[: 10 + len(head)] for line, head in zip(found, heads, strict=True)] == [
        f"sparkdist.{head}" for head in heads
    ]
    assert phrase in told


def test_an_unknown_name_lists_the_known_ones(capsys):
    assert call("methods", "adagard") == 2
    told = capsys.readouterr().err
    assert "there is no 'adagard'; there are adagrad, adam, " in told
    assert told.endswith("Did you mean 'adagrad'?\n")


def test_methods_as_json(capsys):
    assert call("methods", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["solvers"][1]["name"] == "lbfgs"
    assert call("methods", "ssp", "--json") == 0
    (member,) = json.loads(capsys.readouterr().out)["consistency"]
    assert member["source"].startswith("Ho et al.")


# --- what train refuses before a session starts ------------------------------------------------


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(["--data", "a9a", *arguments])


WRONG: list[tuple[str, str]] = [
    ("--objective logitic", "there is no 'logitic'; there are "),
    ("--objective logistic --delta 2", "logistic has no option 'delta'; it has none"),
    ("--objective huber --n-classes 3", "huber has no option 'n_classes'; it has delta"),
    ("--objective huber --delta 0", "delta must be a finite number > 0; it is 0.0"),
    ("--method adam", "there is no method 'adam'; there are gd, lbfgs, "),
    ("--engine fast", "there is no engine 'fast'; there are aggregate, resident, auto"),
    ("--l1 0.1 --method lbfgs", "lbfgs cannot use an L1 penalty; use gd or owlqn"),
    ("--l2 -1", "l2 must be a finite number >= 0; it is -1.0"),
    ("--tol -1", "tol is -1.0; it must be 0 or more"),
    ("--objective mlp --method lbfgs --epochs 3", "lbfgs has no option 'epochs'; it has memory"),
    ("--updater adam", "lbfgs has no option 'updater'; it has memory"),
    ("--rate 0.1", "lbfgs has no option 'rate'; it has memory"),
    ("--method lbfgs:5", "'lbfgs:5' cannot be read: write lbfgs:option=number"),
    ("--method gd:step=far", "cannot be read: write gd:option=number or step_rule=word"),
    ("--method easgd:alpha=stiff", "alpha must be a number > 0 and <= 1; it is 'stiff'"),
    ("--method lbfgs:memry=5", "lbfgs has no option 'memry'; it has memory"),
    ("--method sgd:n_psh=2", "got an unexpected keyword argument 'n_psh'; it takes n_push, "),
    ("--method easgd:7", "alpha"),
    ("--method easgd --rate 0", "rate"),
    ("--plaintext", "lbfgs has no option 'plaintext'; it has memory"),
    ("--method sgd --tol 1e-3", "tol cannot be used with sgd: sgd sees every row"),
    ("--method sgd --engine auto", "engine cannot be used with sgd: sgd sees every row"),
    ("--method downpour --deterministic", "deterministic cannot be used with downpour"),
    ("--method sgd --updater adom", "there is no 'adom'; there are adagrad, adam, "),
    ("--method sgd --updater average", "average adds up differences of parameters"),
    ("--method sgd --updater adam:beta=1", "got an unexpected keyword argument 'beta'"),
    ("--method sgd --updater adam:rate=fast", "rate must be a finite number > 0, or a function"),
    ("--method sgd --rate 0", "rate must be a finite number > 0"),
    ("--method sgd --clip 0", "clip must be a finite number > 0; it is 0.0"),
    ("--method sgd --consistency ssp", "missing a required argument: 'bound'; it takes bound"),
    ("--method sgd --consistency bsp:2", "too many positional arguments; it takes no arguments"),
    ("--method sgd --consistency ssp:-1", "bound must be a whole number >= 0; it is -1"),
    ("--method sgd --consistency sps:1", "there is no 'sps'; there are asp, backup, "),
    ("--method sgd --checkpoint often", "checkpoint is 'often'; it must be one of "),
    ("--method sgd --memory cloud", "memory is 'cloud'; it must be 'host' or 'server'"),
    ("--codec float16", "lbfgs has no option 'codec'; it has memory"),
    ("--method sgd --codec zip", "there is no 'zip'; there are "),
    ("--method sgd --seconds 0", "seconds must be a number of seconds > 0; it is 0.0"),
    ("--method sgd --resume nowhere", "resume is 'nowhere', where there are no checkpoints"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG)
def test_a_combination_that_cannot_work_is_refused(arguments, sentence):
    with pytest.raises(InvalidCall) as caught:
        _call.refuse(options(*arguments.split()))
    assert [sentence in problem for problem in caught.value.problems] == [True]


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(InvalidCall, match="^train: 4 problems") as caught:
        _call.refuse(options("--objective", "x", "--method", "y", "--engine", "z", "--l1", "-1"))
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--l1 0.1",
        "--engine auto --tol 0 --max-iter 5 --deterministic",
        "--engine resident --method newton_cg",
        "--objective softmax --n-classes 3 --method gd",
        "--objective mlp --layers 4,3,2 --method downpour --epochs 2",
        "--method sgd --deterministic --consistency backup:1 --updater adam --rate 0.01",
        "--method easgd:0.3,tau=8 --rate 0.05",
        "--method local_sgd:8 --rate 0.05 --updater sgd:1.0",
        "--method gd:step_rule=nesterov,step=0.1",
    ],
)
def test_what_can_work_is_let_through(arguments):
    _call.refuse(options(*arguments.split()))


def test_it_is_refused_before_a_session_starts(monkeypatch, caplog):
    def start(*_: object) -> None:
        raise AssertionError("a session was started")

    monkeypatch.setattr(_session, "start", start)
    assert call("train", "--data", "a9a", "--method", "sgd", "--tol", "1") == 2
    assert "tol cannot be used with sgd" in caplog.text


@pytest.mark.parametrize(
    "arguments", ["--batch-size 0", "--epochs 1.5", "--seed -1", "--patience x", "--layers 3-2"]
)
def test_a_number_that_is_none_is_refused_by_the_parser(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        options(*arguments.split())
    assert f"argument {arguments.split()[0]}: " in capsys.readouterr().err


def test_the_options_are_those_of_minimize_and_model_server_with_their_defaults():
    known = dict(inspect.signature(ModelServer.__init__).parameters)
    known |= inspect.signature(ModelServer.train).parameters
    theirs = {name: known[name].default for name in _call.OF_SERVER}
    ours = {name: default for name, (_, default, _) in _call.OF_SERVER.items()}
    assert ours == theirs
    # The others are arrays and objects, or belong to a method: downpour:n_push=2.
    plain = {name for name, one in known.items() if isinstance(one.default, str | int | float)}
    assert plain - set(ours) == {"progress", "n_fetch", "n_push", "local_rate"}
    exact = inspect.signature(minimize).parameters
    assert _call.EXACT == {name: exact[name].default for name in _call.EXACT}
    assert _data.FORMATS == FORMATS


def test_options_become_the_arguments_of_minimize():
    given = "--method sgd --updater momentum --rate 0.5 --consistency ssp:4 --epochs 3 --l2 0.1"
    assert _call.arguments_of(options(*given.split(), "--plaintext"), []) == {
        "method": "sgd",
        "intercept": False,
        "deterministic": False,
        "penalty": ElasticNet(l1=0.0, l2=0.1),
        "updater": updaters.momentum(0.5),
        "consistency": consistency.ssp(4),
        "epochs": 3,
        "plaintext": True,
    }
    found = _call.arguments_of(options("--tol", "1e-3", "--engine", "auto", "--l1", "1"), [])
    assert found["method"] == "owlqn"
    assert (found["tol"], found["engine"]) == (1e-3, "auto")
    assert "max_iter" not in found and "updater" not in found


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("downpour --rate 0.5", {"updater": updaters.adagrad(0.5)}),
    ("downpour:n_push=2,n_fetch=3", {"n_push": 2, "n_fetch": 3}),
    ("sgd:4 --updater adam:0.01,beta1=0.8", {"n_push": 4, "updater": updaters.adam(0.01, 0.8)}),
    ("sgd --updater momentum --rate 0.2", {"updater": updaters.momentum(0.2)}),
    ("easgd:0.3,tau=8 --rate 0.2", {"alpha": 0.3, "tau": 8, "rate": 0.2}),
    ("local_sgd:8 --rate 0.2", {"steps": 8, "inner": updaters.sgd(0.2)}),
    ("diloco --rate 0.2", {"inner": updaters.adam(0.2)}),
    ("local_sgd:inner=momentum:0.2,warm=3", {"inner": updaters.momentum(0.2), "warm": 3}),
    ("sgd --codec qsgd:4", {"codec": codecs.qsgd(4)}),
    ("sgd --codec ef21:top_k:0.2", {"codec": codecs.ef21(codecs.top_k(0.2))}),
    ("gd:step_rule=constant,step=0.1", {"step_rule": "constant", "step": 0.1}),
    ("backup_workers:2 --consistency asp", {"extra": 2, "consistency": consistency.asp()}),
]


@pytest.mark.parametrize(("given", "own"), METHODS)
def test_a_method_takes_its_arguments_behind_a_colon(given, own):
    found = _call.arguments_of(options("--method", *given.split()), [])
    for name in ("intercept", "deterministic", "penalty"):
        del found[name]
    assert found == {"method": given.split()[0].partition(":")[0], **own}


def test_softmax_has_as_many_classes_as_there_are_labels():
    softmax = options("--objective", "softmax")
    assert _call.make_objective(softmax, (0.0, 1.0, 4.0)).n_classes == 5
    with pytest.raises(InvalidCall, match="give --n-classes"):
        _call.make_objective(softmax, None)


# --- the report --------------------------------------------------------------------------------

FACTS: dict[str, Any] = {
    "sparkdist": "1.0", "data": "a9a", "rows": 1000, "features": 5, "partitions": 2,
    "ingested": 0.25, "objective": "logistic", "method": "sgd", "l1": 0.0, "l2": 0.1,
    "fun": float("nan"), "success": False, "message": "not finite", "iterations": 9, "passes": 1,
    "seconds": 2.0, "counts": {"received": 10, "applied": 7, "duplicate": 3, "dropped": 0},
    "staleness": {0: 4, 2: 3}, "restarts": 0, "examples": 1500, "expected": None,
    "reached": None, "metrics": {"train": {"loss": float("inf"), "error_rate": 0.5}},
    "model": "m", "files": ["a", "b"],
}  # fmt: skip


def test_a_report_is_strict_json():
    found = json.loads(_report.as_json(FACTS), parse_constant=pytest.fail)
    assert found["fun"] is None
    assert found["metrics"] == {"train": {"loss": None, "error_rate": 0.5}}
    assert found["staleness"] == {"0": 4, "2": 3}


def test_a_report_of_the_model_server_tells_its_books():
    lines = _report.as_text(FACTS).splitlines()
    assert lines[1] == "sparkdist 1.0: logistic by sgd"
    assert "finished   NO: not finite" in lines
    assert "pushes     7 applied, 3 duplicate in 2.0 s, 750 rows/s" in lines
    assert "staleness  0.86 versions in the mean" in lines  # (4 * 0 + 3 * 2) / 7


# --- the doctor's checks -----------------------------------------------------------------------

HERE = _facts.Installation(
    python="3.11.7",
    executable="/env/bin/python",
    requires_python=">=3.10",
    pyspark_python="",
    spark_home="/opt/spark",
    spark_remote="",
    python3="/env/bin/python3",
    pyspark="4.3.0",
    spark="4.3.0",
    packages=[(Requirement("numpy>=1.26"), "2.4.6"), (Requirement("pandas<3,>=2.2"), "2.3.3")],
)
VERSIONS: dict[str, str | None] = {name: "2.4.6" for name in _probe.PACKAGES}
GIB = 1 << 30
BLAS = _probe.Blas("openblas", "0.3.31", 1)
EXECUTOR = _probe.Machine(
    host="a",
    parent=10,
    python="3.11.7",
    executable="/env/bin/python",
    versions=VERSIONS,
    cores=4,
    memory=8 * GIB,
    blas=[BLAS],
    folders=[("/tmp/blocks", 50 * GIB, "")],
)
CLUSTER = _facts.Cluster(
    master="spark://m:7077",
    host="10.0.0.1",
    slots=8,
    settings={"spark.executor.memory": "4g"},
    encryption=[],
    driver=EXECUTOR._replace(host="driver"),
    executors=[EXECUTOR, EXECUTOR._replace(host="b", parent=11)],
)


def test_good_facts_need_no_fixing():
    early = [_findings.of_python, _findings.of_spark, _findings.of_packages]
    findings = sum((check(HERE) for check in early), [])
    findings += _findings.of_java(_facts.Java("/usr/bin/java", "17"))
    findings += sum((check(CLUSTER) for check in _findings.OF_CLUSTER.values()), [])
    assert {finding.level for finding in findings} == {OK}
    assert all(finding.found and not finding.todo for finding in findings)


EARLY: list[tuple[Callable[[Any], list[Finding]], Any, str, str, str]] = [
    (_findings.of_python, HERE._replace(python="3.9.2"), FIX, "3.9.2 at", "Python >=3.10"),
    (
        _findings.of_python,
        HERE._replace(python3="/usr/bin/python3"),
        NOTE,
        "Spark would run /usr/bin/python3",
        "export PYSPARK_PYTHON=/env/bin/python",
    ),
    (_findings.of_java, _facts.Java("", ""), FIX, "there is none", "install Java 17"),
    (_findings.of_java, _facts.Java("/j/bin/java", ""), FIX, "does not say", "JAVA_HOME must"),
    (_findings.of_java, _facts.Java("/j/bin/java", "1.8"), FIX, "8 at /j", "install Java 17"),
    (_findings.of_java, _facts.Java("/j/bin/java", "11"), FIX, "11 at /j", "install Java 17"),
    (
        _findings.of_spark,
        HERE._replace(spark_remote="sc://x"),
        FIX,
        "Spark Connect, which has no RDDs",
        "unset SPARK_REMOTE",
    ),
    (_findings.of_spark, HERE._replace(pyspark=""), FIX, "there is no PySpark", "pip install"),
    (_findings.of_spark, HERE._replace(spark=""), FIX, "there is no Spark", "unset SPARK_HOME"),
    (
        _findings.of_spark,
        HERE._replace(spark="3.5.1"),
        FIX,
        "PySpark 4.3.0, Spark 3.5.1 at /opt/spark",
        "pip install pyspark==3.5.1",
    ),
    (
        _findings.of_packages,
        HERE._replace(packages=[(Requirement("pandas<3,>=2.2"), "3.0.1")]),
        FIX,
        "3.0.1; sparkdist needs <3,>=2.2",
        "pip install 'pandas<3,>=2.2'",
    ),
    (
        _findings.of_packages,
        HERE._replace(packages=[(Requirement("xxhash>=3.4"), None)]),
        FIX,
        "missing; sparkdist needs >=3.4",
        "pip install 'xxhash>=3.4'",
    ),
]


@pytest.mark.parametrize(("check", "facts", "level", "found", "todo"), EARLY)
def test_a_fault_of_the_installation_is_found(check, facts, level, found, todo):
    finding = check(facts)[-1]
    assert finding.level == level
    assert found in finding.found
    assert todo in finding.todo


def executors(**changes: Any) -> _facts.Cluster:
    """The cluster with another second executor."""
    return CLUSTER._replace(executors=[EXECUTOR, EXECUTOR._replace(host="b", **changes)])


def settings(**changes: str) -> _facts.Cluster:
    return CLUSTER._replace(
        settings={f"spark.{k.replace('_', '.')}": v for k, v in changes.items()}
    )


LATE: list[tuple[str, _facts.Cluster, str, str, str]] = [
    ("executors", CLUSTER._replace(executors=[]), FIX, "none answered", "web page"),
    (
        "executors",
        executors(python="3.12.1"),
        FIX,
        "3.12.1 on b, 3.11.7 on the driver",
        "PYSPARK_PYTHON",
    ),
    ("executors", executors(python="3.11.9"), NOTE, "3.11.9 on b", "the same Python"),
    ("versions", executors(versions=VERSIONS | {"numpy": "2.3.9"}), FIX, "2.3.9 on b", "install"),
    ("versions", executors(versions=VERSIONS | {"numpy": "2.4.1"}), NOTE, "2.4.1 on b", "install"),
    ("versions", executors(versions=VERSIONS | {"numpy": ""}), NOTE, "of unknown version", "one"),
    ("versions", executors(versions=VERSIONS | {"numpy": None}), FIX, "missing on b", "install it"),
    (
        "versions",
        executors(versions=VERSIONS | {"sparkdist": "2.4.5"}),
        FIX,
        "2.4.5 on b, 2.4.6 on the driver",
        "--archives",
    ),
    (
        "versions",
        executors(versions=VERSIONS | {"sparkdist": None}),
        FIX,
        "missing on b",
        "--archives",
    ),
    (
        "network",
        executors(unreachable="b cannot reach the model server at h:1 (refused): set x to y"),
        FIX,
        "b cannot reach a port of the driver at h:1 (refused)",
        "set x to y",
    ),
    ("network", executors(versions=VERSIONS | {"sparkdist": None}), NOTE, "not asked", ""),
    ("slots", CLUSTER._replace(slots=1), NOTE, "1 task slot on 2 executors", "local[4] has 4"),
    ("memory", executors(memory=GIB // 2), NOTE, "0.5 GiB are free", "end other programs"),
    (
        "memory",
        CLUSTER._replace(settings={"spark.executor.pyspark.memory": "2g"}),
        NOTE,
        "memory-mapped blocks count",
        "leave it unset",
    ),
    ("memory", CLUSTER._replace(master="yarn"), NOTE, "memoryOverhead", "384 MiB"),
    ("BLAS", executors(blas=[BLAS._replace(threads=4)]), NOTE, "4 tasks of 4 threads", "THREADS=1"),
    ("BLAS", executors(blas=[BLAS._replace(version="0.2")]), NOTE, "not the same", "same NumPy"),
    ("blocks", executors(folders=[("/x", 0, "Read-only")]), FIX, "/x on b: Read-only", "local.dir"),
    ("blocks", executors(folders=[("/x", GIB // 32, "")]), FIX, "0.0 GiB free", "local.dir"),
    ("blocks", executors(folders=[("/x", GIB // 2, "")]), NOTE, "0.5 GiB free", "local.dir"),
    (
        "settings",
        settings(dynamicAllocation_enabled="true"),
        NOTE,
        "dynamic allocation",
        "resident",
    ),
    (
        "settings",
        CLUSTER._replace(encryption=["spark.ssl.enabled"]),
        NOTE,
        "spark.ssl.enabled: does not cover",
        "--certificate",
    ),
]


@pytest.mark.parametrize(("about", "cluster", "level", "found", "todo"), LATE)
def test_a_fault_of_the_cluster_is_found(about, cluster, level, found, todo):
    finding = _findings.OF_CLUSTER[about](cluster)[-1]
    assert finding.level == level
    assert found in finding.found
    assert todo in finding.todo


def test_findings_of_many_machines_are_few_lines():
    many = [EXECUTOR._replace(host=f"h{i:02}", python="3.12.0") for i in range(30)]
    first, second = _findings.of_executors(CLUSTER._replace(executors=many))
    assert first.found.startswith("30 answered on h00, h01, ") and " ...," in first.found
    assert second.found.startswith("3.12.0 on h00, ")


def test_what_is_not_known_is_said_so():
    blind = EXECUTOR._replace(memory=None, blas=None, folders=[])
    cluster = CLUSTER._replace(driver=blind, executors=[blind])
    assert "threadpoolctl" in _findings.of_blas(cluster)[0].found
    assert _findings.of_memory(cluster)[0].found == "spark.executor.memory is 4g"
    assert _findings.of_folders(cluster)[0].level == FIX
    local = cluster._replace(master="local[2]", settings={})
    assert _findings.of_memory(local)[0].found == "spark.driver.memory is 1g, Spark's default"


def test_speculation_is_named_and_is_no_fault():
    (finding,) = _findings.of_settings(settings(speculation="true"))
    assert (finding.level, finding.todo) == (OK, "")
    assert "a copy of a task counts once" in finding.found


# --- the doctor's facts ------------------------------------------------------------------------


def fake_java(folder: Path, told: str) -> None:
    (folder / "bin").mkdir()
    java = folder / "bin" / "java"
    java.write_text(f"#!/bin/sh\necho '{told}' >&2\n")
    java.chmod(0o755)


def test_java_is_asked_for_its_version(tmp_path, monkeypatch):
    fake_java(tmp_path, "    java.specification.version = 21")
    path = str(tmp_path / "bin" / "java")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert _facts.find_java() == (path, "21")
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert _facts.find_java() == (path, "21")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))  # Spark would not look further
    assert _facts.find_java() == (str(tmp_path / "nowhere" / "bin" / "java"), "")
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", "/nowhere")
    assert _facts.find_java() == ("", "")


def test_the_version_of_spark_is_that_of_its_jars(tmp_path):
    assert _facts._version_of_spark("") == _facts._version_of_spark(str(tmp_path)) == ""
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars" / "spark-core_2.13-4.1.0-preview2.jar").touch()
    assert _facts._version_of_spark(str(tmp_path)) == "4.1.0-preview2"


def test_the_installation_of_these_tests_is_sound():
    here = _facts.find_installation()
    found = {need.name for need, _ in here.packages}
    assert {"numpy", "pyspark", "pandas"} <= found and "pytest" not in found
    assert [finding.level for finding in _findings.of_packages(here)] == [OK]


def test_a_machine_is_looked_at(tmp_path):
    machine = _facts._machine(_probe.look([str(tmp_path), str(tmp_path / "gone")]))
    assert machine.python == ".".join(map(str, sys.version_info[:3]))
    assert machine.versions["numpy"] == importlib.import_module("numpy").__version__
    assert machine.blas is not None and machine.blas[0].threads >= 1
    good, gone = machine.folders
    assert good[0] == str(tmp_path) and good[1] > 0 and good[2] == ""
    assert gone == (str(tmp_path / "gone"), 0, "No such file or directory")
    assert list(tmp_path.iterdir()) == []


def test_the_probe_runs_where_sparkdist_is_not(tmp_path):
    cloudpickle.register_pickle_by_value(_probe)
    try:
        (tmp_path / "probe").write_bytes(cloudpickle.dumps(_probe.visit))
    finally:
        cloudpickle.unregister_pickle_by_value(_probe)
    program = (
        "import pickle, sys; sys.modules['sparkdist'] = None\n"
        f"visit = pickle.load(open({str(tmp_path / 'probe')!r}, 'rb'))\n"
        "sys.stdout.buffer.write(pickle.dumps(list(visit('127.0.0.1', 9, 0.0, []))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    (answer,) = pickle.loads(done.stdout)
    assert answer["python"] == _probe.look([])["python"]
    assert answer["unreachable"] is None  # nobody could ask


def test_a_port_that_is_closed_cannot_be_reached():
    said = _probe._unreachable("127.0.0.1", 9)
    assert said is not None and "127.0.0.1:9" in said and ": set spark.driver.host to" in said


# --- the doctor's lines ------------------------------------------------------------------------


def test_a_check_that_raises_is_a_line_with_what_it_said():
    def explode() -> list[Finding]:
        raise ValueError("the disk\nhas gone")

    def leave() -> list[Finding]:
        raise SystemExit("no Spark")

    assert doctor._guarded("disk", explode, "look")[0] == (FIX, "disk", "the disk", "look")
    assert doctor._guarded("Spark", leave)[0][:3] == (FIX, "Spark", "no Spark")


def test_without_a_session_the_checks_before_it_are_told(monkeypatch):
    def start(*_: object) -> None:
        raise RuntimeError("no way")

    monkeypatch.setattr(_session, "start", start)
    *early, last = doctor.examine(argparse.Namespace(patience=1.0, conf=[]))
    assert [finding.about for finding in early if finding.level == OK][:1] == ["Python"]
    assert last[:3] == (FIX, "session", "no way")


def test_without_what_the_doctor_itself_needs_there_is_one_line():
    program = (
        "import sys; sys.modules.update(packaging=None)\n"
        "from sparkdist.commands import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("FIX  packages ") and "packaging" in done.stdout


@pytest.mark.parametrize(
    ("levels", "status", "end"),
    [([OK, NOTE], 0, "nothing to fix"), ([OK, FIX, FIX], 1, "2 to fix")],
)
def test_the_exit_status_tells_whether_something_must_be_fixed(
    levels, status, end, monkeypatch, capsys
):
    findings = [Finding(level, "x", "found " * 30, "do " * 40) for level in levels]
    monkeypatch.setattr(doctor, "examine", lambda _: iter(findings))
    monkeypatch.setenv("COLUMNS", "60")
    assert call("doctor") == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == end
    assert max(map(len, lines)) <= 60
    assert [line[:5].strip() for line in lines if line[:5].strip() in levels] == levels

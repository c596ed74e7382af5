"""The jobs, by spark-submit and by their own main: what they read, write, print and return."""

from __future__ import annotations

import json
import logging
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pyspark.sql import SparkSession
from sklearn.datasets import dump_svmlight_file
from sklearn.linear_model import LogisticRegression

import sparkdist
from sparkdist import commands
from sparkdist.blocks import Array
from tests.conftest import PRELOADED, QUICK_JAVA

pytestmark = pytest.mark.spark

ROOT = Path(__file__).resolve().parents[1]
N, D = 80, 3
#: Where a pass is not the point: the same bits, and a Spark job less for each.
RESIDENT = ["--engine", "resident"]


def make_table() -> tuple[Array, Array]:
    random = np.random.default_rng(21)
    X = random.normal(size=(N, D))
    return X, (X @ [1.0, -1.0, 0.5] + random.logistic(size=N) > 0).astype(float)


X, Y = make_table()


def optimum() -> float:
    """Minimum over w of mean log(1 + exp(-s x w)) + (0.1 / 2) |w|^2, by scikit-learn."""
    solver = LogisticRegression(C=1 / (N * 0.1), fit_intercept=False, solver="newton-cg", tol=1e-10)
    w = solver.fit(X, Y).coef_[0]
    return float(np.mean(np.logaddexp(0, (1 - 2 * Y) * (X @ w))) + 0.05 * w @ w)


# --- by spark-submit --------------------------------------------------------------------------

#: What only a job that spark-submit has started can have: doctor.py is to see it.
CONF = ["--master", "local[2]", "--conf", "spark.speculation=true"]
for setting in (*PRELOADED.items(), ("spark.ui.enabled", "false")):
    CONF += ["--conf", "=".join(setting)]


class Submitted(NamedTuple):
    """What came of a job."""

    status: str
    printed: list[str]


def submit(*program: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a user does, with logging as in ``make demo``."""
    # A folder on the class path, as SPARK_CONF_DIR is one, would keep the archive of classes away.
    quiet = ROOT / "tools" / "spark-conf" / "log4j2.properties"
    options = f"{QUICK_JAVA['JDK_JAVA_OPTIONS']} -Dlog4j2.configurationFile={quiet}"
    return subprocess.run(
        [str(Path(sys.executable).parent / "spark-submit"), *CONF, *program],
        env=os.environ | {"JDK_JAVA_OPTIONS": options},
        capture_output=True,
        text=True,
        timeout=300,
    )


def complaints(run: subprocess.CompletedProcess[str]) -> list[str]:
    """Standard error without the JVM's own; of Python's, spark-submit makes standard output."""
    jvm = ("WARNING: ", "NOTE: ")
    return [line for line in run.stderr.splitlines() if not line.startswith(jvm)]


def write_inputs(folder: Path) -> dict[str, list[object]]:
    """Write what the jobs read; give each job by a name, with its arguments."""
    (folder / "t.csv").write_text("a,b,label\n1,2,0\n3,4,1\n")
    how = ["--method", "newton_cg", "--tol", "1e-8", *RESIDENT]
    known = ["--l2", "1e-3", "--expect", "0.33334075206872", "--output", folder / "model"]
    scores = ["--model", folder / "model", "--data", "a9a-test", "--output", folder / "scores"]
    return {
        "train": ["train.py", "--data", "a9a", "--test-data", "a9a-test", *how, *known],
        "predict": ["predict.py", *scores],
        "word2vec": ["word2vec.py", "--epochs", "8", "--words", "government"],
        "doctor": ["doctor.py"],
        "no column": ["train.py", "--data", folder / "t.csv", "--label", "income"],
    }


@pytest.fixture(scope="module")
def jobs(folder: Path) -> dict[str, Submitted]:
    """All jobs, in one JVM: it takes longer to start than most of them."""
    wanted = write_inputs(folder)
    calls = [[str(ROOT / "jobs" / str(job)), *map(str, more)] for job, *more in wanted.values()]
    run = submit(str(ROOT / "tests" / "several_jobs.py"), json.dumps(calls))
    found = re.findall(r"^\[\d\]\n(.*?)^\[exit status (\w+)\]$", run.stdout, re.S | re.M)
    assert len(found) == len(wanted), run.stdout + run.stderr
    assert complaints(run) == []
    assert str(run.returncode) == found[-1][1]  # spark-submit hands it on
    return {
        name: Submitted(status, printed.splitlines())
        for name, (printed, status) in zip(wanted, found, strict=True)
    }


def test_training_on_the_embedded_data_reaches_the_known_optimum(jobs, folder):
    status, lines = jobs["train"]
    printed = "\n".join(lines)
    assert status == "0", printed
    assert "logistic by newton_cg" in printed
    assert "32,561 rows x 123 features" in printed
    assert "0.33334075206872  reached" in printed
    assert "error rate 0.14882" in printed
    files = {"history.json", "history.png", "model.json", "model.safetensors"}
    assert {file.name for file in (folder / "model").iterdir()} == files
    metrics = json.loads((folder / "model" / "model.json").read_text())["metrics"]
    assert_allclose(metrics["objective"], 0.33334075206872, rtol=1e-10)
    assert_allclose(metrics["test"]["error_rate"], 0.14882, atol=5e-6)
    history = json.loads((folder / "model" / "history.json").read_text())
    assert len(history["fun"]) == len(history["seconds"]) == len(history["passes"])


def test_the_model_predicts_the_embedded_test_set(jobs, folder):
    status, lines = jobs["predict"]
    assert status == "0", lines
    table = pq.read_table(folder / "scores", columns=["label", "prediction"])
    assert table.num_rows == 16281
    wrong = table["label"].to_numpy() != table["prediction"].to_numpy()
    assert_allclose(wrong.mean(), 0.14882, atol=5e-6)


def test_a_column_that_is_not_there_exits_with_2_and_one_clear_line(jobs):
    assert jobs["no column"] == Submitted(
        "2",
        [
            "sparkdist.train: from_dataframe: 1 problem",
            "  - there is no column 'income'; there are a, b, label",
        ],
    )


def test_the_doctor_as_a_job_has_the_jobs_own_configuration(jobs):
    status, lines = jobs["doctor"]
    printed = "\n".join(lines)
    assert status == "0", printed
    assert "2 task slots on 1 executor" in printed
    assert "speculation is on" in printed
    assert lines[-1] == "nothing to fix"


def test_word2vec_is_the_program_of_deepdists_readme(jobs):
    status, lines = jobs["word2vec"]
    assert status == "0", lines
    first, *epochs, last, near = lines
    # The bundled Lee corpus; the vocabulary is gensim's, of words that occur 5 times.
    assert first.startswith("1,750 words, 300 articles; loss ")
    assert [line.rpartition("s, ")[2] for line in epochs] == [
        f"{8 * epoch} updates so far" for epoch in range(1, 9)
    ]
    before, after = (float(line.rpartition(" ")[2]) for line in (first, last))
    assert after <= 1.02 * gensim_alone(8)
    assert after < before
    assert near.startswith("government: ")


def gensim_alone(epochs: int) -> float:
    """The loss that gensim reaches in one process, by the job's own measure."""
    from gensim.models.word2vec import Word2Vec
    from gensim.test.utils import datapath
    from gensim.utils import simple_preprocess

    job = runpy.run_path(str(ROOT / "jobs" / "word2vec.py"))
    with open(datapath("lee_background.cor")) as file:
        texts = [simple_preprocess(line) for line in file]
    model = Word2Vec(texts, vector_size=50, epochs=epochs, workers=1, seed=0)
    return job["mean_loss"](model, texts)


# --- by main, in this process's session -------------------------------------------------------


@pytest.fixture
def run_job(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a job's main, which stops the session at its end: here it does not."""
    monkeypatch.setattr(SparkSession, "stop", lambda session: None)

    def run(job: str, *arguments: object) -> int:
        main = runpy.run_path(str(ROOT / "jobs" / job))["main"]
        return main([str(argument) for argument in arguments])

    return run


def write_libsvm(folder: Path) -> list[str]:
    dump_svmlight_file(X, Y, str(folder / "table"), zero_based=False)
    return ["--data", str(folder / "table"), "--n-features", "3"]


def write_csv(folder: Path) -> list[str]:
    rows = np.c_[np.ones(N), X, Y]
    path = folder / "table.csv"
    np.savetxt(path, rows, "%.17g", ",", header="w,a,b.c,d,income", comments="")
    return ["--data", str(path), "--label", "income", "--weight", "w", "--partitions", "3"]


def write_parquet(folder: Path) -> list[str]:
    table = pa.table({"label": Y, "a": X[:, 0], "x y": X[:, 1], "d": X[:, 2], "other": Y})
    pq.write_table(table, folder / "table.parquet", row_group_size=30)
    return ["--data", str(folder / "table.parquet"), "--features", "a,x y,d"]


FEATURES = {
    write_libsvm: "features",
    write_csv: ["a", "b.c", "d"],
    write_parquet: ["a", "x y", "d"],
}


@pytest.mark.parametrize("write", FEATURES)
def test_every_format_is_trained_on_and_scored(write, run_job, tmp_path, capsys):
    data, model = write(tmp_path), tmp_path / "model"
    how = ["--l2", "0.1", "--tol", "1e-9", "--expect", repr(optimum()), *RESIDENT]
    assert run_job("train.py", *data, *how, "--output", model) == 0
    assert f"{N} rows x {D} features" in capsys.readouterr().out
    loaded = sparkdist.load(model)
    assert loaded.features == FEATURES[write]
    scores = ["--model", model, *data[:2]]
    for output in ("out", "out.csv"):
        assert run_job("predict.py", *scores, "--output", tmp_path / output) == 0
    found = pq.read_table(tmp_path / "out").to_pydict()
    assert_allclose(found["probability"], loaded.predict_proba(X), rtol=1e-12)
    assert_array_equal(found["prediction"], X @ loaded.parameters > 0)
    (part,) = (tmp_path / "out.csv").glob("*.csv")
    head, *lines = part.read_text().splitlines()
    assert head.endswith(",prediction,probability")
    assert len(lines) == N


def test_a_run_that_does_not_converge_exits_with_1(run_job, tmp_path, capsys):
    how = ["--max-iter", 1, "--output", tmp_path / "model"]
    assert run_job("train.py", *write_libsvm(tmp_path), *how) == 1
    assert "converged  NO: max_iter was reached first" in capsys.readouterr().out
    assert (tmp_path / "model" / "model.json").exists()


OPTIONS = [
    (["--l1", "0.01"], "logistic by owlqn", {}),
    (["--objective", "softmax", "--intercept"], "softmax by lbfgs", {"n_classes": 2}),
    (["--objective", "huber", "--delta", "0.5"], "huber by lbfgs", {"delta": 0.5}),
    (["--objective", "softmax", "--n-classes", "4"], "softmax by lbfgs", {"n_classes": 4}),
]


@pytest.mark.parametrize(("options", "head", "arguments"), OPTIONS)
def test_options_reach_the_objective_and_the_solver(
    options, head, arguments, run_job, tmp_path, capsys
):
    more = ["--l2", "0.1", "--deterministic", *RESIDENT, "--output", tmp_path / "model"]
    assert run_job("train.py", *write_parquet(tmp_path), *options, *more) == 0
    assert head in capsys.readouterr().out
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    assert description["objective"] == {"name": head.split()[0], "arguments": arguments}
    assert ("intercept" in description["parameters"]) == ("--intercept" in options)


def test_an_expected_optimum_that_is_missed_is_an_error(run_job, tmp_path, capsys):
    wrong = repr(optimum() * (1 + 1e-6))
    how = ["--l2", "0.1", "--expect", wrong, "--output", tmp_path / "model"]
    assert run_job("train.py", *write_libsvm(tmp_path), *how) == 1
    assert "MISSED, relative difference -1.0e-06" in capsys.readouterr().out


def test_features_that_training_has_not_seen_are_told_with_the_remedy(run_job, tmp_path, caplog):
    dump_svmlight_file(X[:, :2], Y, str(tmp_path / "narrow"), zero_based=False)
    dump_svmlight_file(X, Y, str(tmp_path / "wide"), zero_based=False)
    files = ["--data", tmp_path / "narrow", "--test-data", tmp_path / "wide"]
    how = ["--max-iter", 1, "--output", tmp_path / "model"]
    assert run_job("train.py", *files, *how) == 2
    assert "wide' has more than 2 features: say with --n-features how many" in caplog.text
    assert "Traceback" not in caplog.text
    assert run_job("train.py", *files, "--n-features", 3, *how) == 1


def test_a_pattern_is_read_and_not_looked_for_as_a_folder(run_job, spark, tmp_path, capsys):
    for name in ("a", "b"):
        dump_svmlight_file(X, Y, str(tmp_path / f"{name}.libsvm"), zero_based=False)
    looks = "spark.sql.streaming.fileStreamSink.ignoreMetadata"  # where Spark would, and log it
    assert spark.conf.get(looks) == "false"
    how = ["--n-features", 3, "--max-iter", 1, "--output", tmp_path / "model"]
    assert run_job("train.py", "--data", tmp_path / "*.libsvm", *how) == 1
    assert f"{2 * N} rows x {D} features" in capsys.readouterr().out
    assert spark.conf.get(looks) == "true"
    spark.conf.unset(looks)


def test_without_an_output_some_rows_are_shown(run_job, tmp_path, capfd):
    data = write_parquet(tmp_path)
    run_job("train.py", *data, "--l2", "0.1", "--output", tmp_path / "model")
    capfd.readouterr()
    assert run_job("predict.py", "--model", tmp_path / "model", *data[:2]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert "|label|prediction|" in shown[1].replace(" ", "")
    assert sum(line.startswith("|") for line in shown) == 11


WRONG: list[tuple[list[str], str]] = [
    (["--data", "nowhere.csv"], "Path does not exist"),
    (["--data", "nowhere.parquet"], "cannot read 'nowhere.parquet' as Parquet"),
    (["--data", "a9a", "--objective", "logitic"], "Did you mean 'logistic'?"),
    (["--data", "a9a", "--method", "adam"], "there is no method 'adam'"),
    (["--data", "a9a", "--engine", "fast"], "there is no engine 'fast'"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG)
def test_what_cannot_work_is_one_message_and_exit_status_2(arguments, sentence, run_job, caplog):
    assert run_job("train.py", *arguments) == 2
    (record,) = [record for record in caplog.records if record.name == "sparkdist.train"]
    assert sentence in record.getMessage()
    assert "Traceback" not in caplog.text


# --- by python -m sparkdist -------------------------------------------------------------------


@pytest.fixture
def command(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command in the module's session, which it would stop at its end."""
    monkeypatch.setattr(SparkSession, "stop", lambda session: None)
    return lambda *arguments: commands.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "how",
    [
        "--method sgd --consistency ssp:1 --updater momentum --rate 0.05",
        "--method downpour:n_push=2 --checkpoint none",
        "--method local_sgd:4 --rate 0.2",
    ],
)
def test_a_model_server_trains_from_the_command_line(how, command, tmp_path, capsys):
    more = ["--epochs", 30, "--batch-size", 10, "--seed", 3, "--l2", "0.1", "--json"]
    files = [*write_libsvm(tmp_path), "--output", tmp_path / "model"]
    assert command("train", *files, *how.split(), *more) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == how.split()[1].partition(":")[0]
    assert found["counts"]["received"] == found["counts"]["applied"]
    assert found["examples"] == 30 * N
    # Near the optimum: 0.69 at the start, and what is left is the noise of batches of ten rows.
    assert optimum() <= found["fun"] <= optimum() + 0.03
    assert sparkdist.load(tmp_path / "model").metrics["objective"] == found["fun"]
    assert {"history.json", "history.png"} <= {file.name for file in (tmp_path / "model").iterdir()}


def test_the_report_of_an_exact_method_is_json_too(command, tmp_path, capsys):
    files = [*write_libsvm(tmp_path), "--output", tmp_path / "model"]
    how = ["--l2", "0.1", "--tol", "1e-9", "--expect", repr(optimum()), *RESIDENT]
    assert command("train", *files, *how, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert_allclose(found["fun"], optimum(), rtol=1e-10)
    assert found["reached"] is found["success"] is True
    assert (found["rows"], found["features"], found["method"]) == (N, D, "lbfgs")
    assert set(found["metrics"]["train"]) == {"loss", "error_rate"}


@pytest.mark.parametrize("write", FEATURES)
def test_features_are_kept_in_single_precision_if_asked(write, command, tmp_path, capsys):
    how = ["--l2", "0.1", "--tol", "1e-5", "--dtype", "float32", "--json", *RESIDENT]
    assert command("train", *write(tmp_path), *how, "--output", tmp_path / "model") == 0
    found = json.loads(capsys.readouterr().out)
    # float32 rounds the features to 6e-8 of their size: the optimum is another one, but near.
    assert 0 < abs(found["fun"] / optimum() - 1) < 1e-6


def test_verbose_tells_each_iteration(command, tmp_path, caplog):
    files = [*write_libsvm(tmp_path), "--output", tmp_path / "model"]
    try:
        assert command("train", *files, "--l2", "0.1", "--verbose") == 0
    finally:
        logging.getLogger("sparkdist").setLevel(logging.NOTSET)
    told = [record.getMessage() for record in caplog.records]
    assert any(line.startswith(f"Dataset({N} rows x {D} features") for line in told)
    iterations = [line for line in told if line.startswith("iteration ")]
    assert iterations[0].startswith("iteration 1: objective 0.")
    assert len(iterations) > 2


def test_predictions_are_not_overwritten_unless_asked(run_job, tmp_path, caplog):
    data: list[Any] = write_parquet(tmp_path)
    run_job("train.py", *data, "--l2", "0.1", "--output", tmp_path / "model")
    scores = ["--model", tmp_path / "model", *data[:2], "--output", tmp_path / "out"]
    assert run_job("predict.py", *scores) == 0
    assert run_job("predict.py", *scores) == 2
    assert "already exists" in caplog.text
    assert run_job("predict.py", *scores, "--overwrite") == 0
    assert run_job("predict.py", "--model", tmp_path / "no", *data[:2]) == 2
    assert "is not a model folder of sparkdist" in caplog.text

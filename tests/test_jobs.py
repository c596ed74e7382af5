"""The jobs, by spark-submit and by their own main: what they read, write, print and return."""

from __future__ import annotations

import json
import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

pytestmark = pytest.mark.spark

ROOT = Path(__file__).resolve().parents[1]
N, D = 80, 3


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


def submit(job: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a job as a user does, with logging as in ``make demo``."""
    command = [str(Path(sys.executable).parent / "spark-submit"), "--master", "local[2]"]
    quiet = {"SPARK_CONF_DIR": str(ROOT / "tools" / "spark-conf")}
    return subprocess.run(
        [*command, str(ROOT / "jobs" / job), *map(str, arguments)],
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        timeout=300,
    )


def complaints(run: subprocess.CompletedProcess[str]) -> list[str]:
    """Standard error without the JVM's own; of Python's, spark-submit makes standard output."""
    jvm = ("WARNING: ", "NOTE: ")
    return [line for line in run.stderr.splitlines() if not line.startswith(jvm)]


@pytest.fixture(scope="module")
def model(folder: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A-L2 of DESIGN, trained with the embedded data."""
    path = folder / "model"
    how = ["--method", "newton_cg", "--tol", "1e-8", "--expect", "0.33334075206872"]
    data = ["--data", "a9a", "--test-data", "a9a-test", "--l2", "1e-3"]
    return path, submit("train.py", *data, *how, "--output", path)


def test_training_on_the_embedded_data_reaches_the_known_optimum(model):
    path, run = model
    assert run.returncode == 0, run.stderr
    assert "logistic by newton_cg" in run.stdout
    assert "32,561 rows x 123 features" in run.stdout
    assert "0.33334075206872  reached" in run.stdout
    assert "error rate 0.14882" in run.stdout
    assert complaints(run) == []
    files = {"history.json", "history.png", "model.json", "model.safetensors"}
    assert {file.name for file in path.iterdir()} == files
    metrics = json.loads((path / "model.json").read_text())["metrics"]
    assert_allclose(metrics["objective"], 0.33334075206872, rtol=1e-10)
    assert_allclose(metrics["test"]["error_rate"], 0.14882, atol=5e-6)
    history = json.loads((path / "history.json").read_text())
    assert len(history["fun"]) == len(history["seconds"]) == len(history["passes"])


def test_the_model_predicts_the_embedded_test_set(model, tmp_path):
    path, _ = model
    run = submit("predict.py", "--model", path, "--data", "a9a-test", "--output", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert complaints(run) == []
    table = pq.read_table(tmp_path / "out", columns=["label", "prediction"])
    assert table.num_rows == 16281
    wrong = table["label"].to_numpy() != table["prediction"].to_numpy()
    assert_allclose(wrong.mean(), 0.14882, atol=5e-6)


def test_a_run_that_does_not_converge_exits_with_1(tmp_path):
    dump_svmlight_file(X, Y, str(tmp_path / "table"), zero_based=False)
    files = ["--data", tmp_path / "table", "--output", tmp_path / "model"]
    run = submit("train.py", *files, "--max-iter", 1)
    assert run.returncode == 1, run.stderr
    assert "converged  NO: max_iter was reached first" in run.stdout
    assert (tmp_path / "model" / "model.json").exists()


def test_a_column_that_is_not_there_exits_with_2_and_one_clear_line(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,label\n1,2,0\n3,4,1\n")
    run = submit("train.py", "--data", tmp_path / "t.csv", "--label", "income")
    assert run.returncode == 2
    assert run.stdout.splitlines() == [
        "sparkdist.train: from_dataframe: 1 problem",
        "  - there is no column 'income'; there are a, b, label",
    ]
    assert complaints(run) == []


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
    how = ["--l2", "0.1", "--tol", "1e-9", "--expect", repr(optimum())]
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
    more = ["--l2", "0.1", "--deterministic", "--output", tmp_path / "model"]
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
    how = ["--l2", "0.1", "--tol", "1e-9", "--engine", "resident", "--expect", repr(optimum())]
    assert command("train", *files, *how, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert_allclose(found["fun"], optimum(), rtol=1e-10)
    assert found["reached"] is found["success"] is True
    assert (found["rows"], found["features"], found["method"]) == (N, D, "lbfgs")
    assert set(found["metrics"]["train"]) == {"loss", "error_rate"}


@pytest.mark.parametrize("write", FEATURES)
def test_features_are_kept_in_single_precision_if_asked(write, command, tmp_path, capsys):
    how = ["--l2", "0.1", "--tol", "1e-5", "--dtype", "float32", "--json"]
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


def test_word2vec_is_the_program_of_deepdists_readme() -> None:
    done = submit("word2vec.py", "--epochs", "8", "--words", "government")
    assert done.returncode == 0, done.stderr
    first, *epochs, last, near = done.stdout.splitlines()
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

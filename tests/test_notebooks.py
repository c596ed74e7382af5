"""The notebooks are stripped, start in the same way, and run in a real kernel to known results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from tests.conftest import PRELOADED, QUICK_JAVA

BOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NAMES = ["01_quickstart", "02_model_server", "03_exact_or_async", "04_lbfgs_on_images"]
#: What a plain `jupyter lab` does not have.
OURS = ("SPARK_HOME", "SPARK_CONF_DIR", "SPARK_LOCAL_IP", "PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON")


def start_kernel(**more: str) -> tuple[KernelManager, BlockingKernelClient]:
    """Start a kernel in the environment of a plain `jupyter lab`."""
    found: tuple[KernelManager, BlockingKernelClient] = start_new_kernel(
        kernel_name="python3", env=plain_environment() | more
    )
    return found


def plain_environment() -> dict[str, str]:
    """Nothing is set for Spark but where Java is, and that its JVM and workers start soon."""
    plain = {name: value for name, value in os.environ.items() if name not in OURS}
    settings = " ".join(f"--conf {name}={value}" for name, value in PRELOADED.items())
    return plain | QUICK_JAVA | {"PYSPARK_SUBMIT_ARGS": f"{settings} pyspark-shell"}


# --- as they are kept -----------------------------------------------------------------------


def not_stripped(book: dict[str, Any]) -> list[str]:
    """What a run has left in a notebook, and metadata that only one machine has."""
    wrong = []
    for cell in book["cells"]:
        left = [
            key
            for key in ("outputs", "execution_count", "metadata", "attachments")
            if cell.get(key)
        ]
        wrong += [f"cell {cell['id']} has {key}" for key in left]
    allowed = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    wrong += [
        f"metadata has {key}: {value}"
        for key, value in book["metadata"].items()
        if value != {**allowed, "language_info": {"name": "python"}}.get(key)
    ]
    return wrong


def test_the_notebooks_are_these_four() -> None:
    assert [book.stem for book in BOOKS] == NAMES


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_a_notebook_is_valid_and_stripped(book: Path) -> None:
    found = json.loads(book.read_text())
    nbformat.validate(found)
    assert not_stripped(found) == []


def test_what_a_run_leaves_is_seen() -> None:
    cell = {"id": "a", "cell_type": "code", "metadata": {}, "source": "1", "execution_count": 3}
    run = {"cells": [cell | {"outputs": [1]}], "metadata": {"language_info": {"version": "3.11"}}}
    assert len(not_stripped(run)) == 3


def test_all_begin_with_the_same_cell_and_stop_spark_in_the_last_one() -> None:
    code = [
        [
            cell["source"]
            for cell in json.loads(book.read_text())["cells"]
            if cell["cell_type"] == "code"
        ]
        for book in BOOKS
    ]
    assert len({"".join(cells[0]) for cells in code}) == 1
    assert [cells[-1][-1] for cells in code] == ["spark.stop()"] * 4


@pytest.mark.process
def test_without_java_the_first_cell_says_what_to_type() -> None:
    first = next(c for c in json.loads(BOOKS[0].read_text())["cells"] if c["cell_type"] == "code")
    manager, client = start_kernel(PATH="/nowhere", JAVA_HOME="")
    try:
        answer = client.execute("".join(first["source"]), reply=True, timeout=60)
        assert "apt-get install openjdk-17-jre-headless" in answer["content"]["evalue"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# --- as they run ----------------------------------------------------------------------------

#: The line of a run is a bar of tqdm's; nothing may be said about ipywidgets, which is not there.
LIVE = """
import sys, warnings
warnings.simplefilter("error")
sys.modules["ipywidgets"] = None
from sparkdist.progress import Progress, TrainingProgress
with Progress(True, "sparkdist lbfgs") as bar:
    for k in range(3):
        bar.show(k + 1, 0.5, 1e-3, 0.02)
"""


@pytest.mark.process
def test_the_live_line_is_changed_in_place_and_what_stays_is_the_last_one(tmp_path: Path) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LIVE)])
    (shown,) = execute(book, tmp_path)["cells"][0]["outputs"]
    assert shown["output_type"] == "display_data"
    line = "sparkdist lbfgs: 3 passes, objective 0.5, |gradient| 1.00e-03, 0.020 s/pass"
    assert shown["data"] == {"text/plain": line}


def execute(book: Any, folder: Path) -> Any:
    """Run a notebook, in a folder of its own, and give it with its outputs."""
    client = NotebookClient(book, timeout=240, kernel_name="python3", resources={})
    client.resources["metadata"] = {"path": str(folder)}
    more = {"SPARKDIST_FAST": "1", "IPYTHONDIR": str(folder / "ipython")}
    return client.execute(env=plain_environment() | more)


def run(name: str, wanted: str, folder: Path) -> dict[str, Any]:
    """Run a notebook, and give the values of ``wanted``, a dict of expressions, at its end."""
    (path,) = (book for book in BOOKS if book.stem == name)
    book = nbformat.read(path, as_version=4)
    asked = "import json\nplain = lambda a: a.tolist() if hasattr(a, 'tolist') else a\n"
    asked += f"print(json.dumps({wanted}, default=plain))"
    book.cells.append(nbformat.v4.new_code_cell(asked))
    *cells, last = [cell for cell in execute(book, folder).cells if cell.cell_type == "code"]
    told = [out.text for cell in cells[1:] for out in cell.outputs if out.get("name") == "stderr"]
    assert told == []  # behind the first cell, where the JVM says that it starts
    return json.loads(last.outputs[0].text)


Runs = Callable[[str, str], dict[str, Any]]


@pytest.fixture
def values(tmp_path: Path) -> Runs:
    return lambda name, wanted: run(name, wanted, tmp_path)


@pytest.mark.spark
def test_quickstart_finds_the_known_optimum_and_the_cheaper_mistakes(values: Runs) -> None:
    found = values(
        "01_quickstart",
        "dict(fun=result.fun, success=bool(result.success and own.success),"
        " error=error / np.linalg.norm(logistic(w, *some)[1]), table=table.values)",
    )
    # A-L2, on which newton-cg and L-BFGS-B agree to 1e-14.  Where no derivative is larger than
    # 1e-6, F is at most |g|^2 / (2 lambda) = 123 1e-12 / 2e-3 above it.
    assert 0 <= found["fun"] - 0.33334075206872 <= 6.2e-8 and found["success"]
    assert found["error"] < 1e-5
    (overlooked, _, cost), (fewer, _, cheaper) = found["table"]
    assert fewer < overlooked and cheaper < cost


@pytest.mark.spark
def test_model_server_counts_each_batch_once_and_keeps_every_bit(values: Runs) -> None:
    found = values(
        "02_model_server",
        "dict(swept=swept.counts, counts=result.counts, fun=result.fun, mean=mean,"
        " calm=calm.counts, hit=hit.counts, computed=computed, attempts=sorted(notes),"
        " same=np.array_equal(calm.x, hit.x))",
    )
    assert found["swept"]["applied"] == 32  # partitions
    # Two epochs of 255 batches of at most 64 in each half of 32,561 rows.
    assert found["counts"]["applied"] == found["counts"]["received"] == 2 * 2 * 255
    assert found["fun"] < 0.35
    assert 0 <= found["mean"] <= 1  # two workers: P - 1
    # Three epochs of 16 batches of at most 1,024 in each half; the one that died is not pushed.
    assert found["calm"] == found["hit"]
    assert found["hit"]["applied"] == 3 * 2 * 16 == found["computed"] - 1
    assert found["attempts"] == ["0-0", "1-0", "1-1"] and found["same"]


@pytest.mark.spark
def test_exact_or_async_measures_both_factors(values: Runs) -> None:
    found = values(
        "03_exact_or_async",
        "dict(gaps={name: min(one['gap'].min() for one in many) for name, many in runs.items()},"
        " start=runs['gd'][0]['gap'][0], bits=np.array_equal(both[0].x, both[1].x),"
        " bytes=runs['lbfgs'][0]['bytes'][1] / runs['lbfgs'][0]['passes'][1],"
        " sent=runs['sgd'][0]['bytes'][-1], table=table.dropna().values)",
    )
    assert found["start"] == pytest.approx(np.log(2) - 0.33334075206872, abs=1e-12)
    for name, gap in found["gaps"].items():
        assert -1e-13 < gap < (2e-2 if name in ("sgd", "downpour") else 1e-10), name
    assert found["bits"]
    # By hand: two workers, there and back, 123 numbers of 8 bytes; two epochs of 510 pushes.
    assert found["bytes"] == 2 * 2 * 123 * 8
    assert 0 < found["sent"] <= 2 * 510 * 2 * 123 * 8
    for passes, milliseconds, seconds, _ in found["table"]:
        assert_allclose(passes * milliseconds / 1e3, seconds, rtol=1e-2)


@pytest.mark.spark
def test_lbfgs_on_images_finds_scipys_optimum_and_scikit_learns(values: Runs) -> None:
    wanted = "dict(serial=serial.fun, distributed=distributed.fun, W=W, rows=data.n_rows)"
    found = values("04_lbfgs_on_images", wanted)
    # An independent solver: newton-cg, whose objective is C n times ours.
    digits = load_digits()
    X, y, n = digits.data / 16, digits.target, len(digits.target)
    model = LogisticRegression(
        C=1 / (1e-2 * n), solver="newton-cg", fit_intercept=False, tol=1e-10, max_iter=500
    ).fit(X, y)
    scores = X @ model.coef_.T
    loss = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(n), y]
    optimum = loss.mean() + 1e-2 / 2 * (model.coef_**2).sum()
    assert found["rows"] == n
    assert found["serial"] == pytest.approx(optimum, abs=1e-7)
    assert found["distributed"] == pytest.approx(optimum, abs=1e-7)
    assert_allclose(found["W"], model.coef_.T, atol=2e-2)

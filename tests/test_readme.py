"""What the README and the guides show runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession

import sparkdist

README = Path(__file__).parents[1] / "README.md"


def python_blocks(page: Path = README) -> list[str]:
    """Blocks of Python in a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)


@pytest.mark.spark
def test_the_python_of_the_readme_runs(
    spark: SparkSession, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {}
    blocks = python_blocks()
    first, one_line, own_rows, stochastic, deepdist, point, comparison = blocks
    with monkeypatch.context() as easier:
        # The optimum is not the point: 22 passes for the first, not 131.
        easier.setitem(sparkdist.minimize.__kwdefaults__, "tol", 1e-3)
        exec(compile(first, str(README), "exec"), names)
        assert "converged" in capsys.readouterr().out
        assert len(names["figure"].axes) == 4
        exec(compile(one_line, str(README), "exec"), names)
        assert set(names["result"].x) == {"weights", "intercept"}
    names["df"] = sparkdist.read_dataframe(spark, "a9a-test").limit(500)
    exec(compile(own_rows, str(README), "exec"), names)
    assert names["result"].fun < 1.0  # half the variance of five kinds of stars is 1
    exec(compile(stochastic, str(README), "exec"), names)
    assert names["result"].method == "downpour" and names["result"].success
    capsys.readouterr()
    exec(compile(deepdist, str(README), "exec"), names)
    assert len(eval(capsys.readouterr().out)) == 3
    exec(compile(point, str(README), "exec"), names)
    assert names["result"].success and names["result"].fun < np.log(2)
    exec(compile(comparison, str(README), "exec"), names)
    assert "to an objective of 0.36" in capsys.readouterr().out
    assert [curve.name for curve in names["found"].curves] == ["lbfgs", "sgd", "local_sgd"]


@pytest.mark.spark
@pytest.mark.slow
def test_the_python_of_the_guides_runs(
    spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    df = sparkdist.read_dataframe(spark, "a9a-test").limit(500).cache()
    guides = README.parent / "docs" / "guides"
    fit, several, network = python_blocks(guides / "scientists.md")
    (comparison,) = python_blocks(guides / "researchers.md")
    names = {"df": df, "np": np, "sparkdist": sparkdist}
    exec(compile(fit, "scientists.md", "exec"), names)
    assert "|prediction|" in capsys.readouterr().out.replace(" ", "")
    exec(compile(several, "scientists.md", "exec"), names)
    assert names["strength"] == pytest.approx(1e-5) and names["result"].success
    with sparkdist.Dataset.from_dataframe(df) as data:
        exec(compile(comparison, "researchers.md", "exec"), names | {"data": data})
    assert "to an objective of 0.3343" in capsys.readouterr().out
    pictures = [(float(k % 10), Vectors.sparse(784, [k], [1.0])) for k in range(100)]
    names["df"] = spark.createDataFrame(pictures, ["label", "features"])
    exec(compile(network, "scientists.md", "exec"), names)
    assert names["result"].success


def test_the_first_example_is_short() -> None:
    assert len([line for line in python_blocks()[0].splitlines() if line.strip()]) <= 16

"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession

import sparkdist

README = Path(__file__).parents[1] / "README.md"


def python_blocks() -> list[str]:
    """Blocks of Python in the README, in order."""
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.S | re.M)


@pytest.mark.spark
def test_the_python_of_the_readme_runs(
    spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    df = sparkdist.read_dataframe(spark, "a9a-test").limit(500)
    names = {"df": df}
    blocks = python_blocks()
    first, one_line, own_rows, stochastic, deepdist, point, comparison = blocks
    exec(compile(first, str(README), "exec"), names)
    assert "converged" in capsys.readouterr().out
    assert len(names["figure"].axes) == 4
    exec(compile(one_line, str(README), "exec"), names)
    assert set(names["result"].x) == {"weights", "intercept"}
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


def test_the_first_example_is_short() -> None:
    assert len([line for line in python_blocks()[0].splitlines() if line.strip()]) <= 16

"""The benchmark of all methods: that none is forgotten, and that its rows are what they say."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from pyspark.sql import SparkSession

from benchmarks.lines import code_lines
from sparkdist import codecs, methods, solvers
from sparkdist.registry import names
from tests.conftest import RETRYING

ROOT = Path(__file__).parents[1]
FAMILIES = {"methods": methods, "codecs": codecs, "solvers": solvers}
PAGES = sorted(
    page.stem for page in (ROOT / "docs" / "methods").glob("*.md") if page.stem != "index"
)


def script(name: str) -> ModuleType:
    """One of benchmarks/, whose imports need that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("bench_methods")


@pytest.fixture(scope="module")
def plots() -> ModuleType:
    return script("plots")


@pytest.fixture(scope="module")
def spark(start, folder) -> SparkSession:
    return start(RETRYING, folder)


def members(table: str) -> set[str]:
    """What the rows of the table that was written lead to, as family/name."""
    rows = json.loads((ROOT / "benchmarks" / "results" / f"{table}.json").read_text())["rows"]
    links = [re.search(r"sparkdist/(\w+/\w+)\.py\)", row["method"]) for row in rows]
    return {link[1] for link in links if link}


def test_no_method_and_no_solver_is_missing_in_the_table():
    there = {f"{kind}/{name}" for kind in ("methods", "solvers") for name in names(FAMILIES[kind])}
    assert members("methods") == there


def test_no_codec_is_missing_in_the_table():
    # error_feedback is around others: a row with it leads to the codec in it.
    there = {f"codecs/{name}" for name in names(codecs)} - {"codecs/error_feedback"}
    assert members("methods_codecs") - {"methods/sgd"} == there


def test_in_rounds_no_failure_has_changed_a_bit():
    for table in ("methods", "methods_codecs", "methods_images"):
        text = (ROOT / "benchmarks" / "results" / f"{table}.json").read_text()
        assert [row for row in json.loads(text)["rows"] if "OTHER" in str(row)] == []


@pytest.mark.spark
def test_rows_of_two_methods_are_measured_with_a_task_that_fails_and_without(bench, spark):
    cases = {name: bench.METHODS[name] for name in ("sgd", "downpour")}
    synchronous, asynchronous = bench.run(spark, "methods", cases, quick=True)
    assert synchronous["with a task that fails"] == "same bits"
    assert (synchronous["staleness, mean"], synchronous["most"]) == ("0", 0)
    # 5 epochs, 8 batches of 256 rows of each of two workers with 2,000 rows: a float64 for each of
    # 123 features, and the head of a frame, of at most as many bytes again.
    assert [row["passes"] for row in (synchronous, asynchronous)] == ["5", "5"]
    numbers = 5 * 2 * 8 * 123 * 8 / 1e6
    for row in (synchronous, asynchronous):
        assert numbers < float(row["MB pushed"]) < 2 * numbers
    assert asynchronous["most"] >= 1
    assert synchronous["code lines"] < synchronous["with its parts"]


def test_lines_of_code_are_of_the_file_and_of_the_parts_that_it_is_made_of(bench):
    folder = ROOT / "sparkdist"
    files = bench.files_of(bench.CODECS["top_k, error feedback"])
    assert files == [
        folder / "codecs" / "top_k.py",
        folder / "codecs" / "error_feedback.py",
        folder / "methods" / "sgd.py",
        folder / "workers" / "downpour.py",
        folder / "consistency" / "bsp.py",
        folder / "updaters" / "sgd.py",
    ]
    assert bench.lines_in(files) == sum(len(code_lines(file.read_text())) for file in files)


def test_a_failing_task_is_asked_for_again_and_counts_on(bench, tmp_path, monkeypatch):
    class Context:
        @staticmethod
        def get():
            return Context()

        def partitionId(self):
            return 1

    monkeypatch.setattr(bench, "TaskContext", Context)

    class Work:
        def step(self, x):
            return 2 * x

    flag = tmp_path / "calls"
    first = bench.failing(Work, "step", flag)()
    assert [first.step(x) for x in range(1, bench.FATAL)] == [2, 4, 6, 8]
    with pytest.raises(RuntimeError, match="fails once"):
        first.step(0)
    second = bench.failing(Work, "step", flag)()
    assert [second.step(x) for x in range(6)] == [0, 2, 4, 6, 8, 10]


# --- pictures ---------------------------------------------------------------------------------


def test_every_page_of_a_family_has_its_picture_and_says_how_it_was_made(plots):
    assert sorted(plots.FIGURES) == PAGES
    for name in PAGES:
        page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
        assert f"(../images/methods-{name}.svg)" in page
        assert f"`python benchmarks/plots.py {name}`" in page


@pytest.mark.long
@pytest.mark.parametrize("name", PAGES)
def test_a_picture_is_drawn_from_the_points_that_are_kept(plots, name, tmp_path):
    panels = json.loads(plots.points_of(name).read_text())
    first, second = (plots.draw(panels, tmp_path / f"{i}.svg").read_bytes() for i in range(2))
    assert first == second
    # matplotlib writes each text as a comment beside its outlines.
    for line in panels[-1]["lines"]:
        assert f"<!-- {line['name']} -->" in first.decode()


def test_names_of_lines_are_moved_apart_and_stay_inside(plots):
    # By hand: 10 and 12 are pushed to 10 and 20; 99 and 100 are pushed down from the top, 100.
    assert plots.spread([10.0, 12.0, 99.0, 100.0], 10.0, 0.0, 100.0) == [10.0, 20.0, 90.0, 100.0]
    assert plots.spread([-5.0, 50.0], 10.0, 0.0, 100.0) == [0.0, 50.0]

"""What Python's garbage collector has to look through after a task."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest

import sparkdist
from sparkdist.spark import collector
from sparkdist.spark.collector import freeze_imports


@pytest.fixture
def thawed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not frozen anything, and will have nothing frozen afterwards."""
    monkeypatch.setattr(collector, "_n_modules", 0)
    gc.collect()
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_is_imported_is_not_looked_through_again(thawed: None) -> None:
    before = len(gc.get_objects())
    freeze_imports()
    assert gc.get_freeze_count() > 0.9 * before
    assert len(gc.get_objects()) < 0.1 * before


def test_it_is_repeated_when_there_are_new_modules_and_only_then(
    thawed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze_imports()
    later = [[] for _ in range(1000)]  # type: list[list[object]]
    freeze_imports()
    assert any(kept is later for kept in gc.get_objects())
    monkeypatch.setitem(sys.modules, "imported_by_this_test", types.ModuleType("m"))
    freeze_imports()
    assert not any(kept is later for kept in gc.get_objects())


def test_cycles_that_tasks_leave_behind_are_still_freed(thawed: None) -> None:
    freeze_imports()

    class Node:
        living = 0

        def __init__(self) -> None:
            Node.living += 1
            self.itself = self

        def __del__(self) -> None:
            Node.living -= 1

    for _ in range(3):
        freeze_imports()
        Node()
    gc.collect()
    assert Node.living == 0


@pytest.mark.spark
def test_after_a_pass_the_workers_of_spark_have_next_to_nothing_to_collect(spark: object) -> None:
    with sparkdist.Dataset.from_arrays(spark, np.eye(4), [0, 1, 0, 1], n_partitions=2) as data:
        data.visit(lambda partition, blocks: 0)
        seen = data.visit(lambda partition, blocks: len(gc.get_objects()))
    # With NumPy, SciPy and PySpark imported it is 100,000.
    assert max(seen) < 10_000

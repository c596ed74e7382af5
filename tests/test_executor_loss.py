"""A lost executor costs time and nothing else, on real executor processes: R55."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from sparkdist import Dataset
from sparkdist.blocks import Block
from tests.conftest import CLUSTER
from tests.faults import (
    Disturbed,
    assert_same,
    executors,
    kill_executor,
    solve,
    wait_for_executors,
)

pytestmark = [
    pytest.mark.spark,
    pytest.mark.cluster,
    pytest.mark.parametrize("deterministic", [True, False]),
]


@pytest.fixture(scope="module")
def session(start: Callable[..., SparkSession], folder: Path) -> SparkSession:
    return start(CLUSTER, folder)


@pytest.fixture
def data(session: SparkSession, a9a: Block) -> Iterator[Dataset]:
    wait_for_executors(session, 2)
    with Dataset.from_arrays(session, a9a.X, a9a.y, n_partitions=4) as data:
        yield data


def test_executors_are_processes_of_their_own(data: Dataset, deterministic: bool) -> None:
    assert len({*executors(data)}) == 2
    assert os.getpid() not in executors(data)
    solve(data, deterministic=deterministic)


def test_an_executor_that_is_killed_between_two_passes_is_rebuilt(
    data: Dataset, deterministic: bool
) -> None:
    expected = solve(data, deterministic=deterministic)
    victim = executors(data)[0]

    def kill_after_the_second(state: Any) -> None:
        if state.nit == 2:
            os.kill(victim, signal.SIGKILL)

    found = solve(data, deterministic=deterministic, callback=kill_after_the_second)
    assert_same(found, expected, deterministic)
    assert victim not in executors(data)


def test_an_executor_that_is_killed_in_a_pass_is_rebuilt(
    data: Dataset, tmp_path: Path, deterministic: bool
) -> None:
    expected = solve(data, deterministic=deterministic)
    objective = Disturbed(tmp_path / "flag", kill_executor)
    found = solve(data, objective, deterministic=deterministic)
    assert objective.flag.exists()
    assert_same(found, expected, deterministic)

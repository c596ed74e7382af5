"""What a dataset does when things change under it: its source, its session, its user's mind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from sparkdist import Dataset, Model, SparkModel, Squared, minimize
from sparkdist.errors import BadData, InvalidCall
from sparkdist.spark.data.ingest import Handle
from sparkdist.spark.data.residency import Place
from sparkdist.spark.data.visit import visit
from tests.conftest import LOCAL


def test_a_partition_that_has_turned_bad_is_not_left_out() -> None:
    # Ingested again after its handle was lost, its first row is now bad: it has no rows.
    place = Place("sparkdist-test", 1, "nowhere")
    handle = Handle(place, 0, 0, None, 0.0, True, (), "partition 1, row 0: a feature is NaN")
    with pytest.raises(BadData, match="has changed since .* partition 1, row 0"):
        list(visit(lambda partition, blocks: None, [handle]))


class Own(Squared):
    """Somebody's own objective, which a folder cannot bring back."""


def test_an_objective_of_the_users_own_is_not_saved(tmp_path: Path) -> None:
    model = Model(Own(), np.zeros(2), 2)
    with pytest.raises(InvalidCall, match="Own is your own class"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.spark
def test_a_label_among_the_features_is_told(spark: SparkSession, tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "label": [0.0, 1.0]})
    frame.to_parquet(tmp_path / "rows.parquet")
    sentence = "column 'label' is label or weight, and a feature"
    with pytest.raises(InvalidCall, match=sentence):
        Dataset.from_dataframe(spark.createDataFrame(frame), ["a", "label"])
    with pytest.raises(InvalidCall, match=sentence):
        Dataset.from_parquet(spark, str(tmp_path), ["a", "label"])


@pytest.mark.spark
@pytest.mark.parametrize("read", [Dataset.from_dataframe, lambda df: minimize("squared", df)])
def test_a_pandas_dataframe_is_told_what_to_become(spark: SparkSession, read: Any) -> None:
    with pytest.raises(InvalidCall, match=r"pandas DataFrame: make it Spark's"):
        read(pd.DataFrame({"features": [1.0], "label": [1.0]}))


@pytest.mark.spark
def test_predict_does_not_overwrite_a_column(spark: SparkSession) -> None:
    df = spark.createDataFrame([(1.0, 2.0)], ["a", "prediction"])
    with pytest.raises(InvalidCall, match="already has .'prediction'."):
        SparkModel(Squared(), np.ones(1), 1).predict(df, features=["a"])


@pytest.mark.spark
def test_an_interrupted_ingest_leaves_nothing(
    spark: SparkSession, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(handles: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparkdist.spark.data.dataset.refuse_bad", interrupted)
    before = set(blocks(folder))
    with pytest.raises(KeyboardInterrupt):
        Dataset.from_arrays(spark, np.ones((10, 2)), np.ones(10))
    assert set(blocks(folder)) == before


@pytest.mark.spark
def test_after_its_session_a_dataset_says_so(
    start: Callable[..., SparkSession], tmp_path: Path
) -> None:
    session = start(LOCAL, tmp_path)
    with Dataset.from_arrays(session, np.ones((10, 2)), np.ones(10)) as data:
        session.stop()
        with pytest.raises(InvalidCall, match="SparkContext was stopped"):
            minimize("squared", data)


def blocks(folder: Path) -> Iterator[Path]:
    """Files of blocks, and drafts of such."""
    return folder.rglob("sparkdist-*/*")

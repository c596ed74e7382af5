"""Ingest of 500,000 x 100 from a cached DataFrame and from Parquet, and the workers' memory."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import PeakMemory, in_turns, is_python_worker, median_ratio, report, start_session
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.sql import functions as F

from sparkdist import Dataset, Logistic, minimize

ROWS, COLUMNS = 500_000, 100
MEGABYTES = ROWS * COLUMNS * 8 / 1e6


def main() -> None:
    """Time the sources in turns against a mapInArrow that throws its batches away."""
    spark = start_session("8g")
    features = array_to_vector(F.array(*(F.rand(seed) for seed in range(COLUMNS))))
    label = (F.rand(COLUMNS) > 0.5).cast("double")
    df = spark.range(0, ROWS, 1, 4).select(features.alias("features"), label.alias("label")).cache()
    df.count()
    with tempfile.TemporaryDirectory() as folder:
        write_parquet(Path(folder))
        flat = df.select(vector_to_array("features").alias("features"), "label")
        times = in_turns(
            {
                "mapInArrow that throws away": lambda: flat.mapInArrow(_sink, "n long").collect(),
                "Dataset.from_dataframe": lambda: Dataset.from_dataframe(df),
                "Dataset.from_parquet": lambda: Dataset.from_parquet(spark, folder),
            },
            rounds=7,
            after=free,
        )
        base = times["mapInArrow that throws away"]
        rows = [
            {
                "500,000 x 100 float64, local[2]": name,
                "seconds (median)": round(statistics.median(values), 2),
                "MB/s": round(MEGABYTES / statistics.median(values)),
                "rate against mapInArrow": round(median_ratio(base, values), 2),
            }
            for name, values in times.items()
        ]
        report("ingest", "Ingest", rows)
        report("memory", "Memory of the Python workers", [memory(spark, folder)])
    spark.stop()


def free(result: Any) -> None:
    """Give the space of a dataset back."""
    if isinstance(result, Dataset):
        result.unpersist()


def write_parquet(folder: Path) -> None:
    """Write the same amount of numbers, in four files of two row groups."""
    random = np.random.default_rng(0)
    n = ROWS // 4
    for i in range(4):
        values = pa.array(random.random(n * COLUMNS))
        offsets = pa.array(np.arange(0, n * COLUMNS + 1, COLUMNS, dtype=np.int32))
        lists = pa.ListArray.from_arrays(offsets, values)
        labels = pa.array(random.integers(0, 2, n).astype(float))
        table = pa.table({"features": lists, "label": labels})
        # Uncompressed and without dictionaries: random numbers do not compress.
        path = folder / f"{i}.parquet"
        pq.write_table(table, path, n // 2, compression="none", use_dictionary=False)


def memory(spark: Any, folder: str) -> dict[str, Any]:
    """Peak of the largest worker while they ingest and pass, against the blocks that it holds."""
    with PeakMemory(is_python_worker, max) as ingesting:
        data = Dataset.from_parquet(spark, folder)
    with PeakMemory(is_python_worker, max) as passing:
        minimize(Logistic(), data, max_iter=10, progress=False)
    data.unpersist()
    blocks, workers = MEGABYTES + 2 * ROWS * 8 / 1e6, 2
    return {
        "500,000 x 100, 2 workers": "the largest worker",
        "blocks, MB": round(blocks / workers),
        "peak at ingest, MB": round(ingesting.peak),
        "peak in passes, MB": round(passing.peak),
        "allowed: 1.3 x blocks + 200, MB": round(1.3 * blocks / workers + 200),
    }


def _sink(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    n = sum(batch.num_rows for batch in batches)
    yield pa.RecordBatch.from_pydict({"n": [n]})


if __name__ == "__main__":
    main()

"""Cost of a pass on tiny data, 2,000 x 100, against a PySpark job that does nothing."""

from __future__ import annotations

import statistics

import numpy as np
from common import in_turns, median_ratio, report, start_session

from sparkdist import Dataset, Logistic
from sparkdist.spark.engines.aggregate import AggregateEngine


def main() -> None:
    """Time them in turns, with the MLlib-like treeAggregate of plain PySpark beside them."""
    spark = start_session()
    context = spark.sparkContext
    random = np.random.default_rng(0)
    X, y = random.normal(size=(2000, 100)), random.integers(0, 2, 2000).astype(float)
    w, loss = np.zeros(100), Logistic()
    nothing = context.parallelize(range(2), 2).cache()
    with Dataset.from_arrays(spark, X, y) as data:
        tree, ordered = AggregateEngine(data), AggregateEngine(data, deterministic=True)

        def broadcast_and_aggregate() -> None:
            shared = context.broadcast(w)
            nothing.treeAggregate(0.0, lambda sum_, _: sum_ + shared.value[0], lambda a, b: a + b)
            shared.destroy()

        times = in_turns(
            {
                "a PySpark job that does nothing": lambda: nothing.mapPartitions(_count).collect(),
                "PySpark: broadcast, treeAggregate": broadcast_and_aggregate,
                "sparkdist: a pass": lambda: tree.value_and_grad(loss, w),
                "sparkdist: a pass, deterministic": lambda: ordered.value_and_grad(loss, w),
            },
            rounds=40,
            warmups=5,
        )
    base = times["a PySpark job that does nothing"]
    rows = [
        {
            "2,000 x 100, local[2]": name,
            "ms (median)": round(statistics.median(values) * 1e3, 1),
            "against the empty job": round(median_ratio(values, base), 2),
        }
        for name, values in times.items()
    ]
    note = (
        "An empty job waits 40 ms for a delayed TCP acknowledgement, which a pass asks for at once,"
        " and its workers collect garbage after every task among all that they have imported, which"
        " a pass takes out of the collector's sight."
    )
    report("pass", "Cost of a pass", rows, [note])
    spark.stop()


def _count(rows: object) -> list[int]:
    return [sum(1 for _ in rows)]  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()

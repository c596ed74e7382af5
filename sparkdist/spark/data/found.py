"""What an ingest has found, in all partitions together; on the driver."""

from __future__ import annotations

from collections.abc import Sequence

from sparkdist.errors import BadData
from sparkdist.spark.data.ingest import MAX_LABELS, Handle

__all__ = ["merge_labels", "refuse_bad"]


def refuse_bad(handles: Sequence[Handle]) -> None:
    """Raise one BadData for everything that is wrong with the partitions."""
    problems = [handle.problem for handle in handles if handle.problem]
    filled = [handle for handle in handles if handle.n_rows]
    if not problems and not filled:
        raise BadData("the data has no rows; an objective needs at least one")
    for handle in filled:
        if handle.n_features != filled[0].n_features and not handle.problem:
            problems.append(
                f"partition {handle.place.partition} has {handle.n_features} features, partition"
                f" {filled[0].place.partition} has {filled[0].n_features}"
            )
    if not problems and not sum(handle.weight_sum for handle in filled) > 0:
        problems.append("the weights of all rows are 0")
    if problems:
        more = f"\n  and {len(problems) - 5} more partitions" if len(problems) > 5 else ""
        listed = "\n  ".join(problems[:5])
        raise BadData(f"rows that cannot be used (both counted from 0):\n  {listed}{more}")


def merge_labels(handles: Sequence[Handle]) -> tuple[float, ...] | None:
    """Return the distinct labels of all, sorted; None where there are more than some dozens."""
    if any(handle.labels is None for handle in handles):
        return None
    labels = {label for handle in handles for label in handle.labels or ()}
    return tuple(sorted(labels)) if len(labels) <= MAX_LABELS else None

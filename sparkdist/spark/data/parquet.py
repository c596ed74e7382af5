"""Parquet read by the workers with pyarrow; the driver deals out the row groups."""

from __future__ import annotations

import bisect
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sparkdist.blocks import Block
from sparkdist.errors import BadData, InvalidCall
from sparkdist.spark.data.dataframe import how_to_name, leaks, refuse_no_names
from sparkdist.spark.data.from_arrow import Columns

__all__ = ["ParquetReader", "Split", "plan"]

logger = logging.getLogger(__name__)

_BATCH_ROWS = 8192
#: Cuts of a row group above which they are warned of: decoding k cuts costs (k + 1) / 2 times one.
_MANY = 8
_VECTOR_FIELDS = ("type", "size", "indices", "values")


class Split(NamedTuple):
    """The rows from ``start`` to ``stop`` of a row group of a file."""

    filesystem: Any
    path: str
    row_group: int
    start: int
    stop: int


@dataclass(frozen=True)
class ParquetReader:
    """Turns splits into blocks."""

    names: tuple[str, ...]
    columns: Columns

    def blocks(self, partition: Iterable[list[Split]]) -> Iterator[Block]:
        """Read the splits of a partition."""
        for splits in partition:
            yield from self.columns.blocks(self._batches(splits))

    def _batches(self, splits: Iterable[Split]) -> Iterator[pa.RecordBatch]:
        for filesystem, path, row_group, start, stop in splits:
            with filesystem.open_input_file(path) as file:
                parquet = pq.ParquetFile(file)
                batches = parquet.iter_batches(
                    _BATCH_ROWS, [row_group], list(self.names), use_threads=False
                )
                yield from map(self._flat, _between(batches, start, stop))

    def _flat(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Columns in the order of the names, a vector as its four fields."""
        arrays = [batch.column(name) for name in self.names]
        if self.columns.kind == "vector":
            arrays[:1] = arrays[0].flatten()
        return pa.RecordBatch.from_arrays(arrays, [f"c{i}" for i in range(len(arrays))])


def plan(
    path: str | Sequence[str],
    features: str | Sequence[str],
    label: str,
    weight: str | None,
    n_partitions: int,
    problems: Sequence[str] = (),
) -> tuple[ParquetReader, list[list[Split]]]:
    """Look at the files' footers and deal their row groups out to partitions, in order.

    ``problems`` are what is known to be wrong with the call.

    Raises
    ------
    InvalidCall
        If there is nothing there, or a column is missing or of the wrong type.
    BadData
        If there are no rows.
    """
    scalars = [label] if weight is None else [label, weight]
    refuse_no_names("from_parquet", features, scalars, problems)
    paths = path if isinstance(path, list | tuple) else [path]
    if not all(isinstance(one, str | os.PathLike) for one in paths):
        problem = f"path must be a path, or a list of them; it is {path!r:.80}"
        raise InvalidCall("from_parquet", [*problems, problem])
    # On the driver alone: it brings pandas, for which a worker would wait 0.3 s.
    import pyarrow.dataset

    try:
        files = list(pyarrow.dataset.dataset(path, format="parquet").get_fragments())
        groups = [
            Split(file.filesystem, file.path, group.id, 0, group.num_rows)
            for file in files
            for group in file.row_groups
            if group.num_rows
        ]
    except (OSError, pa.ArrowInvalid) as error:
        problems = [*problems, f"cannot read {path!r} as Parquet: {error}"]
        raise InvalidCall("from_parquet", problems) from error
    if not files:
        problems = [*problems, f"there are no Parquet files in {path!r}"]
        raise InvalidCall("from_parquet", problems)
    reader, *others = (_reader(file, features, label, weight, problems) for file in files)
    for file, other in zip(files[1:], others, strict=True):
        if other != reader:
            problem = f"{file.path}: column {features!r} is of another type than in {files[0].path}"
            raise InvalidCall("from_parquet", [problem])
    if not groups:
        raise BadData(f"the data has no rows: {path!r}")
    return reader, _deal(groups, n_partitions)


def _between(batches: Iterable[pa.RecordBatch], start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Keep the rows from ``start`` to ``stop``; those before are decoded, those behind are not."""
    before = 0
    for batch in batches:
        low, high = max(start - before, 0), min(stop - before, batch.num_rows)
        if low < high:
            yield batch.slice(low, high - low)
        before += batch.num_rows
        if before >= stop:
            return


def _deal(groups: Sequence[Split], n_partitions: int) -> list[list[Split]]:
    """Give each partition row groups; one that is larger than a share is cut where a share ends."""
    splits: list[list[Split]] = [[] for _ in range(n_partitions)]
    n_rows = sum(group.stop for group in groups)
    ends = [(i + 1) * n_rows // n_partitions for i in range(n_partitions)]
    before = 0
    for group in groups:
        rows, start = group.stop, 0
        if rows * n_partitions <= n_rows:
            # It belongs to the partition in which its middle row falls.
            splits[int((before + rows / 2) * n_partitions / n_rows)].append(group)
            start = rows
        while start < rows:
            at = bisect.bisect_right(ends, before + start)
            stop = min(ends[at] - before, rows)
            splits[at].append(group._replace(start=start, stop=stop))
            start = stop
        before += rows
    _warn_of_cuts(groups, splits)
    return splits


def _warn_of_cuts(groups: Sequence[Split], splits: Sequence[Sequence[Split]]) -> None:
    """Say that a row group is decoded by many tasks, each up to its own rows."""
    cuts = Counter((split.path, split.row_group) for part in splits for split in part)
    (path, row_group), most = cuts.most_common(1)[0]
    if most > _MANY:
        logger.warning(
            "row group %d of %s is cut among %d partitions, each of which decodes it up to its own"
            " rows; %d row groups for %d partitions are few: fewer n_partitions, from_dataframe"
            " with repartition(...), or files of smaller row groups read faster",
            row_group, path, most, len(groups), len(splits),
        )  # fmt: skip


def _reader(
    file: pa.dataset.ParquetFileFragment,
    features: str | Sequence[str],
    label: str,
    weight: str | None,
    known: Sequence[str],
) -> ParquetReader:
    schema = file.physical_schema
    names = [features] if isinstance(features, str) else list(features)
    scalars = [label] + ([] if weight is None else [weight])
    problems = [] if names else ["the list of feature columns is empty"]
    problems += leaks(names, scalars)
    problems += [
        f"there is no column {name!r}; there are {', '.join(schema.names)}{how_to_name(name)}"
        for name in (*names, *scalars)
        if name not in schema.names
    ]
    problems += [
        f"column {name!r} is {schema.field(name).type}; it must be numeric"
        for name in (scalars if isinstance(features, str) else [*names, *scalars])
        if name in schema.names and not _is_number(schema.field(name).type)
    ]
    kind = _kind(schema, features, problems)
    if problems or known:
        here = [f"{problem} ({file.path})" for problem in problems]
        raise InvalidCall("from_parquet", [*known, *here])
    n_columns = len(_VECTOR_FIELDS) if kind == "vector" else len(names)
    return ParquetReader((*names, *scalars), Columns(kind, n_columns, weight is not None))


def _kind(schema: pa.Schema, features: str | Sequence[str], problems: list[str]) -> str:
    if not isinstance(features, str) or features not in schema.names:
        return "columns"
    kind = schema.field(features).type
    if _is_number(kind):
        return "columns"
    if pa.types.is_struct(kind) and tuple(field.name for field in kind) == _VECTOR_FIELDS:
        return "vector"
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(is_list(kind) for is_list in lists) and _is_number(kind.value_type):
        return "array"
    problems.append(
        f"features column {features!r} is {kind}; it must be a Spark vector, a list of numbers or"
        " a number, or a list of numeric columns"
    )
    return "columns"


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(test(kind) for test in tests)

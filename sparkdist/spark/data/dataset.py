"""Dataset: rows that were ingested once and stay on the executors."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from pyspark import RDD, SparkContext, StorageLevel
from pyspark.sql import DataFrame, SparkSession

from sparkdist.blocks import Block, Matrix
from sparkdist.errors import BadData, InvalidCall, PassFailed
from sparkdist.objectives import Objective
from sparkdist.spark.data import parquet, sources
from sparkdist.spark.data.dataframe import handle_of_row, ingested_dataframe, listed
from sparkdist.spark.data.found import merge_labels, refuse_bad
from sparkdist.spark.data.from_rows import blocks_of_elements
from sparkdist.spark.data.ingest import Handle, keep
from sparkdist.spark.data.residency import forget
from sparkdist.spark.data.slices import share
from sparkdist.spark.data.visit import Missing, visit
from sparkdist.spark.failures import told_plainly
from sparkdist.spark.jobs import run_job
from sparkdist.spark.network import has_stopped, n_executors
from sparkdist.spark.transport import acknowledge_at_once

__all__ = ["Dataset"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Crew(Protocol):
    """Workers that hold task slots."""

    def make_room(self) -> None:
        """Send them home, if they are there."""

    def release(self) -> None:
        """Send them home, and stop their server."""


def itself(handle: Handle) -> Handle:
    """Return it: most ingests give handles."""
    return handle


#: Turns a partition's elements into blocks.
Converter = Callable[[Iterable[Any]], Iterator[Block]]


class Dataset:
    """Rows with features X of shape (n, d), labels y of shape (n,) and weights of shape (n,).

    A dataset is made by one of the ``from_...`` constructors, which read the source once and leave
    blocks of arrays in the executors' local directories.  Spark caches a small handle for each
    partition and its lineage: when an executor is lost, Spark runs the ingest again for the
    partitions that it held.  A pass over the data therefore moves no rows.

    Use it as a context manager, or call :meth:`unpersist`, to give the disk space back.  What
    is left at the end of the application Spark removes with its own blocks.

    Attributes
    ----------
    n_rows, n_features, n_partitions : int
    weight_sum : float
        Sum of the weights; the number of rows where none were given.
    unit_weights : bool
        Every weight is 1.
    labels : tuple of float or None
        The distinct labels, sorted; None when there are more than some dozens.
    features : str or list of str
        The columns that the features came from.
    dtype : numpy.dtype
        Of X, float64 or float32; y and weight are float64.

    Notes
    -----
    Every constructor takes ``dtype="float32"``, NumPy's dtype or its name.  Dense rows then take
    half the space and a pass about half the time; sparse ones two thirds of the space and as
    much time as before.  A linear loss multiplies in float32 and does everything else in
    float64: the objective is known to about 1e-8 of its size.  Where ``tol`` asks for more, a
    solver stops there, with success, and says so.
    """

    def __init__(
        self,
        ingested: RDD[Any],
        name: str,
        features: str | Sequence[str] = "features",
        dtype: DTypeLike = np.float64,
        handle_of: Callable[[Any], Handle] = itself,
    ):
        self.name, self.dtype = name, np.dtype(dtype)
        self.features = features if isinstance(features, str) else list(features)
        self.context: SparkContext = ingested.context
        #: The lineage alone: computing it ingests.
        self.ingested = ingested.map(handle_of)
        # A union of one is cached, so that `ingested` stays recomputable: the JVM can make it, and
        # after an ingest through SQL starts no second kind of Python worker to look at handles.
        self._cached = ingested.context.union([ingested])
        self._cached.setName(f"sparkdist {name}").persist(StorageLevel.MEMORY_AND_DISK)
        self._handles = self._cached.map(handle_of)
        self.n_partitions = self._cached.getNumPartitions()
        #: The resident engine's workers, while there are any.
        self.crew: Crew | None = None
        #: What is there for ingesting again, and nothing else; closed with the dataset.
        self._source = ExitStack()
        try:
            with told_plainly("reading the data"):
                found = [*map(handle_of, run_job(self.context, self._cached.collect))]
            refuse_bad(found)
        except BaseException:  # Ctrl-C too: nobody else could remove what is there
            self._sweep()
            raise
        filled = [handle for handle in found if handle.n_rows]
        #: Of each partition that has rows: where its blocks were, and how many there are.
        self.blocks = {h.place.partition: (h.place, h.n_blocks) for h in filled}
        self.n_rows = sum(handle.n_rows for handle in filled)
        self.n_features = int(filled[0].n_features or 0)
        self.weight_sum = sum(handle.weight_sum for handle in filled)
        self.unit_weights = all(handle.unit_weights for handle in filled)
        self.labels = merge_labels(filled)

    @classmethod
    def from_dataframe(
        cls,
        df: DataFrame,
        features: str | Sequence[str] = "features",
        label: str = "label",
        weight: str | None = None,
        dtype: DTypeLike = "float64",
    ) -> Dataset:
        """Ingest a DataFrame through Arrow.

        Parameters
        ----------
        df
            Its partitions become the dataset's.  Only the columns that are named here are read.
        features
            A column of Spark vectors (sparse ones stay sparse), a column of arrays of
            numbers, or a list of numeric columns.
        label, weight
            Numeric columns; without ``weight`` every row weighs 1.
        dtype
            ``float64`` or ``float32``: how the features are kept.

        Raises
        ------
        InvalidCall
            If a column is missing or of the wrong type; before anything runs.
        BadData
            For nulls, NaN, infinities, features above 3.4e38 in float32, and rows of different
            length, with partition and row.
        UnsupportedSession
            On Spark Connect, which has no RDDs.
        """
        problems: list[str] = []
        kind = sources.find_dtype(dtype, problems)
        sources.refuse_not_dataframe(df, problems)
        scalars = [label] if weight is None else [label, weight]
        name, features = _new_name(), listed(features)
        rows = ingested_dataframe(df, features, scalars, name, kind, problems)
        return cls(rows, name, features, kind, handle_of_row)

    @classmethod
    def from_rdd(cls, rdd: RDD[Any], dtype: DTypeLike = "float64") -> Dataset:
        """Ingest an RDD of ``(x, y)``, ``(x, y, weight)``, ``LabeledPoint`` or blocks of arrays.

        A block is ``(X, y)`` or ``(X, y, weight)`` with X of shape (n, d), dense or sparse.

        Raises
        ------
        BadData
            For elements of another form, and as in :meth:`from_dataframe`.
        """
        problems: list[str] = []
        kind = sources.find_dtype(dtype, problems)
        sources.refuse_not_rdd(rdd, problems)
        return cls._ingest(rdd, functools.partial(blocks_of_elements, dtype=kind), kind)

    @classmethod
    def from_parquet(
        cls,
        spark: SparkSession,
        path: str | Sequence[str],
        features: str | Sequence[str] = "features",
        label: str = "label",
        weight: str | None = None,
        n_partitions: int | None = None,
        dtype: DTypeLike = "float64",
    ) -> Dataset:
        """Ingest Parquet files with pyarrow in the workers, without the JVM.

        The path, a file, a directory, a list of files or a URI that pyarrow knows, must mean the
        same on the driver and on every executor.  Row groups are dealt out in order to
        ``n_partitions`` partitions (default: ``spark.sparkContext.defaultParallelism``).  One with
        more rows than a partition's share is cut by rows: each of its tasks decodes it as far as
        its own last row, because Parquet cannot be entered in the middle of a row group.
        Columns, ``dtype`` and errors are those of :meth:`from_dataframe`.
        """
        problems: list[str] = []
        kind = sources.find_dtype(dtype, problems)
        context = sources.context_of_session("from_parquet", spark, problems)
        n = sources.find_count(n_partitions, context.defaultParallelism, problems)
        features = listed(features)
        reader, splits = parquet.plan(path, features, label, weight, n, problems)
        return cls._ingest(context.parallelize(splits, n), reader.blocks, kind, features)

    @classmethod
    def from_libsvm(
        cls,
        spark: SparkSession,
        path: str,
        n_features: int | None = None,
        n_partitions: int | None = None,
        dtype: DTypeLike = "float64",
    ) -> Dataset:
        """Ingest LIBSVM text, ``label index:value ...`` with indices from 1, with Spark's reader.

        ``n_features`` saves Spark a pass over the text, and is needed for a test set whose last
        features never occur.  ``n_partitions`` spreads files that cannot be split (gzip).
        """
        problems: list[str] = []
        kind = sources.find_dtype(dtype, problems)
        df = sources.read_libsvm(spark, path, n_features, n_partitions, problems)
        return cls.from_dataframe(df, dtype=kind)

    @classmethod
    def from_arrays(
        cls,
        spark: SparkSession,
        X: Matrix,
        y: ArrayLike,
        weight: ArrayLike | None = None,
        n_partitions: int | None = None,
        dtype: DTypeLike = "float64",
    ) -> Dataset:
        """Ingest arrays of the driver: X of shape (n, d), an array or any SciPy sparse matrix.

        The rows are dealt out in order to ``n_partitions`` partitions (default:
        ``spark.sparkContext.defaultParallelism``).  An X of float32 travels as such, at
        half the cost, whatever the dataset's dtype.
        """
        problems: list[str] = []
        kind = sources.find_dtype(dtype, problems)
        context = sources.context_of_session("from_arrays", spark, problems)
        n = sources.find_count(n_partitions, context.defaultParallelism, problems)
        slices = sources.slices_of_arrays(X, y, weight, n, problems)
        with ExitStack() as stack:
            rdd = share(context, slices, n, stack)
            dataset = cls._ingest(rdd, blocks_of_elements, kind)
            dataset._source = stack.pop_all()
        return dataset

    @classmethod
    def _ingest(
        cls,
        rdd: RDD[Any],
        convert: Converter,
        dtype: np.dtype[Any],
        features: str | Sequence[str] = "features",
    ) -> Dataset:
        name = _new_name()

        def ingest(partition: int, elements: Iterable[Any]) -> Iterator[Handle]:
            acknowledge_at_once()
            yield keep(convert(elements), name, partition, dtype)

        return cls(rdd.mapPartitionsWithIndex(ingest), name, features, dtype)

    def visit(self, work: Callable[[int, Iterator[Block]], T]) -> list[T]:
        """Run ``work(partition, blocks)`` where the blocks are; answers in partition order.

        Partitions without rows are left out.  Blocks that are not where Spark runs the task are
        ingested again there, from the lineage.
        """
        self.free_slots()
        with told_plainly("a pass"):
            answers = self.handles.mapPartitions(functools.partial(visit, work))
            found = run_job(self.context, answers.collect)
        missing = [answer.partition for answer in found if isinstance(answer, Missing)]
        again = iter(self.rebuild(work, missing))
        return [next(again) if isinstance(answer, Missing) else answer for answer in found]

    def rebuild(self, work: Callable[[int, Iterator[Block]], T], missing: Sequence[int]) -> list[T]:
        """Ingest some partitions again where their tasks now run, and visit them there."""
        if not missing:
            return []
        logger.warning("ingesting partitions %s again: their blocks are gone", list(missing))
        task = functools.partial(visit, work)
        with told_plainly("ingesting lost partitions again"):
            found = self.context.runJob(self.ingested, task, list(missing))
        answers = [answer for answer in found if not isinstance(answer, Missing)]
        if len(answers) != len(missing):
            raise PassFailed("blocks vanish as soon as they are written: look at spark.local.dir")
        return answers

    def free_slots(self) -> None:
        """Send resident workers home: another job needs their task slots."""
        if self.crew is not None:
            self.crew.make_room()

    def refuse_labels(self, objective: Objective) -> None:
        """Raise BadData for labels outside the objective's domain, with the place of the first."""
        if type(objective).bad_labels is Objective.bad_labels:
            return
        known = None if self.labels is None else np.array(self.labels)
        if known is not None and not objective.bad_labels(known).size:
            return

        def first(partition: int, blocks: Iterator[Block]) -> tuple[int, int, float] | None:
            y = np.concatenate([block.y for block in blocks])
            bad = objective.bad_labels(np.unique(y) if known is None else known)
            rows = np.flatnonzero(np.isin(y, bad))
            return (partition, int(rows[0]), float(y[rows[0]])) if rows.size else None

        place = next((place for place in self.visit(first) if place), None)
        if place is not None:
            partition, row, label = place
            raise BadData(
                f"{type(objective).__name__} needs labels that are {objective.label_rule()};"
                f" partition {partition}, row {row} (both counted from 0) has {label:g}"
            )

    @property
    def handles(self) -> RDD[Handle]:
        """The cached handles of the partitions.

        Raises
        ------
        InvalidCall
            After :meth:`unpersist`, because each pass would ingest again; and after the
            SparkContext was stopped.
        """
        if self._stopped:
            problem = "its SparkContext was stopped; ingest again in a new session"
            raise InvalidCall("this dataset cannot be used any more", [problem])
        if not self._cached.is_cached:
            problem = "unpersist, or leaving its `with`, has removed its blocks; ingest again"
            raise InvalidCall("this dataset cannot be used any more", [problem])
        return self._handles

    def unpersist(self) -> None:
        """Remove the blocks from the executors; the dataset cannot be used afterwards."""
        if self.crew is not None:
            self.crew.release()  # their server outlives even the session
        if not self._cached.is_cached or self._stopped:
            return
        self._handles.foreach(_forget)
        self._cached.unpersist()
        self._source.close()

    @property
    def _stopped(self) -> bool:
        """Whether the SparkContext is gone, and the blocks with it."""
        return has_stopped(self.context)

    def _sweep(self) -> None:
        """Remove what an ingest that failed has left, where a task can be had.

        A job over the handles would ingest again the partitions that failed.
        """
        n, name = max(self.n_partitions, self.context.defaultParallelism), self.name
        self._cached.unpersist()
        if not n_executors(self.context):  # none has come, and the job would wait for one
            return
        self.context.parallelize(range(n), n).foreach(lambda _: forget(name))

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *error: object) -> None:
        self.unpersist()

    def __repr__(self) -> str:
        return (
            f"Dataset({self.n_rows:,} rows x {self.n_features:,} features"
            f" in {self.n_partitions} partitions)"
        )


def _new_name() -> str:
    return f"sparkdist-{uuid.uuid4().hex[:12]}"


def _forget(handle: Handle) -> None:
    forget(handle.place.dataset, handle.place.directory)

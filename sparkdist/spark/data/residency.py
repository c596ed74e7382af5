"""Blocks that stay on the executor that made them, in memory-mapped files.

A partition's blocks are one file in the executor's local directory, which Spark removes when
the application ends, next to its own blocks.  The file holds the arrays as they lie in memory,
each at a multiple of 64 bytes, then a footer in JSON that says where each array is, then the
footer's length.  A pass maps the file and reads it through the page cache at memory speed:
measured at 20 GB/s, the same as for arrays on the heap, and mapping costs less than 0.2 ms.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from sparkdist.blocks import Array, Block

__all__ = ["BlockFile", "BlocksGone", "Place", "forget", "local_file", "open_blocks"]

_ALIGNMENT = 64  # one cache line; BLAS kernels choose the same code path for every block
_RESERVE = 64 << 20  # bytes: room is reserved ahead; growing page by page writes 2-4 times slower
_LENGTH = struct.Struct("<Q")
#: The file system cannot reserve; EBADF comes from glibc's stand-in, which reads the file.
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF)


class BlocksGone(Exception):
    """The file of a partition is not here: Spark has moved the task, or somebody removed it."""


class Place(NamedTuple):
    """Where the blocks of one partition are; what the cached RDD of handles holds."""

    dataset: str
    partition: int
    directory: str

    def candidates(self) -> Iterator[Path]:
        """The file as it was written, then where this executor would have written it."""
        for directory in (self.directory, *_local_directories()):
            yield Path(directory, self.dataset, f"{self.partition}.blocks")


class BlockFile:
    """Writes the blocks of one partition; a context manager that leaves the whole file or none.

    Two copies of a task may write at once, so each writes under a name of its own and renames
    at the end: the copies are equal, and it does not matter which one comes last.
    """

    def __init__(self, dataset: str, partition: int):
        directories = _local_directories()
        self.place = Place(dataset, partition, directories[partition % len(directories)])
        self._path = next(self.place.candidates())
        self._draft = self._path.with_suffix(f".{uuid.uuid4().hex}")
        self._blocks: list[list[dict[str, Any]]] = []
        self._end = self._reserved = 0

    def __enter__(self) -> BlockFile:
        self._draft.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._draft, "xb", buffering=0)
        return self

    @property
    def n_blocks(self) -> int:
        """Blocks written so far."""
        return len(self._blocks)

    def append(self, block: Block) -> None:
        """Write the arrays of a block, as they are."""
        X = block.X
        parts = [X] if isinstance(X, np.ndarray) else [X.data, X.indices, X.indptr]
        specs = [self._write(np.ascontiguousarray(part)) for part in (*parts, *block[1:])]
        specs[0]["n_features"] = X.shape[1]
        self._blocks.append(specs)

    def _write(self, array: Any) -> dict[str, Any]:
        start = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        self._end = start + array.nbytes
        if self._end > self._reserved:
            self._reserved = self._end + min(self._end, _RESERVE)
            _reserve(self._file.fileno(), self._reserved)
        if array.nbytes:
            _write_all(self._file.fileno(), memoryview(array).cast("B"), start)
        return {"dtype": array.dtype.str, "shape": array.shape, "start": start}

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                footer = json.dumps(self._blocks).encode()
                os.ftruncate(self._file.fileno(), self._end)
                _write_all(
                    self._file.fileno(), memoryview(footer + _LENGTH.pack(len(footer))), self._end
                )
                os.replace(self._draft, self._path)
        finally:
            self._file.close()
            self._draft.unlink(missing_ok=True)


@contextmanager
def open_blocks(place: Place) -> Iterator[Iterator[Block]]:
    """Map a partition's file and give its blocks; their arrays are valid only inside the ``with``.

    Raises
    ------
    BlocksGone
        If the file is not on this machine.
    """
    for path in place.candidates():
        try:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            continue
        # Not closed here: Python unmaps when the last array that looks into it is gone.
        yield _blocks(mapped)
        return
    raise BlocksGone(f"partition {place.partition} of {place.dataset}: {place.directory}")


def _blocks(mapped: mmap.mmap) -> Iterator[Block]:
    (length,) = _LENGTH.unpack(mapped[-_LENGTH.size :])
    for specs in json.loads(mapped[-_LENGTH.size - length : -_LENGTH.size]):
        *parts, y, weight = (_view(mapped, **spec) for spec in specs)
        shape = (len(y), specs[0]["n_features"])
        X = parts[0] if len(parts) == 1 else csr_array(tuple(parts), shape=shape, copy=False)
        yield Block(X, y, weight)


def _view(
    mapped: mmap.mmap, dtype: str, shape: list[int], start: int, n_features: int | None = None
) -> Array:
    count = int(np.prod(shape))
    return np.frombuffer(mapped, dtype, count, start).reshape(shape)


def forget(dataset: str, *directories: str) -> None:
    """Remove what this executor, and those that wrote to ``directories``, keep of a dataset."""
    for base in (*directories, *_local_directories()):
        shutil.rmtree(Path(base, dataset), ignore_errors=True)


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Reserve room where the system can: it only makes writing faster."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:
            raise


def _write_all(descriptor: int, data: memoryview, start: int) -> None:
    """Write at an offset; one call may write less than asked, and at most 2 GiB."""
    while data:
        written = os.pwrite(descriptor, data, start)
        data, start = data[written:], start + written


def local_file(name: str) -> Path:
    """Return a place for a file that tasks on this executor share, until the application ends."""
    return Path(_local_directories()[0], name)


def _local_directories() -> list[str]:
    """The executor's local directories, which Spark names to its Python workers."""
    return os.environ["SPARK_LOCAL_DIRS"].split(",")

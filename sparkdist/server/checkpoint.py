"""Checkpoints: parameters, updater state and ledger in one file, written atomically."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.numpy import load, save

from sparkdist.blocks import Array
from sparkdist.errors import CheckpointError

__all__ = ["Checkpointer", "Snapshot", "holds_checkpoints", "read", "read_newest", "write"]

logger = logging.getLogger(__name__)

#: Magic, version of the format, length of what follows, its SHA-256.
_ENVELOPE = struct.Struct("<8sIQ32s")
_MAGIC, _VERSION = b"SPKDCKPT", 1
_NAME = re.compile(r"checkpoint-(\d{12})\.spkd")
_KEEP = 2
#: After so many failures in a row the server says that it is not ready.
_PATIENCE = 3


class Snapshot(NamedTuple):
    """One consistent state of the server: what a restart must have, and nothing less.

    Parameters without their ledger would let every push that is on its way count twice.
    """

    version: int
    w: Array
    state: tuple[Array, ...]
    ledger: dict[str, Any]
    #: Version at which the state was new: updates are counted from there.
    started: int = 0
    #: Who wrote it, and of each server before that one the last version that was not lost.
    generation: str = ""
    lineage: dict[str, int] = {}  # a default that nobody changes
    #: What the worker of each partition has to know to go on.
    workers: dict[int, Array] = {}


def write(folder: Path, snapshot: Snapshot) -> Path:
    """Write a snapshot so that a crash at any instant leaves the old file or the new one.

    Temporary file in the same folder, fsync, rename, fsync of the folder: POSIX makes a rename
    atomic, and only the last fsync makes it durable.  The two newest files stay, but none of a
    higher version: what followed an older checkpoint was lost when that one was restored.
    """
    fields = snapshot._asdict()
    arrays = {f"state/{i:04d}": part for i, part in enumerate(fields.pop("state"))}
    arrays |= {f"worker/{p}": part for p, part in fields.pop("workers").items()}
    arrays["w"] = fields.pop("w")
    body = save(arrays, metadata={"sparkdist": json.dumps(fields)})
    envelope = _ENVELOPE.pack(_MAGIC, _VERSION, len(body), hashlib.sha256(body).digest())
    path = folder / f"checkpoint-{snapshot.version:012d}.spkd"
    draft = folder / "checkpoint.draft"  # one name: failed writes do not fill the disk
    with open(draft, "wb") as file:
        file.write(envelope)
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    _sync_folder(folder)
    for other in _newest_first(folder):
        if other > path:
            other.unlink(missing_ok=True)
    for old in _newest_first(folder)[_KEEP:]:
        old.unlink(missing_ok=True)
    return path


def read(path: Path) -> Snapshot:
    """Read a checkpoint.

    Raises
    ------
    CheckpointError
        If a single bit of it is not as it was written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    body = memoryview(data)[_ENVELOPE.size :]
    try:
        magic, version, length, digest = _ENVELOPE.unpack_from(data)
    except struct.error:
        raise CheckpointError(f"{path} is damaged: it has {len(data)} bytes") from None
    if (magic, version) != (_MAGIC, _VERSION):
        raise CheckpointError(f"{path} is no checkpoint of format {_VERSION}")
    if length != len(body) or hashlib.sha256(body).digest() != digest:
        raise CheckpointError(f"{path} is damaged: length or SHA-256 do not fit")
    try:
        return _parse(bytes(body))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is whole, and holds something else: {error}") from error


def _parse(body: bytes) -> Snapshot:
    arrays = load(body)
    (length,) = struct.unpack_from("<Q", body)
    meta = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["sparkdist"])
    state = tuple(arrays[name] for name in sorted(arrays) if name.startswith("state/"))
    found = (name for name in arrays if name.startswith("worker/"))
    workers = {int(name.removeprefix("worker/")): arrays[name] for name in found}
    return Snapshot(w=arrays["w"], state=state, workers=workers, **meta)


def read_newest(folder: Path) -> Snapshot:
    """Read the newest checkpoint that is whole; older ones are there for when it is not.

    Raises
    ------
    CheckpointError
        If there is none; the message says what is wrong with each.
    """
    problems = []
    for path in _newest_first(folder):
        try:
            return read(path)
        except CheckpointError as error:
            logger.error("%s; falling back to the one before", error)
            problems.append(str(error))
    listed = "; ".join(problems) or "there is none"
    raise CheckpointError(f"no checkpoint can be loaded from {folder}: {listed}")


def holds_checkpoints(folder: Path) -> bool:
    """Whether an earlier run has left checkpoints in a folder."""
    return bool(_newest_first(folder))


def _newest_first(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Checkpointer:
    """Decides when a snapshot is written: never, after every update, or every so many seconds.

    ``every_update`` writes before the push is acknowledged: nothing that a worker was told is
    ever lost.  ``seconds`` writes in a thread of its own, so that at most the updates of the last
    ``seconds``, and of the time that writing takes, are lost and computed again.

    A failed write is loud, keeps the last good file, and is tried again at the next update.
    """

    def __init__(
        self, folder: Path | None, *, every_update: bool = False, seconds: float | None = None
    ):
        self._folder, self.every_update, self._seconds = folder, every_update, seconds
        self.durable_version = -1
        self.failures = self._failed_in_a_row = 0
        self._last = time.monotonic()
        self._writer: threading.Thread | None = None

    @property
    def healthy(self) -> bool:
        """Whether the last writes did not all fail."""
        return self._failed_in_a_row < _PATIENCE

    def after_update(self, version: int, snapshot: Callable[[], Snapshot]) -> None:
        """Be told of an update; called under the store's lock.

        Raises
        ------
        CheckpointError
            If every update must be durable and this one could not be made so.
        """
        if self._folder is None:
            return
        if self.every_update:
            self._write(snapshot())
        elif self._seconds is not None and time.monotonic() - self._last >= self._seconds:
            if self._writer is None or not self._writer.is_alive():
                self._last = time.monotonic()
                self._writer = threading.Thread(target=self._write_later, args=(snapshot(),))
                self._writer.start()

    def save_now(self, snapshot: Snapshot) -> None:
        """Write a snapshot, whatever the policy, if there is a folder.

        Raises
        ------
        CheckpointError
            If it cannot be written.
        """
        if self._folder is None:
            return
        if self._writer is not None:
            self._writer.join()
        self._write(snapshot)

    def _write_later(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except CheckpointError as error:
            logger.error("%s; training goes on, and it is tried again", error)

    def _write(self, snapshot: Snapshot) -> None:
        assert self._folder is not None
        try:
            write(self._folder, snapshot)
        except OSError as error:
            self.failures += 1
            self._failed_in_a_row += 1
            raise CheckpointError(
                f"no checkpoint can be written to {self._folder}: {error}"
            ) from error
        self.durable_version, self._failed_in_a_row = snapshot.version, 0

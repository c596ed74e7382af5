"""Setup: what a server process serves, and everything that it is started from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flask import Flask

from sparkdist.blocks import Array
from sparkdist.consistency import Consistency
from sparkdist.layout import Layout
from sparkdist.server.app import Settings, create_app
from sparkdist.server.checkpoint import Checkpointer, read_newest
from sparkdist.server.record import Recorder
from sparkdist.server.rules import Rule
from sparkdist.server.store import Store
from sparkdist.wire import HEADER_LIMIT, PRELUDE_BYTES

__all__ = ["Service", "Setup", "Startable"]


class Service(NamedTuple):
    """What a process serves."""

    app: Flask
    #: What the driver may ask for, by name.
    commands: dict[str, Callable[..., Any]]
    #: Called before the end: nobody waits any longer, and what is to stay is written.
    drain: Callable[[], None]


class Startable(Protocol):
    """What a process can be started from, again and again."""

    @property
    def host(self) -> str:
        """Address to listen at."""

    @property
    def port(self) -> int:
        """Port to listen at."""

    @property
    def certificate(self) -> Path | None:
        """PEM file for TLS; None for plain HTTP."""

    @property
    def key(self) -> Path | None:
        """PEM file of its key."""

    def service(self) -> Service:
        """Make what is served."""

    def again(self) -> Startable | None:
        """Return what to start from after the process has died; None if all would be lost."""


@dataclass(frozen=True)
class Setup:
    """Everything that a server process is started from, and started again."""

    w: Array
    layout: Layout
    rule: Rule
    consistency: Consistency
    host: str
    port: int
    hosts: frozenset[str]
    token: str = field(repr=False)
    run: str = ""
    n_workers: int = 0
    plan: str = ""
    state_bytes: int = 0
    folder: Path | None = None
    every_update: bool = False
    seconds: float | None = None
    skip_not_finite: bool = False
    certificate: Path | None = None
    key: Path | None = None
    restore: bool = False
    #: What the arrays of a push may take; None for what a dense gradient takes.
    push_bytes: int | None = None
    #: Keep what the store does, for the command ``record``.
    record: bool = False

    def service(self) -> Service:
        """Serve a store."""
        store = self._make_store()
        settings = Settings(
            self.token,
            self.hosts,
            self.layout,
            self.w.dtype.str,
            # A sparse push is at most as long as a dense one: the client sends what is shorter.
            (self.push_bytes or self.w.nbytes) + HEADER_LIMIT + PRELUDE_BYTES,
        )
        commands: dict[str, Callable[..., Any]] = {
            "begin": store.begin,
            "use": store.use,
            "model": store.parameters,
            "status": store.status,
            "states": lambda: dict(store.ledger.states),
            "save": store.save,
            "fault": lambda: store.fault,
        }
        if self.record:
            store.observe = recorder = Recorder()
            commands["record"] = lambda: (recorder.events, recorder.missed)
        return Service(create_app(store, settings), commands, store.drain)

    def again(self) -> Setup | None:
        """Start from the newest checkpoint."""
        return None if self.folder is None else dataclasses.replace(self, restore=True)

    def _make_store(self) -> Store:
        """Make the store, from the newest checkpoint if that is asked for."""
        checkpointer = Checkpointer(
            self.folder, every_update=self.every_update, seconds=self.seconds
        )
        store = Store(
            self.w,
            self.rule,
            self.consistency,
            checkpointer,
            skip_not_finite=self.skip_not_finite,
        )
        if self.restore and self.folder is not None:
            store.restore(read_newest(self.folder))
            checkpointer.durable_version = store.version
        if self.run:
            store.begin(self.run, self.n_workers, self.plan, self.state_bytes)
        return store

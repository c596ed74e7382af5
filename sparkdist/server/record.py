"""Record: what a store did, in which order, and the file that holds it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparkdist.errors import InvalidCall

__all__ = ["Event", "Recorder", "durations", "read_record", "write_record"]

_FORMAT = 1


class Event(NamedTuple):
    """One thing that the store did for a worker.

    ``verb`` is join, fetch, push or leave.  ``clock`` is that of a push, and otherwise the next
    one that the store expects.  ``version`` is the one that was fetched, or on which the
    gradient of a push was computed.
    """

    seconds: float
    verb: str
    partition: int
    clock: int
    version: int


class Recorder:
    """Keeps the events of a store: ``store.observe = Recorder()``.

    A push is an event when it is booked, and a fetch when the parameters are handed out.  That,
    the data and the options of the run are all that its result depends on.

    Parameters
    ----------
    limit
        How many are kept, some 200 bytes each; what comes later is only counted.
    clock
        Gives seconds; they count from the recorder's beginning.
    """

    def __init__(self, limit: int = 1_000_000, clock: Callable[[], float] = time.monotonic):
        self.events: list[Event] = []
        #: How many came after the limit.
        self.missed = 0
        self._limit, self._clock, self._began = limit, clock, clock()

    def __call__(self, verb: str, partition: int, clock: int, version: int) -> None:
        """Be told of an event, under the store's lock."""
        if len(self.events) >= self._limit:
            self.missed += 1
            return
        seconds = self._clock() - self._began
        self.events.append(Event(seconds, verb, partition, clock, version))


def durations(events: Iterable[Event]) -> list[list[float]]:
    """Return, for each worker, the seconds from each fetch to the push after it.

    That is what a batch took, the network and the server included: ``trace(durations(events))``
    is the latency of the recorded cluster where each unit has one batch and one fetch.
    """
    fetched: dict[int, float] = {}
    found: dict[int, list[float]] = {}
    for seconds, verb, partition, _, _ in events:
        if verb == "fetch":
            fetched[partition] = seconds
        elif verb == "push" and partition in fetched:
            found.setdefault(partition, []).append(seconds - fetched.pop(partition))
    return [found.get(partition, [0.0]) for partition in range(max(found, default=-1) + 1)]


def write_record(path: str | Path, events: Sequence[Event], plan: Mapping[str, Any]) -> None:
    """Write a file, as a whole or not at all: a line of JSON that says what it is, one an event."""
    draft = Path(f"{path}.{os.getpid()}")
    head = {"format": _FORMAT, "events": len(events), "plan": dict(plan)}
    try:
        with open(draft, "w") as file:
            for line in (head, *events):
                file.write(json.dumps(line) + "\n")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_record(path: str | Path) -> list[Event]:
    """Read the events of a file that ``ModelServer(record=path)`` wrote.

    Raises
    ------
    InvalidCall
        If it is not such a file, or not all of it.
    """
    try:
        with open(path) as file:
            head = json.loads(file.readline())
            events = [_event(*json.loads(line)) for line in file]
        if (head["format"], head["events"]) != (_FORMAT, len(events)):
            said = f"it should have {head['events']} events in format {_FORMAT}"
            raise ValueError(f"{said}; it has {len(events)} in format {head['format']}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidCall("read_record", [f"{path} is not a record: {error}"]) from error
    return events


def _event(seconds: float, verb: str, *numbers: int) -> Event:
    return Event(float(seconds), str(verb), *map(int, numbers))

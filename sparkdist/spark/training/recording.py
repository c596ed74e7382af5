"""Recording: the file that holds what the model server did in a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparkdist.server.record import Event, write_record
from sparkdist.server.supervisor import Supervisor

__all__ = ["keep_record", "problems_of_record"]

logger = logging.getLogger(__name__)


def problems_of_record(path: Any, resume: Any) -> list[str]:
    """Say why a run cannot be recorded there."""
    if path is None:
        return []
    if not isinstance(path, str | Path) or not _may_be_written(Path(path).absolute()):
        rule = "it must name a file in a folder that is there, and may be written to"
        return [f"record is {path!r}; {rule}"]
    if resume is not None:
        return ["record is for a run from its start, and resume goes on with one"]
    return []


def keep_record(supervisor: Supervisor, path: str | Path, plan: Mapping[str, Any]) -> None:
    """Write the record of a run that is over; one with a hole in it is not written.

    The run itself is whole all the same: that is a warning, and no error.
    """
    kept, missed = supervisor.ask("record")
    if supervisor.restarts or missed:
        why = f"{missed} events came after the {len(kept)} that there is room for"
        if supervisor.restarts:
            why = f"the server was started again {supervisor.restarts} times"
        logger.warning("%s has not been written: %s", path, why)
        return
    try:
        write_record(path, [Event(*event) for event in kept], plan)
    except OSError as error:
        logger.warning("%s has not been written: %s", path, error)


def _may_be_written(path: Path) -> bool:
    return path.parent.is_dir() and not path.is_dir() and os.access(path.parent, os.W_OK)

"""How a model server is kept: the arguments that its front doors share."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark import SparkConf

from sparkdist.blocks import Array
from sparkdist.errors import InvalidCall
from sparkdist.fields import flag, number, optional, read_fields, whole
from sparkdist.server.checkpoint import holds_checkpoints, read_newest
from sparkdist.server.rules import Rule
from sparkdist.spark.network import encryption_of, ports_of
from sparkdist.spark.training.recording import problems_of_record

__all__ = ["ServerOptions"]

logger = logging.getLogger(__name__)

_CHECKPOINTS = ("none", "interval", "every")


@dataclass(frozen=True)
class ServerOptions:
    """The options of :class:`ModelServer` that are not about descent; see there."""

    checkpoint: str = "interval"
    folder: str | Path | None = None
    resume: str | Path | None = None
    seconds: float = 10.0
    restarts: int = 3
    skip_not_finite: bool = False
    certificate: str | Path | None = None
    key: str | Path | None = None
    plaintext: bool = False
    port: int | tuple[int, int] = 0
    record: str | Path | None = None

    def problems(self) -> list[str]:
        """Find what is wrong with them: a sentence for each problem."""
        rules = {"restarts": whole(0), "skip_not_finite": flag, "plaintext": flag}
        problems = read_fields(self, seconds=_seconds, **rules)
        if self.checkpoint not in _CHECKPOINTS:
            problems.append(f"checkpoint is {self.checkpoint!r}; it must be one of {_CHECKPOINTS}")
        places = dict.fromkeys(("folder", "resume", "certificate", "key"), optional(_path))
        no_paths = read_fields(self, **places)
        ports_of(self.port, problems)
        problems += problems_of_record(self.record, self.resume)
        return problems + (no_paths or self._problems_of_places())

    def _problems_of_places(self) -> list[str]:
        problems = []
        if self.resume is not None and self.folder is not None:
            problems.append("folder is for a new run, resume for an old one; give one of them")
        if self.checkpoint == "none" and not self.resume is self.folder is None:
            problems.append("checkpoint='none' leaves nothing in folder, and resumes nothing")
        if (self.certificate is None) != (self.key is None):
            problems.append("certificate and key belong together; one of them is missing")
        for name in ("certificate", "key"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                problems.append(f"{name} is {str(path)!r}, where there is no file")
        if self.resume is not None and not holds_checkpoints(Path(self.resume)):
            problems.append(f"resume is {str(self.resume)!r}, where there are no checkpoints")
        return problems + ([] if self.folder is None else _problems_of_folder(Path(self.folder)))

    def refuse_bypassed_encryption(self, conf: SparkConf, host: str) -> None:
        """Raise InvalidCall, or warn, where Spark encrypts and this server would not."""
        found = encryption_of(conf, host)
        if not found or self.certificate is not None:
            return
        said = f"{', '.join(found)} is set, which does not cover the model server's own port"
        if not self.plaintext:
            cure = "give it certificate=... and key=..., or say plaintext=True"
            raise InvalidCall("the model server", [f"{said}: {cure}"])
        logger.warning("%s: gradients and parameters cross the network unencrypted", said)

    def refuse_other_checkpoints(self, w: Array, rule: Rule) -> None:
        """Raise InvalidCall if what is to be resumed is of another model or another updater."""
        if self.resume is None:
            return
        saved = read_newest(Path(self.resume))
        if (saved.w.shape, saved.w.dtype) != (w.shape, w.dtype):
            had = f"{saved.w.size} parameters in {saved.w.dtype}"
            problem = f"the checkpoint has {had}; the model {w.size} in {w.dtype}"
            raise InvalidCall("resume", [problem])
        if len(saved.state) != len(rule.init(w)):
            raise InvalidCall("resume", ["the checkpoint is of another updater"])

    def place(self, stack: ExitStack) -> tuple[Path | None, list[Path]]:
        """Return the folder for checkpoints, and those that the stack removes in the end."""
        if self.checkpoint == "none":
            return None, []
        given = self.resume or self.folder
        if given is None:
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="sparkdist-"))
            return Path(made), [Path(made)]
        Path(given).mkdir(parents=True, exist_ok=True)
        return Path(given).absolute(), []

    def of_process(self) -> dict[str, Any]:
        """Return what the server process wants to know of them."""
        return {
            "every_update": self.checkpoint == "every",
            "seconds": float(self.seconds) if self.checkpoint == "interval" else None,
            "skip_not_finite": self.skip_not_finite,
            "certificate": None if self.certificate is None else Path(self.certificate).absolute(),
            "key": None if self.key is None else Path(self.key).absolute(),
            "restore": self.resume is not None,
            "record": self.record is not None,
        }

    def certificate_text(self) -> str | None:
        """Return the certificate that workers are to see, as PEM."""
        return None if self.certificate is None else Path(self.certificate).read_text()


_seconds = number("a number of seconds > 0", lambda x: x > 0)


def _problems_of_folder(folder: Path) -> list[str]:
    if folder.is_file():
        return [f"folder is {str(folder)!r}, which is a file"]
    if not holds_checkpoints(folder):
        return []
    cure = "resume=... goes on with them; a new run needs another folder"
    return [f"folder is {str(folder)!r}, which has checkpoints: {cure}"]


def _path(value: object) -> str | os.PathLike[str]:
    if isinstance(value, str | os.PathLike):
        return value
    raise ValueError(f"must be a path; it is {value!r}")

"""Store: the state of the server, and the one lock around it."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from sparkdist.blocks import Array
from sparkdist.consistency import Consistency
from sparkdist.errors import BadGradient, CheckpointError, DecodeError
from sparkdist.server.answer import GO_ON, Answer
from sparkdist.server.checkpoint import Checkpointer, Snapshot
from sparkdist.server.leases import Leases
from sparkdist.server.ledger import Ledger
from sparkdist.server.parameters import Parameters
from sparkdist.server.round import Round
from sparkdist.server.rules import Push, Rule

__all__ = ["Answer", "Store"]

logger = logging.getLogger(__name__)


class Store:
    """Parameters, updater state and ledger, changed together under one lock.

    Parameters
    ----------
    w
        The parameters, one vector; float32 or float64.
    rule
        How pushes change them.
    consistency
        Who may go on, and when a round is full.
    checkpointer
        Where snapshots go; it is told after every update, before the push is acknowledged.
    skip_not_finite
        Count a push that is not finite, or that would make the parameters so, as done without
        applying it; otherwise it is refused.
    """

    def __init__(
        self,
        w: Array,
        rule: Rule,
        consistency: Consistency,
        checkpointer: Checkpointer,
        *,
        skip_not_finite: bool = False,
    ):
        self._parameters = Parameters(w, rule)
        self.consistency, self.checkpointer = consistency, checkpointer
        self._skip = skip_not_finite
        self._changed = threading.Condition()
        self.generation = secrets.token_hex(8)
        self.ledger, self.state_bytes = Ledger("", 0), 0
        #: Of each server before this one, the last version that is a past of this one's.
        self._lineage: dict[str, int] = {}
        self._round, self._draining = Round(), False
        #: When each worker was heard of; what is over then, the policy says.
        self.leases = Leases(consistency.lease)
        #: Traceback of the last exception that was nobody's but ours, or the user's descent's.
        self.fault: str | None = None
        #: Told under the lock of each join, fetch, push and leave: verb, partition, clock, version.
        self.observe: Callable[[str, int, int, int], object] = lambda *event: None

    @property
    def rule(self) -> Rule:
        """How pushes change the parameters."""
        return self._parameters.rule

    @property
    def version(self) -> int:
        """How many updates the parameters have had."""
        return self._parameters.version

    # --- the driver's side ------------------------------------------------------------------

    def begin(self, run: str, n_workers: int, plan: str = "", state_bytes: int = 0) -> None:
        """Open a run; one that was restored goes on, any other is closed for ever.

        A worker's state takes at most ``state_bytes``; without any, none is let in.
        """
        with self._changed:
            self.state_bytes, self.fault = state_bytes, None
            if self.ledger.run != run:
                self.ledger = Ledger(run, n_workers, plan)
                self._round.take()
                self.checkpointer.save_now(self._snapshot())
            self.leases.begin(n_workers)
            self._changed.notify_all()

    def use(self, rule: Rule, keep: bool = False) -> None:
        """Change how pushes are applied, from now on.

        The state beside the parameters starts anew; with ``keep``, for a rule with the same
        updater, it stays.
        """
        with self._changed:
            self._parameters.use(rule, keep=keep)

    def restore(self, snapshot: Snapshot) -> None:
        """Take over parameters, updater state, ledger and version, all from one checkpoint.

        Raises
        ------
        CheckpointError
            If the snapshot is of another model or another updater.
        """
        with self._changed:
            self._parameters.restore(snapshot.version, snapshot.w, snapshot.state, snapshot.started)
            self.ledger = Ledger.from_dict(snapshot.ledger, snapshot.workers)
            self._lineage = {**snapshot.lineage, snapshot.generation: snapshot.version}

    def save(self) -> None:
        """Write a checkpoint now, if there is a place for it."""
        with self._changed:
            self.checkpointer.save_now(self._snapshot())

    def drain(self) -> None:
        """Let nobody wait any longer, and write the last checkpoint."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            self.checkpointer.save_now(self._snapshot())

    def status(self, timeline: bool = False) -> dict[str, Any]:
        """Everything that can be counted, for JSON; with ``timeline`` how it came to be, too."""
        with self._changed:
            return {
                **self.ledger.status(self.leases.silent(), timeline),
                **self._parameters.status(),
                "generation": self.generation,
                "durable_version": self.checkpointer.durable_version,
                "checkpoint_failures": self.checkpointer.failures,
                "ready": not self._draining and self.checkpointer.healthy,
                "consistency": repr(self.consistency),
                "open_round": sorted(self._round),
            }

    def parameters(self) -> tuple[int, Array]:
        """Return the version and a copy of the parameters."""
        with self._changed:
            return self.version, self._parameters.copy()[0]

    # --- the workers' side ------------------------------------------------------------------

    def join(self, run: str, partition: int) -> Answer:
        """Tell a worker, or another copy of it, where it goes on."""
        with self._changed:
            self.ledger.refuse_stranger(run, partition)
            self.ledger.next.setdefault(partition, 0)
            self._hear(partition)
            self.observe("join", partition, self.ledger.next[partition], self.version)
            return self._answer("ok", partition)._replace(state=self._state_of(partition))

    def pull(self, run: str, partition: int, timeout: float) -> Answer:
        """Give the parameters when the policy lets this worker have them, or say ``wait``."""
        with self._changed:
            self.ledger.refuse_stranger(run, partition)
            self._hear(partition)
            w = self._when_allowed(run, partition, timeout)
            return self._answer("wait" if w is None else "ok", partition, w)

    def push(self, run: str, push: Push, *, want: bool = False, timeout: float = 0.0) -> Answer:
        """Count a push once; with ``want`` the answer carries the next parameters.

        Raises
        ------
        BadGradient
            If the parameters would not be finite after it.
        CheckpointError
            If every push must be durable, and this one could not be made so; it is not applied.
        """
        with self._changed:
            self.ledger.refuse_stranger(run, push.partition)
            if push.generation == self.generation and push.base > self.version:
                raise DecodeError(f"base {push.base} was never served; it is {self.version} now")
            if self._draining:  # it would be in no checkpoint
                return self._answer("wait", push.partition)
            self._hear(push.partition)
            self.ledger.counts["received"] += 1
            self.ledger.bytes_in += push.n_bytes
            status = self._book(push)
            self.observe("push", push.partition, push.clock, push.base)
            goes_on = want and status in GO_ON
            w = self._when_allowed(run, push.partition, timeout) if goes_on else None
            return self._answer(status, push.partition, w)

    def leave(self, run: str, partition: int) -> Answer:
        """Stop waiting for a worker."""
        with self._changed:
            self.ledger.refuse_stranger(run, partition)
            self.ledger.leave(partition)
            self.leases.hold(partition)
            self.observe("leave", partition, self.ledger.next.get(partition, 0), self.version)
            try:
                self._close_round_if_full()
            except Exception:  # it is about the pushes of others, who are told to push again
                logger.exception("the round that ended as partition %s left failed", partition)
            self._changed.notify_all()
            return self._answer("ok", partition)

    def reject(self, run: str, partition: int, clock: int, reason: str) -> Answer | None:
        """Book a push that could not be admitted; where those are skipped it counts as done."""
        with self._changed:
            self.ledger.refuse_stranger(run, partition)
            self.ledger.counts["received"] += 1
            if self._skip and reason == "not_finite":
                status = self._known(partition, clock, 0) or self._pass_over(partition, "skipped")
                return self._answer(status, partition)
            self.ledger.counts[f"rejected_{reason}"] += 1
            return None

    # --- under the lock ---------------------------------------------------------------------

    def _known(self, partition: int, clock: int, digest: int) -> str | None:
        return self.ledger.known(partition, clock, digest, self.consistency.repeats)

    def _book(self, push: Push) -> str:
        ledger, partition = self.ledger, push.partition
        if known := self._known(partition, push.clock, push.digest):
            return known
        # Version 0 is what every server of a run starts from.
        kept = self._lineage.get(push.generation, 0)
        lost = push.generation != self.generation and push.base > kept
        if lost or self._is_due(partition) or not self._parameters.knows(push):
            ledger.counts["stale"] += 1
            return "stale"
        if not self.consistency.takes(self.version - push.base):
            return self._pass_over(partition, "dropped", push.digest)
        if self.rule.follows:
            push = self.rule.follow(push, self._state_of(partition))
        if not self.consistency.in_rounds:
            return self._apply([push])
        self._round.keep(push)
        ledger.accept(partition, push.digest, self.version + 1)
        ledger.counts["kept"] += 1
        self._close_round_if_full()
        return "ok"

    def _pass_over(self, partition: int, what: str, digest: int = 0) -> str:
        self.ledger.accept(partition, digest, self.version)
        self.ledger.counts[what] += 1
        self._changed.notify_all()
        return what

    def _close_round_if_full(self) -> None:
        # Who pushed and then left is in this round all the same, and takes nobody's place.
        left = self.ledger.gone & self._round.partitions
        wanted = self.consistency.quorum(self.ledger.n_active + len(left))
        if len(self._round) >= (wanted if self.ledger.n_active else 1):
            self._apply(self._round.take())

    def _apply(self, pushes: list[Push]) -> str:
        """Write the update into the copy, swap it in, make it durable; or leave all as it was."""
        try:
            self._parameters.prepare(pushes)
        except BadGradient:
            if self._skip:
                return self._skip_all(pushes)
            self._expect_again(pushes, "not_finite")
            raise
        except Exception:
            self._expect_again(pushes, "failed")
            raise
        books = self.ledger.copy() if self.checkpointer.every_update else self.ledger
        self._parameters.swap(+1)
        for push in pushes:
            self._commit(push)
        try:
            self.checkpointer.after_update(self.version, self._snapshot)
        except CheckpointError:
            self._parameters.swap(-1)
            self.ledger = books
            self._expect_again(pushes, "not_durable")
            raise
        self._changed.notify_all()
        return "ok"

    def _commit(self, push: Push) -> None:
        self._conclude(push, applied=True)
        self.ledger.count(self.version - 1 - push.base, push.examples, push.loss, push.weight)

    def _conclude(self, push: Push, *, applied: bool) -> None:
        if self.consistency.in_rounds:
            self.ledger.counts["kept"] -= 1
        else:
            self.ledger.accept(push.partition, push.digest, self.version)
        # Who is in a round was told that it counts, and goes on so, whatever becomes of the round.
        if push.state is not None and (applied or self.consistency.in_rounds):
            self.ledger.states[push.partition] = push.state.copy()  # it is a view of the body

    def _expect_again(self, pushes: list[Push], reason: str) -> None:
        """Book pushes as rejected.  Those of a round had been accepted: their workers go back."""
        partitions = [push.partition for push in pushes]
        self.ledger.expect_again(partitions, reason, kept=self.consistency.in_rounds)
        self._changed.notify_all()

    def _skip_all(self, pushes: list[Push]) -> str:
        for push in pushes:
            self._conclude(push, applied=False)
            self.ledger.counts["skipped"] += 1
        if self.consistency.in_rounds:
            self._parameters.version += 1  # the round is over, without a step
        self._changed.notify_all()
        return "skipped"

    def _state_of(self, partition: int) -> Array | None:
        """What goes with the clock that is expected of a partition."""
        state = self._round.state_of(partition)
        return self.ledger.states.get(partition) if state is None else state

    def _is_due(self, partition: int) -> bool:
        """Whether a worker has to wait for the round that its own push is in."""
        return not self.consistency.several and partition in self._round

    def _hear(self, partition: int) -> None:
        self.leases.renew(partition)
        self.ledger.hear(partition)

    def _may_go(self, partition: int) -> bool:
        self.ledger.miss(self.leases.over())
        free = not self._is_due(partition)
        return free and self.ledger.lets_go(self.consistency, partition, self.version)

    def _when_allowed(self, run: str, partition: int, timeout: float) -> bytes | None:
        """Return the parameters when this worker may have them, or None if that takes too long."""
        deadline = time.monotonic() + timeout
        self.leases.hold(partition)  # it is there, and waits
        while not (allowed := self._may_go(partition)) and not self._draining:
            if (left := deadline - time.monotonic()) <= 0:
                break
            self._changed.wait(min(left, self.leases.left))
            self.ledger.refuse_stale(run)
        self.leases.renew(partition)
        if not allowed:
            return None
        self.observe("fetch", partition, self.ledger.next.get(partition, 0), self.version)
        return self._parameters.read_by(partition)

    def _answer(self, status: str, partition: int, w: bytes | None = None) -> Answer:
        self.ledger.bytes_out += 0 if w is None else len(w)
        durable = self.checkpointer.durable_version
        following = self.ledger.next.get(partition, 0)
        return Answer(status, following, self.version, self.generation, durable, w)

    def _snapshot(self) -> Snapshot:
        books = self.ledger.without(self._round).to_dict()
        return Snapshot(
            self.version, *self._parameters.copy(), books, self._parameters.started,
            self.generation, self._lineage, dict(self.ledger.states),
        )  # fmt: skip

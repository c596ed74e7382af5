"""Staging: the server and the workers of a training, put together as the real ones are."""

from __future__ import annotations

from collections.abc import Sequence

from sparkdist.blocks import Array, Block
from sparkdist.client import Compressing, Memory, ParameterClient
from sparkdist.codecs import Codec
from sparkdist.errors import InvalidCall
from sparkdist.methods import Method
from sparkdist.problem import Problem
from sparkdist.server.checkpoint import Checkpointer
from sparkdist.server.coded import rule_of
from sparkdist.server.rules import model_entries
from sparkdist.server.store import Store
from sparkdist.simulate.copies import Loop
from sparkdist.simulate.desk import Desk
from sparkdist.simulate.training import Training
from sparkdist.updaters import Descent
from sparkdist.workers import Units, Whole, Worker, share_penalty

__all__ = ["stage"]


def stage(
    caller: str,
    problem: Problem,
    training: Training,
    method: Method,
    parts: Sequence[Sequence[Block]],
    dtype: str,
) -> tuple[Desk, Loop]:
    """Make the store behind its desk, and what each worker does; ``parts`` are the workers' rows.

    The penalty is added by the workers that descend on their own, and else by the server.

    Raises
    ------
    InvalidCall
        If nobody could add the penalty; and what the parts say themselves.
    """
    layout, (worker, policy, updater, codec) = problem.layout, method
    codec = None if codec is None else codec.bind(layout)
    if policy.in_rounds and updater.remembers_reads:
        said = f"{updater!r} needs pushes that are applied one by one"
        raise InvalidCall(caller, [f"{said}; {policy!r} sums up those of a round"])
    l1, l2, mask = problem.l1, problem.l2, problem.mask
    worker, by_server = share_penalty(caller, worker, updater, l1, l2, mask)
    l1, l2 = (l1, l2) if by_server else (0.0, 0.0)
    descent = Descent(updater, l1, l2, mask if by_server else None, training.clip, training.damping)
    rule = rule_of(descent, layout, dtype, codec)
    store = Store(problem.w0.astype(dtype), rule, policy, Checkpointer(None))
    worker = worker.part_of(_whole(problem, training, method, parts))
    numbers = worker.state_size(layout.size)
    loop: Loop = worker
    if codec is not None:
        coded = _Coded(worker, codec, layout.size, dtype, training)
        numbers, loop = numbers + coded.state_size, coded
    store.begin("simulated", len(parts), state_bytes=8 * numbers)
    return Desk(store, model_entries(layout, dtype)), loop


def _whole(
    problem: Problem, training: Training, method: Method, parts: Sequence[Sequence[Block]]
) -> Whole:
    """What a worker may have to know of the run."""
    blocks = [block for part in parts for block in part]
    return Whole(
        objective=problem.objective,
        n_workers=len(parts),
        n_rows=sum(len(block.y) for block in blocks),
        weight=float(sum(block.weight.sum() for block in blocks)),
        consistency=method.consistency,
        updater=method.updater,
        plain=training.clip is None and method.codec is None and not training.damping,
        l1=problem.l1,
        l2=problem.l2,
        mask=problem.mask,
    )


class _Coded:
    """A worker loop whose gradients go through a codec."""

    def __init__(self, worker: Worker, codec: Codec, size: int, dtype: str, training: Training):
        self._worker, self._codec, self._size, self._dtype = worker, codec, size, dtype
        self._seed, self._memories = training.seed, dict[int, Memory]()
        self._on_host = training.memory == "host" and not codec.rebuildable

    @property
    def state_size(self) -> int:
        """How many numbers of the codec's memory the server may get."""
        if self._on_host:
            return 0
        return sum(part.size for part in self._codec.init(self._size, self._dtype))

    def __call__(self, client: ParameterClient, partition: int, units: Units) -> None:
        """Run the loop with a compressing client."""
        memory = self._memories.setdefault(partition, _Host()) if self._on_host else None
        coding = self._codec, self._size, self._dtype, self._seed, memory
        self._worker(Compressing(client, *coding), partition, units)


class _Host(Memory):
    """A host, which a worker's death leaves as it was."""

    def __init__(self) -> None:
        self._kept: dict[int, Array] = {}

    def keep(self, clock: int, now: Array, following: Array) -> None:
        self._kept = {clock: now.copy(), clock + 1: following.copy()}

    def recall(self, clock: int, size: int) -> Array | None:
        memory = self._kept.get(clock)
        return memory if memory is not None and memory.size == size else None

    def forget(self) -> None:
        self._kept = {}

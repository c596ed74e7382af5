"""Admission: what a push must be like, and what the store gets of it."""

from __future__ import annotations

from sparkdist import wire
from sparkdist.blocks import all_finite
from sparkdist.errors import BadGradient
from sparkdist.server.answer import Answer
from sparkdist.server.incoming import Refusal, count, identifier, number, weight
from sparkdist.server.rules import Push
from sparkdist.server.store import Store

__all__ = ["admit"]


def admit(store: Store, message: wire.Message, n_bytes: int) -> Push | Answer:
    """Return the push in a message of so many bytes; or the answer, if it is left out.

    Raises
    ------
    BadGradient
        For one that can neither be applied nor be left out.
    Refusal, DecodeError
        For one that is no push of this run at all.
    """
    digest, state = message.digest, None
    if most := store.state_bytes:
        message, state = wire.without_state(message)
        if state is not None and state.nbytes > most:
            said = f"the worker's state has {state.nbytes} bytes; it may have {most}"
            raise Refusal(413, "too_large", said)
    fields = message.fields
    run, partition = identifier(fields, "run"), count(fields, "partition")
    clock = count(fields, "clock")
    try:
        if state is not None and not all_finite(state):
            raise BadGradient("the worker's state has NaN or infinite values", "not_finite")
        if fields.get("loss") == wire.NOT_FINITE:
            raise BadGradient("the loss is NaN or infinite", "not_finite")
        gradient = store.rule.admit(message)
    except BadGradient as error:
        left_out = store.reject(run, partition, clock, error.reason)
        if left_out is None:
            said = f"partition {partition}, push {clock}: {error}"
            if error.reason == "not_finite":
                said += "; if it has diverged: a lower rate, or features of similar scales"
            raise BadGradient(said, error.reason) from None
        return left_out
    return Push(
        partition,
        clock,
        count(fields, "base"),
        identifier(fields, "generation"),
        gradient,
        digest,
        weight(fields),
        count(fields, "examples", 0),
        None if fields.get("loss") is None else number(fields, "loss", 0.0),
        state,
        bytes(message.payload) if store.rule.follows else None,
        n_bytes,
    )

"""Codecs on a million float32: bytes, speed, and the network below which each of them pays."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from common import in_turns, report

from sparkdist import codecs
from sparkdist.blocks import Array
from sparkdist.codecs import Codec, stream

SIZE, ROUNDS = 1_000_000, 7
#: Of the vector for the codec that is without loss, which codes what is not 0.
SHARE = 0.01
CODECS: list[Codec] = [
    codecs.float16(),
    codecs.qsgd(),
    codecs.qsgd(4),
    codecs.one_bit(),
    codecs.sign(),
    codecs.top_k(),
    codecs.random_k(),
    codecs.power_sgd(),
    codecs.sparse(),
    codecs.error_feedback(codecs.top_k()),
    codecs.error_feedback(codecs.sign()),
    codecs.ef21(codecs.top_k()),
]


class Contender:
    """A codec, a vector, and the memory of a sender that has sent it before."""

    def __init__(self, codec: Codec, x: Array):
        self.codec, self.x = codec, x
        start = codec.init(x.size, x.dtype)
        self.state = codec.encode(x, start, stream(0, 0, 0))[1]
        self.payload = self.encode()

    def encode(self) -> bytes:
        """Make the bytes of the second push."""
        return self.codec.encode(self.x, self.state, stream(0, 0, 1))[0]

    def decode(self) -> Any:
        """Read them as a server does: sparse where they are."""
        read = self.codec.decode_sparse if self.codec.sparse else self.codec.decode
        return read(self.payload, self.x.size, self.x.dtype)

    def row(self, encode: float, decode: float) -> dict[str, Any]:
        """Give a line of the table; the error is that of a codec alone, without memory."""
        raw, sent = self.x.nbytes, len(self.payload)
        error = "" if self.codec.init(2, np.float32) else self.error()
        return {
            "codec": f"`{self.codec}`",
            "bytes": sent,
            "ratio": round(raw / sent, 1),
            "relative squared error": error,
            "encode, ms": round(encode * 1e3, 1),
            "decode, ms": round(decode * 1e3, 1),
            "encode, MB/s": round(raw / encode / 1e6),
            "decode, MB/s": round(raw / decode / 1e6),
            "pays below, MB/s": round((raw - sent) / (encode + decode) / 1e6),
        }

    def error(self) -> float:
        """Squared error over squared length."""
        y = self.codec.decode(self.payload, self.x.size, self.x.dtype)
        return float(((y - self.x) ** 2).sum() / (self.x**2).sum())


def main() -> None:
    """Measure the codecs in turns; print and write the table."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal(SIZE, np.float32)
    few = np.where(rng.random(SIZE) < SHARE, dense, 0).astype(np.float32)
    contenders = [Contender(c, few if c == codecs.sparse() else dense) for c in CODECS]
    work: dict[str, Callable[[], Any]] = {}
    for contender in contenders:
        work[f"encode {contender.codec}"] = contender.encode
        work[f"decode {contender.codec}"] = contender.decode
    times = {name: statistics.median(found) for name, found in in_turns(work, ROUNDS).items()}
    rows = [c.row(times[f"encode {c.codec}"], times[f"decode {c.codec}"]) for c in contenders]
    notes = [
        f"A Gaussian vector of {SIZE:,} float32, 4 MB; for `sparse` one of whose values"
        f" {SHARE:.0%} are not 0. One thread, medians of {ROUNDS} turns. MB/s are of the 4 MB."
        " A sparse codec is decoded to values and indices.",
        "Pays below: on a network that moves fewer MB/s than that, encoding, sending and decoding"
        " take less time than sending the vector as it is; of the push alone, for what the server"
        " sends back is not compressed. One worker at a time: K workers share the network, and the"
        " server decodes for all of them.",
    ]
    report("codecs", "Codecs on a million float32", rows, notes)


if __name__ == "__main__":
    main()

"""What the arguments of codecs must be, beside :mod:`sparkdist.fields`."""

from __future__ import annotations

from sparkdist.codecs._base import Codec
from sparkdist.fields import whole

__all__ = ["bucket", "contraction"]

#: Coordinates that are scaled together.
bucket = whole(1, 1 << 53)


def contraction(value: object) -> Codec:
    """Check a codec that error feedback may wrap."""
    if not isinstance(value, Codec) or not value.contractive:
        raise ValueError(
            "must be a codec whose error is never larger than the vector, such as top_k(),"
            f" sign() or random_k(scaled=False); it is {value!r}"
        )
    return value

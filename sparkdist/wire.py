"""The bytes on the wire: the one place that knows them.

A frame is a prelude, a header and a payload::

    prelude   32 bytes, little endian
              4s  magic, b"SPKD"
              H   version of this format, 1
              H   zero
              I   length of the header in bytes, at most 64 KiB
              I   zero
              Q   length of the payload in bytes
              Q   XXH3-64 checksum of the header, followed by the payload's XXH3-64 in 8 bytes
    header    JSON: {"fields": {name: scalar}, "arrays": [[name, dtype, shape], ...]}
    payload   the arrays, C order, little endian, one behind the other without gaps

A sparse array is ``[name, dtype, shape, n, index dtype]``: n values, then n indices into the
flattened array.  Length and checksum are inside the frame because HTTP servers have been seen to
hand over half a body.  Nothing is ever unpickled, and nothing is allocated from a size
that was only declared: arrays are views of the bytes that came.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import xxhash

from sparkdist.blocks import Array
from sparkdist.errors import DecodeError

__all__ = [
    "CODE",
    "CONTENT_TYPE",
    "HEADER_LIMIT",
    "MOST",
    "NOT_FINITE",
    "PRELUDE_BYTES",
    "STATE",
    "Entry",
    "Message",
    "Sparse",
    "decode",
    "encode",
    "entries_of",
    "numbers_of",
    "pieces",
    "spans",
    "sparse_if_shorter",
    "without_state",
]

CONTENT_TYPE = "application/x-sparkdist"
HEADER_LIMIT = 64 << 10
PRELUDE_BYTES = 32
#: Name of the array that holds what a codec has made of a gradient.
CODE = "~code"
#: Name of the array, the last of its frame, in which the state of a worker travels.
STATE = "~worker"
#: Largest number in a header, so that sums of them are finite; and what a loss is called beyond.
MOST, NOT_FINITE = 1e300, "not finite"

_PRELUDE = struct.Struct("<4sHHIIQQ")
_MAGIC, _VERSION = b"SPKD", 1
_VALUES = {"<f4": 4, "<f8": 8, "|u1": 1}
_INDICES = {"<i4": 4, "<i8": 8}
_MAX_DIMENSIONS = 8
#: Numbers of up to nine digits, or ranges of them, with commas between.
_SPANS = re.compile(r"(?:[0-9]{1,9}(?:-[0-9]{1,9})?(?:,(?=[0-9])|$))*", re.ASCII)
#: Shorter vectors are sent as they are: the look costs more than the bytes.
_WORTH_A_LOOK = 1024
_WORTH_A_SAMPLE, _SAMPLE = 1 << 14, 1 << 12
# Made once: json.dumps makes a new one for each call with options, and so does json.loads.
_write_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_Scalar: TypeAlias = "str | int | float | bool | None"


class Entry(NamedTuple):
    """What the header says of one array; ``n`` and ``index_dtype`` are None where it is dense."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    n: int | None = None
    index_dtype: str | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes in the payload."""
        if self.n is None or self.index_dtype is None:
            return prod(self.shape) * _VALUES[self.dtype]
        return self.n * (_VALUES[self.dtype] + _INDICES[self.index_dtype])


class Sparse(NamedTuple):
    """Some elements of an array of ``shape``: values at indices into the flattened array."""

    values: Array
    indices: Array
    shape: tuple[int, ...]


class Message(NamedTuple):
    """A decoded frame: scalars, what the arrays are, and their bytes, which are not copied."""

    fields: dict[str, Any]
    entries: tuple[Entry, ...]
    payload: memoryview
    #: XXH3-64 of the payload; 0 where nobody has looked.
    digest: int = 0

    def arrays(self) -> dict[str, Array | Sparse]:
        """The arrays by name, as views of the frame."""
        found: dict[str, Array | Sparse] = {}
        start = 0
        for entry in self.entries:
            count = prod(entry.shape) if entry.n is None else entry.n
            values = np.frombuffer(self.payload, entry.dtype, count, start)
            if entry.index_dtype is None:
                found[entry.name] = values.reshape(entry.shape)
            else:
                after = start + values.nbytes
                indices = np.frombuffer(self.payload, entry.index_dtype, count, after)
                found[entry.name] = Sparse(values, indices, entry.shape)
            start += entry.n_bytes
        return found

    def flat(self, dtype: Any) -> Array:
        """The whole payload as one vector: for dense arrays that are all of one type."""
        return np.frombuffer(self.payload, dtype)


def without_state(message: Message) -> tuple[Message, Array | None]:
    """Take off the state of a worker: the last array, if it is one.

    Raises
    ------
    DecodeError
        If it is no vector of float64.
    """
    if not message.entries or message.entries[-1].name != STATE:
        return message, None
    *others, last = message.entries
    if last != Entry(STATE, "<f8", last.shape) or len(last.shape) != 1:
        raise DecodeError("the state of a worker is one dense vector of float64")
    cut = len(message.payload) - last.n_bytes
    state = np.frombuffer(message.payload, "<f8", offset=cut)
    return Message(message.fields, tuple(others), message.payload[:cut]), state


def entries_of(arrays: Mapping[str, Array | Sparse]) -> tuple[Entry, ...]:
    """Describe arrays as a header does."""
    return tuple(
        Entry(name, array.values.dtype.str, array.shape, array.values.size, array.indices.dtype.str)
        if isinstance(array, Sparse)
        else Entry(name, array.dtype.str, array.shape)
        for name, array in arrays.items()
    )


def sparse_if_shorter(vector: Array) -> Sparse | None:
    """Return the non-zero elements of a vector if they take less than half of its bytes."""
    if vector.size < _WORTH_A_LOOK:
        return None
    item = vector.itemsize + 4
    # A sample tells of most gradients that they are dense, for hardly any of the time.  Its stride
    # is odd: that of the rows of a matrix is often a power of 2.
    sample = vector[:: (vector.size // _SAMPLE) | 1 if vector.size >= _WORTH_A_SAMPLE else 1]
    for looked_at in (sample, vector):
        if np.count_nonzero(looked_at) * item * 2 > looked_at.nbytes:
            return None
    if vector.size > 1 << 31:
        return None
    indices = np.flatnonzero(vector).astype("<i4")
    return Sparse(vector[indices], indices, vector.shape)


def pieces(
    fields: Mapping[str, _Scalar], entries: Sequence[Entry] = (), parts: Iterable[Any] = ()
) -> list[bytes | memoryview[Any]]:
    """Make a frame without copying its arrays: what is to be sent, one behind the other.

    ``parts`` are the arrays' contiguous buffers, in order.

    Raises
    ------
    ValueError
        If the header is longer than 64 KiB, which happens at about 1,000 arrays; for a field that
        is NaN or infinite.
    """
    listed = [[*entry[:3]] if entry.n is None else [*entry] for entry in entries]
    text = _write_json({"fields": fields, "arrays": listed}).encode()
    # Padded to a multiple of 16, so that the arrays of a frame lie as processors like them.
    header = text + b" " * (-len(text) % 16)
    if len(header) > HEADER_LIMIT:
        raise ValueError(f"a header of {len(header)} bytes is over the limit of {HEADER_LIMIT}")
    whole: list[memoryview[Any]] = [memoryview(part) for part in parts]
    views = [view.cast("B") for view in whole if view.nbytes]  # Python casts no empty view
    digest = xxhash.xxh3_64()
    for view in views:
        digest.update(view)
    checksum, length = _checksum(header, digest.intdigest()), sum(view.nbytes for view in views)
    prelude = _PRELUDE.pack(_MAGIC, _VERSION, 0, len(header), 0, length, checksum)
    return [prelude + header, *views]


def encode(
    fields: Mapping[str, _Scalar], entries: Sequence[Entry] = (), parts: Iterable[Any] = ()
) -> bytes:
    """Make a frame of one piece: as :func:`pieces`, with one copy."""
    return b"".join(pieces(fields, entries, parts))


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Read a frame; total: any bytes give a Message or DecodeError.

    Raises
    ------
    DecodeError
        For anything but one whole, undamaged frame.
    """
    frame = memoryview(data).cast("B").toreadonly()
    if len(frame) < PRELUDE_BYTES:
        raise DecodeError(f"{len(frame)} bytes are less than a prelude of {PRELUDE_BYTES}")
    magic, version, zero, n_header, zero2, n_payload, checksum = _PRELUDE.unpack_from(frame)
    if magic != _MAGIC or version != _VERSION or zero or zero2:
        raise DecodeError(f"not a frame of version {_VERSION}: it begins with {bytes(frame[:8])!r}")
    if n_header > HEADER_LIMIT:
        raise DecodeError(f"a header of {n_header} bytes is over the limit of {HEADER_LIMIT}")
    if len(frame) != PRELUDE_BYTES + n_header + n_payload:
        expected = PRELUDE_BYTES + n_header + n_payload
        raise DecodeError(f"the frame has {len(frame)} bytes and says that it has {expected}")
    header = bytes(frame[PRELUDE_BYTES : PRELUDE_BYTES + n_header])
    payload = frame[PRELUDE_BYTES + n_header :]
    if _checksum(header, digest := xxhash.xxh3_64_intdigest(payload)) != checksum:
        raise DecodeError("the checksum does not fit: the frame was damaged on its way")
    fields, entries = _read_header(header)
    if (listed := sum(entry.n_bytes for entry in entries)) != n_payload:
        raise DecodeError(f"the arrays take {listed} bytes, the payload has {n_payload}")
    return Message(fields, entries, payload, digest)


def _checksum(header: bytes, digest: int) -> int:
    """Of a payload only its digest, which the server's books want too: it is hashed once."""
    return xxhash.xxh3_64_intdigest(header + digest.to_bytes(8, "little"))


def spans(numbers: Iterable[int]) -> str:
    """Write whole numbers as text for a field, runs of them in short: ``0-3,7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}-{b}" if a < b else str(a) for a, b in runs)


def numbers_of(text: Any, most: int) -> tuple[int, ...]:
    """Read whole numbers that :func:`spans` wrote; no more than ``most``.

    Raises
    ------
    DecodeError
        If it is something else.
    """
    if not isinstance(text, str) or not _SPANS.fullmatch(text):
        raise DecodeError("a list of whole numbers was expected, such as 0-3,7")
    ends = [[int(end) for end in part.split("-")] for part in text.split(",") if part]
    if sum(end[-1] - end[0] + 1 for end in ends) > most or any(e[-1] < e[0] for e in ends):
        raise DecodeError(f"a list of at most {most} whole numbers was expected")
    return tuple(number for end in ends for number in range(end[0], end[-1] + 1))


def _read_header(text: bytes) -> tuple[dict[str, Any], tuple[Entry, ...]]:
    try:
        header = _read_json(text.decode())
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"the header is not JSON: {error}") from None
    if not isinstance(header, dict) or set(header) != {"fields", "arrays"}:
        raise DecodeError("the header must hold fields and arrays, and nothing else")
    fields, listed = header["fields"], header["arrays"]
    if not isinstance(fields, dict) or not isinstance(listed, list):
        raise DecodeError("fields must be an object and arrays a list")
    if any(isinstance(value, dict | list) for value in fields.values()):
        raise DecodeError("a field must be a string, a number, true, false or null")
    entries = tuple(_read_entry(entry) for entry in listed)
    if len({entry.name for entry in entries}) != len(entries):
        raise DecodeError("two arrays have the same name")
    return fields, entries


def _read_entry(listed: Any) -> Entry:
    if not isinstance(listed, list) or len(listed) not in (3, 5):
        raise DecodeError(f"an array is described by 3 or 5 values, not by {listed!r:.80}")
    name, dtype, shape, n, index = [*listed, None, None][:5]
    if not isinstance(name, str):
        raise DecodeError(f"the name of an array is a string, not {name!r:.80}")
    if not isinstance(dtype, str) or dtype not in _VALUES:
        raise DecodeError(f"array {name!r:.80} has type {dtype!r:.20}; it must be <f4 or <f8")
    if not isinstance(shape, list) or not _is_shape(shape):
        raise DecodeError(f"array {name!r:.80} has shape {shape!r:.80}")
    if len(listed) == 5 and not (_whole(n) and isinstance(index, str) and index in _INDICES):
        raise DecodeError(f"array {name!r:.80} has {n!r:.20} indices of type {index!r:.20}")
    return Entry(name, dtype, tuple(shape), n, index)


def _is_shape(shape: list[Any]) -> bool:
    few = len(shape) <= _MAX_DIMENSIONS and all(map(_whole, shape))
    # NumPy refuses a huge shape though a zero in it leaves no elements.
    return few and _whole(prod(filter(None, shape)))


def _whole(value: Any) -> bool:
    # Sizes stay below 2^53: their products are Python integers, which do not overflow.
    return type(value) is int and 0 <= value < 1 << 53


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


_read_json = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse_constant).decode

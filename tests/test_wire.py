"""The frames on the wire, and what the rules let in: requirements R19 to R23."""

import json
import re
import struct
import sys
import tracemalloc
from math import inf, nan, prod

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from sparkdist import wire
from sparkdist.errors import BadGradient, DecodeError
from sparkdist.layout import Layout
from sparkdist.server.rules import MeanGradient, Push
from sparkdist.updaters import Descent, sgd
from sparkdist.wire import Entry, Message, Sparse, decode, encode, entries_of, sparse_if_shorter

repeatable = settings(derandomize=True, deadline=None, max_examples=100)
every_dtype = pytest.mark.parametrize("dtype", ["<f4", "<f8"])


def frame(header, payload=b"", **changed):
    """A frame by hand, whose checksum fits whatever its header says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    of_payload = struct.pack("<Q", xxhash.xxh3_64_intdigest(payload))
    prelude = {
        **{"magic": b"SPKD", "version": 1, "zero": 0, "n_header": len(text), "zero2": 0},
        **{"n_payload": len(payload), "checksum": xxhash.xxh3_64_intdigest(text + of_payload)},
        **changed,
    }
    return struct.pack("<4sHHIIQQ", *prelude.values()) + text + payload


def listing(*arrays, fields=None):
    """A header with these descriptions of arrays."""
    return {"fields": fields or {}, "arrays": list(arrays)}


def buffers(arrays):
    """The parts that ``encode`` wants."""
    for array in arrays.values():
        parts = (array.values, array.indices) if isinstance(array, Sparse) else [array]
        yield from map(np.ascontiguousarray, parts)


def sent(arrays, **fields):
    """Arrays as they come out at the other end."""
    return decode(encode(fields, entries_of(arrays), buffers(arrays)))


def assert_same(got, expected):
    if isinstance(expected, Sparse):
        assert got.shape == expected.shape
        assert_same(got.values, expected.values)
        assert_same(got.indices, expected.indices)
    else:
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert got.tobytes() == expected.tobytes()  # NaN and -0.0 too


@st.composite
def dense_arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(["<f4", "<f8"])))
    shape = draw(st.lists(st.integers(0, 4), max_size=3).map(tuple))
    size = prod(shape) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


@st.composite
def sparse_arrays(draw):
    size = draw(st.integers(1, 50))
    chosen = draw(st.lists(st.integers(0, size - 1), unique=True, max_size=8))
    dtype = draw(st.sampled_from(["<f4", "<f8"]))
    index_dtype = draw(st.sampled_from(["<i4", "<i8"]))
    values = np.linspace(-1, 1, len(chosen)).astype(dtype)
    return Sparse(values, np.array(chosen, index_dtype), (size,))


models = st.dictionaries(st.text(max_size=5), dense_arrays() | sparse_arrays(), max_size=4)
scalars = (
    st.text(max_size=5)
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
)
SMALL = encode(
    {"run": "run1", "clock": 3, "loss": 0.5},
    entries_of({"W": np.ones((2, 2)), "b": np.ones(1, "<f4")}),
    [np.ones((2, 2)), np.ones(1, "<f4")],
)


# --- what is sent arrives -------------------------------------------------------------------


@repeatable
@given(arrays=models, fields=st.dictionaries(st.text(max_size=5), scalars, max_size=4))
def test_r19_what_is_encoded_is_decoded_bit_for_bit(arrays, fields):
    message = decode(encode(fields, entries_of(arrays), buffers(arrays)))
    assert message.fields == fields
    assert message.entries == entries_of(arrays)
    got = message.arrays()
    assert list(got) == list(arrays)
    for name, array in arrays.items():
        assert_same(got[name], array)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_decoded_into_views_that_cannot_be_written(kind):
    message = decode(kind(SMALL))
    with pytest.raises(ValueError, match="read-only"):
        message.arrays()["W"][0, 0] = 5.0


@every_dtype
def test_dense_arrays_of_one_type_are_one_vector(dtype):
    arrays = {"W": np.arange(6, dtype=dtype).reshape(2, 3), "b": np.array([6, 7], dtype)}
    assert_array_equal(sent(arrays).flat(dtype), np.arange(8))
    assert sent({}).flat(dtype).shape == (0,)


def test_the_frame_that_is_documented_is_the_one_that_is_made():
    listed = listing(["W", "<f8", [2, 2]], ["b", "<f4", [1]], fields={"loss": 0.5})
    message = decode(frame(listed, np.ones(4).tobytes() + np.ones(1, "<f4").tobytes()))
    assert (message.fields, message.entries) == ({"loss": 0.5}, decode(SMALL).entries)
    assert message.payload == decode(SMALL).payload
    magic, version, zero, n_header, zero2, n_payload, _ = struct.unpack_from("<4sHHIIQQ", SMALL)
    assert (magic, version, zero, zero2, n_payload) == (b"SPKD", 1, 0, 0, 36)
    assert n_header % 16 == 0 and len(SMALL) == 32 + n_header + 36


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_field_that_is_not_finite_cannot_be_encoded(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode({"loss": value})


def test_a_header_that_nobody_would_read_cannot_be_encoded():
    with pytest.raises(ValueError, match="over the limit of 65536"):
        encode({}, [Entry(f"{'layer'}{i}", "<f8", (10, 10)) for i in range(3000)])
    encode({}, [Entry(f"layer{i}", "<f8", (10, 10)) for i in range(1000)])


# --- any bytes give a message or a DecodeError ----------------------------------------------


@repeatable
@given(data=st.binary(max_size=200))
def test_r19_any_bytes_give_a_message_or_a_decode_error(data):
    for bytes_ in (data, SMALL[:32] + data, b"SPKD\1\0\0\0" + data):
        with pytest.raises(DecodeError):
            decode(bytes_)


sizes = st.integers(-2, 5) | st.sampled_from([True, 1.5, None, "1", 2**31, 2**52, 2**64])
junk = st.recursive(
    scalars | sizes, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner)
)
described = st.tuples(
    st.sampled_from(["", "W", "b"]) | junk,
    st.sampled_from(["<f4", "<f8", ">f8", "|O"]) | junk,
    st.lists(sizes, max_size=9) | junk,
    *[sizes, st.sampled_from(["<i4", "<i8", "<f8"]) | junk],
).flatmap(lambda entry: st.sampled_from([list(entry[:3]), list(entry), list(entry[:4])]))
headers = st.fixed_dictionaries({"fields": junk, "arrays": st.lists(described, max_size=3) | junk})


@settings(repeatable, max_examples=150)
@given(header=headers | junk, payload=st.binary(max_size=40))
def test_r19_any_header_with_a_good_checksum_gives_arrays_or_a_decode_error(header, payload):
    try:
        message = decode(frame(header, payload))
    except DecodeError:
        return
    arrays = message.arrays()
    assert sum(entry.n_bytes for entry in message.entries) == len(payload)
    assert list(arrays) == [entry.name for entry in message.entries]


@repeatable
@given(text=st.binary(max_size=60), payload=st.binary(max_size=8))
def test_r19_any_header_text_gives_a_decode_error(text, payload):
    with pytest.raises(DecodeError):
        decode(frame(text, payload))


@repeatable
@given(arrays=models, where=st.integers(0), flip=st.integers(1, 255))
def test_r19_a_byte_that_was_changed_is_seen(arrays, where, flip):
    data = bytearray(encode({"run": "a"}, entries_of(arrays), buffers(arrays)))
    data[where % len(data)] ^= flip
    with pytest.raises(DecodeError):
        decode(data)


def test_r19_every_bit_that_flips_is_seen():
    for bit in range(len(SMALL) * 8):
        data = bytearray(SMALL)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecodeError):
            decode(data)


def test_r20_a_frame_that_was_cut_is_never_read():
    for length in range(len(SMALL)):
        with pytest.raises(DecodeError, match="less than a prelude|says that it has"):
            decode(SMALL[:length])


@pytest.mark.parametrize("more", [b"\0", b"\n", SMALL], ids=["NUL", "newline", "frame"])
def test_r20_bytes_behind_or_before_a_frame_are_refused(more):
    for data in (SMALL + more, more + SMALL):
        with pytest.raises(DecodeError):
            decode(data)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"magic": b"PK\3\4"}, "not a frame of version 1"),
        ({"version": 2}, "not a frame of version 1"),
        ({"zero": 1}, "not a frame of version 1"),
        ({"zero2": 1}, "not a frame of version 1"),
        ({"n_payload": 2**64 - 1}, "says that it has 18446744073709551"),
        ({"n_payload": 9}, "says that it has"),
        ({"n_header": 2**32 - 1}, "a header of 4294967295 bytes is over the limit of 65536"),
        ({"n_header": 65537}, "over the limit of 65536"),
        ({"checksum": 0}, "the checksum does not fit"),
    ],
)
def test_r19_a_prelude_that_lies_is_refused(changed, message):
    header = listing(["w", "<f8", [1]])
    decode(frame(header, bytes(8)))
    with pytest.raises(DecodeError, match=message):
        decode(frame(header, bytes(8), **changed))


def test_r19_a_header_of_64_kib_is_read_and_one_byte_more_is_not():
    text = json.dumps(listing()).encode()
    assert decode(frame(text.ljust(64 << 10))).entries == ()
    with pytest.raises(DecodeError, match="a header of 65537 bytes"):
        decode(frame(text.ljust((64 << 10) + 1)))


@pytest.mark.parametrize(
    "array",
    [
        ["w", "<f8", [10**9]],
        ["w", "<f4", [2**52] * 8],
        ["w", "<f8", [10**9], 10**9, "<i8"],
        ["w", "<f8", [4], 2**52, "<i4"],
    ],
    ids=str,
)
def test_r19_nothing_is_allocated_for_a_size_that_is_only_claimed(array):
    data = frame(listing(array), bytes(16))
    with pytest.raises(DecodeError):  # what is built at the first call is not counted
        decode(data)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="the payload has 16|has shape"):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_r19_a_payload_is_not_copied():
    data = encode({}, entries_of({"w": np.zeros(10**6)}), [np.zeros(10**6)])
    tracemalloc.start()
    try:
        assert decode(data).arrays()["w"].size == 10**6
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        b'{"fields": {}, "fields": {}, "arrays": []}',
        b'{"fields": {"run": "a", "run": "b"}, "arrays": []}',
        b'{"fields": {"run": "a", "r\\u0075n": "b"}, "arrays": []}',
        *(
            b'{"fields": {"loss": %s}, "arrays": []}' % constant
            for constant in (b"NaN", b"Infinity", b"-Infinity", b"nan", b"1" * 5000)
        ),
        b'{"fields": {"a": "\xff"}, "arrays": []}',
        b'{"fields": {}, "arrays": []} {}',
        b"",
        b"\0" * 16,
    ],
)
def test_r19_what_two_readers_would_read_differently_is_not_json(text):
    with pytest.raises(DecodeError, match="the header is not JSON"):
        decode(frame(text))


@pytest.mark.parametrize(
    "around",
    [b"%s", b'{"fields": %s, "arrays": []}', b'{"fields": {}, "arrays": %s}']
    + [b'{"fields": {}, "arrays": [["w", "<f8", %s]]}', b'{"fields": {"a": %s}, "arrays": []}'],
)
@pytest.mark.parametrize(("left", "right"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["list", "dict"])
def test_r19_deep_nesting_is_refused_at_every_depth(around, left, right):
    limit = sys.getrecursionlimit()
    deepest = (wire.HEADER_LIMIT - 64) // len(left + right)
    # Around Python's limit some depths are read, and are too deep to be shown in a message.
    for depth in {*range(2, 2 * limit, 97), *range(limit - 120, limit), deepest - 1}:
        text = around % (left * depth + b"1" + right * depth)
        with pytest.raises(DecodeError):
            decode(frame(text))


@pytest.mark.parametrize(
    "header",
    [
        *([], None, 1, "fields", {}, {"fields": {}}, {"arrays": []}),
        {**listing(), "more": 1},
        {"fields": [], "arrays": []},
        {"fields": {}, "arrays": {}},
        {"fields": {"a": []}, "arrays": []},
        {"fields": {"a": {}}, "arrays": []},
    ],
    ids=str,
)
def test_r19_a_header_of_another_form_is_refused(header):
    with pytest.raises(DecodeError, match="must"):
        decode(frame(header))


@pytest.mark.parametrize(
    "dtype", [">f8", ">f4", "=f8", "<i4", "<i8", "|O", "O", "<f2", "<c16", "|V8", "f8", 8, None, []]
)
def test_r21_only_little_endian_floats_are_read(dtype):
    with pytest.raises(DecodeError, match=r"array 'w' has type .*; it must be <f4 or <f8"):
        decode(frame(listing(["w", dtype, [1]]), bytes(8)))


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">i4", "<u4", "<i2", "|O", None, 4])
def test_r23_only_little_endian_integers_are_indices(dtype):
    with pytest.raises(DecodeError, match="array 'w' has 1 indices of type"):
        decode(frame(listing(["w", "<f8", [1], 1, dtype]), bytes(16)))


WRONG_SIZES = [-1, True, False, 1.0, "1", None, [], 2**53, 2**64, 10**400]


@pytest.mark.parametrize("size", WRONG_SIZES, ids=lambda size: f"{size!r:.20}")
def test_r19_sizes_are_integers_from_0_to_2_to_the_53(size):
    for shape in ([size], [0, size]):
        with pytest.raises(DecodeError, match="array 'w' has shape"):
            decode(frame(listing(["w", "<f8", shape]), bytes(8)))
    with pytest.raises(DecodeError, match="array 'w' has .* indices"):
        decode(frame(listing(["w", "<f8", [1], size, "<i4"]), bytes(12)))


@pytest.mark.parametrize(
    "array",
    [
        *("w", [], ["w"], ["w", "<f8"], ["w", "<f8", [1], 1], ["w", "<f8", [1], 1, "<i4", 0]),
        *([None, "<f8", [1]], [1, "<f8", [1]], ["w", "<f8", [1] * 9], {"w": [1]}),
    ],
    ids=str,
)
def test_r19_a_description_of_another_form_is_refused(array):
    with pytest.raises(DecodeError, match="array"):
        decode(frame(listing(array), bytes(8)))


@pytest.mark.parametrize("n_bytes", [0, 8, 15, 17, 24])
@pytest.mark.parametrize(
    "arrays",
    [
        [["w", "<f8", [2]]],
        [["w", "<f4", [2, 2]]],
        [["w", "<f8", []], ["b", "<f4", [2]]],
        [["w", "<f4", [9], 2, "<i4"]],
    ],
    ids=str,
)
def test_r19_arrays_that_do_not_fill_the_payload_are_refused(arrays, n_bytes):
    decode(frame(listing(*arrays), bytes(16)))
    with pytest.raises(DecodeError, match=f"the arrays take 16 bytes, the payload has {n_bytes}$"):
        decode(frame(listing(*arrays), bytes(n_bytes)))


def test_r19_two_arrays_of_one_name_are_refused():
    with pytest.raises(DecodeError, match="two arrays have the same name"):
        decode(frame(listing(["w", "<f8", [1]], ["w", "<f8", [1]]), bytes(16)))


@pytest.mark.parametrize("shape", [[0, 2**52, 2], [2**52, 2**52, 0], [0] + [2**52] * 7])
def test_r19_an_empty_array_of_an_impossible_shape_is_refused(shape):
    """NumPy refuses it, though it has no elements."""
    with pytest.raises(DecodeError, match="array 'w' has shape"):
        decode(frame(listing(["w", "<f8", shape])))


# --- sparse if that is shorter --------------------------------------------------------------


@every_dtype
def test_a_vector_is_sparse_where_that_takes_less_than_half_of_the_bytes(dtype):
    item = np.dtype(dtype).itemsize
    most = 2400 * item // (2 * (item + 4))
    for count, is_sparse in ((0, True), (1, True), (most, True), (most + 1, False), (2400, False)):
        vector = np.zeros(2400, dtype)
        vector[2400 - count :] = np.arange(1, count + 1)
        found = sparse_if_shorter(vector)
        assert (found is not None) == is_sparse
        if found is not None:
            assert (found.values.dtype, found.indices.dtype) == (np.dtype(dtype), np.dtype("<i4"))
            again = np.zeros_like(vector)
            again[found.indices] = found.values
            assert_array_equal(again, vector)
            assert_same(sent({"": found}).arrays()[""], found)


@pytest.mark.parametrize("row", [1, 2, 16, 64, 256, 1000])
def test_a_long_vector_is_sparse_by_a_sample_of_it(row):
    """A fifth of the rows of a matrix, as touched embeddings are; the sample errs by 1 %."""
    for seed in range(20):
        dice = np.random.default_rng(seed)
        touched = np.repeat(dice.permutation(100_000 // row) % 5 == 0, row)
        assert sparse_if_shorter(touched.astype("<f4")) is not None
        assert sparse_if_shorter(1.0 - touched.astype("<f4")) is None


def test_a_sample_does_not_walk_down_one_column():
    """4,096 rows of 256 of which the first column is touched: every 256th element is one of it."""
    column = np.zeros((4096, 256), np.float32)
    column[:, 0] = 1.0
    assert sparse_if_shorter(column.ravel()) is not None


def test_of_a_dense_vector_few_elements_are_looked_at(monkeypatch):
    seen = []
    monkeypatch.setattr(np, "count_nonzero", lambda array: seen.append(array.size) or array.size)
    assert sparse_if_shorter(np.ones(1 << 20)) is None
    assert len(seen) == 1 and seen[0] <= 1 << 12


def test_a_message_has_the_digest_of_its_payload():
    arrays = {"a": np.arange(3.0), "b": np.arange(2.0, dtype=np.float32)}
    found = decode(encode({"x": 1}, entries_of(arrays), arrays.values()))
    joined = b"".join(array.tobytes() for array in arrays.values())
    assert found.digest == xxhash.xxh3_64_intdigest(joined)


def test_a_short_vector_is_sent_as_it_is():
    assert sparse_if_shorter(np.zeros(1023)) is None
    assert sparse_if_shorter(np.zeros(1024)) is not None


def test_r22_sparse_does_not_hide_nan():
    vector = np.zeros(2000)
    vector[7] = nan
    assert_array_equal(sparse_if_shorter(vector).values, [nan])


# --- what the rules let in ------------------------------------------------------------------

MODEL = {"W": np.zeros((2, 3)), "b": np.zeros(3)}
LAYOUT = Layout.of(MODEL)


def mean_gradient(layout=LAYOUT, dtype="<f8", rate=1.0):
    return MeanGradient(Descent(sgd(rate)), layout, dtype)


def sparse(values, indices, shape, index_dtype="<i8"):
    return Sparse(np.array(values, "<f8"), np.array(indices, index_dtype), shape)


W, B = np.ones((2, 3)), np.ones(3)
FITS = sparse([1.0], [0], (2, 3))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        # names
        ({}, "array 'W' is missing; the model has ['W', 'b']"),
        ({"W": W}, "array 'b' is missing"),
        ({"b": B}, "array 'W' is missing"),
        ({"W": FITS}, "array 'b' is missing"),
        ({"": np.ones(9)}, "array 'W' is missing"),
        ({"w": W, "b": B}, "array 'W' is missing"),
        ({"W": W, "b": B, "c": B}, "array 'c' is not in the model"),
        ({"W": W, "b": B, "": B}, "the array is not in the model"),
        ({"b": B, "W": W}, "the arrays come in the order ['b', 'W']; the model's is ['W', 'b']"),
        # shapes: nothing is broadcast, transposed or flattened
        ({"W": W.T, "b": B}, "array 'W' is <f8 of shape (3, 2); the model's is <f8 of shape (2, 3"),
        ({"W": np.ones(6), "b": B}, "array 'W' is <f8 of shape (6,)"),
        ({"W": W[None], "b": B}, "array 'W' is <f8 of shape (1, 2, 3)"),
        ({"W": W[:1], "b": B}, "array 'W' is <f8 of shape (1, 3)"),
        ({"W": W[:, :1], "b": B}, "array 'W' is <f8 of shape (2, 1)"),
        ({"W": W, "b": np.ones(())}, "array 'b' is <f8 of shape ()"),
        ({"W": W, "b": np.ones(1)}, "array 'b' is <f8 of shape (1,)"),
        ({"W": W, "b": np.ones(4)}, "array 'b' is <f8 of shape (4,)"),
        ({"W": W, "b": np.ones(0)}, "array 'b' is <f8 of shape (0,)"),
        ({"W": W, "b": B[:, None]}, "array 'b' is <f8 of shape (3, 1)"),
        ({"W": sparse([1.0], [0], (6,)), "b": B}, "array 'W' is <f8 of shape (6,)"),
        ({"W": sparse([1.0], [0], (3, 2)), "b": B}, "array 'W' is <f8 of shape (3, 2)"),
        ({"W": W, "b": sparse([1.0], [0], (4,))}, "array 'b' is <f8 of shape (4,)"),
        # types
        ({"W": W.astype("<f4"), "b": B}, "array 'W' is <f4 of shape (2, 3)"),
        ({"W": W, "b": B.astype("<f4")}, "array 'b' is <f4 of shape (3,); the model's is <f8"),
        ({"W": W.astype("<f4"), "b": B.astype("<f4")}, "array 'W' is <f4"),
        # indices
        ({"W": sparse([1.0], [-1], (2, 3)), "b": B}, "array 'W' has index -1; it has 6 elements"),
        ({"W": sparse([1.0], [6], (2, 3)), "b": B}, "array 'W' has index 6; it has 6 elements"),
        ({"W": W, "b": sparse([1.0], [3], (3,), "<i4")}, "array 'b' has index 3; it has 3"),
        ({"W": W, "b": sparse([1.0], [-(2**31)], (3,), "<i4")}, "has index -2147483648"),
        ({"W": W, "b": sparse([1.0], [2**31 - 1], (3,), "<i4")}, "has index 2147483647"),
        ({"W": W, "b": sparse([1.0], [2**31], (3,))}, "array 'b' has index 2147483648"),
        ({"W": W, "b": sparse([1.0], [2**63 - 1], (3,))}, "has index 9223372036854775807"),
        ({"W": W, "b": sparse([1.0], [-(2**63)], (3,))}, "has index -9223372036854775808"),
        ({"W": W, "b": sparse([1.0, 1, 1], [0, 9, 1], (3,))}, "array 'b' has index 9"),
        ({"W": W, "b": sparse([1.0, 1.0], [1, 1], (3,))}, "array 'b' has an index twice"),
        ({"W": W, "b": sparse([1.0, 1, 1], [2, 0, 2], (3,))}, "array 'b' has an index twice"),
        ({"W": W, "b": sparse([1.0] * 4, [0, 1, 2, 0], (3,))}, "array 'b' has an index twice"),
        ({"W": FITS, "b": sparse([1.0], [3], (3,))}, "array 'b' has index 3"),
    ],
)
def test_r21_r23_a_push_that_does_not_fit_is_refused_by_name(arrays, message):
    with pytest.raises(BadGradient, match=re.escape(message)) as caught:
        mean_gradient().admit(sent(arrays))
    assert caught.value.reason == "misfit"


@pytest.mark.parametrize("bad", [nan, inf, -inf], ids=str)
@pytest.mark.parametrize("where", [0, 3, 5, 6, 8])
@every_dtype
def test_r22_a_value_that_is_not_finite_is_refused_by_name(bad, where, dtype):
    flat = np.ones(9, dtype)
    flat[where] = bad
    name, element = ("W", where) if where < 6 else ("b", where - 6)
    dense = {"W": flat[:6].reshape(2, 3), "b": flat[6:]}
    indices = np.arange(6, dtype="<i4")
    mixed = {"W": Sparse(flat[:6], indices, (2, 3)), "b": flat[6:]}
    both = {"W": mixed["W"], "b": Sparse(flat[6:], indices[:3], (3,))}
    for arrays in (dense, mixed, both):
        said = f"array '{name}' is {bad} at element {element}, one of 1 values"
        with pytest.raises(BadGradient, match=re.escape(said)) as caught:
            mean_gradient(dtype=dtype).admit(sent(arrays))
        assert caught.value.reason == "not_finite"


@every_dtype
def test_r22_large_values_whose_sum_overflows_are_finite(dtype):
    flat = np.full(9, np.finfo(dtype).max, dtype)
    message = sent({"W": flat[:6].reshape(2, 3), "b": flat[6:]})
    assert_array_equal(mean_gradient(dtype=dtype).admit(message), flat)


def test_the_array_of_a_model_without_names_has_none():
    rule = mean_gradient(Layout.of(np.zeros(3)))
    for array, said in (
        (np.ones(4), "the array is <f8"),
        (np.array([1, nan, 1]), "the array is na"),
    ):
        with pytest.raises(BadGradient, match=said):
            rule.admit(sent({"": array}))


def updated(rule, pushes, w):
    """The parameters after one update with these (arrays, weight)."""
    pushed = [
        Push(partition, 0, 0, "g", rule.admit(sent(arrays)), 0, weight)
        for partition, (arrays, weight) in enumerate(pushes)
    ]
    new_w = np.full_like(w, nan)
    rule.apply(0, pushed, w, rule.init(w), new_w, ())
    return new_w


@every_dtype
def test_r23_a_gradient_changes_the_model_alike_however_it_is_sent(dtype):
    random = np.random.default_rng(0)
    flat = (random.normal(size=9) * (random.random(9) < 0.5)).astype(dtype)
    w = random.normal(size=9).astype(dtype)
    dense = {"W": flat[:6].reshape(2, 3), "b": flat[6:]}
    order = random.permutation(np.flatnonzero(flat[:6]))  # they need not be sorted
    some = {**dense, "W": Sparse(flat[:6][order], order.astype("<i8"), (2, 3))}
    indices = np.flatnonzero(flat[6:]).astype("<i4")
    both = {**some, "b": Sparse(flat[6:][indices], indices, (3,))}
    rule = mean_gradient(dtype=dtype, rate=0.25)
    expected = updated(rule, [(dense, 3.0)], w)
    assert np.any(expected != w)
    for arrays in (some, both):
        assert_array_equal(updated(rule, [(arrays, 3.0)], w), expected)
        twice = [updated(rule, [(dense, 1.0), (other, 2.0)], w) for other in (dense, arrays)]
        assert_array_equal(*twice)


def test_sums_of_pushes_are_divided_once_by_the_weights():
    """10 - 0.5 (6 + 9) / (1 + 4) = 8.5, where the mean of means would give 10 - 0.5 * 4.125."""
    rule = mean_gradient(Layout.of(np.zeros(2)), rate=0.5)
    first, second = {"": np.array([6.0, 0.0])}, {"": np.array([9.0, 5.0])}
    w = np.array([10.0, 10.0])
    assert_array_equal(updated(rule, [(first, 1.0), (second, 4.0)], w), [8.5, 9.5])
    assert_array_equal(updated(rule, [(second, 4.0)], w), [8.875, 9.375])
    late = {"": sparse([5.0], [1], (2,))}
    assert_array_equal(updated(rule, [(first, 1.0), (late, 4.0)], w), [9.4, 9.5])


def test_an_update_does_not_remember_the_one_before():
    rule = mean_gradient(Layout.of(np.zeros(2)))
    part = {"": sparse([1.0], [0], (2,))}
    for _ in range(2):
        assert_array_equal(updated(rule, [(part, 1.0), (part, 1.0)], np.zeros(2)), [-1.0, 0.0])


def test_a_message_holds_what_the_frame_said():
    assert isinstance(decode(SMALL), Message)
    assert decode(SMALL).fields == {"run": "run1", "clock": 3, "loss": 0.5}


# --- lists of numbers in a field ----------------------------------------------------------------


@pytest.mark.parametrize(("numbers", "text"), [
    ((), ""), ((5,), "5"), ((0, 1, 2, 3), "0-3"), ((0, 1, 7, 9, 10), "0-1,7,9-10"),
    ((3, 2, 1), "3,2,1"), ((4, 4), "4,4"), (tuple(range(100_000)), "0-99999"),
])  # fmt: skip
def test_runs_of_numbers_are_written_in_short(numbers, text):
    assert wire.spans(numbers) == text
    assert wire.numbers_of(text, len(numbers)) == numbers


@repeatable
@given(st.lists(st.integers(0, 10**9 - 1), max_size=30))
def test_any_numbers_come_back(numbers):
    assert wire.numbers_of(wire.spans(numbers), 30) == tuple(numbers)


@pytest.mark.parametrize("text", [
    None, 3, "a", "1,", ",1", "1,,2", "-1", "1-", "2-1", "1-2-3", " 1", "1\n", "1" * 10, "\u0661",
    "0-999999999", "0-3,4-9",
])  # fmt: skip
def test_r24_what_is_no_list_of_few_numbers_is_refused(text):
    with pytest.raises(DecodeError):
        wire.numbers_of(text, 9)

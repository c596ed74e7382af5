"""Codecs and their bytes: codes by hand and by their definition, and what is refused."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from sparkdist.codecs import error_feedback, qsgd, random_k, sign, sparse, stream, top_k
from sparkdist.codecs._body import Bits, as_bits, pack
from sparkdist.codecs._elias import omega, omega_length, read_omega
from sparkdist.codecs._places import longest_places, read_places, write_places
from sparkdist.errors import BadGradient, DecodeError
from tests.codec_runs import MEMBERS, vector

repeatable = settings(derandomize=True, deadline=None, max_examples=60)
every_member = pytest.mark.parametrize("codec", MEMBERS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SIZE = 203


def bits_of(parts):
    return "".join("1" if bit else "0" for bit in np.concatenate([*parts, []]))


def codeword(k):
    """Elias's definition: a 0; and while k is not 1, k in binary before it, and k <- digits - 1."""
    word = "0"
    while k > 1:
        word, k = f"{k:b}{word}", k.bit_length() - 1
    return word


# --- Elias omega ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "word"),
    [  # ALGORITHMS.md, 10.1
        (1, "0"),
        (2, "100"),
        (3, "110"),
        (4, "101000"),
        (7, "101110"),
        (8, "1110000"),
        (16, "10100100000"),
    ],
)
def test_k3_codewords_of_elias(number, word):
    assert codeword(number) == word
    assert bits_of(omega(np.array([number]))) == word
    assert omega_length(number) == len(word)


@repeatable
@given(st.lists(st.integers(1, (1 << 53) - 1), max_size=40))
def test_codewords_of_many_numbers_take_the_bits_of_each_alone(numbers):
    bits = bits_of(omega(np.array(numbers, np.int64)))
    assert len(bits) == sum(map(omega_length, numbers))
    assert sorted(bits) == sorted("".join(map(codeword, numbers)))
    read = Bits(memoryview(pack(omega(np.array(numbers, np.int64)))))
    assert_array_equal(read_omega(read, len(numbers), 1 << 53), numbers)
    read.end()


@pytest.mark.parametrize("largest", [2, 100, 10**6, (1 << 53) - 1])
def test_k3_a_hundred_thousand_random_numbers(largest):
    rng = np.random.default_rng(0)
    numbers = np.exp(rng.uniform(0, np.log(largest), 100_000)).astype(np.int64)
    read = Bits(memoryview(pack(omega(numbers))))
    assert_array_equal(read_omega(read, numbers.size, largest), numbers)
    read.end()


@repeatable
@given(st.binary(max_size=60), st.integers(0, 100), st.integers(1, 1 << 60))
def test_any_bits_are_numbers_within_bounds_or_are_refused(data, count, largest):
    try:
        numbers = read_omega(Bits(memoryview(data)), count, largest)
    except DecodeError:
        return
    assert numbers.size == count
    assert count == 0 or 1 <= numbers.min() <= numbers.max() <= largest


@repeatable
@given(st.lists(st.integers(0, (1 << 20) - 1), max_size=30), st.integers(20, 60))
def test_numbers_of_one_width(numbers, width):
    array = np.array(numbers, np.int64)
    bits = as_bits(array, width)
    assert bits_of([bits]) == "".join(f"{number:0{width}b}" for number in numbers)
    assert_array_equal(Bits(memoryview(pack([bits]))).numbers(len(numbers), width), numbers)


# --- places ---------------------------------------------------------------------------------


def rice(gaps, b):
    """Golomb-Rice code by its definition: the low bits of all gaps, then the high ones, unary."""
    low = "".join(f"{gap % 2**b:0{b}b}" if b else "" for gap in gaps)
    return low + "".join("0" * (gap >> b) + "1" for gap in gaps)


def test_places_by_hand():
    """Gaps 0, 5, 12: of b = 0 ... 3 the code has 3 + 17, 6 + 8, 9 + 4, 12 + 1 bits; b = 2 or 3."""
    values, indices = np.array([1.0, 2.0, 3.0]), np.array([0, 6, 19])
    body = write_places(values, indices)
    assert body[:9] == (3).to_bytes(8, "little") + bytes([2])
    assert body[9:33] == values.tobytes()
    # 00 01 00, then 1, 01, 0001
    assert body[33:] == bytes([0b00010010, 0b10001000])


@repeatable
@given(st.sets(st.integers(0, 5000), max_size=80))
def test_places_take_the_shortest_rice_code(chosen):
    indices = np.array(sorted(chosen), np.int64)
    gaps = np.diff(indices, prepend=-1) - 1
    body = write_places(np.zeros(indices.size, np.float32), indices)
    b = body[8]
    packed = body[9 + 4 * indices.size :]
    bits = bits_of([np.unpackbits(np.frombuffer(packed, np.uint8))])
    assert bits.rstrip("0") == rice(gaps.tolist(), b).rstrip("0")
    assert len(rice(gaps.tolist(), b)) == min(len(rice(gaps.tolist(), c)) for c in range(14))
    found = read_places(memoryview(body), 5001, np.dtype(np.float32), 80)
    assert_array_equal(found[1], indices)
    for size in {5001, max(chosen, default=0) + 1}:
        for most in {80, max(1, indices.size)}:
            assert len(body) <= longest_places(most, size, 4)


def test_places_at_random_take_little_more_than_their_entropy():
    """Of each coordinate: -p log2 p - (1 - p) log2 (1 - p) bits, over p."""
    rng = np.random.default_rng(0)
    for p in (0.001, 0.01, 0.1, 0.3):
        indices = np.flatnonzero(rng.random(1_000_000) < p)
        entropy = -np.log2(p) - (1 - p) / p * np.log2(1 - p)
        n_bytes = len(write_places(np.zeros(indices.size, np.float32), indices)) - 9
        assert entropy <= 8 * (n_bytes / indices.size - 4) <= entropy + 0.15


# --- what is refused ------------------------------------------------------------------------


def payload_of(codec, size=SIZE, dtype=np.float64, seed=0):
    x = vector(size, dtype, seed)
    return codec.encode(x, codec.init(size, dtype), stream(seed, 0, 0))[0]


def outcome(codec, payload, size, dtype):
    """Read bytes in every way: they agree, and what they give is finite and of the model's size."""
    try:
        x = codec.decode(payload, size, dtype)
    except (DecodeError, BadGradient) as error:
        with pytest.raises(type(error)):
            codec.decode_sparse(payload, size, dtype)
        return
    assert x.shape == (size,) and x.dtype == dtype and np.isfinite(x).all()
    values, indices = codec.decode_sparse(payload, size, dtype)
    assert (np.diff(indices) > 0).all()
    again = np.zeros(size, dtype)
    again[indices] = values
    assert_array_equal(again, x)
    if codec.rebuildable:
        before = codec.init(size, dtype)
        after = codec.rebuild(payload, size, dtype, before)
        assert [array.shape for array in after] == [array.shape for array in before]


@every_member
@every_dtype
def test_a_payload_that_is_cut_or_has_more_behind_it_is_refused(codec, dtype):
    payload = payload_of(codec, dtype=dtype)
    for n in range(len(payload)):
        with pytest.raises((DecodeError, BadGradient) if n == 4 else DecodeError):
            codec.decode(payload[:n], SIZE, dtype)
    for more in (b"\0", b"\xff", bytes(1000)):
        with pytest.raises(DecodeError):
            codec.decode(payload + more, SIZE, dtype)


@every_member
@every_dtype
@settings(derandomize=True, deadline=None, max_examples=25)
@given(data=st.data())
def test_any_bytes_behind_the_tag_are_a_vector_or_are_refused(codec, dtype, data):
    payload = payload_of(codec, dtype=dtype)
    room = len(payload) + 8
    body = data.draw(st.binary(max_size=room) | st.binary(min_size=room - 12, max_size=room))
    outcome(codec, payload[:4] + body, SIZE, dtype)


@every_member
@every_dtype
@settings(derandomize=True, deadline=None, max_examples=25)
@given(data=st.data())
def test_damaged_payloads_are_a_vector_or_are_refused(codec, dtype, data):
    payload = bytearray(payload_of(codec, dtype=dtype))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(4, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 3))
    outcome(codec, bytes(payload[: len(payload) - cut]), SIZE, dtype)


@every_member
def test_what_was_made_by_another_codec_or_of_another_vector_is_refused(codec):
    payload = payload_of(codec)
    for other in MEMBERS:
        if other != codec:
            with pytest.raises(DecodeError):
                other.decode(payload, SIZE, np.float64)
    for size, dtype in [(SIZE - 1, np.float64), (SIZE + 1, np.float64), (SIZE, np.float32)]:
        with pytest.raises(DecodeError):
            codec.decode(payload, size, dtype)
    with pytest.raises(DecodeError, match="not what"):
        codec.decode(bytes([payload[0] ^ 1]) + payload[1:], SIZE, np.float64)


@every_member
@every_dtype
def test_r24_a_longer_payload_is_refused_before_it_is_read(codec, dtype):
    most = codec.max_bytes(SIZE, dtype)
    with pytest.raises(DecodeError, match=f"makes {most} at most$"):
        codec.decode(payload_of(codec, dtype=dtype) + bytes(most), SIZE, dtype)


def number(n):
    return n.to_bytes(8, "little")


def levels(*words):
    """A body of qsgd: one norm, the count, then codes of distances and of levels, and signs."""
    distances, heights = (np.array(word, np.int64) for word in words)
    signs = np.zeros(distances.size, bool)
    codes = pack([*omega(distances), *omega(heights), signs])
    return number(0) + number(distances.size) + codes


#: Bodies that say what is not so, and what is told of them.
LIES = [
    (sparse(), number(2**63 - 1) + bytes(9), "9223372036854775807 values where 203 are the most"),
    (top_k(), number(3) + bytes(9), "3 values where 2 are the most"),
    (sparse(), number(0) + bytes([60]), "gaps of 60 bits and more among 203 places"),
    (sparse(), number(1) + bytes([8]) + bytes(8) + b"\xff\x80", "place 255 of 203"),
    # 16 gaps of 2^7: it is refused before it is multiplied.
    (sparse(), number(1) + bytes([7]) + bytes(8) + b"\0\0\1", "a place beyond 203"),
    (qsgd(4, 512), number(0) + number(204), "204 values where 203 are the most"),
    # A group of 2 bits says 3, one of 4 bits 15, one of 16 bits 65535.
    (qsgd(4, 512), number(0) + number(1) + b"\xff" * 20, "a number of 65535 bits"),
    (qsgd(4, 512), levels([1], [5]), "a number 5; 4 is the largest"),
    (qsgd(4, 512), levels([204], [1]), "a number 204; 203 is the largest"),
    (qsgd(4, 512), levels([200, 4], [1, 1]), "place 203 of 203"),
    (sign(512), bytes(8) + bytes(25) + b"\1", "bits behind the last code"),
    (random_k(1.0), bytes(8), "1624 bytes are missing"),
]


@pytest.mark.parametrize(("codec", "body", "said"), LIES, ids=lambda value: str(value)[:40])
def test_a_body_that_lies_is_told_so(codec, body, said):
    tag = payload_of(codec)[:4]
    with pytest.raises(DecodeError, match=said):
        codec.decode(tag + body, SIZE, np.float64)


@every_dtype
def test_scales_and_values_that_are_not_finite_are_refused(dtype):
    bad = np.array([np.nan, np.inf, -np.inf], dtype)
    for codec, at in ((sign(512), 4), (qsgd(4, 512), 4), (sparse(), 13), (random_k(), 12)):
        payload = bytearray(payload_of(codec, dtype=dtype))
        for value in bad:
            payload[at : at + value.nbytes] = value.tobytes()
            with pytest.raises(BadGradient) as caught:
                codec.decode(bytes(payload), SIZE, dtype)
            assert caught.value.reason == "not_finite"


def peak_of(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(codec, payload, size):
    try:
        codec.decode(payload, size, np.float32)
    except (DecodeError, BadGradient):
        pass


@every_member
def test_r24_memory_is_bounded_by_the_models_size_whatever_comes(codec):
    """The bound is 60 bytes a parameter: an honest vector, noise, and zeros, as long as allowed."""
    size = 50_000
    honest = payload_of(codec, size, np.float32)
    room = codec.max_bytes(size, np.float32) - 4
    noise = np.random.default_rng(0).bytes(room)
    many = size.to_bytes(8, "little")
    for body in (honest[4:], noise, bytes(room), b"\xff" * room, (many + noise)[:room]):
        assert peak_of(lambda b=body: refused(codec, honest[:4] + b, size)) < 60 * size + 100_000


def test_error_feedback_sends_what_it_wraps_would_send_of_the_first_vector():
    inner = payload_of(top_k(0.1))
    assert payload_of(error_feedback(top_k(0.1)))[4:] == inner[4:]

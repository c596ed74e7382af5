"""Block and Partial: the sums that travel."""

import dataclasses
import functools
import math
import operator
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from sparkdist.blocks import Block, Partial, all_finite, reals

repeatable = settings(derandomize=True, deadline=None, max_examples=50)
numbers = st.floats(-1e6, 1e6)
partials = st.builds(
    lambda loss, grad, weight: Partial(loss, np.array(grad), weight),
    *(numbers, st.lists(numbers, min_size=3, max_size=3), st.floats(0, 1e6)),
)


def assert_close(a, b):
    assert_allclose([a.loss, a.weight, *a.grad], [b.loss, b.weight, *b.grad], rtol=1e-12, atol=1e-6)


def test_partials_add_by_hand():
    total = Partial(1.5, np.array([1.0, 2.0]), 3.0) + Partial(0.5, np.array([10.0, -2.0]), 4.0)
    assert (total.loss, total.weight) == (2.0, 7.0)
    assert_array_equal(total.grad, [11, 0])


@repeatable
@given(partials, partials)
def test_addition_commutes(a, b):
    assert_array_equal((a + b).grad, (b + a).grad)
    assert ((a + b).loss, (a + b).weight) == ((b + a).loss, (b + a).weight)


@repeatable
@given(st.lists(partials, min_size=2, max_size=8), st.integers(0, 2**32 - 1))
def test_the_order_of_a_sum_changes_only_rounding(parts, seed):
    shuffled = np.random.default_rng(seed).permutation(len(parts))
    in_order = functools.reduce(operator.add, parts)
    assert_close(in_order, functools.reduce(operator.add, (parts[i] for i in shuffled)))


@pytest.mark.parametrize("shape", [(3,), (1,), (0,)])
def test_nothing_is_neutral_on_both_sides(shape):
    some = Partial(2.0, np.ones(shape), 5.0)
    for total in (some + Partial.nothing(), Partial.nothing() + some):
        assert (total.loss, total.weight) == (2.0, 5.0)
        assert total.grad.shape == shape
        assert_array_equal(total.grad, np.ones(shape))


def test_the_sum_of_no_rows_is_nothing():
    total = sum([], Partial.nothing()) + Partial.nothing()
    assert (total.loss, total.grad, total.weight) == (0, 0, 0)


def test_nothing_is_small_on_the_wire():
    assert len(pickle.dumps(Partial.nothing())) < 500


def test_adding_leaves_both_sides_as_they_were():
    a, b = Partial(1.0, np.array([1.0]), 1.0), Partial(2.0, np.array([2.0]), 2.0)
    total = a + b
    assert (a.loss, a.grad[0], a.weight) == (1, 1, 1)
    assert (b.loss, b.grad[0], b.weight) == (2, 2, 2)
    assert not np.shares_memory(total.grad, a.grad)


def test_a_partial_is_not_assigned_to():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Partial.nothing().loss = 1.0


def test_gradients_of_other_lengths_do_not_add():
    with pytest.raises(ValueError, match="broadcast"):
        Partial(0.0, np.zeros(3), 0.0) + Partial(0.0, np.zeros(2), 0.0)


def test_partials_and_blocks_pickle():
    partial = pickle.loads(pickle.dumps(Partial(1.0, np.arange(3.0), 2.0)))
    assert (partial.loss, partial.weight) == (1, 2)
    assert_array_equal(partial.grad, [0, 1, 2])
    X, y, weight = pickle.loads(pickle.dumps(Block(np.eye(2), np.ones(2), np.zeros(2))))
    assert_array_equal(X, np.eye(2))
    assert_array_equal([y, weight], [[1, 1], [0, 0]])


@pytest.mark.parametrize("width", [32, 64])
@repeatable
@given(st.data())
def test_a_vector_is_finite_exactly_if_all_its_elements_are(width, data):
    # Any float: NaN, infinities, the largest ones, whose squares and sums overflow, and the least.
    elements = data.draw(st.lists(st.floats(width=width), max_size=20))
    vector = np.array(elements, f"f{width // 8}")
    assert all_finite(vector) is all(map(math.isfinite, elements))
    assert all_finite(vector[::-2]) is all(map(math.isfinite, elements[::-2]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.ma.masked_greater([1.0, 9.0], 5.0), "some of its values are masked"),
        (np.array([1j]), "it holds complex128"),
        ([1 + 2j], "it holds complex128"),
        (np.array(["2026-01-01"], "M8[s]"), "it holds datetime64"),
        (np.array([1], "m8[s]"), "it holds timedelta64"),
        (["word"], "could not convert string"),
        ([[1.0], [1.0, 2.0]], "inhomogeneous"),
    ],
    ids=str,
)
def test_what_numpy_would_make_numbers_without_a_word_is_none(values, said):
    with pytest.raises((TypeError, ValueError), match=said):
        reals(values)


def test_numbers_become_floating_point_and_arrays_of_the_type_stay_themselves():
    own = np.array([1.0, 2.0])
    assert reals(own) is own
    assert reals(own, np.float32).dtype == np.float32
    for values in ([1, 2], (True, 2), np.ma.array([1, 2]), np.array([1, 2], np.int8)):
        found = reals(values)
        assert found.dtype == np.float64 and found.tolist() == [1.0, 2.0]

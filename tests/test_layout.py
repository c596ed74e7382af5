"""Layout: models to flat vectors and back."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from numpy.testing import assert_array_equal

from sparkdist.layout import Layout

repeatable = settings(derandomize=True, deadline=None, max_examples=50)
shapes = st.one_of(st.just(()), array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
named_shapes = st.dictionaries(st.text(max_size=5), shapes, min_size=1, max_size=4)


def filled(shape, start):
    return np.arange(start, start + np.prod(shape, dtype=int), dtype=float).reshape(shape)


def test_arrays_lie_in_the_models_order_and_each_row_after_row():
    model = {"b": np.array([5.0, 6.0]), "W": np.array([[1.0, 2.0], [3.0, 4.0]]), "a": 7.0}
    layout = Layout.of(model)
    assert layout.names == ("b", "W", "a")
    assert layout.size == 7
    assert layout.slices() == {"b": slice(0, 2), "W": slice(2, 6), "a": slice(6, 7)}
    assert_array_equal(layout.flatten(model), [5, 6, 1, 2, 3, 4, 7])
    assert_array_equal(layout.flatten(dict(reversed(model.items()))), [5, 6, 1, 2, 3, 4, 7])


def test_one_array_has_no_name():
    layout = Layout.of([[1, 2, 3], [4, 5, 6]])
    assert (layout.names, layout.size, layout.slices()) == ((), 6, {None: slice(0, 6)})
    assert_array_equal(layout.flatten([[1, 2, 3], [4, 5, 6]]), [1, 2, 3, 4, 5, 6])
    assert_array_equal(layout.unflatten(np.arange(6.0)), [[0, 1, 2], [3, 4, 5]])


def test_memory_order_does_not_matter():
    W = np.asfortranarray([[1.0, 2.0], [3.0, 4.0]])
    assert_array_equal(Layout.of(W).flatten(W), [1, 2, 3, 4])


@repeatable
@given(named_shapes)
def test_unflatten_inverts_flatten(shapes):
    model = {name: filled(shape, 10 * k) for k, (name, shape) in enumerate(shapes.items())}
    layout = Layout.of(model)
    back = layout.unflatten(layout.flatten(model))
    assert list(back) == list(model)
    for name, array in model.items():
        assert back[name].shape == array.shape
        assert_array_equal(back[name], array)


@repeatable
@given(named_shapes)
def test_flatten_inverts_unflatten(shapes):
    layout = Layout.of({name: np.zeros(shape) for name, shape in shapes.items()})
    flat = filled((layout.size,), 0)
    assert_array_equal(layout.flatten(layout.unflatten(flat)), flat)


@repeatable
@given(named_shapes)
def test_slices_cover_the_vector_once(shapes):
    layout = Layout.of({name: np.zeros(shape) for name, shape in shapes.items()})
    seen = np.zeros(layout.size)
    for where in layout.slices().values():
        seen[where] += 1
    assert_array_equal(seen, np.ones(layout.size))


@repeatable
@given(shapes)
def test_one_array_of_any_shape_comes_back(shape):
    layout = Layout.of(np.zeros(shape))
    flat = filled((layout.size,), 0)
    assert layout.unflatten(flat).shape == shape
    assert_array_equal(layout.flatten(layout.unflatten(flat)), flat)


def test_unflatten_gives_views_and_flatten_a_copy():
    layout = Layout.of({"a": np.zeros(2), "b": np.zeros((2, 2))})
    flat = np.zeros(6)
    model = layout.unflatten(flat)
    model["b"][1, 1] = 9.0
    assert flat[5] == 9
    copy = layout.flatten(model)
    copy[0] = 1.0
    assert (flat[0], model["a"][0]) == (0, 0)


@pytest.mark.parametrize("dtype", ["f4", "i8", "?"])
def test_flat_vectors_are_float64(dtype):
    model = {"a": np.ones(3, dtype=dtype)}
    flat = Layout.of(model).flatten(model)
    assert flat.dtype == np.float64
    assert_array_equal(flat, np.ones(3))


def test_layouts_compare_hash_and_pickle_by_names_and_shapes():
    one = Layout.of({"a": np.zeros(3), "b": np.zeros(2)})
    same = Layout.of({"a": np.ones(3), "b": np.ones(2)})
    assert one == same
    assert hash(one) == hash(same)
    assert pickle.loads(pickle.dumps(one)) == one
    for other in ({"b": np.zeros(2), "a": np.zeros(3)}, {"a": np.zeros(3)}, np.zeros(5)):
        assert Layout.of(other) != one


def test_a_missing_array_is_an_error():
    with pytest.raises(KeyError, match="b"):
        Layout.of({"a": np.zeros(3), "b": np.zeros(2)}).flatten({"a": np.zeros(3)})

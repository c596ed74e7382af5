"""Models of any type, taken apart and put together."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from pyspark.cloudpickle import CloudPickler

from sparkdist.skeleton import Skeleton, arrays_of, update_of


def taken_apart(model: object, pickler: type[pickle.Pickler] = pickle.Pickler) -> tuple:
    skeleton = Skeleton.of(model, pickler)
    w = np.full(skeleton.layout.size, np.nan, skeleton.dtype)
    skeleton.read(model, w)
    return skeleton, w


def test_e4_a_dict_of_arrays_comes_back_bit_for_bit():
    # The shape of the original's README: two matrices by name.
    random = np.random.default_rng(0)
    model = {"syn0": random.normal(size=(7, 3)), "syn1": random.normal(size=(7, 3))}
    skeleton, w = taken_apart(model)
    assert w.size == 42
    found = skeleton.build(w)
    assert list(found) == ["syn0", "syn1"]
    for name, array in model.items():
        assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_any_object_is_a_model_and_only_its_float_arrays_are_parameters():
    shared = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = SimpleNamespace(
        first=shared,
        deep=SimpleNamespace(again=shared, more=[np.float64(3.5), np.arange(4.0)]),
        counts=np.arange(5),
        nothing=np.empty((0, 3)),
        words={"a": 1},
    )
    skeleton, w = taken_apart(model)
    assert skeleton.dtypes == ("<f4", "<f8")  # one array is there twice
    assert skeleton.dtype == "<f8"
    found = skeleton.build(w + 1)
    assert_array_equal(found.first, shared + 1)
    assert found.deep.again is found.first
    assert_array_equal(found.deep.more[1], np.arange(4.0) + 1)
    assert found.deep.more[0] == 3.5
    assert_array_equal(found.counts, np.arange(5))
    assert found.nothing.shape == (0, 3)
    assert found.words == {"a": 1}
    assert found.first.dtype == np.float32


def test_arrays_that_are_not_contiguous_are_read_in_their_own_order():
    model = np.arange(12.0).reshape(3, 4).T
    skeleton, w = taken_apart({"m": model})
    assert_array_equal(w, model.ravel())
    assert_array_equal(skeleton.build(w)["m"], model)


def test_a_class_that_only_the_notebook_has_is_taken_apart_with_cloudpickle():
    class Net:
        def __init__(self) -> None:
            self.w = np.ones(3)

    Net.__module__ = "__main__"
    skeleton, w = taken_apart(Net(), CloudPickler)
    model = skeleton.build(2 * w)
    assert_array_equal(model.w, [2, 2, 2])
    skeleton.read(model, w)
    assert_array_equal(w, [2, 2, 2])


def test_arrays_put_in_the_place_of_others_are_read():
    skeleton, w = taken_apart({"a": np.zeros(2), "b": np.zeros(3)})
    model = skeleton.build(w)
    model["b"] = model["b"] + 5
    skeleton.read(model, w)
    assert_array_equal(w, [0, 0, 5, 5, 5])


def test_a_model_that_has_grown_is_told_with_the_cure():
    skeleton, w = taken_apart({"a": np.zeros(2), "memory": 0})
    model = skeleton.build(w)
    model["memory"] = np.ones(2)
    with pytest.raises(ValueError, match=r"give it np.zeros"):
        skeleton.read(model, w)


def test_what_is_built_shares_no_memory_with_the_parameters():
    skeleton, w = taken_apart({"a": np.zeros(2)})
    skeleton.build(w)["a"] += 1
    assert_array_equal(w, [0, 0])


@pytest.mark.parametrize(
    "update",
    [
        {"syn0": np.arange(6.0).reshape(2, 3), "n": 3, 7: np.float32(1.5)},
        [np.arange(3, dtype=np.float32), 2.5],
        np.arange(4.0),
        2.0,
        {},
    ],
)
def test_an_update_comes_back(update):
    found = update_of(arrays_of(update))
    if isinstance(update, dict):
        assert list(found) == [str(name) for name in update]
        found, update = list(found.values()), list(update.values())
    if not isinstance(update, list):
        found, update = [found], [update]
    for one, other in zip(found, update, strict=True):
        assert_array_equal(one, other)


def test_float32_stays_and_all_other_numbers_are_float64():
    arrays = arrays_of({"a": np.float32(1), "b": np.int8([1, 2]), "c": True, "d": 1})
    assert [array.dtype.str for array in arrays.values()] == ["<f4", "<f8", "<f8", "<f8"]


@pytest.mark.parametrize("update", ["text", {"a": None}, [[1, [2]]], {"a": {"b": 1}}, 1j])
def test_an_update_of_anything_else_is_refused(update):
    with pytest.raises(TypeError, match="an update is an array or a number"):
        arrays_of(update)

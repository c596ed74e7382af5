"""The embedded data sets are the published ones."""

import functools

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sparkdist import datasets
from sparkdist.errors import InvalidCall

load = functools.cache(datasets.load)

# Rows and incomes above 50,000 as UCI publishes them for adult.data and adult.test; the ones
# as counted by: zcat train.libsvm.gz | grep -o : | wc -l
PUBLISHED = [("train", 32561, 7841, 451592), ("test", 16281, 3846, 225731)]


@pytest.mark.parametrize(("split", "n_rows", "n_positive", "n_ones"), PUBLISHED)
def test_a9a_has_the_published_counts(split, n_rows, n_positive, n_ones):
    X, y = load("a9a", split)
    assert X.shape == (n_rows, 123)
    assert y.shape == (n_rows,)
    assert (y == 1).sum() == n_positive
    assert (y == -1).sum() == n_rows - n_positive
    assert X.nnz == n_ones
    assert_array_equal(X.data, np.ones(n_ones))


def test_a9a_has_13_9_ones_a_row():
    X, _ = load("a9a", "train")
    assert round(X.nnz / X.shape[0], 1) == 13.9
    assert (X.sum(axis=1).max(), X.sum(axis=1).min()) == (14, 11)


def test_the_first_row_of_a9a_is_the_published_one():
    # zcat train.libsvm.gz | head -1
    row = "-1 3:1 11:1 14:1 19:1 39:1 42:1 55:1 64:1 67:1 73:1 75:1 76:1 80:1 83:1"
    label, *pairs = row.split()
    X, y = load("a9a", "train")
    assert y[0] == float(label)
    assert_array_equal(X[[0]].indices, [int(pair.split(":")[0]) - 1 for pair in pairs])


@pytest.mark.parametrize("split", ["train", "test"])
def test_a9a_is_canonical_csr_of_float64(split):
    X, y = load("a9a", split)
    assert X.format == "csr"
    assert (X.dtype, y.dtype, X.indices.dtype, X.indptr.dtype) == ("f8", "f8", "i4", "i4")
    assert X.has_canonical_format
    assert 0 <= X.indices.min() <= X.indices.max() < 123


def test_the_default_is_the_training_rows_of_a9a():
    X, y = datasets.load()
    assert (X != load("a9a", "train")[0]).nnz == 0
    assert_array_equal(y, load("a9a", "train")[1])


def test_names_are_those_that_load():
    assert datasets.names() == ["a9a"]


@pytest.mark.parametrize(
    ("name", "split"), [("mnist", "train"), ("a9a", "valid"), ("../x", "test")]
)
def test_an_unknown_name_or_split_says_what_there_is(name, split):
    message = rf"there is no '{name}' '{split}'; there are \['a9a'\], each with train and test"
    with pytest.raises(InvalidCall, match=message):
        datasets.load(name, split)

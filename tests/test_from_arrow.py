"""Arrow batches to blocks: every type, sliced or whole, and every null."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_array_equal

from sparkdist.spark.data.from_arrow import Columns, feature_matrix
from sparkdist.spark.data.ingest import BadRow
from tests.conftest import stack

repeatable = settings(derandomize=True, deadline=None, max_examples=100)
DOUBLES = pa.list_(pa.float64())


def vectors(rows, *, null_fields=False):
    """The four fields of Spark's vectors; a row is None, dense [...], or sparse (d, [i], [v]).

    In Spark's own files a dense vector has no size and no indices: ``null_fields``.
    """
    fields = []
    for row in rows:
        if row is None:
            fields.append((None, None, None, None))
        elif isinstance(row, tuple):
            fields.append((0, *row))
        else:
            fields.append((1, None, None, row) if null_fields else (1, None, [], row))
    kinds = (pa.int8(), pa.int32(), pa.list_(pa.int32()), DOUBLES)
    columns = zip(*fields, strict=True)
    return [pa.array(list(c), kind) for c, kind in zip(columns, kinds, strict=True)]


def dense(X):
    return X if isinstance(X, np.ndarray) else X.toarray()


def refusal(kind, columns):
    with pytest.raises(BadRow) as caught:
        feature_matrix(kind, columns)
    return caught.value.row, caught.value.what


# --- vectors --------------------------------------------------------------------------------


def test_dense_vectors_become_an_array():
    X = feature_matrix("vector", vectors([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert isinstance(X, np.ndarray)
    assert_array_equal(X, [[1, 2], [3, 4], [5, 6]])


def test_sparse_vectors_stay_sparse():
    X = feature_matrix("vector", vectors([(3, [0, 2], [1.0, 2.0]), (3, [], []), (3, [1], [3.0])]))
    assert (X.format, X.nnz, X.indices.dtype, X.indptr.dtype) == ("csr", 3, np.int32, np.int32)
    assert_array_equal(X.toarray(), [[1, 0, 2], [0, 0, 0], [0, 3, 0]])


@pytest.mark.parametrize("null_fields", [False, True])
def test_a_dense_vector_among_sparse_ones_has_every_index(null_fields):
    rows = [[1.0, 2.0, 3.0], (3, [1], [4.0]), (3, [], []), [0.0, 5.0, 0.0]]
    X = feature_matrix("vector", vectors(rows, null_fields=null_fields))
    assert X.nnz == 7
    assert_array_equal(X.toarray(), [[1, 2, 3], [0, 4, 0], [0, 0, 0], [0, 5, 0]])


def as_vector(row, sparse):
    where = np.flatnonzero(row)
    return (len(row), where.tolist(), row[where].tolist()) if sparse else row.tolist()


@repeatable
@given(
    X=arrays("f8", array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(-2, 2)),
    data=st.data(),
    null_fields=st.booleans(),
)
def test_any_mix_of_vectors_in_any_slice_is_the_matrix_that_made_it(X, data, null_fields):
    n = len(X)
    sparse = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    start = data.draw(st.integers(0, n - 1))
    length = data.draw(st.integers(1, n - start))
    rows = [as_vector(row, s) for row, s in zip(X, sparse, strict=True)]
    columns = vectors(rows, null_fields=null_fields)
    found = feature_matrix("vector", [column.slice(start, length) for column in columns])
    assert isinstance(found, np.ndarray) == (not any(sparse[start : start + length]))
    assert_array_equal(dense(found), X[start : start + length])


@pytest.mark.parametrize(
    ("rows", "row", "what"),
    [
        ([[1.0], None, [2.0]], 1, "the features are null"),
        ([(1, [0], [1.0]), [1.0], None], 2, "the features are null"),
        ([[1.0, None], [1.0, 2.0]], 0, "a null in the features"),
        ([(2, [], []), [1.0, None]], 1, "a null in the features"),
        ([(2, [0], [1.0]), (2, [0, 1], [1.0, None])], 1, "a null in the features"),
        ([(2, [0], [1.0]), (2, [None], [1.0])], 1, "a null in the features"),
        ([(2, [0], [1.0]), (2, None, [1.0])], 1, "the features are null"),
        ([(2, [0], [1.0]), (2, [0], None)], 1, "the features are null"),
        ([[1.0, 2.0], [1.0]], 1, "has 1 features, the rows before it have 2"),
        ([(2, [], []), (2, [], []), (4, [], [])], 2, "has 4 features, the rows before it have 2"),
        ([(2, [0], [1.0]), [1.0, 2.0, 3.0]], 1, "has 3 features, the rows before it have 2"),
        ([(2, [], []), (2, [0, 2], [1.0, 1.0])], 1, "has an index 2 of 2 features"),
        ([(2, [-1], [1.0]), (2, [], [])], 0, "has an index -1 of 2 features"),
        ([(2, [0], [1.0, 2.0]), (2, [0, 1], [1.0])], 0, "has 1 indices for 2 values"),
    ],
)
def test_a_vector_that_cannot_be_used_is_named_in_any_slice(rows, row, what):
    assert refusal("vector", vectors(rows)) == (row, what)
    padded = vectors([(9, [8], [1.0]), *rows, (9, [8], [1.0])])
    assert refusal("vector", [c.slice(1, len(rows)) for c in padded]) == (row, what)


# --- lists ----------------------------------------------------------------------------------


def required(kind):
    return pa.field("item", kind, nullable=False)


@pytest.mark.parametrize(
    "kind",
    [
        DOUBLES,
        pa.large_list(pa.float64()),
        pa.list_(pa.float64(), 2),
        pa.list_(required(pa.float64()), 2),
        pa.list_(pa.float32()),
        pa.list_(pa.int16()),
        pa.large_list(pa.uint8()),
        pa.list_(pa.decimal128(5, 1)),
    ],
    ids=str,
)
def test_lists_of_numbers_are_rows_in_any_slice(kind):
    number = Decimal if pa.types.is_decimal(kind.value_type) else int
    column = pa.array([[number(2 * i), number(2 * i + 1)] for i in range(5)], kind)
    expected = np.arange(10).reshape(5, 2)
    for cut in (slice(0, 5), slice(1, 4), slice(4, 5)):
        X = feature_matrix("array", [column[cut]])
        assert X.dtype == np.float64
        assert_array_equal(X, expected[cut])


def test_lists_of_booleans_are_zeros_and_ones():
    X = feature_matrix("array", [pa.array([[True, False], [False, True]])])
    assert_array_equal(X, [[1, 0], [0, 1]])


@pytest.mark.parametrize("kind", [DOUBLES, pa.large_list(pa.float64()), pa.list_(pa.float64(), 2)])
@pytest.mark.parametrize(
    ("rows", "row", "what"),
    [
        ([[1.0, 2.0], None, None], 1, "the features are null"),
        ([[1.0, 2.0], [3.0, 4.0], [None, 5.0]], 2, "a null in the features"),
        ([[1.0, None], [3.0, 4.0]], 0, "a null in the features"),
    ],
)
def test_a_null_in_a_list_is_named_in_any_slice(kind, rows, row, what):
    assert refusal("array", [pa.array(rows, kind)]) == (row, what)
    assert refusal("array", [pa.array([None, *rows, None], kind)[1 : len(rows) + 1]]) == (row, what)


@pytest.mark.parametrize("kind", [DOUBLES, pa.large_list(pa.float64())])
def test_lists_of_different_length_are_named(kind):
    column = pa.array([[0.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0, 7.0]], kind)
    what = "has 3 features, the rows before it have 2"
    assert refusal("array", [column[1:]]) == (2, what)


# --- columns --------------------------------------------------------------------------------

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("kind", [*INTEGERS, "float16", "float32", "float64"])
def test_columns_of_every_number_become_doubles_in_any_slice(kind):
    values = np.array([3, 0, 1, 2], dtype=kind)
    X = feature_matrix("columns", [pa.array(values)[1:], pa.array(values[::-1].copy())[1:]])
    assert X.dtype == np.float64
    assert_array_equal(X, [[0, 1], [1, 0], [2, 3]])


def test_columns_of_booleans_and_decimals_become_doubles():
    columns = [pa.array([True, False]), pa.array([Decimal("1.25"), Decimal("-0.50")])]
    assert_array_equal(feature_matrix("columns", columns), [[1, 1.25], [0, -0.5]])


def test_whole_numbers_above_2_to_the_53_are_rounded():
    X = feature_matrix("columns", [pa.array([2**60 + 1, -(2**53) - 1])])
    assert_array_equal(X, [[2.0**60], [-(2.0**53)]])


@pytest.mark.parametrize("kind", ["int64", "float64", "bool"])
def test_a_null_in_a_column_is_named_in_any_slice(kind):
    column = pa.array([None, 1, 0, None, 1]).cast(kind)
    whole = pa.array([1.0, 2.0, 3.0, 4.0])
    assert refusal("columns", [whole, column[1:]]) == (2, "a feature is null")


# --- batches --------------------------------------------------------------------------------


def batch(*columns):
    return pa.RecordBatch.from_arrays(list(columns), [f"c{i}" for i in range(len(columns))])


def test_a_batch_is_a_block_and_one_without_rows_is_none():
    one = batch(pa.array([[1.0], [2.0]], DOUBLES), pa.array([0, 1]), pa.array([0.5, 2.0]))
    blocks = list(Columns("array", 1, has_weight=True).blocks([one, one[:0], one[1:]]))
    assert [len(block.y) for block in blocks] == [2, 1]
    X, y, weight = stack(blocks)
    assert_array_equal(X, [[1], [2], [2]])
    assert_array_equal([y, weight], [[0, 1, 1], [0.5, 2, 2]])
    assert y.dtype == weight.dtype == np.float64


def test_without_a_weight_every_row_weighs_1():
    columns = [pa.array([1, 2, 3]), pa.array([4, 5, 6]), pa.array([True, False, True])]
    (block,) = Columns("columns", 2).blocks([batch(*columns)])
    assert_array_equal(block.X, [[1, 4], [2, 5], [3, 6]])
    assert_array_equal([block.y, block.weight], [[1, 0, 1], [1, 1, 1]])


@pytest.mark.parametrize(("at", "what"), [(4, "the label is null"), (5, "the weight is null")])
def test_a_null_label_or_weight_is_named(at, what):
    columns = [*vectors([[1.0], [2.0]]), pa.array([0.0, 1.0]), pa.array([1.0, 1.0])]
    columns[at] = pa.array([0.0, None])
    with pytest.raises(BadRow) as caught:
        list(Columns("vector", 4, has_weight=True).blocks([batch(*columns)]))
    assert (caught.value.row, caught.value.what) == (1, what)

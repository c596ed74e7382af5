"""Ingest: rows are checked, cut and counted; a bad row is named."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.sparse import csr_array

from sparkdist.blocks import Block
from sparkdist.spark.data import ingest
from sparkdist.spark.data.ingest import BadRow, keep
from sparkdist.spark.data.residency import open_blocks
from tests.conftest import random_block, stack

repeatable = settings(derandomize=True, deadline=None, max_examples=50)
INF, NAN = np.inf, np.nan
KINDS = pytest.mark.parametrize("to_matrix", [np.asarray, csr_array], ids=["dense", "csr"])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    return tmp_path


def kept(handle):
    with open_blocks(handle.place) as blocks:
        return list(blocks)


def rows(n, d=3):
    """Rows that are numbered by their label; every second one has no feature but 0."""
    X = np.arange(n * d, dtype=float).reshape(n, d)
    X[::2] = 0.0
    return Block(X, np.arange(float(n)), np.ones(n))


def is_empty(folder):
    return not any(path.is_file() for path in folder.rglob("*"))


# --- cutting --------------------------------------------------------------------------------


@repeatable
@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 3000), st.integers(1, 300))
def test_blocks_are_equal_and_as_few_as_fit(n, d, block_bytes, block_rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "BLOCK_BYTES", block_bytes)
        patch.setattr(ingest, "_BLOCK_ROWS", block_rows)
        blocks = kept(keep([rows(n, d)], "data", 0))
    sizes = [len(block.y) for block in blocks]
    assert max(sizes) - min(sizes) <= 1
    fits = max(1.0, min(block_rows, block_bytes / (8 * d)))  # rows; one row is never cut
    assert max(sizes) < fits + 1
    assert len(sizes) == 1 or n / (len(sizes) - 1) > fits
    for a, b in zip(stack(blocks), rows(n, d), strict=True):
        assert_array_equal(a, b)


def test_a_block_is_as_large_as_the_constant_says():
    n = 7 * ingest.BLOCK_BYTES // (2 * 8 * 100)  # three and a half blocks
    blocks = kept(keep([Block(np.ones((n, 100)), np.ones(n), np.ones(n))], "data", 0))
    assert [len(block.y) for block in blocks] == pytest.approx([n / 4] * 4, abs=1)


def ones_in_a_column(n, d):
    """n rows with a 1 in the first of d columns, in indices of 4 bytes."""
    indices, indptr = np.zeros(n, dtype=np.int32), np.arange(n + 1, dtype=np.int32)
    return csr_array((np.ones(n), indices, indptr), shape=(n, d))


def test_a_sparse_block_has_at_least_as_many_bytes_as_a_gradient(monkeypatch):
    monkeypatch.setattr(ingest, "BLOCK_BYTES", 120)
    X = ones_in_a_column(30, d=30)  # 360 bytes, and a gradient of 240
    blocks = kept(keep([Block(X, np.ones(30), np.ones(30))], "data", 0))
    assert [block.X.nnz for block in blocks] == [15, 15]


def test_of_sparse_rows_values_and_indices_count(monkeypatch):
    monkeypatch.setattr(ingest, "BLOCK_BYTES", 120)
    X = ones_in_a_column(30, d=5)  # 30 values of 12 bytes: three blocks
    blocks = kept(keep([Block(X, np.ones(30), np.ones(30))], "data", 0))
    assert [block.X.nnz for block in blocks] == [10, 10, 10]
    assert_array_equal(stack(blocks)[0], X.toarray())


def test_rows_without_values_are_kept():
    X = csr_array((5, 3))
    (block,) = kept(keep([Block(X, np.arange(5.0), np.ones(5))], "data", 0))
    assert block.X.shape == (5, 3)
    assert_array_equal(block.y, np.arange(5))


@KINDS
def test_chunks_follow_one_another(to_matrix):
    whole = rows(10)
    cuts = [slice(0, 3), slice(3, 3), slice(3, 10)]  # the middle one is empty
    chunks = [Block(to_matrix(whole.X[cut]), whole.y[cut], whole.weight[cut]) for cut in cuts]
    blocks = kept(keep(chunks, "data", 0))
    assert [len(block.y) for block in blocks] == [3, 7]
    for a, b in zip(stack(blocks), whole, strict=True):
        assert_array_equal(a, b)


# --- the handle -----------------------------------------------------------------------------


def test_the_handle_sums_up_the_partition(folder):
    chunks = [
        Block(np.ones((2, 3)), np.array([1.0, 0.0]), np.array([1.0, 1.0])),
        Block(np.ones((3, 3)), np.array([2.0, 0.0, 1.0]), np.array([1.0, 0.5, 0.0])),
    ]
    handle = keep(iter(chunks), "data", 7)
    assert handle == (("data", 7, str(folder)), 2, 5, 3, 3.5, False, (0.0, 1.0, 2.0), None)


def test_weights_are_units_only_if_all_are():
    assert keep([rows(4), rows(4)], "data", 0).unit_weights
    other = rows(4)._replace(weight=np.array([1, 1, 1, 1 + 1e-15]))
    assert not keep([other, rows(4)], "data", 0).unit_weights


@pytest.mark.parametrize(("n", "listed"), [(1, True), (64, True), (65, False)])
def test_up_to_64_labels_are_listed(n, listed):
    labels = np.arange(n) - 5.0
    chunks = [Block(np.ones((n, 1)), y, np.ones(n)) for y in (labels, labels[::-1])]
    assert keep(chunks, "data", 0).labels == (tuple(labels) if listed else None)


def test_labels_are_counted_over_all_chunks():
    chunks = [Block(np.ones((40, 1)), np.arange(40.0) + k, np.ones(40)) for k in (0, 30, 0)]
    assert keep(chunks[:1], "data", 0).labels == tuple(range(40))
    assert keep(chunks, "data", 0).labels is None  # 70 of them


@pytest.mark.parametrize("chunks", [[], [rows(0)]], ids=["no chunk", "no row"])
def test_an_empty_partition_is_no_problem(folder, chunks):
    handle = keep(chunks, "data", 2)
    assert handle == (("data", 2, str(folder)), 0, 0, None, 0.0, True, (), None)
    assert kept(handle) == []


def test_a_handle_survives_json():
    handle = keep([random_block(5, 3, seed=0)], "data", 1)
    assert json.loads(json.dumps(handle)) == [list(handle[0]), *handle[1:6], [0, 1], None]


# --- bad rows -------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("row", [0, 2, 4])
@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_feature_that_is_not_finite_is_found(folder, to_matrix, row, column, value):
    bad = rows(5)
    bad.X[row, column] = value
    if row < 4:
        bad.X[4, 2] = -value  # a later one, which cancels it in a sum
    chunks = [block._replace(X=to_matrix(block.X)) for block in (rows(4), bad)]
    handle = keep(chunks, "data", 3)
    assert handle.problem == f"partition 3, row {4 + row}: a feature is NaN or infinite"
    assert is_empty(folder)


@pytest.mark.parametrize("row", [0, 2, 4])
@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("y", NAN, "a label is NaN or infinite"),
        ("y", -INF, "a label is NaN or infinite"),
        ("weight", NAN, "a weight is NaN or infinite"),
        ("weight", INF, "a weight is NaN or infinite"),
        ("weight", -0.5, "the weight is negative: -0.5"),
    ],
)
def test_a_label_or_weight_that_cannot_be_is_found(folder, row, field, value, what):
    bad = rows(5)
    getattr(bad, field)[row] = value
    handle = keep([rows(4), bad], "data", 3)
    assert handle.problem == f"partition 3, row {4 + row}: {what}"
    assert is_empty(folder)


def test_the_first_of_several_negative_weights_is_named():
    bad = rows(5)._replace(weight=np.array([1.0, 0.0, -2.0, 1.0, -3.0]))
    assert keep([bad], "data", 0).problem == "partition 0, row 2: the weight is negative: -2"


@KINDS
def test_rows_of_another_length_are_found(folder, to_matrix):
    chunks = [Block(to_matrix(np.ones((4, d))), np.ones(4), np.ones(4)) for d in (2, 2, 3)]
    what = "has 3 features, the rows before it have 2"
    assert keep(chunks, "data", 0).problem == f"partition 0, row 8: {what}"
    assert is_empty(folder)


def test_a_row_that_the_converter_refuses_is_counted_from_the_partitions_first(folder):
    def chunks():
        yield rows(4)
        yield rows(6)
        raise BadRow(2, "is a joke")

    assert keep(chunks(), "data", 5).problem == "partition 5, row 12: is a joke"
    assert is_empty(folder)


def test_an_error_of_another_kind_is_raised_and_leaves_nothing(folder):
    def chunks():
        yield rows(4)
        raise RuntimeError("the disk of the source is broken")

    with pytest.raises(RuntimeError, match="the source"):
        keep(chunks(), "data", 0)
    assert is_empty(folder)


@KINDS
@pytest.mark.parametrize("sign", [1, -1])
def test_finite_numbers_whose_sum_overflows_are_accepted(to_matrix, sign):
    X, y = np.full((2, 2), sign * 1e308), np.full(2, sign * 1.7e308)
    handle = keep([Block(to_matrix(X), y, np.ones(2))], "data", 0)
    assert (handle.problem, handle.n_rows) == (None, 2)
    found = stack(kept(handle))
    assert_array_equal(found[0], X)
    assert_array_equal(found[1], y)


def test_a_row_of_weight_zero_is_accepted():
    handle = keep([rows(2)._replace(weight=np.array([0.0, 1.0]))], "data", 0)
    assert (handle.problem, handle.weight_sum) == (None, 1.0)

"""Elements of an RDD to blocks: every form of a row, and every sentence of a bad one."""

from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pyspark.ml import linalg as ml
from pyspark.mllib import linalg as mllib
from pyspark.mllib.regression import LabeledPoint
from pyspark.sql import Row
from scipy import sparse

from sparkdist.spark.data import from_rows
from sparkdist.spark.data.from_rows import blocks_of_elements
from sparkdist.spark.data.ingest import BadRow
from tests.conftest import stack

repeatable = settings(derandomize=True, deadline=None, max_examples=100)
X3 = [[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0]]


def sparse_vector(vectors):
    def make(row):
        where = np.flatnonzero(row)
        return vectors.sparse(len(row), where.tolist(), np.asarray(row)[where].tolist())

    return make


DENSE = {
    "tuple": tuple,
    "list": list,
    "list of ints": lambda row: [int(v) for v in row],
    "array": np.array,
    "float32": lambda row: np.array(row, dtype=np.float32),
    "ml dense": ml.Vectors.dense,
    "mllib dense": mllib.Vectors.dense,
}
SPARSE = {
    "ml sparse": sparse_vector(ml.Vectors),
    "mllib sparse": sparse_vector(mllib.Vectors),
    "csr row": lambda row: sparse.csr_array([row]),
    "csr matrix row": lambda row: sparse.csr_matrix([row]),
    "coo vector": lambda row: sparse.coo_array(np.array(row)),
    "csc column": lambda row: sparse.csc_matrix(np.array([row]).T),
    "lil of ints": lambda row: sparse.lil_array([[int(v) for v in row]]),
}
FORMS = DENSE | SPARSE
forms = pytest.mark.parametrize("form", FORMS)


def blocks(*elements):
    return list(blocks_of_elements(elements))


def refusal(*elements):
    """Where and why elements are refused; rows that were given before count."""
    before = 0
    with pytest.raises(BadRow) as caught:
        for block in blocks_of_elements(elements):
            before += len(block.y)
    return before + caught.value.row, caught.value.what


# --- rows -----------------------------------------------------------------------------------


@forms
def test_pairs_weigh_1(form):
    (block,) = blocks(*((FORMS[form](x), k) for k, x in enumerate(X3)))
    assert sparse.issparse(block.X) == (form in SPARSE)
    X, y, weight = stack([block])
    assert_array_equal(X, X3)
    assert_array_equal([y, weight], [[0, 1, 2], [1, 1, 1]])
    assert X.dtype == y.dtype == weight.dtype == np.float64


@forms
def test_triples_carry_a_weight(form):
    X, y, weight = stack(blocks(*((FORMS[form](x), k, 0.5 * k) for k, x in enumerate(X3))))
    assert_array_equal(X, X3)
    assert_array_equal([y, weight], [[0, 1, 2], [0, 0.5, 1]])


def test_a_pair_may_be_a_list_and_its_label_of_any_number_type():
    elements = [[[1.0], True], ([2.0], np.float32(0.5)), ((3,), np.int64(7)), ([4], np.array(8))]
    assert_array_equal(stack(blocks(*elements))[1], [1, 0.5, 7, 8])


@pytest.mark.parametrize("make", [mllib.Vectors.dense, sparse_vector(mllib.Vectors)])
def test_labeled_points_are_rows(make):
    X, y, weight = stack(blocks(*(LabeledPoint(k, make(x)) for k, x in enumerate(X3))))
    assert_array_equal(X, X3)
    assert_array_equal([y, weight], [[0, 1, 2], [1, 1, 1]])


def test_rows_of_a_dataframe_are_taken_by_name():
    weighted = Row("label", "weight", "features")
    elements = [Row(label=1.0, features=[5.0]), weighted(0.0, 0.25, [6.0])]
    X, y, weight = stack(blocks(*elements))
    assert_array_equal([*X.T, y, weight], [[5, 6], [1, 0], [1, 0.25]])


def test_more_fields_than_the_three_do_no_harm():
    row = Row(id=7, features=[5.0], label=1.0, weight=0.5)
    assert [part.tolist() for part in stack(blocks(row))[1:]] == [[1.0], [0.5]]


def test_two_fields_are_features_and_label_whatever_they_are_called():
    assert_array_equal(stack(blocks(Row(x=[5.0], y=1.0)))[1], [1.0])


@pytest.mark.parametrize("third", ["w", "id", "weights"])
@pytest.mark.parametrize("first", ["features", "x"])
def test_a_third_field_of_a_row_is_a_weight_only_by_its_name(first, third):
    """Of a tuple (x, y, id) nobody can know; of a Row one can."""
    row, what = refusal(Row(**{first: [5.0], "label": 1.0, third: 7.0}))
    assert row == 0
    assert what.startswith(f"has the fields {[first, 'label', third]}, of which one may be")


def test_any_object_with_features_and_label_is_a_row():
    Example = namedtuple("Example", "id label features")
    X, y, weight = stack(blocks(Example("a", 2.0, [1.0, 2.0])))
    assert_array_equal([*X[0], *y, *weight], [1, 2, 2, 1])


@repeatable
@given(st.lists(st.tuples(st.sampled_from(sorted(FORMS)), st.integers(0, 2)), min_size=1))
def test_any_mix_of_forms_is_the_matrix_that_made_it(rows):
    found = blocks(*((FORMS[form](X3[k]), k) for form, k in rows))
    assert len(found) == 1
    assert sparse.issparse(found[0].X) == any(form in SPARSE for form, _ in rows)
    X, y, _ = stack(found)
    assert_array_equal(X, [X3[k] for _, k in rows])
    assert_array_equal(y, [k for _, k in rows])


def test_no_elements_are_no_blocks():
    assert blocks() == []


def test_rows_are_collected_up_to_the_size_of_a_block(monkeypatch):
    monkeypatch.setattr(from_rows, "BLOCK_BYTES", 1000)
    found = blocks(*(([0.0, float(k)], k) for k in range(100)))  # 2 features, label, weight
    assert [len(block.y) for block in found] == [32, 32, 32, 4]  # 32 * 32 bytes > 1000
    assert_array_equal(stack(found)[1], range(100))


def test_rows_without_values_are_collected_no_further(monkeypatch):
    monkeypatch.setattr(from_rows, "BLOCK_BYTES", 1000)
    found = blocks(*((ml.Vectors.sparse(5, [], []), k) for k in range(100)))
    assert max(len(block.y) for block in found) == 63  # 63 * 16 bytes > 1000


# --- blocks ---------------------------------------------------------------------------------

TO_MATRIX = {
    "dense": np.array,
    "list": lambda X: [list(row) for row in X],
    "ints": lambda X: np.array(X, dtype=int),
    **{kind: getattr(sparse, f"{kind}_array") for kind in ("csr", "csc", "coo", "lil", "dia")},
    "csr_matrix": sparse.csr_matrix,
}


@pytest.mark.parametrize("form", TO_MATRIX)
def test_a_ready_block_stays_one(form):
    y = np.array([0, 1, 2])
    found = blocks((TO_MATRIX[form](X3), y), (TO_MATRIX[form](X3), list(y), [1, 2, 3]))
    assert [len(block.y) for block in found] == [3, 3]
    for block in found:
        assert block.X.dtype == block.y.dtype == block.weight.dtype == np.float64
        assert isinstance(block.X, np.ndarray) or block.X.format == "csr"
    X, y, weight = stack(found)
    assert_array_equal(X, X3 + X3)
    assert_array_equal([y, weight], [[0, 1, 2] * 2, [1, 1, 1, 1, 2, 3]])


def test_one_weight_may_stand_for_all_rows_of_a_block():
    (block,) = blocks((np.eye(2), np.ones(2), 0.5))
    assert_array_equal(block.weight, [0.5, 0.5])


def test_rows_and_blocks_may_follow_one_another():
    block = np.full((2, 3), 9.0), np.array([7.0, 8.0])
    found = blocks((X3[0], 0), (X3[1], 1), block, block, (X3[2], 2))
    assert [len(block.y) for block in found] == [2, 2, 2, 1]
    assert_array_equal(stack(found)[1], [0, 1, 7, 8, 7, 8, 2])


# --- refusals -------------------------------------------------------------------------------

GOOD = ([1.0, 2.0], 0)
FORM = (
    "an element of the RDD must be (x, y), (x, y, weight), a LabeledPoint, or a block (X, y) or"
    " (X, y, weight) of arrays"
)
SHAPE = "and the label is one number"


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ("1 1:2.0", f"is a str; {FORM}"),
        (None, f"is a NoneType; {FORM}"),
        (([1.0, 2.0],), f"is a tuple; {FORM}"),
        (np.zeros(2), f"is a ndarray; {FORM}"),
        ((None, 1.0), "the features are null"),
        (([1.0, 2.0], None), "the label is None, not a number"),
        (([1.0, 2.0], "spam"), "the label is 'spam', not a number"),
        (([1.0, 2.0], 1, None), "the weight is None, not a number"),
        (([1.0, 2.0], 1, [1, 2]), "the weight is [1, 2], not a number"),
        ((3.0, 1), f"the features have shape (), {SHAPE}"),
        ((np.zeros((1, 2)), 1), f"the features have shape (1, 2), {SHAPE}"),
        ((sparse.csr_array((2, 2)), 1), f"the features have shape (2, 2), {SHAPE}"),
        (([1.0, 2.0, 3.0], 1), "has 3 features, the rows before it have 2"),
        ((ml.Vectors.sparse(3, [], []), 1), "has 3 features, the rows before it have 2"),
        ((sparse.csr_array((1, 5)), 1), "has 5 features, the rows before it have 2"),
    ],
)
@pytest.mark.parametrize("n_before", [1, 3])
def test_a_bad_row_is_named(n_before, bad, what):
    assert refusal(*[GOOD] * n_before, bad, GOOD) == (n_before, what)
    ready = np.ones((4, 2)), np.ones(4)
    assert refusal(ready, *[GOOD] * n_before, bad, GOOD) == (4 + n_before, what)


@pytest.mark.parametrize("x", [["a", "b"], [[1], [2, 3]], {"a": 1}])
def test_features_that_are_no_numbers_are_named_with_numpys_reason(x):
    row, what = refusal(GOOD, (x, 1))
    assert row == 1
    assert what.startswith("the features are not numbers (")


SHAPES = "a block has X of shape {}, y {} and weight {}"


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ((np.eye(2), np.ones(3)), SHAPES.format((2, 2), (3,), ())),
        ((np.ones(2), np.ones(2)), SHAPES.format((2,), (2,), ())),
        ((sparse.csr_array((2, 3)), np.ones(3)), SHAPES.format((2, 3), (3,), ())),
        ((np.eye(2), np.ones(2), np.ones(3)), SHAPES.format((2, 2), (2,), (3,))),
        ((np.eye(2), np.ones(2), np.ones((2, 1))), SHAPES.format((2, 2), (2,), (2, 1))),
    ],
)
def test_a_block_whose_shapes_disagree_is_named_by_its_first_row(bad, what):
    assert refusal(GOOD, GOOD, bad) == (2, what)


@pytest.mark.parametrize("bad", [([["a"]], [1.0]), ([[1.0]], ["a"]), ([[1.0]], [1.0], ["a"])])
def test_a_block_of_no_numbers_is_named_by_its_first_row(bad):
    row, what = refusal(GOOD, bad)
    assert row == 1
    assert what.startswith("a block has arrays that are not numbers (could not convert string")


def test_a_refusal_counts_from_the_rows_that_are_still_held(monkeypatch):
    monkeypatch.setattr(from_rows, "BLOCK_BYTES", 1)
    assert refusal(GOOD, GOOD, GOOD, (None, 1)) == (3, "the features are null")

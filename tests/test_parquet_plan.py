"""Parquet: the driver deals out row groups, and a reader turns them into blocks."""

import logging
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from sparkdist.errors import BadData, InvalidCall
from sparkdist.spark.data.parquet import plan
from tests.conftest import stack

repeatable = settings(derandomize=True, deadline=None, max_examples=25)
VECTOR = pa.struct(
    [
        ("type", pa.int8()),
        ("size", pa.int32()),
        ("indices", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float64())),
    ]
)


def numbered(start, stop):
    """Rows that are numbered by their label."""
    k = np.arange(start, stop)
    return pa.table({"a": 2.0 * k, "b": k % 3, "label": k, "w": k + 0.5, "text": k.astype(str)})


def write(folder, *sizes, group_rows=10):
    """A file for each size, its rows numbered on from the file before."""
    edges = np.cumsum([0, *sizes])
    for i, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        pq.write_table(
            numbered(start, stop), folder / f"part-{i}.parquet", row_group_size=group_rows
        )
    return str(folder)


def read(path, n_partitions=1, features=("a", "b"), label="label", weight=None):
    """The blocks of each partition; reader and splits travel as they do to the executors."""
    reader, splits = pickle.loads(
        pickle.dumps(plan(path, features, label, weight, n_partitions)),
    )
    return [list(reader.blocks([part])) for part in splits]


def labels(blocks):
    return stack(blocks)[1] if blocks else np.array([])


def problems(path, features=("a", "b"), label="label", weight=None, n_partitions=2):
    with pytest.raises(InvalidCall) as caught:
        plan(path, features, label, weight, n_partitions)
    assert caught.value.caller == "from_parquet"
    return caught.value.problems


@pytest.mark.parametrize("n_partitions", [1, 2, 3, 7])
def test_every_row_is_read_once_in_order_and_partitions_are_balanced(tmp_path, n_partitions):
    path = write(tmp_path, 35, 60, 25)  # groups of 10 rows and two of 5
    found = [labels(part) for part in read(path, n_partitions)]
    assert len(found) == n_partitions
    assert_array_equal(np.concatenate(found), np.arange(120))
    # Each end of a partition is at most half a row group away from its even share.
    assert max(abs(len(part) - 120 / n_partitions) for part in found) <= 10


@repeatable
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(1, 9),
)
def test_any_files_are_read_once_in_order(tmp_path_factory, sizes, group_rows, n_partitions):
    path = write(tmp_path_factory.mktemp("files"), *sizes, group_rows=group_rows)
    if not sum(sizes):
        with pytest.raises(BadData, match="the data has no rows"):
            read(path, n_partitions)
        return
    found = [labels(part) for part in read(path, n_partitions)]
    assert_array_equal(np.concatenate(found), np.arange(sum(sizes)))
    share = sum(sizes) / n_partitions
    assert max(abs(len(part) - share) for part in found) <= group_rows


def test_a_row_group_that_is_larger_than_a_share_is_cut_where_shares_end(tmp_path):
    path = write(tmp_path, 20, 5)  # groups of 10, 10 and 5 rows
    found = [labels(part) for part in read(path, n_partitions=5)]
    assert_array_equal(found, np.arange(25).reshape(5, 5))


def test_with_more_partitions_than_rows_some_are_empty(tmp_path):
    found = read(write(tmp_path, 3), n_partitions=5)
    # The shares end behind row 3i/5, rounded down: 0, 1, 1, 2, 3.
    assert [len(labels(part)) for part in found] == [0, 1, 0, 1, 1]


def test_a_row_group_may_be_longer_than_what_is_decoded_at_once(tmp_path):
    path = write(tmp_path, 20_000, group_rows=20_000)  # batches of 8,192 rows
    found = [labels(part) for part in read(path, n_partitions=3)]
    assert [len(part) for part in found] == [6666, 6667, 6667]
    assert_array_equal(np.concatenate(found), np.arange(20_000))


def test_many_cuts_of_a_row_group_are_warned_of_with_what_to_do(tmp_path, caplog):
    path = write(tmp_path, 36, group_rows=18)
    with caplog.at_level(logging.WARNING, logger="sparkdist"):
        read(path, n_partitions=16)  # 8 tasks decode each of the two
        assert caplog.messages == []
        read(path, n_partitions=18)
    (message,) = caplog.messages
    assert f"row group 0 of {path}/part-0.parquet is cut among 9 partitions" in message
    assert "2 row groups for 18 partitions are few" in message
    assert "repartition" in message


def test_columns_are_read_by_name_and_weights_if_asked(tmp_path):
    path = write(tmp_path, 12)
    k = np.arange(12.0)
    (blocks,) = read(path, features=["b", "a"], label="label", weight="w")
    X, y, weight = stack(blocks)
    assert_array_equal(X.T, [k % 3, 2 * k])
    assert_array_equal([y, weight], [k, k + 0.5])
    (blocks,) = read(path, features="a", label="b")
    X, y, weight = stack(blocks)
    assert_array_equal([*X.T, y, weight], [2 * k, k % 3, np.ones(12)])


def test_a_name_with_a_dot_is_the_column_of_this_name(tmp_path):
    table = pa.table({"a": [1.0], "a.b": [2.0], "b": [3.0], "label": [0.0]})
    pq.write_table(table, tmp_path / "1.parquet")
    ((block,),) = read(str(tmp_path), features=["b", "a.b", "a"])
    assert_array_equal(block.X, [[3, 2, 1]])


def one_file(folder, column, name="features"):
    path = folder / "one.parquet"
    pq.write_table(pa.table({name: column, "label": np.arange(float(len(column)))}), path)
    return str(path)


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.int32())], ids=str)
def test_a_column_of_lists_is_read(tmp_path, kind):
    path = one_file(tmp_path, pa.array([[1, 2], [3, 4]], kind))
    ((block,),) = read(path, features="features")
    assert_array_equal(block.X, [[1, 2], [3, 4]])
    (_,), (cut,) = read(path, 2, features="features")
    assert_array_equal(cut.X, [[3, 4]])


def test_a_column_of_vectors_as_spark_writes_them_is_read(tmp_path):
    dense = {"type": 1, "size": None, "indices": None, "values": [1.0, 2.0, 3.0]}
    sparse = {"type": 0, "size": 3, "indices": [1], "values": [4.0]}
    path = one_file(tmp_path, pa.array([dense, sparse, dense], VECTOR))
    ((block,),) = read(path, features="features")
    assert block.X.format == "csr"
    assert_array_equal(block.X.toarray(), [[1, 2, 3], [0, 4, 0], [1, 2, 3]])
    (_,), (cut,) = read(path, 2, features="features")
    assert_array_equal(cut.X.toarray(), [[0, 4, 0], [1, 2, 3]])
    ((block,),) = read(one_file(tmp_path, pa.array([dense] * 2, VECTOR)), features="features")
    assert_array_equal(block.X, [[1, 2, 3], [1, 2, 3]])


def test_files_may_be_given_one_by_one(tmp_path):
    write(tmp_path, 10, 10, 10)
    chosen = [str(tmp_path / f"part-{i}.parquet") for i in (2, 0)]
    (blocks,) = read(chosen)
    assert_array_equal(labels(blocks), [*range(20, 30), *range(10)])


def test_files_may_differ_in_the_type_of_a_number_and_in_other_columns(tmp_path):
    pq.write_table(pa.table({"a": [1], "label": [0]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"label": [1.0], "c": ["x"], "a": [2.5]}), tmp_path / "2.parquet")
    X, y, _ = stack(read(str(tmp_path), features=["a"])[0])
    assert_array_equal([*X.T, y], [[1, 2.5], [0, 1]])


def test_spark_marks_are_not_data(tmp_path):
    write(tmp_path, 10)
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".part-0.parquet.crc").write_bytes(b"crc")
    assert len(labels(read(str(tmp_path))[0])) == 10


# --- refusals -------------------------------------------------------------------------------


def test_all_missing_columns_are_named_together(tmp_path):
    path = write(tmp_path, 10)
    there = f"there are a, b, label, w, text ({path}/part-0.parquet)"
    assert problems(path, ["a", "x"], "y", "z") == tuple(
        f"there is no column {name!r}; {there}" for name in "xyz"
    )


def test_all_columns_that_are_no_numbers_are_named_together(tmp_path):
    path = write(tmp_path, 10)
    what = f"column 'text' is string; it must be numeric ({path}/part-0.parquet)"
    assert problems(path, ["a"], "text", "text") == (what, what)
    assert problems(path, ["a", "text"], "label") == (what,)


def test_a_label_that_is_also_a_feature_is_refused(tmp_path):
    path = write(tmp_path, 10)
    what = f"column 'label' is label or weight, and a feature ({path}/part-0.parquet)"
    assert problems(path, ["a", "label"], "label") == (what,)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["1", "2"]),
        pa.array([["1"], ["2"]]),
        pa.array([[[1.0]], [[2.0]]]),
        pa.array([{"values": [1.0]}, {"values": [2.0]}]),
    ],
    ids=lambda column: str(column.type),
)
def test_a_features_column_of_another_kind_is_refused(tmp_path, column):
    path = one_file(tmp_path, column)
    kind = pq.read_schema(path).field("features").type  # an item of a list is called "element"
    (problem,) = problems(path, "features")
    assert problem.startswith(f"features column 'features' is {kind}; it must be a Spark vector")


@pytest.mark.parametrize(
    ("second", "what"),
    [
        ({"a": [1.0]}, "there is no column 'label'; there are a: name yours, label=..."),
        ({"a": ["x"], "label": [1]}, "column 'a' is string; it must be numeric"),
    ],
)
def test_every_file_is_looked_at(tmp_path, second, what):
    pq.write_table(pa.table({"a": [1.0], "label": [0]}), tmp_path / "1.parquet")
    pq.write_table(pa.table(second), tmp_path / "2.parquet")
    assert problems(str(tmp_path), ["a"]) == (f"{what} ({tmp_path}/2.parquet)",)


def test_files_whose_features_are_of_different_kinds_are_refused(tmp_path):
    pq.write_table(pa.table({"x": [1.0], "label": [0]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"x": [[1.0]], "label": [0]}), tmp_path / "2.parquet")
    what = f"column 'x' is of another type than in {tmp_path}/1.parquet"
    assert problems(str(tmp_path), "x") == (f"{tmp_path}/2.parquet: {what}",)


@pytest.mark.parametrize("names", [["1.parquet"], ["0.parquet", "1.parquet"]])
def test_a_file_that_is_no_parquet_is_named(tmp_path, names):
    for name in names:
        pq.write_table(numbered(0, 5), tmp_path / name)
    (tmp_path / "1.parquet").write_text("a,b,label\n1,2,3\n")
    (problem,) = problems(str(tmp_path))
    assert problem.startswith(f"cannot read {str(tmp_path)!r} as Parquet: ")
    assert "1.parquet" in problem


def test_a_path_that_is_not_there_is_named(tmp_path):
    path = str(tmp_path / "nowhere")
    (problem,) = problems(path)
    assert problem.startswith(f"cannot read {path!r} as Parquet: ")


def test_a_folder_without_files_is_named(tmp_path):
    assert problems(str(tmp_path)) == (f"there are no Parquet files in {str(tmp_path)!r}",)


def test_files_without_rows_are_bad_data(tmp_path):
    with pytest.raises(BadData, match="the data has no rows: '.*'"):
        plan(write(tmp_path, 0, 0), ["a"], "label", None, 2)


def test_there_must_be_features(tmp_path):
    path = write(tmp_path, 10)
    assert problems(path, [])[0].startswith("the list of feature columns is empty")

"""Block files: what was written comes back, whole or not at all."""

import errno
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.sparse import csr_array

from sparkdist.blocks import Block
from sparkdist.spark.data.residency import (
    BlockFile,
    BlocksGone,
    Place,
    forget,
    open_blocks,
)
from tests.conftest import random_block

repeatable = settings(derandomize=True, deadline=None, max_examples=50)


def made_block(n, d, sparse, density, dtype, seed):
    random = np.random.default_rng(seed)
    X = (random.integers(-9, 10, (n, d)) * (random.random((n, d)) < density)).astype(dtype)
    y, weight = random.integers(0, 9, n).astype(dtype), random.random(n)
    return Block(csr_array(X) if sparse else X, y, weight)


any_block = st.builds(
    made_block,
    n=st.integers(1, 40),
    d=st.integers(0, 6),
    sparse=st.booleans(),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from(["f8", "i4"]),
    seed=st.integers(0, 2**16),
)


def arrays(block):
    X = block.X
    parts = [X] if isinstance(X, np.ndarray) else [X.data, X.indices, X.indptr]
    return [*parts, block.y, block.weight]


def assert_same_block(found, wanted):
    assert type(found.X) is type(wanted.X)
    assert found.X.shape == wanted.X.shape
    for a, b in zip(arrays(found), arrays(wanted), strict=True):
        assert a.dtype == b.dtype
        assert_array_equal(a, b)


def write(blocks, partition=0, dataset="data"):
    with BlockFile(dataset, partition) as file:
        for block in blocks:
            file.append(block)
    return file.place


def read(place):
    with open_blocks(place) as blocks:
        return list(blocks)


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@contextmanager
def executor(*directories):
    """Be an executor with these local directories."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_LOCAL_DIRS", ",".join(map(str, directories)))
        yield


@pytest.fixture
def here(tmp_path):
    with executor(tmp_path):
        yield tmp_path


@repeatable
@given(st.lists(any_block, max_size=5), st.integers(1, 3), st.integers(0, 7))
def test_reading_inverts_writing(tmp_path_factory, blocks, n_directories, partition):
    folder = tmp_path_factory.mktemp("local")
    with executor(*(folder / str(k) for k in range(n_directories))):
        place = write(blocks, partition)
        found = read(place)
    assert place == ("data", partition, str(folder / str(partition % n_directories)))
    assert len(found) == len(blocks)
    for a, b in zip(found, blocks, strict=True):
        assert_same_block(a, b)


@repeatable
@given(st.lists(any_block, min_size=1, max_size=3))
def test_arrays_are_read_only_and_begin_on_a_cache_line(tmp_path_factory, blocks):
    with executor(tmp_path_factory.mktemp("local")), open_blocks(write(blocks)) as found:
        for array in (array for block in found for array in arrays(block) if array.size):
            assert array.ctypes.data % 64 == 0
            assert not array.flags.writeable


def test_columns_may_lie_one_after_another(here):
    block = random_block(5, 3, seed=0)
    found = read(write([block._replace(X=np.asfortranarray(block.X))]))
    assert_same_block(found[0], block)


def test_the_file_is_as_long_as_its_arrays_and_a_footer(here):
    place = write([random_block(1000, 10, seed=0)] * 3)
    n_bytes = 3 * 1000 * (10 + 2) * 8
    size = next(place.candidates()).stat().st_size
    assert n_bytes < size < n_bytes + 9 * 64 + 1000


def test_room_is_reserved_ahead(here, monkeypatch):
    calls, reserve = [], os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda *a: (calls.append(a), reserve(*a)))
    write([random_block(10, 10, seed=0)] * 100)
    assert 1 <= len(calls) <= 10  # each time twice as much: 2^10 is more than 300 arrays


def test_an_error_inside_leaves_no_file(here):
    with pytest.raises(RuntimeError, match="a bad row"), BlockFile("data", 0) as file:
        file.append(random_block(5, 3, seed=0))
        assert len(files_below(here)) == 1  # the draft
        raise RuntimeError("a bad row")
    assert files_below(here) == []


def test_an_unfinished_file_is_not_seen(here):
    with BlockFile("data", 0) as file:
        file.append(random_block(5, 3, seed=0))
        with pytest.raises(BlocksGone):
            read(file.place)


def test_of_two_writers_at_once_the_last_one_leaves_the_file(here):
    one, two = random_block(5, 3, seed=1), random_block(7, 3, seed=2)
    with BlockFile("data", 0) as last:
        with BlockFile("data", 0) as first:
            for _ in range(3):
                first.append(one)
                last.append(two)
            last.append(two)
        assert [len(block.y) for block in read(first.place)] == [5, 5, 5]
    assert [len(block.y) for block in read(last.place)] == [7, 7, 7, 7]
    assert len(files_below(here)) == 1


def test_a_writer_that_fails_leaves_the_file_of_the_other(here):
    block = random_block(5, 3, seed=1)
    place = write([block])
    with pytest.raises(RuntimeError), BlockFile("data", 0):
        raise RuntimeError
    assert_same_block(read(place)[0], block)
    assert len(files_below(here)) == 1


def test_blocks_that_are_not_here_are_gone(here):
    with pytest.raises(BlocksGone, match="partition 4 of data: .*elsewhere"):
        read(Place("data", 4, str(here / "elsewhere")))


def test_a_file_that_this_executor_wrote_itself_is_found(here):
    block = random_block(5, 3, seed=0)
    with executor(here / "other", here / "own"):
        write([block], partition=1)
        assert_same_block(read(Place("data", 1, str(here / "gone")))[0], block)


def test_the_file_that_the_handle_names_comes_first(here):
    named, own = random_block(5, 3, seed=1), random_block(7, 3, seed=2)
    with executor(here / "named"):
        place = write([named])
    with executor(here / "own"):
        write([own])
        assert_same_block(read(place)[0], named)


def test_an_error_of_the_reader_is_its_own(here):
    place = write([random_block(5, 3, seed=0)])
    with pytest.raises(FileNotFoundError, match="of the user"), open_blocks(place):
        raise FileNotFoundError("of the user")


def test_forget_removes_every_copy_and_no_other_dataset(here):
    block = random_block(5, 3, seed=0)
    with executor(here / "a", here / "b"):
        places = [write([block], partition) for partition in range(4)]
        kept = write([block], dataset="kept")
    with executor(here / "c"):
        write([block])
        for place in places:
            forget(place.dataset, place.directory)
    assert files_below(here) == [Path(kept.directory, "kept", "0.blocks")]


def test_forgetting_twice_is_forgetting(here):
    place = write([random_block(5, 3, seed=0)])
    forget("data", place.directory)
    forget("data", place.directory)
    with pytest.raises(BlocksGone):
        read(place)


def failing(code, after=0, works=None):
    """A system call that works so many times, then fails."""
    calls = iter(range(after))

    def call(*args):
        if next(calls, None) is None:
            raise OSError(code, os.strerror(code))
        return works(*args)

    return call


def test_a_full_disk_is_an_error_and_leaves_nothing(here, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write([random_block(5, 3, seed=0)])
    assert files_below(here) == []


@pytest.mark.parametrize("n_writes", [0, 1, 2, 3])  # X, y, weight, footer
def test_a_write_that_fails_leaves_nothing(here, monkeypatch, n_writes):
    monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC, n_writes, os.pwrite))
    with pytest.raises(OSError, match="No space left"):
        write([random_block(5, 3, seed=0)])
    assert files_below(here) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF])
def test_a_file_system_that_cannot_reserve_works(here, monkeypatch, code):
    monkeypatch.setattr(os, "posix_fallocate", failing(code))
    block = random_block(5, 3, seed=0)
    assert_same_block(read(write([block]))[0], block)


def test_a_system_that_cannot_reserve_works(here, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    block = random_block(5, 3, seed=0)
    assert_same_block(read(write([block]))[0], block)


def test_short_writes_give_the_same_file(here, monkeypatch):
    blocks = [random_block(5, 3, seed=0), made_block(9, 4, True, 0.5, "f8", seed=1)]
    whole = write(blocks, dataset="whole")
    short, pwrite = [], os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, at: short.append(at) or pwrite(fd, data[:7], at)
    )
    pieces = write(blocks, dataset="pieces")
    assert len(short) > 20
    assert next(pieces.candidates()).read_bytes() == next(whole.candidates()).read_bytes()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of mappings")
@pytest.mark.parametrize("sparse", [False, True])
def test_memory_is_given_back_with_the_last_array(here, sparse):
    def is_mapped():
        return str(here) in Path("/proc/self/maps").read_text()

    place = write([made_block(50, 4, sparse, 0.5, "f8", seed=0)])
    found = read(place)
    assert is_mapped()
    y = found.pop().y
    assert is_mapped()
    assert y.sum() > 0
    del y
    assert not is_mapped()

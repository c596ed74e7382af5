"""Products of the features with a vector: the same numbers, however they are computed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from sparkdist.blocks import Block
from sparkdist.objectives import Squared
from sparkdist.objectives._precision import times_vector

LAYOUTS = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "every second row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "every second column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "read only": lambda X: np.frombuffer(X.tobytes(), X.dtype).reshape(X.shape),
    "sparse": csr_array,
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("d", [0, 1, 31, 32, 33, 100, 1000, 1001])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_product_is_exact_where_nothing_is_rounded(layout, d, dtype):
    # Small multiples of 1/8: sums are exact in any order.  Expected are sums of Python's integers.
    random = np.random.default_rng(d)
    eighths, w = random.integers(-8, 9, (7, d)), random.integers(-8, 9, d)
    found = times_vector(LAYOUTS[layout](eighths.astype(dtype) / 8), w.astype(dtype))
    assert found.dtype == dtype
    expected = [
        sum(x * c for x, c in zip(row, w.tolist(), strict=True)) for row in eighths.tolist()
    ]
    assert (found * 8).tolist() == expected


@pytest.mark.parametrize("d", [31, 64])
def test_a_trial_step_beyond_all_numbers_warns_of_nothing(d):
    # A line search may try one; the caller sees that the loss is not finite.
    rows = Block(np.full((3, d), 1e200), np.zeros(3), np.ones(3))
    with np.errstate(over="ignore"):
        assert Squared().value_and_grad(np.full(d, 1e200), rows).loss == np.inf

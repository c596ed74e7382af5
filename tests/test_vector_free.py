"""The two-loop recursion on dot products is the two-loop recursion: B2 of the specification."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sparkdist.solvers._memory import inverse_hessian_times
from sparkdist.solvers._vector_free import direction_coefficients


@pytest.mark.parametrize("m", [0, 1, 2, 7, 10])
@pytest.mark.parametrize("seed", range(5))
def test_b2_vector_free_equals_two_loop(m: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    root = random.normal(size=(50, 50))
    hessian = root @ root.T / 50 + np.eye(50)
    s = random.normal(size=(m, 50))
    y, g = s @ hessian, random.normal(size=50)
    basis = np.vstack([s, y, g[None]])
    direction = direction_coefficients(basis @ basis.T) @ basis
    expected = -inverse_hessian_times(g, deque(zip(s, y, strict=True)))
    assert_allclose(direction, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_with_exact_pairs_of_a_quadratic_the_direction_is_newtons() -> None:
    # With d pairs along conjugate directions, BFGS has found the inverse Hessian: Nocedal and
    # Wright, 2nd ed., Theorem 6.4.  Unit vectors are conjugate for a diagonal Hessian.
    curvature, g = np.array([1.0, 4.0, 25.0]), np.array([3.0, -2.0, 5.0])
    basis = np.vstack([np.eye(3), np.diag(curvature), g[None]])
    direction = direction_coefficients(basis @ basis.T) @ basis
    assert_allclose(direction, [-3.0, 0.5, -0.2], rtol=1e-14)

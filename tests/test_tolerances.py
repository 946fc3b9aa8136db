"""The default tolerances stand where their docstrings say: around each something changes.

Diagonal matrices, whose derivatives are quotients that can be read off.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsvd
from jaxsvd import _tolerances
from tests.helpers import FLOAT32, FLOAT64, eps

BOTH = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
M, N = 4, 3


def diagonal(values, dtype):
    a = np.zeros((M, N))
    np.fill_diagonal(a, values)
    return jnp.asarray(a.astype(dtype))


def slope(of_u, values, dtype, direction):
    """The derivative of an entry of U along a direction with one entry."""
    tangent = np.zeros((M, N), dtype)
    tangent[direction] = 1

    def entry(a):
        return jaxsvd.svd(a, full_matrices=False).U[of_u]

    return float(jax.jvp(entry, (diagonal(values, dtype),), (jnp.asarray(tangent),))[1])


@BOTH
def test_ties(dtype):
    """dU_10 along E_01 has the term 1/(2 (s_0 - s_1)), up to a gap of eps^(3/4)."""
    tol = eps(dtype) ** 0.75
    near, far = (slope((1, 0), (1, 1 - gap, 0.5), dtype, (0, 1)) for gap in (tol / 4, 8 * tol))
    assert abs(near) < 1
    gap = float(np.float64(1) - dtype(1 - 8 * tol))
    assert abs(far * 2 * gap - 1) < 1e-2


@BOTH
def test_zeros(dtype):
    """dU_31 along E_31 is 1/s_1, down to s_1 = (min + sqrt(max)(m, n)) eps s_0."""
    tol = (N + M**0.5) * eps(dtype)
    near, far = (slope((3, 1), (1, s, 0), dtype, (3, 1)) for s in (tol / 4, 8 * tol))
    assert near == 0
    assert abs(far * 8 * tol - 1) < 1e-2


@BOTH
def test_a_function_of_nearly_tied_values_is_as_exact_as_its_docstring_says(dtype):
    """The divided difference of exp, whose exact value is exp(m) sinh(h)/h, over all gaps."""
    bound = {4: 4e-6, 8: 1e-12}[np.dtype(dtype).itemsize]
    tangent = jnp.zeros((M, N), dtype).at[0, 1].set(1).at[1, 0].set(1)
    for gap in (0.5, *np.logspace(-1, -15, 29)):
        x, y = np.float64(dtype(1)), np.float64(dtype(1 - gap))
        half, middle = (x - y) / 2, (x + y) / 2
        exact = np.exp(middle) * (np.sinh(half) / half if half else 1)
        a = diagonal((x, y, 0.1), dtype)
        found = jax.jvp(lambda a: jaxsvd.spectral_map(jnp.expm1, a), (a,), (tangent,))[1][0, 1]
        assert abs(float(found) / exact - 1) < bound, gap


def test_formulas():
    for dtype in (np.float32, np.float64):
        e = eps(dtype)
        assert _tolerances.degeneracy_tol(dtype) == e**0.75
        assert _tolerances.rank_tol(dtype, 400, 25) == (25 + 20) * e
        assert _tolerances.near_tie(dtype) == e**0.2 / 2
        assert _tolerances.near_tie_kinked(dtype) == e**0.5
        assert _tolerances.phase_tol(dtype) == _tolerances.gauge_tol(dtype) == e**0.5

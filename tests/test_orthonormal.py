"""Orthonormal bases of tall blocks, of any rank, condition and scale, against Householder's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsvd.algorithms.orthonormal import append, noise, orthonormalize, polish
from tests.helpers import DTYPES, adjoint, double, eps, gaussian, orthonormal, with_values

M, L, P = 60, 6, 8


@jax.jit
def basis_of(X):
    return orthonormalize(X, fill=noise(M, L, X.dtype))


def loss(Q):
    """The distance of Q^H Q from the identity."""
    return np.max(np.abs(adjoint(double(Q)) @ double(Q) - np.eye(Q.shape[1])))


SPECTRA = {
    "ordinary": np.linspace(1, 2, L),
    "condition 1e3": np.logspace(0, -3, L),
    "half of the digits": np.logspace(0, -4, L),
    "all digits": np.logspace(0, -16, L),
    "graded, tiny": np.logspace(-10, -30, L),
    "rank three": [1, 1, 0.5, 0, 0, 0],
    "zero": np.zeros(L),
}


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("dtype", DTYPES)
def test_orthonormal_and_of_the_same_range(kind, dtype):
    values = np.asarray(SPECTRA[kind], np.float64)
    X = with_values(values, M, L, dtype)
    Q = basis_of(X)
    assert loss(Q) < 8 * eps(dtype)
    # What is left of X outside the basis is the noise that fills up, a few eps in all.
    outside = double(X) - double(Q) @ (adjoint(double(Q)) @ double(X))
    assert np.linalg.norm(outside) < 20 * eps(dtype) * max(1, np.linalg.norm(double(X)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_all_alike(dtype):
    X = np.repeat(gaussian((M, 1), dtype), L, axis=1)
    assert loss(basis_of(X)) < 8 * eps(dtype)


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_that_continues_a_basis(kind, dtype):
    """Orthogonal to the basis to rounding, also where X lies almost wholly in it."""
    basis = orthonormal(M, P, dtype, seed=5).astype(dtype)
    values = np.asarray(SPECTRA[kind], np.float64)
    inside = double(basis) @ gaussian((P, L), dtype)
    X = (inside + double(with_values(values, M, L, dtype))).astype(dtype)
    Q, coefficients, _ = jax.jit(append)(basis, X, 1.0, fill=noise(M, L, dtype))
    assert loss(Q) < 8 * eps(dtype)
    assert np.max(np.abs(adjoint(double(basis)) @ double(Q))) < 100 * eps(dtype)
    exact = adjoint(double(basis)) @ double(X)
    assert np.max(np.abs(double(coefficients) - exact)) < 50 * eps(dtype) * np.max(np.abs(exact))


@pytest.mark.parametrize("dtype", DTYPES)
def test_polish_squares_the_loss(dtype):
    Q = orthonormal(M, L, dtype)
    bent = (Q + 1e-4 * gaussian((M, L), dtype)).astype(dtype)
    assert loss(bent) > 1e-5
    assert loss(polish(jnp.asarray(bent))) < loss(bent) ** 2 + 8 * eps(dtype)

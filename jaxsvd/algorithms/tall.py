"""Tall matrices: an orthonormal basis by shifted CholeskyQR, then the SVD of a square matrix.

A = Q R, R = X diag(S) Vh, U = Q X. LAPACK's Householder QR of long columns runs at the speed of
memory; the products here at that of a matrix multiplication, and on a sharded axis each needs one
sum of n x n numbers.

References: Chan (1982), ACM TOMS 8 (QR first); `algorithms.orthonormal`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._types import SVDResult
from .orthonormal import noise, orthonormalize
from .products import adjoint_product, product


def _qr(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    m, n = a.shape
    largest = jnp.max(jnp.abs(a))
    scale = jnp.where(largest > 0, largest, 1).astype(a.dtype)
    X = a / scale
    # Columns of norm one at most: in longer ones, equal to each other, rounding swallows the fill.
    norm = jnp.sqrt(jnp.max(jnp.sum(jnp.real(jnp.conj(X) * X), axis=0)))
    X = X / jnp.where(norm > 0, norm, 1).astype(a.dtype)
    Q = orthonormalize(X, fill=noise(m, n, a.dtype))
    return Q, adjoint_product(Q, a)


def tall(a: jax.Array, square: Callable[[jax.Array], SVDResult]) -> SVDResult:
    """Return the thin SVD of (..., m, n), with m much larger or much smaller than n.

    Args:
        a: matrices (..., m, n).
        square: solves the square matrices (..., n, n) that remain.
    """
    *batch, m, n = a.shape
    if m < n:
        left = tall(a.mT, square)
        return SVDResult(left.Vh.mT, left.S, left.U.mT)
    factor = _qr
    for _ in batch:
        factor = jax.vmap(factor)
    Q, R = factor(a)
    X, S, Vh = square(R)
    return SVDResult(product(Q, X), S, Vh)

"""Orthonormal bases of tall blocks from products alone: no Householder QR of a long axis.

Householder QR of a tall block is slow on CPU (16 ms for 4096 x 64 in float32 against 7 ms), runs a
column at a time on accelerators, and gathers a sharded axis. The Gram matrix needs one product and,
on a mesh, one sum of l x l numbers. Its price is the condition number, squared: hence a shift that
keeps the first factorization positive definite, and repetition, which removes what the shift left
(Fukaya, Kannan, Nakatsukasa, Yamamoto and Yanagisawa (2020), "Shifted Cholesky QR", algorithm 4.1).
There is no branch: JAX's Cholesky fails as NaN, and a `lax.cond` would keep the fallback's
collectives in the program.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .. import _tolerances
from .products import adjoint, adjoint_product, product


def _cholesky_qr(X: jax.Array, shift: float) -> jax.Array:
    """Return X R^-1 with R^H R = X^H X + shift I, its columns scaled to norm one before."""
    norms = jnp.sqrt(jnp.sum(jnp.real(X * jnp.conj(X)), axis=0, keepdims=True))
    X = X / jnp.where(norms == 0, 1, norms).astype(X.dtype)
    l = X.shape[1]
    eye = jnp.eye(l, dtype=X.dtype)
    L = jnp.linalg.cholesky(adjoint_product(X, X) + shift * eye)
    R_inverse = adjoint(lax.linalg.triangular_solve(L, eye, left_side=True, lower=True))
    return product(X, R_inverse)


def orthonormalize(
    X: jax.Array,
    *,
    against: jax.Array | None = None,
    passes: int = 3,
    fill: jax.Array | None = None,
) -> jax.Array:
    """Return an orthonormal basis of the columns of X, orthogonal to another basis.

    Args:
        X: block (m, l), l <= m, of any rank and condition, entries of order one or less.
        against: orthonormal columns (m, p) to be orthogonal to; columns of zeros are allowed.
        passes: repetitions; three give orthogonality to a few eps for any X.
        fill: block (m, l) of random columns of norm about one. Added at the level of rounding, it
            takes the place of directions that X lacks: zero columns, dependent ones, and those that
            ``against`` already spans.

    Returns:
        Q, (m, l), with Q^H Q = I and against^H Q = 0 to a few eps.
    """
    eps = _tolerances.eps(X.dtype)
    if fill is not None:
        X = X + eps * fill
    # 10 l eps covers the rounding of a Gram matrix with unit diagonal.
    for shift in (10 * X.shape[1] * eps, *([0.0] * (passes - 1))):
        if against is not None:
            X = X - product(against, adjoint_product(against, X))
        X = _cholesky_qr(X, shift)
    return X

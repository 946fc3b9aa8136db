"""Orthonormal bases of tall blocks from products alone: no Householder QR of a long axis.

Householder QR of a tall block is slow on CPU (16 ms for 4096 x 64 in float32 against 7 ms), runs a
column at a time on accelerators, and gathers a sharded axis. The Gram matrix needs one product and,
on a mesh, one sum of l x l numbers. Its price is the condition number, squared: hence a shift that
keeps the factorization positive definite while it is large, and repetition, which removes what the
shift left (Fukaya, Kannan, Nakatsukasa, Yamamoto and Yanagisawa (2020), "Shifted Cholesky QR",
algorithm 4.1). There is no other algorithm to fall back to, whose collectives would stay in the
program: JAX's Cholesky fails as NaN, and the shift makes sure that it does not fail.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _tolerances
from .products import adjoint, adjoint_product, alike, product


def noise(rows: int, columns: int, dtype, seed: int | jax.Array = 0) -> jax.Array:
    """Return a block of fixed pseudo-random columns of norm about one, to fill up deficient ones.

    Any columns in general position will do, so they come from a hash of row, column and seed (the
    multiply-and-shift mixing of MurmurHash3), 30 times as fast as `jax.random.normal` on CPU.
    """
    seed = jnp.asarray(seed).astype(jnp.uint32)
    i = lax.broadcasted_iota(jnp.uint32, (rows, columns), 0) + seed * np.uint32(0x27D4EB2F)
    j = lax.broadcasted_iota(jnp.uint32, (rows, columns), 1) + np.uint32(1)
    u = (i * np.uint32(0x9E3779B1)) ^ (j * np.uint32(0x85EBCA77))
    u = (u ^ (u >> 15)) * np.uint32(0x2C1B3C6D)
    u = (u ^ (u >> 12)) * np.uint32(0x297A2D39)
    u = (u ^ (u >> 15)) >> 8  # 24 bits are exact in float32
    x = u.astype(jnp.float32) * np.float32(2.0**-23) - np.float32(1)  # uniform in [-1, 1)
    return (x * np.float32((3 / rows) ** 0.5)).astype(dtype)


# Passes at most. Ordinary blocks take two; a condition of 1/eps, as large as the columns that fill
# up leave it, takes four to seven.
PASSES = 8


def _by_rows(L: jax.Array) -> jax.Array:
    """Return L^-1 by forward substitution, a row at a time."""
    l = L.shape[0]

    def row(i, inverse):
        unit = (jnp.arange(l) == i).astype(L.dtype)
        rest = product(L[i][None], inverse)[0]  # the rows from i on are still zero
        return inverse.at[i].set((unit - rest) / L[i, i])

    return lax.fori_loop(0, l, row, jnp.zeros_like(L))


def _triangular_inverse(L: jax.Array) -> jax.Array:
    """Return the inverse of a lower triangular matrix (l, l).

    Not by BLAS on CPU: OpenBLAS solves with several threads, which then keep spinning for some 20
    ms and halve the speed of the products that follow. Ten products of a randomized SVD, 4096 x
    4096 times 60, took 111 ms with it and 69 ms without (2 cores).
    """
    eye = jnp.eye(L.shape[0], dtype=L.dtype)
    by_library = functools.partial(lax.linalg.triangular_solve, b=eye, left_side=True, lower=True)
    return lax.platform_dependent(L, cpu=_by_rows, default=by_library)


def _pass(X: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return X R^-1 with R^H R near X^H X, whether that made them orthonormal, squares of norms."""
    m, l = X.shape
    eye = jnp.eye(l, dtype=X.dtype)
    G = adjoint_product(X, X)
    squares = jnp.real(jnp.diagonal(G))
    inverse = jnp.where(squares > 0, lax.rsqrt(squares), 1).astype(X.dtype)
    G = jnp.where(eye == 1, eye, G * inverse[:, None] * inverse[None, :])
    # Below 1/2 the condition of the scaled G is at most 3, and Cholesky loses nothing.
    good = jnp.linalg.norm(G - eye) < 0.5
    # The rounding of a Gram matrix with unit diagonal, for columns all alike and sums in any order.
    rounding = (10 + m**0.5) * l * _tolerances.eps(X.dtype)
    shift = jnp.where(good, 0, rounding).astype(X.dtype)
    L = jnp.linalg.cholesky(G + shift * eye, symmetrize_input=False)
    R_inverse = adjoint(_triangular_inverse(L))
    return product(X, inverse[:, None] * R_inverse), good, squares


def orthonormalize(
    X: jax.Array,
    *,
    against: jax.Array | None = None,
    passes: int = PASSES,
    fill: jax.Array | None = None,
) -> jax.Array:
    """Return an orthonormal basis of the columns of X, orthogonal to another basis.

    Args:
        X: block (m, l), l <= m, of any rank and condition, entries of order one or less.
        against: orthonormal columns (m, p) to be orthogonal to; columns of zeros are allowed.
        passes: repetitions at most; 1 gives independent columns, nearly orthonormal.
        fill: block (m, l) of random columns of norm about one. Added at the level of rounding, it
            takes the place of directions that X lacks: zero columns, dependent ones, and those that
            ``against`` already spans.

    Returns:
        Q, (m, l), with Q^H Q = I and against^H Q = 0 to a few eps.
    """
    if fill is not None:
        X = X + _tolerances.eps(X.dtype) * fill

    def repeat(state):
        X, _, number = state
        if against is not None:
            X = X - product(against, adjoint_product(against, X))
        X, done, squares = _pass(X)
        if against is not None:
            # Columns that shrank, by what they lost to another basis, have lost digits too.
            done = done & (jnp.min(squares) > 0.25) & (number > 0)
        return X, done, number + 1

    def unfinished(state):
        _, done, number = state
        return ~done & (number < passes)

    # The first pass ends it only without another basis to be orthogonal to.
    state = repeat((alike(X, against), None, jnp.zeros((), jnp.int32)))
    if passes > 1:
        state = lax.while_loop(unfinished, repeat, (state[0], *alike(state[1:], state[0])))
    return state[0]


def polish(X: jax.Array) -> jax.Array:
    """Return columns orthonormal to rounding from such that are so to sqrt(eps), hardly moved.

    One step of Newton and Schulz, X (3 - X^H X) / 2. Bases of many blocks have lost up to 16
    eps sqrt(k) by their end, and 2 eps sqrt(k) after it.
    """
    return 1.5 * X - 0.5 * product(X, adjoint_product(X, X))

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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _tolerances
from .products import adjoint, adjoint_product, alike, diagonal, plain_product, product


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
    """Return L^-1 of L = D (1 + N): forward substitution, a row at a time."""
    l = L.shape[0]
    scale = 1 / diagonal(L)
    eye = jnp.eye(l, dtype=L.dtype)
    N = L * scale[:, None] - eye

    def row(i, inverse):  # of which the rows from i on are still the identity's
        found = lax.dynamic_slice_in_dim(inverse, i, 1) - plain_product(
            lax.dynamic_slice_in_dim(N, i, 1), inverse
        )
        return lax.dynamic_update_slice_in_dim(inverse, found, i, 0)

    return lax.fori_loop(1, l, row, alike(eye, L)) * scale[None, :]


def _triangular_inverse(L: jax.Array) -> jax.Array:
    """Return the inverse of a lower triangular matrix (l, l).

    Not by BLAS on CPU: OpenBLAS solves with several threads, which then keep spinning for some 20
    ms and halve the speed of the products that follow. Ten products of a randomized SVD, 4096 x
    4096 times 60, took 111 ms with it and 69 ms without (2 cores).
    """
    eye = jnp.eye(L.shape[0], dtype=L.dtype)
    by_library = functools.partial(lax.linalg.triangular_solve, b=eye, left_side=True, lower=True)
    return lax.platform_dependent(L, cpu=_by_rows, default=by_library)


def _factor(G: jax.Array, shifted: jax.Array, m: int) -> jax.Array:
    """Return the Cholesky factor L of G + shift I, a Gram matrix (l, l) of columns of norm one.

    The rounding of G is (10 + sqrt m) l eps at most, for columns all alike and sums in any order,
    and mostly far less. Each pass divides the condition by the root of the shift, so 2 l eps comes
    first: for a condition of 1e7, 20000 x 16 to 50, the SVD takes 0.85 of the time (float32).

    Args:
        G: the matrix.
        shifted: 1, or 0 for no shift at all, where G is known to be far from singular.
        m: rows of the columns.
    """
    l = G.shape[0]
    eye = jnp.eye(l, dtype=G.dtype)
    shifts = np.array([2, 10 + m**0.5]) * l * _tolerances.eps(G.dtype)

    def attempt(state):
        _, number = state
        shift = jnp.where(number == 0, shifts[0], shifts[1]).astype(G.dtype)
        L = lax.linalg.cholesky(G + shifted * shift * eye, symmetrize_input=False)
        return L, number + 1

    def failed(state):
        L, number = state
        return jnp.isnan(L[-1, -1]) & (number < len(shifts))

    # A loop, not a branch: a `vmap` would run both factorizations at once (see `router`).
    state = jnp.full_like(G, jnp.nan), jnp.zeros((), jnp.int32)
    return lax.while_loop(failed, attempt, alike(state, G))[0]


def _pass(X: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return X R^-1, R^H R near X^H X; whether it is orthonormal; squares of norms; 1/growth.

    The last is the least diagonal entry of R for columns of norm one: X R^-1 holds what rounding
    left in X as many times larger.
    """
    m, l = X.shape
    eye = jnp.eye(l, dtype=X.dtype)
    G = adjoint_product(X, X)
    squares = jnp.real(diagonal(G))
    inverse = jnp.where(squares > 0, lax.rsqrt(squares), 1).astype(X.dtype)
    G = jnp.where(eye == 1, eye, G * inverse[:, None] * inverse[None, :])
    # Below 1/2 the condition of the scaled G is at most 3, and Cholesky loses nothing.
    good = jnp.linalg.norm(G - eye) < 0.5
    L = _factor(G, jnp.where(good, 0, 1).astype(X.dtype), m)
    R_inverse = adjoint(_triangular_inverse(L))
    least = jnp.min(jnp.real(diagonal(L)))
    return product(X, inverse[:, None] * R_inverse), good, squares, least


# Loss of orthogonality between blocks, in units of rounding, from which a block is projected a
# second time. A block multiplies the loss of the one before it by two or four, so every fourth or
# fifth is: a sparse 80000 x 80000 takes 0.7 of the time that two projections each take (k = 100, 2
# cores), and bases end with up to 40 eps (20 eps with two).
LOSS = 100.0


class Appended(NamedTuple):
    """A block that continues an orthonormal basis.

    Attributes:
        Q: orthonormal columns (m, l), orthogonal to the basis.
        coefficients: basis^H X, (p, l), to rounding.
        loss: estimated loss of orthogonality to the basis, in units of rounding, ().
    """

    Q: jax.Array
    coefficients: jax.Array
    loss: jax.Array


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
    if against is not None:
        return append(against, X, LOSS, fill=fill).Q
    X = _filled(X, fill)
    if passes == 1:
        return _pass(X)[0]

    def repeat(state):
        X, _, number = state
        X, good, *_ = _pass(X)
        return X, good, number + 1

    def unfinished(state):
        _, good, number = state
        return ~good & (number < passes)

    # The first pass runs in the loop too: written out before it, it would be compiled twice.
    state = X, jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    return lax.while_loop(unfinished, repeat, alike(state, X))[0]


def append(
    basis: jax.Array, X: jax.Array, loss: float | jax.Array, *, fill: jax.Array | None = None
) -> Appended:
    """Return the block that continues an orthonormal basis towards X.

    What a projection leaves of the basis in X is rounding, and the loss of orthogonality of those
    columns of the basis in which X has parts; both grow as the columns of X shrink, and as they are
    divided by a small R. The estimate of it decides whether X is projected again, as the recurrence
    of Simon (1984), "The Lanczos algorithm with partial reorthogonalization", does for each column.

    Args:
        basis: orthonormal columns (m, p); columns of zeros are allowed.
        X: block (m, l), as in `orthonormalize`.
        loss: of the columns of the basis in which X has parts, in units of rounding.
        fill: as in `orthonormalize`.
    """
    X = _filled(X, fill)
    coefficients = adjoint_product(basis, X)

    def repeat(state):
        X, before, loss, _, number = state
        X, good, squares, least = _pass(X)
        kept = least * jnp.sqrt(jnp.min(squares / jnp.where(before > 0, before, 1)))
        loss = loss / kept
        lost = ~(loss <= LOSS)
        again = lost & (number + 1 < PASSES)
        before = _squares(X)
        X = lax.cond(again, lambda X: X - product(basis, adjoint_product(basis, X)), lambda X: X, X)
        return X, before, jnp.where(again, 1, loss), good & ~lost, number + 1

    def unfinished(state):
        *_, done, number = state
        return ~done & (number < PASSES)

    before = _squares(X)
    first = X - product(basis, coefficients), before, jnp.full((), 1 + loss, before.dtype)
    state = alike((*first, jnp.zeros((), bool), jnp.zeros((), jnp.int32)), X, basis)
    found, _, lost, *_ = lax.while_loop(unfinished, repeat, state)
    return Appended(found, coefficients, lost)


def _filled(X: jax.Array, fill: jax.Array | None) -> jax.Array:
    return X if fill is None else X + _tolerances.eps(X.dtype) * fill


def _squares(X: jax.Array) -> jax.Array:
    return jnp.sum(jnp.real(jnp.conj(X) * X), axis=0)


def polish(X: jax.Array) -> jax.Array:
    """Return columns orthonormal to rounding from such that are so to sqrt(eps), hardly moved.

    One step of Newton and Schulz, X (3 - X^H X) / 2. Bases of many blocks have lost up to 16
    eps sqrt(k) by their end, and 2 eps sqrt(k) after it.
    """
    return 1.5 * X - 0.5 * product(X, adjoint_product(X, X))

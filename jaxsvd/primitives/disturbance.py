"""Factors as far off as they are: what `value_and_grad_with_error` evaluates a gradient with again.

Every derivative of the library is a rule at constant factors W, so the error of a gradient is what
the error of W does to it. Under `disturbing` each primitive hands its rule other factors, those of
a matrix A + E that the computed ones fit as well as they fit A:

    full SVD or eigh     E random, of the size of the measured residual A - U S V^H
    k triplets           the known residual taken away by one Newton step, then E random
    masked ties, zeros   E splits the tied values, so that the terms which the rule of the raw
                         triplets drops there (design: `rules.dense`) appear

The cotangents weigh all that by themselves: a gap that no cotangent meets costs nothing.

Nothing is installed in ordinary use. The context is part of `jax.jit`'s cache keys, so programs
traced without it are not touched; its arrays are closed over by those traced under it.

References: Parker (1997), "Monte Carlo arithmetic" (random errors of the size of the rounding);
Stewart and Sun (1990), section IV (residuals as backward errors).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _tolerances
from .._types import EighResult, SVDResult
from ..algorithms.products import adjoint, adjoint_product, product
from ..operators.base import Operator
from ..rules.dense import herm
from ..rules.truncated import Numbers, project_out


class Disturbance:
    """What is done to the factors.

    Attributes:
        key: random key.
        rounding: multiple of the backward error that E has.
        ties: multiple of the distance to which tied values are split.
        zeros: the same of values that count as zero.
    """

    def __init__(self, key: jax.Array, rounding: jax.Array, ties: jax.Array, zeros: jax.Array):
        self.key, self.rounding, self.ties, self.zeros = key, rounding, ties, zeros

    def keys(self, a: jax.Array, count: int) -> jax.Array:
        """Return keys that differ from one array to the next, and between lanes of a vmap."""
        mark = jnp.sum(jnp.abs(a)).astype(jnp.float32)
        key = jax.random.fold_in(self.key, lax.bitcast_convert_type(mark, jnp.uint32))
        return jax.random.split(key, count)

    def noise(self, key: jax.Array, size: jax.Array, shape: tuple[int, ...], dtype: Any):
        """Return random numbers of a size."""
        size = self.rounding.astype(size.dtype) * size
        return size.astype(dtype) * jax.random.normal(key, shape, dtype)


# `with disturbing(disturbance): ...`; compared by identity, as jax.jit's cache needs it.
disturbing = jax.make_user_context(default_value=None)


def _root_mean_square(X: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(jnp.abs(X)))) if X.size else jnp.zeros((), X.real.dtype)


def _splitting(disturbance: Disturbance, values: jax.Array, null: jax.Array, key, dtype: Any):
    """Return a Hermitian matrix that parts tied values, and fills the block of the null ones.

    To a distance of eps^(1/5), relative to the value or to the distance to the next one: the error
    of fourth order, and rounding over the distance, then both are eps^(4/5).
    """
    size = jnp.abs(values)
    largest = jnp.max(size, initial=0)
    least = _tolerances.degeneracy_tol(values.dtype) * largest
    both = null[:, None] & null[None, :]
    distance = jnp.abs(values[:, None] - values[None, :])
    tied = (distance <= least) & ~null[:, None] & ~null[None, :]
    others = jnp.min(jnp.where(tied | both, largest, distance), axis=1, initial=jnp.inf)
    width = jnp.minimum(jnp.where(null, largest, size), others)
    width = jnp.maximum(_tolerances.eps(values.dtype) ** 0.2 * width, 4 * least)
    tied = tied & (jnp.sum(tied, axis=1) > 1)[:, None]
    factor = jnp.where(tied, disturbance.ties, jnp.where(both, disturbance.zeros, 0))
    phase, length = jax.random.split(key)
    # Bounded away from 0, so that no tied pair stays as it is, and from above.
    M = jnp.sign(jax.random.normal(phase, tied.shape, dtype))
    M = M * jax.random.uniform(length, tied.shape, values.dtype, 0.5, 1.0).astype(dtype)
    M = jnp.triu(M, 1) + adjoint(jnp.triu(M))
    scale = factor.astype(values.dtype) * jnp.sqrt(width[:, None] * width[None, :])
    return herm(M) * scale.astype(dtype)


def singular_numbers(
    a: jax.Array,
    W: SVDResult,
    solve: Callable[[jax.Array], SVDResult],
    *,
    hermitian: bool = False,
    raw: bool = False,
) -> SVDResult:
    """Return the SVD W of a as it is, or that of a + E under a disturbance.

    Args:
        a: one matrix, (m, n), a constant.
        W: its SVD, thin or full.
        solve: what computed it.
        hermitian: keep a Hermitian.
        raw: the rule drops terms at ties and zeros: split them when asked to.
    """
    disturbance: Disturbance | None = disturbing.value
    k = W.S.shape[0]
    if disturbance is None or k == 0:
        return W
    U, S, Vh = W.U[:, :k], W.S, W.Vh[:k]
    residual = a - product(U * S[None, :].astype(U.dtype), Vh)
    size = jnp.maximum(_root_mean_square(residual) / 2, _tolerances.rounding(S.dtype) * S[0])
    one, other = disturbance.keys(a, 2)
    E = (disturbance.rounding.astype(size.dtype) * size).astype(a.dtype) * jax.random.normal(
        one, a.shape, a.dtype
    )
    if hermitian:
        E = herm(E)
    elif raw:
        null = S <= _tolerances.rank_tol(S.dtype, *a.shape) * S[0]
        M = _splitting(disturbance, S, null, other, a.dtype)
        E = E + product(product(U, M), Vh)
    return solve(a + E)


def eigen_numbers(
    a: jax.Array, W: tuple[jax.Array, jax.Array], solve: Callable, *, raw: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return eigenvalues and eigenvectors W = (w, Q) of a, or those of a + E, E Hermitian."""
    disturbance: Disturbance | None = disturbing.value
    w, Q = W
    if disturbance is None or w.shape[0] == 0:
        return W
    residual = a - product(Q * w[None, :].astype(Q.dtype), adjoint(Q))
    largest = jnp.max(jnp.abs(w))
    size = jnp.maximum(_root_mean_square(residual) / 2, _tolerances.rounding(w.dtype) * largest)
    one, other = disturbance.keys(a, 2)
    E = (disturbance.rounding.astype(size.dtype) * size).astype(a.dtype) * jax.random.normal(
        one, a.shape, a.dtype
    )
    E = 2**0.5 * herm(E)
    if raw:
        M = _splitting(disturbance, w, jnp.zeros(w.shape, bool), other, a.dtype)
        E = E + product(product(Q, M), adjoint(Q))
    return solve(a + E)


def refined(A: Operator, ritz: SVDResult, k: int, numbers: Numbers, solve: Callable) -> SVDResult:
    """Return approximate triplets, the first k after a Newton step and a random E.

    With the residuals A V - U S, A^H U - V S the exact vectors are, to first order, U + X, V + Y
    for the X and Y of the rule's own system (`rules.truncated`):

        X S - A_perp Y = (I - U U^H) A V,   Y S - A_perp^H X = (I - V V^H) A^H U

    followed by the SVD of A between the two. Columns of zeros, which pad a result, stay zeros.

    Args:
        A: the matrix as an operator, a constant.
        ritz: k + p approximate triplets.
        k: triplets kept.
        numbers: the constants of the solve.
        solve: SVD of a small matrix.
    """
    disturbance: Disturbance = disturbing.value
    U, S, V = ritz.U[:, :k], ritz.S[:k], adjoint(ritz.Vh[:k])
    kept = (S > 0).astype(U.dtype)[None, :]
    padding = jnp.diag(1 - kept[0])
    keys = disturbance.keys(ritz.U, 4)
    size = _tolerances.rounding(S.dtype) * S[0]

    def noise(key, shape):
        return disturbance.noise(key, size, shape, U.dtype)

    b_U = project_out(U, A.matmat(V) + noise(keys[0], U.shape))
    b_V = project_out(V, A.rmatmat(U) + noise(keys[1], V.shape))
    X, Y = numbers.outer((b_U * kept, b_V * kept))

    def orthonormal(Q):
        L = lax.linalg.cholesky(adjoint_product(Q, Q) + padding)
        return lax.linalg.triangular_solve(L, Q, transpose_a=True, conjugate_a=True, lower=True)

    U, V = orthonormal(U + X * kept), orthonormal(V + Y * kept)
    B = adjoint_product(U, A.matmat(V))
    null = S <= _tolerances.rank_tol(S.dtype, *A.shape) * S[0]
    M = _splitting(disturbance, S, null, keys[2], U.dtype)
    B = (B + M + noise(keys[3], B.shape)) * kept * kept.T
    left, S, right = solve(B)
    U, S, Vh = product(U, left) * kept, S * kept[0].real, kept.T * product(right, adjoint(V))
    return SVDResult(
        jnp.concatenate([U, ritz.U[:, k:]], axis=1),
        jnp.concatenate([S, ritz.S[k:]]),
        jnp.concatenate([Vh, ritz.Vh[k:]]),
    )


def refined_pairs(
    A: Operator, pairs: EighResult, k: int, outer: Callable, order: Callable, *, raw: bool
) -> EighResult:
    """Return approximate eigenpairs, the first k after a Newton step and a random E.

    Args:
        A: the Hermitian matrix as an operator, a constant.
        pairs: k + p approximate pairs.
        k: pairs kept.
        outer: solves the rule's system X C - A_perp X = b (`rules.eigenpairs`).
        order: brings eigenvalues and vectors, ascending, into the order of ``pairs``.
        raw: as for `singular_numbers`.
    """
    disturbance: Disturbance = disturbing.value
    w, Q = pairs.eigenvalues[:k], pairs.eigenvectors[:, :k]
    keys = disturbance.keys(Q, 3)
    size = _tolerances.rounding(w.dtype) * jnp.max(jnp.abs(w))
    noise = disturbance.noise(keys[0], size, Q.shape, Q.dtype)
    Q = Q + outer(project_out(Q, A.matmat(Q) + noise))
    L = lax.linalg.cholesky(adjoint_product(Q, Q))
    Q = lax.linalg.triangular_solve(L, Q, transpose_a=True, conjugate_a=True, lower=True)
    B = adjoint_product(Q, A.matmat(Q))
    B = B + disturbance.noise(keys[1], size, B.shape, Q.dtype)
    if raw:
        B = B + _splitting(disturbance, w, jnp.zeros(w.shape, bool), keys[2], Q.dtype)
    Y, w = lax.linalg.eigh(herm(B), symmetrize_input=False)
    w, Y = order(w, Y)
    return EighResult(
        jnp.concatenate([w, pairs.eigenvalues[k:]]),
        jnp.concatenate([product(Q, Y), pairs.eigenvectors[:, k:]], axis=1),
    )

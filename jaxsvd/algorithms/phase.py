"""The phase of singular vectors: the one convention of the library, and how it is kept.

(U, V) and (U Q, V Q) with Q a diagonal matrix of signs or phases are the same SVD. Here the
largest entry of every column of U is real and positive (of every column of V for columns that only
V has). Signs are constants, so an algorithm may fix them itself. Phases are fixed by ordinary code
outside the derivative rules: the index is a constant, the phase itself is differentiated, so that
at distinct singular values the derivative of every loss, one that depends on the phase included, is
the derivative of the function as it stands.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .._tolerances import phase_tol
from .._types import SVDResult


def leading_phases(vectors: jax.Array, axis: int) -> jax.Array:
    """Return the phase, of modulus one, of the leading entry of each vector along an axis.

    The leading entry is the first of those within sqrt(eps) of the vector's largest.
    """
    magnitude = jnp.abs(lax.stop_gradient(vectors))
    enough = jnp.max((1 - phase_tol(vectors.dtype)) * magnitude, axis=axis, keepdims=True)
    # Minimum and sum, not argmax and gather: these run over a batch of small matrices in a third of
    # the time on CPU, and keep a sharded axis where it is.
    place = lax.broadcasted_iota(jnp.int32, vectors.shape, axis % vectors.ndim)
    last = vectors.shape[axis]
    if not jnp.iscomplexobj(vectors):
        # The place and, as its last bit, the sign, in one pass over the memory. So few operations
        # that XLA does not spread 4,000 entries over threads, 8 % of the time of 8 x 8 by Jacobi.
        negative = jnp.where(vectors <= -enough, 2 * place + 1, 2 * last)
        leading = jnp.min(jnp.where(vectors >= enough, 2 * place, negative), axis=axis)
        return (1 - 2 * (leading % 2)).astype(vectors.dtype)
    candidate = magnitude >= enough
    leading = jnp.min(jnp.where(candidate, place, last), axis=axis, keepdims=True)
    entry = jnp.sum(jnp.where(place == leading, vectors, 0), axis=axis)
    zero = entry == 0  # in no vector of norm one, but in the columns of zeros that pad a result
    entry = jnp.where(zero, 1, entry)
    return entry / jnp.abs(entry).astype(entry.dtype)


def column_phases(X: jax.Array) -> jax.Array:
    """Return the phase of the leading entry of each column: (..., m, k) -> (..., k)."""
    # LAPACK stores columns one after the other: along them runs the memory.
    return leading_phases(X.mT, -1)


def phases_of_pairs(
    left: jax.Array, right: jax.Array, columns: int, entries: int
) -> tuple[jax.Array, jax.Array]:
    """Return the phases to divide left vectors and conjugates of right vectors by.

    Args:
        left: left singular vectors, p of them along axis ``columns``.
        right: conjugates of the right ones, q of them; the vectors beyond the first min(p, q) of
            either are in no pair.
        columns: the axis that counts the vectors.
        entries: the axis along them.
    """
    p, q = left.shape[columns], right.shape[columns]
    phases = leading_phases(left, entries)
    places = columns % left.ndim - (entries % left.ndim < columns % left.ndim)
    shared = lax.slice_in_dim(phases, 0, min(p, q), axis=places)
    conjugate = jnp.conj(shared)
    if q > p:  # the extra right vectors are fixed by themselves
        extra = lax.slice_in_dim(right, p, q, axis=columns % right.ndim)
        conjugate = jnp.concatenate([conjugate, leading_phases(extra, entries)], axis=places)
    return phases, conjugate


def fix_phases(result: SVDResult) -> SVDResult:
    """Return the same SVD with the leading entry of every column of U real and positive.

    Args:
        result: U (..., m, k) or (..., m, m), S (..., k), Vh (..., k, n) or (..., n, n).

    Returns:
        The factors of the same matrix, shapes unchanged; in O((m + n) k).
    """
    U, S, Vh = result
    if min(U.shape[-2:]) == 0 or min(Vh.shape[-2:]) == 0:
        return result
    left, right = phases_of_pairs(U.mT, Vh, -2, -1)
    return SVDResult(U * jnp.conj(left)[..., None, :], S, Vh * jnp.conj(right)[..., :, None])

"""The phase of singular vectors: the one convention of the library, and how it is kept.

(U, V) and (U Q, V Q) with Q a diagonal matrix of signs or phases are the same SVD. Here the
largest entry of every column of U is real and positive (of every column of V for columns that only
V has). It is ordinary code outside the derivative rules: the index is a constant, the phase itself
is differentiated, so that at distinct singular values the derivative of every loss, one that
depends on the phase included, is the derivative of the function as it stands.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .._tolerances import phase_tol
from .._types import SVDResult


def column_phases(X: jax.Array) -> jax.Array:
    """Return the phase of the leading entry of each column: (m, k) -> (k,), of modulus one.

    The leading entry is the first of those within sqrt(eps) of the column's largest.
    """
    rows = X.mT  # LAPACK stores columns one after the other: along them runs the memory
    magnitude = jnp.abs(lax.stop_gradient(rows))
    largest = jnp.max(magnitude, axis=1, keepdims=True)
    # Minimum and sum, not argmax and gather: these run over a batch of small matrices in a third of
    # the time on CPU, and keep a sharded axis where it is.
    place = lax.broadcasted_iota(jnp.int32, rows.shape, 1)
    candidate = magnitude >= (1 - phase_tol(X.dtype)) * largest
    leading = jnp.min(jnp.where(candidate, place, X.shape[0]), axis=1, keepdims=True)
    entry = jnp.sum(jnp.where(place == leading, rows, 0), axis=1)
    if not jnp.iscomplexobj(X):
        return jnp.where(entry < 0, -1, 1).astype(X.dtype)
    zero = entry == 0  # in no column of norm one, but in the columns of zeros that pad a result
    entry = jnp.where(zero, 1, entry)
    return entry / jnp.abs(entry).astype(entry.dtype)


def fix_phases(result: SVDResult) -> SVDResult:
    """Return the same SVD with the leading entry of every column of U real and positive.

    Args:
        result: U (m, k) or (m, m), S (k,), Vh (k, n) or (n, n).

    Returns:
        The factors of the same matrix, shapes unchanged; in O((m + n) k).
    """
    U, S, Vh = result
    k = S.shape[0]
    if min(U.shape) == 0 or min(Vh.shape) == 0:
        return result
    phases_U = column_phases(U)
    phases_V = phases_U[: Vh.shape[0]]
    if Vh.shape[0] > k:  # the extra columns of V are fixed by themselves
        extra = column_phases(jnp.conj(Vh[k:]).mT)
        phases_V = jnp.concatenate([phases_U[:k], extra])
    return SVDResult(U * jnp.conj(phases_U)[None, :], S, Vh * phases_V[:, None])

"""The freedom that a matrix leaves in its singular vectors, and what a cotangent asks of it.

A = U S V^H is unchanged under (U, V) -> (U Q, V Q) with Q unitary and block diagonal over the tied
singular values (phases or signs for single ones), and under separate rotations of the columns of U
and of V that belong to zero singular values or lie outside the thin factors. A loss whose value
changes under such a Q has no derivative there. To first order the change is Re tr(W^H (a + b)) for
Q = exp(W), with a = skew(U^H gU), b = skew(V^H gV); in the null spaces a and b count separately.

References: MatrixAlgebraKit.jl, "gauge" of its pullbacks; Wan and Zhang (2019), section 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import _tolerances
from .._types import SVDResult
from ..algorithms.products import adjoint, adjoint_product
from .dense import skew


class GaugeDependence(NamedTuple):
    """The gauge-dependent part of a cotangent, relative to the norm of the cotangents.

    Attributes:
        pair: |a + b| at pairs of columns tied at a singular value > 0, (k, k).
        left: |a| at pairs of columns of U in the null space, (columns of U, columns of U).
        right: |b| at pairs of columns of V in the null space, (columns of V, columns of V).
        share: |a| / (|a| + |b|) of the pair: 1 if U alone is the cause, 0 if Vh alone is, (k, k).
    """

    pair: jax.Array
    left: jax.Array
    right: jax.Array
    share: jax.Array

    def size(self) -> jax.Array:
        """Return the largest entry of all."""
        return jnp.max(jnp.stack([jnp.max(x, initial=0) for x in self[:3]]))


def skew_parts(result: SVDResult, cotangent: SVDResult) -> tuple[jax.Array, jax.Array]:
    """Return a = skew(U^H gU) and b = skew(V^H gV) from cotangents in JAX's convention."""
    gU, gV = jnp.conj(cotangent.U), cotangent.Vh.mT
    a = skew(adjoint_product(result.U, gU))
    return a, skew(adjoint_product(adjoint(result.Vh), gV))


def gauge_dependence(
    result: SVDResult, cotangent: SVDResult, *, degeneracy_tol: float | None = None
) -> GaugeDependence:
    """Return the part of the cotangents of U and Vh that depends on the choice of vectors.

    Zero up to rounding for a gauge-free loss. For real factors the sign of a single pair is a
    discrete choice that no derivative sees; for complex ones its phase stands on the diagonal.

    Args:
        result: U (m, k) or (m, m), S (k,), Vh (k, n) or (n, n).
        cotangent: cotangents of the same shapes, in JAX's convention.
        degeneracy_tol: gap, relative to s_1, below which two values count as tied.

    Returns:
        GaugeDependence, every entry relative to |gU|_F + |gV|_F.
    """
    U, S, Vh = result
    k = S.shape[0]
    if degeneracy_tol is None:
        degeneracy_tol = _tolerances.degeneracy_tol(S.dtype)
    zero = _tolerances.rank_tol(S.dtype, U.shape[0], Vh.shape[1]) * S[0]
    a, b = skew_parts(result, cotangent)
    norm = jnp.linalg.norm(cotangent.U) + jnp.linalg.norm(cotangent.Vh)
    norm = jnp.where(norm == 0, 1, norm)
    phase_is_free = jnp.iscomplexobj(U)

    def magnitude(X, free):
        if not phase_is_free:
            free = free & ~jnp.eye(free.shape[0], dtype=bool)
        return jnp.where(free, jnp.abs(X), 0) / norm

    def null(columns):
        outside = jnp.zeros(columns - k, bool)
        inside = jnp.concatenate([S > zero, outside])
        return ~inside[:, None] & ~inside[None, :]

    tied = jnp.abs(S[:, None] - S[None, :]) <= degeneracy_tol * S[0]
    inner = tied & (S > zero)[:, None] & (S > zero)[None, :]
    a_k, b_k = a[:k, :k], b[:k, :k]
    total = jnp.abs(a_k) + jnp.abs(b_k)
    return GaugeDependence(
        magnitude(a_k + b_k, inner),
        magnitude(a, null(U.shape[1])),
        magnitude(b, null(Vh.shape[0])),
        jnp.abs(a_k) / jnp.where(total == 0, 1, total),
    )

"""The derivative of raw eigenpairs A = Q diag(w) Q^H of a Hermitian matrix.

Derivation. Differentiate A Q = Q diag(w) and multiply by Q^H: with W = Q^H dQ, skew-Hermitian, and
P = Q^H dA Q, Hermitian as dA is,

    P = dw + W diag(w) - diag(w) W      dw = diag P,    W = D o P,    D_ij = 1/(w_j - w_i)

The diagonal of W is the free phase of each vector, taken as 0. Where w_i = w_j the term does not
exist: it is dropped (`degeneracy_tol`), which is exact for a loss that does not depend on the basis
of the tied pair, and otherwise loses f'(w) P_ij (use `hermitian_map` or `core_eigh` there).

The pullback is the adjoint of this map in the inner product Re tr(X^H Y), on Hermitian matrices:

    A_bar = Q [D o skew(Q^H gQ) + diag gw] Q^H

References: Giles (2008), "An extended collection of matrix derivative results", section 3.1; Magnus
(1985), "On differentiating eigenvalues and eigenvectors".
"""

import jax
import jax.numpy as jnp
from jax import lax

from .. import _tolerances
from .._types import EighResult
from ..algorithms.phase import column_phases
from ..algorithms.products import adjoint, adjoint_product, diagonal, product
from .dense import guarded_reciprocal, herm, skew


def fix_phases(result: EighResult) -> EighResult:
    """Return the same pairs with the leading entry of every vector real and positive."""
    w, Q = result
    if min(Q.shape) == 0:
        return result
    return EighResult(w, Q * jnp.conj(column_phases(Q))[None, :])


def differences(w: jax.Array, degeneracy_tol: float | None = None) -> jax.Array:
    """Return D_ij = 1/(w_j - w_i), 0 where tied relative to the largest |w|, (k, k)."""
    if degeneracy_tol is None:
        degeneracy_tol = _tolerances.degeneracy_tol(w.dtype)
    scale = jnp.max(jnp.abs(lax.stop_gradient(w)))
    return guarded_reciprocal(w[None, :] - w[:, None], degeneracy_tol * scale)


def eigh_pushforward(
    result: EighResult, dA: jax.Array, *, degeneracy_tol: float | None = None
) -> EighResult:
    """Return the tangents (dw, dQ) of the eigenpairs: dw = diag P, dQ = Q [D o P].

    Cost: three products of n^3.

    Args:
        result: eigenvalues (n,) and eigenvectors (n, n).
        dA: tangent of the matrix, (n, n), of which the Hermitian part counts.
        degeneracy_tol: gap, relative to the largest |w|, below which two values count as tied;
            default eps^(3/4).

    Returns:
        Tangents of the same shapes.
    """
    w, Q = result
    if w.shape[0] == 0:
        return jax.tree.map(jnp.zeros_like, result)
    P = herm(adjoint_product(Q, product(dA, Q)))
    D = differences(w, degeneracy_tol).astype(Q.dtype)
    return EighResult(jnp.real(diagonal(P)), product(Q, D * P))


def eigh_pullback(
    result: EighResult, cotangent: EighResult, *, degeneracy_tol: float | None = None
) -> jax.Array:
    """Return the cotangent of A from the cotangents of the eigenpairs.

    conj(Q [D o skew(Q^H gQ) + diag gw] Q^H) with gQ the conjugate of the cotangent, in JAX's
    convention (see `svd_pullback`). Cost: three products of n^3.

    Args:
        result: eigenvalues (n,) and eigenvectors (n, n).
        cotangent: cotangents of the same shapes.
        degeneracy_tol: as in `eigh_pushforward`.

    Returns:
        The cotangent of A, (n, n), Hermitian.
    """
    w, Q = result
    if w.shape[0] == 0:
        return Q
    D = differences(w, degeneracy_tol).astype(Q.dtype)
    of_vectors = D * skew(adjoint_product(Q, jnp.conj(cotangent.eigenvectors)))
    inner = of_vectors + jnp.diag(cotangent.eigenvalues).astype(Q.dtype)
    return jnp.conj(product(product(Q, inner), adjoint(Q)))

"""The derivative of the raw triplets A = U diag(S) V^H: pushforward and pullback.

Derivation. Differentiate A = U S V^H and multiply by U^H and V; with the skew-Hermitian unknowns
W = U^H dU and Z = V^H dV, and P = U^H dA V,

    P = W S + dS - S Z,        dS real and diagonal.

Its Hermitian and skew parts, entry by entry, with D_ij = 1/(s_j - s_i), E_ij = 1/(s_i + s_j):

    dS = Re diag P
    W + Z = 2 D o herm P,      W - Z = 2 E o skew P      (off the diagonal; on it W_ii + Z_ii is the
                                                          free phase of the pair, taken as 0)
    W = D o herm P + E o skew P,      Z = D o herm P - E o skew P

The parts of dU and dV outside the ranges follow from A V = U S and A^H U = V S:

    dU = U W + (I - U U^H) dA V S^-1,      dV = V Z + (I - V V^H) dA^H U S^-1

The pullback is the adjoint of this map in the inner product Re tr(X^H Y).

Where s_i = s_j the term in D does not exist: it is dropped (`degeneracy_tol`), which is exact for
a loss that does not depend on the basis of the tied pair and otherwise loses f'(s) herm(Q)_ij (use
`spectral_map` or `core_svd` there). Where s_i = 0 the terms in 1/s are dropped (`rank_tol`).

With full matrices the extra columns N of U move by dN = -U (dU^H N), those of V alike: N^H dN = 0
is a choice of basis, exact for losses that do not depend on it.

References: Giles (2008), "An extended collection of matrix derivative results", section 3.5;
Wan and Zhang (2019), arXiv:1909.02659, eq. 8 (the diagonal of E: the complex phase term);
Townsend (2016), "Differentiating the singular value decomposition".
"""

import jax
import jax.numpy as jnp

from .. import _tolerances
from .._types import SVDResult
from ..algorithms.products import adjoint, adjoint_product, diagonal, product


def herm(P: jax.Array) -> jax.Array:
    """Return the Hermitian part (P + P^H) / 2."""
    return (P + adjoint(P)) / 2


def skew(P: jax.Array) -> jax.Array:
    """Return the skew-Hermitian part (P - P^H) / 2."""
    return (P - adjoint(P)) / 2


def guarded_reciprocal(x: jax.Array, tol: jax.Array | float) -> jax.Array:
    """Return 1/x where |x| > tol and 0 elsewhere, finite in every derivative."""
    safe = jnp.abs(x) > tol
    return jnp.where(safe, 1 / jnp.where(safe, x, 1), 0)


def reciprocals(
    S: jax.Array, m: int, n: int, degeneracy_tol: float | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return D_ij = 1/(s_j - s_i), E_ij = 1/(s_i + s_j), both (k, k), and 1/s_i, all guarded."""
    if degeneracy_tol is None:
        degeneracy_tol = _tolerances.degeneracy_tol(S.dtype)
    scale = jax.lax.stop_gradient(S[0])
    zero = _tolerances.rank_tol(S.dtype, m, n) * scale
    row, column = S[None, :], S[:, None]
    D = guarded_reciprocal(row - column, degeneracy_tol * scale)
    return D, guarded_reciprocal(row + column, zero), guarded_reciprocal(S, zero)


def svd_pushforward(
    result: SVDResult, dA: jax.Array, *, degeneracy_tol: float | None = None
) -> SVDResult:
    """Return the tangents (dU, dS, dVh) of the singular triplets.

    dU = U [D o herm P + E o skew P] + (I - U U^H) dA V S^-1, dV alike; see the module's derivation.

    Cost: one product with dA on either side and three products of m k^2; nothing of size m x m
    unless the result holds full matrices.

    Args:
        result: U (m, k) or (m, m), S (k,), Vh (k, n) or (n, n), with k = min(m, n).
        dA: tangent of the matrix, (m, n).
        degeneracy_tol: gap, relative to s_1, below which two values count as tied; default
            eps^(3/4).

    Returns:
        Tangents of the same shapes.
    """
    U, S, Vh = result
    k, m, n = S.shape[0], U.shape[0], Vh.shape[1]
    if k == 0:
        return jax.tree.map(jnp.zeros_like, result)
    D, E, S_inv = (x.astype(U.dtype) for x in reciprocals(S, m, n, degeneracy_tol))
    U1, V1 = U[:, :k], adjoint(Vh[:k])
    dAV = product(dA, V1)
    P = adjoint_product(U1, dAV)
    symmetric, antisymmetric = D * herm(P), E * skew(P)
    W, Z = symmetric + antisymmetric, symmetric - antisymmetric
    # (I - U U^H) dA V S^-1 = (dA V - U P) S^-1, its second half folded into the product with U.
    if m > k:
        dU = product(U1, W - P * S_inv[None, :]) + dAV * S_inv[None, :]
    else:
        dU = product(U1, W)
    if n > k:
        dAHU = adjoint_product(dA, U1)
        dV = product(V1, Z - adjoint(P) * S_inv[None, :]) + dAHU * S_inv[None, :]
    else:
        dV = product(V1, Z)
    if U.shape[1] > k:
        dU = jnp.concatenate([dU, -product(U1, adjoint_product(dU, U[:, k:]))], axis=1)
    if Vh.shape[0] > k:
        dV = jnp.concatenate([dV, -product(V1, adjoint_product(dV, adjoint(Vh[k:])))], axis=1)
    return SVDResult(dU, jnp.real(diagonal(P)), adjoint(dV))


def svd_pullback(
    result: SVDResult, cotangent: SVDResult, *, degeneracy_tol: float | None = None
) -> jax.Array:
    """Return the cotangent of A from the cotangents of the triplets.

    With a = skew(U^H gU), b = skew(V^H gV):

        A_bar = U [D o (a+b) + E o (a-b) + diag gS] V^H
                + (I - U U^H) gU S^-1 V^H + U S^-1 gV^H (I - V V^H)

    In JAX's convention: cotangents are those that `jax.vjp` passes, gU = conj(ct_U),
    gV = ct_Vh^T, and the result is conj(A_bar). Cost: four products of m n k.

    Args:
        result: U (m, k) or (m, m), S (k,), Vh (k, n) or (n, n), with k = min(m, n).
        cotangent: cotangents of the same shapes.
        degeneracy_tol: as in `svd_pushforward`.

    Returns:
        The cotangent of A, (m, n).
    """
    U, S, Vh = result
    k, m, n = S.shape[0], U.shape[0], Vh.shape[1]
    if k == 0:
        return jnp.zeros((m, n), U.dtype)
    gU, gV = jnp.conj(cotangent.U), cotangent.Vh.mT
    U1, V1 = U[:, :k], adjoint(Vh[:k])
    if U.shape[1] > k:  # dN = -U (dU^H N): its adjoint adds -N (gN^H U) to gU
        N, gN = U[:, k:], gU[:, k:]
        gU = gU[:, :k] - product(N, adjoint_product(gN, U1))
    if Vh.shape[0] > k:
        M, gM = adjoint(Vh[k:]), gV[:, k:]
        gV = gV[:, :k] - product(M, adjoint_product(gM, V1))
    D, E, S_inv = (x.astype(U.dtype) for x in reciprocals(S, m, n, degeneracy_tol))
    UgU, VgV = adjoint_product(U1, gU), adjoint_product(V1, gV)
    a, b = skew(UgU), skew(VgV)
    core = D * (a + b) + E * (a - b) + jnp.diag(cotangent.S).astype(U.dtype)
    left, right = product(U1, core), jnp.zeros_like(V1)
    if m > k:
        left = left + (gU - product(U1, UgU)) * S_inv[None, :]
    A_bar = product(left, Vh[:k])
    if n > k:
        right = (gV - product(V1, VgV)) * S_inv[None, :]
        A_bar = A_bar + product(U1, adjoint(right))
    return jnp.conj(A_bar)


def svdvals_pushforward(result: SVDResult, dA: jax.Array) -> jax.Array:
    """Return dS = Re diag(U^H dA V), (k,); one product with dA."""
    U, S, Vh = result
    k = S.shape[0]
    dAV = product(dA, adjoint(Vh[:k]))
    return jnp.real(jnp.sum(jnp.conj(U[:, :k]) * dAV, axis=0))


def svdvals_pullback(result: SVDResult, gS: jax.Array) -> jax.Array:
    """Return the cotangent of A from that of S, in JAX's convention: conj(U diag(gS) V^H)."""
    U, S, Vh = result
    k = S.shape[0]
    return jnp.conj(product(U[:, :k] * gS[None, :].astype(U.dtype), Vh[:k]))

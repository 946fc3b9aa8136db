"""The derivative of the core triplets A_k = U C V^H: no gap inside the block at all.

Derivation. C = diag(S) in value, but its tangent may be any Hermitian matrix, so that the block
spanned by the k kept pairs need not be diagonalised again. Take the basis that moves least inside
the kept subspaces, U^H dU = K = -V^H dV (parallel transport). With P = U^H dA V, the block of
dA = dU C V^H + U dC V^H + U C dV^H gives

    P = K C + dC + C K,        dC = herm P,        C K + K C = skew P.

Outside the block let dU = U K + X, dV = -V K + Y with U^H X = 0, V^H Y = 0; A V = U C and
A^H U = V C give, with A_perp = (I - U U^H) A (I - V V^H) = A - U C V^H,

    X C - A_perp Y   = (I - U U^H) dA V
    Y C - A_perp^H X = (I - V V^H) dA^H U

which is nonsingular exactly when s_k > s_{k+1} (for k = min(m, n): when s_k > 0).

Every loss that is unchanged under U -> U Q, C -> Q^H C Q, V -> V Q for each unitary Q of size k has
its exact derivative this way, to every order. For that C must be treated as the full matrix it is:
the three solves are `lax.custom_linear_solve`, whose equation is differentiated while the numbers
(diagonal C, closed forms) serve the solution. Differentiating 1/(c_i + c_j) elementwise is wrong
by 10 to 20 % at second order.

References: the parallel transport gauge of the polar and Bures geometry, Bhatia, Jain and Lim
(2019), "On the Bures-Wasserstein distance", section 3; Wan and Zhang (2019), arXiv:1909.02659.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .. import _tolerances
from .._types import CoreSVD, SVDResult
from ..algorithms.products import adjoint, adjoint_product, product
from ..operators.base import Operator
from ..operators.dense import Dense
from .dense import guarded_reciprocal, herm, skew
from .truncated import Numbers, Pair, outside, solve_linear


def full_numbers(result: SVDResult, k: int) -> Numbers:
    """Return the constants for the k leading triplets where the whole thin SVD is at hand.

    With the discarded triplets (U2, s2, V2), u = U2^H b_U, v = V2^H b_V the system splits into
    2 x 2 ones:  x + y = (u + v)/(s_j - s2_i),  x - y = (u - v)/(s_j + s2_i).
    """
    U, S, Vh = (lax.stop_gradient(x) for x in result)
    m, n = U.shape[0], Vh.shape[1]
    zero = _tolerances.rank_tol(S.dtype, m, n) * S[0]
    s, s2 = S[:k], S[k:]
    U2, V2 = U[:, k:], adjoint(Vh[k:])
    # A tie across the cut has no derivative; the guard keeps the value finite.
    difference = guarded_reciprocal(s[None, :] - s2[:, None], zero).astype(U.dtype)
    total = guarded_reciprocal(s[None, :] + s2[:, None], zero).astype(U.dtype)
    s_inv = guarded_reciprocal(s, zero)[None, :].astype(U.dtype)

    def outer(rhs: Pair) -> Pair:
        b_U, b_V = rhs
        u, v = adjoint_product(U2, b_U), adjoint_product(V2, b_V)
        plus, minus = (u + v) * difference, (u - v) * total
        X = product(U2, (plus + minus) / 2 - u * s_inv) + b_U * s_inv
        Y = product(V2, (plus - minus) / 2 - v * s_inv) + b_V * s_inv
        return X, Y

    return Numbers(s, outer, zero)


def core_pushforward(A: jax.Array, result: CoreSVD, dA: jax.Array, numbers: Numbers) -> CoreSVD:
    """Return the tangents (dU, dC, dVh) of the core triplets of an array; see `core_tangents`.

    Args:
        A: the matrix, (m, n).
        result: U (m, k), C (k, k), Vh (k, n).
        dA: tangent of the matrix, (m, n).
        numbers: the constants of the solves, from `full_numbers` or `iterative_numbers`.

    Returns:
        Tangents of the same shapes. Cost: one product with dA on either side, and that of
        `core_tangents`.
    """
    products = product(dA, adjoint(result.Vh)), adjoint_product(dA, result.U)
    return core_tangents(Dense(A), result, products, numbers)


def core_tangents(A: Operator, result: CoreSVD, products: Pair, numbers: Numbers) -> CoreSVD:
    """Return the tangents (dU, dC, dVh) of the core triplets, linear in dA.

    dC = herm P,  dU = U K + X,  dV = -V K + Y,  C K + K C = skew P; see the module's derivation.

    Args:
        A: the matrix as an operator, differentiable.
        result: U (m, k), C (k, k), Vh (k, n).
        products: dA V (m, k) and dA^H U (n, k).
        numbers: the constants of the solves, from `full_numbers` or `iterative_numbers`.

    Returns:
        Tangents of the same shapes. Cost: four products of m k^2 and those of ``numbers.outer``.
    """
    U, C, Vh = result
    (m, k), n = U.shape, Vh.shape[1]
    V = adjoint(Vh)
    dAV, dAHU = products
    P = adjoint_product(U, dAV)

    total = guarded_reciprocal(numbers.s[:, None] + numbers.s[None, :], numbers.zero)
    K = solve_linear(
        lambda K: product(C, K) + product(K, C), skew(P), lambda b: b * total.astype(b.dtype)
    )
    dU, dV = product(U, K), -product(V, K)

    b_U = dAV - product(U, P)
    b_V = dAHU - product(V, adjoint(P))
    if k < min(m, n):
        X, Y = outside(A, U, V, lambda X: product(X, C), (b_U, b_V), numbers)
        dU, dV = dU + X, dV + Y
    else:  # A_perp = 0, and the square factor has no outside
        s_inv = guarded_reciprocal(numbers.s, numbers.zero)[None, :]

        def divide(b):
            return solve_linear(
                lambda X: product(X, C), b, lambda rhs: rhs * s_inv.astype(rhs.dtype)
            )

        if m > k:
            dU = dU + divide(b_U)
        if n > k:
            dV = dV + divide(b_V)
    return CoreSVD(dU, herm(P), adjoint(dV))


def core_pullback(result: CoreSVD, cotangent: CoreSVD, numbers: Numbers) -> jax.Array:
    """Return the cotangent of A from the cotangents of the core triplets.

    With a = skew(U^H gU), b = skew(V^H gV), T = E o (a - b) and (X, Y) solving the system of the
    derivation for the right-hand sides (I - U U^H) gU, (I - V V^H) gV:

        A_bar = U [T + herm gC] V^H + X V^H + U Y^H

    In JAX's convention (see `svd_pullback`). Cost: two products of m n k and those of
    `numbers.outer`.

    Args:
        result: U (m, k), C (k, k) diagonal in value, Vh (k, n).
        cotangent: cotangents of the same shapes.
        numbers: the constants of the solves, from `full_numbers`.

    Returns:
        The cotangent of A, (m, n).
    """
    U, _, Vh = result
    V = adjoint(Vh)
    gU, gC, gV = jnp.conj(cotangent.U), jnp.conj(cotangent.C), cotangent.Vh.mT
    UgU, VgV = adjoint_product(U, gU), adjoint_product(V, gV)
    total = guarded_reciprocal(numbers.s[:, None] + numbers.s[None, :], numbers.zero)
    block = (skew(UgU) - skew(VgV)) * total.astype(U.dtype) + herm(gC)
    X, Y = numbers.outer((gU - product(U, UgU), gV - product(V, VgV)))
    return jnp.conj(product(product(U, block) + X, Vh) + product(U, adjoint(Y)))

"""The derivative of k extreme eigenpairs of a Hermitian matrix, from products with A alone.

Derivation. Let the columns of Q span the kept pairs, A Q = Q C with C Hermitian, diag(w) in value,
and P = Q^H dA Q. Outside the kept block dQ = X + (inside), Q^H X = 0, and differentiating A Q = Q C

    X C - A_perp X = (I - Q Q^H) dA Q,      A_perp = (I - Q Q^H) A (I - Q Q^H)

Inside it there are two choices. The raw pairs are diagonalised again, as in `rules.eigh`:

    dw = diag P,   dQ = Q [D o P] + X

The core is not: C moves as the full matrix it is and Q by parallel transport, Q^H dQ = 0,

    dC = herm P,   dQ = X

so no gap inside the block occurs, and a loss that is unchanged under Q -> Q R, C -> R^H C R for
every unitary R has exact derivatives of every order where the k kept values are apart from the
rest. With C = diag(w) the system splits into one for each column,

    (w_j - A_perp) x_j = b_j

definite for extreme pairs: at the upper end w_j exceeds every discarded value, at the lower end it
is below all of them, and for the largest magnitudes |w_j| exceeds every discarded |w|, so that the
sign of w_j decides, column by column, although the whole is indefinite. Conjugate gradients solve
all columns at once. The approximate pairs beyond k that the forward pass has anyway precondition
them: on such a vector the matrix is w_j - w_p, which is brought to w_j - w_l, l the last of them.

The system given to JAX has Q Q^H X added to it (times the size of A), so that it is nonsingular as
it stands; no right-hand side and no solution has a part there.

References: Kato, "Perturbation Theory for Linear Operators", II.2 (reduced resolvents); Hestenes
and Stiefel (1952) (conjugate gradients).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .. import _tolerances
from .._types import CoreEigh, EighResult
from ..algorithms.lanczos import distances
from ..algorithms.products import adjoint_product, diagonal, product
from ..operators.base import Operator
from .conjugate_gradients import solve
from .dense import guarded_reciprocal, herm
from .eigh import differences
from .truncated import project_out, solve_linear


class Numbers(NamedTuple):
    """The constants that serve the solve; nothing here is differentiated.

    Attributes:
        scale: size of A, the factor of Q Q^H X.
        outer: given right-hand sides (n, k), returns the X of the derivation.
    """

    scale: jax.Array
    outer: Callable[[jax.Array], jax.Array]


def _size(w: jax.Array) -> jax.Array:
    largest = jnp.max(jnp.abs(w))
    return jnp.where(largest > 0, largest, 1)


def full_numbers(result: EighResult, k: int) -> Numbers:
    """Return the constants for the k first pairs where all pairs are at hand: 1/(w_j - w_i)."""
    w, Q = (lax.stop_gradient(x) for x in result)
    scale = _size(w)
    zero = _tolerances.rank_tol(w.dtype, *Q.shape) * scale
    # A tie across the cut has no derivative; the guard keeps the value finite.
    D = guarded_reciprocal(w[None, :k] - w[k:, None], zero).astype(Q.dtype)
    kept, rest = Q[:, :k], Q[:, k:]

    def outer(b: jax.Array) -> jax.Array:
        inside = product(kept, adjoint_product(kept, b)) / scale.astype(b.dtype)
        return product(rest, D * adjoint_product(rest, b)) + inside

    return Numbers(scale, outer)


def iterative_numbers(
    A: Operator,
    ritz: EighResult,
    k: int,
    which: str,
    *,
    tol: float | jax.Array,
    max_iterations: int,
    strict: bool = False,
) -> Numbers:
    """Return the constants for the k first of the approximate pairs, by conjugate gradients.

    Args:
        A: the matrix as an operator.
        ritz: k + p approximate pairs; those beyond k precondition.
        k: pairs kept.
        which: the end they are at, "LA", "SA" or "LM".
        tol: error of the solution as a whole, in the norm of the system.
        max_iterations: products with A at most.
        strict: give NaN where the tolerance is not reached, or the system is indefinite.
    """
    w, Q = (lax.stop_gradient(x) for x in ritz)
    A = lax.stop_gradient(A)
    scale, dtype = _size(w), Q.dtype
    Q, extra = Q[:, :k], Q[:, k:]
    w = w / scale
    # All distances of this system are positive: of w_j from what was discarded, times +1 or -1.
    sign, distance = distances(which, w[:k], w[k:])
    if extra.shape[1]:
        level = jnp.maximum(distance[-1:], _tolerances.eps(w.dtype))
        weight = (level / jnp.maximum(distance, 1e-3 * level) - 1).astype(dtype)

    def apply(X):
        AX = project_out(Q, A.matmat(X) / scale.astype(dtype))
        TX = sign.astype(dtype)[None, :] * (w.astype(dtype)[None, :k] * X - AX)
        return TX, jnp.zeros((), dtype)

    def precondition(X):
        if not extra.shape[1]:
            return X
        return X + product(extra, weight * adjoint_product(extra, X))

    def conjugate_gradients(b):
        return solve(
            apply,
            precondition,
            b,
            jnp.zeros((1, k), dtype),
            lambda _, rz, __: rz,  # the error in the norm of the system, but for the preconditioner
            tol=tol,
            max_iterations=max_iterations,
            strict=strict,
            others=(Q,),
        ).X

    def outer(b: jax.Array) -> jax.Array:
        outside = project_out(Q, b)
        X = project_out(Q, conjugate_gradients(sign.astype(dtype)[None, :] * outside))
        return (X + (b - outside)) / scale.astype(dtype)

    return Numbers(scale, outer)


def outside(
    A: Operator, Q: jax.Array, times_core: Callable, rhs: jax.Array, numbers: Numbers
) -> jax.Array:
    """Return the part X of dQ outside the kept subspace.

    Args:
        A: the matrix as an operator, differentiable.
        Q: kept vectors, (n, k), differentiable.
        times_core: X -> X diag(w) or X C, differentiable.
        rhs: (I - Q Q^H) dA Q.
        numbers: the constants of the solve.
    """

    def matvec(X):
        inside = product(Q, adjoint_product(Q, X))
        X = X - inside
        return times_core(X) - project_out(Q, A.matmat(X)) + numbers.scale.astype(X.dtype) * inside

    return solve_linear(matvec, rhs, numbers.outer)


def truncated_eigh_tangents(
    A: Operator,
    result: EighResult,
    dAQ: jax.Array,
    numbers: Numbers,
    degeneracy_tol: float | None = None,
) -> EighResult:
    """Return the tangents (dw, dQ) of k extreme eigenpairs, linear in dA Q.

    dw = diag P, dQ = Q [D o P] + X; see the module's derivation.

    Args:
        A: the matrix as an operator, differentiable.
        result: eigenvalues (k,) and eigenvectors (n, k).
        dAQ: dA Q of a Hermitian dA, (n, k).
        numbers: the constants of the solve.
        degeneracy_tol: as in `eigh_pushforward`.

    Returns:
        Tangents of the same shapes; cost: three products of n k^2 and that of ``numbers.outer``.
    """
    w, Q = result
    P = adjoint_product(Q, dAQ)
    dQ = product(Q, differences(w, degeneracy_tol).astype(Q.dtype) * herm(P))
    if w.shape[0] < Q.shape[0]:
        rhs = dAQ - product(Q, P)
        dQ = dQ + outside(A, Q, lambda X: X * w[None, :].astype(X.dtype), rhs, numbers)
    return EighResult(jnp.real(diagonal(P)), dQ)


def core_eigh_tangents(A: Operator, result: CoreEigh, dAQ: jax.Array, numbers: Numbers) -> CoreEigh:
    """Return the tangents (dQ, dC) of a core, linear in dA Q: dC = herm P, dQ = X.

    Args:
        A: the matrix as an operator, differentiable.
        result: Q (n, k) and C (k, k).
        dAQ: dA Q of a Hermitian dA, (n, k).
        numbers: the constants of the solve.

    Returns:
        Tangents of the same shapes; cost: two products of n k^2 and that of ``numbers.outer``.
    """
    Q, C = result
    P = adjoint_product(Q, dAQ)
    if C.shape[0] == Q.shape[0]:  # nothing is outside
        return CoreEigh(jnp.zeros_like(Q), herm(P))
    X = outside(A, Q, lambda X: product(X, C), dAQ - product(Q, P), numbers)
    return CoreEigh(X, herm(P))

"""`truncated_eigh` and `core_eigh`: extreme eigenpairs of anything Hermitian that multiplies."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from .. import _checks
from .._types import CoreEigh, EighResult, Info
from ..algorithms.lanczos import wanted_first
from ..algorithms.products import plain_product
from ..operators.base import Operator
from ..operators.dense import Dense
from ..rules.dense import herm
from ..rules.eigenpairs import (
    Numbers,
    core_eigh_tangents,
    full_numbers,
    iterative_numbers,
    truncated_eigh_tangents,
)
from ..rules.eigh import fix_phases
from ..rules.hermitian import from_triangle
from .batching import over_leading_axes, power_of_two_scale
from .disturbance import disturbing, refined_pairs
from .extreme import Config, Ritz, arguments, forward
from .placement import on_any_mesh
from .ruled import ruled
from .truncated import reachable_tol


def rule_numbers(A: Operator, ritz: Ritz, config: Config) -> Numbers:
    """Return the constants of the rule's solve: closed form, or conjugate gradients."""
    if config.method == "full":
        return full_numbers(ritz.pairs, config.k)
    return iterative_numbers(
        A,
        ritz.pairs,
        config.k,
        config.which,
        tol=jnp.clip(ritz.error, reachable_tol(A.dtype), 0.1),
        max_iterations=500,
        strict=config.strict,
    )


def settled(A: Operator, ritz: Ritz, config: Config) -> EighResult:
    """Return the pairs as they are, or as a disturbance moves them."""
    if disturbing.value is None or config.method == "full":
        return ritz.pairs  # "full" has met its disturbance in `forward`
    A, ritz = lax.stop_gradient((A, ritz))
    outer = rule_numbers(A, ritz._replace(error=ritz.error / 100), config).outer
    order = functools.partial(wanted_first, config.which)
    return refined_pairs(A, ritz.pairs, config.k, outer, order, raw=not config.core)


def tangent_product(A: Operator, dA: Operator, Q: jax.Array) -> jax.Array:
    """Return dA Q, linear in the tangent of the operator's leaves."""
    if isinstance(dA, Dense):
        return plain_product(dA.a, Q)
    return jax.jvp(lambda A: A.matmat(Q), (A,), (dA,))[1]


@ruled(static=(2,))
def truncated_pairs(A: Operator, ritz: Ritz, config: Config) -> EighResult:
    """Return the k first of the pairs ``ritz`` as a function of A."""
    del A
    w, Q = ritz.pairs
    return EighResult(w[: config.k], Q[:, : config.k])


@truncated_pairs.defjvp
def _truncated_pairs_jvp(config, primals, tangents):
    A, ritz = primals
    # The factors come from `truncated_pairs` itself and carry this rule to the next order.
    result = truncated_pairs(A, ritz, config)
    dAQ = tangent_product(A, tangents[0], result.eigenvectors)
    return result, truncated_eigh_tangents(A, result, dAQ, rule_numbers(A, ritz, config))


@ruled(static=(2,))
def core_pairs(A: Operator, ritz: Ritz, config: Config) -> CoreEigh:
    """Return (Q, C) of the k first of the pairs ``ritz`` as a function of A."""
    del A
    w, Q = ritz.pairs
    return CoreEigh(Q[:, : config.k], jnp.diag(w[: config.k]).astype(Q.dtype))


@core_pairs.defjvp
def _core_pairs_jvp(config, primals, tangents):
    A, ritz = primals
    result = core_pairs(A, ritz, config)
    dAQ = tangent_product(A, tangents[0], result.Q)
    return result, core_eigh_tangents(A, result, dAQ, rule_numbers(A, ritz, config))


def _of_operator(A: Operator, config: Config, start, seed: int) -> tuple[Any, Info]:
    found, info = forward(A, config, start, seed)
    found = settled(A, Ritz(found, info.gradient_error), config)
    if config.core:
        # The phases are constants here: no loss within the contract depends on them.
        ritz = Ritz(lax.stop_gradient(fix_phases(found)), info.gradient_error)
        result = core_pairs(A, ritz, config)
    else:
        result = fix_phases(truncated_pairs(A, Ritz(found, info.gradient_error), config))
    if config.strict:
        mark = jnp.where(info.converged, 1, jnp.nan).astype(info.gap.dtype)
        result = jax.tree.map(lambda x: x * mark.astype(x.dtype), result)
    return result, info


def _of_matrix(a: jax.Array, config: Config, symmetrize: bool, start, seed: int):
    scale = power_of_two_scale(a)
    a = a / scale.astype(a.dtype)
    result, info = _of_operator(Dense(herm(a) if symmetrize else a), config, start, seed)
    if config.core:
        result = CoreEigh(result.Q, scale.astype(a.dtype) * result.C)
    else:
        result = EighResult(scale * result.eigenvalues, result.eigenvectors)
    info = info._replace(
        residuals=scale * info.residuals, error=scale * info.error, gap=scale * info.gap
    )
    return result, info


@functools.partial(jax.jit, static_argnames=("config", "symmetrize", "seed", "dtype"))
def _pairs(a: Any, config: Config, symmetrize: bool, start, seed: int, dtype: DTypeLike):
    def of_any(a, start):
        if isinstance(a, Operator):
            A = (a + a.H) * 0.5 if symmetrize else a
            return _of_operator(A, config, start, seed)
        work = _checks.working(a)
        work = work if symmetrize else from_triangle(work)
        return over_leading_axes(lambda a: _of_matrix(a, config, symmetrize, start, seed), work)

    def placed(place):
        vectors = place.of(place.rows, None)
        of_pairs = (vectors, place.of()) if config.core else (place.of(), vectors)
        return (CoreEigh if config.core else EighResult)(*of_pairs), place.small

    result, info = on_any_mesh(of_any, placed, a, start)
    return jax.tree.map(lambda x: _checks.restore(x, dtype), result), info


def truncated_eigh(
    a: Any,
    k: int,
    which: str = "LA",
    *,
    symmetrize_input: bool | None = None,
    method: str = "auto",
    tol: float | None = None,
    max_iterations: int | None = None,
    key: int | None = None,
    start: EighResult | CoreEigh | None = None,
    strict: bool = False,
    return_info: bool = False,
) -> EighResult | tuple[EighResult, Info]:
    """Return k extreme eigenpairs of a Hermitian matrix or operator, to a promised residual.

        max_j |A q_j - w_j q_j| <= tol max |w|

    The derivative is that of the exact pairs, from products with A alone (`rules.eigenpairs`):

        dw = diag P,   dQ = Q [D o P] + X,   X diag(w) - A_perp X = (I - Q Q^H) dA Q

    in either mode, to any order, for an array, the values of a sparse matrix, or the parameters of
    an operator; X is definite for each column at all three ends. Inside the block it is that of
    `eigh`: at ties, or to avoid the gaps there, take `core_eigh`. At a tie across the cut there is
    no derivative (for "LM" that includes a pair +s, -s of which one is kept): ``Info.gap`` and
    ``Info.gradient_error`` tell.

    Cost: a few times k products with A for block Lanczos, O(n k) memory; the gradient about as many
    products as the forward pass. An array spread by rows, or anyhow on an Explicit mesh, is never
    gathered; on an Auto mesh the compiler may gather one spread by columns or over two axes for its
    mean with A^H.

    Args:
        a: Hermitian array (..., n, n), BCOO or BCSR matrix, or operator (`operators.as_operator`).
        k: static number of pairs, 1 <= k <= n.
        which: "LA", the largest eigenvalues; "SA", the smallest; "LM", those of largest magnitude.
        symmetrize_input: use (A + A^H)/2, the default for an array; False takes its lower triangle.
            Of an operator or sparse matrix the default is False, which takes it to be Hermitian and
            uses the products A X alone; True costs twice the products.
        method: "auto"; "krylov", block Lanczos; "full", all pairs. A k close to n uses all pairs.
        tol: residual to reach, relative to the size of A; default 1e-5 (float32), 1e-10 (float64).
        max_iterations: bases filled (each of some 2 k vectors) at most; default 200.
        key: static int that seeds the start block; default a fixed one.
        start: an earlier result of a matrix nearby, to start from.
        strict: give NaN where the forward pass or a solve of the derivative did not converge.
        return_info: return (EighResult, Info).

    Returns:
        EighResult(eigenvalues, eigenvectors) of shapes (..., k), (..., n, k), the most wanted
        first: descending for "LA", ascending for "SA", by magnitude for "LM"; phases as in `eigh`.
        Of Info, ``error`` is the largest |w| that was left out, ``gap`` the distance of the last
        kept value from the first that was not (of the magnitudes, for "LM"); an operator that is
        not Hermitian does not converge.

    Raises:
        TypeError: ``a`` is not a matrix in any form; a static argument is not static.
        ValueError: k out of range; ``a`` is not square; a tolerance that the dtype cannot reach;
            unknown ``which`` or method.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.arange(-100.0, 200.0))
        >>> w, Q = jaxsvd.truncated_eigh(A, 2, "SA")
        >>> print(jnp.round(w, 6))
        [-100.  -99.]

    References:
        Golub and Underwood (1977); Wu and Simon (2000); `jaxsvd.rules.eigenpairs`.
    """
    name = "truncated_eigh"
    return_info = _checks.flag(name, "return_info", return_info)
    options = (which, symmetrize_input, method, tol, max_iterations, key, start, strict)
    result, info = _pairs(*arguments(name, a, k, *options, core=False))
    return (result, info) if return_info else result


def core_eigh(
    a: Any,
    k: int | None = None,
    which: str = "LA",
    *,
    symmetrize_input: bool | None = None,
    method: str = "auto",
    tol: float | None = None,
    max_iterations: int | None = None,
    key: int | None = None,
    start: EighResult | CoreEigh | None = None,
    strict: bool = False,
) -> CoreEigh:
    """Return k extreme eigenpairs as A Q = Q C, whose derivative has no gap inside the block.

    C = diag(w) in value, while its tangent is the full Hermitian P = Q^H dA Q, and Q moves by
    parallel transport, so that nothing is divided by w_i - w_j within the k kept pairs:

        dC = herm P,   dQ = X,   X C - A_perp X = (I - Q Q^H) dA Q

    Contract: the loss must be unchanged under Q -> Q R, C -> R^H C R for every unitary R of size k
    (nearly every loss of a subspace, a projector or Q f(C) Q^H is). Then derivatives of every order
    are exact where the kept values are apart from the others, whatever is tied among themselves;
    for k = n everywhere. Not such losses, not even at distinct values: a slice Q[:, :2] of
    core_eigh(A, 4) (ask for k=2), a single entry of C. For a function of C write `core_map`.

    Cost: that of `truncated_eigh`; a small matrix goes through all its pairs.

    Args:
        a: Hermitian array (..., n, n), sparse matrix or operator, as in `truncated_eigh`.
        k: static number of pairs, 1 <= k <= n; default n.
        which: "LA", the largest eigenvalues; "SA", the smallest; "LM", those of largest magnitude.
        symmetrize_input: as in `truncated_eigh`, like all that follow.
        method: "auto", "krylov" or "full".
        tol: residual to reach, relative to the size of A.
        max_iterations: bases filled at most.
        key: static int that seeds the start block.
        start: an earlier result to start from.
        strict: NaN where something did not converge.

    Returns:
        CoreEigh(Q, C) of shapes (..., n, k), (..., k, k).

    Raises:
        TypeError: ``a`` is not a matrix in any form; k is not a static int.
        ValueError: k out of range; ``a`` is not square; unknown ``which`` or method.

    Example:
        The Hessian of tr C^2 along a direction, at a tie inside the block:

        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.array([2.0, 2.0, 1.0]))
        >>> energy = lambda A: jnp.sum(jaxsvd.core_eigh(A, 2).C ** 2)
        >>> dA = jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> print(jnp.round(jax.jvp(jax.grad(energy), (A,), (dA,))[1], 4) + 0.0)
        [[0. 2. 4.]
         [2. 0. 0.]
         [4. 0. 0.]]

    References:
        The derivation in `jaxsvd.rules.eigenpairs`.
    """
    options = (which, symmetrize_input, method, tol, max_iterations, key, start, strict)
    return _pairs(*arguments("core_eigh", a, k, *options, core=True))[0]

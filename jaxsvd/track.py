"""Carry the k leading triplets of a changing matrix along: two products a step, certified.

A training loop changes a weight a little at a time, and its leading singular subspace with it. A
step of subspace iteration from the last basis follows it; its residual says how well.

Example:
    >>> import jax, jax.numpy as jnp, jaxsvd
    >>> A = jnp.diag(jnp.array([5.0, 3.0, 1.0, 0.5]))
    >>> state = jaxsvd.track.init(A, 2)
    >>> for _ in range(8):  # the training loop
    ...     state, result, info = jaxsvd.track.step(A, state)
    >>> bool(jnp.allclose(result.S, jnp.array([5.0, 3.0]), rtol=1e-3))
    True
"""

from typing import Any

import jax.numpy as jnp
from jax import lax

from . import _checks
from ._types import Info, SVDResult
from .algorithms import subspace
from .algorithms.phase import fix_phases
from .operators.base import Operator, operator, static
from .operators.dense import Dense
from .primitives.runs import Run, constants
from .primitives.truncated import EXTRA, arguments, information, truncated_triplets


@operator
class TrackState:
    """A tracked subspace; a pytree to carry, save and restore.

    Attributes:
        basis: the subspace iteration's own state.
        k: triplets wanted, static.
    """

    basis: subspace.State
    k: int = static()


def _operator(a: Any) -> Operator:
    return a if isinstance(a, Operator) else Dense(_checks.working(jnp.asarray(a)))


def init(
    a: Any, k: int, *, extra: int = EXTRA, key: int | None = None, start: SVDResult | None = None
) -> TrackState:
    """Return the state before the first step.

    Args:
        a: array (m, n), BCOO or BCSR matrix, or operator; its values do not matter yet.
        k: static number of triplets.
        extra: static; columns carried beyond k. More of them, faster convergence.
        key: static int that seeds the basis.
        start: an earlier SVDResult to start from.

    Returns:
        TrackState.

    Raises:
        TypeError: ``a`` is not a matrix in any form.
        ValueError: k out of range, or a stack of matrices.
    """
    a, config, block, seed, _ = arguments("track.init", a, k, key=key, start=start)
    A = _single("track.init", a)
    columns = min(config.k + _checks.static_int("track.init", "extra", extra, 0, 10**9), *A.shape)
    block = None if block is None else block[:, :columns]
    state = subspace.init(A, columns, seed, block)
    return TrackState(state, config.k)


def _single(name: str, a: Any) -> Operator:
    if len(a.shape) != 2:
        raise ValueError(
            f"{name}: `a` must be one matrix (m, n) (jax.vmap for more), got {a.shape}"
        )
    return _operator(a)


def step(
    a: Any, state: TrackState, *, tol: float | None = None
) -> tuple[TrackState, SVDResult, Info]:
    """Return the next state, the tracked triplets and how good they are.

    The triplets are differentiable in ``a`` by the rule of `truncated_svd`; the state is not.
    ``Info.converged`` says whether the residual is within ``tol``: if not, step again.

    Cost: two products of A with the basis, two orthonormalizations, one SVD of its size squared.

    Args:
        a: the matrix now, of the same shape.
        state: from `init` or the last step.
        tol: static; as in `truncated_svd`.

    Returns:
        (TrackState, SVDResult, Info).

    Raises:
        ValueError: the state is of a matrix of another shape.
    """
    name = "track.step"
    columns = state.basis.next.shape[1]
    a, config, _, _, _ = arguments(name, a, state.k, "subspace", tol)
    A = _single(name, a)
    expected = (state.basis.U.shape[0], state.basis.V.shape[0])
    if A.shape != expected:
        raise ValueError(f"{name}: `a` must have the shape of the state, {expected}, got {A.shape}")
    constant = lax.stop_gradient(A)
    basis = subspace.step(constant, lax.stop_gradient(state.basis))
    ritz = subspace.result(basis, columns)
    config = config._replace(method="subspace")
    residuals = basis.residuals[: config.k]
    done = jnp.all(residuals <= config.tol * basis.S[0])
    products = jnp.asarray(2 * columns, jnp.int32)
    run = Run(ritz, residuals, basis.iteration, products, done)
    result = fix_phases(truncated_triplets(A, constants(A, run, config), config))
    info = lax.stop_gradient(information(A, run, result, config))
    return TrackState(basis, state.k), result, info

"""The rank from the error: bases grow until what they leave out is small enough.

For approximate triplets with U^H A V = diag(S), converged or not,

    |A - U diag(S) V^H|_F^2 = |A|_F^2 - sum s_i^2

holds exactly, so the error of every rank is known at every step without a product. Block Krylov
bases give nearly the largest s_i that a rank allows, hence nearly the smallest rank.

In floating point the difference carries a rounding error of about eps |A|_F^2, so that errors down
to sqrt(eps) relative can be certified: a margin is kept, and a smaller tolerance is refused.

References: Halko, Martinsson and Tropp (2011), algorithm 4.2; Yu, Gu and Li (2018), SIAM J. Matrix
Anal. Appl. 39, theorem 1 (the identity for projections).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import _tolerances
from .._types import SVDResult
from ..operators.base import Operator
from . import drive, krylov


class Found(NamedTuple):
    """What the search leaves.

    Attributes:
        ritz: all approximate triplets of the last bases, best first.
        rank: smallest rank that reaches the tolerance, or max_rank.
        error: |A - A_rank|_F / |A|_F.
        enough: whether the tolerance is reached.
        state: the last state of the bases.
    """

    ritz: SVDResult
    rank: jax.Array
    error: jax.Array
    enough: jax.Array
    state: krylov.State


def smallest_certifiable(dtype) -> float:
    """Return the least relative error that can be told from rounding: 10 sqrt(eps)."""
    return 10 * _tolerances.eps(dtype) ** 0.5


def tail_errors(S: jax.Array, norm: jax.Array) -> jax.Array:
    """Return |A - A_r|_F / |A|_F for r = 0 ... L from the approximate singular values (L,)."""
    relative = (S / jnp.where(norm > 0, norm, 1)) ** 2
    kept = jnp.concatenate([jnp.zeros((1,), S.dtype), jnp.cumsum(relative)])
    margin = 50 * _tolerances.eps(S.dtype)
    return jnp.sqrt(jnp.maximum(1 - kept, 0) + margin)


def smallest_rank(S: jax.Array, norm: jax.Array, tol: float, max_rank: int):
    """Return (rank, error, enough) of the smallest rank within tol, or of max_rank."""
    errors = tail_errors(S, norm)[: max_rank + 1]
    reached = errors <= tol
    enough = jnp.any(reached) | (norm == 0)
    rank = jnp.where(norm == 0, 0, jnp.where(enough, jnp.argmax(reached), max_rank))
    return rank, errors[rank], enough


def search(A: Operator, norm: jax.Array, tol: float, sizes: krylov.Config, key: jax.Array) -> Found:
    """Grow the bases until some rank <= k, the largest allowed, leaves at most tol |A|_F."""

    def rank_and_error(state: krylov.State):
        return smallest_rank(state.S * state.scale, norm, tol, sizes.k)

    def running(state: krylov.State):
        _, _, enough = rank_and_error(state)
        room = state.size < sizes.basis
        return ~enough & room & jnp.isfinite(state.scale) & jnp.isfinite(norm)

    state = krylov.init(A, sizes, jax.random.bits(key, dtype=jnp.uint32))
    state = drive.run(state, running, lambda state: krylov.step(A, state, sizes))
    # One look more: what was reached early is reached with a smaller rank by better triplets.
    state = jax.lax.cond(
        (state.size < sizes.basis) & jnp.isfinite(state.scale),
        lambda state: krylov.step(A, state, sizes),
        lambda state: state,
        state,
    )
    rank, error, enough = rank_and_error(state)
    U, S, Vh = krylov.finish(state, sizes, extra=sizes.basis - sizes.k)
    return Found(SVDResult(U, S, Vh), rank, error, enough, state)

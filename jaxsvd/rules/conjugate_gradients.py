"""Conjugate gradients for many right-hand sides at once, each column a definite system of its own.

The rules of `truncated` and `eigenpairs` ask for X with T_j x_j = b_j, T_j definite where what is
kept is apart from what is not. All columns go through the same products; one that has converged, or
whose system turns out indefinite, stays where it is.

Reference: Hestenes and Stiefel (1952).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..algorithms.products import alike

Measure = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Solution(NamedTuple):
    """What came out.

    Attributes:
        X: the solutions, (n, k).
        byproduct: the sum over all steps of what ``apply`` returned besides T P.
        last: the preconditioned residuals (n, k), a step that costs no product; zero where the
            system is indefinite.
    """

    X: jax.Array
    byproduct: jax.Array
    last: jax.Array


def _dots(X: jax.Array, Y: jax.Array) -> jax.Array:
    return jnp.sum(jnp.real(jnp.conj(X) * Y), axis=0)


def solve(
    apply: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    precondition: Callable[[jax.Array], jax.Array],
    b: jax.Array,
    byproduct: jax.Array,
    measure: Measure,
    *,
    tol: float | jax.Array,
    max_iterations: int,
    strict: bool,
    others: tuple = (),
) -> Solution:
    """Solve T_j x_j = b_j for all columns.

    Args:
        apply: P -> (T P, another linear function of P).
        precondition: R -> about T^-1 R, Hermitian and definite for each column.
        b: right-hand sides, (n, k).
        byproduct: zeros like what ``apply`` returns besides.
        measure: (|r|^2, r^H z, share) -> square of the error that is left, for each column, from
            its residual r, z = precondition(r), and the share of its last direction p that T takes
            away from it: 1 - p^H T p / p^H p.
        tol: where to stop: errors of all columns together, relative to those at the start.
        max_iterations: products at most.
        strict: give NaN where the tolerance is not reached, or the system is indefinite.
        others: arrays that ``apply`` and ``precondition`` close over (`products.alike`).
    """
    dtype, limits = b.dtype, jnp.finfo(b.dtype)
    # Each right-hand side is divided by its largest entry: squares neither over- nor underflow.
    size = jnp.max(jnp.abs(b), axis=0, keepdims=True)
    weight = (size / jnp.maximum(jnp.max(size), limits.tiny))[0] ** 2
    size = jnp.where(size > 0, size, 1).astype(dtype)
    b = b / size
    z = precondition(b)
    squares, rz = _dots(b, b), _dots(b, z)
    left = measure(squares, rz, jnp.ones_like(squares))
    least, target = limits.eps**2 * squares, tol**2 * jnp.sum(weight * left)

    def more(state):
        *_, left, active, i, _ = state
        return (jnp.sum(weight * left) > target) & jnp.any(active) & (i < max_iterations)

    def iterate(state):
        x, sums, r, z, p, rz, _, active, i, broken = state
        Tp, besides = apply(p)
        curvature, length = _dots(p, Tp), _dots(p, p)
        # An indefinite system (a kept value within the discarded ones): stop the column there.
        broken = broken | (active & ~(curvature > 0))
        active = active & (curvature > 0)
        alpha = jnp.where(active, rz / jnp.where(curvature > 0, curvature, 1), 0)
        alpha = alpha[None, :].astype(dtype)
        x, sums, r = x + alpha * p, sums + alpha * besides, r - alpha * Tp
        z = precondition(r)
        rz_new = _dots(r, z)
        beta = jnp.where(active, rz_new / jnp.where(rz > 0, rz, 1), 0)[None, :].astype(dtype)
        share = jnp.clip(1 - curvature / jnp.where(length > 0, length, 1), 0, 1)
        p = jnp.where(active[None, :], z + beta * p, p)
        rz = jnp.where(active, rz_new, rz)
        squares = _dots(r, r)
        active = active & (squares > least)
        return x, sums, r, z, p, rz, measure(squares, rz, share), active, i + 1, broken

    active = squares > 0
    nothing = jnp.zeros_like(active)
    state = (jnp.zeros_like(b), byproduct, b, z, z, rz, left, active, 0, nothing)
    state = alike(state, b, tol, *others)
    x, sums, _, z, _, _, left, _, _, broken = lax.while_loop(more, iterate, state)
    if strict:
        far = jnp.sum(weight * left) > target
        size = jnp.where(far | broken[None, :], jnp.nan, size)
    return Solution(x * size, sums * size, jnp.where(broken[None, :], 0, z) * size)

"""Leading axes: one mechanism for all primitives, which are written for a single matrix.

A leading axis is a `vmap`, so that `f(A)` on a stack and `vmap(f)(A)` are one program. The
algorithm underneath still sees the whole stack (`algorithms.router`).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..algorithms.products import magnitude, power_of_two

# Entries of a matrix up to which its size is read from the bits of its entries: a fifth of the time
# for 100,000 of 3 x 3 and half of it for 4,000 of 8 x 8, but 3 times as long at 4096 x 4096.
SMALL = 1 << 16


def over_leading_axes(function: Callable[[jax.Array], Any], a: jax.Array) -> Any:
    """Apply a function of one matrix to (..., m, n); results get the same leading axes.

    All leading axes are flattened into one, so that the algorithm meets one batch.
    """
    batch = a.shape[:-2]
    if not batch:
        return function(a)
    flat = jax.vmap(function)(a.reshape(math.prod(batch), *a.shape[-2:]))
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), flat)


def vmapped(function: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """Return the function mapped over as many leading axes of all its arguments."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function


def power_of_two_scale(a: jax.Array) -> jax.Array:
    """Return the power of two next to the largest magnitude of a matrix, a constant scalar.

    Everything is computed on A / scale, whose entries are at most one, so that squares, reciprocals
    and their products neither overflow nor vanish at 1e160 or 1e-160; division by a power of two
    is exact. Zero matrices get 1; a matrix with NaN or Inf gets NaN, so that it comes out as NaN.
    """
    a = lax.stop_gradient(a)
    if a.size <= SMALL:
        return magnitude(a, tuple(range(a.ndim))).reshape(())
    largest = jnp.max(jnp.abs(a), initial=0)
    if jnp.iscomplexobj(a):  # |x + iy| may overflow where x and y do not
        largest = jnp.max(jnp.maximum(jnp.abs(a.real), jnp.abs(a.imag)), initial=0)
    scale = jnp.where(largest == 0, 1, power_of_two(largest))
    # Not by the maximum: over a batch XLA on CPU loses a NaN in it. 0 times NaN or Inf is NaN; to
    # ask each entry whether it is finite takes twice as long.
    finite = jnp.isfinite(jnp.sum(0 * a))
    return jnp.where(finite, scale, jnp.nan)

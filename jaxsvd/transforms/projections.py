"""Euclidean projections of the matrices of a pytree, in the manner of `optax.projections`.

Each takes a pytree, an array being one, and returns it with every selected matrix replaced by the
nearest feasible one; all other leaves come back as they were. ``where`` and ``axes`` select as in
`jaxsvd.regularizers`. All are functions of the singular values with derivatives right at ties.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _checks, _leaves, _tolerances
from .._leaves import Axes, Where
from ..linalg import orthogonalize
from ..primitives.batching import over_leading_axes
from ..primitives.core import low_rank
from ..primitives.spectral import spectral_map, spectral_sum
from ..primitives.svd import svdvals


def _kinked(f, a: jax.Array) -> jax.Array:
    """Return the spectral map of a function with kinks."""
    return spectral_map(f, a, near_tie=_tolerances.near_tie_kinked(_checks.working(a).dtype))


def clip(a: jax.Array, limit: Any) -> jax.Array:
    """Return U min(S, limit) V^H of (..., m, n)."""
    limit = jnp.asarray(limit)
    return _kinked(lambda s: jnp.minimum(s, limit.astype(s.dtype)), a)


def soft_threshold(a: jax.Array, threshold: jax.Array) -> jax.Array:
    """Return U max(S - threshold, 0) V^H of (..., m, n), by a scalar."""
    threshold = jnp.asarray(threshold)
    return _kinked(lambda s: jnp.maximum(s - threshold.astype(s.dtype), 0), a)


def projection_spectral_ball(
    tree: Any, max_norm: Any = 1.0, *, where: Where = None, axes: Axes = None
) -> Any:
    """Return the nearest matrices with s_1 <= max_norm: U min(S, max_norm) V^H.

    Cost: one SVD of each matrix.

    Args:
        tree: pytree of arrays, or one array.
        max_norm: number > 0, may be traced.
        where: leaves, as in `jaxsvd.regularizers`.
        axes: rows and columns, as there.

    Returns:
        The pytree projected.

    Raises:
        TypeError, ValueError: ``where`` or ``axes`` do not fit a leaf, by its path; max_norm <= 0.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.array([3.0, 0.5]))
        >>> print(jaxsvd.transforms.projection_spectral_ball(A, 1.0))
        [[1.  0. ]
         [0.  0.5]]

    References:
        Lewis and Malick (2008), "Alternating projections on manifolds", on projections on sets
        that are given by singular values.
    """
    name = "projection_spectral_ball"
    max_norm = _checks.positive(name, "max_norm", max_norm)
    places = _leaves.select(tree, where, axes, name=name)
    return _leaves.update(lambda a: clip(a, max_norm), tree, places)


def _nuclear_ball(a: jax.Array, radius: jax.Array) -> jax.Array:
    """Return U max(S - t, 0) V^H with sum max(s_i - t, 0) = radius; a itself inside the ball."""
    s = lax.stop_gradient(svdvals(a))
    radius = radius.astype(s.dtype)
    # The values above the threshold are the first ones that exceed the threshold they would give.
    thresholds = (jnp.cumsum(s) - radius) / jnp.arange(1, s.size + 1, dtype=s.dtype)
    count = jnp.maximum(jnp.sum(s > thresholds), 1)
    start = jnp.maximum(lax.stop_gradient(thresholds[count - 1]), 0)
    # One step of Newton on sum max(s_i - t, 0) = radius, which is piecewise linear: it moves
    # nothing and carries derivatives in a and radius, right at ties, as those of svdvals are not.
    excess = spectral_sum(lambda s: jnp.maximum(s - start, 0), a, near_tie=_near(a))
    threshold = start + (excess - radius) / count.astype(s.dtype)
    inside = jnp.sum(s) <= radius
    projected = soft_threshold(a, jnp.where(inside, 0, jnp.maximum(threshold, 0)))
    return jnp.where(inside, a, projected)


def _near(a: jax.Array) -> float:
    return _tolerances.near_tie_kinked(a.dtype)


def projection_nuclear_ball(
    tree: Any, radius: Any = 1.0, *, where: Where = None, axes: Axes = None
) -> Any:
    """Return the nearest matrices with sum s_i <= radius: the singular values on the simplex.

        U max(S - t, 0) V^H,   t such that the sum is the radius; each matrix has its own ball

    Cost: two SVDs of each matrix, one of them without vectors.

    Args:
        tree: pytree of arrays, or one array.
        radius: number > 0, may be traced.
        where: leaves, as in `jaxsvd.regularizers`.
        axes: rows and columns, as there.

    Returns:
        The pytree projected; a matrix inside its ball comes back with its own bits.

    Raises:
        TypeError, ValueError: ``where`` or ``axes`` do not fit a leaf, by its path; radius <= 0.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.array([3.0, 2.0, 0.5]))
        >>> print(jnp.diag(jaxsvd.transforms.projection_nuclear_ball(A, 2.0)))
        [1.5 0.5 0. ]

    References:
        Duchi, Shalev-Shwartz, Singer and Chandra (2008), "Efficient projections onto the l1-ball",
        figure 1.
    """
    name = "projection_nuclear_ball"
    radius = jnp.asarray(_checks.positive(name, "radius", radius))
    places = _leaves.select(tree, where, axes, name=name)

    def project(a):
        working = _checks.working(a)
        return over_leading_axes(lambda a: _nuclear_ball(a, radius), working)

    return _leaves.update(project, tree, places)


def projection_rank(tree: Any, rank: int, *, where: Where = None, axes: Axes = None) -> Any:
    """Return the nearest matrices of rank at most ``rank``: the truncated SVD.

    Cost: that of `jaxsvd.low_rank` for each matrix.

    Args:
        tree: pytree of arrays, or one array.
        rank: static int >= 1; matrices whose shorter side is no longer stay as they are.
        where: leaves, as in `jaxsvd.regularizers`.
        axes: rows and columns, as there.

    Returns:
        The pytree projected.

    Raises:
        TypeError, ValueError: ``where`` or ``axes`` do not fit a leaf, by its path; rank < 1.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.array([3.0, 2.0]))
        >>> print(jaxsvd.transforms.projection_rank(A, 1))
        [[3. 0.]
         [0. 0.]]

    References:
        Eckart and Young (1936); Mirsky (1960).
    """
    name = "projection_rank"
    rank = _checks.static_int(name, "rank", rank, 1, 2**31)
    places = _leaves.select(tree, where, axes, name=name)
    return _leaves.update(lambda a: low_rank(a, min(rank, *a.shape[-2:])), tree, places)


def projection_stiefel(tree: Any, *, where: Where = None, axes: Axes = None) -> Any:
    """Return the nearest matrices with orthonormal columns, or rows if they are wide: U V^H.

    The polar factor. At deficient rank the nearest one is not unique, and one of them is returned.

    Cost: one SVD of each matrix.

    Args:
        tree: pytree of arrays, or one array.
        where: leaves, as in `jaxsvd.regularizers`.
        axes: rows and columns, as there.

    Returns:
        The pytree projected.

    Raises:
        TypeError, ValueError: ``where`` or ``axes`` do not fit a leaf, by its path.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jnp.array([[0.0, -2.0], [3.0, 0.0]])
        >>> print(jaxsvd.transforms.projection_stiefel(A) + 0.0)
        [[ 0. -1.]
         [ 1.  0.]]

    References:
        Fan and Hoffman (1955); Higham (2008), "Functions of Matrices", theorem 8.4.
    """
    places = _leaves.select(tree, where, axes, name="projection_stiefel")
    return _leaves.update(orthogonalize, tree, places)

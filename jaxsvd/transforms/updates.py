"""Spectral links of an optax chain: on the updates, or on what the parameters become.

``where`` and ``axes`` select matrices as in `jaxsvd.regularizers`; leaves that are not selected
pass through. ``max_norm`` and the like may be traced, so `optax.inject_hyperparams` schedules them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from .. import _checks, _leaves, _tolerances
from .._leaves import Axes, Where
from ..norms import frobenius
from ..primitives.batching import over_leading_axes
from ..primitives.spectral import spectral_map
from .projections import clip, soft_threshold

NO_PARAMS = "{}: `params` must be given to update, got None"


def _on_updates(
    name: str, function: Callable[[jax.Array], jax.Array], where: Where, axes: Axes
) -> optax.GradientTransformation:
    """Return the stateless transformation that maps the selected matrices of the updates."""

    def init(params: Any) -> optax.EmptyState:
        _leaves.select(params, where, axes, name=name)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None):
        del params
        places = _leaves.select(updates, where, axes, name=name)
        return _leaves.update(function, updates, places), state

    return optax.GradientTransformation(init, update)


def _as_update(
    name: str,
    function: Callable[[jax.Array], jax.Array],
    updates: Any,
    params: Any,
    where: Where,
    axes: Axes,
) -> Any:
    """Return the updates after which the selected matrices are function(params + updates)."""
    if params is None:
        raise ValueError(NO_PARAMS.format(name))
    places = _leaves.select(params, where, axes, name=name)
    steps = _leaves.matrices(updates, places)
    leaves = jax.tree.leaves(updates)
    new = {}
    for path, matrix in _leaves.matrices(params, places).items():
        # In the precision of the work: a difference of half-precision numbers keeps few digits.
        start = _checks.working(matrix)
        moved = function(start + steps[path].astype(start.dtype)) - start
        new[path] = _leaves.restore(moved, leaves[places[path].index], places[path])
    return _leaves.replace(updates, places, new)


def keep_params_spectral(
    max_norm: Any, *, where: Where = None, axes: Axes = None
) -> optax.GradientTransformation:
    """Keep s_1 of the parameters at most max_norm: the last link of a chain.

    The updates become those that lead to the nearest matrices in the spectral ball, as
    `optax.keep_params_nonnegative` does for signs.

    Cost: one SVD of each matrix a step.

    Args:
        max_norm: number > 0, may be traced.
        where: leaves, as in `jaxsvd.regularizers`.
        axes: rows and columns, as there.

    Returns:
        A GradientTransformation without state; its update needs ``params``.

    Raises:
        TypeError, ValueError: ``where`` or ``axes`` do not fit a leaf, by its path; max_norm <= 0;
            no params.

    Example:
        >>> import jax.numpy as jnp, jaxsvd, optax
        >>> cap = jaxsvd.transforms.keep_params_spectral(1.0)
        >>> optimizer = optax.chain(optax.sgd(1.0), cap)
        >>> W = jnp.diag(jnp.array([0.5, 0.5]))
        >>> updates, _ = optimizer.update(-2 * W, optimizer.init(W), W)
        >>> print(optax.apply_updates(W, updates))
        [[1. 0.]
         [0. 1.]]
    """
    name = "keep_params_spectral"
    max_norm = _checks.positive(name, "max_norm", max_norm)

    def init(params: Any) -> optax.EmptyState:
        _leaves.select(params, where, axes, name=name)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None):
        project = lambda a: clip(a, max_norm)  # noqa: E731
        return _as_update(name, project, updates, params, where, axes), state

    return optax.GradientTransformation(init, update)


class ProxNuclearState(NamedTuple):
    """State of `prox_nuclear`."""

    count: ArrayLike  # shape=(), dtype=jnp.int32


def prox_nuclear(
    threshold: Any, *, where: Where = None, axes: Axes = None
) -> optax.GradientTransformation:
    """Shrink the singular values of the parameters by a threshold: proximal gradient descent.

        W + update -> U max(S - threshold, 0) V^H = argmin_X threshold |X|_* + |X - Y|_F^2 / 2

    The last link of a chain. With the threshold learning_rate * strength it minimizes the loss plus
    strength times the nuclear norm; singular values become exactly zero.

    Cost: one SVD of each matrix a step.

    Args:
        threshold: number > 0, may be traced, or a schedule (count) -> number.
        where: leaves, as in `jaxsvd.regularizers`.
        axes: rows and columns, as there.

    Returns:
        A GradientTransformation with state ProxNuclearState; its update needs ``params``.

    Raises:
        TypeError, ValueError: ``where`` or ``axes`` do not fit a leaf, by its path; threshold <= 0;
            no params.

    Example:
        >>> import jax.numpy as jnp, jaxsvd, optax
        >>> W = jnp.diag(jnp.array([2.0, 0.3]))
        >>> prox = jaxsvd.transforms.prox_nuclear(0.5)
        >>> updates, _ = prox.update(jnp.zeros_like(W), prox.init(W), W)
        >>> print(optax.apply_updates(W, updates))
        [[1.5 0. ]
         [0.  0. ]]

    References:
        Cai, Candes and Shen (2010), "A singular value thresholding algorithm for matrix
        completion", theorem 2.1.
    """
    name = "prox_nuclear"
    schedule = threshold if callable(threshold) else None
    if schedule is None:
        threshold = _checks.positive(name, "threshold", threshold)

    def init(params: Any) -> ProxNuclearState:
        _leaves.select(params, where, axes, name=name)
        return ProxNuclearState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None):
        limit = jnp.asarray(threshold if schedule is None else schedule(state.count))
        shrink = lambda a: soft_threshold(a, limit)  # noqa: E731
        updates = _as_update(name, shrink, updates, params, where, axes)
        return updates, ProxNuclearState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def clip_updates_spectral(
    max_norm: Any, *, where: Where = None, axes: Axes = None
) -> optax.GradientTransformation:
    """Clip the singular values of the updates at max_norm, each by itself.

    The nearest updates in the spectral ball: small directions keep their size, unlike under
    `optax.clip_by_global_norm`, which shrinks all alike.

    Cost: one SVD of each matrix a step.

    Args:
        max_norm: number > 0, may be traced.
        where: leaves, as in `jaxsvd.regularizers`.
        axes: rows and columns, as there.

    Returns:
        A GradientTransformation without state.

    Raises:
        TypeError, ValueError: ``where`` or ``axes`` do not fit a leaf, by its path; max_norm <= 0.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> clip = jaxsvd.transforms.clip_updates_spectral(1.0)
        >>> G = jnp.diag(jnp.array([9.0, 0.5]))
        >>> print(clip.update(G, clip.init(G))[0])
        [[1.  0. ]
         [0.  0.5]]
    """
    name = "clip_updates_spectral"
    max_norm = _checks.positive(name, "max_norm", max_norm)
    return _on_updates(name, lambda a: clip(a, max_norm), where, axes)


def _partial_polar(a: jax.Array) -> jax.Array:
    """Return U V^H over the singular values that are not zero to rounding, of one matrix."""
    zero = jnp.asarray(_tolerances.rank_tol(a.dtype, *a.shape), a.real.dtype) * frobenius(a)
    return spectral_map(lambda s: jnp.where(s > zero, 1, 0).astype(s.dtype), a)


def scale_by_polar(*, where: Where = None, axes: Axes = None) -> optax.GradientTransformation:
    """Replace the updates by their polar factor U V^H: steepest descent in the spectral norm.

    Exactly what the Newton-Schulz steps of `optax.contrib.scale_by_muon` approximate. Singular
    values that are zero to rounding stay zero, so no gradient gives no update. Momentum, learning
    rate and weight decay are other links of the chain; scale by sqrt(max(m, n)) or the like there.

    Cost: one SVD of each matrix a step.

    Args:
        where: leaves, as in `jaxsvd.regularizers`; the others want an optimizer of their own
            (`optax.partition`).
        axes: rows and columns, as there.

    Returns:
        A GradientTransformation without state.

    Raises:
        TypeError, ValueError: ``where`` or ``axes`` do not fit a leaf, by its path.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> polar = jaxsvd.transforms.scale_by_polar()
        >>> G = jnp.array([[0.0, 2.0], [1e-3, 0.0]])
        >>> print(polar.update(G, polar.init(G))[0])
        [[0. 1.]
         [1. 0.]]

    References:
        Bernstein and Newhouse (2024), "Old optimizer, new norm: an anthology", section 4;
        Jordan et al. (2024), "Muon".
    """
    name = "scale_by_polar"

    def function(a):
        return over_leading_axes(_partial_polar, _checks.working(a))

    return _on_updates(name, function, where, axes)

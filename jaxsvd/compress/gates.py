"""Ranks learned from the loss: soft gates on singular values, differentiated exactly."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks, _leaves
from .._leaves import Axes, Place, Where
from ..algorithms.products import adjoint, product
from ..primitives.spectral import spectral_map
from ..primitives.svd import svdvals
from .budget import allowed, decompose, metrics_of, numbers, size, smallest
from .factorize import Root, root

Spectral = Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]


def _over_value(s: jax.Array, log_threshold: jax.Array, sharpness: int) -> jax.Array:
    """Return g(s) / s of the gate g(s) = x^p / (1 + x^p), x = s / t: odd in s for even p.

    In powers of min(x, 1) and 1 / max(x, 1), so that none overflows.
    """
    t = jnp.exp(log_threshold).astype(s.dtype)
    x = s / t
    low, high = jnp.minimum(x, 1), 1 / jnp.maximum(x, 1)
    below = low ** (sharpness - 1) / (1 + low**sharpness)
    return jnp.where(x <= 1, below, high / (1 + high**sharpness)) / t


def _gated(
    W: jax.Array,
    inner: Root,
    outer: Root,
    log_threshold: jax.Array,
    sharpness: int,
    spectral: Spectral,
) -> jax.Array:
    """Return W with gates on the singular values of M = F W E^H, (..., m, n).

    With T = U (g(S) / S) V^H of M it is (W E^H) T^H (F W), which is weighted to U g(S) S V^H.
    """
    if inner.is_identity and outer.is_identity:
        return spectral(lambda s: s * s * _over_value(s, log_threshold, sharpness), W)
    left, right = adjoint(outer.times(adjoint(W))), inner.times(W)
    M = adjoint(outer.times(adjoint(right)))
    T = spectral(lambda s: _over_value(s, log_threshold, sharpness), M)
    # left (m, outer rows) T^H (outer rows, inner rows) right (inner rows, n)
    return product(product(left, adjoint(T)), right)


def _even(name: str, sharpness: Any) -> int:
    sharpness = _checks.static_int(name, "sharpness", sharpness, 2, 1024)
    if sharpness % 2:
        raise ValueError(f"{name}: `sharpness` must be even, got {sharpness}")
    return sharpness


def _places(name: str, params: Any, gates: Any, axes: Axes) -> dict[str, Place]:
    if not isinstance(gates, Mapping) or not gates:
        raise TypeError(
            f"{name}: `gates` must be the dict of rank_gates, got {_checks.describe(gates)}"
        )
    named = _leaves.paths(params)
    other = sorted(set(gates) - {path for path, _ in named})
    if other:
        raise ValueError(
            f"{name}: `gates` must be of leaves of `params`, got one for {other[0]!r}; the paths "
            f"are {_leaves.listed(named)}"
        )
    return _leaves.select(params, lambda path, leaf: path in gates, axes, name=name)


def _roots(name: str, metrics: Any, places: Any, params: Any, matrices: Any) -> dict[str, Any]:
    pairs = metrics_of(name, metrics, places, params)
    return {
        path: tuple(
            root(name, f"metrics[{path!r}]", metric, matrices[path], axis)
            for metric, axis in zip(pairs[path], (-2, -1), strict=True)
        )
        for path in places
    }


def rank_gates(
    params: Any,
    budget: float,
    metrics: Any = None,
    where: Where = None,
    axes: Axes = None,
    *,
    sharpness: int = 8,
) -> dict[str, jax.Array]:
    """Return gates to learn ranks with: by path of each selected leaf the log of a threshold.

    A direction of a weight, of singular value s in its metrics, is let through by

        g(s) = s^p / (s^p + t^p)            t the threshold, p the sharpness

    They begin where directions are worth the same per number they cost, s^2 / c = t^2 / c, at the
    level at which the soft count of parameters meets the budget. Then train them:

        def loss(gates):
            small = compress.apply_gates(params, gates)
            return error(model(small, x)) + 10 * compress.gate_budget(params, gates, 0.5)

    and at the end ``compress.to_budget(params, 0.5, gates=gates)``.

    Cost: one SVD of each selected weight.

    Args:
        params: pytree of concrete arrays.
        budget: share of all numbers, or how many, as in `to_budget`.
        metrics: as in `to_budget`.
        where: leaves, as there.
        axes: rows and columns, as there.
        sharpness: static even p >= 2.

    Returns:
        A dict from paths to real scalars.

    Raises:
        TypeError, ValueError: as `to_budget`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> params = {"a": jnp.diag(jnp.arange(1.0, 9.0)), "b": 9 * jnp.eye(8)}
        >>> gates = jaxsvd.compress.rank_gates(params, 0.5)
        >>> sorted(gates), gates["a"].shape
        (['a', 'b'], ())

    References:
        Wang et al. (2025), "Dobi-SVD", on learned truncation; the derivative here is that of
        `spectral_map`.
    """
    name = "rank_gates"
    sharpness = _even(name, sharpness)
    total = size(params)
    wanted = allowed(name, budget, total)
    found = decompose(name, params, metrics, where, axes, None)
    others = total - sum(numbers(d.shape, None) for d in found.values())
    least = smallest(found, others, 1)
    if wanted < least:
        raise ValueError(
            f"{name}: `budget` must be at least {least} of {total} parameters, the smallest "
            f"possible, got {budget}"
        )
    prices = {path: math.sqrt(numbers(d.shape, 1)) for path, d in found.items()}
    logs = {path: np.log(np.maximum(d.values, 1e-300)) for path, d in found.items()}

    def count(level: float) -> float:
        soft = 0.0
        for path, d in found.items():
            z = sharpness * (logs[path] - level - math.log(prices[path]))
            rank = float(np.mean(np.sum(1 / (1 + np.exp(-np.clip(z, -500, 500))), axis=-1)))
            soft += min(rank * numbers(d.shape, 1), numbers(d.shape, None))
        return others + soft

    low = min(float(x.min()) for x in logs.values()) - math.log(max(prices.values())) - 10
    high = max(float(x.max()) for x in logs.values()) - math.log(min(prices.values())) + 10
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if count(middle) <= wanted else (middle, high)
    leaves = jax.tree.leaves(params)
    gates = {}
    for path, d in found.items():
        dtype = _checks.working(jnp.zeros((), leaves[d.place.index].dtype)).real.dtype
        gates[path] = jnp.asarray(high + math.log(prices[path]), dtype)
    return gates


def apply_gates(
    params: Any,
    gates: Mapping[str, jax.Array],
    metrics: Any = None,
    axes: Axes = None,
    *,
    sharpness: int = 8,
    spectral: Spectral = spectral_map,
) -> Any:
    """Return the parameters with the directions of each gated weight let through by its gate.

        W' = U g(S) S V^H                       W = U S V^H
        W' = (W E^H) [V (g(S) / S) U^H] (F W)   F W E^H = U S V^H, in metrics

    Its derivative with respect to gates and weights is that of `spectral_map`: exact, at repeated
    and vanishing singular values too, where rules with 1/(s_i - s_j) fail. So weights can be
    trained along with the gates.

    Cost: one SVD of each gated weight, and as much again for its derivative.

    Args:
        params: pytree of arrays.
        gates: from `rank_gates`.
        metrics: the same as there.
        axes: the same as there.
        sharpness: static even p >= 2; larger is nearer to truncation.
        spectral: what applies a function to singular values, (f, M) -> U f(S) V^H; for comparison
            of derivatives.

    Returns:
        The tree, its leaves in their shapes and dtypes.

    Raises:
        TypeError, ValueError: an argument does not fit, by name.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> params = {"w": jnp.diag(jnp.array([4.0, 1.0]))}
        >>> gates = {"w": jnp.log(2.0)}
        >>> print(jnp.round(jaxsvd.compress.apply_gates(params, gates)["w"], 3))
        [[3.984 0.   ]
         [0.    0.004]]
    """
    name = "apply_gates"
    sharpness = _even(name, sharpness)
    spectral = _checks.function(name, "spectral", spectral)
    places = _places(name, params, gates, axes)
    leaves = jax.tree.leaves(params)
    matrices = {path: _checks.working(W) for path, W in _leaves.matrices(params, places).items()}
    roots = _roots(name, metrics, places, params, matrices)
    new = {}
    for path, W in matrices.items():
        inner, outer = roots[path]
        W = _gated(W, inner, outer, gates[path], sharpness, spectral)
        new[path] = _leaves.restore(W, leaves[places[path].index], places[path])
    return _leaves.replace(params, places, new)


def gate_budget(
    params: Any,
    gates: Mapping[str, jax.Array],
    budget: float,
    metrics: Any = None,
    axes: Axes = None,
    *,
    sharpness: int = 8,
) -> jax.Array:
    """Return by what share the soft count of parameters is above a budget; 0 within it.

        max(count / budget - 1, 0),   count = others + sum_i min(c_i sum_j g_i(s_ij), m_i n_i)

    with c = m + n + 1, what a rank costs. To be added to the loss, times a factor.

    Cost: the singular values of each gated weight.

    Args:
        params: pytree of arrays.
        gates: from `rank_gates`.
        budget: as in `to_budget`.
        metrics: the same as in `rank_gates`.
        axes: the same as there.
        sharpness: static even p >= 2.

    Returns:
        A scalar >= 0.

    Raises:
        TypeError, ValueError: an argument does not fit, by name.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> params = {"w": jnp.eye(8)}
        >>> closed, open_ = {"w": jnp.log(9.0)}, {"w": jnp.log(0.1)}
        >>> print(jaxsvd.compress.gate_budget(params, closed, 0.5))
        0.0
        >>> print(jaxsvd.compress.gate_budget(params, open_, 0.5))
        1.0
    """
    name = "gate_budget"
    sharpness = _even(name, sharpness)
    total = size(params)
    wanted = allowed(name, budget, total)
    places = _places(name, params, gates, axes)
    matrices = {path: _checks.working(W) for path, W in _leaves.matrices(params, places).items()}
    roots = _roots(name, metrics, places, params, matrices)
    others = total - sum(numbers(W.shape, None) for W in matrices.values())
    count: Any = float(others)
    for path, W in matrices.items():
        inner, outer = roots[path]
        M = adjoint(outer.times(adjoint(inner.times(W))))
        s = svdvals(M)
        gate = s * _over_value(s, gates[path], sharpness)
        rank = jnp.mean(jnp.sum(gate, axis=-1))
        count = count + jnp.minimum(rank * numbers(W.shape, 1), numbers(W.shape, None))
    return jnp.maximum(count / wanted - 1, 0)

"""Any optax optimizer on gradients projected to a tracked subspace: GaLore's memory, refined.

With P (short, r) an orthonormal basis of the leading left space of a gradient G (short, long), the
base optimizer sees P^H G (r, long) and its update U comes back as P U. Its state has r rows in
place of short ones. A tall gradient is treated as its adjoint. Against `optax.contrib.galore`:

- the basis is refreshed by a randomized SVD, or one step of subspace iteration from the last one:
  products alone, where a full SVD takes seconds;
- at a refresh the moments follow the basis (R = P_new^H P_old: M -> R M), instead of being read in
  coordinates they were not written in;
- what the subspace leaves out need not be lost (``residual``);
- a matrix whose rank is not reduced is left alone, so that full rank is the base optimizer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import GetAttrKey, KeyPath, tree_flatten_with_path
from jax.typing import ArrayLike

from .. import _checks, _leaves, track
from .._leaves import Axes, Where
from .._types import SVDResult
from ..algorithms.products import adjoint, adjoint_product, product
from ..primitives.batching import vmapped
from ..primitives.randomized import randomized_svd

REFRESHES = ("randomized", "warm")

# Fields of optax's states that hold squares of gradients, entry by entry; all others of the shape
# of the parameters are taken as linear in them.
SQUARES = ("nu", "nu_max", "sum_of_squares")


class LowRankState(NamedTuple):
    """State of `scale_by_low_rank`.

    Attributes:
        count: updates done.
        basis: by path of the leaf, orthonormal columns (..., short, rank).
        base: state of the base optimizer, for leaves (..., rank, long) in place of the selected.
    """

    count: ArrayLike  # shape=(), dtype=jnp.int32
    basis: dict[str, jax.Array]
    base: optax.OptState


def _wide(a: jax.Array) -> jax.Array:
    """Return the matrices with the shorter side first."""
    return a if a.shape[-2] <= a.shape[-1] else adjoint(a)


def _randomized(G: jax.Array, P: jax.Array, key: jax.Array) -> jax.Array:
    result: Any = randomized_svd(key, G, P.shape[-1])
    return result.U


def _warm(G: jax.Array, P: jax.Array, key: jax.Array) -> jax.Array:
    """Return an orthonormal basis of G G^H P: one step of the tracker, from P."""
    del key
    rank = P.shape[-1]

    def one(G, P):
        start = SVDResult(P, jnp.ones(rank, jnp.finfo(P.dtype).dtype), adjoint(P))
        state = track.init(adjoint(G), rank, extra=0, start=start)
        return track.step(adjoint(G), state)[0].basis.next

    return vmapped(one, G.ndim - 2)(G, P)


def _rotate(name: str, moment: jax.Array, R: jax.Array) -> jax.Array:
    """Return a moment (..., r, long) in the new coordinates, R = P_new^H P_old.

    Squares go with |R|^2, exact for uncorrelated rows. A direction that is new to the subspace gets
    the mean of the old ones for its part outside: with 0 its first steps would be 1/sqrt(1 - b2)
    times too long.
    """
    if name not in SQUARES:
        return product(R.astype(moment.dtype), moment)
    weights = jnp.real(R * jnp.conj(R)).astype(moment.dtype)
    new = jnp.maximum(1 - jnp.sum(weights, axis=-1, keepdims=True), 0)
    return product(weights, moment) + new * jnp.mean(moment, axis=-2, keepdims=True)


def _rotate_state(
    base: Any, keys: dict[str, KeyPath], R: dict[str, jax.Array], shapes: dict[str, tuple]
) -> Any:
    """Return the base optimizer's state with the moments of the selected leaves rotated.

    They are the leaves of the state whose path ends as that of a parameter, with its shape.
    """
    found, structure = tree_flatten_with_path(base)
    leaves = []
    for where, leaf in found:
        for path, ending in keys.items():
            split = len(where) - len(ending)
            shape = getattr(leaf, "shape", None)
            if split >= 0 and where[split:] == ending and shape == shapes[path]:
                names = [key.name for key in where[:split] if isinstance(key, GetAttrKey)]
                leaf = _rotate(names[-1] if names else "", leaf, R[path])
                break
        leaves.append(leaf)
    return structure.unflatten(leaves)


def scale_by_low_rank(
    rank: int,
    base: optax.GradientTransformation | None = None,
    refresh_every: int = 200,
    refresh: str = "randomized",
    rotate_moments: bool = True,
    residual: Any = None,
    *,
    where: Where = None,
    axes: Axes = None,
    seed: int = 0,
) -> optax.GradientTransformation:
    """Run a base optimizer on gradients projected to a leading subspace of rank ``rank``.

        P^H G -> base -> U -> P U,    P an orthonormal basis of the leading left space of G

    The shorter side is projected. For Adam and a matrix (short, long) the state takes
    rank (short + 2 long) numbers in place of 2 short long.

    Cost: a step two products of rank short long, plus the base's on (rank, long). A refresh
    6 (rank + 10) ("randomized") or 2 rank ("warm") vectors multiplied by G.

    Args:
        rank: static int >= 1. Matrices whose shorter side is no longer, and leaves that are not
            selected, go to the base optimizer as they are.
        base: transformation that needs no ``params``, such as `optax.scale_by_adam` (the default);
            weight decay is another link of the chain.
        refresh_every: static int >= 1; steps from one basis to the next.
        refresh: "randomized" for a fresh `randomized_svd`, "warm" for one step of subspace
            iteration from the last basis (after a randomized first one).
        rotate_moments: static; carry the moments of the base over to the new basis.
        residual: None drops G - P P^H G; a number c > 0 adds c a (G - P P^H G), where a is the
            multiple of P^H G nearest to U (plain SGD at c = 1 is then what it is without
            projection).
        where: leaves, as in `jaxsvd.regularizers`.
        axes: rows and columns, as there.
        seed: static int, of the randomized SVD.

    Returns:
        A GradientTransformation with state LowRankState.

    Raises:
        TypeError, ValueError: an argument out of range; ``where`` or ``axes`` do not fit a leaf, or
            the state is of other leaves, by path.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd, optax
        >>> params = {"w": jnp.ones((64, 32)), "b": jnp.ones(32)}
        >>> optimizer = optax.chain(jaxsvd.transforms.scale_by_low_rank(4), optax.scale(-0.1))
        >>> state = optimizer.init(params)
        >>> jax.tree.map(jnp.shape, state[0].base.mu)
        {'b': (32,), 'w': (4, 64)}

    References:
        Zhao et al. (2024), "GaLore", algorithm 2; Robert et al. (2024), "LDAdam", on moments under
        a change of basis; Chen et al. (2024), "Fira", on the residual.
    """
    name = "scale_by_low_rank"
    rank = _checks.static_int(name, "rank", rank, 1, 2**31)
    every = _checks.static_int(name, "refresh_every", refresh_every, 1, 2**31 - 1)
    refresh = _checks.choice(name, "refresh", refresh, REFRESHES)
    rotate = _checks.flag(name, "rotate_moments", rotate_moments)
    seed = _checks.static_int(name, "seed", seed, 0, 2**31 - 1)
    residual = None if residual is None else _checks.positive(name, "residual", residual)
    base = optax.scale_by_adam() if base is None else base
    if not (hasattr(base, "init") and hasattr(base, "update")):
        raise TypeError(
            f"{name}: `base` must be a GradientTransformation, got {_checks.describe(base)}"
        )

    def select(tree: Any) -> dict[str, _leaves.Place]:
        places = _leaves.select(tree, where, axes, name=name)
        shapes = _leaves.shapes(tree, places)
        return {
            path: place for path, place in places.items() if min(shapes[path].shape[-2:]) > rank
        }

    def init(params: Any) -> LowRankState:
        places = select(params)
        basis, proxies = {}, {}
        for path, a in _leaves.shapes(params, places).items():
            *batch, m, n = a.shape
            dtype = _checks.working(jnp.zeros((), a.dtype)).dtype
            # Orthonormal from the start, although nothing has been seen of a gradient.
            eye = jnp.eye(min(m, n), rank, dtype=dtype)
            basis[path] = jnp.broadcast_to(eye, (*batch, *eye.shape))
            proxies[path] = jnp.zeros((*batch, rank, max(m, n)), a.dtype)
        tree = _leaves.replace(params, places, proxies)
        return LowRankState(jnp.zeros((), jnp.int32), basis, base.init(tree))

    def update(updates: Any, state: Any, params: Any = None):
        del params
        places = select(updates)
        if set(state.basis) != set(places):
            other = ", ".join(sorted(set(state.basis) ^ set(places)))
            raise ValueError(
                f"{name}: `state` must come from init for the same leaves, got one that differs at "
                f"{other}"
            )
        matrices = _leaves.matrices(updates, places)
        G = {path: _wide(_checks.working(a)) for path, a in matrices.items()}
        found, _ = tree_flatten_with_path(updates)
        keys = {path: found[place.index][0] for path, place in places.items()}
        proxy_shapes = {path: (*a.shape[:-2], rank, a.shape[-1]) for path, a in G.items()}

        def refreshed(new_basis, carry):
            basis, base_state = carry
            key = jax.random.fold_in(jax.random.key(seed), state.count)
            new = {
                path: new_basis(a, basis[path], jax.random.fold_in(key, i))
                for i, (path, a) in enumerate(G.items())
            }
            if rotate:
                R = {path: adjoint_product(new[path], basis[path]) for path in new}
                base_state = _rotate_state(base_state, keys, R, proxy_shapes)
            return new, base_state

        branches = [
            lambda carry: carry,
            lambda carry: refreshed(_randomized, carry),
            lambda carry: refreshed(_warm, carry),
        ]
        later = 1 + REFRESHES.index(refresh)
        which = jnp.where(state.count == 0, 1, jnp.where(state.count % every == 0, later, 0))
        basis, base_state = state.basis, state.base
        if places:
            used = branches[: later + 1]
            basis, base_state = lax.switch(which, used, (basis, base_state))

        leaves = jax.tree.leaves(updates)
        proxies = {path: adjoint_product(basis[path], a) for path, a in G.items()}
        typed = {path: a.astype(leaves[places[path].index].dtype) for path, a in proxies.items()}
        tree = _leaves.replace(updates, places, typed)
        inner, base_state = base.update(tree, base_state)
        inner_leaves = jax.tree.leaves(inner)
        new = {}
        for path, place in places.items():
            U = inner_leaves[place.index].astype(proxies[path].dtype)
            full = product(basis[path], U)
            if residual is not None:
                rest = G[path] - product(basis[path], proxies[path])
                full = full + _multiple(U, proxies[path], residual) * rest
            m, n = matrices[path].shape[-2:]
            full = full if m <= n else adjoint(full)
            new[path] = _leaves.restore(full, leaves[place.index], place)
        updates = _leaves.replace(inner, places, new)
        return updates, LowRankState(optax.safe_increment(state.count), basis, base_state)

    return optax.GradientTransformation(init, update)


def _multiple(U: jax.Array, X: jax.Array, factor: Any) -> jax.Array:
    """Return factor * a with a X nearest to U, (..., 1, 1); 0 for X = 0."""
    size = jnp.sum(jnp.real(X * jnp.conj(X)), axis=(-2, -1), keepdims=True)
    along = jnp.sum(jnp.real(U * jnp.conj(X)), axis=(-2, -1), keepdims=True)
    ratio = jnp.where(size > 0, along / jnp.where(size > 0, size, 1), 0)
    return (jnp.asarray(factor, ratio.dtype) * ratio).astype(X.dtype)

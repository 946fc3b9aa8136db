"""Adapters taken back, made from two models, added, and freed of their start."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .. import _checks, _leaves
from .._leaves import Axes, Where
from .._types import SVDResult
from ..algorithms.adaptive import smallest_certifiable
from ..layers import factors
from ..primitives.adaptive import adaptive_svd
from ..primitives.randomized import randomized_svd
from ..primitives.truncated import check_key
from .adapter import Adapter, held, is_adapter, on_leaves
from .initial import LAYOUTS, checked_rank, finite, of_path, sparse


def unmerge(merged: Any, adapters: Any) -> Any:
    """Return the parameters from which apply(params, adapters) made the merged ones.

    To rounding in the dtype of each leaf. Of a DoRA adapter the columns come back from their first
    norms, which it carries: with d a merged column over its magnitude and c the change,
    W = t d - c with t > 0 such that |W| is that norm. It is the only one where |c| < |W|.

    Args:
        merged: pytree of arrays.
        adapters: those that were merged.

    Returns:
        The pytree before.

    Raises:
        TypeError: ``adapters`` holds anything else.
        ValueError: they are of another model, by path; a DoRA adapter has changed a column by more
            than its norm, or brought its magnitude to zero.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> adapters = jaxsvd.lora.extract(jnp.zeros((2, 2)), jnp.ones((2, 2)), 1)
        >>> print(jnp.round(jaxsvd.lora.unmerge(jnp.ones((2, 2)), adapters), 5) + 0.0)
        [[0. 0.]
         [0. 0.]]
    """
    name = "lora.unmerge"

    def back(path: str, W: jax.Array, adapter: Adapter) -> jax.Array:
        change = adapter.delta().astype(W.dtype)
        if adapter.magnitude is None or adapter.norm is None:
            return W - change
        size = jnp.sum(jnp.real(jnp.conj(change) * change), axis=-2)
        room = jnp.square(adapter.norm).astype(size.dtype) - size
        lost = jnp.any((room <= 0) | (adapter.magnitude == 0))
        if not isinstance(lost, Tracer) and bool(lost):
            raise ValueError(
                f"{name}: `adapters` must have changed every column by less than its norm, with "
                f"magnitudes that are not zero, got others in leaf {path!r}"
            )
        d = W / adapter.magnitude[..., None, :].astype(W.dtype)
        along = jnp.sum(jnp.real(jnp.conj(d) * change), axis=-2)
        t = along + jnp.sqrt(jnp.square(along) + room)
        return t[..., None, :].astype(W.dtype) * d - change

    return on_leaves(name, merged, adapters, back)


def extract(
    base: Any,
    tuned: Any,
    rank: Any,
    where: Where = None,
    axes: Axes = None,
    *,
    layout: str = "in_out",
    key: jax.Array | None = None,
) -> Any:
    """Return the adapters nearest to what fine-tuning changed: apply(base, adapters) near tuned.

    By a randomized SVD of each difference. Selected leaves that did not change get no adapter.

    Cost: six products of each difference with r + 10 columns; for an energy about 2 r columns.

    Args:
        base: pytree of concrete arrays.
        tuned: the same after training.
        rank: static int, a share of the energy of each change, or a dict, as in `init`.
        where: leaves, as in `init`.
        axes: rows and columns, as in `init`.
        layout: "in_out" or "out_in", as in `init`.
        key: from `jax.random.key`; default a fixed one.

    Returns:
        Adapters of scale one, a pytree as of `init`.

    Raises:
        TypeError: a traced leaf; ``key`` is no key.
        ValueError: the two are of different models, by path; an argument does not fit; NaN or Inf
            in a leaf, by path; nothing has changed.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> base = {"w": jnp.eye(3), "b": jnp.ones(3)}
        >>> tuned = {"w": jnp.eye(3) + 1, "b": jnp.ones(3)}
        >>> adapters = jaxsvd.lora.extract(base, tuned, 1)
        >>> bool(jnp.allclose(jaxsvd.lora.apply(base, adapters)["w"], tuned["w"]))
        True

    References:
        Halko, Martinsson and Tropp (2011), algorithms 4.2 to 4.4 and 5.1.
    """
    name = "lora.extract"
    key = check_key(name, jax.random.key(0) if key is None else key)
    layout = _checks.choice(name, "layout", layout, LAYOUTS)
    rank = checked_rank(name, rank)
    places = _leaves.select(base, where, axes, name=name)
    before, after = dict(_leaves.paths(base)), dict(_leaves.paths(tuned))
    for path in before.keys() ^ after.keys():
        raise ValueError(f"{name}: `tuned` must have the leaves of `base`, got no or one {path!r}")
    new = jax.tree.leaves(tuned)
    found: dict[str, Any] = {}
    for path, place in places.items():
        wanted = of_path(name, rank, path, where is not None)
        if wanted is None:
            continue
        if before[path].shape != after[path].shape:
            raise ValueError(
                f"{name}: `tuned` must have shape {before[path].shape} at {path!r}, got "
                f"{after[path].shape}"
            )
        pair = (before[path], new[place.index])
        old, moved = (_checks.working(_leaves.as_matrix(x, place)) for x in pair)
        change = moved.astype(old.dtype) - old
        if isinstance(change, Tracer):
            raise TypeError(f"{name}: leaf {path!r} must be a concrete array, got a traced one")
        finite(name, path, old, "base")
        finite(name, path, moved, "tuned")
        if not bool(jnp.any(change != 0)):
            continue
        change = change.mT if layout == "out_in" else change
        result = _leading(name, jax.random.fold_in(key, place.index), path, change, wanted)
        found[path] = Adapter(
            *factors.balanced(result),
            transposed=layout == "out_in",
            rows=place.rows,
            columns=place.columns,
        )
    if not found:
        raise ValueError(f"{name}: `tuned` must differ from `base` in a selected leaf, got none")
    return sparse(base, places, found)


def _leading(name: str, key: Any, path: str, change: jax.Array, rank: int | float) -> SVDResult:
    most = min(change.shape[-2:])
    if isinstance(rank, int):
        result = randomized_svd(key, change, min(rank, most))
        assert isinstance(result, SVDResult)
        return result
    limit = 1 - smallest_certifiable(change.dtype) ** 2
    if rank > limit:
        raise ValueError(
            f"{name}: `rank` as a share of the energy must be at most {limit:.6f} for {path!r} of "
            f"dtype {change.dtype}, what it can tell from rounding, got {rank}"
        )
    tol = (1 - rank) ** 0.5
    found: Any = adaptive_svd(key, change, tol, max_rank=most, return_info=True)
    (U, S, Vh), info = found
    r = max(1, int(jnp.max(info.rank)))
    return SVDResult(U[..., :r], S[..., :r], Vh[..., :r, :])


def _plain(adapter: Adapter) -> Adapter:
    if adapter.start is None:
        return adapter
    down, up = adapter.start
    return dataclasses.replace(
        adapter,
        down=jnp.concatenate([adapter.down, down], axis=-1),
        up=jnp.concatenate([adapter.up, -up], axis=-2),
        start=None,
    )


def to_plain(adapters: Any) -> Any:
    """Return adapters without a start that make the same change: down up for down up - start.

        scale (A B - A_0 B_0) = scale [A, A_0] [B; -B_0]

    Of twice the rank, the scale as it was, so ``alpha`` becomes twice that (rslora: sqrt(2) times).
    The result adapts the base as other programs know it, each leaf by its own rank and alpha.

    Args:
        adapters: of any method; those without a start stay as they are.

    Returns:
        Adapters.

    Raises:
        TypeError: ``adapters`` holds anything else.
        ValueError: there is none.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> adapter = jaxsvd.lora.init(jax.random.key(0), jnp.eye(3), 1, method="pissa", alpha=2)
        >>> plain = jaxsvd.lora.to_plain(adapter)
        >>> plain.rank, plain.alpha, plain.start
        (2, 4.0, None)

    References:
        Meng, Wang and Zhang (2024), "PiSSA", appendix on conversion to LoRA.
    """
    held("lora.to_plain", adapters)
    return jax.tree.map(_plain, adapters, is_leaf=is_adapter)


def combine(
    adapters: Sequence[Any], weights: Sequence[Any] | None = None, rank: int | None = None
) -> Any:
    """Return one tree of adapters whose change is the weighted sum of those of several.

        sum_i w_i scale_i A_i B_i = [w_1 scale_1 A_1, ...] [B_1; ...]

    Exact, of the sum of the ranks; with ``rank`` the nearest of that rank, from the factors alone.

    Args:
        adapters: trees of adapters of the same parameters; where one has none, the others count.
        weights: a number for each, may be traced; default one each.
        rank: static; None for the sum of the ranks.

    Returns:
        Adapters of scale one.

    Raises:
        TypeError: a tree holds anything else.
        ValueError: they are of different models; a DoRA adapter, whose change is no sum; not as
            many weights as trees.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> one = jaxsvd.lora.extract(jnp.zeros((3, 2)), jnp.ones((3, 2)), 1)
        >>> both = jaxsvd.lora.combine([one, one], [1.0, 2.0], rank=1)
        >>> print(jnp.round(both.delta(), 4))
        [[3. 3.]
         [3. 3.]
         [3. 3.]]
    """
    name = "lora.combine"
    trees = list(adapters) if isinstance(adapters, (list, tuple)) else []
    if not trees:
        raise ValueError(
            f"{name}: `adapters` must be a list of trees, got {_checks.describe(adapters)}"
        )
    factors_of = [1.0] * len(trees) if weights is None else list(weights)
    if len(factors_of) != len(trees):
        raise ValueError(f"{name}: `weights` must be {len(trees)} numbers, got {len(factors_of)}")
    rank = None if rank is None else _checks.static_int(name, "rank", rank, 1, 2**31)
    for tree in trees:
        for path, adapter in held(name, tree).items():
            if adapter.magnitude is not None:
                raise ValueError(
                    f"{name}: `adapters` must be without DoRA's magnitudes, got some in {path!r}"
                )

    def one(*parts):
        chosen = [(w, _plain(p)) for w, p in zip(factors_of, parts, strict=True) if p is not None]
        if not chosen:
            return None
        first = chosen[0][1]
        ends = [(p.down.shape[:-1], p.up.shape[-1], p.transposed) for _, p in chosen]
        if len(set(ends)) > 1:
            raise ValueError(f"{name}: `adapters` must be of the same parameters, got {ends}")
        down = jnp.concatenate(
            [jnp.asarray(w * p.scale).astype(first.down.dtype) * p.down for w, p in chosen], axis=-1
        )
        up = jnp.concatenate([p.up for _, p in chosen], axis=-2)
        if rank is not None and rank < down.shape[-1]:
            down, up = factors.truncate(down, up, rank)
        return Adapter(
            down, up, transposed=first.transposed, rows=first.rows, columns=first.columns
        )

    is_leaf = lambda x: x is None or is_adapter(x)  # noqa: E731
    marked = [jax.tree.map(lambda x: 0, tree, is_leaf=is_leaf) for tree in trees]
    if len({jax.tree.structure(tree) for tree in marked}) > 1:
        raise ValueError(f"{name}: `adapters` must be of the same parameters, got different trees")
    return jax.tree.map(one, *trees, is_leaf=is_leaf)

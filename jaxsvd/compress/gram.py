"""What the weights of a model have seen: second moments of the inputs of every selected leaf.

The model is traced to a jaxpr, as `jax.grad` would, and run from there. Nothing needs to be known
of it, and nothing in it is changed.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from .. import _checks, _leaves
from .._leaves import Axes, Where
from . import views
from .watch import Watch


def collect_gram(
    fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Iterable[Any],
    where: Where = None,
    axes: Axes = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Return the second moments of the inputs of every selected leaf of any model.

        C = sum over batches and positions of x^H x,    y = x W

    The model is traced; where it multiplies with a selected leaf W, or convolves with it, the other
    operand is x. W may have been cast, transposed, reshaped or taken from a stack before, and the
    product may stand inside `jax.jit`, `jax.checkpoint`, `lax.scan`, loops, branches, `vmap` and
    functions with their own derivative. A leaf that is used more than once gets the sum.

    Cost: the model and n s^2 more for n inputs of size s; one compilation for each shape of batch.
    Sums are made at the highest precision, in float32 or wider.

    Args:
        fn: function (params, batch) -> anything: a model, or a loss.
        params: pytree of arrays.
        batches: iterable of pytrees of arrays.
        where: leaves, as in `to_budget`: leave out what is looked up and not multiplied.
        axes: rows and columns of leaves with more than two axes, as there.
        progress: function (batches done), called after each.

    Returns:
        Metrics for `to_budget` by path: C (..., s, s) of the rows of a leaf that are inputs, as in
        Flax and Haiku; (None, C) where they are its columns, as in Equinox. Batch axes come first.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a selected leaf is not multiplied, or in a way that has no such moments; there
            is no batch; NaN or Inf in an input of a leaf, by path.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> def model(params, x):
        ...     return jax.nn.relu(x @ params["a"]) @ params["b"].T
        >>> params = {"a": jnp.eye(2), "b": jnp.ones((3, 2))}
        >>> batches = [jnp.array([[1.0, -1.0]]), jnp.array([[2.0, 0.0], [0.0, 3.0]])]
        >>> metrics = jaxsvd.compress.collect_gram(model, params, batches)
        >>> print(metrics["a"])
        [[ 5. -1.]
         [-1. 10.]]
        >>> print(metrics["b"][1])
        [[5. 0.]
         [0. 9.]]

    References:
        Wang et al. (2024), "SVD-LLM"; Chen et al. (2021), "DRONE".
    """
    name = "collect_gram"
    fn = _checks.function(name, "fn", fn)
    progress = None if progress is None else _checks.function(name, "progress", progress)
    places = _leaves.select(params, where, axes, name=name)
    leaves, structure = jax.tree.flatten(params)
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]
    arrays = [leaf for leaf, yes in zip(leaves, is_array, strict=True) if yes]
    paths = {place.index: path for path, place in places.items()}
    known = [
        views.whole(paths[i], leaves[i].shape) if i in paths else None
        for i in range(len(leaves))
        if is_array[i]
    ]
    shapes = {path: tuple(leaves[place.index].shape) for path, place in places.items()}

    def watch(arrays, batch, sums) -> Watch:
        def model(arrays, batch):
            given = iter(arrays)
            filled = [
                next(given) if yes else leaf for leaf, yes in zip(leaves, is_array, strict=True)
            ]
            return fn(structure.unflatten(filled), batch)

        closed = jax.make_jaxpr(model)(arrays, batch)
        seen = Watch(places, shapes)
        seen.sums = dict(sums)
        rest = [(x, None) for x in jax.tree.leaves(batch)]
        seen.run(closed.jaxpr, closed.consts, [*zip(arrays, known, strict=True), *rest])
        return seen

    @functools.partial(jax.jit, donate_argnums=2)
    def add(arrays, batch, sums):
        seen = watch(arrays, batch, sums)
        _refuse(name, seen)
        return seen.sums

    sums: dict[str, jax.Array] = {}
    sides: dict[str, str] = {}
    count = 0
    for count, batch in enumerate(batches, 1):
        if count == 1:
            sums, sides = _begun(name, watch, arrays, batch)
        sums = add(arrays, batch, sums)
        if progress is not None:
            progress(count)
    if not count:
        raise ValueError(f"{name}: `batches` must hold a batch, got none")
    for path, C in sums.items():
        if not bool(jnp.all(jnp.isfinite(C))):
            raise ValueError(f"{name}: inputs must be finite, got NaN or Inf into leaf {path!r}")
    return {path: sums[path] if sides[path] == "rows" else (None, sums[path]) for path in places}


def _refuse(name: str, seen: Watch) -> None:
    for path in seen.places:
        if path in seen.problem:
            raise ValueError(
                f"{name}: leaf {path!r} must be multiplied along all of its rows or all of its "
                f"columns, but {seen.problem[path]}; leave it out by `where`"
            )


def _begun(name: str, watch: Callable, arrays: Any, batch: Any) -> tuple[Any, Any]:
    """Return zeros for the sums, and which side of each leaf they are of, or raise."""
    found: list[Watch] = []

    def look(arrays, batch):
        found.append(watch(arrays, batch, {}))
        return ()

    jax.eval_shape(look, arrays, batch)
    seen = found[0]
    _refuse(name, seen)
    missing = [path for path in seen.places if path not in seen.sides]
    if missing:
        raise ValueError(
            f"{name}: every selected leaf must be an operand of a matrix product or convolution, "
            f"got {', '.join(map(repr, missing))}, which meets none as it is stored; leave out by "
            "`where` what is looked up, scaled or sliced first"
        )
    sums = {}
    for path, side in seen.sides.items():
        shape = seen.shapes[path]
        size = math.prod(shape[axis] for axis in getattr(seen.places[path], side))
        batch_shape = [shape[axis] for axis in seen.batch(path)]
        sums[path] = jnp.zeros((*batch_shape, size, size), seen.dtypes[path])
    return sums, seen.sides

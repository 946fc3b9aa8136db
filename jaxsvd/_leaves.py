"""A parameter pytree seen as matrices: which leaves, along which axes, and back again.

The one place that knows paths of leaves, dimension numbers and reshapes; regularizers, optax
transformations, adapters and compression all stand on it.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from . import _checks

# What selects leaves: a regular expression searched for in the path, or a predicate (path, leaf).
Where = str | Callable[[str, Any], bool] | None

# What says which axes are rows and columns: a pair for all leaves of more than two axes (such as
# optax's MuonDimensionNumbers), pairs by regular expression, or a function (path, leaf) -> pair.
Axes = tuple[Any, Any] | Mapping[str, tuple[Any, Any]] | Callable[[str, Any], Any] | None

# Paths that a message lists at most.
LISTED = 12


class Place(NamedTuple):
    """Where a matrix stands in a pytree.

    Attributes:
        index: position among the leaves.
        rows: axes of the leaf that make up the rows.
        columns: axes that make up the columns; all others are batch axes, in their order.
    """

    index: int
    rows: tuple[int, ...] = (0,)
    columns: tuple[int, ...] = (1,)


def paths(params: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Return (path, leaf) for all leaves, a path being keys joined by "/" as in "dense/kernel".

    The path of an array that is no part of anything is ".". ``is_leaf`` as in jax.tree.flatten.
    """
    found, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)
    named = [
        (jax.tree_util.keystr(p, simple=True, separator="/") or ".", leaf) for p, leaf in found
    ]
    if len({path for path, _ in named}) < len(named):  # keys that hold a "/" themselves
        named = [(jax.tree_util.keystr(p), leaf) for p, leaf in found]
    return named


def listed(named: list[tuple[str, Any]]) -> str:
    """Return the first paths and how many more there are, for messages."""
    text = ", ".join(path for path, _ in named[:LISTED])
    return text + (f" and {len(named) - LISTED} more" if len(named) > LISTED else "")


def _matches(name: str, where: Where) -> Callable[[str, Any], bool]:
    if isinstance(where, str):
        try:
            pattern = re.compile(where)
        except re.error as error:
            raise ValueError(
                f"{name}: `where` must be a regular expression, got {where!r} ({error})"
            ) from None
        return lambda path, leaf: pattern.search(path) is not None
    if not callable(where):
        raise TypeError(
            f"{name}: `where` must be None, a regular expression or a predicate (path, leaf), got "
            f"{_checks.describe(where)}"
        )
    return lambda path, leaf: bool(where(path, leaf))


def _axes_of(name: str, path: str, leaf: Any, axes: Axes) -> tuple[tuple, tuple] | None:
    """Return the axes of rows and columns of a leaf, or None if nothing says."""
    ndim = len(leaf.shape)
    if ndim == 2:
        return (0,), (1,)
    pair: Any = axes
    if isinstance(axes, Mapping):
        pair = next((pair for pattern, pair in axes.items() if re.search(pattern, path)), None)
    elif callable(axes):
        pair = axes(path, leaf)
    if pair is None:
        return None
    try:
        rows, columns = (tuple(x) if isinstance(x, (tuple, list)) else (x,) for x in pair)
    except (TypeError, ValueError):
        rows, columns = (), ()
    given = (*rows, *columns)
    in_range = all(isinstance(axis, int) and -ndim <= axis < ndim for axis in given)
    if not rows or not columns or not in_range or len({a % ndim for a in given}) < len(given):
        raise ValueError(
            f"{name}: `axes` must be a pair (rows, columns) of different axes of leaf {path!r}, "
            f"which has shape {tuple(leaf.shape)}, got {pair!r}"
        )
    return tuple(axis % ndim for axis in rows), tuple(axis % ndim for axis in columns)


def select(
    params: Any, where: Where = None, axes: Axes = None, *, name: str = "select"
) -> dict[str, Place]:
    """Return the places of the matrices of a pytree by path.

    Without ``where`` these are all floating-point and complex leaves of two axes, and those of more
    for which ``axes`` says what rows and columns are.

    Args:
        params: pytree of arrays, or of anything with a shape and a dtype.
        where: regular expression searched for in paths, or predicate (path, leaf) -> bool.
        axes: pair (rows, columns) of axes or tuples of axes for the leaves with more than two;
            a mapping from regular expressions to pairs; or a function (path, leaf) -> pair.
        name: of the calling function, for messages.

    Returns:
        A dict from path to Place, empty only for a pytree without leaves.

    Raises:
        TypeError: a selected leaf holds integers; ``where`` is of another type.
        ValueError: nothing is selected; a selected leaf has one axis, or more than two and nothing
            says which are rows; axes that a leaf has not.
    """
    matches = None if where is None else _matches(name, where)
    named = paths(params)
    found = {}
    for index, (path, leaf) in enumerate(named):
        if matches is not None and not matches(path, leaf):
            continue
        shape = getattr(leaf, "shape", ())
        is_number = jnp.issubdtype(jax.dtypes.result_type(leaf), jnp.inexact)
        if matches is not None and not is_number:
            raise TypeError(
                f"{name}: `where` must select floating-point or complex leaves, got {path!r} of "
                f"dtype {jax.dtypes.result_type(leaf)}"
            )
        if matches is not None and len(shape) < 2:
            raise ValueError(
                f"{name}: `where` must select leaves of two axes or more, got {path!r} of shape "
                f"{tuple(shape)}"
            )
        if not is_number or len(shape) < 2:
            continue
        pair = _axes_of(name, path, leaf, axes)
        if pair is not None:
            found[path] = Place(index, *pair)
        elif matches is not None:
            raise ValueError(
                f"{name}: `axes` must say which axes of leaf {path!r} are rows and columns, such "
                f"as ((0, 1, 2), 3) for a kernel HWIO, got {axes!r} for shape {tuple(shape)}"
            )
    if named and not found:
        what = "`where` must match a path" if where is not None else "`params` must hold a matrix"
        came = f"{where!r}" if where is not None else "none of two axes"
        raise ValueError(f"{name}: {what}, got {came}; the paths are {listed(named)}")
    return found


def unsharded(x: jax.Array) -> jax.Array:
    """Return x whole on every device of an Explicit mesh, where reshapes and SVDs want it so."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return x
    return jax.sharding.reshard(x, PartitionSpec(*[None] * x.ndim))


def _order(ndim: int, place: Place) -> tuple[int, ...]:
    kept = [axis for axis in range(ndim) if axis not in place.rows + place.columns]
    return (*kept, *place.rows, *place.columns)


def as_matrix(leaf: Any, place: Place) -> jax.Array:
    """Return a leaf as matrices (..., m, n), rows and columns being products of its axes."""
    leaf = unsharded(jnp.asarray(leaf))
    if leaf.ndim == 2:
        return leaf
    order = _order(leaf.ndim, place)
    batch = leaf.ndim - len(place.rows) - len(place.columns)
    leaf = leaf.transpose(order)
    m = math.prod(leaf.shape[batch : batch + len(place.rows)])
    n = math.prod(leaf.shape[batch + len(place.rows) :])
    return leaf.reshape(*leaf.shape[:batch], m, n)


def restore(matrix: jax.Array, leaf: Any, place: Place) -> jax.Array:
    """Return matrices (..., m, n) in the shape, dtype and sharding of the leaf they came from."""
    matrix = matrix.astype(leaf.dtype)
    if len(leaf.shape) > 2:
        order = _order(len(leaf.shape), place)
        inverse = sorted(range(len(order)), key=lambda axis: order[axis])
        matrix = matrix.reshape([leaf.shape[axis] for axis in order]).transpose(inverse)
    sharding = getattr(jax.typeof(leaf), "sharding", None)
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return matrix
    return jax.sharding.reshard(matrix, sharding.spec)


def matrices(params: Any, places: Mapping[str, Place]) -> dict[str, jax.Array]:
    """Return the selected leaves as matrices (..., m, n), by path."""
    leaves = jax.tree.leaves(params)
    return {path: as_matrix(leaves[place.index], place) for path, place in places.items()}


def shapes(params: Any, places: Mapping[str, Place]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of `matrices`; of the leaves only these are looked at."""
    leaves = jax.tree.leaves(params)
    return {
        path: jax.eval_shape(
            lambda x, place=place: as_matrix(x, place),
            jax.ShapeDtypeStruct(leaves[place.index].shape, leaves[place.index].dtype),
        )
        for path, place in places.items()
    }


def replace(params: Any, places: Mapping[str, Place], values: Mapping[str, Any]) -> Any:
    """Return the pytree with the selected leaves replaced by values of any shape, by path."""
    leaves, structure = jax.tree.flatten(params)
    for path, place in places.items():
        leaves[place.index] = values[path]
    return structure.unflatten(leaves)


def update(
    function: Callable[[jax.Array], jax.Array],
    params: Any,
    places: Mapping[str, Place],
) -> Any:
    """Return the pytree with function(matrix) in place of every selected leaf."""
    leaves = jax.tree.leaves(params)
    new = {
        path: restore(function(matrix), leaves[places[path].index], places[path])
        for path, matrix in matrices(params, places).items()
    }
    return replace(params, places, new)

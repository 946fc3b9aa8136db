"""What stands in a parameter tree for a compressed weight, and arrays again in its place."""

from typing import Any

import jax

from .. import _leaves
from .._leaves import Place
from ..operators.base import operator as pytree
from ..operators.base import static
from ..operators.compose import LowRank
from ..primitives.batching import vmapped


@pytree
class Folded:
    """A compressed leaf of more than two axes: the factors of its matrix, and how it folds.

    A leaf whose rows and columns are its last two axes (a stack of weights) is no Folded but a
    LowRank with the leading axes of the stack: `jax.lax.scan` over it gives one LowRank a step.

    Attributes:
        factors: LowRank of the matrix, with the remaining axes of the leaf in front.
        shape: of the leaf.
        rows: axes of the leaf that are rows.
        columns: axes that are columns.
    """

    factors: LowRank
    shape: tuple[int, ...] = static(default=())
    rows: tuple[int, ...] = static(default=(0,))
    columns: tuple[int, ...] = static(default=(1,))


def fold(factors: LowRank, leaf: Any, place: Place) -> LowRank | Folded:
    """Return the factors of a leaf as what stands in its place."""
    ndim = len(leaf.shape)
    if (place.rows, place.columns) == ((ndim - 2,), (ndim - 1,)):
        return factors
    return Folded(factors, tuple(leaf.shape), place.rows, place.columns)


def is_compressed(x: Any) -> bool:
    """Return whether x stands for a compressed leaf, for ``is_leaf``."""
    return isinstance(x, (LowRank, Folded))


def dense(x: Any) -> Any:
    """Return the array that a compressed leaf stands for; anything else as it is."""
    if isinstance(x, LowRank):
        dtype = x.U.dtype
        return vmapped(LowRank.to_dense, x.U.ndim - 2)(x).astype(dtype)
    if isinstance(x, Folded):
        leaf = jax.ShapeDtypeStruct(x.shape, x.factors.U.dtype)
        return _leaves.restore(dense(x.factors), leaf, Place(0, x.rows, x.columns))
    return x


def densify(params: Any) -> Any:
    """Return the tree with an array in place of every compressed leaf.

    In front of a model, inside jit and grad: ``model(densify(params), x)``.

    Cost: one product of m r n for each.

    Args:
        params: from `to_budget`; may hold other leaves of any kind.

    Returns:
        The tree of the model, its arrays in their shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> params = {"w": jnp.ones((8, 8)), "b": jnp.ones(8)}
        >>> small, report = jaxsvd.compress.to_budget(params, 30)
        >>> jaxsvd.compress.densify(small)["w"].shape
        (8, 8)
    """
    return jax.tree.map(dense, params, is_leaf=is_compressed)

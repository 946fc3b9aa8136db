"""An adapter of one leaf, and what applies a tree of them to a model's parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _checks, _leaves
from .._leaves import Place
from ..algorithms.products import product
from ..operators.base import operator as pytree
from ..operators.base import static

# Fields that are trained; the others are constants that travel with them.
TRAINED = ("down", "up", "magnitude")


@pytree
class Adapter:
    """The change scale (down up - start) of a matrix (inputs, outputs), and DoRA's magnitudes.

    Attributes:
        down: (..., inputs, r), with the leading axes of a stacked leaf.
        up: (..., r, outputs).
        start: the first values of (down, up), if their product was not zero; a constant.
        magnitude: (..., outputs), norms of the columns that DoRA trains; or None.
        norm: (..., outputs), their first values; a constant.
        scale: alpha / r, or alpha / sqrt(r) for rslora; no leaf, so nothing trains or decays it.
        rslora: whether alpha is divided by sqrt(r).
        transposed: whether the leaf is (outputs, inputs).
        rows: axes of the leaf that are rows.
        columns: axes of the leaf that are columns.
    """

    down: jax.Array
    up: jax.Array
    start: tuple[jax.Array, jax.Array] | None = None
    magnitude: jax.Array | None = None
    norm: jax.Array | None = None
    scale: float = static(default=1.0)
    rslora: bool = static(default=False)
    transposed: bool = static(default=False)
    rows: tuple[int, ...] = static(default=(0,))
    columns: tuple[int, ...] = static(default=(1,))

    @property
    def rank(self) -> int:
        """How many columns `down` has."""
        return self.down.shape[-1]

    @property
    def alpha(self) -> float:
        """The number from which the scale is made."""
        return self.scale * (self.rank**0.5 if self.rslora else self.rank)

    def delta(self) -> jax.Array:
        """Return the change (..., inputs, outputs) without magnitudes; zero at the start."""
        change = product(self.down, self.up)
        if self.start is not None:
            change = change - product(*lax.stop_gradient(self.start))
        return self.scale * change


def column_norms(kernel: jax.Array) -> jax.Array:
    """Return the norms (..., outputs) of the columns of (..., inputs, outputs)."""
    return jnp.sqrt(jnp.sum(jnp.real(jnp.conj(kernel) * kernel), axis=-2))


def adapted(kernel: jax.Array, adapter: Adapter) -> jax.Array:
    """Return the adapted kernel (..., inputs, outputs)."""
    kernel = kernel + adapter.delta().astype(kernel.dtype)
    if adapter.magnitude is None:
        return kernel
    # A constant, as in the paper (section 4.3): it saves memory and costs no accuracy.
    norms = lax.stop_gradient(column_norms(kernel))
    factor = jnp.where(norms > 0, adapter.magnitude / jnp.where(norms > 0, norms, 1), 1)
    return kernel * factor[..., None, :].astype(kernel.dtype)


def is_adapter(x: Any) -> bool:
    """Return whether x is an adapter, for ``is_leaf``."""
    return isinstance(x, Adapter)


def held(name: str, adapters: Any) -> dict[str, Adapter]:
    """Return the adapters of a tree by path, or raise if there is none or something else."""
    leaves, structure = jax.tree.flatten(adapters, is_leaf=is_adapter)
    for leaf in leaves:
        if not is_adapter(leaf):
            raise TypeError(
                f"{name}: `adapters` must hold adapters and None only, got {_checks.describe(leaf)}"
            )
    if not leaves:
        raise ValueError(f"{name}: `adapters` must hold an adapter, got none")
    marked = structure.unflatten(range(len(leaves)))
    return {path: leaves[index] for path, index in _leaves.paths(marked)}


def on_leaves(
    name: str,
    params: Any,
    adapters: Any,
    function: Callable[[str, jax.Array, Adapter], jax.Array],
) -> Any:
    """Return params with function(path, kernel, adapter) in place of every adapted leaf.

    Raises:
        ValueError: the adapters are of another model, by the first path that does not fit.
    """
    named = _leaves.paths(params)
    indices = {path: index for index, (path, _) in enumerate(named)}
    places, new = {}, {}
    for path, adapter in held(name, adapters).items():
        if path not in indices:
            raise ValueError(
                f"{name}: `adapters` must be of these parameters, got one for {path!r}, which is "
                f"no leaf; the paths are {_leaves.listed(named)}"
            )
        place = places[path] = Place(indices[path], adapter.rows, adapter.columns)
        leaf = named[place.index][1]
        wanted = (*adapter.down.shape[:-1], adapter.up.shape[-1])
        axes = max(len(adapter.rows + adapter.columns), *adapter.rows, *adapter.columns)
        ndim = len(getattr(leaf, "shape", ()))
        matrix = None
        if ndim == 2 or (ndim > 2 and axes <= ndim):
            matrix = _leaves.as_matrix(leaf, place)
            matrix = matrix.mT if adapter.transposed else matrix
        if matrix is None or matrix.shape != wanted:
            came = leaf.shape if matrix is None else matrix.shape
            raise ValueError(
                f"{name}: `adapters` must be of these parameters, got one for a matrix of shape "
                f"{wanted} at {path!r}, which is one of shape {tuple(came)}"
            )
        matrix = function(path, _checks.working(matrix), adapter)
        matrix = matrix.mT if adapter.transposed else matrix
        new[path] = _leaves.restore(matrix, leaf, place)
    return _leaves.replace(params, places, new)


def apply(params: Any, adapters: Any) -> Any:
    """Return the adapted parameters: inside a loss, and once more at the end to merge.

        W + scale (down up - start)               with DoRA the columns scaled to the magnitudes

    Sums are made in float32 or wider and rounded to the leaf's dtype.

    Cost: one product of inputs by r by outputs for each adapter, two where there is a start.

    Args:
        params: pytree of arrays, as given to `init`.
        adapters: from `init`, `extract`, `combine` or `to_plain`.

    Returns:
        The pytree with the adapted leaves changed and all others as they were.

    Raises:
        TypeError: ``adapters`` holds anything else.
        ValueError: they are of another model, by path; there is none.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> params = {"dense": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}
        >>> adapters = jaxsvd.lora.init(jax.random.key(0), params, 1, method="pissa")
        >>> same = jaxsvd.lora.apply(params, adapters)
        >>> bool(jnp.allclose(same["dense"]["kernel"], jnp.eye(3)))
        True

    References:
        Hu et al. (2022), "LoRA: low-rank adaptation of large language models", equation 3; Liu et
        al. (2024), "DoRA: weight-decomposed low-rank adaptation", equation 5.
    """
    return on_leaves("lora.apply", params, adapters, lambda _, W, adapter: adapted(W, adapter))


def trainable(adapters: Any) -> Any:
    """Return the tree of adapters with True for what is trained and False for constants.

    Args:
        adapters: from `init`, or gradients of such.

    Returns:
        A mask for `optax.masked`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd, optax
        >>> adapters = jaxsvd.lora.init(jax.random.key(0), jnp.eye(3), 1, method="pissa")
        >>> jax.tree.leaves(jaxsvd.lora.trainable(adapters))
        [True, True, False, False]
    """

    def mark(adapter):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0].name in TRAINED, adapter)

    return jax.tree.map(mark, adapters, is_leaf=is_adapter)

"""A linear layer kept as its SVD, and the last link of an optimizer that keeps it one."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from .. import _checks
from .._types import SVDResult
from ..operators.base import operator as layer
from ..operators.compose import LowRank
from ..primitives.truncated import truncated_svd
from ..transforms import projection_stiefel
from . import factors


@layer
class SVDLinear:
    """y = ((x U) s) Vh + bias, with U of orthonormal columns and Vh of orthonormal rows.

    The singular values of the layer are parameters: |s| bounds its norm, its condition, its rank
    by a penalty on s alone. The optimizer keeps U and Vh orthonormal if `keep_orthogonal` is its
    last link. s may become negative or unsorted in training; its absolute values are the singular
    values.

    Attributes:
        U: (inputs, r).
        s: (r,), real.
        Vh: (r, outputs).
        bias: (outputs,), or None.

    Raises:
        TypeError: a factor is no array of numbers.
        ValueError: the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> layer = jaxsvd.layers.SVDLinear.from_dense(jnp.diag(jnp.array([3.0, 2.0])), 2)
        >>> print(layer.s, layer(jnp.ones(2)))
        [3. 2.] [3. 2.]

    References:
        Zhang, Lei and Dhillon (2018), "Stabilizing gradients for deep neural networks via
        efficient SVD parameterization".
    """

    U: jax.Array
    s: jax.Array
    Vh: jax.Array
    bias: jax.Array | None = None

    def __post_init__(self):
        LowRank(self.U, self.s, self.Vh)  # its checks
        factors.bias_of("SVDLinear", self.bias, self.Vh.shape[1])

    @classmethod
    def from_dense(cls, kernel: Any, rank: int | None = None, bias: Any = None) -> "SVDLinear":
        """Return the layer whose product is nearest to a kernel.

        Args:
            kernel: (inputs, outputs).
            rank: static, 1 <= rank <= min(inputs, outputs), which is the default.
            bias: (outputs,), or None.

        Returns:
            SVDLinear in the dtype of the kernel.

        Raises:
            TypeError, ValueError: an argument does not fit, by name.
        """
        name = "SVDLinear.from_dense"
        kernel = factors.one_matrix(name, kernel)
        most = min(kernel.shape)
        wanted = most if rank is None else _checks.static_int(name, "rank", rank, 1, most)
        result = truncated_svd(kernel, wanted)
        assert isinstance(result, SVDResult)
        return cls(*result, factors.bias_of(name, bias, kernel.shape[1]))

    @classmethod
    def init(
        cls,
        key: jax.Array,
        inputs: int,
        outputs: int,
        rank: int | None = None,
        *,
        bias: bool = True,
        dtype: DTypeLike = float,
    ) -> "SVDLinear":
        """Return the SVD of a Gaussian kernel of variance 1 / inputs.

        Args:
            key: from `jax.random.key`.
            inputs: static size of x.
            outputs: static size of y.
            rank: static, 1 <= rank <= min(inputs, outputs), which is the default.
            bias: whether there is one; zeros.
            dtype: of the weights.

        Returns:
            SVDLinear.

        Raises:
            TypeError, ValueError: an argument does not fit, by name.
        """
        name = "SVDLinear.init"
        kernel = factors.random_kernel(name, key, inputs, outputs, dtype)
        zeros = jnp.zeros(outputs, dtype) if _checks.flag(name, "bias", bias) else None
        return cls.from_dense(kernel, rank, zeros)

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """Return y (..., outputs) of x (..., inputs)."""
        x = factors.inputs_of("SVDLinear", x, self.U.shape[-2])
        return factors.shifted(jnp.matmul(jnp.matmul(x, self.U), self._right()), self.bias)

    def _right(self) -> jax.Array:
        return self.s[:, None].astype(self.Vh.dtype) * self.Vh

    def to_dense(self) -> jax.Array:
        """Return the kernel U diag(s) Vh, (inputs, outputs)."""
        return self.operator().to_dense().astype(self.U.dtype)

    def operator(self) -> LowRank:
        """Return the kernel as an operator, not multiplied out."""
        return LowRank(self.U, self.s, self.Vh)

    def orthogonalized(self) -> "SVDLinear":
        """Return the layer with U and Vh replaced by the nearest orthonormal ones."""
        return SVDLinear(projection_stiefel(self.U), self.s, projection_stiefel(self.Vh), self.bias)


def keep_orthogonal() -> optax.GradientTransformation:
    """Keep U and Vh of every `SVDLinear` of the parameters orthonormal: the last link of a chain.

    The updates become those that lead to the nearest orthonormal factors,
    `transforms.projection_stiefel`; all others pass through.

    Cost: two SVDs of each layer a step, of (inputs, r) and (r, outputs).

    Returns:
        A GradientTransformation without state; its update needs ``params``.

    Raises:
        ValueError: no params.

    Example:
        >>> import jax.numpy as jnp, jaxsvd, optax
        >>> layer = jaxsvd.layers.SVDLinear.from_dense(jnp.diag(jnp.array([3.0, 2.0])))
        >>> optimizer = optax.chain(optax.sgd(1.0), jaxsvd.layers.keep_orthogonal())
        >>> gradient = jaxsvd.layers.SVDLinear(jnp.ones((2, 2)), jnp.ones(2), jnp.ones((2, 2)))
        >>> updates, _ = optimizer.update(gradient, optimizer.init(layer), layer)
        >>> layer = optax.apply_updates(layer, updates)
        >>> print(layer.U @ layer.U.T, layer.s)
        [[1. 0.]
         [0. 1.]] [2. 1.]
    """

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def one(held: Any, step: Any) -> Any:
        if not isinstance(held, SVDLinear) or held.U is None or step.U is None:
            return step
        U, Vh = (
            projection_stiefel(x + dx.astype(x.dtype)) - x
            for x, dx in ((held.U, step.U), (held.Vh, step.Vh))
        )
        return jax.tree.unflatten(
            jax.tree.structure(step), jax.tree.leaves((U, step.s, Vh, step.bias))
        )

    def update(updates: Any, state: Any, params: Any = None):
        if params is None:
            raise ValueError("keep_orthogonal: `params` must be given to update, got None")
        is_layer = lambda x: isinstance(x, SVDLinear)  # noqa: E731
        return jax.tree.map(one, params, updates, is_leaf=is_layer), state

    return optax.GradientTransformation(init, update)

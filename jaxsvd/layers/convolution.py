"""A convolution of low rank: two in a row, with few channels between them."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import _checks
from .._leaves import Place, as_matrix
from ..algorithms.products import product
from ..operators.base import operator as layer
from ..operators.base import replace, static
from ..operators.convolution import Convolution, paddings, per_axis
from . import factors

SCHEMES = ("channels", "separable")


@layer
class LowRankConv:
    """Two convolutions in a row with r channels between them; channels last.

    "channels": all taps to r channels, then 1 x 1 to the outputs; a kernel (taps, inputs, outputs)
    as a matrix of taps times inputs by outputs. "separable" (two spatial axes): along the first
    axis to r channels, then along the second; as a matrix of rows times inputs by columns times
    outputs. Padding and strides act as on the one convolution, whose output this is exactly.

    Attributes:
        first: (taps..., inputs, r).
        second: (taps..., r, outputs).
        bias: (outputs,), or None.
        strides: an int, or one for each spatial axis; of the whole.
        padding: "SAME", "VALID", "CIRCULAR", an int, or a pair for each spatial axis.
        dilation: an int, or one for each spatial axis.

    Raises:
        TypeError: a factor is no array of numbers.
        ValueError: the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> blur = jnp.ones((3, 3, 1, 1)) / 9
        >>> layer = jaxsvd.layers.LowRankConv.from_dense(blur, 1, scheme="separable")
        >>> print(layer(jnp.ones((3, 3, 1)))[..., 0])
        [[0.4444 0.6666 0.4444]
         [0.6666 1.     0.6666]
         [0.4444 0.6666 0.4444]]

    References:
        Zhang, Zou, He and Sun (2016), "Accelerating very deep convolutional networks", section 3;
        Tai, Xiao, Zhang, Wang and E (2016), "Convolutional neural networks with low-rank
        regularization", theorem 1.
    """

    first: jax.Array
    second: jax.Array
    bias: jax.Array | None = None
    strides: Any = static(default=1, kw_only=True)
    padding: Any = static(default="SAME", kw_only=True)
    dilation: Any = static(default=1, kw_only=True)

    def __post_init__(self):
        name = "LowRankConv"
        first = _checks.array(name, self.first, "first")
        second = _checks.array(name, self.second, "second")
        if (
            not 3 <= first.ndim <= 5
            or first.ndim != second.ndim
            or first.shape[-1] != second.shape[-2]
        ):
            raise ValueError(
                f"{name}: `first`, `second` must have shapes (taps..., inputs, r), (taps..., r, "
                f"outputs) of the same 1 to 3 spatial axes, got {first.shape}, {second.shape}"
            )
        if any(a > 1 and b > 1 for a, b in zip(first.shape[:-2], second.shape[:-2], strict=True)):
            raise ValueError(
                f"{name}: along each spatial axis `first` or `second` must have one tap, got "
                f"{first.shape}, {second.shape}"
            )
        factors.bias_of(name, self.bias, second.shape[-1])
        spatial = first.ndim - 2
        replace(
            self,
            strides=per_axis(name, "strides", self.strides, spatial),
            padding=paddings(name, self.padding, spatial),
            dilation=per_axis(name, "dilation", self.dilation, spatial),
        )

    @classmethod
    def from_dense(
        cls,
        kernel: Any,
        rank: int,
        bias: Any = None,
        *,
        scheme: str = "channels",
        strides: Any = 1,
        padding: Any = "SAME",
        dilation: Any = 1,
    ) -> "LowRankConv":
        """Return the layer whose kernel is nearest to a given one.

        Args:
            kernel: (taps..., inputs, outputs), one to three spatial axes, without groups.
            rank: static, at least 1 and at most the shorter side of the kernel as a matrix.
            bias: (outputs,), or None.
            scheme: "channels" or "separable", as above.
            strides: of the layer.
            padding: of the layer.
            dilation: of the layer.

        Returns:
            LowRankConv in the dtype of the kernel.

        Raises:
            TypeError, ValueError: an argument does not fit, by name.
        """
        name = "LowRankConv.from_dense"
        kernel = _checks.array(name, kernel, "kernel")
        scheme = _checks.choice(name, "scheme", scheme, SCHEMES)
        spatial = kernel.ndim - 2
        if not 1 <= spatial <= 3 or (scheme == "separable" and spatial != 2):
            wanted = "two spatial axes" if scheme == "separable" else "one to three spatial axes"
            raise ValueError(
                f"{name}: `kernel` must have {wanted} and two of channels, got {kernel.shape}"
            )
        *taps, inputs, outputs = kernel.shape
        if scheme == "channels":
            place = Place(0, tuple(range(spatial + 1)), (spatial + 1,))
            shapes = (*taps, inputs, rank), (*[1] * spatial, rank, outputs)
        else:
            place = Place(0, (0, 2), (1, 3))
            shapes = (taps[0], 1, inputs, rank), (1, taps[1], rank, outputs)
        left, right = factors.leading(name, as_matrix(kernel, place), rank)
        first = left.reshape(shapes[0])
        second = jnp.moveaxis(right.reshape(rank, *shapes[1][:-2], outputs), 0, -2)
        bias = factors.bias_of(name, bias, outputs)
        return cls(first, second, bias, strides=strides, padding=padding, dilation=dilation)

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """Return y (..., outputs) of x (spatial..., inputs), with one batch axis or none."""
        name = "LowRankConv"
        x = _checks.array(name, x, "x")
        ndim = self.first.ndim
        if x.ndim not in (ndim - 1, ndim) or x.shape[-1] != self.first.shape[-2]:
            raise ValueError(
                f"{name}: `x` must have {ndim - 2} spatial axes and {self.first.shape[-2]} "
                f"channels last, with a batch axis or without, got {x.shape}"
            )
        batch = x if x.ndim == ndim else x[None]
        y = self._convolve(self.second, self._convolve(self.first, batch))
        y = factors.shifted(y, self.bias)
        return y if x.ndim == ndim else y[0]

    def _convolve(self, kernel: jax.Array, x: jax.Array) -> jax.Array:
        """Return one of the two: each spatial axis is strided and padded by one of them only."""
        spatial = range(kernel.ndim - 2)
        is_second = [taps > 1 for taps in self.second.shape[:-2]]
        mine = [is_second[i] == (kernel is self.second) for i in spatial]
        padding = self.padding
        if not isinstance(padding, str):
            padding = tuple(padding[i] if mine[i] else (0, 0) for i in spatial)
        op = Convolution(
            kernel,
            x.shape[1:],
            strides=tuple(self.strides[i] if mine[i] else 1 for i in spatial),
            padding=padding,
            dilation=tuple(self.dilation[i] if mine[i] else 1 for i in spatial),
        )
        return op.convolve(x, precision=None)

    def to_dense(self) -> jax.Array:
        """Return the one kernel (taps..., inputs, outputs)."""
        spatial = range(self.first.ndim - 2)
        taps = [max(pair) for pair in zip(self.first.shape, self.second.shape, strict=True)]
        *_, inputs, rank = self.first.shape
        left = self.first.reshape(-1, rank)
        right = jnp.moveaxis(self.second, -2, 0).reshape(rank, -1)
        parts = (*self.first.shape[:-1], *self.second.shape[:-2], self.second.shape[-1])
        dense = product(left, right).reshape(parts)
        # Along each axis one of the two has a single tap: bring them side by side and merge.
        order = [axis for i in spatial for axis in (i, len(spatial) + 1 + i)]
        dense = dense.transpose(*order, len(spatial), len(parts) - 1)
        return dense.reshape(*taps[:-2], inputs, self.second.shape[-1])

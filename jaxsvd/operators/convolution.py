"""The linear map of a convolutional layer."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _checks
from ..algorithms.products import PRECISION
from .base import Operator, on_block, operator, promote, replace, static

# Channels last, as in Flax: of one, two and three spatial axes.
LAYOUTS = {
    1: ("NWC", "WIO", "NWC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NDHWC", "DHWIO", "NDHWC"),
}
PADDINGS = ("SAME", "VALID", "CIRCULAR")


@operator
class Convolution(Operator):
    """The map of a convolutional layer from one input to its output, both flattened.

    y[p, o] = sum_{q, i} kernel[q, i, o] x[strides p + dilation q - padding, i], without the layer's
    bias: the layer's own matrix, of a row for each entry of the output and a column for each of the
    input, whose norm is that of the layer; the kernel flattened to a matrix has another. A block of
    l vectors is one convolution of batch size l, on either side.

    Attributes:
        kernel: spatial axes, input channels per group and output channels, in the order of
            ``dimension_numbers``; 3 to 5 axes; the leaf that gradients reach.
        input_shape: spatial axes and channels of one input, in the order of ``dimension_numbers``.
        strides: an int, or one for each spatial axis.
        padding: "SAME", "VALID", "CIRCULAR" (the input goes on periodically, output sizes as for
            "SAME"), an int for both ends of each axis, or a pair (low, high) for each spatial axis.
        dilation: spacing of the kernel's entries; an int, or one for each spatial axis.
        groups: channels are split into that many groups, convolved each by itself.
        dimension_numbers: layouts of input, kernel and output, as in
            `jax.lax.conv_general_dilated`: ("NCHW", "OIHW", "NCHW") for PyTorch's. Default channels
            last, as in Flax: ("NHWC", "HWIO", "NHWC") and its like in one and three dimensions.

    Raises:
        TypeError, ValueError: an argument does not fit, by name.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> difference = jnp.array([-1.0, 1.0]).reshape(2, 1, 1)
        >>> op = jaxsvd.operators.Convolution(difference, (3, 1), padding="CIRCULAR")
        >>> print(op.to_dense())
        [[-1.  1.  0.]
         [ 0. -1.  1.]
         [ 1.  0. -1.]]
    """

    kernel: jax.Array
    input_shape: tuple[int, ...] = static()
    strides: Any = static(default=1, kw_only=True)
    padding: Any = static(default="SAME", kw_only=True)
    dilation: Any = static(default=1, kw_only=True)
    groups: int = static(default=1, kw_only=True)
    dimension_numbers: Any = static(default=None, kw_only=True)

    def __post_init__(self):
        name = "Convolution"
        kernel = _checks.array(name, self.kernel, "kernel")
        spatial = kernel.ndim - 2
        if spatial not in LAYOUTS:
            raise ValueError(
                f"{name}: `kernel` must have 1 to 3 spatial axes and two of channels, got shape "
                f"{kernel.shape}"
            )
        numbers = _layout(name, self.dimension_numbers, kernel.shape)
        if not isinstance(self.input_shape, (tuple, list)) or len(self.input_shape) != spatial + 1:
            raise ValueError(
                f"{name}: `input_shape` must hold {spatial} spatial sizes and the channels of one "
                f"input, without a batch axis, got {self.input_shape}"
            )
        groups = _checks.static_int(name, "groups", self.groups, 1, 2**31)
        replace(
            self,
            kernel=kernel,
            input_shape=tuple(
                _checks.static_int(name, "input_shape", size, 1, 2**62) for size in self.input_shape
            ),
            strides=per_axis(name, "strides", self.strides, spatial),
            dilation=per_axis(name, "dilation", self.dilation, spatial),
            padding=paddings(name, self.padding, spatial),
            groups=groups,
            dimension_numbers=numbers,
        )
        channels = self._batched_shape(1)[numbers.lhs_spec[1]]
        outputs, inputs = (kernel.shape[axis] for axis in numbers.rhs_spec[:2])
        if channels != groups * inputs:
            raise ValueError(
                f"{name}: `input_shape` must have {groups * inputs} channels, {inputs} of the "
                f"kernel in {groups} groups, got {channels} in {self.input_shape}"
            )
        if outputs % groups:
            raise ValueError(
                f"{name}: `groups` must divide the {outputs} output channels of the kernel, got "
                f"{groups}"
            )
        if not math.prod(self.output_shape):
            raise ValueError(
                f"{name}: `input_shape` with its padding must be no smaller than the dilated "
                f"kernel, got input {self.input_shape} and kernel {kernel.shape}"
            )

    def _batched_shape(self, count: int) -> tuple[int, ...]:
        shape = list(self.input_shape)
        shape.insert(self.dimension_numbers.lhs_spec[0], count)
        return tuple(shape)

    def _pads(self, x: jax.Array) -> list[tuple[int, int]]:
        """Return what is added to the ends of the spatial axes."""
        numbers = self.dimension_numbers
        sizes = [x.shape[axis] for axis in numbers.lhs_spec[2:]]
        taps = [self.kernel.shape[axis] for axis in numbers.rhs_spec[2:]]
        reach = [(tap - 1) * step + 1 for tap, step in zip(taps, self.dilation, strict=True)]
        if self.padding == "CIRCULAR":
            return [((length - 1) // 2, length // 2) for length in reach]
        if isinstance(self.padding, str):
            return list(lax.padtype_to_pads(sizes, reach, self.strides, self.padding))
        return list(self.padding)

    def convolve(self, x: jax.Array, precision: lax.PrecisionLike = PRECISION) -> jax.Array:
        """Return the layer's output for a batch in the layout of the layer."""
        pads = self._pads(x)
        if self.padding == "CIRCULAR":
            widths = [(0, 0)] * x.ndim
            for axis, pair in zip(self.dimension_numbers.lhs_spec[2:], pads, strict=True):
                widths[axis] = pair
            x, pads = jnp.pad(x, widths, mode="wrap"), [(0, 0)] * len(pads)
        return lax.conv_general_dilated(
            x,
            self.kernel.astype(x.dtype),
            self.strides,
            pads,
            rhs_dilation=self.dilation,
            dimension_numbers=self.dimension_numbers,
            feature_group_count=self.groups,
            precision=precision,
        )

    def _output(self, count: int, dtype: Any) -> jax.ShapeDtypeStruct:
        x = jax.ShapeDtypeStruct(self._batched_shape(count), dtype)
        return jax.eval_shape(self.convolve, x)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one output: spatial axes and channels in the order of the layout."""
        shape = list(self._output(1, self.dtype).shape)
        del shape[self.dimension_numbers.out_spec[0]]
        return tuple(shape)

    @property
    def shape(self):
        """Entries of the output by entries of the input."""
        return math.prod(self.output_shape), math.prod(self.input_shape)

    @property
    def dtype(self):
        """Dtype of the products: at least float32."""
        return promote(self.kernel.dtype)

    def matmat(self, X):
        """Return the outputs for a block of inputs, as columns."""
        numbers = self.dimension_numbers

        def multiply(X):
            x = jnp.moveaxis(X.T.reshape(-1, *self.input_shape), 0, numbers.lhs_spec[0])
            y = jnp.moveaxis(self.convolve(x), numbers.out_spec[0], 0)
            return y.reshape(X.shape[1], -1).T

        return on_block(multiply, self.dtype, X)

    def rmatmat(self, Y):
        """Return A^H Y, by the transposed convolution."""
        numbers = self.dimension_numbers

        def multiply(Y):
            x = jax.ShapeDtypeStruct(self._batched_shape(Y.shape[1]), Y.dtype)
            y = jnp.moveaxis(jnp.conj(Y).T.reshape(-1, *self.output_shape), 0, numbers.out_spec[0])
            (x,) = jax.linear_transpose(self.convolve, x)(y)
            x = jnp.moveaxis(x, numbers.lhs_spec[0], 0)
            return jnp.conj(x.reshape(Y.shape[1], -1)).T

        return on_block(multiply, self.dtype, Y)


def _layout(name: str, given: Any, kernel: tuple[int, ...]) -> lax.ConvDimensionNumbers:
    if isinstance(given, lax.ConvDimensionNumbers):
        return given
    given = LAYOUTS[len(kernel) - 2] if given is None else given
    try:
        if len(given) != 3 or not all(isinstance(layout, str) for layout in given):
            raise TypeError
        batched = (1,) * len(kernel)
        return lax.conv_dimension_numbers(batched, kernel, tuple(map(str.upper, given)))
    except (TypeError, ValueError):
        example = LAYOUTS[len(kernel) - 2]
        raise ValueError(
            f"{name}: `dimension_numbers` must be three layouts of {len(kernel)} axes such as "
            f"{example}, got {given!r}"
        ) from None


def per_axis(name: str, argument: str, value: Any, spatial: int) -> tuple[int, ...]:
    """Return a static int for each spatial axis, or raise."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * spatial
    if len(values) != spatial:
        raise ValueError(f"{name}: `{argument}` must be an int, or {spatial} of them, got {value}")
    return tuple(_checks.static_int(name, argument, one, 1, 2**31) for one in values)


def paddings(name: str, value: Any, spatial: int) -> str | tuple[tuple[int, int], ...]:
    """Return a padding by name, or a pair (low, high) for each spatial axis, or raise."""
    if isinstance(value, str):
        return _checks.choice(name, "padding", value.upper(), PADDINGS)
    pairs = value if isinstance(value, (tuple, list)) else [value] * spatial
    pairs = [pair if isinstance(pair, (tuple, list)) else (pair, pair) for pair in pairs]
    if len(pairs) != spatial or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"{name}: `padding` must be one of {', '.join(PADDINGS)}, an int, or a pair (low, "
            f"high) for each of {spatial} spatial axes, got {value}"
        )
    return tuple(
        (
            _checks.static_int(name, "padding", low, 0, 2**31),
            _checks.static_int(name, "padding", high, 0, 2**31),
        )
        for low, high in pairs
    )

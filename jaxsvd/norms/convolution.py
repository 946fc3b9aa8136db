"""The norm of a convolution from its symbol: one small matrix for each frequency.

A circular convolution is block diagonal in the Fourier basis: at the frequency w its block is the
matrix K(w) = sum_q kernel[q] exp(i w q) of output by input channels. Of a strided one, frequencies
that fall onto each other stand side by side, [K(w_1) ... K(w_s)] / sqrt(s). The transform is a
product with the few taps along each axis: cheaper than a padded FFT of size N for taps <= log N,
and with a rounding error that is known.

Any other padding is a part of a circular convolution: with zeros around it, the input fits into a
ring of N >= n + padding positions on which nothing wraps onto it; the layer's matrix consists of
some rows and columns of that of the ring, whose norm bounds it.

References: Sedghi, Gupta and Long (2019), "The singular values of convolutional layers", theorem 6;
Delattre et al. (2023), section 4.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _tolerances
from ..operators.base import promote
from ..operators.convolution import Convolution
from ..primitives.core import core_svd
from ..primitives.svd import svdvals
from .bounds import gamma, gram_bound


def spatial(op: Convolution) -> tuple[list[int], list[int], list[int]]:
    """Return the sizes of input, kernel and output along the spatial axes."""
    numbers = op.dimension_numbers

    def of(shape, spec):  # the shapes of input and output have no batch axis
        return [shape[axis - (axis > spec[0])] for axis in spec[2:]]

    inputs = of(op.input_shape, numbers.lhs_spec)
    outputs = of(op.output_shape, numbers.out_spec)
    return inputs, [op.kernel.shape[axis] for axis in numbers.rhs_spec[2:]], outputs


def ring(op: Convolution) -> tuple[list[int], list[int], bool]:
    """Return the sizes and strides of a circular convolution that contains op, and if it is op."""
    inputs, taps, outputs = spatial(op)
    strides = list(op.strides)
    if op.padding == "CIRCULAR":
        fits = all(n % step == 0 for n, step in zip(inputs, strides, strict=True))
        return inputs, strides if fits else [1] * len(strides), fits
    reach = [(tap - 1) * step + 1 for tap, step in zip(taps, op.dilation, strict=True)]
    pads = (
        lax.padtype_to_pads(inputs, reach, strides, op.padding)
        if isinstance(op.padding, str)
        else op.padding
    )
    sizes = [
        math.ceil(max(n + max(pair), step * out) / step) * step
        for n, pair, step, out in zip(inputs, pads, strides, outputs, strict=True)
    ]
    return sizes, strides, False


def symbol(op: Convolution, sizes: list[int], strides: list[int]) -> tuple[jax.Array, jax.Array]:
    """Return the blocks of a circular convolution and how far rounding has moved them at most.

    Of conjugate pairs of frequencies, which a real kernel has, one is left out.

    Args:
        op: the convolution.
        sizes: of the ring, one for each spatial axis.
        strides: divisors of the sizes.

    Returns:
        Blocks (frequencies * groups, outputs per group, inputs per group * product of strides), and
        a bound of the spectral norm of their error.
    """
    out_axis, in_axis, *axes = op.dimension_numbers.rhs_spec
    kernel = jnp.transpose(op.kernel.astype(op.dtype), (*axes, in_axis, out_axis))
    is_real = not jnp.iscomplexobj(kernel)
    wide = promote(kernel.dtype, jnp.complex64)
    mass = jnp.sqrt(jnp.sum(jnp.sum(jnp.abs(kernel), axis=tuple(range(len(axes)))) ** 2))
    blocks, error = kernel.astype(wide), 0.0
    for i, (size, stride, step) in enumerate(zip(sizes, strides, op.dilation, strict=True)):
        kept = size // stride
        count = kept // 2 + 1 if is_real and i == len(sizes) - 1 else kept
        where = (np.arange(stride)[:, None] * kept + np.arange(count)).reshape(-1)
        taps = kernel.shape[i]
        angles = where[:, None] * (np.arange(taps) * step % size) % size * (2 * np.pi / size)
        phases = jnp.asarray(np.exp(1j * angles), wide)
        # Each axis in turn goes to the back: after all of them they stand in order again.
        blocks = jnp.tensordot(blocks, phases, axes=(0, 1), precision=lax.Precision.HIGHEST)
        error += gamma(taps + 4, wide)
    inputs, outputs, dims = blocks.shape[0], blocks.shape[1], len(sizes)
    groups = op.groups
    split = []
    for stride, length in zip(strides, blocks.shape[2:], strict=True):
        split += [stride, length // stride]
    blocks = blocks.reshape(inputs, groups, outputs // groups, *split)
    aliases = tuple(range(3, 3 + 2 * dims, 2))
    frequencies = tuple(range(4, 4 + 2 * dims, 2))
    blocks = blocks.transpose(*frequencies, 1, 2, 0, *aliases)
    scale = math.prod(strides) ** -0.5
    blocks = blocks.reshape(-1, outputs // groups, inputs * math.prod(strides))
    inflation = 1 + (kernel.size + 8) * _tolerances.eps(wide)  # of the sum in `mass`
    error = lax.stop_gradient(mass) * (1.01 * error + 4 * _tolerances.eps(wide)) * inflation
    return blocks * jnp.asarray(scale, wide), error


@jax.jit
def circular_norm(op: Convolution) -> jax.Array:
    """Return s_1 of a circular convolution, exactly: the largest over all frequencies."""
    blocks, _ = symbol(op, *ring(op)[:2])
    values = svdvals(lax.stop_gradient(blocks))[:, 0]
    # Vectors are wanted at one frequency only. A real kernel's s_1 is always tied with that of the
    # opposite frequency; seen here once, it has the right derivatives of either order.
    leading = blocks[jnp.argmax(values)]
    return jnp.real(core_svd(leading, 1).C[0, 0])


@functools.partial(jax.jit, static_argnames="steps")
def convolution_bound(op: Convolution, steps: int) -> jax.Array:
    """Return an upper bound of s_1 of any convolution."""
    sizes, strides, _ = ring(op)
    blocks, error = symbol(op, sizes, strides)
    bounds = jax.vmap(lambda block: gram_bound(block, steps))(blocks)
    return (jnp.max(bounds) + error) * (1 + 4 * _tolerances.eps(error.dtype))

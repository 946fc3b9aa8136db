"""Every large matrix product of the library: precision is decided here and nowhere else."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# The default precision of accelerators (TF32, bfloat16) keeps 3 digits; every product that decides
# the accuracy of a result or of a derivative runs at the highest.
PRECISION = lax.Precision.HIGHEST


def adjoint(a: jax.Array) -> jax.Array:
    """Return A^H, the conjugate transpose of the last two axes."""
    return jnp.conj(a).mT


def diagonal(a: jax.Array) -> jax.Array:
    """Return the diagonal of square matrices (..., n, n).

    By a selection: the transpose of a gather is a scatter, which JAX 0.12 refuses for a batch that
    is spread over an Explicit axis.
    """
    return jnp.sum(jnp.where(jnp.eye(a.shape[-1], dtype=bool), a, 0), axis=-1)


def power_of_two(x: jax.Array) -> jax.Array:
    """Return the power of two next above each x > 0, by which division is exact.

    From its bits: `jnp.frexp` and `jnp.ldexp` take ten operations, and in JAX 0.12 fail under a
    `vmap` over an Explicit axis. What is out of range counts as its end: tiny, or a quarter of max.
    """
    limits = jnp.finfo(x.dtype)
    x = jnp.clip(x, limits.tiny, limits.max / 4)
    infinity = np.array(np.inf, x.dtype)  # its bits are those of all exponents
    mask = infinity.view(f"u{x.dtype.itemsize}")
    return 2 * lax.bitcast_convert_type(lax.bitcast_convert_type(x, mask.dtype) & mask, x.dtype)


def magnitude(a: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return the `power_of_two` of the largest magnitude over axes, which stay with length one.

    Zeros have magnitude 1; what holds NaN or Inf has NaN.

    Of the bits of the magnitudes, which are ordered as these are: the maximum of floats over a
    batch loses a NaN on CPU, and with a second look for one takes 5 times as long (0.5 ms instead
    of 0.1, 100,000 of 3 x 3). One axis at a time behind a barrier: together they take twice as
    long, and 3 times for 48 x 48.
    """
    infinity = np.array(np.inf, jnp.finfo(a.dtype).dtype)
    unsigned = np.dtype(f"u{infinity.dtype.itemsize}")
    sign = np.array(-0.0, infinity.dtype).view(unsigned)
    parts = (a.real, a.imag) if jnp.iscomplexobj(a) else (a,)
    bits = [lax.bitcast_convert_type(x, unsigned) & ~sign for x in parts]
    largest = functools.reduce(jnp.maximum, bits)
    for axis in axes:
        largest = lax.optimization_barrier(jnp.max(largest, axis=axis, keepdims=True, initial=0))
    finite = largest < infinity.view(unsigned)
    scale = power_of_two(lax.bitcast_convert_type(largest, infinity.dtype))
    return jnp.where(largest == 0, 1, jnp.where(finite, scale, jnp.nan))


def _varying(x: Any) -> frozenset[str]:
    """Return the mesh axes of a `jax.shard_map` over which an array differs."""
    kind = jax.typeof(x)  # the name of this attribute changed between versions of JAX
    return frozenset(kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying)


def alike(tree: Any, *others: Any) -> Any:
    """Return the arrays of a pytree as ones that differ between devices where others do.

    Inside `jax.shard_map` an array made from a shape is known to be the same everywhere; a loop
    that starts with it and goes on with numbers of A changes its type, which JAX refuses. Outside
    nothing happens.
    """
    axes = frozenset().union(*map(_varying, jax.tree.leaves(others)))

    def one(x):
        missing = tuple(axes - _varying(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(one, tree) if axes else tree


# A batch of small products costs 0.01 us each up to 3 x 3, where XLA on CPU writes its own loops,
# and 0.7 us for 4 x 4 to 7 x 7, and for every A^T X beyond, where it calls a library for each. As
# sums of broadcast products these cost 0.03 us (4 x 4) to 0.2 us (16 x 16), transposed or not.
WRITTEN_OUT = range(4, 17)

# Columns are multiplied in tiles on CPU: 4096 x 4096 times 60 columns takes 8.4 ms and times 64 of
# them 5.9 ms, times 30 7.5 ms and times 32 5.4 ms (float32; float64 alike). 20000 x 1000,
# 600 x 6000 and 512 x 512 gain as much, a factor of 1.3 to 1.7; 20000 x 300 and 300 x 300 nothing.
LARGE, TILE = 512, 16


def plain_product(a: jax.Array, x: jax.Array) -> jax.Array:
    """Return A X as one product of the platform."""
    return jnp.matmul(a, x, precision=PRECISION)


def product(a: jax.Array, x: jax.Array, precision: lax.PrecisionLike = PRECISION) -> jax.Array:
    """Return A X for a of shape (..., m, n) and x of shape (..., n, l)."""
    if a.ndim == x.ndim and max(*a.shape[-2:], x.shape[-1]) in WRITTEN_OUT:
        # The barriers keep what stands before from being computed once for each term. One each:
        # JAX cannot transpose a common one where only one of the two is a tangent.
        a, x = lax.optimization_barrier(a), lax.optimization_barrier(x)
        return jnp.sum(a[..., :, :, None] * x[..., None, :, :], axis=-2)
    l = x.shape[-1]
    if min(a.shape[-2:]) >= LARGE and l > TILE and l % TILE:
        padding = [(0, 0)] * (x.ndim - 1) + [(0, -l % TILE)]
        return jnp.matmul(a, jnp.pad(x, padding), precision=precision)[..., :l]
    return jnp.matmul(a, x, precision=precision)


def adjoint_product(
    a: jax.Array, y: jax.Array, precision: lax.PrecisionLike = PRECISION
) -> jax.Array:
    """Return A^H Y for a of shape (..., m, n) and y of shape (..., m, l).

    XLA on CPU folds the transpose of A into a kernel 3 to 9 times slower than A X. For few columns
    the product is written as (Y^H A)^H behind a barrier that stops the fold: 4096 x 4096 times 16
    columns in float32 takes 2.9 ms, against 24.9 ms folded and 2.8 ms for A X (2 cores, jax
    0.10.2). With many columns the extra transpose of the result costs more than it saves. Another
    barrier keeps y = A X from being computed as Y^H, by that kernel: 22 ms for A^H A X, else 4.3.
    """
    if 4 * y.shape[-1] > a.shape[-1]:
        return product(adjoint(a), y, precision)
    y = lax.optimization_barrier(y)
    return adjoint(lax.optimization_barrier(product(adjoint(y), a, precision)))

"""One pass over rows that come and go: a sketch of A^H A, linear in it, and its Nystrom estimate.

Rows arrive whole, so one multiplication by A_b^H (A_b Omega) for each batch A_b of them adds up to
the sketch W = A^H A Omega, whatever their order and number: sketches with the same Omega add. The
best psd matrix that W tells of is G = W (Omega^H W)^+ W^H <= A^H A, whose leading eigenpairs are
the estimates of s_i^2 and v_i. With l columns and k wanted (real Omega),

    E |A^H A - G_k|_1 <= (1 + k / (l - k - 1)) |A - A_k|_F^2

in the nuclear norm, theorem 4.1 of Tropp, Yurtsever, Udell and Cevher (2017), "Fixed-rank
approximation of a positive-semidefinite matrix from streaming data" (NIPS), algorithm 3 there.
Since G_k <= A^H A the norm is a difference of traces, and is known at the end; it bounds
|A - A V V^H|_F^2. Frequent Directions (Ghashami et al. 2016) has such a bound without chance, but
a sketch merged by it is not the sketch of all rows, and it takes an SVD for every l rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import _tolerances
from ..operators.dense import Dense
from ..operators.rowblocks import add_exactly, add_rows
from .orthonormal import noise, orthonormalize
from .products import adjoint, adjoint_product, product
from .router import inner


class Sketch(NamedTuple):
    """A sum over rows; a pytree that can be saved.

    Attributes:
        omega: orthonormal test matrix, (n, l).
        W: A^H A Omega / scale^2, (n, l).
        lost: what the sum has lost to rounding, (n, l).
        squares: |A|_F^2 / scale^2, and what that sum has lost, (2,).
        scale: power of two of the size of A Omega; 0 before the first row that is not.
        rows: rows seen, int32; it stays at the largest of them.
    """

    omega: jax.Array
    W: jax.Array
    lost: jax.Array
    squares: jax.Array
    scale: jax.Array
    rows: jax.Array


def init(key: jax.Array, n: int, columns: int, dtype) -> Sketch:
    """Return the sketch of no rows."""
    omega = orthonormalize(jax.random.normal(key, (n, columns), dtype) / n**0.5)
    zeros, real = jnp.zeros((n, columns), dtype), jnp.finfo(dtype).dtype
    none = jnp.zeros((), jnp.int32)
    return Sketch(omega, zeros, zeros, jnp.zeros((2,), real), jnp.zeros((), real), none)


def _count(x: jax.Array, y: jax.Array | int) -> jax.Array:
    return jnp.where(x + y < x, jnp.iinfo(x.dtype).max, x + y)


def _ratio(scale: jax.Array, larger: jax.Array) -> jax.Array:
    """Return the square of scale / larger, powers of two or zero."""
    return (scale / jnp.where(larger > 0, larger, 1)) ** 2


def update(sketch: Sketch, rows: jax.Array) -> Sketch:
    """Return the sketch of the rows seen and of those given, (b, n)."""
    omega, W, lost, squares, before, seen = sketch
    _, W, lost, scale = add_rows(Dense(rows), omega, W, lost, before)
    unit = jnp.where(scale > 0, scale, 1).astype(rows.dtype)
    added = jnp.sum(jnp.abs(rows / unit) ** 2)
    squares = squares * _ratio(before, scale)
    squares = jnp.stack(add_exactly(squares[0], squares[1], added))
    return Sketch(omega, W, lost, squares, scale, _count(seen, rows.shape[0]))


def merge(left: Sketch, right: Sketch) -> Sketch:
    """Return the sketch of the rows of both."""
    scale = jnp.maximum(left.scale, right.scale)
    x, y = _ratio(left.scale, scale), _ratio(right.scale, scale)
    f, g = x.astype(left.W.dtype), y.astype(left.W.dtype)
    W, lost = add_exactly(left.W * f, left.lost * f + right.lost * g, right.W * g)
    s, t = left.squares * x, right.squares * y
    squares = jnp.stack(add_exactly(s[0], s[1] + t[1], t[0]))
    return Sketch(left.omega, W, lost, squares, scale, _count(left.rows, right.rows))


def finish(sketch: Sketch, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return S (k,), V (n, k), and sqrt of the nuclear norm of A^H A - G_k, relative to |A|_F."""
    W = sketch.W + sketch.lost
    n, l = W.shape
    core = adjoint_product(sketch.omega, W)
    values, X = jnp.linalg.eigh((core + adjoint(core)) / 2, symmetrize_input=False)
    # What rounding leaves of the core tells nothing, and would be divided by.
    told = values > 10 * l * _tolerances.eps(W.dtype) * values[-1]
    inverse = jnp.where(told, 1 / jnp.sqrt(jnp.where(told, values, 1)), 0)
    E = product(W, X * inverse[None, :].astype(W.dtype))  # G = E E^H
    Q = orthonormalize(E, fill=noise(n, l, W.dtype))
    left, S, _ = inner(adjoint_product(Q, E))
    S = S[:k]
    total = sketch.squares[0] + sketch.squares[1]
    rest = jnp.maximum(total - jnp.sum(S**2), 0) / jnp.where(total > 0, total, 1)
    broken = jnp.where(jnp.isfinite(total), 0, jnp.nan)
    scale = jnp.where(sketch.scale > 0, sketch.scale, 1)
    return scale * S + broken, product(Q, left[:, :k]) + broken.astype(W.dtype), jnp.sqrt(rest)

"""Sums over samples: the mean, and all squared entries of a matrix in any form."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ..algorithms.passes import frobenius_norm
from ..operators.base import Operator
from ..operators.dense import Dense
from ..operators.rowblocks import RowBlocks
from ..operators.sparse import Sparse

# Columns of the identity multiplied at a time where only products tell the size of an operator.
PROBES = 64


def center(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return x less its mean and the mean: twice, since a long sum errs by more than an eps."""
    shift = jnp.mean(x, axis=0)
    x = x - shift[None, :]
    rest = jnp.mean(x, axis=0)
    return x - rest[None, :], shift + rest


@functools.singledispatch
def total_squares(op: Operator) -> jax.Array:
    """Return the sum of all squared entries of an operator, from min(m, n) products with it.

    A class of operators that knows a shorter way registers it: ``total_squares.register``.
    """
    m, n = op.shape
    multiply, length = (op.matmat, n) if n <= m else (op.rmatmat, m)
    width = min(PROBES, length)
    places = jnp.arange(length)[:, None]

    def add(total, first):
        columns = (places == first + jnp.arange(width)[None, :]).astype(op.dtype)
        return total + jnp.sum(jnp.abs(multiply(columns)) ** 2), None

    zero = jnp.zeros((), jnp.finfo(op.dtype).dtype)
    return lax.scan(add, zero, jnp.arange(0, length, width))[0]


@total_squares.register
def _(op: Dense) -> jax.Array:
    return jnp.sum(jnp.abs(op.to_dense()) ** 2)


@total_squares.register
def _(op: RowBlocks) -> jax.Array:
    """One pass."""
    return jnp.asarray(frobenius_norm(op) ** 2, op.dtype)


@total_squares.register
def _(op: Sparse) -> jax.Array:
    """Coordinates that come more than once add up before they are squared."""
    (m, n), data = op.shape, op.data
    rows = jnp.where(op.rows < 0, op.rows + m, op.rows)
    columns = jnp.where(op.columns < 0, op.columns + n, op.columns)
    inside = (rows >= 0) & (rows < m) & (columns >= 0) & (columns < n)
    if data.size == 0:
        return jnp.zeros((), jnp.finfo(op.dtype).dtype)
    places = jnp.arange(data.size)
    rows, columns, order = lax.sort((rows, columns, places), num_keys=2)
    data = jnp.where(inside, data, 0)[order]
    first = (jnp.diff(rows) != 0) | (jnp.diff(columns) != 0)
    group = jnp.cumsum(jnp.pad(first, (1, 0)))
    return jnp.sum(jnp.abs(jax.ops.segment_sum(data, group, data.size)) ** 2)

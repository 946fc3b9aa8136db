"""Sparse matrices of jax.experimental.sparse, BCOO or BCSR, by the coordinates of the nonzeros."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jax.experimental import sparse
from jax.sharding import AxisType, PartitionSpec

from .. import _checks
from .base import Operator, inexact, on_block, operator, promote, replace, static


class Order(NamedTuple):
    """The nonzeros of a matrix row by row (CSR), without those that only pad.

    Attributes:
        permutation: place of each among the nonzeros as given, (nse,); None where it is the same.
        inner: column of each, (nse,).
        starts: where each row starts, and the end of the last, (rows + 1,).
    """

    permutation: Any
    inner: Any
    starts: Any


# Products with 16 columns and with 1, of an 80,000 x 80,000 matrix with 1e6 nonzeros, float32, as
# multiples of scipy.sparse's time in the same run (3.7 and 0.9 ms; 2 cores, jax 0.10.2):
#
#   gather, scatter-add                          6.4      1.5    the way of accelerators
#   the same, indices said to be sorted          6.5      2.0
#   jax.ops.segment_sum, sorted                  7.0      1.8
#   BCOO @ X                                     6.9      1.5
#   difference of cumulative sums               30        6.6    and errors of 100 eps
#   rows padded to equal lengths, in buckets     2.2      4.9    unrolled over the length; else 7-15
#   BCSR @ X                                     0.47    12
#   BCSR @ X, columns padded to whole vectors    0.47     2.2    the way of the CPU, from 2 columns
#
# BCSR's kernel on CPU runs on all cores but vectorizes only whole vectors of 32 bytes: 10 columns
# cost five times what 16 do. Both orders take 0.04 s to find on the host, 0.4 s inside a program.
VECTOR_BYTES = 32


@operator
class Sparse(Operator):
    """A sparse matrix by its coordinates: A X and A^H X at nse l multiplications and additions.

    The derivative with respect to the values is again of size nse, and no array (m, n) or (nse, l)
    appears in it. Coordinates may come in any order and more than once (they add up); those out of
    range are padding and count as zero.

    Where the coordinates are known when the operator is made, its nonzeros are ordered by rows and
    by columns at once, for the CPU's fast product; inside a compiled program `prepared` does it.

    Attributes:
        data: values of the nonzeros, (nse,); the leaf that gradients reach.
        rows: row of each, (nse,), integers.
        columns: column of each, (nse,), integers.
        size: shape of the matrix.
        by_row: order of the nonzeros for A X, or None.
        by_column: order of the nonzeros of A^T for A^H X, or None.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> from jax.experimental import sparse
        >>> a = sparse.BCOO.fromdense(jnp.array([[0.0, 2.0], [0.0, 0.0], [3.0, 0.0]]))
        >>> A = jaxsvd.operators.as_operator(a)
        >>> print(A @ jnp.ones(2))
        [2. 0. 3.]
    """

    data: jax.Array
    rows: jax.Array
    columns: jax.Array
    size: tuple[int, ...] = static()
    by_row: Order | None = None
    by_column: Order | None = None

    def __post_init__(self):
        data = inexact("Sparse", "data", self.data, 1)
        for name in ("rows", "columns"):
            index = getattr(self, name)
            if not jnp.issubdtype(getattr(index, "dtype", None) or object, jnp.integer):
                raise TypeError(
                    f"Sparse: `{name}` must be an array of integers, got {_checks.describe(index)}"
                )
            if index.shape != data.shape:
                raise ValueError(
                    f"Sparse: `{name}` must have the shape of `data`, {data.shape}, "
                    f"got {index.shape}"
                )
        m, n = (int(length) for length in self.size)
        data = data.astype(promote(data.dtype))
        rows, columns = jnp.asarray(self.rows), jnp.asarray(self.columns)
        replace(self, data=data, rows=rows, columns=columns, size=(m, n))

    @classmethod
    def from_matrix(cls, a: sparse.BCOO | sparse.BCSR) -> "Sparse":
        """Return the operator of a two-dimensional BCOO or BCSR matrix without batch axes."""
        if a.n_batch or a.n_dense or len(a.shape) != 2:
            raise ValueError(
                "Sparse: a BCOO or BCSR matrix must have two sparse axes and no batch axes, got "
                f"shape {a.shape} with n_batch={a.n_batch} and n_dense={a.n_dense}"
            )
        # By NumPy where they are known: under a trace JAX's functions of known arrays are not.
        by_row = isinstance(a, sparse.BCSR)
        known = _on_one_cpu(a.indices) and (not by_row or _on_one_cpu(a.indptr))
        indices: Any = np.asarray(a.indices) if known else a.indices
        if by_row:
            rows: Any = (_known_rows_of if known else _rows_of)(a.indptr, indices)
            columns = indices
        else:
            rows, columns = indices[:, 0], indices[:, 1]
        orders = _orders(_order, rows, columns, a.shape) if known else (None, None)
        return cls(a.data, rows, columns, a.shape, *orders)

    def prepared(self) -> "Sparse":
        """Return the operator with its nonzeros ordered by rows and by columns, if it has not.

        Cost: two sorts of nse integers. It pays on CPU, from about ten products with 16 columns.
        """
        if self.by_row is not None:
            return self
        traced = any(isinstance(x, Tracer) for x in (self.rows, self.columns))
        make = _traced_order if traced else _order
        orders = _orders(make, self.rows, self.columns, self.size)
        return Sparse(self.data, self.rows, self.columns, self.size, *orders)

    @property
    def shape(self):
        """Rows and columns."""
        return self.size

    @property
    def dtype(self):
        """Dtype of the products."""
        return self.data.dtype

    def _times(self, adjoint, X):
        rows, columns, size = (self.rows, self.by_row), (self.columns, self.by_column), self.size
        if adjoint:
            rows, columns, size = columns, rows, size[::-1]

        def multiply(X):
            data = jnp.conj(self.data) if adjoint else self.data
            return _product(_whole(data).astype(X.dtype), rows, columns, _whole(X), size)

        return on_block(multiply, self.dtype, X)

    def matmat(self, X):
        """Return A X."""
        return self._times(False, X)

    def rmatmat(self, Y):
        """Return A^H Y."""
        return self._times(True, Y)

    def to_dense(self):
        """Return the matrix itself, (m, n)."""
        zero = jnp.zeros(self.size, self.dtype)
        return zero.at[self.rows, self.columns].add(self.data, mode="drop")


def _on_one_cpu(x: jax.Array) -> bool:
    if isinstance(x, Tracer):
        return False
    devices = x.devices()
    return len(devices) == 1 and all(device.platform == "cpu" for device in devices)


def _known_rows_of(starts: Any, indices: np.ndarray) -> np.ndarray:
    places = np.arange(indices.shape[0])
    return (np.searchsorted(np.asarray(starts), places, side="right") - 1).astype(indices.dtype)


def _rows_of(starts: jax.Array, indices: jax.Array) -> jax.Array:
    """Return the row of each nonzero of a BCSR matrix, m for padding.

    Each place by itself and where its column is: nonzeros spread over devices stay there.
    """

    def find(starts, indices):
        place = jnp.arange(indices.shape[0], dtype=starts.dtype)
        return (jnp.searchsorted(starts, place, side="right") - 1).astype(indices.dtype)

    sharding = jax.typeof(indices).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return find(starts, indices)
    by_compiler: Callable = jax.sharding.auto_axes(find, out_sharding=sharding)
    return by_compiler(starts, indices)


def _whole(x: jax.Array) -> jax.Array:
    """Return x unsharded where the mesh has Explicit axes: gathers there want to be told."""
    sharding = jax.typeof(x).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    if not explicit or all(axis is None for axis in sharding.spec):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*[None] * x.ndim))


def _orders(make: Callable, rows: Any, columns: Any, size: tuple[int, ...]) -> tuple[Order, Order]:
    m, n = size
    return make(rows, columns, m, n), make(columns, rows, n, m)


def _order(rows: Any, columns: Any, m: int, n: int) -> Order:
    """Order on the host: one sort of 64-bit integers, the row above the place."""
    r, c = np.asarray(rows), np.asarray(columns)
    if r.size and not (r.min() >= 0 and r.max() < m and c.min() >= 0 and c.max() < n):
        r, c = r.astype(np.int64), c.astype(np.int64)
        r, c = np.where(r < 0, r + m, r), np.where(c < 0, c + n, c)  # as indexing does
        inside = (r >= 0) & (r < m) & (c >= 0) & (c < n)
        r, c = np.where(inside, r, m), np.where(inside, c, 0)
    starts = np.concatenate([[0], np.cumsum(np.bincount(r, minlength=m)[:m])])
    permutation = None
    if np.any(r[1:] < r[:-1]):
        bits = r.size.bit_length()
        keys = (r.astype(np.int64) << bits) | np.arange(r.size)
        keys.sort()
        permutation = keys & ((1 << bits) - 1)
        c = c[permutation]
    index = np.int32 if max(m, n, r.size) < 2**31 else np.int64
    return jax.tree.map(lambda x: jnp.asarray(x.astype(index)), Order(permutation, c, starts))


def _traced_order(rows: jax.Array, columns: jax.Array, m: int, n: int) -> Order:
    """Order inside a program."""
    index = np.promote_types(rows.dtype, np.int32)
    r, c = rows.astype(index), columns.astype(index)
    r, c = jnp.where(r < 0, r + m, r), jnp.where(c < 0, c + n, c)
    r = jnp.where((r >= 0) & (r < m) & (c >= 0) & (c < n), r, m)
    places = jnp.arange(r.size, dtype=index)
    r, permutation = lax.sort((r, places), num_keys=1, is_stable=True)
    c = c.at[permutation].get(mode="promise_in_bounds")
    starts = jnp.searchsorted(r, jnp.arange(m + 1, dtype=index)).astype(index)
    return Order(permutation, jnp.where((c >= 0) & (c < n), c, 0), starts)


def _scatter(data, target, source, X, rows: int):
    # Entries that pad a BCOO point one past the end: they gather a fill of 0 and are dropped.
    terms = data[:, None] * X.at[source].get(mode="fill", fill_value=0)
    return jnp.zeros((rows, X.shape[1]), X.dtype).at[target].add(terms, mode="drop")


def _by_columns(data, target, source, X, rows: int):
    """Return the product one column of X after the other.

    Only derivatives with respect to ``data`` come here. The transpose of this loop adds up a vector
    of nse cotangents: 15 ms where that of the scatter of 16 columns takes 95 and 128 MB (as above).
    """

    @jax.checkpoint
    def column(_, x):
        terms = data * x.at[source].get(mode="fill", fill_value=0)
        return None, jnp.zeros((rows,), x.dtype).at[target].add(terms, mode="drop")

    return lax.scan(column, None, X.T, unroll=8)[1].T


@functools.cache
def _in_order(size: tuple[int, int]) -> Callable:
    """Return the product by BCSR for matrices of one shape."""

    @custom_vmap
    def multiply(order, data, target, source, X):
        l = X.shape[1]
        if l == 1:
            return _scatter(data, target, source, X, size[0])
        X = jnp.pad(X, ((0, 0), (0, -l % max(VECTOR_BYTES // X.dtype.itemsize, 1))))
        if order.permutation is not None:
            data = data.at[order.permutation].get(mode="promise_in_bounds")
        return (sparse.BCSR((data, order.inner, order.starts), shape=size) @ X)[:, :l]

    @multiply.def_vmap
    def _(count, batched, *arguments):
        *matrix, X = arguments
        if not any(jax.tree.leaves(batched[:-1])):  # one matrix: more columns
            n, l = X.shape[1:]
            Y = multiply(*matrix, jnp.moveaxis(X, 0, 1).reshape(n, count * l))
            return jnp.moveaxis(Y.reshape(-1, count, l), 1, 0), True

        def one(i):
            pick = jax.tree.map(lambda x, many: x[i] if many else x, arguments, tuple(batched))
            return multiply(*pick)

        return lax.map(one, jnp.arange(count)), True

    return multiply


def _forward(data, target, source, X, size):
    (target, order), (source, _) = target, source

    def scatter(order, data, target, source, X):
        return _scatter(data, target, source, X, size[0])

    arguments = order, data, target, source, X
    if order is None:
        return scatter(*arguments)
    return lax.platform_dependent(*arguments, cpu=_in_order(size), default=scatter)


@functools.partial(jax.jit, static_argnames=("size",))
def _product(data, target, source, X, size):
    """Return A X for the matrix of shape ``size`` with ``data`` at (target, source).

    ``target`` and ``source`` are pairs: the indices, and the order of the nonzeros by them.
    """
    return with_transpose(
        lambda X: _forward(data, target, source, X, size),
        lambda Y: _forward(data, source, target, Y, size[::-1]),
        X,
        size[0],
        rule=lambda X: _by_columns(data, target[0], source[0], X, size[0]),
    )


def with_transpose(
    forward: Callable, transpose: Callable, X: jax.Array, rows: int, rule: Callable | None = None
) -> jax.Array:
    """Return forward(X), with the derivatives of a linear map whose transpose is known.

    Y = F(X) is written as the solution (X, Y) of [I 0; -F I] (X, Y) = (X, 0), whose inverse is
    [I 0; F I]: `custom_linear_solve` then takes ``forward`` for products and tangents of X and
    ``transpose`` for cotangents of Y, at all orders and under every transformation.

    Args:
        forward: (n, l) -> (rows, l), linear; anything that JAX can run.
        transpose: (rows, l) -> (n, l), its transpose, without conjugation.
        X: the block, (n, l).
        rows: rows of the result.
        rule: the same map in operations that JAX differentiates, used only for tangents of what
            it closes over; None if it closes over nothing that has any.
    """
    n, l = X.shape

    def matvec(z):
        return z if rule is None else jnp.concatenate([z[:n], z[n:] - rule(z[:n])])

    def solve(_, b):
        return jnp.concatenate([b[:n], b[n:] + forward(b[:n])])

    def transpose_solve(_, c):
        return jnp.concatenate([c[:n] + transpose(c[n:]), c[n:]])

    # One array, as custom_linear_solve wants; the compiler sees through the concatenation.
    b = jnp.concatenate([X, jnp.zeros((rows, l), X.dtype)])
    return lax.custom_linear_solve(matvec, b, solve, transpose_solve)[n:]

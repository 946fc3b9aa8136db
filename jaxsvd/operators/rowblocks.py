"""A matrix larger than memory, known by its blocks of rows, read ahead while the device works."""

import contextlib
import queue
import threading
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _checks
from ..algorithms.products import power_of_two
from .base import Operator, Product, Scaled, Transpose, on_block, operator, replace, static
from .compose import Centered
from .dense import Dense
from .sources import NAME, Source, as_source, working_dtype

# Bytes of a block: from 4 to 32 MiB the rate of a pass is the same, so few are held.
BLOCK_BYTES = 1 << 23


class _Stopped(Exception):
    """The reader is not wanted any more."""


def aligned(rows: int, columns: int, dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised array that JAX takes on CPU as it is, without a copy."""
    nbytes = rows * columns * dtype.itemsize
    raw = np.empty(nbytes + 64, np.uint8)
    at = -raw.ctypes.data % 64
    return raw[at : at + nbytes].view(dtype).reshape(rows, columns)


def read_ahead(source: Source, first: int, size: int, ahead: int) -> Generator[np.ndarray]:
    """Yield the rows of a source from ``first`` on, a thread filling the ``ahead`` next buffers.

    A block is the caller's until the next one is asked for; then its buffer is filled again.
    """
    dtype, n = working_dtype(source.dtype), source.shape[1]
    free: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
    full: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()
    for _ in range(ahead + 1):
        free.put(aligned(min(size, source.shape[0]), n, dtype))

    def take(rows: int) -> np.ndarray:
        buffer = free.get()
        if buffer is None or stop.is_set():
            raise _Stopped
        return buffer[:rows]

    def fill() -> None:
        try:
            for block in source.blocks(first, size, take):
                full.put(block)
            source.check_unchanged()
            full.put(None)
        except _Stopped:
            pass
        except BaseException as error:  # whatever it is, it belongs to the caller
            full.put(error)

    source.check_unchanged()
    thread = threading.Thread(target=fill, name="jaxsvd-rows", daemon=True)
    thread.start()
    try:
        while (block := full.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            yield block
            free.put(block if len(block) == size else None)
    finally:
        stop.set()
        free.put(None)
        thread.join()


@jax.jit
def _times(op: Operator, X: jax.Array) -> jax.Array:
    return op.matmat(X)


@jax.jit
def _adjoint_times(op: Operator, Y: jax.Array, total: jax.Array, lost: jax.Array):
    return add_exactly(total, lost, op.rmatmat(Y))


def add_exactly(total: jax.Array, lost: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return total + x and all that such sums have lost to rounding so far (Knuth's two-sum).

    A sum over thousands of blocks is then as accurate as one over a few.
    """
    after = total + x
    part = after - total
    return after, lost + ((total - (after - part)) + (x - part))


def add_rows(part: Operator, X, Z, lost, scale):
    """Add the share of some rows to Z = A^H A X / scale^2; return their A X / scale too."""
    Y = part.matmat(X)
    largest = jnp.max(jnp.abs(Y), initial=0)
    usual = jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1)
    found = jnp.where(largest > 0, power_of_two(usual), 0)
    # Zero until the first rows that are not; it grows where later ones are much larger.
    grown = jnp.where(found > 2.0**10 * scale, found, scale)
    ratio = jnp.where(grown > 0, scale / jnp.where(grown > 0, grown, 1), 1)
    unit = jnp.where(grown > 0, grown, 1).astype(Y.dtype)
    Y = Y / unit
    factor = (ratio * ratio).astype(Z.dtype)
    Z, lost = add_exactly(Z * factor, lost * factor, part.rmatmat(Y) / unit)
    return Y, Z, lost, grown


def add_adjoint_rows(part: Operator, U, Z, lost, scale):
    """Add the share of some rows to Z = A^H U / scale."""
    return add_exactly(Z, lost, part.rmatmat(U) / scale.astype(U.dtype))


@operator
class RowBlocks(Operator):
    """A matrix (m, n) that lives outside memory and is read in blocks of rows.

    `truncated_svd`, `randomized_svd` and `adaptive_svd` take it when called outside of jit and
    grad: the forward pass only. They read the source once for each product A^H (A X), the next
    blocks being read while the device works on one. `Scaled`, `Centered`, a `Product` with an
    operator in memory on its right and a `Transpose` of it go the same way; its plain products
    ``matmat`` and ``rmatmat`` take a pass each.

    Memory: ``ahead`` + 2 blocks, one of them the device's where that has memory of its own, and
    what the factors need. Default block: 8 MiB, whole chunks of a chunked array.

    Attributes:
        source: path of a .npy file; numpy.memmap; HDF5 data set or zarr array (extra `io`);
            anything with ``shape``, ``dtype`` and slices of rows; or an iterable of blocks
            (rows, n) that can be iterated again and again. Integers and half precision are
            converted block by block. A file is read from its path: size and time of change are
            compared before and after each pass.
        rows: rows of a block; default 8 MiB worth.
        ahead: blocks read ahead, at least 1.
        progress: whether `tqdm` shows the passes (extra `io`).
        checkpoint: path of a file in which a run that stops, by an error of the source or a key
            press, leaves its state, and every minute while it runs; the same call takes it up
            where it was, in the middle of a pass, with the same result to the bit.
        given_shape: (m, n) of an iterable; default: found in a first pass.
        given_dtype: of an iterable; default: that of its first block.

    Raises:
        TypeError: a source that is none of these or can be read only once.
        ValueError: a truncated or changed file, rows stored by columns, a block of wrong shape.

    Example:
        >>> import jax.numpy as jnp, numpy as np, jaxsvd
        >>> blocks = [np.ones((40, 3)), np.zeros((10, 3))]  # or "matrix.npy", larger than memory
        >>> A = jaxsvd.operators.RowBlocks(blocks)
        >>> A.shape, jaxsvd.truncated_svd(A, 1).S.round(3)
        ((50, 3), Array([10.954], dtype=float64))
    """

    source: Any = static()
    rows: int | None = static(default=None)
    ahead: int = static(default=2)
    progress: bool = static(default=False)
    checkpoint: Any = static(default=None)
    given_shape: Any = static(default=None)
    given_dtype: Any = static(default=None)

    def __post_init__(self):
        source = self.source
        if not isinstance(source, Source):
            source = as_source(source, self.given_shape, self.given_dtype)
        m, n = source.shape
        if self.rows is None:
            rows = max(1, BLOCK_BYTES // (n * working_dtype(source.dtype).itemsize))
            chunk = (getattr(getattr(source, "held", None), "chunks", None) or (1,))[0]
            if isinstance(chunk, int):  # whole chunks: each is decompressed once
                rows = max(chunk, rows // chunk * chunk)
            replace(self, rows=min(rows, m))
        else:
            replace(self, rows=min(_checks.static_int(NAME, "rows", self.rows, 1, 2**62), m))
        _checks.static_int(NAME, "ahead", self.ahead, 1, 1000)
        _checks.flag(NAME, "progress", self.progress)
        replace(self, source=source)

    @property
    def shape(self):
        """Rows and columns."""
        return self.source.shape

    @property
    def dtype(self):
        """Dtype of the products: at least float32, integers as JAX promotes them."""
        return working_dtype(self.source.dtype)

    def blocks(self, first: int = 0) -> Generator[np.ndarray]:
        """Yield the rows from ``first`` on in the dtype of the products.

        A block is good until the next one is asked for.
        """
        return read_ahead(self.source, first, self.rows, self.ahead)  # type: ignore[arg-type]

    def matmat(self, X):
        """Return A X, in one pass."""
        concrete("matmat", X)

        def multiply(X):
            Y = aligned(self.shape[0], X.shape[1], X.dtype)
            at = 0
            with contextlib.closing(self.blocks()) as blocks:
                for block in blocks:
                    Y[at : at + len(block)] = _times(Dense(jax.device_put(block)), X)
                    at += len(block)
            return jax.device_put(Y)

        return on_block(multiply, self.dtype, X)

    def rmatmat(self, Y):
        """Return A^H Y, in one pass."""
        concrete("rmatmat", Y)

        def multiply(Y):
            total = lost = jnp.zeros((self.shape[1], Y.shape[1]), Y.dtype)
            at = 0
            with contextlib.closing(self.blocks()) as blocks:
                for block in blocks:
                    part = Dense(jax.device_put(block))
                    total, lost = _adjoint_times(part, Y[at : at + len(block)], total, lost)
                    jax.block_until_ready((total, lost))  # the buffer is filled again
                    at += len(block)
            return total + lost

        return on_block(multiply, self.dtype, Y)


def concrete(what: str, *arrays: Any) -> None:
    """Raise if an array, or any new one, is traced."""
    if any(isinstance(x, Tracer) for x in (*jax.tree.leaves(arrays), jnp.zeros(()))):
        raise TypeError(
            f"{NAME}: {what} of a matrix outside memory must be called outside of jit, vmap and "
            "grad, got a traced value"
        )


def held_by(op: Any) -> RowBlocks | None:
    """Return a matrix outside memory that an operator holds, or None."""
    leaves = jax.tree.leaves(op, is_leaf=lambda x: isinstance(x, RowBlocks))
    return next((leaf for leaf in leaves if isinstance(leaf, RowBlocks)), None)


def by_rows(op: Operator) -> RowBlocks | None:
    """Return the matrix outside memory whose rows give those of the operator one by one, or None.

    Its rows are then those of the same operator made with `with_rows`.
    """
    if isinstance(op, RowBlocks):
        return op
    if isinstance(op, (Scaled, Centered)):
        return by_rows(op.of)
    if isinstance(op, Product) and held_by(op.right) is None:
        return by_rows(op.left)
    return None


def with_rows(op: Operator, block: np.ndarray) -> Operator:
    """Return an operator `by_rows` for some of its rows, given those of the matrix outside."""
    part = Dense(jax.device_put(block))
    is_leaf = lambda x: isinstance(x, RowBlocks)  # noqa: E731
    return jax.tree.map(lambda x: part if is_leaf(x) else x, op, is_leaf=is_leaf)


def transposed(op: Operator) -> tuple[Operator, bool, bool]:
    """Return (B, swap, conjugate) with A = B, or B^H for swap, or its conjugate."""
    swap = conjugate = False
    while isinstance(op, Transpose):
        swap, conjugate = not swap, conjugate != (not op.conjugate)
        op = op.of
    return op, swap, conjugate

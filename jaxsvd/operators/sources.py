"""Where the rows of a large matrix come from: files, arrays that can be sliced, iterables.

A source knows its shape and dtype and fills buffers with its rows, in order. What it meets on the
way is checked: every message names the block, its rows, and what was expected.
"""

import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .base import promote

NAME = "RowBlocks"

# Returns a buffer (rows, n) in the dtype of the products, waiting until one is free.
Take = Callable[[int], np.ndarray]


def working_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype in which rows are multiplied: at least float32, integers as in `_checks`."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        known = jax.ShapeDtypeStruct((), jax.dtypes.canonicalize_dtype(dtype))
        dtype = np.dtype(jax.eval_shape(jnp.sqrt, known).dtype)
    return jax.dtypes.canonicalize_dtype(promote(dtype))


class Source:
    """The rows of a matrix (m, n), to be read from any row on, as often as wanted.

    Attributes:
        shape: (m, n).
        dtype: of the rows as they are stored.
        label: what messages call it.
        path: of the file whose size and time of change tell whether it is still the same, or None.
    """

    def __init__(self, label: str, shape: Any, dtype: Any, path: str | None = None):
        self.label, self.path = label, path
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"{NAME}: {label} must have shape (m, n), got {self.shape}")
        if not (jnp.issubdtype(self.dtype, jnp.number) or self.dtype == np.bool_):
            raise TypeError(f"{NAME}: {label} must hold numbers, got dtype {self.dtype}")
        self.first_stamp = self.stamp()

    def stamp(self) -> tuple[int, ...]:
        """Return size and time of change of the file; () where there is none."""
        if self.path is None:
            return ()
        found = os.stat(self.path)
        return found.st_size, found.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raise if the file is not the one that was opened first."""
        now = self.stamp()
        if now != self.first_stamp:
            raise ValueError(
                f"{NAME}: {self.label} has changed since it was opened: expected "
                f"{self.first_stamp[0]} bytes of time {self.first_stamp[1]}, got {now[0]} bytes of "
                f"time {now[1]}"
            )

    def blocks(self, first: int, size: int, take: Take) -> Iterator[np.ndarray]:
        """Yield the rows from ``first`` on in buffers of ``size`` rows, the last one shorter."""
        raise NotImplementedError

    def where(self, first: int, stop: int, size: int) -> str:
        """Return the name of a block for messages."""
        return f"block {first // size} (rows {first} to {stop - 1}) of {self.label}"


class File(Source):
    """Rows stored one after the other in a file, read without the detour of a memory map."""

    def __init__(self, label: str, path: str, offset: int, shape: Any, dtype: Any):
        super().__init__(label, shape, dtype, path)
        self.offset = offset
        needed = offset + self.shape[0] * self.shape[1] * self.dtype.itemsize
        if self.first_stamp[0] < needed:
            raise ValueError(
                f"{NAME}: {label} is truncated: expected {needed} bytes for shape {self.shape} of "
                f"{self.dtype}, got {self.first_stamp[0]}"
            )

    def blocks(self, first, size, take):
        """Yield the rows from ``first`` on."""
        m, n = self.shape
        stride = n * self.dtype.itemsize
        raw = np.empty((0, n), self.dtype)
        with open(str(self.path), "rb", buffering=0) as file:
            file.seek(self.offset + first * stride)
            for start in range(first, m, size):
                rows = min(size, m - start)
                out = take(rows)
                direct = out.dtype == self.dtype
                if not direct and not len(raw):
                    raw = np.empty((size, n), self.dtype)
                into = out if direct else raw[:rows]
                view = memoryview(into.view(np.uint8).reshape(-1).data)
                got = 0
                while got < len(view) and (more := file.readinto(view[got:])):
                    got += more
                if got < len(view):
                    raise ValueError(
                        f"{NAME}: {self.where(start, start + rows, size)} ends early: expected "
                        f"{len(view)} bytes, got {got}"
                    )
                if not direct:
                    out[...] = into
                yield out


class Sliced(Source):
    """Anything with a shape, a dtype and slices of rows: NumPy, HDF5, zarr."""

    def __init__(self, label: str, held: Any):
        file = getattr(held, "file", None)  # of an HDF5 data set
        readonly = getattr(file, "mode", None) == "r"
        path = getattr(file, "filename", None) if readonly else None
        super().__init__(label, held.shape, held.dtype, path)
        self.held = held

    def blocks(self, first, size, take):
        """Yield the rows from ``first`` on."""
        m, n = self.shape
        for start in range(first, m, size):
            stop = min(start + size, m)
            part = np.asarray(self.held[start:stop])
            check_block(self.where(start, stop, size), part, (stop - start, n), self.dtype)
            out = take(stop - start)
            out[...] = part
            yield out


class Iterated(Source):
    """Row blocks of any heights from an object that can be iterated again and again."""

    def __init__(self, label: str, held: Any, shape: Any, dtype: Any):
        self.held = held
        if shape is None or dtype is None:
            shape, dtype = self._look(label, shape, dtype)
        super().__init__(label, shape, dtype)

    def _look(self, label, shape, dtype):
        """Return what is not given of shape and dtype, from a first pass."""
        rows = 0
        for number, block in enumerate(self.held):
            block = np.asarray(block)
            if number == 0:
                width = block.shape[-1] if block.ndim == 2 else 0
                dtype = block.dtype if dtype is None else dtype
            check_block(f"block {number} of {label}", block, (None, width), np.dtype(dtype))
            rows += len(block)
            if shape is not None:
                break
        if rows == 0:
            raise ValueError(f"{NAME}: {label} is empty: expected at least one row, got none")
        return (rows, width) if shape is None else shape, dtype

    def blocks(self, first, size, take):
        """Yield the rows from ``first`` on, regrouped into buffers of ``size`` rows."""
        m, n = self.shape
        seen = 0  # rows of the source
        out, filled, start = None, 0, first
        for number, block in enumerate(self.held):
            block = np.asarray(block)
            check_block(f"block {number} of {self.label}", block, (None, n), self.dtype)
            if seen + len(block) > m:
                raise ValueError(
                    f"{NAME}: block {number} of {self.label} ends at row {seen + len(block)}, "
                    f"expected {m} rows in all"
                )
            at = max(first - seen, 0)  # rows that an earlier run has read
            seen += len(block)
            while at < len(block):
                if out is None:
                    out, filled = take(min(size, m - start)), 0
                rows = min(len(out) - filled, len(block) - at)
                out[filled : filled + rows] = block[at : at + rows]
                filled, at = filled + rows, at + rows
                if filled == len(out):
                    start += filled
                    full, out = out, None
                    yield full
        if seen < m:
            again = "; a source must give all its rows each time it is iterated" if not seen else ""
            raise ValueError(
                f"{NAME}: {self.label} ended early: expected {m} rows, got {seen}{again}"
            )


def check_block(name: str, block: np.ndarray, shape: tuple[int | None, int], dtype: np.dtype):
    """Raise unless a block has the right shape, any number of rows for None, and dtype."""
    rows, n = shape
    if block.ndim != 2 or block.shape[1] != n or rows not in (None, len(block)):
        wanted = f"({'rows' if rows is None else rows}, {n})"
        raise ValueError(f"{NAME}: {name} must have shape {wanted}, got {block.shape}")
    if block.dtype != dtype:
        raise TypeError(f"{NAME}: {name} must have dtype {dtype}, got {block.dtype}")


def _numpy_file(path: str) -> Source:
    """Return the source of a .npy file."""
    label = f"file {os.path.basename(path)!r}"
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(file)
        except Exception as error:  # what a damaged header raises is of many kinds
            reason = " ".join(str(error).split())
            raise ValueError(f"{NAME}: {label} must be a .npy file, got {reason}") from None
        offset = file.tell()
    _refuse_columns(label, fortran and len(shape) == 2 and min(shape) > 1)
    return File(label, path, offset, shape, dtype)


def _refuse_columns(label: str, by_columns: bool) -> None:
    if by_columns:
        raise ValueError(
            f"{NAME}: {label} must be stored by rows, got Fortran order; give its transpose and "
            f"take the adjoint: RowBlocks(numpy.load(path, mmap_mode='r').T).T"
        )


def _memory_map(array: np.memmap) -> Source:
    """Return the source of a memory map: its file where rows lie one after the other."""
    label = "the memory map"
    _refuse_columns(label, array.ndim == 2 and min(array.shape) > 1 and array.flags.fnc)
    name, base = array.filename, array.base
    plain = array.flags.c_contiguous and isinstance(base, mmap.mmap) and array.mode != "c"
    if name is None or not plain:
        return Sliced(label, array)
    label = f"file {os.path.basename(name)!r}"
    return File(label, os.fspath(name), array.offset, array.shape, array.dtype)


def as_source(source: Any, shape: Any = None, dtype: Any = None) -> Source:
    """Return the source for whatever holds the rows, or raise."""
    if isinstance(source, (str, os.PathLike)):
        found = _numpy_file(os.fspath(source))
    elif isinstance(source, np.memmap):
        found = _memory_map(source)
    elif all(hasattr(source, name) for name in ("shape", "dtype", "__getitem__")):
        found = Sliced(f"the {type(source).__name__}", source)
    elif not hasattr(source, "__iter__"):
        raise TypeError(
            f"{NAME}: `source` must be a path, an array that can be sliced, or an iterable of row "
            f"blocks, got {_checks.describe(source)}"
        )
    elif iter(source) is source:
        raise TypeError(
            f"{NAME}: `source` must give its rows anew each time it is iterated, got a "
            f"{type(source).__name__} that can be read once; jaxsvd.streaming takes such data"
        )
    else:
        return Iterated(f"the {type(source).__name__}", source, shape, dtype)
    for given, has, what in ((shape, found.shape, "shape"), (dtype, found.dtype, "dtype")):
        if given is not None and has != (tuple(given) if what == "shape" else np.dtype(given)):
            raise ValueError(f"{NAME}: `{what}` must be that of {found.label}, {has}, got {given}")
    return found

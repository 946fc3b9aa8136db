"""The observed entries of a matrix to complete, and the entries of a low-rank one."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.experimental import sparse

from .. import _checks
from ..operators.compose import LowRank
from ..operators.sparse import Sparse

# Columns carried beyond `max_rank`: they speed up the subspace iteration inside each step.
EXTRA = 6

# Entries whose factors are gathered at a time: 100 factors of 100,000 entries take 127 ms at once
# (and 80 MB), 4 ms in pieces that the cache holds (CPU, 2 cores).
PIECE = 4096


class CompletionInfo(NamedTuple):
    """How a completion ended; nothing in it is differentiated.

    Attributes:
        iterations: steps done.
        error: of `soft_impute`, how far the result is from the optimum's fixed point, relative to
            the largest singular value; of `singular_value_thresholding`, |P(X - M)| / |P(M)|.
        rank: singular values that are not zero.
        exceeded: whether the optimum wants more than `max_rank` of them.
        converged: whether the error is within the tolerance, at a rank that is not exceeded.
    """

    iterations: jax.Array
    error: jax.Array
    rank: jax.Array
    exceeded: jax.Array
    converged: jax.Array


def entries(completed: LowRank, rows: Any, columns: Any) -> jax.Array:
    """Return the entries of a low-rank matrix at some places: sum_r U_ir s_r Vh_rj.

    Cost: r multiplications and additions an entry, in pieces; nothing (m, n) is formed.

    Args:
        completed: U diag(s) Vh, (m, n).
        rows: integers (p,).
        columns: integers (p,).

    Returns:
        Array (p,); 0 at places outside the matrix.

    Raises:
        TypeError: ``completed`` is no LowRank, or a place is no integer.
        ValueError: ``rows`` and ``columns`` have different shapes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> Z = jaxsvd.operators.LowRank(jnp.ones((3, 1)), jnp.ones(1), jnp.arange(4.0)[None])
        >>> print(jaxsvd.models.completion.entries(Z, jnp.array([0, 2]), jnp.array([3, 1])))
        [3. 1.]
    """
    name = "completion.entries"
    if not isinstance(completed, LowRank):
        raise TypeError(f"{name}: `completed` must be a LowRank, got {_checks.describe(completed)}")
    rows, columns = jnp.asarray(rows), jnp.asarray(columns)
    for argument, index in (("rows", rows), ("columns", columns)):
        if not jnp.issubdtype(index.dtype, jnp.integer):
            raise TypeError(f"{name}: `{argument}` must hold integers, got dtype {index.dtype}")
    if rows.ndim != 1 or rows.shape != columns.shape:
        raise ValueError(
            f"{name}: `rows` and `columns` must have one shape (p,), got {rows.shape} and "
            f"{columns.shape}"
        )
    dtype = completed.dtype
    U = completed.U.astype(dtype) * completed.s.astype(dtype)[None, :]
    return sampled(U, completed.Vh.astype(dtype).T, rows, columns)


def sampled(U: jax.Array, W: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return (U W^T)_ij at (rows, columns), 0 where these are out of range."""
    count = rows.shape[0]

    # Recomputed in the reverse pass: else it would keep all that was gathered.
    @jax.checkpoint
    def piece(index):
        i, j = index
        left = lax.optimization_barrier(U.at[i].get(mode="fill", fill_value=0))
        right = lax.optimization_barrier(W.at[j].get(mode="fill", fill_value=0))
        return jnp.sum(left * right, axis=1)

    size = min(PIECE, max(count, 1))
    pieces = -(-count // size)
    padded = [jnp.pad(x, (0, pieces * size - count)).reshape(pieces, size) for x in (rows, columns)]
    return lax.map(piece, tuple(padded)).reshape(-1)[:count]


def observed_entries(name: str, a: Any) -> Sparse:
    """Return the entries as an operator ordered by rows, or raise; values are seen if known."""
    if isinstance(a, sparse.BCOO | sparse.BCSR):
        a = Sparse.from_matrix(a)
    if not isinstance(a, Sparse):
        raise TypeError(
            f"{name}: `observed` must be a BCOO or BCSR matrix or an operators.Sparse, got "
            f"{_checks.describe(a)}"
        )
    if jnp.iscomplexobj(a.data):
        raise TypeError(f"{name}: `observed` must be real, got dtype {a.data.dtype}")
    if isinstance(a.rows, Tracer) or isinstance(a.columns, Tracer):
        return a.prepared()
    rows, columns = np.asarray(a.rows), np.asarray(a.columns)
    (m, n), data = a.size, a.data
    inside = (rows >= 0) & (rows < m) & (columns >= 0) & (columns < n)
    if not inside.any():
        raise ValueError(f"{name}: `observed` must hold at least one entry, got none")
    if not isinstance(data, Tracer):
        bad = np.flatnonzero(inside & ~np.isfinite(np.asarray(data)))
        if bad.size:
            i = bad[0]
            raise ValueError(
                f"{name}: `observed` must hold finite values, got {np.asarray(data)[i]} at "
                f"({rows[i]}, {columns[i]})"
            )
    place = rows.astype(np.int64) * n + columns
    keep = np.flatnonzero(inside)
    keep = keep[np.argsort(place[keep], kind="stable")]
    again = np.flatnonzero(np.diff(place[keep]) == 0)
    if again.size:
        i = keep[again[0]]
        raise ValueError(
            f"{name}: `observed` must hold each entry once, got ({rows[i]}, {columns[i]}) twice; "
            "add them up or take their mean first"
        )
    kept = np.arange(rows.size)
    if keep.size == rows.size and np.array_equal(keep, kept):
        return a.prepared()
    i, j = jnp.asarray(rows[keep]), jnp.asarray(columns[keep])
    return Sparse(data[jnp.asarray(keep)], i, j, a.size).prepared()


def with_values(a: Sparse, data: jax.Array) -> Sparse:
    """Return the sparse matrix with other values at the same places."""
    return dataclasses.replace(a, data=data)


def sizes(name: str, a: Sparse, max_rank: Any, tol: Any, max_iterations: Any):
    """Return static k, tol and a limit from checked arguments."""
    k = _checks.static_int(name, "max_rank", max_rank, 1, min(a.shape))
    tol = _checks.tolerance(name, "tol", tol)
    limit = _checks.static_int(name, "max_iterations", max_iterations, 1, 10**9)
    return k, tol, limit

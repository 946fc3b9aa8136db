"""Least squares for each row of a sparse matrix of ratings: batched normal equations.

Row u with entries j has the system (G + sum_j w_j q_j q_j^T + reg_u I) p_u = sum_j t_j q_j. Its
entries are cut into segments of one length, padded with zero weight, so that all Gram matrices are
batched products (on CPU 20 times as fast as adding up outer products); rows are grouped into chunks
of one size, so that no more than a chunk of systems is held. One program serves all chunks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..algorithms.products import product

# Entries of a segment; and entries and rows of a chunk: 20 MB of systems for 50 factors.
SEGMENT, CHUNK, ROWS = 16, 16384, 512


class Plan(NamedTuple):
    """Entries of a sparse matrix by row, in chunks of segments.

    Attributes:
        entry: number of each entry as given, (chunks, segments, length); 0 where ``there`` is 0.
        there: 1 for an entry, 0 for padding.
        other: its column.
        owner: row of the segment within the chunk, (chunks, segments), ascending.
        first: first row of the chunk, (chunks,).
        counts: entries of each row of the chunk, (chunks, rows).
    """

    entry: np.ndarray
    there: np.ndarray
    other: np.ndarray
    owner: np.ndarray
    first: np.ndarray
    counts: np.ndarray


def plan(rows: np.ndarray, columns: np.ndarray, total: int) -> Plan:
    """Return the plan for a matrix with ``total`` rows; on the host, one sort."""
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=total)
    starts = np.concatenate([[0], np.cumsum(counts)])
    segments = -(-counts // SEGMENT)
    ends = np.concatenate([[0], np.cumsum(segments)])  # segments before each row
    most = max(CHUNK // SEGMENT, int(segments.max(initial=1)))
    most = min(most, max(int(ends[-1]), 1))
    height = min(ROWS, total)
    first = [0]
    while True:  # one turn a chunk: as many rows as fit into its segments
        at = first[-1]
        fit = int(np.searchsorted(ends, ends[at] + most, side="right")) - 1
        following = min(fit, at + height)
        if following >= total:
            break
        first.append(following)
    begin = np.array(first)
    stop = np.append(begin[1:], total)
    # All segments of all rows: which row, and where among the sorted entries.
    row = np.repeat(np.arange(total), segments)
    within = np.arange(row.size) - ends[row]
    place = (starts[row] + SEGMENT * within)[:, None] + np.arange(SEGMENT)
    there = place < starts[row + 1][:, None]
    chunk = np.searchsorted(begin, row, side="right") - 1
    slot = np.arange(row.size) - ends[begin[chunk]]
    shape = (begin.size, most, SEGMENT)
    found = Plan(
        entry=np.zeros(shape, np.int32),
        there=np.zeros(shape, bool),
        other=np.zeros(shape, np.int32),
        owner=np.full(shape[:2], height, np.int32),
        first=begin.astype(np.int32),
        counts=np.zeros((begin.size, height), np.int32),
    )
    entry = np.where(there, order[np.where(there, place, 0)], 0)
    found.entry[chunk, slot] = entry
    found.there[chunk, slot] = there
    found.other[chunk, slot] = np.where(there, columns[entry], 0)
    found.owner[chunk, slot] = row - begin[chunk]
    for c in range(begin.size):
        found.counts[c, : stop[c] - begin[c]] = counts[begin[c] : stop[c]]
    return found


def solve(
    plan: Plan,
    total: int,
    factors: jax.Array,
    weights: jax.Array,
    targets: jax.Array,
    regularization: jax.Array,
    by_count: bool,
    base: jax.Array | None = None,
) -> jax.Array:
    """Return the solutions (total, k) of all rows; zero for rows without entries.

    Args:
        plan: of the matrix.
        total: its rows.
        factors: q, (columns, k).
        weights: w by entry, (p,).
        targets: t by entry, (p,).
        regularization: added to the diagonal, ().
        by_count: multiply it by the entries of the row.
        base: G, (k, k), or None.
    """
    k, dtype = factors.shape[1], factors.dtype
    height = plan.counts.shape[1]
    eye = jnp.eye(k, dtype=dtype)

    def chunk(found: Plan):
        there = found.there.astype(dtype)
        q = factors[found.other]
        w, t = weights[found.entry] * there, targets[found.entry] * there
        gram = product(q.mT, q * w[:, :, None])
        right = jnp.sum(q * t[:, :, None], axis=1)
        add = lambda x: jax.ops.segment_sum(x, found.owner, height + 1, True)[:height]  # noqa: E731
        times = jnp.maximum(found.counts, 1) if by_count else jnp.ones_like(found.counts)
        A = add(gram) + (regularization * times.astype(dtype))[:, None, None] * eye[None]
        A = A if base is None else A + base[None]
        L = jnp.linalg.cholesky(A, symmetrize_input=False)
        z = lax.linalg.triangular_solve(L, add(right)[:, :, None], left_side=True, lower=True)
        x = lax.linalg.triangular_solve(L, z, left_side=True, lower=True, transpose_a=True)[:, :, 0]
        return jnp.where(found.counts[:, None] > 0, x, 0)

    solved = lax.map(chunk, plan)
    rows = plan.first[:, None] + jnp.arange(height, dtype=jnp.int32)[None, :]
    # Rows past the chunk's own come out zero and are added to those of the next: no harm.
    return jnp.zeros((total, k), dtype).at[rows].add(solved, mode="drop")

"""Batches of small matrices by one-sided Jacobi, all matrices of a chunk rotated at once.

LAPACK solves a batch one matrix after the other, at a cost of microseconds each. Here the batch is
the minor axis, so that every instruction works on many matrices. Columns are rotated pairwise until
they are orthogonal: A J = U diag(S), J = V. Small singular values come out to full relative
accuracy where scaling the columns makes A well conditioned (Demmel and Veselic).

What XLA needs on CPU to make it fast: a loop over the rounds (unrolled sweeps compile for minutes),
a barrier around each rotation (fusion recomputes it for every reader otherwise), and chunks whose
columns stay in the cache.

References: Hestenes (1958) (the method); Golub and Van Loan (2013), section 8.5.2 (the rotation)
and 8.5.5 (round robin); Demmel and Veselic (1992), SIAM J. Matrix Anal. Appl. 13 (accuracy).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .. import _tolerances
from .._types import SVDResult
from .chunks import over_chunks
from .phase import phases_of_pairs
from .products import magnitude

# Rounds in one body of the loop: each body copies the columns once. 3 to 7 are equally fast, 1 is a
# third slower.
UNROLL = 7

# Entries that XLA on CPU sums up itself; with more it calls a library, which takes longer to call
# than to add: 2,000 of 12 x 12 in parts 8.2 ms, else 14.6; 1,000 of 16 x 16 10 ms, else 16.
SUM = (1 << 12) - 1

# Ordinary matrices of up to 16 columns take 4 to 8 sweeps, 32 rows graded over 30 to 300 decades 25
# to 31, and 200 x 120 with values from 1 to eps more than that.
MAX_SWEEPS = 100


class Columns(NamedTuple):
    """The columns of a chunk as a round robin: pair i is (left[i], right[i]).

    Arrays are (pairs, rows, chunk), rows holding a column of A and, below it, the column of V.

    Attributes:
        left: first columns of the pairs.
        right: second columns of the pairs.
        out: the column that sits out, (1, rows, chunk), or none of them for even n.
    """

    left: jax.Array
    right: jax.Array
    out: jax.Array


def _seat(columns: jax.Array) -> Columns:
    h, odd = divmod(columns.shape[0], 2)
    return Columns(columns[:h], columns[h + odd :], columns[h : h + odd])


def _unseat(c: Columns) -> jax.Array:
    return jnp.concatenate([c.left, c.out, c.right])


def _move(c: Columns) -> Columns:
    """Move every column on by one place, the last of an even number staying: all pairs meet."""
    left = jnp.concatenate([c.right[:1], c.left[:-1]])
    if c.out.shape[0]:
        return Columns(left, jnp.concatenate([c.right[1:], c.out]), c.left[-1:])
    if c.left.shape[0] == 1:
        return c
    return Columns(left, jnp.concatenate([c.right[1:-1], c.left[-1:], c.right[-1:]]), c.out)


def least_norm(dtype) -> float:
    """Return the norm, of a matrix of size one, below which a column is no direction any more.

    The squares of its entries fall out of range, and its products with other columns lose their
    digits: 780 eps of orthogonality in single precision where the bound is the root of tiny.
    """
    return float(jnp.finfo(dtype).tiny / jnp.finfo(dtype).eps) ** 0.5


def rotation(a: jax.Array, b: jax.Array, c: jax.Array, rows: int, *, refine: bool):
    """Return the rotations that make pairs of columns x, y orthogonal, from their products.

    The tangent t of the angle is the smaller root of t^2 + t (b - a)/|c| = 1.

    Args:
        a: |x|^2.
        b: |y|^2.
        c: x^H y.
        rows: entries of a column.
        refine: whether the platform's reciprocal root, that of a GPU, needs a step of Newton.

    Returns:
        cos, sin (with the phase of conj(c)), the square |c|^2/(a b) of the cosine between the
        columns before (0 where they stay), and |t|; shaped as a.
    """
    size = jnp.abs(c)
    counted = jnp.minimum(a, b) > least_norm(a.dtype) ** 2
    # A square, in two divisions: the cosine takes two roots more, a tenth of the whole (4 x 4).
    square = jnp.where(counted, (size / a) * (size / b), 0)
    # What is orthogonal to rounding stays: of columns of equal norms it would turn by any angle, in
    # every sweep, and the roundings of a thousand rotations are no rounding any more.
    enough = rows * _tolerances.eps(a.dtype) ** 2
    rotated = jnp.where(counted, square > enough, size > 0)
    signed = size if jnp.iscomplexobj(c) else c
    divisor = jnp.where(size > 0, signed, 1)
    zeta = (b - a) / (2 * divisor)
    steep = jnp.abs(zeta)  # up to 1/tiny, whose square is out of range
    bounded = jnp.minimum(steep, 1 / _tolerances.eps(a.dtype))
    t = 1 / (steep + jnp.maximum(steep, jnp.sqrt(1 + bounded * bounded)))
    t = jnp.where(rotated, jnp.where(zeta < 0, -t, t), 0)
    secant = 1 + t * t
    cos = lax.rsqrt(secant)
    if refine:
        # It errs to one side, and a few hundred rotations later V is off by 93 eps (32 x 32, H200;
        # so by 34). On CPU the step takes an eighth of the whole, and adds roundings.
        cos = cos + 0.5 * cos * (1 - secant * cos * cos)
    sin = cos * t
    if jnp.iscomplexobj(c):
        sin = (sin / divisor).astype(c.dtype) * jnp.conj(c)
    return cos.astype(c.dtype), sin, jnp.where(t == 0, 0, square), jnp.abs(t)


def _sum(products: jax.Array, chunked: bool) -> jax.Array:
    """Return the sums of (pairs, m, chunk) over m."""
    m = products.shape[1]
    parts = -(-products.size // SUM)
    if not chunked or parts > 4:
        return jnp.sum(products, axis=1)
    rows = -(-m // parts)
    sums = (jnp.sum(products[:, i : i + rows], axis=1) for i in range(0, m, rows))
    return functools.reduce(jnp.add, sums)


def _angles(x: jax.Array, y: jax.Array, chunked: bool):
    """Return the `rotation` of the pairs x, y (pairs, m, chunk); each (pairs, chunk)."""
    a, b = (_sum(jnp.real(z * jnp.conj(z)), chunked) for z in (x, y))
    c = _sum(jnp.conj(x) * y, chunked)
    a, b, c = lax.optimization_barrier((a, b, c))
    return rotation(a, b, c, x.shape[1], refine=not chunked)


def _orthogonalize(columns: jax.Array, rows: int, chunked: bool) -> jax.Array:
    """Rotate (n, rows of A and V, chunk) until the columns of A are orthogonal to rounding."""
    n = columns.shape[0]
    real = jnp.finfo(columns.dtype).dtype
    enough = _tolerances.eps(real)
    if n < 2:
        return columns

    def round_(_, carry):
        c, square, tangent = carry
        x, y = c.left, c.right
        angles = _angles(x[:, :rows], y[:, :rows], chunked)
        cos, sin, squares, tangents = lax.optimization_barrier(angles)
        cos, sin = cos[:, None], sin[:, None]
        x, y = cos * x - sin * y, jnp.conj(sin) * x + cos * y
        # fmax ignores NaN, so that a matrix with NaN does not end the rotations of the others.
        square = jnp.fmax(square, jnp.max(squares, axis=0))
        tangent = jnp.fmax(tangent, jnp.max(tangents, axis=0))
        return _move(Columns(x, y, c.out)), square, tangent

    def sweep(carry):
        c, _, number = carry
        nothing = jnp.zeros(columns.shape[2:], real)
        c, square, tangent = lax.fori_loop(
            0, n - 1 + n % 2, round_, (c, nothing, nothing), unroll=UNROLL
        )
        cosine = jnp.sqrt(square)
        # A rotation undoes the others by at most cosine * tangent in the longer column of a pair,
        # and in the shorter one, from which it takes its part along the longer, by cosine^2: with
        # columns of very different norms the angle alone tells nothing.
        return c, jnp.max(n * cosine * jnp.maximum(tangent, cosine)), number + 1

    def unfinished(carry):
        _, left_over, number = carry
        return (left_over > enough) & (number < MAX_SWEEPS)

    start = (_seat(columns), jnp.asarray(jnp.inf, real), jnp.zeros((), jnp.int32))
    return _unseat(lax.while_loop(unfinished, sweep, start)[0])


def _sort(columns: jax.Array, S: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sort the columns (n, rows, chunk) by S (n, chunk), largest first: odd-even transposition.

    Selections of whole rows of the batch, where a gather would move entry by entry.
    """
    n = S.shape[0]

    def exchange(x, keep, first):
        last = first + (n - first) // 2 * 2
        pairs = x[first:last].reshape(-1, 2, *x.shape[1:])
        keep = keep.reshape(-1, *[1] * (x.ndim - 2), x.shape[-1])
        a, b = pairs[:, 0], pairs[:, 1]
        pairs = jnp.stack([jnp.where(keep, a, b), jnp.where(keep, b, a)], axis=1)
        return jnp.concatenate([x[:first], pairs.reshape(-1, *x.shape[1:]), x[last:]])

    def both(_, carry):
        columns, S = carry
        for first in (0, 1):
            keep = S[first : n - 1 : 2] >= S[first + 1 : n : 2]
            both = exchange(columns, keep, first), exchange(S, keep, first)
            columns, S = lax.optimization_barrier(both)
        return columns, S

    return lax.fori_loop(0, (n + 1) // 2, both, (columns, S)) if n > 1 else (columns, S)


def complete(U: jax.Array, given: jax.Array) -> jax.Array:
    """Fill the columns of U (columns, m, chunk) that are not given with orthonormal ones.

    The unit vector farthest from the columns so far loses its part along them, twice.
    """
    m = U.shape[1]

    def fill(j, U):
        room = 1 - jnp.sum(jnp.real(U * jnp.conj(U)), axis=0)  # (m, chunk)
        at = jnp.argmax(room, axis=0)
        x = (jnp.arange(m)[:, None] == at[None]).astype(U.dtype)
        for _ in range(2):
            x = x - jnp.sum(U * jnp.sum(jnp.conj(U) * x[None], axis=1, keepdims=True), axis=0)
        norm = jnp.sqrt(jnp.sum(jnp.real(x * jnp.conj(x)), axis=0))
        old = lax.dynamic_index_in_dim(U, j, keepdims=False)
        have = lax.dynamic_index_in_dim(given, j, keepdims=False)
        x = jnp.where(have[None], old, x / norm[None].astype(U.dtype))
        return lax.dynamic_update_index_in_dim(U, x, j, axis=0)

    return lax.fori_loop(0, U.shape[0], fill, U)


def _size(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a (n, m, chunk) divided by a power of two for each matrix, and the powers (chunk,).

    Where a matrix is not finite its power is NaN, and so are all of its entries.
    """
    scale = magnitude(a, (0, 1))
    return a / scale.astype(a.dtype), scale[0, 0]


def _norms(columns: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.real(columns * jnp.conj(columns)), axis=1))


def _triplets(
    full_matrices: bool,
    signs: str | None,
    chunked: bool,
    a: jax.Array,
    V: jax.Array | None = None,
):
    """Return U^T (columns, m, chunk), S (n, chunk), V^T (n, n, chunk) of a, (n, m, chunk), m >= n.

    Args:
        full_matrices: whether U has m columns.
        signs: "U" or "V", whose leading entries become positive; None leaves signs as they are.
        chunked: see `jacobi`.
        a: columns of the matrices.
        V: the right vectors so far where a is a matrix times them, (n, n, chunk).
    """
    n, m, size = a.shape
    columns, scale = _size(a)
    if V is None:
        V = jnp.broadcast_to(jnp.eye(n, dtype=a.dtype)[..., None], (n, n, size))
    columns = _orthogonalize(jnp.concatenate([columns, V], axis=1), m, chunked)
    columns, S = _sort(columns, _norms(columns[:, :m]))
    given = S > least_norm(S.dtype)
    U = columns[:, :m] / jnp.where(given, S, 1).astype(a.dtype)[:, None]
    U = jnp.where(given[:, None], U, 0)
    if full_matrices and m > n:
        U = jnp.concatenate([U, jnp.zeros((m - n, m, size), a.dtype)])
        given = jnp.concatenate([given, jnp.zeros((m - n, size), bool)])
    U = lax.cond(jnp.all(given), lambda U: U, lambda U: complete(U, given), U)
    V = columns[:, m:]
    sign_U = sign_V = (scale - scale + 1).astype(a.dtype)[None]  # NaN where a is not finite
    if signs == "U":
        sign_U, sign_V = (sign_U * x for x in phases_of_pairs(U, V, 0, 1))
    elif signs == "V":
        sign_V, sign_U = (sign_U * x for x in phases_of_pairs(V, U, 0, 1))
    return U * sign_U[:, None], S * scale[None], V * sign_V[:, None]


def _values(chunked: bool, a: jax.Array) -> tuple[jax.Array]:
    columns, scale = _size(a)
    S = _norms(_orthogonalize(columns, a.shape[1], chunked))
    return (-jnp.sort(-S, axis=0) * scale[None],)


def jacobi(
    a: jax.Array,
    full_matrices: bool,
    *,
    V: jax.Array | None = None,
    chunked: bool = True,
    signs: bool = False,
) -> SVDResult:
    """Return the SVD of (..., m, n) by one-sided Jacobi.

    Args:
        a: matrices (..., m, n).
        full_matrices: whether U has m columns and Vh n rows.
        V: unitary (..., n, n), m >= n: the SVD of a V^H is wanted, and a is nearly orthogonal.
        chunked: rotate a few matrices at a time (CPU) or all of them (accelerators).
        signs: fix the signs of real matrices, while the batch is the minor axis: by itself that
            takes as long as the rest (100,000 of 3 x 3).
    """
    m, n = a.shape[-2:]
    arrays = (a.mT if m < n else a,) if V is None else (a, V)  # no adjoint: nothing to conjugate
    leading = None if not signs else "V" if m < n else "U"
    function = functools.partial(_triplets, full_matrices, leading, chunked)
    U, S, V = over_chunks(function, *arrays, chunked=chunked)
    if m < n:
        return SVDResult(jnp.conj(V).mT, S, U)
    return SVDResult(U.mT, S, jnp.conj(V))


def jacobi_values(a: jax.Array, *, chunked: bool = True) -> jax.Array:
    """Return the singular values of (..., m, n) alone."""
    a = a.mT if a.shape[-2] < a.shape[-1] else a
    return over_chunks(functools.partial(_values, chunked), a, chunked=chunked)[0]

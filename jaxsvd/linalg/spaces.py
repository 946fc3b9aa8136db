"""The four fundamental subspaces of a matrix, and the angles between two of them.

The derivative of a basis. A basis Q_0 is constant and the projector moves, Pi(A): for any loss that
depends on the span alone

    Q = Pi Q_0 (Q_0^H Pi Q_0)^(-1/2) = Pi Q_0 (I + X/2) + O(|dA|^4),   X = Q_0^H (I - Pi) Q_0

so the products on the right have the exact derivatives up to the third. The projector itself is a
spectral map, of a partial isometry: Pi = R R^H or R^H R, R = U_1 V_1^H.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _checks
from .._types import SVDResult
from ..algorithms.products import adjoint, adjoint_product, product
from ..primitives.batching import over_leading_axes, vmapped
from ..primitives.svd import svdvals
from ..rules.closed import cut_at
from . import maps


class Subspaces(NamedTuple):
    """Orthonormal bases, as columns, of the four fundamental subspaces of A (m, n), r = rank A.

    Attributes:
        range: of the column space, (..., m, r).
        null: of the null space, (..., n, n - r).
        row: of the row space, the range of A^H, (..., n, r).
        left_null: of the null space of A^H, (..., m, m - r).
    """

    range: jax.Array
    null: jax.Array
    row: jax.Array
    left_null: jax.Array


class Cut(NamedTuple):
    """Where a spectrum is cut; static.

    Attributes:
        rtol: relative to s_1; None for the default.
        rank: how many values count, in place of a tolerance.
    """

    rtol: float | None
    rank: int | None


def _turned(Q: jax.Array, moved: jax.Array) -> jax.Array:
    """Return Pi Q (I + X/2) from Q and Pi Q."""
    X = adjoint_product(Q, Q - moved)
    return moved + product(moved, X) / 2


class _Spaces:
    """The SVD of one matrix, cut."""

    def __init__(self, name: str, a: jax.Array, cut: Cut, *, full: bool):
        a, _ = maps.scaled(a)
        self.W = maps.fixed_numbers(a, full_matrices=full)
        self.cut, self.k = cut, min(a.shape)
        U, S, Vh = self.W
        thin = SVDResult(U[:, : self.k], S, Vh[: self.k])
        if self.k == 0:
            self.R, self.kept = a, jnp.sum(S > 0)
            return
        self.R = maps.partial_isometry(name, a, thin, cut.rtol, cut.rank)
        self.kept = jnp.sum(S > cut_at(S, a.shape, cut.rtol, cut.rank))

    def _leading(self, X: jax.Array) -> jax.Array:
        if self.cut.rank is not None:
            return X[:, : self.cut.rank]
        X = X[:, : self.k]  # times the mask: NaN stays NaN
        return X * (jnp.arange(self.k) < self.kept).astype(X.dtype)[None, :]

    def _trailing(self, X: jax.Array) -> jax.Array:
        if self.cut.rank is not None:
            return X[:, self.cut.rank :]
        # Smallest values first, so that the columns that count come first here too.
        return (X * (jnp.arange(X.shape[1]) >= self.kept).astype(X.dtype)[None, :])[:, ::-1]

    def range(self) -> jax.Array:
        Q = self._leading(self.W.U)
        return _turned(Q, product(self.R, adjoint_product(self.R, Q)))

    def row(self) -> jax.Array:
        Q = self._leading(adjoint(self.W.Vh))
        return _turned(Q, adjoint_product(self.R, product(self.R, Q)))

    def null(self) -> jax.Array:
        Q = self._trailing(adjoint(self.W.Vh))
        return _turned(Q, Q - adjoint_product(self.R, product(self.R, Q)))

    def left_null(self) -> jax.Array:
        Q = self._trailing(self.W.U)
        return _turned(Q, Q - product(self.R, adjoint_product(self.R, Q)))


@functools.partial(jax.jit, static_argnames=("name", "cut"))
def _spaces(a: jax.Array, name: str, cut: Cut) -> Any:
    def of_matrix(a):
        m, n = a.shape
        if name == "orth":
            return _Spaces(name, a, cut, full=False).range()
        if name == "null_space":
            return _Spaces(name, a, cut, full=m < n).null()
        spaces = _Spaces(name, a, cut, full=m != n)
        return Subspaces(spaces.range(), spaces.null(), spaces.row(), spaces.left_null())

    result = over_leading_axes(of_matrix, _checks.working(a))
    return jax.tree.map(lambda x: _checks.restore(x, a.dtype), result)


def _checked(name: str, a: Any, rtol: Any, rank: Any) -> tuple[jax.Array, str, Cut]:
    full = f"linalg.{name}"
    a = _checks.matrix(full, a)
    rtol = _checks.tolerance(full, "rtol", rtol)
    if rank is not None:
        rank = _checks.static_int(full, "rank", rank, 0, min(a.shape[-2:]))
    return a, name, Cut(rtol, rank)


def orth(a: Any, rtol: float | None = None, *, rank: int | None = None) -> jax.Array:
    """Return an orthonormal basis of the range of A, the leading left singular vectors.

    Shapes are static, so without ``rank`` the columns beyond the rank are zero: Q Q^H is the
    projector on the range all the same. For a loss that depends on the span alone, derivatives up
    to the second are exact on matrices of constant rank, ties included.

    Cost: one SVD and four products of m n k.

    Args:
        a: array (..., m, n), dtypes as in `jaxsvd.svd`.
        rtol: static; singular values up to rtol s_1 count as zero; default
            (min(m, n) + sqrt(max(m, n))) eps.
        rank: static number of columns, where it is known; rtol is then not used.

    Returns:
        Array (..., m, min(m, n)), or (..., m, rank).

    Raises:
        TypeError: ``a`` is not an array; ``rank`` or ``rtol`` is not static.
        ValueError: fewer than two axes; ``rank`` or ``rtol`` out of range; a third derivative.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.linalg.orth(jnp.array([[2.0, 2.0], [0.0, 0.0]])))
        [[1. 0.]
         [0. 0.]]

    References:
        Golub and Van Loan (2013), "Matrix Computations", section 2.4.
    """
    return _spaces(*_checked("orth", a, rtol, rank))


def null_space(a: Any, rtol: float | None = None, *, rank: int | None = None) -> jax.Array:
    """Return an orthonormal basis of the null space of A, the trailing right singular vectors.

    Shapes are static, so without ``rank`` there are n columns: the first n - r are the basis, the
    others zero. Derivatives as in `orth`.

    Cost: one SVD, with full matrices where m < n, and four products of m n^2.

    Args:
        a: array (..., m, n), dtypes as in `jaxsvd.svd`.
        rtol: static; as in `orth`.
        rank: static rank of A, where it is known; rtol is then not used.

    Returns:
        Array (..., n, n), or (..., n, n - rank).

    Raises:
        TypeError: ``a`` is not an array; ``rank`` or ``rtol`` is not static.
        ValueError: fewer than two axes; ``rank`` or ``rtol`` out of range; a third derivative.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jnp.array([[1.0, 1.0]])
        >>> N = jaxsvd.linalg.null_space(A, rank=1)
        >>> bool(jnp.allclose(A @ N, 0, atol=1e-6))
        True

    References:
        Golub and Van Loan (2013), "Matrix Computations", section 2.4.
    """
    return _spaces(*_checked("null_space", a, rtol, rank))


def subspaces(a: Any, rtol: float | None = None, *, rank: int | None = None) -> Subspaces:
    """Return bases of the four fundamental subspaces of A from one SVD.

        C^m = range(A) + null(A^H),   C^n = range(A^H) + null(A),   both sums orthogonal

    Without ``rank`` the bases are padded with columns of zeros as in `orth` and `null_space`.
    Derivatives as there.

    Cost: one SVD with full matrices: memory m^2 + n^2.

    Args:
        a: array (..., m, n), dtypes as in `jaxsvd.svd`.
        rtol: static; as in `orth`.
        rank: static rank of A, where it is known; rtol is then not used.

    Returns:
        Subspaces(range, null, row, left_null), arrays (..., m, r), (..., n, n - r), (..., n, r) and
        (..., m, m - r), r = rank; without it (..., m, k), (..., n, n), (..., n, k), (..., m, m),
        k = min(m, n).

    Raises:
        TypeError: ``a`` is not an array; ``rank`` or ``rtol`` is not static.
        ValueError: fewer than two axes; ``rank`` or ``rtol`` out of range; a third derivative.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> spaces = jaxsvd.linalg.subspaces(jnp.array([[2.0, 0.0], [0.0, 0.0]]), rank=1)
        >>> print(jnp.abs(spaces.null))
        [[0.]
         [1.]]

    References:
        Strang (1993), "The fundamental theorem of linear algebra".
    """
    return _spaces(*_checked("subspaces", a, rtol, rank))


@functools.partial(jax.jit, static_argnames=("rtol", "dtype"))
def _principal_angles(a, b, rtol, dtype):
    def basis(a):
        spaces = _Spaces("principal_angles", a, Cut(rtol, None), full=False)
        return spaces.range(), spaces.kept

    def of_matrix(a, b):
        (Q, rank_a), (R, rank_b) = basis(a), basis(b)
        k = min(Q.shape[1], R.shape[1])
        if k == 0:
            return jnp.zeros((0,), jnp.finfo(a.dtype).dtype)
        M = adjoint_product(Q, R)
        # Sines from the smaller basis: the other leaves k columns too few or too many.
        if Q.shape[1] >= R.shape[1]:
            outside, columns = R - product(Q, M), rank_b
        else:
            outside, columns = Q - product(R, adjoint(M)), rank_a
        sines, cosines = svdvals(outside), svdvals(M)
        count, i = jnp.minimum(rank_a, rank_b), jnp.arange(k)
        # Largest angle first. Dimensions by which the projected space is larger have sines of 1.
        sine = sines[jnp.clip(i + columns - count, 0, k - 1)]
        cosine = cosines[jnp.clip(count - 1 - i, 0, k - 1)]
        counts = i < count
        # Both at once: sine and cosine are each exact to eps where they are small.
        angle = jnp.arctan2(jnp.where(counts, sine, 0), jnp.where(counts, cosine, 1))
        return angle + 0 * jnp.sum(cosines)  # NaN in a or b reaches every angle

    return _checks.restore(vmapped(of_matrix, a.ndim - 2)(a, b), dtype)


def principal_angles(a: Any, b: Any, rtol: float | None = None) -> jax.Array:
    """Return the angles between the ranges of A and B in radians, largest first.

        cos theta_i = s_i(Q^H R),   sin theta_i = s_i((I - Q Q^H) R),   theta = atan2(sin, cos)

    with bases Q, R by `orth`. Small angles come from the sines and large ones from the cosines, so
    each is right to a few eps, absolutely; from the cosines alone 1e-8 would be lost. As in
    `scipy.linalg.subspace_angles`. Deficient ranks leave fewer angles; zeros follow.

    Derivatives: exact at distinct angles; at equal ones for sums of a function over them, to first
    order. At 0 an angle has a kink, like a norm, and gets a finite subgradient.

    Cost: two SVDs of m x p, m x q and two of their products.

    Args:
        a: array (..., m, p), dtypes as in `jaxsvd.svd`.
        b: array (..., m, q) with the same leading axes.
        rtol: static; as in `orth`, for both.

    Returns:
        Array (..., min(m, p, q)), real.

    Raises:
        TypeError: an argument is not an array, or ``rtol`` is not a Python float.
        ValueError: shapes that do not fit; ``rtol`` outside 0 <= rtol < 1.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> a = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> b = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1e-10]])
        >>> print(jaxsvd.linalg.principal_angles(a, b))
        [1e-10 0e+00]

    References:
        Bjorck and Golub (1973), Math. Comp. 27, section 3; Knyazev and Argentati (2002), SIAM J.
        Sci. Comput. 23, algorithm 3.1.
    """
    name = "linalg.principal_angles"
    a, b = _checks.matrix(name, a), _checks.matrix(name, b, "b")
    if a.shape[:-1] != b.shape[:-1]:
        raise ValueError(
            f"{name}: `b` must have shape {(*a.shape[:-1], 'q')}, as `a` has shape {a.shape}, got "
            f"{b.shape}"
        )
    (a, b), dtype = maps.common(a, b)
    return _principal_angles(a, b, _checks.tolerance(name, "rtol", rtol), dtype)

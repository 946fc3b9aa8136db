"""Nearest orthogonal matrices: polar factors, Procrustes problems, alignment of point sets."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .. import _checks
from ..algorithms.products import adjoint, adjoint_product, product
from ..primitives.batching import over_leading_axes, vmapped
from ..primitives.svd import numbers
from ..rules.dense import herm
from . import maps


class Polar(NamedTuple):
    """The factors of A = U P (right) or A = P U (left).

    Attributes:
        U: orthonormal columns, or rows where m < n, (..., m, n).
        P: Hermitian positive semidefinite, (..., n, n); (..., m, m) for the left side.
    """

    U: jax.Array
    P: jax.Array


class Procrustes(NamedTuple):
    """The solution of an orthogonal Procrustes problem.

    Attributes:
        R: unitary, (..., n, n).
        scale: the sum of the singular values of A^H B, (...,), real.
    """

    R: jax.Array
    scale: jax.Array


class Alignment(NamedTuple):
    """The rigid motion p -> R p + t.

    Attributes:
        R: rotation, det R = 1, (..., d, d).
        t: translation, (..., d).
    """

    R: jax.Array
    t: jax.Array


def _polar_of_matrix(a: jax.Array, side: str) -> Polar:
    if min(a.shape) == 0:
        size = a.shape[1] if side == "right" else a.shape[0]
        return Polar(a, jnp.zeros((size, size), a.dtype))
    a, scale = maps.scaled(a)
    W = numbers(a)
    # The part of U over the nonzero values is smooth at constant rank, and so is P made with it.
    R = maps.partial_isometry("polar", a, W)
    P = adjoint_product(R, a) if side == "right" else product(a, adjoint(R))
    return Polar(maps.orthogonal_factor("polar", a, W), herm(P) * scale)


@functools.partial(jax.jit, static_argnames=("side",))
def _polar(a: jax.Array, side: str) -> Polar:
    result = over_leading_axes(lambda a: _polar_of_matrix(a, side), _checks.working(a))
    return jax.tree.map(lambda x: _checks.restore(x, a.dtype), result)


def polar(a: Any, side: str = "right") -> Polar:
    """Return the polar decomposition A = U P (right) or A = P U (left), as `jax.scipy.linalg`.

        U = W V^H,   P = V S V^H = (A^H A)^(1/2)   or   P = W S W^H = (A A^H)^(1/2),   A = W S V^H
        dU: W [(X - X^H)_ij / (s_i + s_j)] V^H + (I - U U^H) dA P^-1,   X = W^H dA V

    No difference of singular values occurs, so first and second derivatives are exact at every
    tie. Where A has not full rank, P has them on matrices of constant rank; U is not unique there
    (null vectors are matched as the SVD returns them) and gets the first derivative of one of its
    continuations.

    Cost: one SVD and two products of m n k; a derivative about ten products of m n k.

    Args:
        a: array (..., m, n), dtypes as in `jaxsvd.svd`.
        side: static, "right" or "left".

    Returns:
        Polar(U, P): arrays (..., m, n) and (..., n, n), or (..., m, m) for the left side.

    Raises:
        TypeError: ``a`` is not an array.
        ValueError: ``a`` has fewer than two axes; unknown side; a third derivative.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> U, P = jaxsvd.linalg.polar(jnp.array([[0.0, -2.0], [3.0, 0.0]]))
        >>> print(U + 0.0)
        [[ 0. -1.]
         [ 1.  0.]]
        >>> print(P + 0.0)
        [[3. 0.]
         [0. 2.]]

    References:
        Higham (2008), "Functions of Matrices", theorem 8.1.
    """
    name = "linalg.polar"
    a = _checks.matrix(name, a)
    return _polar(a, _checks.choice(name, "side", side, ("right", "left")))


@jax.jit
def _orthogonalize(a: jax.Array) -> jax.Array:
    def of_matrix(a):
        if min(a.shape) == 0:
            return a
        a, _ = maps.scaled(a)
        return maps.orthogonal_factor("orthogonalize", a, numbers(a))

    return _checks.restore(over_leading_axes(of_matrix, _checks.working(a)), a.dtype)


def orthogonalize(a: Any) -> jax.Array:
    """Return the nearest matrix with orthonormal columns (rows where m < n): U V^H.

        argmin |Q - A| over Q^H Q = I, in every unitarily invariant norm

    The unitary factor of `polar`, with its derivatives: exact at every tie. Of all orthonormal
    bases of the columns it changes A least, and it treats all columns alike, unlike QR.

    Cost: one SVD and one product of m n k; a derivative four products of m n k.

    Args:
        a: array (..., m, n), dtypes as in `jaxsvd.svd`.

    Returns:
        Array (..., m, n).

    Raises:
        TypeError: ``a`` is not an array.
        ValueError: ``a`` has fewer than two axes; a third derivative.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.linalg.orthogonalize(jnp.array([[3.0, 0.0], [0.0, 0.1]])))
        [[1. 0.]
         [0. 1.]]

    References:
        Fan and Hoffman (1955); Higham (2008), "Functions of Matrices", section 8.1.
    """
    return _orthogonalize(_checks.matrix("linalg.orthogonalize", a))


@functools.partial(jax.jit, static_argnames=("dtype",))
def _procrustes(a: jax.Array, b: jax.Array, dtype: DTypeLike) -> Procrustes:
    def of_matrix(a, b):
        (a, a_scale), (b, b_scale) = maps.scaled(a), maps.scaled(b)
        M, scale = maps.scaled(adjoint_product(a, b))
        if M.shape[0] == 0:
            return Procrustes(M, jnp.zeros((), M.real.dtype))
        R = maps.orthogonal_factor("procrustes", M, numbers(M))
        total = jnp.sum(jnp.real(jnp.conj(R) * M))
        for factor in (scale, a_scale, b_scale):
            total = total * factor.real
        return Procrustes(R, total)

    result = vmapped(of_matrix, a.ndim - 2)(a, b)
    return jax.tree.map(lambda x: _checks.restore(x, dtype), result)


def procrustes(a: Any, b: Any) -> Procrustes:
    """Return the unitary R that brings A R closest to B, and the sum of the singular values.

        R = argmin |A R - B|_F = U V^H,   scale = tr S,   A^H B = U S V^H

    Reflections are allowed; for rotations of point sets take `kabsch`. Scaled by
    scale / |A|_F^2 the fit is the best one with a scale. Derivatives as in `orthogonalize`: exact
    at every tie, where A^H B has full rank.

    Cost: one product of m n^2 and one SVD of n x n.

    Args:
        a: array (..., m, n), dtypes as in `jaxsvd.svd`.
        b: array of the same shape.

    Returns:
        Procrustes(R, scale): arrays (..., n, n) and (...,).

    Raises:
        TypeError: an argument is not an array.
        ValueError: two shapes, or fewer than two axes; a third derivative.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> R, scale = jaxsvd.linalg.procrustes(A, A @ jnp.array([[0.0, 1.0], [-1.0, 0.0]]))
        >>> print(jnp.round(R, 4) + 0.0)
        [[ 0.  1.]
         [-1.  0.]]
        >>> print(scale)
        7.0

    References:
        Schonemann (1966); Golub and Van Loan (2013), "Matrix Computations", section 6.4.1.
    """
    name = "linalg.procrustes"
    a, b = _checks.matrix(name, a), _checks.matrix(name, b, "b")
    if a.shape != b.shape:
        raise ValueError(f"{name}: `b` must have the shape of `a`, {a.shape}, got {b.shape}")
    (a, b), dtype = maps.common(a, b)
    return _procrustes(a, b, dtype)


@functools.partial(jax.jit, static_argnames=("dtype",))
def _kabsch(P: jax.Array, Q: jax.Array, weights: jax.Array | None, dtype: DTypeLike) -> Alignment:
    def of_sets(P, Q, *w):
        if w:
            w = w[0] / maps.scaled(w[0])[1]
            w = (w / jnp.sum(w))[:, None]
        else:  # a scalar: XLA would fold a constant array of ones for seconds
            w = 1 / P.shape[0]
        p, q = jnp.sum(w * P, axis=0), jnp.sum(w * Q, axis=0)
        # The rotation does not depend on the units of the two sets.
        (P, _), (Q, _) = maps.scaled(P - p[None, :]), maps.scaled(Q - q[None, :])
        H, _ = maps.scaled(product((w * Q).mT, P))
        R = maps.rotation("kabsch", H)
        return Alignment(R, q - product(R, p[:, None])[:, 0])

    arrays = (P, Q) if weights is None else (P, Q, weights)
    result = vmapped(of_sets, P.ndim - 2)(*arrays)
    return jax.tree.map(lambda x: _checks.restore(x, dtype), result)


def kabsch(P: Any, Q: Any, weights: Any = None) -> Alignment:
    """Return the rotation and translation that bring the points P closest to the points Q.

        min over R^T R = I, det R = 1 and t of  sum_i w_i |R p_i + t - q_i|^2
        H = sum_i w_i (q_i - q)(p_i - p)^T = U diag(t_1 .. t_d) V^T,  det U V^T = 1,  R = U V^T
        dR = U [(X - X^T)_ij / (t_i + t_j)] V^T,   X = U^T dH V

    with the sign of a reflection moved into t_d = -s_d. Only sums t_i + t_j divide, so first and
    second derivatives are exact for symmetric sets (a cube: all t equal) and for planar ones
    (t_d = 0). There is no derivative where t_{d-1} + t_d = 0, where the best rotation is not
    unique: collinear points, or a mirror image with s_d = s_{d-1}. The values are finite there.

    Cost: three passes over the points, one product of N d^2, one SVD of d x d.

    Args:
        P: real array (..., N, d), the points to move.
        Q: real array of the same shape, where they should go.
        weights: real array (..., N), not negative; default all equal. Differentiable too.

    Returns:
        Alignment(R, t): arrays (..., d, d) and (..., d).

    Raises:
        TypeError: an argument is not an array, or is complex.
        ValueError: shapes that do not fit; no points; a third derivative.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> corners = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> R, t = jaxsvd.linalg.kabsch(corners, jnp.array([[0.0, 0.0], [0, 1], [-1, 1], [-1, 0]]))
        >>> print(jnp.round(R, 4) + 0.0)
        [[ 0. -1.]
         [ 1.  0.]]
        >>> print(jnp.round(jnp.abs(t), 4))
        [0. 0.]
        >>> turn = lambda Q: jnp.sum(jaxsvd.linalg.kabsch(corners, Q).R[1, 0])
        >>> print(jnp.round(jax.grad(turn)(corners), 4) + 0.0)
        [[ 0.25 -0.25]
         [ 0.25  0.25]
         [-0.25  0.25]
         [-0.25 -0.25]]

    References:
        Kabsch (1976, 1978), Acta Cryst. A 32 and 34; Umeyama (1991), IEEE PAMI 13, eqs. 40 and 43.
    """
    name = "linalg.kabsch"
    P, Q = _points(name, P, "P"), _points(name, Q, "Q")
    if P.shape != Q.shape:
        raise ValueError(f"{name}: `Q` must have the shape of `P`, {P.shape}, got {Q.shape}")
    if weights is None:
        (P, Q), dtype = maps.common(P, Q)
        return _kabsch(P, Q, None, dtype)
    weights = _real(name, _checks.array(name, weights, "weights"), "weights")
    if weights.shape != P.shape[:-1]:
        raise ValueError(
            f"{name}: `weights` must have shape {P.shape[:-1]}, one for each point, got "
            f"{weights.shape}"
        )
    (P, Q, weights), dtype = maps.common(P, Q, weights)
    return _kabsch(P, Q, weights, dtype)


def _real(name: str, x: jax.Array, argument: str) -> jax.Array:
    if jnp.iscomplexobj(x):
        raise TypeError(f"{name}: `{argument}` must be real, got dtype {x.dtype}")
    return x


def _points(name: str, points: Any, argument: str) -> jax.Array:
    points = _real(name, _checks.matrix(name, points, argument), argument)
    if 0 in points.shape[-2:]:
        raise ValueError(
            f"{name}: `{argument}` must have shape (..., N, d) with N, d >= 1, got {points.shape}"
        )
    return points

"""Pseudoinverse, least squares, total least squares."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .. import _checks
from ..algorithms.products import product
from ..primitives.batching import over_leading_axes, vmapped
from ..primitives.core import core_svd
from . import maps


@functools.partial(jax.jit, static_argnames=("rtol",))
def _pinv(a: jax.Array, rtol: float | None) -> jax.Array:
    def of_matrix(a):
        a, scale = maps.scaled(a)
        return maps.pseudoinverse("pinv", a, rtol) / scale

    return _checks.restore(over_leading_axes(of_matrix, _checks.working(a)), a.dtype)


def pinv(a: Any, rtol: float | None = None) -> jax.Array:
    """Return the pseudoinverse A^+ = V_1 S_1^-1 U_1^H over the singular values above rtol s_1.

        dA^+ = -A^+ dA A^+ + (A^H A)^+ dA^H (I - A A^+) + (I - A^+ A) dA^H (A A^H)^+

    which is the derivative on matrices of constant rank, where the dropped values are zero; for
    others the dropped triplets are accounted for, so that first and second derivatives are those
    of the function as it stands. There is none where a singular value stands at the cut. Ties and
    the condition of A are harmless: no difference of singular values and no square is formed.
    Scales of 1e160 and 1e-160 are as good as 1.

    Cost: one SVD and a product of m n k; a first derivative about six products of that size.

    Args:
        a: array (..., m, n), dtypes as in `jaxsvd.svd`.
        rtol: static; values up to rtol s_1 count as zero; default
            (min(m, n) + sqrt(max(m, n))) eps.

    Returns:
        Array (..., n, m).

    Raises:
        TypeError: ``a`` is not an array, or ``rtol`` is not a Python float.
        ValueError: ``a`` has fewer than two axes; ``rtol`` outside 0 <= rtol < 1; a third
            derivative.

    Example:
        The derivative at a matrix of rank one, along a direction that keeps the rank:

        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.array([2.0, 0.0]))
        >>> print(jaxsvd.linalg.pinv(A))
        [[0.5 0. ]
         [0.  0. ]]
        >>> dA = jnp.array([[4.0, 2.0], [0.0, 0.0]])
        >>> print(jax.jvp(jaxsvd.linalg.pinv, (A,), (dA,))[1])
        [[-1.   0. ]
         [ 0.5  0. ]]

    References:
        Golub and Pereyra (1973), SIAM J. Numer. Anal. 10, eq. 4.12.
    """
    name = "linalg.pinv"
    return _pinv(_checks.matrix(name, a), _checks.tolerance(name, "rtol", rtol))


@functools.partial(jax.jit, static_argnames=("rtol", "dtype"))
def _lstsq(a: jax.Array, b: jax.Array, rtol: float | None, dtype: DTypeLike) -> jax.Array:
    def of_matrix(a, b):
        a, scale = maps.scaled(a)
        return product(maps.pseudoinverse("lstsq", a, rtol), b) / scale

    return _checks.restore(vmapped(of_matrix, a.ndim - 2)(a, b), dtype)


def lstsq(a: Any, b: Any, rtol: float | None = None) -> jax.Array:
    """Return the least squares solution of minimum norm, x = A^+ b.

        x = argmin |x|_2 among the minimisers of |A x - b|_2

    of any shape and rank. Differentiable in both arguments; the derivative in A is that of `pinv`,
    right at ties and at constant rank, in b it is A^+ itself.

    Cost: one SVD and two products of m n (k + d); a derivative about six products of m n k.

    Args:
        a: array (..., m, n), dtypes as in `jaxsvd.svd`.
        b: array (..., m) or (..., m, d) with the leading axes of ``a``: it counts as vectors where
            it has one axis less than ``a``.
        rtol: static; singular values up to rtol s_1 count as zero; default
            (min(m, n) + sqrt(max(m, n))) eps.

    Returns:
        Array (..., n) or (..., n, d).

    Raises:
        TypeError: an argument is not an array, or ``rtol`` is not a Python float.
        ValueError: shapes that do not fit; ``rtol`` outside 0 <= rtol < 1; a third derivative.

    Example:
        The line through three points and the slope's derivative with respect to their heights:

        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jnp.array([[1.0, -1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> b = jnp.array([1.0, 2.0, 3.0])
        >>> print(jaxsvd.linalg.lstsq(A, b))
        [2. 1.]
        >>> print(jax.grad(lambda b: jaxsvd.linalg.lstsq(A, b)[1])(b))
        [-0.5 0. 0.5]

    References:
        Golub and Van Loan (2013), "Matrix Computations", section 5.5.2.
    """
    name = "linalg.lstsq"
    a = _checks.matrix(name, a)
    b, vector = maps.right_hand_sides(name, a, b)
    (a, b), dtype = maps.common(a, b)
    x = _lstsq(a, b, _checks.tolerance(name, "rtol", rtol), dtype)
    return x[..., 0] if vector else x


@functools.partial(jax.jit, static_argnames=("dtype",))
def _tls(a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    n = a.shape[-1]

    def of_matrix(a, b):
        if n == 0 or b.shape[-1] == 0:
            return jnp.zeros((n, b.shape[-1]), a.dtype)
        Vh = core_svd(jnp.concatenate([a, b], axis=-1), n, method="full").Vh
        return jnp.linalg.solve(Vh[:, :n], Vh[:, n:])

    return _checks.restore(vmapped(of_matrix, a.ndim - 2)(a, b), dtype)


def tls(a: Any, b: Any) -> jax.Array:
    """Return the total least squares solution: errors in A as well as in b.

        min |[dA dB]|_F  such that  (A + dA) X = B + dB;      V_11^H X = V_21^H

    with V_1 = [V_11; V_21] the n leading right singular vectors of [A B]. X depends on their span
    alone, so its derivatives come from `core_svd`: exact to every order, ties among the n leading
    or among the d other values included. There is no derivative where s_n = s_{n+1}, and no
    solution where V_11 is singular (the nongeneric case: the result is infinite or NaN).

    Cost: one SVD of m x (n + d) and one solve of n x n.

    Args:
        a: array (..., m, n) with m >= n, of full column rank.
        b: array (..., m) or (..., m, d) with the leading axes of ``a``: it counts as vectors where
            it has one axis less than ``a``.

    Returns:
        Array (..., n) or (..., n, d).

    Raises:
        TypeError: an argument is not an array.
        ValueError: shapes that do not fit; fewer rows than columns.

    Example:
        Points on a line through the origin, the last one off it; both coordinates err:

        >>> import jax.numpy as jnp, jaxsvd
        >>> x, y = jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 4.0, 7.0])
        >>> print(jaxsvd.linalg.tls(x[:, None], y))
        [2.2239]

    References:
        Golub and Van Loan (1980), "An analysis of the total least squares problem", theorem 4.1;
        Golub and Van Loan (2013), "Matrix Computations", algorithm 6.3.1.
    """
    name = "linalg.tls"
    a = _checks.matrix(name, a)
    if a.shape[-2] < a.shape[-1]:
        raise ValueError(f"{name}: `a` must have shape (..., m, n) with m >= n, got {a.shape}")
    b, vector = maps.right_hand_sides(name, a, b)
    (a, b), dtype = maps.common(a, b)
    x = _tls(a, b, dtype)
    return x[..., 0] if vector else x

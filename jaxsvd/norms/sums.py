"""Norms and penalties that are sums over singular values; derivatives right at every tie.

All stand on `spectral_sum` and `core_svd`, whose rules are exact at repeated and zero values. What
is not linear in the size of A is computed on A divided by a power of two, so that squares and
powers neither overflow nor vanish.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from .. import _checks, _tolerances
from ..algorithms.products import adjoint, adjoint_product, product
from ..operators.adapters import as_operator
from ..primitives.batching import over_leading_axes, power_of_two_scale
from ..primitives.core import core_svd
from ..primitives.spectral import spectral_sum


def dense(name: str, a: Any) -> jax.Array:
    """Return a matrix in any form as an array (..., m, n); an operator is multiplied out."""
    if hasattr(a, "ndim") and not hasattr(a, "indices"):
        return _checks.matrix(name, a)
    return as_operator(a, name=name).to_dense()


def _squares(a: jax.Array) -> jax.Array:
    return jnp.sum(jnp.real(a * jnp.conj(a)))


def _root(x: jax.Array, power: float = 0.5) -> jax.Array:
    """Return x^power with derivative 0 at 0."""
    return jnp.where(x == 0, 0, jnp.where(x == 0, 1, x) ** power)


def _ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return x / y, and 0 for 0 / 0."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


@functools.partial(jax.jit, static_argnames=("of_matrix", "option"))
def _compiled(of_matrix: Callable[..., jax.Array], a: jax.Array, option: Any = None) -> jax.Array:
    """Return of_matrix(a / scale, scale, option) for each matrix, in the real dtype of a.

    The scale is a power of two next to the Frobenius norm.
    """

    def one(a):
        scale = power_of_two_scale(a)
        a = a / scale.astype(a.dtype)
        size = power_of_two_scale(_root(_squares(a)))
        return of_matrix(a / size.astype(a.dtype), scale * size, option)

    return _checks.restore(over_leading_axes(one, _checks.working(a)), a.dtype)


def _sum_over_range(f: Callable, a: jax.Array) -> jax.Array:
    """Return sum f(s_i) for f with f(0) = 0, not smooth at 0, of a matrix of norm about one.

    Values that are zero to rounding are left out, so that the derivatives are those at constant
    rank, where those at any rank are infinite.
    """
    zero = _tolerances.rank_tol(a.dtype, *a.shape)

    def kept(s):
        return jnp.where(s > zero, f(jnp.where(s > zero, s, 1)), 0)

    return spectral_sum(kept, a)


def nuclear(a: Any) -> jax.Array:
    """Return the nuclear norm, sum_i s_i: the convex envelope of the rank on the spectral ball.

    Its gradient is U V^H over the positive singular values, the smallest of the subgradients.

    Cost: one SVD.

    Args:
        a: array (..., m, n), real or complex; a sparse matrix or operator is multiplied out.

    Returns:
        Array (...,), real.

    Raises:
        TypeError: ``a`` is not a matrix in any form.
        ValueError: ``a`` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.norms.nuclear(jnp.diag(jnp.array([3.0, -2.0, 0.0]))))
        5.0

    References:
        Fazel (2002), "Matrix rank minimization with applications", section 5.1.
    """
    return _compiled(_nuclear, dense("nuclear", a))


def _nuclear(a, scale, _):
    return scale * spectral_sum(lambda s: s, a)


def schatten(a: Any, p: float) -> jax.Array:
    """Return the Schatten norm (sum_i s_i^p)^(1/p): nuclear at p = 1, Frobenius at p = 2.

    Less than 1 gives a quasi-norm that favours low rank. At zero singular values the derivative is
    that at constant rank for p <= 1; the second derivative there is infinite for 1 < p < 2.

    Cost: one SVD.

    Args:
        a: array (..., m, n), real or complex; a sparse matrix or operator is multiplied out.
        p: static number > 0; infinity for the largest singular value.

    Returns:
        Array (...,), real.

    Raises:
        TypeError: ``a`` is not a matrix in any form, p not a number.
        ValueError: p is not positive; ``a`` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.norms.schatten(jnp.diag(jnp.array([3.0, 4.0])), 2))
        5.0

    References:
        Bhatia (1997), "Matrix Analysis", section IV.2.
    """
    name = "schatten"
    if isinstance(p, Tracer):
        raise TypeError(f"{name}: `p` must be a Python number known at trace time, got a tracer")
    p = float(_checks.positive(name, "p", p))
    if p == float("inf"):
        return ky_fan(a, 1)

    return _compiled(_schatten, dense(name, a), p)


def _schatten(a, scale, p):
    # s^p is smooth at 0 to second order for p = 2 and p >= 3, and a plain kink for p = 1
    total = spectral_sum if p in (1, 2) or p >= 3 else _sum_over_range
    return scale * _root(total(lambda s: s**p, a), 1 / p)


def ky_fan(a: Any, k: int) -> jax.Array:
    """Return the Ky Fan norm, the sum of the k largest singular values.

    The gradient is U_k V_k^H; at a tie across the cut it is one of the subgradients.

    Cost: that of `core_svd`: products with A alone where A is large and k small.

    Args:
        a: array (..., m, n), real or complex, sparse matrix or operator.
        k: static int, 1 <= k <= min(m, n).

    Returns:
        Array (...,), real.

    Raises:
        TypeError: ``a`` is not a matrix in any form, k not a static int.
        ValueError: k out of range; ``a`` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.norms.ky_fan(jnp.diag(jnp.array([1.0, 4.0, 2.0])), 2))
        6.0

    References:
        Fan (1951); Overton and Womersley (1992), "Optimality conditions and duality theory for
        minimizing sums of the largest eigenvalues of symmetric matrices".
    """
    core = core_svd(a, k).C
    return jnp.real(jnp.trace(core, axis1=-2, axis2=-1))


def frobenius(a: Any) -> jax.Array:
    """Return the Frobenius norm, sqrt(sum |a_ij|^2) = sqrt(sum s_i^2), with gradient 0 at 0.

    Cost: one pass over A, no SVD.

    Args:
        a: array (..., m, n), real or complex; a sparse matrix or operator is multiplied out.

    Returns:
        Array (...,), real.

    Raises:
        TypeError: ``a`` is not a matrix in any form.
        ValueError: ``a`` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.norms.frobenius(jnp.array([[3.0, 0.0], [0.0, 4.0]])))
        5.0
    """
    return _compiled(_frobenius, dense("frobenius", a))


def _frobenius(a, scale, _):
    return scale * _root(_squares(a))


def stable_rank(a: Any) -> jax.Array:
    """Return |A|_F^2 / s_1^2, a rank that small singular values hardly change; 0 for A = 0.

    Between 1 and the rank. Where s_1 is tied the derivative is one-sided: finite, that of a
    subgradient of s_1.

    Cost: that of `core_svd` with k = 1.

    Args:
        a: array (..., m, n), real or complex; a sparse matrix or operator is multiplied out.

    Returns:
        Array (...,), real.

    Raises:
        TypeError: ``a`` is not a matrix in any form.
        ValueError: ``a`` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.norms.stable_rank(jnp.diag(jnp.array([2.0, 1.0, 1.0]))))
        1.5

    References:
        Rudelson and Vershynin (2007), "Sampling from large matrices".
    """
    return _compiled(_stable_rank, dense("stable_rank", a))


def _stable_rank(a, scale, _):
    del scale
    return _ratio(_squares(a), ky_fan(a, 1) ** 2)


def effective_rank(a: Any) -> jax.Array:
    """Return exp(H), H = -sum_i p_i log p_i the entropy of p_i = s_i / sum_j s_j; 0 for A = 0.

    Between 1 and the rank, which it reaches where all positive singular values are equal. At zero
    singular values the derivative is that at constant rank (the true one is infinite).

    Cost: two SVDs, one for each sum.

    Args:
        a: array (..., m, n), real or complex; a sparse matrix or operator is multiplied out.

    Returns:
        Array (...,), real.

    Raises:
        TypeError: ``a`` is not a matrix in any form.
        ValueError: ``a`` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.norms.effective_rank(jnp.diag(jnp.array([5.0, 5.0, 0.0]))))
        2.0

    References:
        Roy and Vetterli (2007), "The effective rank", definition 1.
    """
    return _compiled(_effective_rank, dense("effective_rank", a))


def _effective_rank(a, scale, _):
    del scale
    total = spectral_sum(lambda s: s, a)
    positive = jnp.where(total == 0, 1, total)
    weighted = _sum_over_range(lambda s: s * jnp.log(s), a)
    return jnp.where(total == 0, 0, jnp.exp(jnp.log(positive) - weighted / positive))


def log_volume(a: Any, eps: Any = 1.0) -> jax.Array:
    """Return sum_i log(1 + s_i^2 / eps) = log det(I + A^H A / eps), a smooth count of directions.

    Cost: one SVD.

    Args:
        a: array (..., m, n), real or complex; a sparse matrix or operator is multiplied out.
        eps: number > 0, may be traced: singular values well below its root count for nothing.

    Returns:
        Array (...,), real.

    Raises:
        TypeError: ``a`` is not a matrix in any form.
        ValueError: eps is not positive; ``a`` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.norms.log_volume(jnp.eye(2)))  # 2 log 2
        1.386294

    References:
        Fazel, Hindi and Boyd (2003), "Log-det heuristic for matrix rank minimization";
        Yu, Chan, You, Song and Ma (2020), equation 2 (coding rate).
    """
    name = "log_volume"
    a = dense(name, a)
    eps = jnp.asarray(_checks.positive(name, "eps", eps))
    return _log_volume(a, eps)


@jax.jit
def _log_volume(a, eps):
    working = _checks.working(a)
    width = jnp.sqrt(eps.astype(jnp.finfo(working.dtype).dtype))

    def f(s):
        # log(1 + x^2) without the square of a large x
        x = s / width.astype(s.dtype)
        large = jnp.where(x > 1, x, 1)
        small = jnp.where(x > 1, 0, x)
        return jnp.where(x > 1, 2 * jnp.log(large) + jnp.log1p(large**-2), jnp.log1p(small**2))

    return _checks.restore(spectral_sum(f, working), a.dtype)


def orthogonality(a: Any) -> jax.Array:
    """Return |A^H A - I|_F^2 = sum_i (s_i^2 - 1)^2, on the shorter side: 0 for orthonormal A.

    A polynomial in A, so its derivatives need no SVD.

    Cost: one product of the shorter side squared times the longer one.

    Args:
        a: array (..., m, n), real or complex; a sparse matrix or operator is multiplied out.

    Returns:
        Array (...,), real.

    Raises:
        TypeError: ``a`` is not a matrix in any form.
        ValueError: ``a`` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.norms.orthogonality(jnp.array([[1.0, 0.0], [0.0, 2.0]])))
        9.0

    References:
        Brock, Lim, Ritchie and Weston (2017), "Neural photo editing with introspective adversarial
        networks", section 3.2.
    """
    return _orthogonality(dense("orthogonality", a))


@jax.jit
def _orthogonality(a):
    def one(a):
        m, n = a.shape
        gram = adjoint_product(a, a) if n <= m else product(a, adjoint(a))
        return _squares(gram - jnp.eye(min(m, n), dtype=a.dtype))

    return _checks.restore(over_leading_axes(one, _checks.working(a)), a.dtype)


def tail_energy(a: Any, k: int) -> jax.Array:
    """Return sum_{i > k} s_i^2 = |A - A_k|_F^2, what the best approximation of rank k leaves.

    Zero exactly on the matrices of rank k or less, and smooth there: a penalty for a rank.

    Cost: that of `low_rank`; derivatives that of `core_svd`.

    Args:
        a: array (..., m, n), real or complex; a sparse matrix or operator is multiplied out.
        k: static int, 0 <= k <= min(m, n).

    Returns:
        Array (...,), real.

    Raises:
        TypeError: ``a`` is not a matrix in any form, k not a static int.
        ValueError: k out of range; ``a`` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.norms.tail_energy(jnp.diag(jnp.array([5.0, 2.0, 1.0])), 1))
        5.0

    References:
        Eckart and Young (1936); Mirsky (1960).
    """
    name = "tail_energy"
    a = dense(name, a)
    k = _checks.static_int(name, "k", k, 0, min(a.shape[-2:]))

    return _compiled(_tail_energy, a, k)


def _tail_energy(a, scale, k):
    if k == 0:
        return scale * (scale * _squares(a))
    U, C, Vh = core_svd(a, k)
    value = lax.stop_gradient(_squares(a - product(product(U, C), Vh)))
    # |A|^2 - |C|^2 has no correct digit where the tail is small, but all derivatives at the price
    # of those of C: they are those of numbers of the size of A in either form.
    difference = _squares(a) - _squares(C)
    return scale * (scale * (value + (difference - lax.stop_gradient(difference))))

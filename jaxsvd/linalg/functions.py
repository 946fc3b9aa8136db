"""Functions of Hermitian matrices by name: sqrtm, logm, expm, inverse roots, a distance."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import _checks
from ..primitives.batching import over_leading_axes
from ..primitives.hermitian import mapped
from . import maps


def _compiled(of_matrix: Callable) -> Callable:
    """Return the function of a matrix / scale and that scale, over leading axes, compiled."""

    def of_any(a):
        def scaled(a):
            return a if a.shape[0] == 0 else of_matrix(*maps.scaled(a))

        return _checks.restore(over_leading_axes(scaled, _checks.working(a)), a.dtype)

    return jax.jit(of_any)


@functools.cache
def _sqrtm(rtol: float | None) -> Callable:
    return _compiled(lambda a, scale: maps.square_root("sqrtm", a, rtol) * jnp.sqrt(scale))


@_compiled
def _logm(a, scale):
    # Of A / scale: f'' = 1/w^2 is no number at the ends of the range.
    shift = jnp.log(scale) * jnp.eye(a.shape[0], dtype=a.dtype)
    return mapped("linalg.logm", jnp.log, a) + shift


@jax.jit
def _expm(a: jax.Array) -> jax.Array:
    return mapped("linalg.expm", jnp.exp, a)


def _power(a: jax.Array, p: Any, ridge: Any) -> jax.Array:
    def f(w):
        one = jnp.ones((), w.dtype)
        return (w + ridge * one) ** (-one / (p * one))

    return mapped("linalg.inverse_root", f, a)


# Numbers are part of the program, which is the smaller for it; others are differentiated.
_fixed_power = jax.jit(_power, static_argnames=("p", "ridge"))
_moving_power = jax.jit(_power)


def sqrtm(a: Any, rtol: float | None = None) -> jax.Array:
    """Return the square root Q diag(w^(1/2)) Q^H of a Hermitian positive semidefinite matrix.

        d(A^(1/2)) = Q [P_ij / (w_i^(1/2) + w_j^(1/2))] Q^H,   P = Q^H dA Q

    in closed form, first and second derivatives, exact at equal eigenvalues and over any spread of
    them. Eigenvalues up to rtol w_1 in magnitude count as zero, where the root has no derivative:
    it gets the one on matrices of constant rank. Negative ones give NaN.

    Cost: one `eigh`; a derivative four products of n^3.

    Args:
        a: Hermitian array (..., n, n), dtypes as in `jaxsvd.svd`; (A + A^H)/2 is used.
        rtol: static; default (n + sqrt(n)) eps.

    Returns:
        Array (..., n, n), Hermitian.

    Raises:
        TypeError: ``a`` is not an array, or ``rtol`` is not a Python float.
        ValueError: ``a`` is not square; a third derivative (`jaxsvd.hermitian_map` has it).

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> dA = jnp.array([[1.0, 2.0], [2.0, 0.0]])
        >>> print(jax.jvp(jaxsvd.linalg.sqrtm, (4 * jnp.eye(2),), (dA,))[1])
        [[0.25 0.5 ]
         [0.5  0.  ]]

    References:
        Higham (2008), "Functions of Matrices", section 6.1 and theorem 3.11.
    """
    name = "linalg.sqrtm"
    a = _checks.square(name, a)
    return _sqrtm(_checks.tolerance(name, "rtol", rtol, "the largest eigenvalue"))(a)


def logm(a: Any) -> jax.Array:
    """Return the logarithm Q diag(log w) Q^H of a Hermitian positive definite matrix.

    By `jaxsvd.hermitian_map`: derivatives up to third order, exact at equal eigenvalues. A zero
    eigenvalue gives infinities, a negative one NaN.

    Cost: one `eigh`; a derivative four products of n^3.

    Args:
        a: Hermitian array (..., n, n), dtypes as in `jaxsvd.svd`; (A + A^H)/2 is used.

    Returns:
        Array (..., n, n), Hermitian.

    Raises:
        TypeError: ``a`` is not an array.
        ValueError: ``a`` is not square; a fourth derivative.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> dA = jnp.array([[1.0, 2.0], [2.0, 0.0]])
        >>> print(jnp.round(jax.jvp(jaxsvd.linalg.logm, (2 * jnp.eye(2),), (dA,))[1], 6))
        [[0.5 1. ]
         [1.  0. ]]

    References:
        Higham (2008), "Functions of Matrices", chapter 11 and theorem 3.11.
    """
    return _logm(_checks.square("linalg.logm", a))


def expm(a: Any) -> jax.Array:
    """Return the exponential Q diag(exp w) Q^H of a Hermitian matrix.

    By `jaxsvd.hermitian_map`: derivatives up to third order, exact at equal eigenvalues. For other
    matrices there is `jax.scipy.linalg.expm`.

    Cost: one `eigh`; a derivative four products of n^3.

    Args:
        a: Hermitian array (..., n, n), dtypes as in `jaxsvd.svd`; (A + A^H)/2 is used.

    Returns:
        Array (..., n, n), Hermitian.

    Raises:
        TypeError: ``a`` is not an array.
        ValueError: ``a`` is not square; a fourth derivative.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> dA = jnp.array([[1.0, 2.0], [2.0, 0.0]])
        >>> print(jnp.round(jax.jvp(jaxsvd.linalg.expm, (jnp.zeros((2, 2)),), (dA,))[1], 6))
        [[1. 2.]
         [2. 0.]]

    References:
        Higham (2008), "Functions of Matrices", chapter 10 and theorem 3.11.
    """
    return _expm(_checks.square("linalg.expm", a))


def inverse_root(a: Any, p: Any, ridge: Any = 0.0) -> jax.Array:
    """Return (A + ridge I)^(-1/p) of a Hermitian positive definite matrix, as Shampoo takes it.

    By `jaxsvd.hermitian_map`: derivatives up to third order by the matrix, by p and by the ridge,
    exact at equal eigenvalues. Where A + ridge I is singular it is infinite: `linalg.whitening`
    leaves such directions out.

    Cost: one `eigh`; a derivative four products of n^3.

    Args:
        a: Hermitian array (..., n, n), dtypes as in `jaxsvd.svd`; (A + A^H)/2 is used.
        p: positive number, traced or not; need not be an integer.
        ridge: number >= 0 that is added to the eigenvalues, traced or not.

    Returns:
        Array (..., n, n), Hermitian.

    Raises:
        TypeError: ``a`` is not an array; ``p`` or ``ridge`` is not a number.
        ValueError: ``a`` is not square; ``p`` is not positive, ``ridge`` negative; a
            fourth derivative.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.linalg.inverse_root(jnp.diag(jnp.array([15.0, 15.0])), 4, ridge=1.0))
        [[0.5 0. ]
         [0.  0.5]]

    References:
        Gupta, Koren and Singer (2018), "Shampoo: preconditioned stochastic tensor optimization",
        algorithm 1; Higham (2008), "Functions of Matrices", theorem 3.11.
    """
    name = "linalg.inverse_root"
    a = _checks.square(name, a)
    p = _checks.positive(name, "p", p)
    if not (isinstance(ridge, int | float) and ridge == 0):
        ridge = _checks.positive(name, "ridge", ridge)
    if isinstance(p, int | float) and isinstance(ridge, int | float):
        return _fixed_power(a, p, ridge)
    real = jnp.finfo(_checks.working(a).dtype).dtype
    return _moving_power(a, jnp.asarray(p).astype(real), jnp.asarray(ridge).astype(real))


@jax.jit
def _log_euclidean_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    difference = _logm(a) - _logm(b)
    squares = jnp.sum(jnp.real(jnp.conj(difference) * difference), axis=(-2, -1))
    equal = squares == 0
    return jnp.where(equal, 0, jnp.sqrt(jnp.where(equal, 1, squares)))


def log_euclidean_distance(a: Any, b: Any) -> jax.Array:
    """Return |log A - log B|_F of two Hermitian positive definite matrices.

    A metric on covariance matrices, invariant under inversion, scaling and rotation of both. By
    `jaxsvd.hermitian_map`: derivatives up to third order by either, exact at equal eigenvalues. At
    A = B a norm has no derivative; it gets 0.

    Cost: two `eigh`; a derivative eight products of n^3.

    Args:
        a: Hermitian array (..., n, n), dtypes as in `jaxsvd.svd`; (A + A^H)/2 is used.
        b: Hermitian array of the same shape.

    Returns:
        Array (...,), real.

    Raises:
        TypeError: an argument is not an array.
        ValueError: an argument is not square, or the shapes differ; a fourth derivative.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A, B = (jnp.diag(jnp.exp(jnp.array(x))) for x in ([3.0, 0.0], [0.0, 4.0]))
        >>> print(jnp.round(jaxsvd.linalg.log_euclidean_distance(A, B), 6))
        5.0

    References:
        Arsigny, Fillard, Pennec and Ayache (2007), "Geometric means in a novel vector space
        structure on symmetric positive-definite matrices".
    """
    name = "linalg.log_euclidean_distance"
    a, b = _checks.square(name, a), _checks.square(name, b, "b")
    if a.shape != b.shape:
        raise ValueError(f"{name}: `b` must have the shape of `a`, {a.shape}, got {b.shape}")
    (x, y), dtype = maps.common(a, b)
    return _checks.restore(_log_euclidean_distance(x, y), dtype)

"""How many singular values count: numerical rank, condition, energy, noise."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _checks, _tolerances
from ..primitives.batching import over_leading_axes
from ..primitives.spectral import spectral_sum
from ..primitives.svd import svdvals
from . import maps


@functools.partial(jax.jit, static_argnames=("rtol",))
def _matrix_rank(a: jax.Array, rtol: float | None) -> jax.Array:
    a = lax.stop_gradient(_checks.working(a))
    if min(a.shape[-2:]) == 0:
        return jnp.zeros(a.shape[:-2], jnp.int32)
    tol = _tolerances.rank_tol(a.dtype, *a.shape[-2:]) if rtol is None else rtol
    S = svdvals(a)
    rank = jnp.sum(S > tol * S[..., :1], axis=-1, dtype=jnp.int32)
    return jnp.where(jnp.isnan(S[..., 0]), -1, rank)


def matrix_rank(a: Any, rtol: float | None = None) -> jax.Array:
    """Return how many singular values are above rtol s_1.

    Cost: one SVD without vectors.

    Args:
        a: array (..., m, n), dtypes as in `jaxsvd.svd`.
        rtol: static; default (min(m, n) + sqrt(max(m, n))) eps.

    Returns:
        Integer array (...,); -1 for a matrix that holds NaN or Inf.

    Raises:
        TypeError: ``a`` is not an array, or ``rtol`` is not a Python float.
        ValueError: ``a`` has fewer than two axes; ``rtol`` outside 0 <= rtol < 1.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.linalg.matrix_rank(jnp.ones((3, 4))))
        1

    References:
        Golub and Van Loan (2013), "Matrix Computations", section 5.4.
    """
    name = "linalg.matrix_rank"
    return _matrix_rank(_checks.matrix(name, a), _checks.tolerance(name, "rtol", rtol))


@functools.partial(jax.jit, static_argnames=("p",))
def _cond(a: jax.Array, p: Any) -> jax.Array:
    def of_matrix(a):
        a, _ = maps.scaled(a)  # the condition does not depend on the units
        if p == "fro":
            inverse = spectral_sum(lambda s: s**-2, a)
            return jnp.sqrt(spectral_sum(jnp.square, a)) * jnp.sqrt(inverse)
        S = svdvals(a)
        largest, smallest = (S[-1], S[0]) if p == -2 else (S[0], S[-1])
        return largest / smallest

    return _checks.restore(over_leading_axes(of_matrix, _checks.working(a)), a.dtype)


def cond(a: Any, p: int | str | None = None) -> jax.Array:
    """Return the condition number |A| |A^+| in a unitarily invariant norm.

        p = 2, None:  s_1 / s_k        p = -2:  s_k / s_1        p = "fro":  |A|_F |A^+|_F

    "fro" is smooth wherever A has full rank, ties included, with an exact gradient and Hessian;
    the other two have a kink where s_1 or s_k is tied.

    Cost: one SVD, without vectors unless it is differentiated.

    Args:
        a: array (..., m, n), dtypes as in `jaxsvd.svd`.
        p: static; None, 2, -2 or "fro".

    Returns:
        Real array (...,); infinite for a singular matrix.

    Raises:
        TypeError: ``a`` is not an array.
        ValueError: fewer than two axes; an empty matrix; unknown p.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.linalg.cond(jnp.diag(jnp.array([4.0, 2.0, 1.0]))))
        4.0

    References:
        Golub and Van Loan (2013), "Matrix Computations", section 2.6.2.
    """
    name = "linalg.cond"
    a = _checks.matrix(name, a)
    if min(a.shape[-2:]) == 0:
        raise ValueError(f"{name}: `a` must not be empty, got shape {a.shape}")
    if isinstance(p, bool) or p not in (None, 2, -2, "fro"):
        raise ValueError(
            f"{name}: `p` must be one of None, 2, -2, 'fro', got {_checks.describe(p)}"
        )
    return _cond(a, p)


def _spectrum(name: str, s: Any) -> jax.Array:
    s = _checks.array(name, s, "s")
    if jnp.iscomplexobj(s):
        raise TypeError(f"{name}: `s` must be real, got dtype {s.dtype}")
    if s.ndim == 0:
        raise ValueError(f"{name}: `s` must have shape (..., k), got a scalar")
    return lax.stop_gradient(_checks.working(s))


def _above(s: jax.Array, threshold: jax.Array) -> jax.Array:
    count = jnp.sum(s > threshold[..., None], axis=-1, dtype=jnp.int32)
    return jnp.where(jnp.any(jnp.isnan(s), axis=-1) | jnp.isnan(threshold), -1, count)


def _threshold_for_noise(ratio: float) -> float:
    """Return lambda(beta): the best hard threshold in units of sigma sqrt(n), beta = m/n <= 1."""
    root = math.sqrt(ratio**2 + 14 * ratio + 1)
    return math.sqrt(2 * (ratio + 1) + 8 * ratio / (ratio + 1 + root))


@functools.cache
def _marchenko_pastur_median(ratio: float) -> float:
    """Return the median of the Marchenko-Pastur law of ratio beta on (1 -+ sqrt(beta))^2.

    With t = 1 + beta + 2 sqrt(beta) cos x the mass above t is

        2/pi  integral from 0 to x of  sin(y)^2 / (1 + beta + 2 sqrt(beta) cos y) dy,

    smooth up to the median (its pole is at y = pi, beta = 1), so Gauss-Legendre with 64 points is
    exact to rounding; bisection does the rest.
    """
    points, weights = np.polynomial.legendre.leggauss(64)
    low, high = 0.0, math.pi
    for _ in range(60):
        x = (low + high) / 2
        y = x * (points + 1) / 2
        density = np.sin(y) ** 2 / (1 + ratio + 2 * math.sqrt(ratio) * np.cos(y))
        above = x / math.pi * np.sum(weights * density)
        low, high = (x, high) if above < 0.5 else (low, x)
    return 1 + ratio + 2 * math.sqrt(ratio) * math.cos(low)


@functools.partial(jax.jit, static_argnames=("shape", "known"))
def _optimal_rank(s: jax.Array, noise: jax.Array, shape: tuple[int, int], known: bool):
    short, long = sorted(shape)
    ratio = short / long
    factor = _threshold_for_noise(ratio)
    if known:
        threshold = factor * math.sqrt(long) * noise
    else:
        threshold = factor / math.sqrt(_marchenko_pastur_median(ratio)) * jnp.median(s, axis=-1)
    return _above(s, jnp.broadcast_to(threshold, s.shape[:-1]))


def optimal_rank(s: Any, shape: tuple[int, int], noise: Any = None) -> jax.Array:
    """Return how many singular values to keep of a low-rank matrix seen through white noise.

        kept: s > lambda(beta) sqrt(n) sigma,   beta = m/n <= 1, n the longer side
        lambda(beta)^2 = 2 (beta + 1) + 8 beta / (beta + 1 + sqrt(beta^2 + 14 beta + 1))
        sigma not known:  s > lambda(beta) / sqrt(mu(beta)) median(s)

    The hard threshold of least asymptotic mean squared error, 4/sqrt(3) sqrt(n) sigma for a square
    matrix; mu(beta) is the median of the Marchenko-Pastur law. The median rule needs all min(m, n)
    values, and a rank well below half of them.

    Cost: O(k log k).

    Args:
        s: singular values (..., k), in any order.
        shape: static (m, n) of the matrix they are of.
        noise: standard deviation of the noise in each entry, a number or an array (...,); default
            unknown.

    Returns:
        Integer array (...,); -1 where s or noise holds NaN.

    Raises:
        TypeError: ``s`` is not an array, or is complex; ``shape`` is not a pair of ints.
        ValueError: more values than min(m, n), or fewer where ``noise`` is not given.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> signal = 50 * jnp.outer(jnp.ones(40), jnp.ones(30)) / 1200**0.5
        >>> A = signal + jax.random.normal(jax.random.key(0), (40, 30))
        >>> s = jaxsvd.svdvals(A)
        >>> print(jaxsvd.linalg.optimal_rank(s, A.shape))
        1
        >>> print(jaxsvd.linalg.optimal_rank(s, A.shape, noise=1.0))
        1

    References:
        Gavish and Donoho (2014), "The optimal hard threshold for singular values is 4/sqrt(3)",
        IEEE Trans. Inf. Theory 60, eq. 11 and section I.
    """
    name = "linalg.optimal_rank"
    s = _spectrum(name, s)
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise TypeError(f"{name}: `shape` must be a pair (m, n), got {_checks.describe(shape)}")
    m, n = (_checks.static_int(name, "shape", size, 1, 10**12, "m, n") for size in shape)
    k, wanted = s.shape[-1], min(m, n)
    if k > wanted or (noise is None and k < wanted):
        raise ValueError(
            f"{name}: `s` must hold {'' if noise is None else 'at most '}min(m, n) = {wanted} "
            f"values for shape {(m, n)}, got {k}"
        )
    if noise is None:
        return _optimal_rank(s, jnp.zeros((), s.dtype), (m, n), False)
    if isinstance(noise, (int, float)) and not isinstance(noise, bool):
        noise = jnp.asarray(noise, s.dtype)
    noise = _checks.array(name, noise, "noise")
    if jnp.iscomplexobj(noise) or noise.shape not in ((), s.shape[:-1]):
        raise ValueError(
            f"{name}: `noise` must be real, a number or of shape {s.shape[:-1]}, got "
            f"{_checks.describe(noise)}"
        )
    return _optimal_rank(s, lax.stop_gradient(noise.astype(s.dtype)), (m, n), True)


@functools.partial(jax.jit, static_argnames=("energy",))
def _rank_for_energy(s: jax.Array, energy: float) -> jax.Array:
    if s.shape[-1] == 0:
        return jnp.zeros(s.shape[:-1], jnp.int32)
    largest = jnp.max(s, axis=-1, keepdims=True)
    # What is left beyond the first i values, summed from the small end; total at i = 0.
    squares = -jnp.sort(-((s / jnp.where(largest == 0, 1, largest)) ** 2), axis=-1)
    left = lax.cumsum(squares, axis=squares.ndim - 1, reverse=True)
    # Rounding of 1 - energy and of the sums must not keep one value too many.
    slack = 0.0 if energy == 1 else 2.0**-53
    allowed = (1 - energy + slack) * (1 + 8 * _tolerances.eps(s.dtype)) * left[..., 0]
    return _above(left, allowed)


def rank_for_energy(s: Any, energy: float) -> jax.Array:
    """Return the smallest r whose leading values hold a share of the energy.

        sum_{i <= r} s_i^2 >= energy sum_i s_i^2

    Cost: O(k log k).

    Args:
        s: singular values (..., k), in any order.
        energy: static share, 0 <= energy <= 1; 1 counts the values that are not zero.

    Returns:
        Integer array (...,); 0 for zeros, -1 where s holds NaN.

    Raises:
        TypeError: ``s`` is not an array, or is complex; ``energy`` is not a Python float.
        ValueError: ``energy`` out of range.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> s = jnp.array([3.0, 1.0, 0.1])  # squares 9, 1 and 0.01
        >>> print(jaxsvd.linalg.rank_for_energy(s, 0.8), jaxsvd.linalg.rank_for_energy(s, 0.95))
        1 2

    References:
        Jolliffe (2002), "Principal Component Analysis", section 6.1.1.
    """
    name = "linalg.rank_for_energy"
    s = _spectrum(name, s)
    if isinstance(energy, (bool, np.bool_)) or not isinstance(
        energy, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name}: `energy` must be a Python float, got {_checks.describe(energy)}")
    if not 0 <= energy <= 1:
        raise ValueError(f"{name}: `energy` must satisfy 0 <= energy <= 1, got {energy}")
    return _rank_for_energy(s, float(energy))

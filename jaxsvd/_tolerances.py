"""Every tolerance of the library: a name, its default by dtype and shape, and why it is that.

All are relative: to the largest singular value of the matrix at hand, unless the line says
otherwise.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike


def eps(dtype: DTypeLike) -> float:
    """Return the spacing of 1.0 in ``dtype``."""
    return float(jnp.finfo(dtype).eps)


def degeneracy_tol(dtype: DTypeLike) -> float:
    """Return the gap below which two singular values count as tied: eps^(3/4).

    Computed singular values carry an error of a few eps s_1 each, so below this gap the quotient
    1/(s_j - s_i) of the raw triplets' rule holds less than a quarter of the digits. It is the
    default of MatrixAlgebraKit.jl (defaults.jl) as well.
    """
    return eps(dtype) ** 0.75


def rank_tol(dtype: DTypeLike, m: int, n: int) -> float:
    """Return the value below which a singular value counts as zero: (min + sqrt(max)(m, n)) eps.

    The rounding error of a backward stable SVD grows with the short side and, since the roundings
    of a long sum are independent, with the root of the long one. numpy.linalg.matrix_rank takes
    max(m, n) eps, which is 0.05 s_1 for 400000 rows in float32: a gradient would lose singular
    values of 0.02 s_1 (100 % off, where it is right to 1e-5 with this one).
    """
    return (max(min(m, n), 1) + max(m, n) ** 0.5) * eps(dtype)


def phase_tol(dtype: DTypeLike) -> float:
    """Return how far below the largest entry another still counts as equal: sqrt(eps).

    Relative to the largest entry of the column. The first of the entries within this distance
    carries the sign, so that backends whose vectors differ by rounding choose the same one.
    """
    return eps(dtype) ** 0.5


def near_tie(dtype: DTypeLike) -> float:
    """Return where a divided difference turns into Gauss quadrature of f': eps^(1/5) / 2.

    Relative to the pair, |x - y| <= near_tie (|x| + |y|). The difference quotient loses
    eps / gap, two-point Gauss loses gap^4 / 4320 f^(5): the two errors cross near eps^(1/5)
    (2.5e-6 in float32, 4e-13 in float64 at the crossing).
    """
    return eps(dtype) ** 0.2 / 2


def near_tie_kinked(dtype: DTypeLike) -> float:
    """Return the same threshold for functions with kinks (clip, soft threshold): sqrt(eps).

    Quadrature across a kink is wrong by the jump of f'; the difference quotient is not.
    """
    return eps(dtype) ** 0.5


def near_triple(dtype: DTypeLike) -> tuple[float, float]:
    """Return where a second divided difference turns into quadrature of f''.

    A pair (relative to the largest of the three points, relative to s_1): eps^(1/5), eps^(1/3).
    The second one is needed at zero singular values: two computed zeros of 1e-17 are far apart
    relative to each other, and their divided difference is rounding error of order 1.
    """
    return eps(dtype) ** 0.2, eps(dtype) ** (1 / 3)


def gauge_tol(dtype: DTypeLike) -> float:
    """Return the gauge-dependent part of a cotangent that is reported: sqrt(eps).

    Relative to the norm of the cotangents; a gauge-free loss leaves rounding, about 10 eps.
    """
    return eps(dtype) ** 0.5


def rounding(dtype: DTypeLike) -> float:
    """Return the least random change, per entry, that makes an algorithm round anew: eps / 8."""
    return eps(dtype) / 8

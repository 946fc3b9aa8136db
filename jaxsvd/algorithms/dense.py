"""The full SVD of dense matrices by the platform's own library (LAPACK, cuSOLVER, XLA)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _tolerances
from .._types import SVDResult
from .orthonormal import noise, polish
from .phase import fix_phases
from .products import adjoint, adjoint_product, product


class Request(NamedTuple):
    """What is asked of a full SVD; static and hashable.

    Attributes:
        full_matrices: whether U is square and Vh too.
        hermitian: whether the matrix is, of which the lower triangle counts.
        method: name of a row of the router's table, or "auto".
        signs: whether the signs of a real matrix's vectors are fixed, as in `algorithms.phase`.
        quiet: whether large products follow, whose speed it must not spoil.
        dtype: of the matrix; `router.solve` fills it in.
    """

    full_matrices: bool = False
    hermitian: bool = False
    method: str = "auto"
    signs: bool = False
    quiet: bool = False
    dtype: Any = np.dtype(np.float32)


# LAPACK's divide and conquer fails on about one in a thousand matrices of 150 or 256 equal singular
# values (equal to 10 to 100 eps): it does not converge, or returns vectors that are far from
# orthogonal and says nothing (Reference-LAPACK issues 255 and 672). Where it is right the columns
# are orthonormal to 5 max(m, n) eps, where not to 70,000 and more.
LOST = 100.0

# Up to this size none of 50,000 such matrices failed.
SURE_UP_TO = 64

# To look costs 5 % of an SVD, so it is done in doubt only: where values are NaN, or more than an
# eighth of them, or more than MANY, are closer to the next than this many eps. Of the values that
# were found to fail, 128 and more, nine of ten are; the gaps of random matrices of 2048 columns are
# 4000 eps wide in single precision.
CLOSE, MANY = 200.0, 64


# Vectors by which orthogonality is looked at. Products with a single one are written out by XLA on
# CPU, and take twice as long to compile as those of 16.
PROBES = 16


def _lost(X: jax.Array) -> jax.Array:
    """Return how far X (..., m, k) is from orthonormal, |X^H X z - z| for a few z, about eps m."""
    k = X.shape[-1]
    z = jnp.broadcast_to(noise(k, PROBES, X.dtype), (*X.shape[:-2], k, PROBES))
    z = z * k**0.5  # entries of order one
    return jnp.max(jnp.abs(adjoint_product(X, product(X, z)) - z), axis=(-2, -1))


def broken(result: SVDResult) -> jax.Array:
    """Return where factors hold NaN or have lost their orthogonality, (...,); O((m + n) k)."""
    U, S, Vh = result
    most = LOST * max(U.shape[-2], Vh.shape[-1]) * _tolerances.eps(S.dtype)
    held = (_lost(U) < most) & (_lost(adjoint(Vh)) < most)  # neither holds if there is a NaN
    return ~(held & jnp.all(jnp.isfinite(S), axis=-1))


def doubtful(S: jax.Array) -> jax.Array:
    """Return where singular values (..., k) are such that divide and conquer may have failed."""
    close = S[..., :-1] - S[..., 1:] < CLOSE * _tolerances.eps(S.dtype) * S[..., :1]
    finite = jnp.all(jnp.isfinite(S), axis=-1)
    return ~finite | (jnp.sum(close, axis=-1) > min(S.shape[-1] // 8, MANY))


def rescued(
    a: jax.Array, result: SVDResult, second: Callable, doubt: Callable = doubtful
) -> SVDResult:
    """Return the triplets found by one solver, or those of another for matrices it failed on.

    Args:
        a: (..., m, n).
        result: what the first solver returned.
        second: a -> (U, S, Vh), run only if a finite matrix needs it.
        doubt: S -> whether to look at the vectors at all, (...,).
    """

    def look():
        failed = broken(result) & jnp.all(jnp.isfinite(a), axis=(-2, -1))

        def again():
            other = SVDResult(*second(a))
            return jax.tree.map(
                lambda x, y: jnp.where(failed[(..., *[None] * (x.ndim - failed.ndim))], y, x),
                result,
                other,
            )

        return lax.cond(jnp.any(failed), again, lambda: result)

    return lax.cond(jnp.any(doubt(result.S)), look, lambda: result)


def checked(
    a: jax.Array, result: SVDResult, by_qr: Callable[[jax.Array], SVDResult] | None = None
) -> SVDResult:
    """Return what divide and conquer found for (..., m, n), on CPU looked over.

    Args:
        a: the matrices.
        result: what was found.
        by_qr: a -> the same by the QR algorithm; by default the thin SVD.
    """
    if min(a.shape[-2:]) <= SURE_UP_TO:
        return result
    by_qr = by_qr or functools.partial(_solved, algorithm=lax.linalg.SvdAlgorithm.QR)
    return lax.platform_dependent(
        a,
        result,
        cpu=lambda a, result: rescued(a, result, by_qr),
        default=lambda a, result: result,
    )


def _solved(
    a: jax.Array, full_matrices: bool = False, signs: bool = False, algorithm: Any = None
) -> SVDResult:
    """Return the SVD of (..., m, n) by the platform's library.

    A wide matrix goes through its transpose, in 0.4 (32 x 20000) to 0.7 (512 x 600) of the time on
    CPU: LAPACK's LQ is slower than its QR. cuSOLVER takes no wide ones.
    """
    wide = a.shape[-2] < a.shape[-1]
    U, S, Vh = lax.linalg.svd(a.mT if wide else a, full_matrices=full_matrices, algorithm=algorithm)
    result = SVDResult(Vh.mT, S, U.mT) if wide else SVDResult(U, S, Vh)
    return fix_phases(result) if signs else result


def lapack(a: jax.Array, full_matrices: bool, signs: bool = False) -> SVDResult:
    """Return the SVD of (..., m, n) as the platform's library computes it, on CPU looked over.

    Signs are fixed before the look, while the columns lie one after the other as LAPACK left them:
    behind a branch they do no more, which took 7 % of an SVD of 1024 x 1024.
    """
    solve = functools.partial(_solved, full_matrices=full_matrices, signs=signs)
    by_qr = functools.partial(solve, algorithm=lax.linalg.SvdAlgorithm.QR)
    return checked(a, solve(a), by_qr)


# OpenBLAS, behind LAPACK on CPU, keeps its threads spinning after a call that used several (20 ms
# where SciPy was loaded before this library, see `jaxsvd._openblas`), and the products that follow
# run at half speed: 6 ms become 11 (4096 x 4096 times 64, 2 cores). Up to 64 x 64 the QR algorithm
# calls nothing that uses several and is as fast as divide and conquer, 0.9 ms; at 96 x 96 it is
# twice as slow, and spins as well.
QUIET_UP_TO = 64


def quiet(a: jax.Array) -> SVDResult:
    """Return the SVD of small matrices (..., m, n) between large products on CPU, unchecked."""
    small = max(a.shape[-2:]) <= QUIET_UP_TO
    return _solved(a, algorithm=lax.linalg.SvdAlgorithm.QR if small else None)


def lapack_values(a: jax.Array) -> jax.Array:
    """Return the singular values alone, at about a quarter of the cost of the triplets."""
    a = a.mT if a.shape[-2] < a.shape[-1] else a  # as in `lapack`
    return lax.linalg.svd(a, full_matrices=False, compute_uv=False)


# Size up to which cuSOLVER has a kernel for a batch, which takes larger matrices one by one; its
# eigenvectors are orthonormal to 50 eps (H200).
GPU_KERNEL = 32


def eigenpairs(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return w (..., n), ascending, and Q (..., n, n) of Hermitian matrices by their lower halves.

    By the platform's library; small ones on a GPU get columns that are orthonormal to rounding.
    """
    Q, w = lax.linalg.eigh(a, symmetrize_input=False)
    if a.shape[-1] <= GPU_KERNEL:
        Q = lax.platform_dependent(Q, cuda=polish, rocm=polish, default=lambda Q: Q)
    return w, Q


def hermitian(a: jax.Array, full_matrices: bool) -> SVDResult:
    """Return the SVD of Hermitian matrices through A = Q diag(w) Q^H.

    S = |w| sorted, U = Q, V = Q diag(sign w). It takes about half the time of a general SVD and
    keeps pairs +w, -w apart exactly.
    """
    del full_matrices  # the matrix is square
    w, Q = eigenpairs(a)
    order = jnp.argsort(-jnp.abs(w), axis=-1)
    w = jnp.take_along_axis(w, order, axis=-1)
    U = jnp.take_along_axis(Q, order[..., None, :], axis=-1)
    sign = jnp.where(w < 0, -1, 1).astype(U.dtype)
    return SVDResult(U, jnp.abs(w), adjoint(U * sign[..., None, :]))


def empty(a: jax.Array, full_matrices: bool) -> SVDResult:
    """Return the SVD of matrices with no rows or no columns."""
    *batch, m, n = a.shape

    def identity(rows: int) -> jax.Array:
        columns = rows if full_matrices else 0
        return jnp.broadcast_to(jnp.eye(rows, columns, dtype=a.dtype), (*batch, rows, columns))

    S = jnp.zeros((*batch, 0), jnp.finfo(a.dtype).dtype)
    return SVDResult(identity(m), S, identity(n).mT)

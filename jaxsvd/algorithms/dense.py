"""The full SVD of dense matrices by the platform's own library (LAPACK, cuSOLVER, XLA)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._types import SVDResult
from .products import adjoint


class Request(NamedTuple):
    """What is asked of a full SVD; static and hashable.

    Attributes:
        full_matrices: whether U is square and Vh too.
        hermitian: whether the matrix is, of which the lower triangle counts.
        method: name of a row of the router's table, or "auto".
        signs: whether the signs of a real matrix's vectors are fixed, as in `algorithms.phase`.
    """

    full_matrices: bool = False
    hermitian: bool = False
    method: str = "auto"
    signs: bool = False


def lapack(a: jax.Array, full_matrices: bool) -> SVDResult:
    """Return the SVD of (..., m, n) as the platform's library computes it."""
    U, S, Vh = lax.linalg.svd(a, full_matrices=full_matrices)
    return SVDResult(U, S, Vh)


# OpenBLAS, behind LAPACK on CPU, keeps its threads spinning for some 20 ms after a call that used
# several, and the products that follow run at half speed: 6 ms become 11 (4096 x 4096 times 64, 2
# cores). Up to 64 x 64 the QR algorithm calls nothing that uses several and is as fast as divide
# and conquer, 0.9 ms; at 96 x 96 it is twice as slow, and spins as well.
QUIET_UP_TO = 64


def inner(a: jax.Array) -> SVDResult:
    """Return the SVD of a small matrix between large products."""
    by_qr = functools.partial(
        lax.linalg.svd, full_matrices=False, algorithm=lax.linalg.SvdAlgorithm.QR
    )
    default = functools.partial(lax.linalg.svd, full_matrices=False)
    if max(a.shape[-2:]) > QUIET_UP_TO:
        return SVDResult(*default(a))
    return SVDResult(*lax.platform_dependent(a, cpu=by_qr, default=default))


def lapack_values(a: jax.Array) -> jax.Array:
    """Return the singular values alone, at about a quarter of the cost of the triplets."""
    return lax.linalg.svd(a, full_matrices=False, compute_uv=False)


def hermitian(a: jax.Array, full_matrices: bool) -> SVDResult:
    """Return the SVD of Hermitian matrices through A = Q diag(w) Q^H.

    S = |w| sorted, U = Q, V = Q diag(sign w). It takes about half the time of a general SVD and
    keeps pairs +w, -w apart exactly.
    """
    del full_matrices  # the matrix is square
    Q, w = lax.linalg.eigh(a, symmetrize_input=False)
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

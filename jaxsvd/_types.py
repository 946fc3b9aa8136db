"""The named tuples that the library returns."""

from typing import NamedTuple

import jax


class SVDResult(NamedTuple):
    """The factors of A = U diag(S) Vh.

    Attributes:
        U: left singular vectors as columns, (..., m, k); (..., m, m) with full matrices.
        S: singular values, largest first, (..., k), real.
        Vh: right singular vectors as conjugated rows, (..., k, n); (..., n, n) when full.
    """

    U: jax.Array
    S: jax.Array
    Vh: jax.Array


class CoreSVD(NamedTuple):
    """The factors of A_k = U C Vh, with C = diag(S) in value and a full matrix in its tangent.

    Attributes:
        U: orthonormal columns that span the left singular subspace, (..., m, k).
        C: the core, Hermitian, (..., k, k).
        Vh: orthonormal rows that span the right singular subspace, (..., k, n).
    """

    U: jax.Array
    C: jax.Array
    Vh: jax.Array

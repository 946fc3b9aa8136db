"""The named tuples that the library returns."""

from typing import NamedTuple

import jax
import jax.export


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


class EighResult(NamedTuple):
    """The eigenpairs of a Hermitian A = Q diag(w) Q^H, or k of them.

    Attributes:
        eigenvalues: w, (..., k), real.
        eigenvectors: orthonormal columns of Q in the same order, (..., n, k).
    """

    eigenvalues: jax.Array
    eigenvectors: jax.Array


class CoreEigh(NamedTuple):
    """A Hermitian matrix on k of its eigenvectors, A Q = Q C, with C = diag(w) in value.

    Attributes:
        Q: orthonormal columns that span the subspace, (..., n, k).
        C: the core, Hermitian, a full matrix in its tangent, (..., k, k).
    """

    Q: jax.Array
    C: jax.Array


class Info(NamedTuple):
    """How good a truncated SVD is; nothing in it is differentiated.

    Attributes:
        residuals: max(|A v_i - s_i u_i|, |A^H u_i - s_i v_i|) of each triplet, (..., k).
        error: estimate of |A - U S Vh|_2, the first discarded singular value; of `adaptive_svd`
            the relative error |A - U S Vh|_F / |A|_F that it certifies, (...,).
        rank: how many triplets are not zero, (...,).
        gap: s_k - s_{k+1}, as estimated, (...,).
        gradient_error: relative error to expect of a gradient, within a factor of ten while it is
            below 0.3 and single vectors are not nearer than their residuals, (...,).
        iterations: steps of the algorithm, (...,).
        products: vectors multiplied by A or A^H, (...,).
        converged: whether all residuals are within the tolerance, (...,).
    """

    residuals: jax.Array
    error: jax.Array
    rank: jax.Array
    gap: jax.Array
    gradient_error: jax.Array
    iterations: jax.Array
    products: jax.Array
    converged: jax.Array


# A program exported by `jax.export` may return these; what is written down is their names here.
for _kind in (SVDResult, CoreSVD, EighResult, CoreEigh, Info):
    jax.export.register_namedtuple_serialization(_kind, serialized_name=f"jaxsvd.{_kind.__name__}")

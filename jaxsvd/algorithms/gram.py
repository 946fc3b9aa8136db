"""Batches of medium matrices on accelerators: `eigh` of the Gram matrix, then Jacobi.

A GPU has one kernel for a batch of `eigh`, and a loop over the matrices for a batch of SVDs beyond
32 x 32. The Gram matrix squares the condition: its eigenvectors V leave the columns of A V
orthogonal to eps (s_1 / s_j)^2 only. Jacobi takes them from there to full accuracy in a sweep or
two, where from nothing it takes six to ten.

References: Drmac and Veselic (2008), SIAM J. Matrix Anal. Appl. 29 (a preconditioner for Jacobi).
"""

import jax
import jax.numpy as jnp
from jax import lax

from .._types import SVDResult
from .jacobi import jacobi
from .orthonormal import polish
from .products import adjoint_product, product


def gram(a: jax.Array, full_matrices: bool) -> SVDResult:
    """Return the SVD of (..., m, n) by `eigh` of the smaller Gram matrix and Jacobi."""
    m, n = a.shape[-2:]
    if m < n:
        left = gram(a.mT, full_matrices)
        return SVDResult(left.Vh.mT, left.S, left.U.mT)
    largest = jnp.max(jnp.abs(a), axis=(-2, -1), keepdims=True)
    scale = jnp.where(largest > 0, largest, 1).astype(a.dtype)  # so that squares stay in range
    V, _ = lax.linalg.eigh(adjoint_product(a / scale, a / scale), symmetrize_input=False)
    # Ascending eigenvalues; and the columns of cuSOLVER's batches up to 32 x 32 are off by 50 eps.
    V = polish(V[..., ::-1])
    return jacobi(product(a, V), full_matrices, V=V, chunked=False)

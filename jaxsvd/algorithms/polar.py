"""One large matrix on accelerators: the polar decomposition, then `eigh` of its Hermitian factor.

A = W H, H = V diag(S) V^H, U = W V: products and factorizations of blocks, no bidiagonalization.

References: Nakatsukasa and Higham (2013), SIAM J. Sci. Comput. 35, algorithm QDWH-SVD.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .._types import SVDResult
from .orthonormal import orthonormalize
from .products import adjoint, product


def _one(a: jax.Array, full_matrices: bool) -> SVDResult:
    m, n = a.shape
    largest = jnp.max(jnp.abs(a))
    scale = jnp.where(largest > 0, largest, 1)
    W, H, _, _ = lax.linalg.qdwh(a / scale.astype(a.dtype))
    V, S = lax.linalg.eigh((H + adjoint(H)) / 2, symmetrize_input=False)
    V, S = V[:, ::-1], jnp.maximum(S[::-1], 0)  # ascending eigenvalues
    # W is an isometry on the range only; random columns take the place of what it loses.
    random = jax.random.normal(jax.random.key(0), (m, m if full_matrices else n), a.dtype) / m**0.5
    U = orthonormalize(product(W, V), fill=random[:, :n])
    if full_matrices and m > n:
        U = jnp.concatenate([U, orthonormalize(random[:, n:], against=U)], axis=1)
    return SVDResult(U, scale * S, adjoint(V))


def polar(a: jax.Array, full_matrices: bool) -> SVDResult:
    """Return the SVD of (..., m, n) through polar decompositions, one matrix after the other."""
    *batch, m, n = a.shape
    if m < n:
        left = polar(a.mT, full_matrices)
        return SVDResult(left.Vh.mT, left.S, left.U.mT)
    results = lax.map(lambda a: _one(a, full_matrices), a.reshape(-1, m, n))
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), results)

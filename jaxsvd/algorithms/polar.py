"""One large matrix on accelerators: the polar decomposition, then `eigh` of its Hermitian factor.

A = W H, H = V diag(S) V^H, U = W V: products and factorizations of blocks, no bidiagonalization.

W comes from the dynamically weighted iteration of Halley, X <- X (a + b X^H X) (1 + c X^H X)^-1,
which takes singular values from [l, 1] towards 1 by the best function of its kind. Its weights
depend on l alone, and l is a constant here, the size of rounding: no loop asks whether it is done.

References: Nakatsukasa, Bai and Gygi (2010), SIAM J. Matrix Anal. Appl. 31, eq. 3.16 and 5.2
(QDWH); Nakatsukasa and Higham (2013), SIAM J. Sci. Comput. 35 (QDWH-SVD).
"""

import jax
import jax.numpy as jnp
from jax import lax

from .. import _tolerances
from .._types import SVDResult
from .dense import eigenpairs
from .orthonormal import noise, orthonormalize
from .products import adjoint, adjoint_product, power_of_two, product

# Up to this weight c a Cholesky factorization of 1 + c X^H X is as accurate as a QR factorization
# of both terms' square roots, on top of each other, and takes a tenth of the time.
BY_CHOLESKY = 100.0

# The l of the iteration, in eps. At eps^2 it would take the same number of steps, but the first of
# them stretches rounding so much that entries of very different sizes lose four digits (LAPACK's
# matrices of wild exponents, 200 x 200); from eps down to a sixteenth of it they lose none.
LEAST = 1 / 8


def _weights(least: float, eps: float) -> list[tuple[float, float, float]]:
    """Return a, b, c of each iteration, which take values from a least one up to 1."""
    found = []
    while abs(1 - least) > eps:
        d = (4 * (1 - least**2) / least**4) ** (1 / 3)
        root = (1 + d) ** 0.5
        a = root + 0.5 * (8 - 4 * d + 8 * (2 - least**2) / (least**2 * root)) ** 0.5
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        least = min(1.0, least * (a + b * least**2) / (1 + c * least**2))
        found.append((a, b, c))
    return found


def _step(X: jax.Array, a: float, b: float, c: float) -> jax.Array:
    # The barriers keep the weights out of the products, which XLA on GPU would compile and tune for
    # seconds in each form.
    m, n = X.shape
    eye = jnp.eye(n, dtype=X.dtype)
    if c > BY_CHOLESKY:
        both = jnp.concatenate([c**0.5 * X, eye])
        Q = lax.linalg.qr(both, full_matrices=False)[0]
        top, bottom = lax.optimization_barrier((Q[:m], adjoint(Q[m:])))
        Y = lax.optimization_barrier(product(top, bottom))
        return b / c * X + (a - b / c) / c**0.5 * Y
    G = lax.optimization_barrier(adjoint_product(X, X))
    L = lax.linalg.cholesky(eye + c * G, symmetrize_input=False)
    Y = X
    for conjugate in (True, False):  # X (L L^H)^-1 = X L^-H L^-1
        Y = lax.linalg.triangular_solve(
            L, Y, left_side=False, lower=True, transpose_a=conjugate, conjugate_a=conjugate
        )
    return b / c * X + (a - b / c) * Y


def isometry(A: jax.Array) -> jax.Array:
    """Return W (m, n), m >= n, of A = W H: an isometry on the singular vectors above rounding."""
    size = jnp.abs(A)
    columns, rows = (jnp.max(jnp.sum(size, axis)) for axis in (0, 1))
    largest = jnp.sqrt(columns * rows)  # at least s_1, at most (m n)^(1/4) s_1
    X = A / jnp.where(largest > 0, largest, 1).astype(A.dtype)
    eps = _tolerances.eps(A.dtype)
    for a, b, c in _weights(LEAST * eps, eps):
        X = _step(X, a, b, c)
    return X


def _one(a: jax.Array, full_matrices: bool) -> SVDResult:
    m, n = a.shape
    largest = jnp.max(jnp.abs(a))
    scale = power_of_two(jnp.where(largest > 0, largest, 1))
    A = a / scale.astype(a.dtype)
    W = isometry(A)
    H = adjoint_product(W, A)
    S, V = eigenpairs((H + adjoint(H)) / 2)
    V, S = V[:, ::-1], jnp.maximum(S[::-1], 0)  # ascending eigenvalues
    # Random columns take the place of what W has lost: the vectors of values below rounding.
    fill = noise(m, m if full_matrices else n, a.dtype)
    U = orthonormalize(product(W, V), fill=fill[:, :n])
    if full_matrices and m > n:
        U = jnp.concatenate([U, orthonormalize(fill[:, n:], against=U)], axis=1)
    return SVDResult(U, scale * S, adjoint(V))


def polar(a: jax.Array, full_matrices: bool) -> SVDResult:
    """Return the SVD of (..., m, n) through polar decompositions, one matrix after the other."""
    *batch, m, n = a.shape
    if m < n:
        left = polar(a.mT, full_matrices)
        return SVDResult(left.Vh.mT, left.S, left.U.mT)
    results = lax.map(lambda a: _one(a, full_matrices), a.reshape(-1, m, n))
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), results)

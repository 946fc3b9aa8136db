"""Randomized SVD: a fixed number of products, whatever the spectrum.

References: Halko, Martinsson and Tropp (2011), SIAM Review 53, algorithms 4.3 and 5.1.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .._types import SVDResult
from ..operators.base import Operator
from .orthonormal import noise, orthonormalize
from .products import adjoint, adjoint_product, product
from .router import inner
from .subspace import random_block


def sketch_svd(A: Operator, key: jax.Array, columns: int, power_iterations: int) -> SVDResult:
    """Return ``columns`` approximate triplets from 2 + 2 power_iterations products with A.

    The columns are scaled and orthonormalized once between the products of a power iteration,
    enough to keep them independent; the bases that the triplets are made of, to rounding.
    """
    m, n = A.shape
    fill_m, fill_n = noise(m, columns, A.dtype), noise(n, columns, A.dtype)
    Y = A.matmat(random_block(key, n, columns, A.dtype))
    largest = jnp.max(jnp.abs(Y))
    scale = jnp.where(largest > 0, largest, 1)
    size = scale.astype(A.dtype)

    def power(_, Y):
        Z = A.rmatmat(orthonormalize(Y, passes=1, fill=fill_m)) / size
        return A.matmat(orthonormalize(Z, passes=1, fill=fill_n)) / size

    Y = lax.fori_loop(0, power_iterations, power, Y / size)
    Q = orthonormalize(Y, fill=fill_m)
    Z = A.rmatmat(Q) / size  # B^H with B = Q^H A
    V = orthonormalize(Z, fill=fill_n)
    X, S, Yh = inner(adjoint(adjoint_product(V, Z)))
    return SVDResult(product(Q, X), scale * S, adjoint(product(V, adjoint(Yh))))

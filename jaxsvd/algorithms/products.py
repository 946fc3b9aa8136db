"""Every large matrix product of the library: precision is decided here and nowhere else."""

import jax
import jax.numpy as jnp
from jax import lax

# The default precision of accelerators (TF32, bfloat16) keeps 3 digits; every product that decides
# the accuracy of a result or of a derivative runs at the highest.
PRECISION = lax.Precision.HIGHEST


def adjoint(a: jax.Array) -> jax.Array:
    """Return A^H, the conjugate transpose of the last two axes."""
    return jnp.conj(a).mT


def product(a: jax.Array, x: jax.Array, precision: lax.PrecisionLike = PRECISION) -> jax.Array:
    """Return A X for a of shape (..., m, n) and x of shape (..., n, l)."""
    return jnp.matmul(a, x, precision=precision)


def adjoint_product(
    a: jax.Array, y: jax.Array, precision: lax.PrecisionLike = PRECISION
) -> jax.Array:
    """Return A^H Y for a of shape (..., m, n) and y of shape (..., m, l)."""
    return product(adjoint(a), y, precision)

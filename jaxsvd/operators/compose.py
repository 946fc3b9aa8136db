"""Matrices made of others: low rank, centred."""

import jax
import jax.numpy as jnp

from ..algorithms.products import adjoint, adjoint_product, product
from .base import Operator, operator


@operator
class LowRank(Operator):
    """U diag(s) Vh, kept as its factors.

    Attributes:
        U: (m, r); any columns, orthonormal or not.
        s: (r,), real or complex.
        Vh: (r, n).
    """

    U: jax.Array
    s: jax.Array
    Vh: jax.Array

    @property
    def shape(self):
        """Rows and columns."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def dtype(self):
        """Dtype of the products."""
        return jnp.promote_types(self.U.dtype, self.Vh.dtype)

    def matmat(self, X):
        """Return U (s o (Vh X))."""
        return product(self.U, self.s.astype(self.dtype)[:, None] * product(self.Vh, X))

    def rmatmat(self, Y):
        """Return V (conj(s) o (U^H Y))."""
        inner = jnp.conj(self.s).astype(self.dtype)[:, None] * adjoint_product(self.U, Y)
        return product(adjoint(self.Vh), inner)


@operator
class Centered(Operator):
    """A - 1 mean^T: a matrix less its column means, which is never formed.

    Attributes:
        of: the matrix, (m, n): samples by features.
        mean: what is subtracted from each row, (n,).
    """

    of: Operator
    mean: jax.Array

    @classmethod
    def of_columns(cls, a: Operator) -> "Centered":
        """Return A less its own column means, mean = A^T 1 / m, as a function of A."""
        m = a.shape[0]
        ones = jnp.ones((m, 1), a.dtype)
        return cls(a, jnp.conj(a.rmatmat(ones))[:, 0] / m)

    @property
    def shape(self):
        """Rows and columns."""
        return self.of.shape

    @property
    def dtype(self):
        """Dtype of the products."""
        return jnp.promote_types(self.of.dtype, self.mean.dtype)

    def matmat(self, X):
        """Return A X - 1 (mean^T X)."""
        return self.of.matmat(X) - product(self.mean[None, :].astype(self.dtype), X)

    def rmatmat(self, Y):
        """Return A^H Y - conj(mean) (1^T Y)."""
        total = jnp.sum(Y, axis=0, keepdims=True)
        return self.of.rmatmat(Y) - jnp.conj(self.mean)[:, None].astype(self.dtype) * total

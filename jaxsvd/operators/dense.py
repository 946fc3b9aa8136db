"""A matrix held as an array."""

import jax
import jax.numpy as jnp

from ..algorithms.products import adjoint_product, product
from .base import Operator, operator


@operator
class Dense(Operator):
    """An array of shape (m, n) as an operator.

    Half precision is multiplied in float32.
    """

    a: jax.Array

    @property
    def shape(self):
        """Rows and columns."""
        return self.a.shape

    @property
    def dtype(self):
        """Dtype of the products: at least float32."""
        return self.a.dtype if self.a.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)

    def matmat(self, X):
        """Return A X."""
        return product(self.a.astype(self.dtype), X)

    def rmatmat(self, Y):
        """Return A^H Y."""
        return adjoint_product(self.a.astype(self.dtype), Y)

    def to_dense(self):
        """Return the array itself, in the dtype of the products."""
        return self.a.astype(self.dtype)

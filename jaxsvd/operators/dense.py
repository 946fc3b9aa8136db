"""A matrix held as an array."""

import jax

from ..algorithms.products import adjoint_product, product
from .base import Operator, inexact, on_block, operator, promote, replace


@operator
class Dense(Operator):
    """An array as an operator: A X and A^H Y at m n l multiplications.

    Half precision is multiplied in float32. A real matrix multiplies a complex block as twice as
    many real columns.

    Attributes:
        a: the matrix, (m, n), the leaf that gradients reach; integers become floats.

    Raises:
        TypeError: ``a`` is no array of numbers.
        ValueError: ``a`` has not two axes; `jax.vmap` maps over stacks.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jaxsvd.operators.Dense(jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        >>> print(A @ jnp.ones(2), jnp.ones(3) @ A)
        [ 3.  7. 11.] [ 9. 12.]
    """

    a: jax.Array

    def __post_init__(self):
        replace(self, a=inexact("Dense", "a", self.a, 2))

    @property
    def shape(self):
        """Rows and columns."""
        return self.a.shape

    @property
    def dtype(self):
        """Dtype of the products: at least float32."""
        return promote(self.a.dtype)

    def matmat(self, X):
        """Return A X."""
        return on_block(lambda X: product(self.a.astype(X.dtype), X), self.dtype, X)

    def rmatmat(self, Y):
        """Return A^H Y."""
        return on_block(lambda Y: adjoint_product(self.a.astype(Y.dtype), Y), self.dtype, Y)

    def to_dense(self):
        """Return the array itself, in the dtype of the products."""
        return self.a.astype(self.dtype)

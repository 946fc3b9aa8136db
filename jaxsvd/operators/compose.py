"""Matrices made of others: low rank, centred."""

import jax
import jax.numpy as jnp

from ..algorithms.products import adjoint, adjoint_product, product
from .base import (
    Operator,
    add,
    inexact,
    on_block,
    operator,
    promote,
    replace,
    require,
)


@operator
class LowRank(Operator):
    """U diag(s) Vh, kept as its factors: (m + n) r numbers, and as many products per column.

    Attributes:
        U: (m, r); any columns, orthonormal or not.
        s: (r,), real or complex.
        Vh: (r, n).

    Raises:
        TypeError: a factor is no array of numbers.
        ValueError: the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> U, s, Vh = jnp.ones((3, 1)), jnp.array([2.0]), jnp.array([[1.0, 2.0]])
        >>> print(jaxsvd.operators.LowRank(U, s, Vh).to_dense())
        [[2. 4.]
         [2. 4.]
         [2. 4.]]
    """

    U: jax.Array
    s: jax.Array
    Vh: jax.Array

    def __post_init__(self):
        U = inexact("LowRank", "U", self.U, 2)
        s = inexact("LowRank", "s", self.s, 1)
        Vh = inexact("LowRank", "Vh", self.Vh, 2)
        if not U.shape[1] == s.shape[0] == Vh.shape[0]:
            raise ValueError(
                "LowRank: `U`, `s`, `Vh` must have shapes (m, r), (r,), (r, n), got "
                f"{U.shape}, {s.shape}, {Vh.shape}"
            )
        replace(self, U=U, s=s, Vh=Vh)

    @property
    def shape(self):
        """Rows and columns."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def dtype(self):
        """Dtype of the products: that of all factors, at least float32."""
        return promote(self.U.dtype, self.s.dtype, self.Vh.dtype)

    def _factors(self, dtype):
        return self.U.astype(dtype), self.s.astype(dtype)[:, None], self.Vh.astype(dtype)

    def matmat(self, X):
        """Return U (s o (Vh X))."""

        def multiply(X):
            U, s, Vh = self._factors(X.dtype)
            return product(U, s * product(Vh, X))

        return on_block(multiply, self.dtype, X)

    def rmatmat(self, Y):
        """Return V (conj(s) o (U^H Y))."""

        def multiply(Y):
            U, s, Vh = self._factors(Y.dtype)
            return product(adjoint(Vh), jnp.conj(s) * adjoint_product(U, Y))

        return on_block(multiply, self.dtype, Y)

    def to_dense(self):
        """Return U diag(s) Vh, (m, n)."""
        U, s, Vh = self._factors(self.dtype)
        return product(U, s * Vh)


@operator
class Centered(Operator):
    """A - 1 mean^T: a matrix less a row vector, such as its column means, never formed.

    Costs one product with A and (m + n) l: a sparse matrix of samples stays sparse.

    Attributes:
        of: the operator A, (m, n): samples by features.
        mean: what is subtracted from each row, (n,).

    Raises:
        TypeError: ``of`` is no operator, or ``mean`` no array of numbers.
        ValueError: ``mean`` has not one entry per column.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jaxsvd.operators.Dense(jnp.array([[1.0, 2.0], [3.0, 6.0]]))
        >>> print(jaxsvd.operators.Centered.of_columns(A).to_dense())
        [[-1. -2.]
         [ 1.  2.]]
    """

    of: Operator
    mean: jax.Array

    def __post_init__(self):
        require("Centered", self.of)
        mean = inexact("Centered", "mean", self.mean, 1)
        if mean.shape[0] != self.of.shape[1]:
            raise ValueError(
                f"Centered: `mean` must have shape ({self.of.shape[1]},), got {mean.shape}"
            )
        replace(self, mean=mean)

    @classmethod
    def of_columns(cls, a: Operator) -> "Centered":
        """Return A less its own column means, mean = A^T 1 / m, as a function of A."""
        require("Centered.of_columns", a)
        ones = jnp.ones((a.shape[0], 1), a.dtype)
        return cls(a, jnp.conj(a.rmatmat(ones))[:, 0] / a.shape[0])

    @property
    def shape(self):
        """Rows and columns."""
        return self.of.shape

    @property
    def dtype(self):
        """Dtype of the products."""
        return promote(self.of.dtype, self.mean.dtype)

    def matmat(self, X):
        """Return A X - 1 (mean^T X)."""
        dtype = promote(self.mean.dtype, X.dtype)
        shift = product(self.mean[None, :].astype(dtype), X.astype(dtype))
        return add(self.of.matmat(X), -shift)

    def rmatmat(self, Y):
        """Return A^H Y - conj(mean) (1^T Y)."""
        dtype = promote(self.mean.dtype, Y.dtype)
        total = jnp.sum(Y.astype(dtype), axis=0, keepdims=True)
        return add(self.of.rmatmat(Y), -jnp.conj(self.mean)[:, None].astype(dtype) * total)

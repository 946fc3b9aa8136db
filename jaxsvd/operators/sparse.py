"""A sparse matrix of jax.experimental.sparse, BCOO or BCSR."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import sparse

from .base import Operator, operator, static


@operator
class Sparse(Operator):
    """A sparse matrix by its coordinates: values (nse,), rows (nse,), columns (nse,).

    A X gathers the rows of X at the columns of the nonzeros, scales them and adds them up by row;
    A^H Y the other way round: O(nse l) time and memory for either. The derivative of either with
    respect to the values is again of size nse: no (m, n) array appears anywhere.

    Attributes:
        data: values of the nonzeros, (nse,); the leaf that gradients reach.
        rows: row of each, (nse,), integers.
        columns: column of each, (nse,), integers.
        size: shape of the matrix.
        rows_sorted: whether the nonzeros are ordered by row.
    """

    data: jax.Array
    rows: jax.Array
    columns: jax.Array
    size: tuple[int, int] = static()
    rows_sorted: bool = static(default=False)

    @classmethod
    def from_matrix(cls, a: Any) -> "Sparse":
        """Return the operator of a two-dimensional BCOO or BCSR matrix without batch axes."""
        if isinstance(a, sparse.BCSR):
            a = a.to_bcoo()
        if a.n_batch or a.n_dense or len(a.shape) != 2:
            raise ValueError(
                "Sparse: a BCOO or BCSR matrix must have two sparse axes and no batch axes, got "
                f"shape {a.shape} with n_batch={a.n_batch} and n_dense={a.n_dense}"
            )
        shape = (int(a.shape[0]), int(a.shape[1]))
        return cls(a.data, a.indices[:, 0], a.indices[:, 1], shape, bool(a.indices_sorted))

    @property
    def shape(self):
        """Rows and columns."""
        return self.size

    @property
    def dtype(self):
        """Dtype of the products."""
        return self.data.dtype

    def _multiply(self, data, X, source, target, length, is_sorted):
        # Entries that pad a BCOO point one past the end: they gather a fill of 0 and are dropped.
        terms = data[:, None] * X.at[source].get(mode="fill", fill_value=0)
        zero = jnp.zeros((length, X.shape[1]), terms.dtype)
        return zero.at[target].add(terms, mode="drop", indices_are_sorted=is_sorted)

    def matmat(self, X):
        """Return A X."""
        return self._multiply(self.data, X, self.columns, self.rows, self.size[0], self.rows_sorted)

    def rmatmat(self, Y):
        """Return A^H Y."""
        return self._multiply(jnp.conj(self.data), Y, self.rows, self.columns, self.size[1], False)

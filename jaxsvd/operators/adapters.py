"""Operators of other libraries, recognised by what they can do, and `as_operator`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

from .. import _checks
from .base import Operator, operator, static
from .dense import Dense
from .function import Function
from .sparse import Sparse


class _Identity:
    """Any object as a static field: equal to itself alone."""

    def __init__(self, value: Any):
        self.value = value


@operator
class Host(Operator):
    """An operator that lives outside JAX (SciPy's LinearOperator): called back on the host.

    No gradient reaches it; it runs wherever `jax.pure_callback` does.
    """

    held: _Identity = static()

    @property
    def shape(self):
        """Rows and columns."""
        return tuple(int(size) for size in self.held.value.shape)

    @property
    def dtype(self):
        """Dtype of the products, in the precision that JAX has switched on."""
        return jnp.zeros((), self.held.value.dtype or float).dtype

    def _call(self, method, X, rows):
        def on_host(X):
            return np.asarray(method(np.asarray(X)), self.dtype)

        out = jax.ShapeDtypeStruct((rows, X.shape[1]), self.dtype)
        return jax.pure_callback(on_host, out, X, vmap_method="sequential")

    def matmat(self, X):
        """Return A X."""
        return self._call(self.held.value.matmat, X, self.shape[0])

    def rmatmat(self, Y):
        """Return A^H Y."""
        return self._call(self.held.value.rmatmat, Y, self.shape[1])


def _matvec(a: Any, x: jax.Array) -> jax.Array:
    return a.mv(x)


def as_operator(a: Any, *, name: str = "as_operator") -> Operator:
    """Return an operator for a matrix in any form.

    Args:
        a: an operator of this library; an array (m, n); a BCOO or BCSR matrix; a lineax operator
            (anything with ``mv`` and ``in_structure``); a SciPy LinearOperator or sparse matrix
            (anything with ``matmat`` and ``rmatmat``, or ``@``, ``T`` and a shape, on the host).
        name: of the calling function, for messages.

    Returns:
        An Operator.

    Raises:
        TypeError: ``a`` is none of these.
        ValueError: an array that has not two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> jaxsvd.operators.as_operator(jnp.ones((3, 2))).shape
        (3, 2)
    """
    if isinstance(a, Operator):
        return a
    if isinstance(a, (sparse.BCOO, sparse.BCSR)):
        return Sparse.from_matrix(a)
    if isinstance(a, (jax.Array, np.ndarray)):
        a = _checks.matrix(name, a)
        if a.ndim != 2:
            raise ValueError(f"{name}: `a` must have shape (m, n), got {a.shape}")
        return Dense(a)
    if hasattr(a, "mv") and hasattr(a, "in_structure"):
        structure = a.in_structure()
        if not hasattr(structure, "shape"):
            raise TypeError(f"{name}: `a` must act on a single array, got input {structure}")
        return Function(_matvec, a, tuple(structure.shape), structure.dtype)
    if hasattr(a, "matmat") and hasattr(a, "rmatmat") and hasattr(a, "shape"):
        return Host(_Identity(a))
    raise TypeError(
        f"{name}: `a` must be an array, a BCOO or BCSR matrix, an operator, a lineax operator or a "
        f"SciPy LinearOperator, got {_checks.describe(a)}"
    )

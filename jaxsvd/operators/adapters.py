"""Operators of other libraries, recognised by what they can do; checks on request."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import sparse

from .. import _checks
from ..algorithms.products import adjoint_product
from .base import Operator, is_complex, on_block, operator, promote, real_dtype, static
from .dense import Dense
from .function import Function
from .sparse import Sparse, with_transpose


class _Same:
    """Any object as a static field: equal where it is the same object."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


@operator
class Host(Operator):
    """A matrix that lives outside JAX, such as SciPy's LinearOperator, called back on the host.

    No gradient reaches it, but gradients pass through its products to the vectors. Each product
    costs a copy of the block to the host and back; it runs wherever `jax.pure_callback` does.

    Attributes:
        held: the object; made by `as_operator`.

    Example:
        >>> import jax.numpy as jnp, numpy as np, jaxsvd
        >>> from scipy.sparse.linalg import aslinearoperator
        >>> A = jaxsvd.operators.as_operator(aslinearoperator(np.array([[1.0, 2.0], [3.0, 4.0]])))
        >>> print(A @ jnp.ones(2))
        [3. 7.]
    """

    held: _Same = static()

    @property
    def shape(self):
        """Rows and columns."""
        return tuple(int(size) for size in self.held.value.shape)

    @property
    def dtype(self):
        """Dtype of the products, in the precision that JAX has switched on; at least float32."""
        dtype = np.dtype(getattr(self.held.value, "dtype", None) or float)
        dtype = dtype if jnp.issubdtype(dtype, jnp.inexact) else np.dtype(float)
        return jax.dtypes.canonicalize_dtype(promote(dtype))

    def _call(self, adjoint, X):
        m, n = self.shape[::-1] if adjoint else self.shape

        def on_host(X):  # under vmap with leading axes
            X = np.asarray(X)
            block = np.moveaxis(X, -2, 0)
            Y = _on_host(self.held.value, adjoint, block.reshape(n, -1))
            Y = np.asarray(Y, X.dtype).reshape(m, *block.shape[1:])
            return np.ascontiguousarray(np.moveaxis(Y, 0, -2))

        out = jax.ShapeDtypeStruct((m, X.shape[1]), X.dtype)
        return jax.pure_callback(on_host, out, X, vmap_method="expand_dims")

    def _product(self, adjoint, X):
        def multiply(X):
            return with_transpose(
                lambda X: self._call(adjoint, X),
                lambda Y: jnp.conj(self._call(not adjoint, jnp.conj(Y))),
                X,
                self.shape[1 if adjoint else 0],
            )

        return on_block(multiply, self.dtype, X)

    def matmat(self, X):
        """Return A X."""
        return self._product(False, X)

    def rmatmat(self, Y):
        """Return A^H Y."""
        return self._product(True, Y)


def _is_host_matrix(a: Any) -> bool:
    blocks, vectors = ("matmat", "rmatmat"), ("matvec", "rmatvec")
    known = [blocks, vectors, ("__matmul__", "T", "dtype")]
    return hasattr(a, "shape") and any(all(hasattr(a, name) for name in names) for names in known)


def _on_host(a: Any, adjoint: bool, X: np.ndarray) -> Any:
    """Return a X or a^H X for an object of NumPy's world."""
    if hasattr(a, "matmat") and hasattr(a, "rmatmat"):
        return (a.rmatmat if adjoint else a.matmat)(X)
    if hasattr(a, "matvec") and hasattr(a, "rmatvec"):
        call = a.rmatvec if adjoint else a.matvec
        return np.stack([np.ravel(call(x)) for x in X.T], axis=1)
    return np.conj(a.T @ np.conj(X)) if adjoint else a @ X


class _Applied:
    """An object's ``mv`` as a function of the arrays in it; what else it holds is structure."""

    def __init__(self, a: Any):
        leaves, structure = jax.tree.flatten(a)
        is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
        self.arrays = [leaf for leaf, yes in zip(leaves, is_array, strict=True) if yes]
        rest = [None if yes else _Same(x) for x, yes in zip(leaves, is_array, strict=True)]
        self.rest = structure, tuple(rest)

    def __call__(self, arrays, x):
        structure, rest = self.rest
        remaining = iter(arrays)
        leaves = [next(remaining) if leaf is None else leaf.value for leaf in rest]
        return structure.unflatten(leaves).mv(x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Applied) and other.rest == self.rest

    def __hash__(self) -> int:
        return hash(self.rest)


class _WithoutParams:
    """The function x -> fn(x) as one of (params, x); equal where fn is."""

    def __init__(self, fn: Callable):
        self.fn = fn
        self.__name__ = getattr(fn, "__name__", repr(fn))

    def __call__(self, _, x):
        return self.fn(x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _WithoutParams) and other.fn == self.fn

    def __hash__(self) -> int:
        return hash(self.fn)


def as_operator(
    a: Any,
    *,
    in_shape: Any = None,
    in_dtype: Any = None,
    params: Any = None,
    name: str = "as_operator",
) -> Operator:
    """Return an operator for a matrix in any form.

    Args:
        a: an operator of this library; an array (m, n); a BCOO or BCSR matrix; a SciPy sparse
            matrix (copied to the device); a lineax operator (anything with ``mv`` and
            ``in_structure``); a function with its ``in_shape``; a SciPy LinearOperator (anything
            with a shape and ``matmat`` and ``rmatmat``, ``matvec`` and ``rmatvec``, or ``@`` and
            ``T``, called back on the host).
        in_shape: of the array that a function takes.
        in_dtype: of it; see `Function`.
        params: pytree that gradients reach; the function is fn(params, x) then, otherwise fn(x).
        name: of the calling function, for messages.

    Returns:
        An Operator.

    Raises:
        TypeError: ``a`` is none of these.
        ValueError: an array that has not two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.operators.as_operator(jnp.flip, in_shape=(2,)).to_dense())
        [[0. 1.]
         [1. 0.]]
    """
    if in_shape is not None:
        _checks.function(name, "a", a)
        if params is None:
            return Function(_WithoutParams(a), (), in_shape, in_dtype)
        return Function(a, params, in_shape, in_dtype)
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
        fn = _Applied(a)
        return Function(fn, fn.arrays, tuple(structure.shape), structure.dtype)
    if hasattr(a, "tocoo") and hasattr(a, "shape"):
        a = a.tocoo()
        index = np.int32 if max(a.shape) < 2**31 else np.int64
        rows, columns = (jnp.asarray(np.asarray(x, index)) for x in (a.row, a.col))
        data = np.asarray(a.data)
        data = jnp.asarray(data, jax.dtypes.canonicalize_dtype(data.dtype))
        return Sparse(data, rows, columns, a.shape).prepared()
    if _is_host_matrix(a):
        return Host(_Same(a))
    wanted = (
        "an array, a BCOO or BCSR matrix, an operator, a lineax operator, a SciPy sparse matrix or "
        "LinearOperator, or a function with its `in_shape`"
    )
    raise TypeError(f"{name}: `a` must be {wanted}, got {_checks.describe(a)}")


def _allowed(tol: float | None, dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) ** 0.5 if tol is None else tol


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.abs(x) ** 2))


def _times(name: str, op: Operator, method: str, X: jax.Array, rows: int) -> jax.Array:
    Y = getattr(op, method)(X)
    shape = rows, X.shape[1]
    if getattr(Y, "shape", None) != shape:
        raise ValueError(f"{name}: {method} must return shape {shape}, got {_checks.describe(Y)}")
    return Y


def _off_linear(op: Operator, X: jax.Array) -> tuple[jax.Array, ...]:
    m, n = op.shape
    x, y = X[:n, :1], X[:n, 1:2]
    Y = _times("check_linear", op, "matmat", jnp.concatenate([x, y, x - 2 * y], axis=1), m)
    single = _times("check_linear", op, "matmat", x, m)
    off = Y[:, 2] - Y[:, 0] + 2 * Y[:, 1]
    return _norm(off), _norm(Y[:, :1] - single), _norm(Y)


def _off_adjoint(op: Operator, X: jax.Array) -> tuple[jax.Array, ...]:
    m, n = op.shape
    X, Y = jnp.split(X, [n])
    AX = _times("check_adjoint", op, "matmat", X, m)
    AHY = _times("check_adjoint", op, "rmatmat", Y, n)
    off = adjoint_product(Y, AX) - adjoint_product(AHY, X)
    # With normal vectors an inner product is about as large as the norm of A.
    return _norm(off), jnp.maximum(_norm(AX), _norm(AHY))


def _measure(name: str, probe: Callable, op: Operator, key: Any) -> list[float]:
    """Return the numbers that a probe finds, in one program where the operator is a pytree."""
    if not isinstance(op, Operator):
        raise TypeError(f"{name}: `op` must be an operator, got {_checks.describe(op)}")
    key = jax.random.key(0) if key is None else key
    X = jax.random.normal(key, (sum(op.shape), 3), promote(op.dtype))
    is_pytree = not jax.tree_util.treedef_is_leaf(jax.tree.structure(op))
    found = (jax.jit(probe) if is_pytree else probe)(op, X)
    if any(isinstance(x, Tracer) for x in found):
        raise TypeError(f"{name}: must be called outside of jit and vmap: it looks at numbers")
    return [float(x) for x in found]


def check_linear(op: Operator, key: Any = None, *, tol: float | None = None) -> Operator:
    """Return the operator, or raise if A (x - 2 y) differs from A x - 2 A y for random x, y.

    Costs a product with three columns and one with a single one, which must agree.

    Args:
        op: an operator, such as `Function` of a function somebody else wrote.
        key: PRNG key of the vectors; default fixed.
        tol: relative difference allowed; default sqrt(eps) of the dtype.

    Returns:
        ``op`` itself.

    Raises:
        ValueError: it is not linear, or a product has the wrong shape.
        TypeError: it is no operator, or the call is traced.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> op = jaxsvd.operators.as_operator(lambda x: 2 * x + 1, in_shape=(3,))
        >>> jaxsvd.operators.check_linear(op)
        Traceback (most recent call last):
        ValueError: check_linear: A must be linear, got A(x - 2y) off A(x) - 2A(y) by ...
    """
    name = "check_linear"
    off, alone, size = _measure(name, _off_linear, op, key)
    limit = _allowed(tol, real_dtype(op.dtype)) * size
    if not off <= limit:
        raise ValueError(
            f"{name}: A must be linear, got A(x - 2y) off A(x) - 2A(y) by {off / (size or 1):.1e} "
            "of its size"
        )
    if not alone <= limit:
        raise ValueError(
            f"{name}: matmat must treat each column by itself, got another result for one column "
            f"than for it among three, by {alone / (size or 1):.1e} of its size"
        )
    return op


def check_adjoint(op: Operator, key: Any = None, *, tol: float | None = None) -> Operator:
    """Return the operator, or raise if rmatmat is not the adjoint of matmat: <A x, y> = <x, A^H y>.

    Costs a product with three columns on either side.

    Args:
        op: an operator, such as one of your own class.
        key: PRNG key of the vectors; default fixed.
        tol: difference allowed relative to the size of A; default sqrt(eps) of the dtype.

    Returns:
        ``op`` itself.

    Raises:
        ValueError: a product has the wrong shape, or the two do not belong together.
        TypeError: it is no operator, or the call is traced.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> jaxsvd.operators.check_adjoint(jaxsvd.operators.Dense(jnp.ones((3, 2)))).shape
        (3, 2)
    """
    name = "check_adjoint"
    off, size = _measure(name, _off_adjoint, op, key)
    if not off <= _allowed(tol, real_dtype(op.dtype)) * size:
        conjugate = " (of a complex operator it conjugates)" if is_complex(op.dtype) else ""
        raise ValueError(
            f"{name}: rmatmat must be the adjoint of matmat{conjugate}, got <A x, y> off "
            f"<x, A^H y> by {off / (size or 1):.1e} of the size of A"
        )
    return op

"""What an algorithm needs of a matrix: its products with blocks of vectors, its shape and dtype."""

import dataclasses
import functools
import numbers
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _checks

Class = TypeVar("Class", bound=type)
F32 = np.dtype(np.float32)


def static(**keywords: Any) -> Any:
    """Declare a dataclass field that belongs to the pytree's structure: hashable, no gradient."""
    return dataclasses.field(metadata={"static": True}, **keywords)


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def operator(cls: Class) -> Class:
    """Make a class a frozen dataclass and a pytree; ``static()`` fields are its structure.

    A pytree may be rebuilt around anything (None, object(), an axis number), so rebuilding goes
    past ``__init__`` and its checks; these run only where somebody makes an operator.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    data = [f.name for f in fields if not f.metadata.get("static")]
    meta = [f.name for f in fields if f.metadata.get("static")]

    def flatten(op):
        return [getattr(op, name) for name in data], tuple(getattr(op, name) for name in meta)

    def flatten_with_keys(op):
        children, aux = flatten(op)
        keys = map(jax.tree_util.GetAttrKey, data)
        return list(zip(keys, children, strict=True)), aux

    def unflatten(aux, children):
        op = object.__new__(cls)
        op.__dict__.update(zip(meta, aux, strict=True), **dict(zip(data, children, strict=True)))
        return op

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def replace(op: Any, **values: Any) -> None:
    """Set fields of a frozen operator, from its own ``__post_init__`` only."""
    for name, value in values.items():
        object.__setattr__(op, name, value)


class Operator:
    """A linear map C^n -> C^m, known by its products with blocks of vectors.

    A subclass defines ``shape``, ``dtype``, ``matmat`` and ``rmatmat``; the rest follows.
    `check_adjoint` tells whether the two products belong together. Operators are pytrees whose
    arrays gradients reach. They compose: ``A @ B``, ``A @ X`` and ``Y @ A`` for arrays, ``A + B``,
    ``A - B``, ``2 * A``, ``A / 2``, ``A.T``, ``A.H``; nothing is multiplied out.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxsvd
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass
        ... class Diagonal(jaxsvd.operators.Operator):
        ...     d: jax.Array
        ...     shape = property(lambda self: (self.d.size, self.d.size))
        ...     dtype = property(lambda self: self.d.dtype)
        ...     def matmat(self, X):
        ...         return self.d[:, None] * X
        ...     def rmatmat(self, Y):
        ...         return jnp.conj(self.d)[:, None] * Y
        >>> A = jaxsvd.operators.check_adjoint(Diagonal(jnp.arange(1.0, 4.0)))
        >>> print((2 * A @ A).to_dense())
        [[ 2.  0.  0.]
         [ 0.  8.  0.]
         [ 0.  0. 18.]]
    """

    # NumPy must leave `array * operator` and `array @ operator` to the methods below.
    __array_ufunc__ = None
    shape: Any  # (m, n)
    dtype: Any

    def matmat(self, X: jax.Array) -> jax.Array:
        """Return A X: (n, l) -> (m, l)."""
        raise TypeError(f"{type(self).__name__} must define matmat")

    def rmatmat(self, Y: jax.Array) -> jax.Array:
        """Return A^H Y: (m, l) -> (n, l)."""
        raise TypeError(f"{type(self).__name__} must define rmatmat")

    def to_dense(self) -> jax.Array:
        """Return the matrix itself, (m, n): for small operators and tests."""
        m, n = self.shape
        if n <= m:
            return self.matmat(jnp.eye(n, dtype=self.dtype))
        return jnp.conj(self.rmatmat(jnp.eye(m, dtype=self.dtype))).T

    @property
    def T(self) -> "Operator":
        """The transpose, without conjugation."""
        return Transpose(self, conjugate=False)

    @property
    def H(self) -> "Operator":
        """The adjoint: transposed and conjugated."""
        return Transpose(self, conjugate=True)

    def __repr__(self) -> str:
        try:
            m, n = self.shape
            return f"{type(self).__name__}({m} x {n}, {jnp.dtype(self.dtype).name})"
        except Exception:  # a pytree that holds something else than arrays just now
            return f"{type(self).__name__}(...)"

    def __matmul__(self, other: Any) -> Any:
        """Return A B for an operator B, A X for an array X of shape (n,) or (n, l)."""
        if isinstance(other, Operator):
            return Product(self, other)
        X = _checks.array(f"{type(self).__name__} @", other, "X")
        n = self.shape[1]
        if X.ndim not in (1, 2) or X.shape[0] != n:
            raise ValueError(
                f"{type(self).__name__} @: `X` must have shape ({n},) or ({n}, l), got {X.shape}"
            )
        return self.matmat(X[:, None])[:, 0] if X.ndim == 1 else self.matmat(X)

    def __rmatmul__(self, other: Any) -> jax.Array:
        """Return Y A for an array Y of shape (m,) or (l, m)."""
        Y = _checks.array(f"@ {type(self).__name__}", other, "Y")
        m = self.shape[0]
        if Y.ndim not in (1, 2) or Y.shape[-1] != m:
            raise ValueError(
                f"@ {type(self).__name__}: `Y` must have shape ({m},) or (l, {m}), got {Y.shape}"
            )
        product = jnp.conj(self.rmatmat(jnp.conj(Y[:, None] if Y.ndim == 1 else Y.T)))
        return product[:, 0] if Y.ndim == 1 else product.T

    def __add__(self, other: Any) -> "Operator":
        """Return A + B."""
        return Sum(self, other)

    def __radd__(self, other: Any) -> "Operator":
        """Return A for 0 + A, with which `sum` begins."""
        if isinstance(other, int) and other == 0:
            return self
        require("Sum", other)
        return Sum(other, self)  # type: ignore[arg-type]

    def __sub__(self, other: Any) -> "Operator":
        """Return A - B."""
        require("Sum", other)
        return Sum(self, -other)

    def __rsub__(self, other: Any) -> "Operator":
        """Raise, since B is no operator in B - A."""
        require("Sum", other)
        return Sum(other, -self)

    def __neg__(self) -> "Operator":
        """Return -A."""
        return self * -1.0

    def __mul__(self, scalar: Any) -> "Operator":
        """Return c A for a number c."""
        # What has no precision of its own takes that of A.
        loose = isinstance(scalar, numbers.Number) or getattr(scalar, "weak_type", False)
        if loose or jnp.issubdtype(getattr(scalar, "dtype", None) or object, jnp.integer):
            wide = promote(self.dtype, jnp.complex64)
            dtype = wide if jnp.iscomplexobj(scalar) else real_dtype(self.dtype)
            scalar = jnp.asarray(scalar, dtype)
        return Scaled(self, scalar)  # type: ignore[arg-type]

    __rmul__ = __mul__

    def __truediv__(self, scalar: Any) -> "Operator":
        """Return A / c for a number c."""
        return self * (1 / scalar)


def real_dtype(dtype: Any) -> np.dtype:
    """Return the real dtype of the same precision."""
    return jnp.finfo(dtype).dtype


def promote(*dtypes: Any) -> np.dtype:
    """Return the dtype that holds all of these, under strict promotion too; at least float32."""
    return functools.reduce(np.promote_types, [np.dtype(dtype) for dtype in dtypes], F32)


def is_complex(dtype: Any) -> bool:
    """Return whether a dtype is complex."""
    return jnp.issubdtype(dtype, jnp.complexfloating)


def inexact(name: str, argument: str, a: Any, ndim: int) -> jax.Array:
    """Return ``a`` as an array of floating or complex numbers with ``ndim`` axes, or raise."""
    a = _checks.array(name, a, argument)
    if a.ndim != ndim:
        raise ValueError(f"{name}: `{argument}` must have {ndim} axes, got shape {a.shape}")
    return a


def require(name: str, *operands: Any) -> None:
    """Raise unless all operands are operators."""
    for operand in operands:
        if not isinstance(operand, Operator):
            raise TypeError(
                f"{name}: operands must be operators, got {_checks.describe(operand)}; "
                "wrap it with operators.as_operator"
            )


def on_block(multiply: Callable, dtype: Any, X: jax.Array) -> jax.Array:
    """Return multiply(X) for a map of the given dtype, X in the dtype that both promote to.

    A real map takes a complex block as twice as many real columns: no complex copy of the matrix.
    """
    if is_complex(X.dtype) and not is_complex(dtype):
        Y = on_block(multiply, dtype, jnp.concatenate([X.real, X.imag], axis=1))
        return lax.complex(*jnp.split(Y, 2, axis=1))
    return multiply(X.astype(promote(dtype, X.dtype)))


def add(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return x + y in the dtype that both promote to."""
    dtype = promote(x.dtype, y.dtype)
    return x.astype(dtype) + y.astype(dtype)


def _times(c: jax.Array, x: jax.Array) -> jax.Array:
    dtype = promote(c.dtype, x.dtype)
    return c.astype(dtype) * x.astype(dtype)


@operator
class Transpose(Operator):
    """A^H, or A^T where ``conjugate`` is False; at the cost of A.

    Attributes:
        of: the operator A, (m, n); the transpose is (n, m).
        conjugate: True for A^H.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.operators.Dense(jnp.array([[1.0, 2.0], [3.0, 4.0]])).T.to_dense())
        [[1. 3.]
         [2. 4.]]
    """

    of: Operator
    conjugate: bool = static(default=True)

    def __post_init__(self):
        require("Transpose", self.of)
        _checks.flag("Transpose", "conjugate", self.conjugate)

    @property
    def shape(self):
        """Rows and columns."""
        return self.of.shape[::-1]

    @property
    def dtype(self):
        """Dtype of the products."""
        return self.of.dtype

    def matmat(self, X):
        """Return A^H X, or A^T X = conj(A^H conj X)."""
        return self.of.rmatmat(X) if self.conjugate else jnp.conj(self.of.rmatmat(jnp.conj(X)))

    def rmatmat(self, Y):
        """Return A Y, or conj(A conj Y)."""
        return self.of.matmat(Y) if self.conjugate else jnp.conj(self.of.matmat(jnp.conj(Y)))

    @property
    def H(self):
        """The adjoint of the transpose: A again for A^H."""
        return self.of if self.conjugate else Transpose(self, conjugate=True)

    @property
    def T(self):
        """The transpose of the transpose: A again for A^T."""
        return Transpose(self, conjugate=False) if self.conjugate else self.of


@operator
class Sum(Operator):
    """A + B, at the cost of both.

    Attributes:
        left: the operator A, (m, n).
        right: the operator B, (m, n).

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jaxsvd.operators.Dense(jnp.eye(2))
        >>> print((A + A).to_dense())
        [[2. 0.]
         [0. 2.]]
    """

    left: Operator
    right: Operator

    def __post_init__(self):
        require("Sum", self.left, self.right)
        if tuple(self.left.shape) != tuple(self.right.shape):
            raise ValueError(
                f"Sum: `right` must have shape {self.left.shape}, got {self.right.shape}"
            )

    @property
    def shape(self):
        """Rows and columns."""
        return self.left.shape

    @property
    def dtype(self):
        """Dtype of the products."""
        return promote(self.left.dtype, self.right.dtype)

    def matmat(self, X):
        """Return A X + B X."""
        return add(self.left.matmat(X), self.right.matmat(X))

    def rmatmat(self, Y):
        """Return A^H Y + B^H Y."""
        return add(self.left.rmatmat(Y), self.right.rmatmat(Y))


@operator
class Product(Operator):
    """A B, never multiplied out, at the cost of both.

    Attributes:
        left: the operator A, (m, r).
        right: the operator B, (r, n).

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jaxsvd.operators.Dense(jnp.array([[1.0, 2.0]]))
        >>> print((A @ A.T).to_dense())
        [[5.]]
    """

    left: Operator
    right: Operator

    def __post_init__(self):
        require("Product", self.left, self.right)
        if self.left.shape[1] != self.right.shape[0]:
            raise ValueError(
                f"Product: `right` must have {self.left.shape[1]} rows, got {self.right.shape}"
            )

    @property
    def shape(self):
        """Rows and columns."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def dtype(self):
        """Dtype of the products."""
        return promote(self.left.dtype, self.right.dtype)

    def matmat(self, X):
        """Return A (B X)."""
        return self.left.matmat(self.right.matmat(X))

    def rmatmat(self, Y):
        """Return B^H (A^H Y)."""
        return self.right.rmatmat(self.left.rmatmat(Y))


@operator
class Scaled(Operator):
    """c A for a number c that gradients reach, at the cost of A.

    Attributes:
        of: the operator A, (m, n).
        scalar: c, an array without axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print((3 * jaxsvd.operators.Dense(jnp.eye(2))).to_dense())
        [[3. 0.]
         [0. 3.]]
    """

    of: Operator
    scalar: jax.Array

    def __post_init__(self):
        require("Scaled", self.of)
        if isinstance(self.scalar, Operator):
            raise TypeError("Scaled: `scalar` must be a number, got an operator; write A @ B")
        replace(self, scalar=inexact("Scaled", "scalar", self.scalar, 0))

    @property
    def shape(self):
        """Rows and columns."""
        return self.of.shape

    @property
    def dtype(self):
        """Dtype of the products."""
        return promote(self.of.dtype, self.scalar.dtype)

    def matmat(self, X):
        """Return c A X."""
        return _times(self.scalar, self.of.matmat(X))

    def rmatmat(self, Y):
        """Return conj(c) A^H Y."""
        return _times(jnp.conj(self.scalar), self.of.rmatmat(Y))

"""What an algorithm needs of a matrix: its products with blocks of vectors, its shape and dtype."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks

Class = TypeVar("Class", bound=type)


def operator(cls: Class) -> Class:
    """Make a class a frozen dataclass and a pytree; ``static()`` fields are its structure."""
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    data = [f.name for f in fields if not f.metadata.get("static")]
    meta = [f.name for f in fields if f.metadata.get("static")]
    return jax.tree_util.register_dataclass(cls, data, meta)


def static(**keywords: Any) -> Any:
    """Declare a dataclass field that belongs to the pytree's structure: hashable, no gradient."""
    return dataclasses.field(metadata={"static": True}, **keywords)


class Operator:
    """A linear map C^n -> C^m, known by its products with blocks of vectors.

    A subclass defines ``shape``, ``dtype``, ``matmat`` and ``rmatmat``; the rest follows. Operators
    are pytrees whose arrays gradients reach. They compose: ``A @ B``, ``A @ X`` for an array X,
    ``A + B``, ``A - B``, ``2 * A``, ``A.T``, ``A.H``.
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

    def __add__(self, other: Any) -> "Operator":
        """Return A + B."""
        return Sum(self, other)

    def __sub__(self, other: Any) -> "Operator":
        """Return A - B."""
        return Sum(self, Scaled(other, jnp.asarray(-1.0, real_dtype(self.dtype))))

    def __neg__(self) -> "Operator":
        """Return -A."""
        return self * -1.0

    def __mul__(self, scalar: Any) -> "Operator":
        """Return c A for a number c."""
        return Scaled(self, jnp.asarray(scalar, self.dtype))

    __rmul__ = __mul__


def real_dtype(dtype: Any) -> np.dtype:
    """Return the real dtype of the same precision."""
    return jnp.finfo(dtype).dtype


def _require(name: str, *operands: Any) -> None:
    for operand in operands:
        if not isinstance(operand, Operator):
            raise TypeError(
                f"{name}: operands must be operators, got {_checks.describe(operand)}; "
                "wrap it with operators.as_operator"
            )


@operator
class Transpose(Operator):
    """A^H, or A^T where ``conjugate`` is False."""

    of: Operator
    conjugate: bool = static(default=True)

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
        """The operator itself again."""
        return self.of if self.conjugate else Transpose(self, conjugate=True)

    @property
    def T(self):
        """The operator itself again."""
        return Transpose(self, conjugate=False) if self.conjugate else self.of


@operator
class Sum(Operator):
    """A + B."""

    left: Operator
    right: Operator

    def __post_init__(self):
        if isinstance(self.left, Operator) or isinstance(self.right, Operator):
            _require("Sum", self.left, self.right)
            if self.left.shape != self.right.shape:
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
        return jnp.promote_types(self.left.dtype, self.right.dtype)

    def matmat(self, X):
        """Return A X + B X."""
        return self.left.matmat(X) + self.right.matmat(X)

    def rmatmat(self, Y):
        """Return A^H Y + B^H Y."""
        return self.left.rmatmat(Y) + self.right.rmatmat(Y)


@operator
class Product(Operator):
    """A B, never multiplied out."""

    left: Operator
    right: Operator

    def __post_init__(self):
        if isinstance(self.left, Operator) or isinstance(self.right, Operator):
            _require("Product", self.left, self.right)
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
        return jnp.promote_types(self.left.dtype, self.right.dtype)

    def matmat(self, X):
        """Return A (B X)."""
        return self.left.matmat(self.right.matmat(X))

    def rmatmat(self, Y):
        """Return B^H (A^H Y)."""
        return self.right.rmatmat(self.left.rmatmat(Y))


@operator
class Scaled(Operator):
    """c A for a scalar c, an array of no axes that gradients reach."""

    of: Operator
    scalar: jax.Array

    @property
    def shape(self):
        """Rows and columns."""
        return self.of.shape

    @property
    def dtype(self):
        """Dtype of the products."""
        return jnp.promote_types(self.of.dtype, self.scalar.dtype)

    def matmat(self, X):
        """Return c A X."""
        return self.scalar.astype(self.dtype) * self.of.matmat(X)

    def rmatmat(self, Y):
        """Return conj(c) A^H Y."""
        return jnp.conj(self.scalar).astype(self.dtype) * self.of.rmatmat(Y)

"""Linear maps given as functions: a user's own, and the Jacobian of one that is not linear."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .. import _checks
from .base import Operator, is_complex, on_block, operator, promote, replace, static


def highest() -> Any:
    """Return the context in which other people's products run: at full precision.

    What names its own precision keeps it.
    """
    return jax.default_matmul_precision("highest")


@operator
class Function(Operator):
    """A linear function as an operator; its adjoint comes from `jax.linear_transpose`.

    The function takes an array of ``in_shape`` and returns one of any shape; both are flattened, so
    the matrix has a row for each entry of the output and a column for each of the input. A block of
    l vectors costs l calls, made as one by `jax.vmap`; products that name no precision of their own
    run at the highest.

    Gradients reach ``params`` only: an array that the function closes over is a constant, of which
    no gradient is known and whose change is not seen. `check_linear` tells whether the function is
    linear: x -> W x + b is not.

    Attributes:
        fn: fn(params, x), linear in x; a new function object is a new program, so define it once.
        params: pytree that gradients reach; () for a function without parameters.
        in_shape: shape of x.
        in_dtype: dtype of x; by default that of the floating-point leaves of params, or JAX's own.

    Raises:
        TypeError: fn cannot be called, or returns no array.
        ValueError: fn returns complex numbers for real x: the dtype of x must be complex then.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> op = jaxsvd.operators.Function(lambda w, x: w * jnp.cumsum(x), jnp.ones(()), (3,))
        >>> print(op.to_dense())
        [[1. 0. 0.]
         [1. 1. 0.]
         [1. 1. 1.]]
    """

    fn: Callable[[Any, jax.Array], jax.Array] = static()
    params: Any
    in_shape: tuple[int, ...] = static()
    in_dtype: Any = static(default=None)

    def __post_init__(self):
        _checks.function("Function", "fn", self.fn)
        if isinstance(self.in_shape, (int, np.integer)):
            replace(self, in_shape=(self.in_shape,))
        shape = tuple(
            _checks.static_int("Function", "in_shape", length, 0, 2**62) for length in self.in_shape
        )
        dtype = _dtype_of(self.params) if self.in_dtype is None else jnp.dtype(self.in_dtype)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(f"Function: `in_dtype` must be floating-point or complex, got {dtype}")
        replace(self, in_shape=shape, in_dtype=dtype)
        out = self._output
        if not hasattr(out, "shape"):
            raise TypeError(f"Function: `fn` must return one array, got {out}")
        if is_complex(out.dtype) and not is_complex(dtype):
            raise ValueError(
                f"Function: `in_dtype` must be complex where `fn` returns {out.dtype}, got {dtype}"
            )

    @property
    def _input(self):
        return jax.ShapeDtypeStruct(self.in_shape, self.in_dtype)

    @functools.cached_property
    def _output(self):
        return jax.eval_shape(self._call, self._input)

    def _call(self, x):
        with highest():
            return self.fn(self.params, x)

    @property
    def shape(self):
        """Entries of the output by entries of the input."""
        return math.prod(self._output.shape), math.prod(self.in_shape)

    @property
    def dtype(self):
        """Dtype of the products: at least float32."""
        return promote(self._output.dtype)

    def matmat(self, X):
        """Return fn of each column of X, flattened."""

        def column(x):
            return self._call(x.reshape(self.in_shape).astype(self.in_dtype)).ravel()

        def multiply(X):
            return jax.vmap(column, in_axes=1, out_axes=1)(X).astype(self.dtype)

        return on_block(multiply, self.in_dtype, X)

    def rmatmat(self, Y):
        """Return the adjoint of fn on each column of Y: conj(fn^T(conj y))."""
        out = self._output
        transpose = jax.linear_transpose(self._call, self._input)

        def column(y):
            (x,) = transpose(jnp.conj(y).reshape(out.shape).astype(out.dtype))
            return jnp.conj(x).ravel()

        def multiply(Y):
            return jax.vmap(column, in_axes=1, out_axes=1)(Y).astype(self.dtype)

        try:
            return on_block(multiply, self.dtype, Y)
        except (NotImplementedError, AssertionError, TypeError, ValueError) as error:
            raise ValueError(
                "Function: `fn` must be linear in x and made of operations that JAX can transpose, "
                f"got {getattr(self.fn, '__name__', self.fn)}: {error}"
            ) from error


@operator
class Jacobian(Operator):
    """The Jacobian of fn at x: sigma_1 of it is the local Lipschitz constant of fn.

    J X by forward mode and J^H Y by reverse mode, the function itself evaluated once for each
    block; no entry of the matrix is formed. Rows are the entries of the output, columns those of x,
    both raveled as by `jax.flatten_util.ravel_pytree`. Of a complex x the function must be
    holomorphic.

    Attributes:
        fn: fn(params, x), differentiable in x; pytrees in and out.
        params: pytree that gradients reach; () for a function without parameters.
        x: the point, a pytree of floating-point arrays that gradients reach too.

    Raises:
        TypeError: fn cannot be called, or x holds integers.
        ValueError: fn returns complex numbers for real x.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> def double_angle(_, x):
        ...     return jnp.stack([x[0] ** 2 - x[1] ** 2, 2 * x[0] * x[1]])
        >>> J = jaxsvd.operators.Jacobian(double_angle, (), jnp.array([1.0, 2.0]))
        >>> print(J.to_dense())
        [[ 2. -4.]
         [ 4.  2.]]
    """

    fn: Callable[[Any, Any], Any] = static()
    params: Any
    x: Any

    def __post_init__(self):
        _checks.function("Jacobian", "fn", self.fn)
        for leaf in jax.tree.leaves(self.x):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                raise TypeError(
                    "Jacobian: `x` must hold floating-point or complex arrays, got "
                    f"{_checks.describe(leaf)}"
                )
        if is_complex(self.dtype) and not is_complex(self._flat()[1].dtype):
            raise ValueError(
                "Jacobian: `x` must be complex where `fn` returns complex numbers, or `fn` return "
                "their real and imaginary parts"
            )

    def _flat(self):
        flat, unravel = ravel_pytree(self.x)

        def function(v):
            with highest():
                return ravel_pytree(self.fn(self.params, unravel(v)))[0]

        return function, flat

    @functools.cached_property
    def _output(self):
        return jax.eval_shape(*self._flat())

    @property
    def shape(self):
        """Entries of the output by entries of x."""
        return self._output.size, self._flat()[1].size

    @property
    def dtype(self):
        """Dtype of the products: at least float32."""
        return promote(self._output.dtype)

    def matmat(self, X):
        """Return J X by forward mode."""
        fn, flat = self._flat()
        _, push = jax.linearize(fn, flat)

        def multiply(X):
            Y = jax.vmap(push, in_axes=1, out_axes=1)(X.astype(flat.dtype))
            return Y.astype(self.dtype)

        return on_block(multiply, flat.dtype, X)

    def rmatmat(self, Y):
        """Return J^H Y by reverse mode."""
        fn, flat = self._flat()
        out, pull = jax.vjp(fn, flat)

        def column(y):
            return jnp.conj(pull(jnp.conj(y).astype(out.dtype))[0])

        def multiply(Y):
            return jax.vmap(column, in_axes=1, out_axes=1)(Y).astype(self.dtype)

        return on_block(multiply, self.dtype, Y)


def _dtype_of(params: Any) -> np.dtype:
    """Return the dtype that the floating-point arrays of a pytree promote to, or the default."""
    leaves = [jnp.dtype(x.dtype) for x in jax.tree.leaves(params) if hasattr(x, "dtype")]
    leaves = [dtype for dtype in leaves if jnp.issubdtype(dtype, jnp.inexact)]
    if not leaves:
        return jnp.dtype(jnp.result_type(float))
    return leaves[0] if len(set(leaves)) == 1 else promote(*leaves)

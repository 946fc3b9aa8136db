"""Linear maps given as functions: a user's own, and the Jacobian of one that is not linear."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .base import Operator, operator, static


@operator
class Function(Operator):
    """A linear function as an operator; its adjoint comes from `jax.linear_transpose`.

    The function takes an array of ``in_shape`` and returns one of any shape; both are flattened.

    Attributes:
        fn: fn(params, x), linear in x.
        params: pytree that gradients reach; () for a function without parameters.
        in_shape: shape of x.
        in_dtype: dtype of x.

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

    @property
    def _input(self):
        dtype = jnp.result_type(float) if self.in_dtype is None else jnp.dtype(self.in_dtype)
        return jax.ShapeDtypeStruct(tuple(self.in_shape), dtype)

    @property
    def _output(self):
        return jax.eval_shape(self.fn, self.params, self._input)

    @property
    def shape(self):
        """Entries of the output by entries of the input."""
        return math.prod(self._output.shape), math.prod(self.in_shape)

    @property
    def dtype(self):
        """Dtype of the output."""
        return self._output.dtype

    def matmat(self, X):
        """Return fn of each column of X, flattened."""

        def column(x):
            return self.fn(self.params, x.reshape(self._input.shape).astype(self._input.dtype))

        return jax.vmap(lambda x: column(x).ravel(), in_axes=1, out_axes=1)(X)

    def rmatmat(self, Y):
        """Return the adjoint of fn on each column of Y: conj(fn^T(conj y))."""
        transpose = jax.linear_transpose(lambda x: self.fn(self.params, x), self._input)

        def column(y):
            (x,) = transpose(jnp.conj(y).reshape(self._output.shape).astype(self.dtype))
            return jnp.conj(x).ravel()

        return jax.vmap(column, in_axes=1, out_axes=1)(Y)


@operator
class Jacobian(Operator):
    """The Jacobian of fn at x: sigma_1 of it is the local Lipschitz constant of fn.

    Attributes:
        fn: fn(params, x), differentiable in x; pytrees in and out, real.
        params: pytree that gradients reach; () for a function without parameters.
        x: the point, a pytree that gradients reach too.
    """

    fn: Callable[[Any, Any], Any] = static()
    params: Any
    x: Any

    def _flat(self):
        flat, unravel = ravel_pytree(self.x)
        return (lambda v: ravel_pytree(self.fn(self.params, unravel(v)))[0]), flat

    @property
    def shape(self):
        """Entries of the output by entries of x."""
        fn, flat = self._flat()
        return jax.eval_shape(fn, flat).size, flat.size

    @property
    def dtype(self):
        """Dtype of the output."""
        fn, flat = self._flat()
        return jax.eval_shape(fn, flat).dtype

    def matmat(self, X):
        """Return J X by forward mode."""
        fn, flat = self._flat()
        _, push = jax.linearize(fn, flat)
        return jax.vmap(push, in_axes=1, out_axes=1)(X.astype(flat.dtype))

    def rmatmat(self, Y):
        """Return J^T Y by reverse mode."""
        fn, flat = self._flat()
        out, pull = jax.vjp(fn, flat)
        return jax.vmap(lambda y: pull(y)[0], in_axes=1, out_axes=1)(Y.astype(out.dtype))

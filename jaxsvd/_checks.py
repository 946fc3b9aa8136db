"""Checks of arguments at trace time, and the one place that decides dtypes.

Every message is one sentence: the function, the argument, what came and what is wanted.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike


def describe(x: Any) -> str:
    """Return a short description of a value for an error message."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{type(x).__name__} of shape {tuple(x.shape)} and dtype {x.dtype}"
    text = " ".join(repr(x).split())  # a message is one line
    return f"{type(x).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def array(name: str, a: Any, argument: str = "a") -> jax.Array:
    """Return ``a`` as a JAX array, or raise: lists, strings and None are not arrays.

    Integers and booleans are promoted to floating point as jnp does.
    """
    if not isinstance(a, (jax.Array, np.ndarray, np.generic)):
        raise TypeError(f"{name}: `{argument}` must be an array, got {describe(a)}")
    if not jnp.issubdtype(a.dtype, jnp.number) and a.dtype != jnp.bool_:
        raise TypeError(f"{name}: `{argument}` must hold numbers, got dtype {a.dtype}")
    a = jnp.asarray(a)
    if jnp.issubdtype(a.dtype, jnp.inexact):
        return a
    return a.astype(jax.eval_shape(jnp.sqrt, a).dtype)


def matrix(name: str, a: Any, argument: str = "a") -> jax.Array:
    """Return ``a`` as an array of shape (..., m, n), or raise."""
    a = array(name, a, argument)
    if a.ndim < 2:
        raise ValueError(
            f"{name}: `{argument}` must have shape (..., m, n), got {a.ndim}-d shape {a.shape}"
        )
    return a


def square(name: str, a: Any, argument: str = "a") -> jax.Array:
    """Return ``a`` as an array of shape (..., n, n), or raise."""
    a = matrix(name, a, argument)
    if a.shape[-1] != a.shape[-2]:
        raise ValueError(f"{name}: `{argument}` must have shape (..., n, n), got {a.shape}")
    return a


def working(a: jax.Array) -> jax.Array:
    """Return ``a`` in the dtype in which the work is done: half precision becomes float32."""
    return a.astype(jnp.float32) if a.dtype.itemsize < 4 else a


def restore(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Return a result in the dtype of the input it came from, real results staying real."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return x.astype(dtype)
    return x.astype(jnp.finfo(dtype).dtype)


def static_int(
    name: str, argument: str, value: Any, low: int, high: int, symbol: str | None = None
) -> int:
    """Return a static integer between two bounds, or raise; a tracer is refused by name."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name}: `{argument}` must be a Python int known at trace time, got a traced value; "
            f"mark it static (jax.jit(..., static_argnames='{argument}'))"
        )
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: `{argument}` must be an int, got {describe(value)}") from None
    if not low <= value <= high:
        raise ValueError(
            f"{name}: `{argument}` must satisfy {low} <= {symbol or argument} <= {high}, "
            f"got {value}"
        )
    return value


def result_dtype(name: str, value: Any, a: jax.Array) -> np.dtype:
    """Return the dtype of the results: that of ``a`` for None; complex stays complex; or raise."""
    if value is None:
        return np.dtype(a.dtype)
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    kind = jnp.complexfloating if jnp.iscomplexobj(a) else jnp.floating
    if dtype is None or isinstance(value, int) or not jnp.issubdtype(dtype, kind):
        wanted = "complex" if jnp.iscomplexobj(a) else "floating"
        came = describe(value) if dtype is None or isinstance(value, int) else dtype
        raise TypeError(f"{name}: `result_dtype` must be a {wanted} dtype, got {came}")
    return dtype


def choice(name: str, argument: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the choices, or raise."""
    if not isinstance(value, str) or value not in choices:
        wanted = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name}: `{argument}` must be one of {wanted}, got {describe(value)}")
    return value


def flag(name: str, argument: str, value: Any) -> bool:
    """Return a static boolean, or raise."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: `{argument}` must be True or False, got {describe(value)}")
    return bool(value)


def tolerance(
    name: str, argument: str, value: Any, to: str = "the largest singular value"
) -> float | None:
    """Return a static tolerance (0 <= value < 1) relative to something, or None, or raise."""
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(
            f"{name}: `{argument}` must be None or a Python float, got {describe(value)}"
        )
    if isinstance(value, np.complexfloating) or not 0 <= float(value) < 1:
        raise ValueError(
            f"{name}: `{argument}` is relative to {to} and must satisfy "
            f"0 <= {argument} < 1, got {value}"
        )
    return float(value)


def subset(name: str, value: Any, k: int) -> tuple[int, int]:
    """Return a static range 0 <= start < end <= k of indices, or raise."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f"{name}: `subset_by_index` must be a pair (start, end), got {describe(value)}"
        )
    argument = "subset_by_index"
    start = static_int(name, argument, value[0], 0, k, "start")
    end = static_int(name, argument, value[1], 0, k, "end")
    if start >= end:
        raise ValueError(f"{name}: `{argument}` must satisfy start < end, got {start} and {end}")
    return start, end


def function(name: str, argument: str, value: Any) -> Callable[..., Any]:
    """Return ``value`` if it can be called, or raise."""
    if not callable(value):
        raise TypeError(f"{name}: `{argument}` must be a function, got {describe(value)}")
    return value


def positive(name: str, argument: str, value: Any) -> Any:
    """Return a positive real number, or raise; a traced one is taken as it is."""
    if isinstance(value, Tracer):
        return value
    is_number = isinstance(value, (int, float, np.number, np.ndarray, jax.Array))
    if not is_number or isinstance(value, (bool, np.bool_)) or np.iscomplexobj(value):
        raise TypeError(f"{name}: `{argument}` must be a positive number, got {describe(value)}")
    if np.shape(value) != () or not value > 0:
        raise ValueError(f"{name}: `{argument}` must be a number > 0, got {describe(value)}")
    return value

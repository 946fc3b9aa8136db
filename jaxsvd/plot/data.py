"""What the pictures take: arrays that hold numbers, one matrix or its singular values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _checks
from .._types import SVDResult
from ..primitives.svd import svd, svdvals


def concrete(name: str, a: Any, argument: str = "a", *, real: bool = True) -> jax.Array:
    """Return an array of finite numbers in the precision of the work, or raise."""
    if isinstance(a, Tracer):
        raise TypeError(
            f"{name}: `{argument}` must hold numbers to draw, got a traced array of shape "
            f"{a.shape}; draw outside of jit, grad and vmap"
        )
    a = _checks.working(_checks.array(name, a, argument))
    if real and jnp.iscomplexobj(a):
        raise TypeError(
            f"{name}: `{argument}` must be real, got dtype {a.dtype}; take the real part, the "
            "imaginary one or the absolute value"
        )
    if not bool(jnp.isfinite(a).all()):
        count = int(jnp.sum(~jnp.isfinite(a)))
        raise ValueError(
            f"{name}: `{argument}` must be finite, got {count} NaN or Inf of {a.size} entries"
        )
    return a


def _of_shape(name: str, a: jax.Array, argument: str, wanted: str, *ndims: int) -> jax.Array:
    if a.ndim not in ndims:
        hint = "; draw the matrices of a batch one by one" if a.ndim > max(ndims) else ""
        raise ValueError(
            f"{name}: `{argument}` must have shape {wanted}, got {a.ndim}-d shape {a.shape}{hint}"
        )
    if not a.size:
        raise ValueError(f"{name}: `{argument}` must not be empty, got shape {a.shape}")
    return a


def matrix(name: str, a: Any, argument: str = "a", *, real: bool = True) -> jax.Array:
    """Return one matrix (m, n) of finite numbers, or raise."""
    return _of_shape(name, concrete(name, a, argument, real=real), argument, "(m, n)", 2)


def values(name: str, a: Any, argument: str = "a") -> np.ndarray:
    """Return the singular values (k,), descending, of a matrix, of themselves, of a result."""
    if isinstance(a, SVDResult):
        a = a.S
    a = concrete(name, a, argument, real=getattr(a, "ndim", 0) == 1)
    a = _of_shape(name, a, argument, "(m, n), or (k,) for singular values", 1, 2)
    if a.ndim == 2:
        return np.asarray(svdvals(a))
    if bool((a < 0).any()):
        raise ValueError(
            f"{name}: `{argument}` of shape (k,) must hold singular values >= 0, got "
            f"{float(a.min()):.4g}"
        )
    return -np.sort(-np.asarray(a))


def factors(name: str, a: Any) -> SVDResult:
    """Return the factors of one real matrix, or those that are given, as NumPy arrays."""
    if isinstance(a, SVDResult):
        U, S, Vh = (concrete(name, x, f"a.{field}") for field, x in zip(a._fields, a, strict=True))
        _of_shape(name, U, "a.U", "(m, k)", 2)
    else:
        U, S, Vh = svd(matrix(name, a), full_matrices=False)
    return SVDResult(*(np.asarray(x) for x in (U, S, Vh)))  # pyright: ignore[reportArgumentType]


def energy(s: np.ndarray) -> np.ndarray:
    """Return the share of sum s_i^2 that the first 1, 2, ... values hold; NaN for zeros."""
    x = np.square(s.astype(np.float64) / (s[0] if s[0] > 0 else np.nan))
    return np.cumsum(x) / np.sum(x)


def tails(s: np.ndarray) -> np.ndarray:
    """Return |A - A_r|_F / |A|_F for r = 0, ..., k (Eckart and Young); NaN for zeros."""
    x = np.square(s.astype(np.float64) / (s[0] if s[0] > 0 else np.nan))
    left = np.append(np.cumsum(x[::-1])[::-1], 0.0)  # from the small end: no cancellation
    return np.sqrt(left / left[0])

"""Functions of one matrix on which the rest stands: each joins an algorithm to a closed rule.

The caller brings the matrix to units of its power-of-two scale. Values come from one SVD, kept as
constants; first and second derivatives from `rules.closed`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .. import _checks
from .._types import SVDResult
from ..algorithms.dense import Request
from ..algorithms.phase import fix_phases
from ..algorithms.products import adjoint, product
from ..primitives.batching import power_of_two_scale
from ..primitives.hermitian import numbers as eigen_numbers_of
from ..primitives.spectral import Constants, Function, frechet
from ..primitives.svd import numbers
from ..rules.closed import (
    INVERSE_ROOT,
    RECIPROCAL,
    ROOT,
    SIGN,
    Form,
    Orthogonal,
    Truncated,
    TruncatedHermitian,
)
from ..rules.dense import herm
from ..rules.spectral import Scalar


@functools.cache
def _named(name: str) -> Function:
    """Return what `frechet` asks of a function whose divided differences its kind knows."""
    return Function(f"linalg.{name}", lambda x, constants: x, Scalar(lambda x: x, 0.0))


def _differentiable(name: str, kind: Any, a: jax.Array, W: Any) -> jax.Array:
    one = jnp.ones((), jnp.finfo(a.dtype).dtype)
    return frechet(kind, _named(name), Constants((), (), one), W, a, ())


def scaled(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return A / scale and scale, in the dtype of A."""
    scale = power_of_two_scale(a).astype(a.dtype)
    return a / scale, scale


def pseudoinverse(name: str, a: jax.Array, rtol: float | None) -> jax.Array:
    """Return A^+ (n, m) of a scaled matrix, values up to rtol s_1 dropped."""
    if min(a.shape) == 0:
        return a.mT
    return adjoint(_differentiable(name, Truncated(RECIPROCAL, rtol), a, numbers(a)))


def partial_isometry(
    name: str, a: jax.Array, W: SVDResult, rtol: float | None = None, rank: int | None = None
) -> jax.Array:
    """Return U_1 V_1^H (m, n) over the kept triplets; U_1 U_1^H and V_1 V_1^H project with it."""
    return _differentiable(name, Truncated(SIGN, rtol, rank), a, W)


def orthogonal_factor(name: str, a: jax.Array, W: SVDResult) -> jax.Array:
    """Return U V^H (m, n) from the thin SVD W of a."""
    if a.shape[0] < a.shape[1]:
        U, S, Vh = W
        return adjoint(orthogonal_factor(name, adjoint(a), SVDResult(adjoint(Vh), S, adjoint(U))))
    return _differentiable(name, Orthogonal, a, W)


def rotation(name: str, a: jax.Array) -> jax.Array:
    """Return the R with R^T R = I, det R = 1 that maximises tr(R^T A), (d, d), real."""
    U, S, Vh = numbers(a)
    sign = jnp.where(jnp.linalg.det(product(U, Vh)) < 0, -1, 1).astype(a.dtype)
    signs = jnp.ones_like(S).at[-1].set(sign)
    return _differentiable(name, Orthogonal, a, SVDResult(U * signs[None, :], S * signs, Vh))


def _of_semidefinite(name: str, form: Form, a: jax.Array, rtol: float | None) -> jax.Array:
    a = herm(a)
    return _differentiable(name, TruncatedHermitian(form, rtol), a, eigen_numbers_of(a))


def inverse_root(name: str, a: jax.Array, rtol: float | None) -> jax.Array:
    """Return A^(-1/2) of a scaled Hermitian positive semidefinite matrix, (n, n)."""
    return _of_semidefinite(name, INVERSE_ROOT, a, rtol)


def square_root(name: str, a: jax.Array, rtol: float | None) -> jax.Array:
    """Return A^(1/2) of a scaled Hermitian positive semidefinite matrix, (n, n)."""
    return _of_semidefinite(name, ROOT, a, rtol)


def fixed_numbers(a: jax.Array, *, full_matrices: bool = False) -> SVDResult:
    """Return the SVD of one matrix as constants, phases fixed as in `svd`."""
    return fix_phases(numbers(a, Request(full_matrices=full_matrices)))


# ------------------------------------------------------------------------------------- arguments


def common(*arrays: jax.Array) -> tuple[list[jax.Array], DTypeLike]:
    """Return arrays in the dtype of the work, and the dtype of the results: what all fit in."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*arrays)
    return [_checks.working(a.astype(dtype)) for a in arrays], dtype


def same_leading(name: str, **shapes: tuple[int, ...]) -> int:
    """Return how many leading axes the arguments share, or raise."""
    (first, wanted), *others = shapes.items()
    for argument, shape in others:
        if shape != wanted:
            raise ValueError(
                f"{name}: `{argument}` must have the leading axes of `{first}`, {wanted}, got "
                f"{shape}"
            )
    return len(wanted)


def right_hand_sides(name: str, a: jax.Array, b: Any) -> tuple[jax.Array, bool]:
    """Return b as (..., m, d) and whether it came as vectors (..., m), or raise."""
    b = _checks.array(name, b, "b")
    *leading, m, _ = a.shape
    vector = b.ndim == a.ndim - 1
    b = b[..., None] if vector else b
    if b.ndim != a.ndim or b.shape[-2] != m or list(b.shape[:-2]) != leading:
        shape = b.shape[:-1] if vector else b.shape
        raise ValueError(
            f"{name}: `b` must have shape {(*leading, m)} or {(*leading, m, 'd')}, as `a` has "
            f"shape {a.shape}, got {shape}"
        )
    return b, vector

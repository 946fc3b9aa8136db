"""Products of two factors: balanced, truncated, measured, without forming them."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import _checks
from .._types import SVDResult
from ..algorithms.products import adjoint, adjoint_product, product
from ..primitives.svd import svd
from ..primitives.truncated import truncated_svd


def balanced(result: SVDResult) -> tuple[jax.Array, jax.Array]:
    """Return U S^(1/2) and S^(1/2) Vh: of all factors of U S Vh those with the least norms."""
    U, S, Vh = result
    root = jnp.sqrt(S).astype(U.dtype)
    return U * root[..., None, :], root[..., :, None] * Vh


def leading(name: str, a: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """Return balanced factors (..., m, r), (..., r, n) of the best approximation of rank r."""
    rank = _checks.static_int(name, "rank", rank, 1, min(a.shape[-2:]))
    result = truncated_svd(_checks.working(a), rank)
    assert isinstance(result, SVDResult)
    left, right = balanced(result)
    return left.astype(a.dtype), right.astype(a.dtype)


def truncate(left: jax.Array, right: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """Return balanced factors of the best approximation of left @ right of a smaller rank.

    The product is never formed: its SVD is that of the small R_1 R_2^H, where left = Q_1 R_1 and
    right^H = Q_2 R_2. Cost O((m + n) r^2).
    """
    dtype = left.dtype
    Q, R = jnp.linalg.qr(_checks.working(left))
    P, T = jnp.linalg.qr(adjoint(_checks.working(right)))
    U, S, Vh = svd(product(R, adjoint(T)), full_matrices=False)
    U, S, Vh = U[..., :rank], S[..., :rank], Vh[..., :rank, :]
    left, right = balanced(SVDResult(product(Q, U), S, product(Vh, adjoint(P))))
    return left.astype(dtype), right.astype(dtype)


def squared_norm(left: jax.Array, right: jax.Array) -> jax.Array:
    """Return |left @ right|_F^2 = tr (left^H left) (right right^H), from two small matrices."""
    left, right = _checks.working(left), _checks.working(right)
    inner, outer = adjoint_product(left, left), product(right, adjoint(right))
    return jnp.real(jnp.sum(inner * outer.mT, axis=(-2, -1)))


def one_matrix(name: str, kernel: Any) -> jax.Array:
    """Return a kernel (inputs, outputs), or raise."""
    kernel = _checks.matrix(name, kernel, "kernel")
    if kernel.ndim != 2:
        raise ValueError(f"{name}: `kernel` must have shape (inputs, outputs), got {kernel.shape}")
    return kernel


def bias_of(name: str, bias: Any, outputs: int) -> jax.Array | None:
    """Return a bias (outputs,), or None, or raise."""
    if bias is None:
        return None
    bias = _checks.array(name, bias, "bias")
    if bias.shape != (outputs,):
        raise ValueError(f"{name}: `bias` must have shape ({outputs},), got {bias.shape}")
    return bias


def inputs_of(name: str, x: Any, features: int) -> jax.Array:
    """Return inputs (..., features), or raise."""
    x = _checks.array(name, x, "x")
    if x.ndim < 1 or x.shape[-1] != features:
        raise ValueError(f"{name}: `x` must have shape (..., {features}), got {x.shape}")
    return x


def shifted(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Return y with the bias added to its last axis."""
    return y if bias is None else y + jnp.expand_dims(bias, tuple(range(y.ndim - 1)))


def random_kernel(name: str, key: Any, inputs: Any, outputs: Any, dtype: Any) -> jax.Array:
    """Return a Gaussian kernel (inputs, outputs) of variance 1 / inputs."""
    inputs = _checks.static_int(name, "inputs", inputs, 1, 2**31)
    outputs = _checks.static_int(name, "outputs", outputs, 1, 2**31)
    scale = jnp.asarray(inputs**-0.5, dtype)
    return jax.random.normal(key, (inputs, outputs), dtype) * scale

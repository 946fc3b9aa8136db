"""One weight as factors: the best approximation of low rank in the norm of inputs and outputs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _checks, _tolerances
from .._types import SVDResult
from ..algorithms.products import adjoint, adjoint_product, product
from ..operators.base import operator as pytree
from ..operators.compose import LowRank
from ..primitives.batching import vmapped
from ..primitives.randomized import randomized_svd
from ..primitives.svd import svd

METHODS = ("auto", "full", "randomized")

# A randomized SVD pays up to a quarter of the full rank, and from 256 x 256.
SHARE, SMALL = 4, 256

# Of a Gaussian matrix, the worst there is, 1024 x 1024 at rank 64, the error is above the best by
# 1.4 % with 2 power iterations and 10 columns more, by 0.9 % with 3, by 0.7 % with 16 columns too.
POWER_ITERATIONS, OVERSAMPLING = 3, 4


@pytree
class Factor:
    """A metric given by a factor: C = F^H F, such as samples X themselves for C = X^H X.

    Attributes:
        of: F (..., p, m) for any p.

    Raises:
        TypeError: it is no array of numbers.
        ValueError: it has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> X = jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # two samples of three inputs
        >>> W = jnp.diag(jnp.array([1.0, 1.5, 9.0]))
        >>> print(jaxsvd.compress.factorize(W, 1, jaxsvd.compress.Factor(X)).to_dense())
        [[1. 0. 0.]
         [0. 0. 0.]
         [0. 0. 0.]]
    """

    of: jax.Array

    def __post_init__(self):
        _checks.matrix("Factor", self.of, "of")


class Root(NamedTuple):
    """F of a metric C = F^H F.

    Attributes:
        diagonal: (..., m) where F is diagonal, or None.
        matrix: (..., p, m), or None; both None for the identity.
    """

    diagonal: jax.Array | None = None
    matrix: jax.Array | None = None

    @property
    def is_identity(self) -> bool:
        """Whether there is no metric."""
        return self.diagonal is None and self.matrix is None

    def times(self, X: jax.Array) -> jax.Array:
        """Return F X."""
        if self.diagonal is not None:
            return self.diagonal[..., :, None].astype(X.dtype) * X
        return X if self.matrix is None else product(self.matrix.astype(X.dtype), X)

    def adjoint_times(self, Y: jax.Array) -> jax.Array:
        """Return F^H Y."""
        if self.diagonal is not None:
            return self.diagonal[..., :, None].astype(Y.dtype) * Y
        return Y if self.matrix is None else adjoint_product(self.matrix.astype(Y.dtype), Y)


def root(name: str, argument: str, metric: Any, w: jax.Array, axis: int) -> Root:
    """Return F of a metric given in any of its forms, or raise.

    ``w`` is the matrix (..., m, n), ``axis`` -2 or -1 that of its sides which the metric is of.
    """
    given = metric.of if isinstance(metric, Factor) else metric
    if metric is None:
        return Root()
    if isinstance(given, Tracer):
        return _root(name, argument, metric, given, w, axis)
    # Once, where a program is traced: a metric is a constant of a training loop.
    with jax.ensure_compile_time_eval():
        return _root(name, argument, metric, given, w, axis)


def _root(name: str, argument: str, metric: Any, given: Any, w: jax.Array, axis: int) -> Root:
    size, batch = w.shape[axis], w.shape[:-2]
    array = _checks.working(_checks.array(name, given, argument))
    if jnp.iscomplexobj(array) and not jnp.iscomplexobj(w):
        raise TypeError(f"{name}: `{argument}` must be real for a real weight, got a complex one")
    is_concrete = not isinstance(array, Tracer)
    if is_concrete and not bool(jnp.all(jnp.isfinite(array))):
        raise ValueError(f"{name}: `{argument}` must be finite, got NaN or Inf")

    def fits(*shape):
        wanted = array.shape[array.ndim - len(shape) :] == shape
        return wanted and array.shape[: array.ndim - len(shape)] in ((), batch)

    if isinstance(metric, Factor):
        if not fits(*array.shape[-2:]) or array.shape[-1] != size:
            raise ValueError(
                f"{name}: `{argument}` as a Factor must have shape (p, {size}), got {array.shape}"
            )
        if array.shape[-2] > size:  # its R factor gives the same metric with fewer rows
            array = jnp.linalg.qr(array, mode="r")
        missing = max(size - array.shape[-2], 0)  # so that a product has all its singular values
        rows = [(0, 0)] * (array.ndim - 2) + [(0, missing), (0, 0)]
        return Root(matrix=jnp.pad(array, rows))
    if fits(size, size):
        return Root(matrix=_root_of_gram(name, argument, array, _tol(given.dtype)))
    if fits(size):
        if jnp.iscomplexobj(array) or (is_concrete and bool(jnp.any(array < 0))):
            raise ValueError(
                f"{name}: `{argument}` as a vector is the diagonal of a metric and must not be "
                "negative, got a negative or complex entry"
            )
        return Root(diagonal=jnp.sqrt(array))
    raise ValueError(
        f"{name}: `{argument}` must be None, a vector ({size},), a Gram matrix ({size}, {size}) or "
        f"a Factor (p, {size}), got shape {array.shape}"
    )


def _tol(dtype: Any) -> float:
    return _tolerances.eps(dtype) ** 0.5 if jnp.issubdtype(dtype, jnp.inexact) else 0.0


def _root_of_gram(name: str, argument: str, C: jax.Array, tol: float) -> jax.Array:
    """Return D^(1/2) Q^H of C = Q D Q^H: where C is singular rows are zero, and nothing fails."""
    values, Q = jnp.linalg.eigh((C + adjoint(C)) / 2)
    if not isinstance(C, Tracer):
        size = float(jnp.max(jnp.abs(C), initial=0))
        skew = float(jnp.max(jnp.abs(C - adjoint(C)), initial=0))
        low = float(jnp.min(values, initial=0))
        if skew > tol * size or low < -tol * C.shape[-1] * size:
            raise ValueError(
                f"{name}: `{argument}` as a matrix must be a Gram matrix, Hermitian and without "
                f"negative eigenvalues, got |C - C^H| = {skew:.1e} and an eigenvalue {low:.1e}; "
                "wrap F of C = F^H F in compress.Factor"
            )
    return jnp.sqrt(jnp.maximum(values, 0))[..., :, None].astype(C.dtype) * adjoint(Q)


def _unit_columns(X: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the columns at norm one, and their norms (zero columns stay zero)."""
    norms = jnp.linalg.norm(X, axis=-2)
    return X / jnp.where(norms > 0, norms, 1)[..., None, :].astype(X.dtype), norms


def _leading(M: jax.Array, rank: int, method: str) -> SVDResult:
    short = min(M.shape[-2:])
    rank = min(rank, short)
    if method == "auto":
        method = "full" if short < SMALL or SHARE * rank > short else "randomized"
    if method == "randomized":
        result: Any = randomized_svd(
            jax.random.key(0),
            M,
            rank,
            oversampling=max(10, rank // OVERSAMPLING),
            power_iterations=POWER_ITERATIONS,
        )
        return result
    U, S, Vh = svd(M, full_matrices=False)
    return SVDResult(U[..., :rank], S[..., :rank], Vh[..., :rank, :])


def nested(
    w: jax.Array, rank: int, inner: Root, outer: Root, method: str
) -> tuple[SVDResult, jax.Array]:
    """Return (U, s, Vh) whose first r columns are best for every r <= rank, and values of F W E^H.

    With M = F W E^H and its triplets X, S, Y the approximation W Y' S^-1 X'^H W, Y' = E^H Y and
    X' = F^H X, is weighted to X S Y^H and thus the nearest (Eckart and Young); nothing is divided
    by but the values that are kept. For E = I it is W Y Y^H: no division at all, nor for F = I.
    """
    M = adjoint(outer.times(adjoint(inner.times(w))))
    X, S, Yh = _leading(M, rank, method)
    if inner.is_identity and outer.is_identity:
        return SVDResult(X, S, Yh), S
    if outer.is_identity:
        U, s = _unit_columns(product(w, adjoint(Yh)))
        return SVDResult(U, s, Yh), S
    if inner.is_identity:
        V, s = _unit_columns(adjoint_product(w, X))
        return SVDResult(X, s, adjoint(V)), S
    U, left = _unit_columns(product(w, outer.adjoint_times(adjoint(Yh))))
    V, right = _unit_columns(adjoint_product(w, inner.adjoint_times(X)))
    kept = S > _tolerances.rank_tol(S.dtype, *M.shape[-2:]) * S[..., :1]
    s = jnp.where(kept, left / jnp.where(kept, S, 1) * right, 0)
    return SVDResult(U, s, adjoint(V)), S


def as_low_rank(factors: SVDResult, dtype: Any) -> LowRank:
    """Return factors in a dtype; of stacked matrices a LowRank with the same leading axes.

    Those of float8 are kept in bfloat16: singular values have no place in 448, the largest float8.
    """
    dtype = jnp.bfloat16 if jnp.dtype(dtype).itemsize == 1 else dtype
    U, s, Vh = (_checks.restore(x, dtype) for x in factors)
    return vmapped(LowRank, U.ndim - 2)(U, s, Vh)


def factorize(
    w: Any,
    rank: int,
    in_metric: Any = None,
    out_metric: Any = None,
    *,
    method: str = "auto",
) -> LowRank:
    """Return the best approximation of rank r of a weight, y = x W, in the norm of two metrics.

        min |F (W - W') E^H|_F,   in_metric F^H F (inputs, inputs), out_metric E^H E

    which is tr((W - W')^H C (W - W') K), the mean squared change of the outputs where C is the
    second moment of the inputs. A metric is told by its form alone:

    - None: the identity;
    - an array (m,): the diagonal of C, such as mean squared inputs or Fisher information;
    - an array (m, m): C itself, Hermitian, semidefinite, singular or not (never m vectors for a
      stack of m weights);
    - ``Factor(F)``, F (p, m): C = F^H F, such as the inputs themselves, or any S with C = S S^H.

    By choice of metrics this is the truncated SVD; ASVD (squares of its scales, a vector), FWSVD
    (Fisher information by rows, a vector), SVD-LLM and DRONE (the Gram matrix of the inputs), and
    two-sided truncation (Gram matrices of inputs and of the gradients of outputs, as in KFAC).
    No metric is inverted and none is factored by Cholesky.

    Cost: one SVD of (m, n), randomized where 4 r <= min(m, n) >= 256; for a Gram matrix its eigh.

    Args:
        w: weight (..., inputs, outputs); leading axes are a stack of weights.
        rank: static, 1 <= rank <= min(inputs, outputs).
        in_metric: of the rows; stacked as w, or one for all.
        out_metric: of the columns, alike.
        method: "full" SVD, "randomized" (a fixed key; error within 1 % of the best), or "auto".

    Returns:
        LowRank(U, s, Vh) in the dtype of w (bfloat16 for float8), the columns of U and rows of Vh
        of norm one; of a stack with the same leading axes.

    Raises:
        TypeError: ``w`` is no array, rank no static int.
        ValueError: an argument does not fit, by name; NaN or Inf in w or in a metric; a matrix that
            is no Gram matrix.

    Example:
        The first input is ten times the second, so it is the first row that is kept:

        >>> import jax.numpy as jnp, jaxsvd
        >>> W = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> print(jaxsvd.compress.factorize(W, 1).to_dense())
        [[0. 0.]
         [0. 2.]]
        >>> print(jaxsvd.compress.factorize(W, 1, jnp.array([100.0, 1.0])).to_dense())
        [[1. 0.]
         [0. 0.]]

    References:
        Eckart and Young (1936); Yuan et al. (2023), "ASVD"; Hsu et al. (2022), "Language model
        compression with weighted low-rank factorization" (FWSVD); Wang et al. (2024), "SVD-LLM";
        Chen et al. (2021), "DRONE", theorem 1.
    """
    name = "factorize"
    w = _checks.matrix(name, w, "w")
    rank = _checks.static_int(name, "rank", rank, 1, min(w.shape[-2:]))
    method = _checks.choice(name, "method", method, METHODS)
    W = _checks.working(w)
    if not isinstance(W, Tracer) and not np.all(np.isfinite(W)):
        raise ValueError(f"{name}: `w` must be finite, got NaN or Inf")
    inner, outer = (
        root(name, "in_metric", in_metric, W, -2),
        root(name, "out_metric", out_metric, W, -1),
    )
    factors, _ = nested(W, rank, inner, outer, method)
    return as_low_rank(factors, w.dtype)

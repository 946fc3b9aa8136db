"""`randomized_svd`: a fixed number of products, with the rule of the truncated SVD."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from .. import _checks
from .._types import Info, SVDResult
from ..algorithms import outofcore, passes
from ..algorithms.phase import fix_phases
from ..algorithms.products import adjoint
from ..algorithms.randomized import sketch_svd
from ..operators.base import Operator
from ..operators.dense import Dense
from ..operators.rowblocks import held_by
from .batching import over_leading_axes, vmapped
from .placement import on_any_mesh
from .runs import Config, Run, constants, default_tol
from .truncated import arguments, check_key, information, truncated_triplets


def residual_norms(A: Operator, result: SVDResult) -> jax.Array:
    """Return max(|A v_i - s_i u_i|, |A^H u_i - s_i v_i|) for each triplet, (k,)."""
    U, S, Vh = result
    V, s = adjoint(Vh), S[None, :].astype(U.dtype)
    right = jnp.linalg.norm(A.matmat(V) - U * s, axis=0)
    return jnp.maximum(right, jnp.linalg.norm(A.rmatmat(U) - V * s, axis=0))


def _randomized(
    A: Operator, key: jax.Array, config: Config, columns: int, power_iterations: int, ask: bool
) -> tuple[SVDResult, Info | None]:
    constant = lax.stop_gradient(A)
    ritz = sketch_svd(constant, key, columns, power_iterations)
    k = config.k
    kept = SVDResult(ritz.U[:, :k], ritz.S[:k], ritz.Vh[:k])
    # Two more products, which the compiler leaves out where nobody asks and nothing is derived.
    norms = residual_norms(constant, kept)
    products = jnp.asarray((2 + 2 * power_iterations) * columns, jnp.int32)
    done = jnp.all(norms <= config.tol * ritz.S[0])
    run = Run(ritz, norms, jnp.asarray(power_iterations, jnp.int32), products, done)
    result = fix_phases(truncated_triplets(A, constants(A, run, config), config))
    return result, lax.stop_gradient(information(A, run, kept, config)) if ask else None


def _of_rows(
    A: Operator, key: jax.Array, config: Config, columns: int, power_iterations: int, ask: bool
) -> tuple[SVDResult, Any]:
    """Return the same of a matrix outside memory: power_iterations + 2 passes, one more to ask."""
    k = config.k

    def choose(m: int, n: int) -> outofcore.Config:
        return outofcore.fixed(k, columns, power_iterations, ask, config.tol)

    found = passes.run(A, choose, key)
    run = Run(*found._replace(residuals=found.residuals[:k]))
    result = fix_phases(SVDResult(run.ritz.U[:, :k], run.ritz.S[:k], run.ritz.Vh[:k]))
    return result, information(A, run, result, config) if ask else None


@functools.partial(
    jax.jit, static_argnames=("config", "columns", "power_iterations", "ask", "dtype")
)
def _randomized_svd(
    a: Any, key, config: Config, columns: int, power_iterations: int, ask: bool, dtype: DTypeLike
):
    def of_any(a, key):
        def of_operator(A):
            return _randomized(A, key, config, columns, power_iterations, ask)

        if isinstance(a, Operator):
            return of_operator(a)
        return over_leading_axes(lambda a: of_operator(Dense(a)), _checks.working(a))

    result, info = on_any_mesh(of_any, lambda place: (place.triplets, place.small), a, key)
    return jax.tree.map(lambda x: _checks.restore(x, dtype), result), info


def randomized_svd(
    key: jax.Array,
    a: Any,
    k: int,
    *,
    oversampling: int = 10,
    power_iterations: int = 2,
    return_info: bool = False,
) -> SVDResult | tuple[SVDResult, Info]:
    """Return k approximate leading triplets from 2 + 2 power_iterations products with A.

    A random block of l = k + oversampling columns is multiplied by (A A^H)^power_iterations A; the
    SVD of A restricted to its range is returned. How near it comes depends on the decay beyond k:
    for a flat spectrum ask `truncated_svd`, which iterates until the residual is small.

    The derivative is the rule of `truncated_svd` at these triplets, so a gradient is as approximate
    as they are, ``Info.gradient_error``; the solves of the rule stop there. Measured for
    s_i = i^-1/2, n = 200, k = 8, l = 18: after 0, 2, 4, 8 power iterations the gradient of a
    reconstruction is off by 219 %, 15 %, 2.9 %, 0.12 %.

    Cost: (2 + 2 power_iterations) l vectors multiplied by A or A^H; memory O((m + n) l).

    Args:
        key: from `jax.random.key`; the same key and input give the same bits.
        a: array (..., m, n), BCOO or BCSR matrix, or operator.
        k: static number of triplets, 1 <= k <= min(m, n).
        oversampling: static; columns beyond k, as many as there is room for.
        power_iterations: static.
        return_info: return (SVDResult, Info), for two more products.

    Returns:
        SVDResult(U, S, Vh) of shapes (..., m, k), (..., k), (..., k, n), phases fixed as in `svd`.

    Raises:
        TypeError: ``key`` is not a key, ``a`` not a matrix in any form, a static argument traced.
        ValueError: k, oversampling or power_iterations out of range.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jnp.outer(jnp.arange(1.0, 41.0), jnp.ones(30))  # rank one
        >>> U, S, Vh = jaxsvd.randomized_svd(jax.random.key(0), A, 1)
        >>> bool(jnp.allclose(U * S[None, :] @ Vh, A, atol=1e-3))
        True

    References:
        Halko, Martinsson and Tropp (2011), SIAM Review 53, algorithms 4.3 and 5.1.
    """
    name = "randomized_svd"
    key = check_key(name, key)
    a, config, _, _, dtype = arguments(name, a, k, "krylov")
    config = config._replace(method="sketch", tol=default_tol(dtype))
    oversampling = _checks.static_int(name, "oversampling", oversampling, 0, 10**9)
    power_iterations = _checks.static_int(name, "power_iterations", power_iterations, 0, 10**6)
    columns = min(config.k + oversampling, *a.shape[-2:])
    ask = _checks.flag(name, "return_info", return_info)
    given = a, key, config, columns, power_iterations, ask
    if isinstance(a, Operator) and held_by(a) is not None:
        result, info = _of_rows(*given)
    else:
        result, info = _randomized_svd(*given, dtype)
    return (result, info) if ask else result


def residuals(a: Any, result: SVDResult) -> jax.Array:
    """Return max(|A v_i - s_i u_i|, |A^H u_i - s_i v_i|) for each triplet of a result.

    The backward error of a triplet: it is exact for a matrix this far from A. Differentiable.

    Cost: k vectors multiplied by A and k by A^H.

    Args:
        a: array (..., m, n), BCOO or BCSR matrix, or operator.
        result: SVDResult of shapes (..., m, k), (..., k), (..., k, n).

    Returns:
        Array (..., k).

    Raises:
        TypeError: ``a`` is not a matrix in any form.
        ValueError: the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jnp.array([[3.0, 0.0], [0.0, 2.0]])
        >>> print(jaxsvd.residuals(A, jaxsvd.svd(A)))
        [0. 0.]

    References:
        Stewart and Sun (1990), "Matrix Perturbation Theory", section IV.
    """
    a, *_ = arguments("residuals", a, None)
    U, S, Vh = result
    *batch, m, n = a.shape
    k = S.shape[-1]
    wanted = ((*batch, m, k), (*batch, k), (*batch, k, n))
    if (U.shape, S.shape, Vh.shape) != wanted:
        raise ValueError(
            f"residuals: `result` must have shapes {wanted}, got {(U.shape, S.shape, Vh.shape)}"
        )

    def of_any(a, result):
        if isinstance(a, Operator):
            return residual_norms(a, result)
        norms = lambda a, result: residual_norms(Dense(a), result)  # noqa: E731
        return vmapped(norms, len(batch))(_checks.working(jnp.asarray(a)), result)

    return on_any_mesh(of_any, lambda place: place.small, a, SVDResult(U, S, Vh))

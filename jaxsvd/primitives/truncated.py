"""`truncated_svd`: the k leading triplets of anything that can be multiplied by a vector."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from .. import _checks, _tolerances
from .._types import Info, SVDResult
from ..algorithms import drive, krylov, passes, subspace
from ..algorithms.phase import fix_phases
from ..algorithms.products import adjoint
from ..algorithms.router import solve, without_gathering
from ..operators.adapters import as_operator
from ..operators.base import Operator
from ..operators.dense import Dense
from ..operators.rowblocks import held_by
from ..rules.truncated import truncated_tangents
from .batching import over_leading_axes
from .disturbance import singular_numbers
from .placement import on_any_mesh
from .ruled import ruled
from .runs import (
    Config,
    Ritz,
    Run,
    constants,
    default_tol,
    gradient_error,
    reachable_tol,
    rule_numbers,
)
from .two_sided import two_sided_products

METHODS = ("auto", "krylov", "subspace", "gram", "full")

# Shorter side up to which the full SVD serves top-k requests as well. Top 10 on 2 cores, full and
# Krylov: 1.1 and 1.1 ms at 128, 2.4 and 1.3 at 200, 4.8 and 1.3 at 256 (`benchmarks.router`).
FULL_UP_TO = 128

# Vectors beyond k that are kept to precondition the rule: they cost nothing in the forward pass.
EXTRA = 16


def choose_method(method: str, shape: tuple[int, int], k: int, tol: float) -> str:
    """Return the method for a matrix: the full SVD where the bases would fill the space."""
    possible = krylov.choose(*shape, k, tol, None) is not None
    if method in ("subspace", "gram"):
        return method if k + EXTRA < min(shape) else "full"
    if method == "full" or not possible or (method == "auto" and min(shape) <= FULL_UP_TO):
        return "full"
    return "krylov"


def forward(A: Operator, config: Config, start: jax.Array | None, seed: int) -> Run:
    """Return the triplets of A by the algorithm of the config; nothing is differentiated."""
    A = lax.stop_gradient(A)
    k, (m, n) = config.k, A.shape
    if config.method == "passes":
        key = jax.random.key(seed)
        found = passes.truncated(A, k, config.tol, config.max_iterations, key, start)
        return Run(*found._replace(residuals=found.residuals[:k]))
    if config.method == "full":
        a = A.to_dense()

        def solve_dense(a):
            return solve(a, without_gathering(A.shape))

        ritz = singular_numbers(a, solve_dense(a), solve_dense, raw=True)
        # Of a matrix with an Inf LAPACK returns some entries of the vectors as if nothing were.
        undefined = jnp.where(jnp.all(jnp.isfinite(ritz.S)), 0, jnp.nan)
        ritz = jax.tree.map(lambda x: x + undefined.astype(x.dtype), ritz)
        # A backward stable SVD leaves residuals of rounding size; they are not measured again.
        largest = jnp.max(ritz.S, initial=0)
        rounding = jnp.full((k,), jnp.finfo(ritz.S.dtype).eps) * largest
        none = jnp.zeros((), jnp.int32)
        return Run(ritz, rounding, none, none + min(m, n), jnp.isfinite(largest))
    if config.method in ("subspace", "gram"):
        columns = min(k + EXTRA, min(m, n))
        spent = 0
        if config.method == "gram":
            start, spent = subspace.gram_vectors(A, columns), 2 * min(m, n)
        limit = 500 if config.max_iterations is None else config.max_iterations
        state = subspace.init(A, columns, seed, start)

        def running(state):
            largest = jnp.max(state.residuals[:k])
            open_ = ~(largest <= config.tol * state.S[0]) & ~jnp.isnan(largest)
            return open_ & (state.iteration < limit)

        state = drive.run(state, running, lambda state: subspace.step(A, state))
        residuals = state.residuals[:k]
        done = jnp.all(residuals <= config.tol * state.S[0])
        ritz = subspace.result(state, columns)
        products = 2 * columns * state.iteration + spent
        return Run(ritz, residuals, state.iteration, products, done)
    sizes = krylov.choose(m, n, k, config.tol, config.max_iterations)
    assert sizes is not None  # choose_method made sure
    state = drive.run(
        krylov.init(A, sizes, seed, start),
        lambda state: krylov.running(state, sizes),
        lambda state: krylov.step(A, state, sizes),
    )
    U, S, Vh = krylov.finish(state, sizes, extra=sizes.keep - k)
    nan = jnp.where(jnp.isfinite(state.scale), 1, jnp.nan)
    ritz = SVDResult(U * nan.astype(U.dtype), S * nan, Vh * nan.astype(U.dtype))
    products = sizes.block * (2 * state.iteration + 1)
    residuals = state.scale * state.residuals
    return Run(ritz, residuals, state.iteration, products, krylov.converged(state, sizes))


def tangent_products(A: Operator, dA: Operator, U: jax.Array, V: jax.Array):
    """Return dA V and dA^H U, linear in the tangent of the operator's leaves."""
    if isinstance(dA, Dense):
        return two_sided_products(dA.a, U, V)
    _, dAV = jax.jvp(lambda A: A.matmat(V), (A,), (dA,))
    _, dAHU = jax.jvp(lambda A: A.rmatmat(U), (A,), (dA,))
    return dAV, dAHU


@ruled(static=(2,))
def truncated_triplets(A: Operator, ritz: Ritz, config: Config) -> SVDResult:
    """Return the k leading of the triplets ``ritz`` as a function of A."""
    del A
    U, S, Vh, _ = ritz
    k = config.k
    return SVDResult(U[:, :k], S[:k], Vh[:k])


@truncated_triplets.defjvp
def _truncated_triplets_jvp(config, primals, tangents):
    A, ritz = primals
    # The factors come from `truncated_triplets` itself and carry this rule to the next order.
    result = truncated_triplets(A, ritz, config)
    products = tangent_products(A, tangents[0], result.U, adjoint(result.Vh))
    return result, truncated_tangents(A, result, products, rule_numbers(A, ritz, config))


def information(A: Operator, run: Run, result: SVDResult, config: Config) -> Info:
    """Return what is known of a result; nothing here is differentiated."""
    k, S = config.k, run.ritz.S
    beyond = S[k] if S.shape[0] > k else jnp.zeros((), S.dtype)
    return Info(
        residuals=run.residuals,
        error=beyond,
        rank=jnp.sum(result.S > _tolerances.rank_tol(S.dtype, *A.shape) * S[0]),
        gap=S[k - 1] - beyond,
        gradient_error=gradient_error(run, config),
        iterations=run.iterations,
        products=run.products,
        converged=run.converged,
    )


def _truncated(
    A: Operator, config: Config, start: jax.Array | None, seed: int
) -> tuple[SVDResult, Info]:
    run = forward(A, config, start, seed)
    result = fix_phases(truncated_triplets(A, constants(A, run, config), config))
    if config.strict:
        mark = jnp.where(run.converged, 1, jnp.nan).astype(result.S.dtype)
        result = SVDResult(*(x * mark.astype(x.dtype) for x in result))
    return result, lax.stop_gradient(information(A, run, result, config))


@functools.partial(jax.jit, static_argnames=("config", "seed", "dtype"))
def _truncated_svd(a: Any, config: Config, start: Any, seed: int, dtype: DTypeLike):
    def of_any(a, start):
        if isinstance(a, Operator):
            return _truncated(a, config, start, seed)
        return over_leading_axes(
            lambda a: _truncated(Dense(a), config, start, seed), _checks.working(a)
        )

    result, info = on_any_mesh(of_any, lambda place: (place.triplets, place.small), a, start)
    return jax.tree.map(lambda x: _checks.restore(x, dtype), result), info


def check_key(name: str, key: Any) -> jax.Array:
    """Return a random key, or raise."""
    if isinstance(key, jax.Array) and (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape == (2,)
    ):
        return key
    raise TypeError(f"{name}: `key` must come from jax.random.key, got {_checks.describe(key)}")


def arguments(
    name: str,
    a: Any,
    k: int | None,
    method: str = "auto",
    tol: float | None = None,
    max_iterations: int | None = None,
    key: int | None = None,
    start: Any = None,
    strict: bool = False,
) -> tuple[Any, Config, jax.Array | None, int, Any]:
    """Return (matrix or operator, config, start block, seed, dtype) from checked arguments."""
    if not isinstance(a, (jax.Array, np.ndarray)):
        a = as_operator(a, name=name)
        a = a.a if isinstance(a, Dense) else a
    a = a if isinstance(a, Operator) else _checks.matrix(name, a)
    shape = a.shape[-2:]
    smallest = min(shape)
    wanted = smallest if k is None else _checks.static_int(name, "k", k, 1, smallest)
    _checks.choice(name, "method", method, METHODS)
    work = jnp.dtype(a.dtype if a.dtype.itemsize >= 4 else jnp.float32)
    tol = _checks.tolerance(name, "tol", tol)
    tol = default_tol(work) if tol is None else tol
    if tol < reachable_tol(work):
        raise ValueError(
            f"{name}: `tol` must be at least {reachable_tol(work):.1e}, the least that {work} can "
            f"reach, got {tol}"
        )
    if max_iterations is not None:
        max_iterations = _checks.static_int(name, "max_iterations", max_iterations, 1, 10**9)
    seed = 0 if key is None else _checks.static_int(name, "key", key, 0, 2**31 - 1)
    block = None
    if start is not None:
        if not isinstance(start, tuple) or len(start) != 3:
            raise TypeError(
                f"{name}: `start` must be an earlier SVDResult, got {_checks.describe(start)}"
            )
        block = adjoint(_checks.matrix(name, start[2], "start"))
        if block.ndim != 2 or block.shape[0] != shape[1]:
            raise ValueError(
                f"{name}: `start` must hold right vectors of length {shape[1]}, got Vh of shape "
                f"{start[2].shape}"
            )
    if isinstance(a, Operator) and held_by(a) is not None:
        _checks.choice(f"{name} (of row blocks)", "method", method, ("auto", "krylov"))
        method = "passes"
    else:
        method = choose_method(method, shape, wanted, tol)
    strict = _checks.flag(name, "strict", strict)
    config = Config(wanted, method, tol, max_iterations, strict)
    return a, config, block, seed, jnp.dtype(a.dtype)


def truncated_svd(
    a: Any,
    k: int,
    *,
    method: str = "auto",
    tol: float | None = None,
    max_iterations: int | None = None,
    key: int | None = None,
    start: SVDResult | None = None,
    strict: bool = False,
    return_info: bool = False,
) -> SVDResult | tuple[SVDResult, Info]:
    """Return the k leading singular triplets of a matrix or operator, to a promised residual.

        max_i max(|A v_i - s_i u_i|, |A^H u_i - s_i v_i|) <= tol s_1

    The derivative is that of the exact triplets, from products with A alone (`rules.truncated`): in
    either mode, to any order, for an array, the values of a sparse matrix, or the parameters of an
    operator. How exact it is stands in ``Info.gradient_error``; at a tie across the cut there is no
    derivative.

    Cost: a few times k products with A for block Krylov, O((m + n) k) memory; the gradient about as
    many products as the forward pass.

    Args:
        a: array (..., m, n), BCOO or BCSR matrix, or operator (see `operators.as_operator`).
        k: static number of triplets, 1 <= k <= min(m, n).
        method: "auto"; "krylov", block Lanczos; "subspace", iteration with Rayleigh-Ritz; "gram",
            the same from `eigh` of the smaller Gram matrix; "full". A k close to min(m, n) uses the
            full SVD.
        tol: residual to reach, relative to s_1; default 1e-5 (float32), 1e-10 (float64).
        max_iterations: steps at most; default many.
        key: static int that seeds the start block; default a fixed one.
        start: an earlier result (SVDResult) of a matrix nearby, to start from.
        strict: give NaN where the forward pass or a solve of the derivative did not converge.
        return_info: return (SVDResult, Info).

    Returns:
        SVDResult(U, S, Vh) of shapes (..., m, k), (..., k), (..., k, n), phases fixed as in `svd`.

    Raises:
        TypeError: ``a`` is not a matrix in any form; a static argument is not static.
        ValueError: k out of range; a tolerance that the dtype cannot reach; unknown method.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jax.random.normal(jax.random.key(0), (300, 200))
        >>> U, S, Vh = jaxsvd.truncated_svd(A, 3)
        >>> bool(jnp.allclose(S, jnp.linalg.svd(A, compute_uv=False)[:3], rtol=1e-4))
        True

    References:
        Golub, Luk and Overton (1981); Baglama and Reichel (2005); `jaxsvd.rules.truncated`.
    """
    return_info = _checks.flag("truncated_svd", "return_info", return_info)
    given = arguments("truncated_svd", a, k, method, tol, max_iterations, key, start, strict)
    # A matrix outside memory is no argument of a program: programs are made for its blocks.
    outside = given[1].method == "passes"
    result, info = _truncated(*given[:4]) if outside else _truncated_svd(*given)
    return (result, info) if return_info else result

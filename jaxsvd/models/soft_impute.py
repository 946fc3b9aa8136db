"""Soft-impute: least nuclear norm and misfit, differentiable at the optimum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from .. import _checks
from .._types import SVDResult
from ..algorithms import drive, subspace
from ..algorithms.products import adjoint, adjoint_product, product
from ..operators.base import Sum
from ..operators.compose import LowRank
from ..operators.sparse import Sparse
from ..primitives.truncated import default_tol, reachable_tol, truncated_svd
from .observed import EXTRA, CompletionInfo, observed_entries, sampled, sizes, with_values

# Steps of subspace iteration within one of soft-impute: with one alone the vectors lag behind the
# momentum, which then never settles.
INNER = 2

# Newton steps that carry derivatives: exact up to this order.
ORDER = 2


class _State(NamedTuple):
    basis: subspace.State
    shrunk: jax.Array  # (l,), max(S - weight, 0) of the basis, cut at max_rank
    before: tuple[jax.Array, jax.Array, jax.Array]  # U, shrunk, V of the step before
    at: tuple[jax.Array, jax.Array]  # both matrices at the observed places, (nse,)
    objective: jax.Array
    t: jax.Array  # Nesterov's sequence
    error: jax.Array
    iteration: jax.Array


def _soft_impute(a: Sparse, weight, start: LowRank | None, k: int, tol: float, limit: int):
    """Return U, s, V of the optimum and a CompletionInfo; nothing is differentiated.

    Accelerated proximal gradient steps (Toh and Yun 2010): with W = Z + b (Z - Z_before),

        Z_new = S_weight(W + P(Y - W))

    where W + P(Y - W) is low rank plus sparse and its singular vectors come from one step of
    subspace iteration from those of the last step. The momentum b starts anew when the objective
    rises (O'Donoghue and Candes 2015).
    """
    (m, n), dtype = a.shape, a.dtype
    l = min(k + EXTRA, m, n)
    y = a.data

    def at_places(U, s, V):
        return sampled(U * s[None, :], V, a.rows, a.columns)

    def cut(S):
        return jnp.where(jnp.arange(l) < k, jnp.maximum(S - weight, 0), 0)

    def step(state: _State) -> _State:
        t = (1 + jnp.sqrt(1 + 4 * state.t**2)) / 2
        b = (state.t - 1) / t
        U0, f0, V0 = state.before
        U1, f1, V1 = state.basis.U, state.shrunk, state.basis.V
        W = LowRank(
            jnp.concatenate([U1, U0], axis=1),
            jnp.concatenate([(1 + b) * f1, -b * f0]),
            adjoint(jnp.concatenate([V1, V0], axis=1)),
        )
        w = (1 + b) * state.at[0] - b * state.at[1]
        op = Sum(with_values(a, y - w), W)
        basis = lax.fori_loop(0, INNER, lambda _, basis: subspace.step(op, basis), state.basis)
        U, V, f = basis.U, basis.V, cut(basis.S)
        z = at_places(U, f, V)
        objective = 0.5 * jnp.sum((y - z) ** 2) + weight * jnp.sum(f)
        # Z_new - W on both subspaces, and what the subspaces lack: no cancellation in it.
        short = (U * f[None, :] - W.matmat(V))[:, :k], (V * f[None, :] - W.rmatmat(U))[:, :k]
        lacking = jnp.where(basis.S + basis.residuals > weight, basis.residuals, 0)
        error = jnp.sqrt(sum(jnp.sum(x * x) for x in (*short, lacking)))
        rises = objective > state.objective
        return _State(
            basis,
            f,
            (U1, f1, V1),
            (z, state.at[0]),
            objective,
            jnp.where(rises, 1, t),
            error / jnp.maximum(basis.S[0], jnp.finfo(dtype).tiny),
            state.iteration + 1,
        )

    block = None if start is None else adjoint(start.Vh.astype(dtype))[:, :l]
    basis = subspace.init(a, l, 0, block)
    zeros = (basis.U, jnp.zeros((l,), dtype), basis.V)
    f, z = zeros[1], jnp.zeros_like(y)
    if start is not None and block is not None:
        r = min(start.s.shape[0], l)
        U = basis.U.at[:, :r].set(start.U[:, :r].astype(dtype))
        V = basis.V.at[:, :r].set(block[:, :r])
        f = f.at[:r].set(start.s[:r].astype(dtype))
        basis, z = basis._replace(U=U, V=V), at_places(U, f, V)
        zeros = (U, f, V)
    one = jnp.ones((), dtype)
    state = _State(
        basis, f, zeros, (z, z), one * jnp.inf, one, one * jnp.inf, jnp.zeros((), jnp.int32)
    )
    running = lambda s: ~(s.error <= tol) & ~jnp.isnan(s.error) & (s.iteration < limit)  # noqa: E731
    state = drive.run(state, running, step)
    S = state.basis.S
    exceeded = (S[k] > weight * (1 + tol)) if l > k else jnp.zeros((), bool)
    rank = jnp.sum(state.shrunk > 0)
    info = CompletionInfo(
        state.iteration, state.error, rank, exceeded, (state.error <= tol) & ~exceeded
    )
    return state.basis.U[:, :k], state.shrunk[:k], state.basis.V[:, :k], info


def _stationarity(z, a: Sparse, weight):
    """Return the gradient of the factored objective, and the function that multiplies its Hessian.

    |P(Y - A B^T)|^2 / 2 + weight (|A|^2 + |B|^2) / 2
    """
    A, B = z
    R = with_values(a, a.data - sampled(A, B, a.rows, a.columns))

    def hessian(d):
        # Written out: the sparse products then take their fast form, a derivative of F would not.
        dA, dB = d
        dR = with_values(a, sampled(dA, B, a.rows, a.columns) + sampled(A, dB, a.rows, a.columns))
        return (
            weight * dA + dR.matmat(B) - R.matmat(dB),
            weight * dB + dR.rmatmat(A) - R.rmatmat(dA),
        )

    return (weight * A - R.matmat(B), weight * B - R.rmatmat(A)), hessian


def _optimum(a: Sparse, weight, start, k: int, tol: float, limit: int):
    """Return the optimum as a LowRank whose derivatives are those of the optimum, and Info.

    At the optimum Z = A B^T with A = U s^1/2, B = V s^1/2 the gradient of the factored objective
    vanishes: F(A, B; Y, weight) = 0 (Srebro, Rennie and Jaakkola 2005). So dz = -H^+ dF, H the
    Hessian of a minimum: positive semidefinite, zero along rotations (A Q, B Q) only, which no dF
    meets: conjugate gradients across these find the tangent of least norm. Newton's step

        z - H(z)^-1 (F(z) - c),   c the value of F(z) as a constant

    leaves the numbers as they are and has this derivative; a second one from there has the second
    derivative as well.
    """
    constant, w, start = lax.stop_gradient((a, weight, start))
    U, s, V, info = _soft_impute(constant, w, start, k, tol, limit)
    root = jnp.sqrt(s)[None, :]
    z = lax.stop_gradient((U * root, V * root))

    (A0, B0), sums = z, s[:, None] + s[None, :]
    inverse = jnp.where(sums > 0, 1 / jnp.where(sums > 0, sums, 1), 0)

    def across(b):
        # Less the rotations (A Q, B Q), Q skew: at second order single terms meet them, if not
        # their sum, and conjugate gradients would never settle.
        X, Y = b
        G = adjoint_product(A0, X) + adjoint_product(B0, Y)
        Q = (G - G.T) / 2 * inverse
        return X - product(A0, Q), Y - product(B0, Q)

    def solve(H, b):
        return across(jax.scipy.sparse.linalg.cg(H, across(b), tol=tol, maxiter=1000)[0])

    for _ in range(ORDER):
        F, H = _stationarity(z, a, weight)
        moved = jax.tree.map(lambda x: x - lax.stop_gradient(x), F)
        step = lax.custom_linear_solve(H, moved, solve, symmetric=True)
        z = jax.tree.map(jnp.subtract, z, step)
    A, B = z
    # s_i = (|a_i|^2 + |b_i|^2) / 2, since A^T A = B^T B = diag(s) at the optimum.
    s = (jnp.sum(A * A, axis=0) + jnp.sum(B * B, axis=0)) / 2
    size = jnp.where(s > 0, s, 1)[None, :] ** -0.5
    return LowRank(A * size, s, (B * size).T), info


def _start(name: str, start: Any, a: Sparse) -> LowRank | None:
    if start is None:
        return None
    if isinstance(start, SVDResult):
        start = LowRank(*start)
    if not isinstance(start, LowRank) or start.shape != a.shape:
        raise ValueError(
            f"{name}: `start` must be an earlier result of shape {a.shape}, got "
            f"{_checks.describe(start)}"
        )
    return start


def _tol(a: Sparse, tol: float | None) -> float:
    return default_tol(a.dtype) if tol is None else max(tol, reachable_tol(a.dtype))


_compiled_optimum = jax.jit(_optimum, static_argnames=("k", "tol", "limit"))


def soft_impute(
    observed: Any,
    weight: Any,
    max_rank: int,
    *,
    tol: float | None = None,
    max_iterations: int = 2000,
    start: LowRank | None = None,
    return_info: bool = False,
) -> Any:
    """Return the matrix of least nuclear norm and misfit for some of its entries.

        argmin_Z  1/2 sum_(i,j) observed (Y_ij - Z_ij)^2 + weight |Z|_*

    Soft-impute, accelerated: fill in what is missing from the last estimate, shrink the singular
    values by ``weight``. Differentiable in ``weight`` and in the values of ``observed``, in either
    mode and up to second order, by the implicit function theorem at the optimum: the derivatives
    of the matrix, of its entries and of ``sum(s)`` are exact, those of single ``s`` to first order;
    single columns of U and V carry one of many gauges (decompose the matrix if you need them).

    A row or column without entries comes out zero. Places may come in any order but once each.

    Cost: an iteration takes two products with a sparse and a low-rank matrix, max_rank + 6 columns,
    and the entries of a low-rank matrix at the observed places. Memory O((m + n) max_rank + nse).

    Args:
        observed: BCOO, BCSR or operators.Sparse (m, n): stored values are observed, zeros too.
        weight: of the nuclear norm, > 0; from the largest singular value of ``observed`` on, the
            result is zero.
        max_rank: static; the optimum is found if its rank is no larger (see Info.exceeded).
        tol: static; distance of a step to reach, relative to the largest singular value: the
            optimum is up to some ten times as far; default 1e-5 (float32), 1e-10 (float64).
        max_iterations: static.
        start: an earlier result, for a warm start.
        return_info: return (LowRank, CompletionInfo).

    Returns:
        LowRank(U, s, Vh) of shapes (m, max_rank), (max_rank,), (max_rank, n); columns beyond the
        rank are zero.

    Raises:
        TypeError: ``observed`` is no sparse matrix, or complex.
        ValueError: an entry comes twice or is not finite (where values are known); no entry;
            ``max_rank`` or ``weight`` out of range.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> from jax.experimental import sparse
        >>> a = sparse.BCOO.fromdense(jnp.diag(jnp.array([3.0, 2.0, 1.0])))  # zeros are missing
        >>> f = lambda w: jnp.sum(jaxsvd.models.completion.soft_impute(a, w, 2).s)
        >>> value, slope = jax.value_and_grad(f)(1.5)  # 3 - w and 2 - w remain
        >>> print(f"{value:.3f} {slope:.3f}")
        2.000 -2.000

    References:
        Mazumder, Hastie and Tibshirani (2010), JMLR 11, algorithm 1; Toh and Yun (2010), Pacific J.
        Optim. 6 (acceleration).
    """
    name = "completion.soft_impute"
    a = observed_entries(name, observed)
    k, tol, limit = sizes(name, a, max_rank, tol, max_iterations)
    weight = jnp.asarray(_checks.positive(name, "weight", weight), a.dtype)
    start = _start(name, start, a)
    result, info = _compiled_optimum(a, weight, start, k=k, tol=_tol(a, tol), limit=limit)
    return (result, info) if _checks.flag(name, "return_info", return_info) else result


@jax.jit
def _largest(a: Sparse) -> jax.Array:
    result: Any = truncated_svd(a, 1)
    return result.S[0]


def path(
    observed: Any,
    max_rank: int,
    weights: Any = None,
    *,
    tol: float | None = None,
    max_iterations: int = 2000,
    return_info: bool = False,
) -> Any:
    """Return the optima of `soft_impute` for a sequence of weights, each started from the last.

    Cost: that of each weight, less for the warm start; one compiled scan.

    Args:
        observed: as in `soft_impute`.
        max_rank: static.
        weights: (p,), best from large to small; default 10 from 1/2 to 1/200 of the largest
            singular value of ``observed``, in equal ratios.
        tol: as in `soft_impute`.
        max_iterations: static, for each weight.
        return_info: return (weights, LowRank, CompletionInfo).

    Returns:
        (weights (p,), LowRank with leaves (p, m, max_rank), (p, max_rank), (p, max_rank, n)); the
        i-th result is ``jax.tree.map(lambda x: x[i], results)``. Differentiable in the weights.

    Raises:
        TypeError: as in `soft_impute`.
        ValueError: as in `soft_impute`; ``weights`` not of shape (p,) or not positive.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> from jax.experimental import sparse
        >>> a = sparse.BCOO.fromdense(jnp.diag(jnp.array([3.0, 2.0, 1.0])))
        >>> _, results = jaxsvd.models.completion.path(a, 2, jnp.array([2.5, 1.5]))
        >>> print(results.s)
        [[0.5 0. ]
         [1.5 0.5]]

    References:
        Mazumder, Hastie and Tibshirani (2010), JMLR 11, algorithm 1.
    """
    name = "completion.path"
    a = observed_entries(name, observed)
    k, tol, limit = sizes(name, a, max_rank, tol, max_iterations)
    if weights is None:
        weights = _largest(lax.stop_gradient(a)) * jnp.geomspace(0.5, 0.005, 10, dtype=a.dtype)
    weights = _checks.array(name, weights, "weights").astype(a.dtype)
    if weights.ndim != 1:
        raise ValueError(f"{name}: `weights` must have shape (p,), got {weights.shape}")
    if not isinstance(weights, Tracer) and not bool(jnp.all(weights > 0)):
        raise ValueError(f"{name}: `weights` must be > 0, got {float(jnp.min(weights))}")
    results, info = _compiled_path(a, weights, k, _tol(a, tol), limit)
    ask = _checks.flag(name, "return_info", return_info)
    return (weights, results, info) if ask else (weights, results)


def _path(a: Sparse, weights: jax.Array, k: int, tol: float, limit: int):
    def one(last, weight):
        result, info = _optimum(a, weight, last, k, tol, limit)
        return lax.stop_gradient(result), (result, info)

    (m, n), dtype = a.shape, a.dtype
    nothing = LowRank(jnp.zeros((m, k), dtype), jnp.zeros((k,), dtype), jnp.zeros((k, n), dtype))
    return lax.scan(one, nothing, weights)[1]


_compiled_path = jax.jit(_path, static_argnums=(2, 3, 4))
